"""Places to attack, read from a CSV file.

Columns ``scan``, ``action`` (inject or remove) and either ``k``, ``j``, ``i`` (slice, row, column, counted from 0) or
``x``, ``y``, ``z`` (LPS in mm). ``scan`` is a scan's path as given on the command line, or its file or folder name,
with or without the suffix.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from MITSGANLib.errors import InputError, TargetError
from MITSGANLib.scan.targets import ACTIONS, Target
from MITSGANLib.scan.volume import CTVolume

from ..preparation.discovery import file_stem

VOXEL_COLUMNS, WORLD_COLUMNS = ("k", "j", "i"), ("x", "y", "z")


@dataclass(frozen=True)
class GivenTarget:
    """One line of the file.

    :param place: (slice, row, column) or LPS (x, y, z) in mm.
    """

    line: int
    action: str
    place: tuple[float, float, float]
    world: bool

    def resolve(self, volume: CTVolume) -> Target:
        """The target's voxel in this scan.

        :raises TargetError: when it lies outside.
        """
        kji = volume.nearest_voxel(self.place) if self.world else tuple(int(value) for value in self.place)
        if not volume.contains(kji):
            where = "LPS point {:g}, {:g}, {:g} mm" if self.world else "voxel (slice, row, column) {:g}, {:g}, {:g}"
            raise TargetError(
                f"Line {self.line} of the targets: the {where.format(*self.place)} lies outside the scan of "
                f"{volume.shape} voxels; check the scan, the columns and their order."
            )
        return Target(self.action, kji, f"given in line {self.line} of the targets file")


def read_targets(path: str | Path, scans: Sequence[str]) -> dict[str, tuple[GivenTarget, ...]]:
    """Targets of each scan, in the file's order.

    :param scans: paths of the scans, as the command line names them.
    :raises InputError: when the file is missing, has other columns, names an unknown scan or action, holds a place that
        is no number, or has nothing for one of the scans.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            axes = _axes(path, reader.fieldnames)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The targets {path} cannot be read ({error}); give a CSV file in UTF-8.") from error
    called = {scan: {scan, str(Path(scan)), Path(scan).name, file_stem(Path(scan).name)} for scan in scans}
    found: dict[str, list[GivenTarget]] = {scan: [] for scan in scans}
    for line, row in rows:
        scan, target = _read_row(path, line, row, axes, called)
        found[scan].append(target)
    for scan, targets in found.items():
        if not targets:
            raise InputError(f"The targets {path} hold no line for the scan {scan}; add one, or leave the scan out.")
    return {scan: tuple(targets) for scan, targets in found.items()}


def _axes(path: Path, columns: Sequence[str]) -> tuple[str, str, str]:
    for axes in (VOXEL_COLUMNS, WORLD_COLUMNS):
        if sorted(columns) == sorted(("scan", "action", *axes)):
            return axes
    known, hint = ("scan", "action", *VOXEL_COLUMNS, *WORLD_COLUMNS), ""
    unknown = [name for name in columns if name not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, 1)
        hint = f" '{unknown[0]}' is none of them{f'; did you mean {near[0]}?' if near else '.'}"
    raise InputError(
        f"The targets {path} have the columns {', '.join(columns) or 'of an empty file'}; they must be scan, action "
        f"and either k, j, i (slice, row, column) or x, y, z (LPS in mm).{hint}"
    )


def _read_row(
    path: Path, line: int, row: dict[str, str | None], axes: tuple[str, str, str], called: dict[str, set[str]]
) -> tuple[str, GivenTarget]:
    where = f"Line {line} of the targets {path}"
    name, action = (row["scan"] or "").strip(), (row["action"] or "").strip().lower()
    if None in row:
        raise InputError(f"{where} has more cells than columns; write numbers with a point, not with a comma.")
    meant = [scan for scan, names in called.items() if name in names]
    if len(meant) != 1:
        problem = "is the name of several scans; write the path" if meant else "is none of the scans to evaluate"
        raise InputError(f"{where}: '{name}' {problem}.")
    if action not in ACTIONS:
        raise InputError(f"{where}: the action is '{action}'; it must be {' or '.join(ACTIONS)}.")
    try:
        place = tuple(float(row[axis] or "") for axis in axes)
    except ValueError as error:
        raise InputError(f"{where}: {', '.join(axes)} must be three numbers.") from error
    world = axes == WORLD_COLUMNS
    if not all(map(math.isfinite, place)) or not (world or all(value == int(value) for value in place)):
        raise InputError(f"{where}: {', '.join(axes)} must be {'finite' if world else 'whole'} numbers.")
    return meant[0], GivenTarget(line, action, place, world)
