"""Protect scans in memory and say whether the change stays within the limits of fidelity; writes no scan.

For each scan and for all: RMSE, share of the scan's own noise, PSNR, largest and mean change, local SSIM in the lung
and mediastinal windows, comparison with 5:1 JPEG 2000 of the same slice, and flicker from slice to slice; of the worst
slice, each beside its limit. A limit that is not kept is a result, not an error: the exit code is 0. Of several scans,
those that cannot be used are named, and the exit code is 3.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from MITSGANLib.errors import InputError
from MITSGANLib.protection.protector import Protector, protect

from ..archives.collection import load_settings
from . import shared

if TYPE_CHECKING:
    from ..evaluation.fidelity import Fidelity, FidelityFigure, LargestScale

_MARKS = {True: "pass", False: "FAIL", None: ""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_options(parser, "scans")
    parser.add_argument("--series", metavar="UID", nargs="+", default=[], help="where a folder holds several series")
    shared.add_protector(parser)
    parser.add_argument(
        "--largest",
        action="store_true",
        help="also find by how much the change may be multiplied so that every slice keeps every limit",
    )
    shared.add_options(parser, "--device", "--json")


def run(options: argparse.Namespace) -> int:
    protector, settings = load_settings(options.model, options.strength_hu, options.seed, options.watermark)
    scans = list(dict.fromkeys(options.scans))
    found: dict[str, tuple[Fidelity, LargestScale | None]] = {}
    failed: dict[str, str] = {}
    for scan in scans:
        try:
            found[scan] = _measured(scan, protector, options)
        except InputError as error:
            if len(scans) == 1:
                raise
            failed[scan] = str(error)
            shared.note(f"{scan}: {error}")
            continue
        shared.say_result(options, *_lines(scan, *found[scan]))
    verdicts = {scan: fidelity for scan, (fidelity, _scale) in found.items()}
    if len(found) > 1:
        shared.say_result(options, *_lines_of_all(verdicts))
    shared.write_json(
        options.json,
        {
            "model": protector.name,
            **settings,
            "passed": all(fidelity.passed for fidelity in verdicts.values()) if verdicts else None,
            "scans": [
                {"scan": scan, **fidelity.to_dict(), "largest_scale": dataclasses.asdict(scale) if scale else None}
                for scan, (fidelity, scale) in found.items()
            ],
            "failed": failed,
        },
    )
    return InputError.exit_code if failed else 0


def _measured(scan: str, protector: Protector, options: argparse.Namespace) -> tuple[Fidelity, LargestScale | None]:
    # Imports what takes a while, and is not needed for --help.
    from ..evaluation.fidelity import largest_scale, measure_fidelity
    from ..evaluation.scans import ScanSource

    with shared.progress_bar("Reading", "slice") as progress:
        original = ScanSource(scan, tuple(options.series)).load(progress)
    shared.note_warnings(original)
    with shared.progress_bar("Protecting", "slice") as progress:
        protected = protect(original, model=protector, device=options.device, progress=progress)
    with shared.progress_bar("Measuring", "slice") as progress:
        fidelity = measure_fidelity(original, protected, progress=progress)
    if not options.largest:
        return fidelity, None
    with shared.progress_bar("Scaling", "slice") as progress:
        return fidelity, largest_scale(original, protected.hu.astype("float32") - original.hu, progress=progress)


def _lines(scan: str, fidelity: Fidelity, scale: LargestScale | None) -> Iterator[str]:
    broken = sum(figure.passed is False for figure in fidelity.figures)
    words = f"{broken} limit{'s are' if broken > 1 else ' is'} not kept"
    yield f"{scan}: {'all limits are kept' if fidelity.passed else words}"
    yield f"   {'figure':<26} {'worst':>9}  {'limit':<17} slice"
    for figure in fidelity.figures:
        where = "" if figure.worst_slice is None else str(figure.worst_slice)
        yield f"   {_row(figure)} {where:>5}  {_MARKS[figure.passed]}".rstrip()
    flicker = fidelity.flicker
    if flicker.change is not None:
        own = "unknown" if flicker.noise is None else f"{flicker.noise:.2f}"
        yield (
            f"   slice-to-slice energy: change {flicker.change:.2f}, the scan's own noise {own}, independent noise "
            f"{flicker.independent:g}"
        )
    if scale is not None:
        limit = f"; more would break {scale.figure} in slice {scale.slice}" if scale.figure else ""
        yield f"   the change times {scale.scale:.3g} keeps all limits of slices{limit}"


def _lines_of_all(verdicts: Mapping[str, Fidelity]) -> Iterator[str]:
    """The worst of each figure over all scans."""
    passed = sum(fidelity.passed for fidelity in verdicts.values())
    yield f"All {len(verdicts)} scans: {passed} keep all limits"
    for figure in next(iter(verdicts.values())).figures:
        known = [one for fidelity in verdicts.values() if (one := fidelity[figure.name]).value is not None]
        worst = (max if figure.sense == "at most" else min)(known, key=lambda one: one.value, default=figure)
        kept = sum(one.passed is True for one in known)
        yield f"   {_row(worst)}       {_MARKS[worst.passed]} ({kept} of {len(known)} scans)"


def _row(figure: FidelityFigure) -> str:
    shown = "none" if figure.value is None else f"{figure.value:.4g}"
    unit = "" if figure.unit == "1" else f" {figure.unit}"
    limit = f"{figure.sense} {figure.limit:g}{unit}"
    return f"{figure.name:<26} {shown:>9}  {limit:<17}"
