"""Findings from CSV tables: CT-GAN's own columns, or those of LUNA16's annotations.

CT-GAN's tables have the columns filename, x, y, z; its own code takes two of them, one with what shall be injected and
one with healthy places. ``filename`` is the folder of a DICOM series or the name of a file; x is the column, y the row
and z the slice, counted from 0, or LPS mm. Optional columns here: diameter_mm, patient.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from MITSGANLib.errors import InputError
from MITSGANLib.scan.volume import CTVolume

from ..data.dataset import Finding
from .findings import UNMEASURED_REACH_MM, FindingsFile, Located, Mark, nodule, outside

Coordinates = Literal["world", "voxel"]

_REQUIRED = ("filename", "x", "y", "z")
_OPTIONAL = ("diameter_mm", "patient")
_LUNA = {"seriesuid": "filename", "coordx": "x", "coordy": "y", "coordz": "z"}


@dataclass(frozen=True)
class TableRow(Mark):
    """One row: a point in a named scan.

    :param place: where it stands, for messages, such as "line 3 of findings.csv".
    :param point: x, y, z: column, row, slice or LPS mm, as ``coordinates`` says.
    :param healthy: a place without findings rather than a finding.
    """

    scan_name: str
    place: str
    point: tuple[float, float, float]
    coordinates: Coordinates
    diameter_mm: float | None = None
    patient: str = ""
    healthy: bool = False

    @property
    def scan_names(self) -> tuple[str, ...]:
        return (self.scan_name,)

    @property
    def stamp(self) -> tuple:
        return ("row", self.point, self.coordinates, self.diameter_mm, self.healthy)

    @property
    def may_be_injected(self) -> bool:
        return not self.healthy

    def locate(self, volume: CTVolume, readers: int) -> Located:  # noqa: ARG002 - a table does not count readers
        kji = tuple(map(float, self.point[::-1] if self.coordinates == "voxel" else volume.lps_to_voxel(self.point)))
        problem = outside(volume, kji)
        if problem:
            hint = f"the table was read as {self.coordinates} coordinates, see --coordinates"
            return Located(left_out=((self.place, f"{problem}; {hint}"),))
        if self.healthy:
            return Located((Finding(kji, None, "healthy", None, 0.0),))
        if self.diameter_mm is None:
            return Located((Finding(kji, None, "nodule", None, UNMEASURED_REACH_MM),))
        return Located((nodule(kji, self.diameter_mm, None),))


def read_table(path: Path, coordinates: Coordinates, healthy: bool = False) -> FindingsFile:
    """Read a CSV table; columns in any order and case, others are ignored. Rows without coordinates are left out.

    :param coordinates: what x, y, z are; LUNA16's coordX, coordY, coordZ are always world.
    :raises InputError: missing, not text, wrong columns, or a value that is no number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); give a CSV table in UTF-8.") from error
    lines = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip().lower() for name in next(lines, [])]
    names = [_LUNA.get(name, name) for name in header]
    if "coordx" in header:
        coordinates = "world"
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise InputError(
            f"{path} lacks the column {', '.join(missing)}; its first line must name {', '.join(_REQUIRED)}, and may "
            f"name {' and '.join(_OPTIONAL)} (it names: {', '.join(header) or 'nothing'})."
        )
    rows, left_out = [], []
    for values in lines:
        place = f"line {lines.line_num} of {path.name}"
        row = dict(zip(names, (value.strip() for value in values), strict=False))
        if not any(row.values()):
            continue
        point = tuple(_number(row.get(axis, ""), f"{axis} in {place}") for axis in "xyz")
        if None in point or not row.get("filename"):
            left_out.append((place, "names no scan or lacks a coordinate"))
            continue
        diameter = _number(row.get("diameter_mm", ""), f"diameter_mm in {place}")
        if diameter is not None and diameter <= 0:
            raise InputError(f"The diameter_mm in {place} is not above 0; correct it, or leave it empty if unknown.")
        rows.append(TableRow(row["filename"], place, point, coordinates, diameter, row.get("patient", ""), healthy))
    return FindingsFile(path, tuple(rows), tuple(left_out))


def _number(text: str, what: str) -> float | None:
    """A finite number, or None for an empty cell (pandas, which wrote many such tables, also writes nan)."""
    if text.lower() in ("", "nan"):
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise InputError(f"The {what} is '{text}', which is no number; correct the table.")
    return value
