"""Measure protectors against attackers: the paper's tables and figures, with the controls it lacks.

Every scan is attacked at the same places in four versions: as it is, protected, and with Gaussian or CT-like noise of
equal RMSE instead. Removals erase nodules that are planted first. Two judges say whether the attack shows and succeeds.
OUTPUT/results gets tables (JSON, CSV, Markdown, LaTeX) and figures (PNG, SVG). OUTPUT/cache keeps finished work: a
stopped run continues, and a larger one measures only what is new. A scan that fails is reported and costs no other. The
exit code is then 3, although the results of the rest are written.

PROTECTOR: NAME or FILE.safetensors, or none for the open watermark alone, each also with @HU for another strength;
noise:HU or ct-noise:HU for noise of that root mean square; gradient:STEPS@HU for signed gradients that know the
attacker and the target, an upper bound; search:STEPS@HU for the search of 'protect --model search' against the attacker
alone, in the lung within 8 mm of the targets.

Confidence intervals resample patients. DICOM says which scans are of one patient; each file counts as a patient.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from MITSGANLib.errors import InputError
from MITSGANLib.measure.metrics import DATA_RANGE_HU
from MITSGANLib.runtime.threads import usable_cores
from MITSGANLib.scan.targets import ACTIONS

from . import shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_options(parser, "scans")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder for cache and results")
    parser.add_argument("--protectors", metavar="PROTECTOR", nargs="+", default=["default"], help="what to measure")
    parser.add_argument(
        "--attackers", metavar="NAME_OR_FOLDER", nargs="+", default=["default"], help="whom to measure it against"
    )
    parser.add_argument(
        "--sweep",
        metavar="PROTECTOR",
        nargs="+",
        default=[],
        help="protectors of Table 3 (default: those whose card names alpha or paper_weight)",
    )
    parser.add_argument(
        "--actions", metavar="ACTION,...", type=_actions, default=ACTIONS, help="inject, remove (default: both)"
    )
    places = parser.add_mutually_exclusive_group()
    places.add_argument(
        "--targets", type=shared.count, default=5, metavar="N", help="places per action and scan (default: 5)"
    )
    places.add_argument(
        "--targets-file", metavar="CSV", help="columns scan, action and k,j,i (slice, row, column) or x,y,z (LPS, mm)"
    )
    parser.add_argument(
        "--nodules",
        metavar="FILE.npz",
        default="default",
        help="nodules of other patients to plant, for removals to have something to remove (default: 12 synthetic "
        "ones; none: remove nodule-like structures of the scan instead); --targets-file plants nothing",
    )
    parser.add_argument(
        "--judges",
        metavar="NAME_OR_FILE",
        nargs="+",
        default=[],
        help="a nodule judge and a forensic judge, which decide about success (default: the installed ones; none: "
        "leave Table 4 out)",
    )
    parser.add_argument("--series", metavar="UID", nargs="+", default=[], help="where a folder holds several series")
    parser.add_argument("--seed", type=int, default=0, help="seed of places, noise, bootstrap and figures (default: 0)")
    parser.add_argument(
        "--names",
        dest="own_names",
        action="store_true",
        help="call scans in results by their file or folder, often a patient's name (default: number and digest)",
    )
    parser.add_argument(
        "--pictures", type=int, default=2, metavar="N", help="places per action in the figures (default: 2)"
    )
    parser.add_argument(
        "--data-range",
        dest="data_range_hu",
        type=float,
        default=DATA_RANGE_HU,
        metavar="HU",
        help="data range of PSNR and SSIM (default: 4096)",
    )
    shared.add_options(parser, "--lpips-net", "--lpips-weights")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--processes",
        type=shared.count,
        default=1,
        metavar="N",
        help=f"on this machine, of {usable_cores()} cores (default: 1)",
    )
    where.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler whose workers see the same folders")
    shared.add_options(parser, "--device", "--json")


def run(options: argparse.Namespace) -> int:
    # Imports torch, which takes seconds that --help and wrong usage need not wait for.
    from ..evaluation.evaluate import EvaluationPlan, evaluate
    from ..evaluation.layout import to_markdown

    if options.pictures < 0:
        raise InputError("--pictures must be at least 0.")
    if not 0 < options.data_range_hu < float("inf"):
        raise InputError("--data-range must be a positive number of HU.")
    if options.seed < 0:
        raise InputError("--seed must not be negative.")
    plan = EvaluationPlan(**shared.given(options, EvaluationPlan))
    with shared.stage_bars(lambda stage: "scan" if stage == "Reading" else "scan x protector") as progress:
        study = evaluate(plan, progress, lambda text: shared.note(f"warning: {text}"))
    shared.answer(options, study.record, to_markdown("Evaluation", study.sections), f"Wrote {study.results}")
    if study.failures:
        shared.note(f"mitsgan: not measured: {'; '.join(study.failures)}. The reasons stand above.")
        return InputError.exit_code
    return 0


def _actions(text: str) -> tuple[str, ...]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if not wanted or set(wanted) - set(ACTIONS):
        raise argparse.ArgumentTypeError(f"'{text}' must be inject, remove, or inject,remove")
    return tuple(action for action in ACTIONS if action in wanted)
