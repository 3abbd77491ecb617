"""Protect scans in memory and say whether the change stays within the limits of fidelity; writes no scan.

For each scan and for all: RMSE, share of the scan's own noise, PSNR, largest and mean change, local SSIM in the lung
and mediastinal windows, comparison with 5:1 JPEG 2000 of the same slice, and flicker from slice to slice; of the worst
slice, each beside its limit. A limit that is not kept is a result, not an error: the exit code is 0. Of several scans,
those that cannot be used are named, and the exit code is 3.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator

from MITSGANLib.errors import InputError
from MITSGANLib.protection.protector import Protector, protect

from ..archives.collection import load_settings
from ..evaluation.fidelity import Fidelity, Figure, measure_fidelity
from .options import (
    add_device,
    add_json,
    add_protector,
    add_scans,
    note,
    note_warnings,
    progress_bar,
    say_result,
    write_json,
)

_MARKS = {True: "pass", False: "FAIL", None: ""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_scans(parser)
    parser.add_argument("--series", metavar="UID", nargs="+", default=[], help="where a folder holds several series")
    add_protector(parser)
    add_device(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    protector, settings = load_settings(options.model, options.strength_hu, options.seed, options.watermark)
    scans = list(dict.fromkeys(options.scans))
    found: dict[str, Fidelity] = {}
    failed: dict[str, str] = {}
    for scan in scans:
        try:
            found[scan] = _measured(scan, protector, options)
        except InputError as error:
            if len(scans) == 1:
                raise
            failed[scan] = str(error)
            note(f"{scan}: {error}")
            continue
        say_result(options, *_lines(scan, found[scan]))
    if len(found) > 1:
        say_result(options, *_lines_of_all(found.values()))
    write_json(
        options.json,
        {
            "model": protector.name,
            **settings,
            "passed": all(fidelity.passed for fidelity in found.values()) if found else None,
            "scans": [{"scan": scan, **fidelity.to_dict()} for scan, fidelity in found.items()],
            "failed": failed,
        },
    )
    return InputError.exit_code if failed else 0


def _measured(scan: str, protector: Protector, options: argparse.Namespace) -> Fidelity:
    # Imports what takes a while, and is not needed for --help.
    from ..evaluation.scans import ScanSource

    with progress_bar("Reading", "slice") as progress:
        original = ScanSource(scan, tuple(options.series)).load(progress)
    note_warnings(original)
    with progress_bar("Protecting", "slice") as progress:
        protected = protect(original, model=protector, device=options.device, progress=progress)
    with progress_bar("Measuring", "slice") as progress:
        return measure_fidelity(original, protected, progress=progress)


def _lines(scan: str, fidelity: Fidelity) -> Iterator[str]:
    broken = sum(figure.passed is False for figure in fidelity.figures)
    words = f"{broken} limit{'s are' if broken > 1 else ' is'} not kept" if broken else "all limits are kept"
    yield f"{scan}: {words}"
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


def _lines_of_all(verdicts: Collection[Fidelity]) -> Iterator[str]:
    """The worst of each figure over all scans."""
    passed = sum(fidelity.passed for fidelity in verdicts)
    yield f"All {len(verdicts)} scans: {passed} keep all limits"
    for figure in next(iter(verdicts)).figures:
        known = [one for fidelity in verdicts if (one := fidelity[figure.name]).value is not None]
        worst = (max if figure.sense == "at most" else min)(known, key=lambda one: one.value, default=figure)
        kept = sum(one.passed is True for one in known)
        yield f"   {_row(worst)}       {_MARKS[worst.passed]} ({kept} of {len(known)} scans)"


def _row(figure: Figure) -> str:
    shown = "none" if figure.value is None else f"{figure.value:.4g}"
    unit = "" if figure.unit == "1" else f" {figure.unit}"
    limit = f"{figure.sense} {figure.limit:g}{unit}"
    return f"{figure.name:<26} {shown:>9}  {limit:<17}"
