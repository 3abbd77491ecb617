"""Score what readers found in a drill.

mitsgan attack FOLDER OUT --drill makes each scan of it, and its sealed answer sheet, OUT.answers. ANSWERS is what a
reader wrote: CSV with a line of names, or a JSON list. One line is one place: scan (the name of the folder), and
slice,row,column or lps_x,lps_y,lps_z or ras_x,ras_y,ras_z; action may say inject or remove. A scan without a line was
called clean.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from MITSGANLib.measure.drill import DrillScore, read_answers, read_sheet, score

from . import key_options, shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="score", choices=("score",), help="compare answers with the sheets")
    parser.add_argument("answers", metavar="ANSWERS", type=Path, help="what a reader wrote: .csv or .json")
    parser.add_argument("sheets", metavar="SHEET", type=Path, nargs="+", help="the .answers file of each scan")
    key_options.add_key(parser, "open the sheets with", required=True)
    parser.add_argument(
        "--tolerance-mm",
        type=float,
        default=16.0,
        metavar="MM",
        help="how far an answer may lie from a forgery (default: 16, half of the cube that an attack replaces)",
    )
    shared.add_options(parser, "--json")


def run(options: argparse.Namespace) -> None:
    if not 0 < options.tolerance_mm < 1000:
        options.refuse("--tolerance-mm must be between 0 and 1000")
    key = key_options.key(options)
    sheets = [read_sheet(path, key) for path in options.sheets]
    result = score(sheets, read_answers(options.answers, sheets), options.tolerance_mm)
    shared.answer(options, result.to_dict(), *_lines(result))


def _lines(result: DrillScore) -> Iterator[str]:
    yield f"{result.found} of {result.forgeries} forgeries found{_interval(result.sensitivity)}"
    if result.distances_mm:
        mean = sum(result.distances_mm) / len(result.distances_mm)
        yield f"distance {mean:.1f} mm on average, {max(result.distances_mm):.1f} mm at most"
    if result.named_actions:
        yield f"{result.right_actions} of {result.named_actions} said rightly whether it was added or erased"
    yield f"{result.false_positives} false positives in {result.scans} scans"
    if result.clean:
        yield f"{result.called_clean} of {result.clean} clean scans called clean{_interval(result.specificity)}"


def _interval(share: tuple[float, float, float] | None) -> str:
    if share is None:
        return ""
    value, low, high = share
    return f" ({value:.0%}, 95 % interval {low:.0%} to {high:.0%})"
