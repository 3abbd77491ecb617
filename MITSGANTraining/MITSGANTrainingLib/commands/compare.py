"""Measure how far two scans of the same geometry are apart, and draw where.

RMSE, PSNR, SSIM, LPIPS, largest difference and bias, of the whole scan and, with a target, of the attacked square; each
with its data range, region and worst slice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from MITSGANLib.files.storage import load_volume
from MITSGANLib.measure.lpips_distance import load_lpips
from MITSGANLib.measure.metrics import Comparison, compare
from MITSGANLib.report.pictures import Square, save_heatmaps
from MITSGANLib.scan.regions import cube_around, square_around
from MITSGANLib.scan.windows import LUNG, MEDIASTINUM

from .options import add_input, add_json, add_lpips, add_target, progress_bar, say, target_voxel, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input(parser, "reference", "the scan to compare with")
    add_input(parser, "other", "the scan to measure")
    add_target(parser, required=False)
    parser.add_argument("--heatmaps", metavar="FOLDER", help="write difference heatmaps as PNG into FOLDER")
    add_lpips(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    with progress_bar("Reading", "slice") as progress:
        reference = load_volume(options.reference, progress=progress)
    with progress_bar("Reading", "slice") as progress:
        other = load_volume(options.other, progress=progress)
    lpips = load_lpips(options.lpips_weights, net=options.lpips_net)
    target = target_voxel(options, reference)
    windows = (LUNG, MEDIASTINUM)
    with progress_bar("Comparing", "slice") as progress:
        whole = compare(reference, other, windows=windows, lpips=lpips, progress=progress)
    result = {"reference": options.reference, "other": options.other, "whole": whole.to_dict()}
    square = None
    if target is not None:
        square = square_around(reference.shape, reference.spacing_kji, target)
        cube = cube_around(reference.shape, reference.spacing_kji, target)
        for name, region in (("square", square), ("cube", cube)):
            measured = compare(reference, other, region=region, windows=windows, lpips=lpips)
            result[name] = measured.to_dict()
            if options.json != "-":
                _say(measured)
    if options.heatmaps:
        outline = Square(square.j0, square.j1, square.i0, square.i1) if square else None
        with progress_bar("Drawing", "figure") as progress:
            files = save_heatmaps(
                reference, other, Path(options.heatmaps), target_kji=target, square=outline, progress=progress
            )
        result["heatmaps"] = [str(file) for file in files]
    write_json(options.json, result)
    if options.json != "-":
        _say(whole)
        for file in result.get("heatmaps", []):
            say(f"wrote {file}")


def _say(comparison: Comparison) -> None:
    region = comparison.region
    say(
        f"{region.name} (slices {region.k0}..{region.k1 - 1}, rows {region.j0}..{region.j1 - 1}, columns "
        f"{region.i0}..{region.i1 - 1}; data range {comparison.data_range_hu:g} HU)"
    )
    for metric in comparison.metrics.values():
        if metric.value is None:
            say(f"  {metric.name:<20} none: {metric.reason}")
            continue
        worst = (
            f"   worst slice {metric.worst_slice.slice}: {metric.worst_slice.value:.4g}" if metric.worst_slice else ""
        )
        unit = "" if metric.unit == "1" else f" {metric.unit}"
        say(f"  {metric.name:<20} {metric.value:.4g}{unit}{worst}")
