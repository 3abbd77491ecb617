"""Prepare folders of CT and tables of findings for training: cubes for the attacker, whole scans for protectors.

Patients are split into training and validation before anything is cut. Every finished scan is kept: to continue a
stopped call, repeat it. Scans that cannot be read are listed with the reason. What earlier calls cut from other scans
stays in OUT, unused, until you delete it. Without --keep-names, a patient is written as the beginning of the SHA-256 of
the identifier. That keeps the split and shows no name; whoever knows the identifiers can still recognize them. Scans
are copied as they are, so keep OUT as safe as the scans.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from MITSGANLib.runtime.threads import usable_cores

from ..preparation.splitting import SplitOptions
from . import shared

if TYPE_CHECKING:
    from ..preparation.plan import Request
    from ..preparation.run import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scans", nargs="+", type=Path, metavar="SCANS", help="folders of DICOM, NRRD, NIfTI, MetaImage; or files"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of prepared data; new, or of an earlier call")
    parser.add_argument(
        "--findings",
        nargs="+",
        default=[],
        metavar="FILE",
        help="CSV with filename, x, y, z (CT-GAN's columns; also diameter_mm, patient) or LUNA16's columns; LIDC's XML "
        "readings or their folder; a segmentation, whose name begins with its scan's or that is given as SCAN=FILE",
    )
    parser.add_argument(
        "--healthy", nargs="+", default=[], metavar="CSV", help="places without findings, for the remover; same columns"
    )
    parser.add_argument(
        "--coordinates",
        choices=("world", "voxel"),
        default="world",
        help="x, y, z of CSV: LPS mm, or column, row, slice from 0 (default: world)",
    )
    parser.add_argument(
        "--cubes", nargs="+", default=[], type=Path, metavar="NPZ", help="ready nodule cubes: hu, patient, diameter_mm"
    )
    parser.add_argument(
        "--readers",
        type=int,
        default=1,
        metavar="N",
        help="use nodules that N readers marked, and voxels of a segmentation from value N on (default: 1)",
    )
    parser.add_argument(
        "--positions", type=int, default=100, metavar="N", help="healthy cubes per scan for the remover (default: 100)"
    )
    parser.add_argument(
        "--split", type=float, default=0.2, metavar="SHARE", help="share of patients for validation (default: 0.2)"
    )
    parser.add_argument(
        "--hold-out", nargs="+", default=[], metavar="PATIENT", help="patients for validation, before any are drawn"
    )
    parser.add_argument(
        "--exclude", nargs="+", default=[], metavar="NAME", help="patients, series or files never to use"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of the positions (default: 0)")
    parser.add_argument("--keep-names", action="store_true", help="write patients' identifiers as they are")
    workers = parser.add_mutually_exclusive_group()
    workers.add_argument(
        "--processes", type=shared.count, metavar="N", help="scans at a time (default: half the cores)"
    )
    workers.add_argument("--scheduler", metavar="ADDRESS", help="spread scans over a Dask scheduler, tcp://HOST:PORT")
    shared.add_options(parser, "--json")


def run(options: argparse.Namespace) -> None:
    from ..preparation.plan import make_plan
    from ..preparation.run import prepare

    with shared.progress_bar("Scanning", "folder") as progress:
        plan = make_plan(_request(options), progress)
    with shared.progress_bar("Preparing", "scan") as progress:
        report = prepare(plan, progress)
    shared.write_json(options.json, report.record)
    _tell(report, options)


def _request(options: argparse.Namespace) -> Request:
    from ..preparation.cutting import PreparationOptions
    from ..preparation.plan import Request

    values = {
        "options": PreparationOptions(**shared.given(options, PreparationOptions)),
        "split": SplitOptions(options.split, options.seed, tuple(options.hold_out)),
        # Cutting a scan of 260 slices took 1 GB of memory, and its filters use two cores in part.
        "processes": options.processes or max(1, usable_cores() // 2),
    }
    return Request(**shared.given(options, Request) | values)


def _tell(report: Report, options: argparse.Namespace) -> None:
    from ..data.dataset import PARTS, ROLES, Dataset

    record = report.record
    for path, reason in report.skipped:
        shared.note(f"skipped {path}: {reason}")
    for entry in record["findings_left_out"]:
        scan = f" (scan {entry['scan']})" if entry["scan"] else ""
        shared.note(f"finding left out{scan}: {entry['finding']}: {entry['reason']}")
    if record["findings_elsewhere"]:
        shared.note(f"{record['findings_elsewhere']} findings name none of these scans")
    if options.json == "-":
        return
    split, scans = record["split"], record["scans"]
    for part in PARTS:
        members = set(split[part])
        counts = {role: Dataset(options.out, record).count(role, part) for role in ROLES}
        shared.say(
            f"{part}: {len(members)} patients, {sum(scan['patient'] in members for scan in scans)} scans, "
            f"{counts['injector']} injector and {counts['remover']} remover cubes"
        )
        for role, number in counts.items():
            if not number:
                shared.note(f"no {role} cubes for {part}: the {role} cannot be trained with this split")
    shared.say(
        f"Wrote {options.out}: {report.cut} scans cut, {report.reused} as they were, {len(report.skipped)} skipped, "
        f"{len(record['findings_left_out'])} findings left out"
    )
