"""Measure how far two scans of the same geometry are apart, and draw where.

RMSE, PSNR, SSIM, LPIPS, largest difference and bias, of the whole scan and, with a target, of the attacked square; each
with its data range, region and worst slice. With --attacked, also what one attack did to both, and to noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from MITSGANLib.measure.attack_effect import compare_protection, measure_attack
from MITSGANLib.measure.lpips_distance import load_lpips
from MITSGANLib.measure.metrics import Comparison, compare
from MITSGANLib.report.pictures import save_heatmaps
from MITSGANLib.scan.regions import regions_at
from MITSGANLib.scan.windows import LUNG, MEDIASTINUM

from . import shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, text in (("reference", "the scan to compare with"), ("other", "the scan to measure")):
        parser.add_argument(name, metavar=name.upper(), help=f"{text}: {shared.SCAN}")
    shared.add_target(parser)
    parser.add_argument(
        "--attacked",
        nargs=2,
        metavar=("REFERENCE", "OTHER"),
        help="the two scans after the same attack, as mitsgan attack wrote them: measures the attack, too",
    )
    text = "who attacked, for the noise control of --attacked (default: the default attacker)"
    shared.add_options(parser, "--attacker", help=text)
    shared.add_options(parser, "--device")
    parser.add_argument("--heatmaps", metavar="FOLDER", help="write difference heatmaps as PNG into FOLDER")
    shared.add_options(parser, "--lpips-net", "--lpips-weights", "--json")


def run(options: argparse.Namespace) -> None:
    reference, other = shared.read_scan(options.reference), shared.read_scan(options.other)
    lpips = load_lpips(options.lpips_weights, net=options.lpips_net)
    target = shared.target_voxel(options, reference)
    with shared.progress_bar("Comparing", "slice") as progress:
        whole = compare_protection(reference, other, lpips, progress=progress)
    result = {"reference": options.reference, "other": options.other, "whole": whole.to_dict()}
    square = None
    if target is not None:
        places = regions_at(reference, target)
        square = places.square
        for name, region in (("square", square), ("cube", places.cube)):
            measured = compare(reference, other, region=region, windows=(LUNG, MEDIASTINUM), lpips=lpips)
            result[name] = measured.to_dict()
            shared.say_result(options, *_lines(measured))
    attack = []
    if options.attacked:
        attacked = [shared.read_scan(path) for path in options.attacked]
        acting = {"attacker": options.attacker, "device": options.device}
        with shared.progress_bar("Attacking noise", "step") as progress:
            effect = measure_attack(reference, other, *attacked, **acting, lpips=lpips, progress=progress)
        result["attack"] = effect.to_dict()
        attack = [f"{effect.action} at {effect.kji}: {effect}"]
    if options.heatmaps:
        with shared.progress_bar("Drawing", "figure") as progress:
            files = save_heatmaps(
                reference, other, Path(options.heatmaps), target_kji=target, square=square, progress=progress
            )
        result["heatmaps"] = [str(file) for file in files]
    shared.answer(options, result, *_lines(whole), *attack, *(f"wrote {file}" for file in result.get("heatmaps", [])))


def _lines(comparison: Comparison) -> Iterator[str]:
    region = comparison.region
    yield (
        f"{region.name} (slices {region.k0}..{region.k1 - 1}, rows {region.j0}..{region.j1 - 1}, columns "
        f"{region.i0}..{region.i1 - 1}; data range {comparison.data_range_hu:g} HU)"
    )
    for metric in comparison.metrics.values():
        if metric.value is None:
            yield f"  {metric.name:<20} none: {metric.reason}"
            continue
        worst = (
            f"   worst slice {metric.worst_slice.slice}: {metric.worst_slice.value:.4g}" if metric.worst_slice else ""
        )
        unit = "" if metric.unit == "1" else f" {metric.unit}"
        yield f"  {metric.name:<20} {metric.value:.4g}{unit}{worst}"
