"""Protect a scan, attack it with and without protection at the same places, and write a report to look at.

Without INPUT it uses the public scan LIDC-IDRI-0001, fetched once through pip; offline, a synthetic thorax phantom.
With --model search the change is searched on the scan itself, against the attacker that is shown, and within 16 mm of
the places that he attacks: all of the lungs take hours. He may be judged by the same nodule judge that the search asks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from MITSGANLib.errors import InputError
from MITSGANLib.files.atomic import refuse_existing_file
from MITSGANLib.protection.presets import SEARCH
from MITSGANLib.protection.protector import load_protector
from MITSGANLib.runtime.devices import describe_device, resolve_device
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.targets import ACTIONS, Target, choose_targets
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.weights import DEFAULT_ATTACKER

from ..data.sample_scan import NAME, fetch_sample_scan
from . import shared

if TYPE_CHECKING:
    from MITSGANLib.report.demonstration import Demonstration

_ARMS = {
    "clean": "unprotected",
    "protected": "protected",
    "into original": "painted from the protected scan into the original",
    "noise": "equal noise",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", nargs="?", help="a scan of your own (default: LIDC-IDRI-0001)")
    parser.add_argument("output", metavar="OUTPUT", nargs="?", default="mitsgan-demo", help="folder for the report")
    shared.add_options(parser, "--series")
    parser.add_argument("--phantom", action="store_true", help="use the synthetic phantom, without fetching anything")
    parser.add_argument("--model", default="default", help="protector to use")
    shared.add_options(parser, "--strength-hu", "--minutes", "--keep-search")
    shared.add_options(parser, "--attacker", help="attacker to use")
    parser.add_argument("--targets", type=shared.count, default=3, metavar="N", help="places per action (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the places and of the protection (default: 0)")
    shared.add_options(parser, "--lpips-net", "--lpips-weights", "--device", "--json")


def run(options: argparse.Namespace) -> None:
    # Imports torch, which takes seconds that --help and wrong usage need not wait for.
    from MITSGANLib.attack.attacker import load_attacker
    from MITSGANLib.report.demonstration import demonstrate
    from MITSGANLib.report.page import save_report

    shared.check_search(options)
    folder = Path(options.output)
    report = folder / "report.html"
    refuse_existing_file(report, overwrite=True)
    protector = load_protector(options.model, strength_hu=options.strength_hu, seed=options.seed)
    attackers = [load_attacker(options.attacker, action) for action in ACTIONS]
    device = describe_device(resolve_device(options.device))
    volume, title, targets = _scan(options)
    shown = DEFAULT_ATTACKER if options.attacker == "default" else options.attacker
    protector = shared.searching(options, protector, attackers=(shown,), near=tuple(one.kji for one in targets))
    shared.note_warnings(volume, protecting=True)
    shared.note(f"Scan: {title}. Device: {device}. {len(targets)} targets.")
    if options.model == SEARCH:
        shared.note("Searching a change within 16 mm of the targets.")
    with shared.stage_bars(lambda stage: "target" if stage == "Attacking" else "slice") as progress:
        result = demonstrate(
            volume,
            targets,
            protector,
            attackers,
            device=options.device,
            lpips_weights=options.lpips_weights,
            lpips_net=options.lpips_net,
            progress=progress,
        )
    shared.note("Drawing the report")
    save_report(result, report, title=title, synthetic=volume.provenance.format == "synthetic")
    record = {"scan": title, **result.to_dict()}
    shared.write_json(str(folder / "report.json"), record)
    shared.answer(options, record, *_lines(result), f"Wrote {report}")


def _lines(result: Demonstration) -> Iterator[str]:
    for item in result.targets:
        yield f"{item.target.action:<6} at {item.target.kji}: {item.effect}"
    figures = result.summary()
    for action in (action for action in ("inject", "remove") if action in figures):
        found = figures[action]
        yield (
            f"{action}, median of {found['targets']}: forgery changed by "
            f"{100 * (found['median_share_changed_by_protection'] or 0):.0f} % with protection, "
            f"{100 * (found['median_share_changed_by_noise'] or 0):.0f} % with equal noise"
        )
        for arm, (hits, times) in found["succeeded"].items():
            yield f"{action}, {_ARMS[arm]}: succeeds for the judges {hits} of {times} times"
    if "watermark" in figures:
        found = figures["watermark"]
        yield (
            f"watermark: the forgery shows at {found['missing_after_attack']} of {found['places']} attacked "
            f"places; alarms there before: {found['missing_before']}"
        )


def _scan(options: argparse.Namespace) -> tuple[CTVolume, str, tuple[Target, ...]]:
    """The scan, its title without patient data, and where to attack it."""
    if options.input and not options.phantom:
        volume = shared.read_scan(options.input, options.series)
        return volume, Path(options.input).name, choose_targets(volume, options.targets, options.seed)
    if not options.phantom:
        try:
            shared.note(f"Fetching the public scan {NAME} (once; 35 MB)")
            volume = shared.read_scan(fetch_sample_scan())
            title = f"{NAME} (LIDC-IDRI, TCIA, doi 10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0)"
            return volume, title, choose_targets(volume, options.targets, options.seed)
        except InputError as error:
            shared.note(f"warning: {error} Using the synthetic phantom instead.")
    phantom = thorax_phantom(seed=options.seed)
    nodule = Target("remove", phantom.nodule_kji, "the phantom's nodule")
    inject = [t for t in choose_targets(phantom.volume, options.targets, options.seed) if t.action == "inject"]
    return phantom.volume, f"Synthetic thorax phantom, seed {options.seed} (not a patient)", (*inject, nodule)
