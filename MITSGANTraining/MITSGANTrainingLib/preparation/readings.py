"""Findings from LIDC-IDRI's XML readings: up to four readers, merged into one finding per place.

A reading session holds, per reader: nodules of 3 mm or more with an outline on every slice, nodules under 3 mm as one
point, and non-nodules of 3 mm or more as one point. x is the column and y the row of the DICOM image, counted from 0
at its upper left; slices are named by z in mm. An outline runs along the first pixels outside of the nodule, so those
are not part of it (TCIA, LIDC XML file documentation; McNitt-Gray et al., Acad Radiol 2007;14:1464).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
from MITSGANLib.errors import InputError
from MITSGANLib.scan.volume import CTVolume
from skimage.draw import polygon, polygon_perimeter

from ..data.dataset import Finding
from .findings import NON_NODULE_REACH_MM, SMALL_REACH_MM, Located, Mark, measure, outside

# Two readers' points for one place differ by at least this much.
_SAME_PLACE_MM = 3.0
Kind = Literal["nodule", "small nodule", "non-nodule"]
_RANK: tuple[Kind, ...] = ("nodule", "non-nodule", "small nodule")


@dataclass(frozen=True)
class Outline:
    """One reader's points in one slice: pixels (row, column), a single one for kinds other than "nodule".

    :param hole: whether they bound what is left out.
    """

    z_mm: float
    pixels: list[tuple[int, int]]
    hole: bool = False


@dataclass(frozen=True)
class ReadingFile(Mark):
    """One XML file; its points are read when they are located."""

    path: Path
    series_uid: str

    @property
    def scan_names(self) -> tuple[str, ...]:
        """The series; then, for scans converted from DICOM, the file's and its folder's name."""
        return (*filter(None, [self.series_uid]), self.path.stem, self.path.resolve().parent.name)

    def locate(self, volume: CTVolume, readers: int) -> Located:  # noqa: ARG002 - readers are counted, not filtered
        placed, left_out = [], []
        for number, (reader, kind, outlines) in enumerate(_marks(self.path), start=1):
            try:
                placed.append((reader, _place(kind, outlines, volume)))
            except _OutsideError as error:
                left_out.append((f"mark {number} (reader {reader + 1}, {kind}) of the reading", str(error)))
        return Located(tuple(merge_readers(placed, volume.spacing_kji)), tuple(left_out))


class _OutsideError(Exception):
    """A mark has no place in the scan; the text says why."""


def open_reading(path: Path) -> ReadingFile | None:
    """The reading in an XML file, or None where it holds something else (LIDC has readings of radiographs too).

    :raises InputError: when the file cannot be read.
    """
    root = _parse(path)
    if _name(root) != "LidcReadMessage":
        return None
    # Its case differs between files.
    header = root.iterfind("{*}ResponseHeader/*")
    uid = next((child.text or "" for child in header if _name(child).lower() == "seriesinstanceuid"), "")
    return ReadingFile(path, uid.strip())


def _marks(path: Path) -> list[tuple[int, Kind, list[Outline]]]:
    """All marks of all readers in an XML file, each with the reader's number and its outlines."""
    marks = []
    try:
        for reader, session in enumerate(_parse(path).findall("{*}readingSession")):
            for nodule in session.findall("{*}unblindedReadNodule"):
                outlines = [_outline(roi, "{*}edgeMap") for roi in nodule.findall("{*}roi")]
                if outlines:
                    points = sum(len(outline.pixels) for outline in outlines)
                    marks.append((reader, "nodule" if points > 1 else "small nodule", outlines))
            for other in session.findall("{*}nonNodule"):
                marks.append((reader, "non-nodule", [_outline(other, "{*}locus")]))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} lacks a coordinate that an LIDC reading has; take the original file.") from error
    return marks


def _place(kind: Kind, outlines: Sequence[Outline], volume: CTVolume) -> Finding:
    """One reader's mark in voxels of the scan, measured from the pixels inside its outlines."""
    solid, holes = set(), set()
    for outline in outlines:
        k = _slice_of(outline.z_mm, volume)
        pixels = _inside(outline.pixels) if kind == "nodule" else outline.pixels
        (holes if outline.hole else solid).update((k, *pixel) for pixel in pixels)
    voxels = np.array(sorted(solid - holes))
    if not len(voxels):
        raise _OutsideError("its outline encloses nothing")
    for corner in (voxels.min(axis=0), voxels.max(axis=0)):
        problem = outside(volume, corner)
        if problem:
            raise _OutsideError(problem)
    center, diameter, reach = measure(voxels, volume.spacing_kji)
    if kind != "nodule":
        diameter, reach = None, SMALL_REACH_MM if kind == "small nodule" else NON_NODULE_REACH_MM
    return Finding(tuple(center.tolist()), diameter, kind, 1, reach)


def merge_readers(marks: Sequence[tuple[int, Finding]], spacing_kji: Sequence[float]) -> list[Finding]:
    """One finding for each place that readers marked, from (reader, what that one marked).

    Marks of different readers are one place when their centers are nearer than the larger one's radius (or 3 mm, or one
    slice), nearest pairs first; two marks of one reader never are. A place is a nodule when any reader outlined one,
    else a non-nodule when any reader said so; center and diameter are means over the readers who said so.

    :return: findings in the order of their first mark; every mark is part of exactly one.
    """
    spacing = np.asarray(spacing_kji, dtype=np.float64)
    centers = np.array([mark.kji for _, mark in marks]).reshape(-1, 3) * spacing
    pairs = []
    for a, b in itertools.combinations(range(len(marks)), 2):
        distance = float(np.linalg.norm(centers[a] - centers[b]))
        radius = max(*((marks[n][1].diameter_mm or 0.0) / 2 for n in (a, b)), _SAME_PLACE_MM, float(spacing[0]))
        if distance <= radius:
            pairs.append((distance, a, b))
    places: dict[int, list[int]] = {index: [index] for index in range(len(marks))}
    for _, a, b in sorted(pairs):
        one, other = places[a], places[b]
        if {marks[index][0] for index in one}.isdisjoint(marks[index][0] for index in other):
            joined = sorted(one + other)
            places.update(dict.fromkeys(joined, joined))
    groups = [group for index, group in places.items() if group[0] == index]
    return [_merged([marks[index][1] for index in group], spacing) for group in groups]


def _merged(marks: Sequence[Finding], spacing: np.ndarray) -> Finding:
    kind = min((mark.kind for mark in marks), key=_RANK.index)
    agreeing = [mark for mark in marks if mark.kind == kind]
    center = np.mean([mark.kji for mark in agreeing], axis=0)
    reach = max(float(np.linalg.norm((np.array(mark.kji) - center) * spacing)) + mark.reach_mm for mark in marks)
    diameters = [mark.diameter_mm for mark in agreeing if mark.diameter_mm is not None]
    diameter = float(np.mean(diameters)) if diameters else None
    return Finding(tuple(center.tolist()), diameter, kind, len(agreeing), reach)


def _slice_of(z_mm: float, volume: CTVolume) -> int:
    axial = np.diag((1.0, 1.0, np.sign(volume.direction[2, 2])))
    if not np.allclose(volume.direction, axial, atol=1e-3):
        raise InputError(
            "Readings count pixels of axial DICOM images, and this scan's axes are turned or flipped; give the "
            "original DICOM series."
        )
    k = (z_mm - volume.origin[2]) / (volume.spacing[2] * volume.direction[2, 2])
    if not -0.5 <= k <= volume.shape[0] - 0.5:
        raise _OutsideError(f"z {z_mm:g} mm lies outside the scan")
    return int(np.clip(round(k), 0, volume.shape[0] - 1))


def _inside(outline: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pixels that an outline encloses without itself; the outline where it is too narrow to enclose any."""
    filled, border = (
        set(zip(*(axis.tolist() for axis in draw(*zip(*outline, strict=True))), strict=True))
        for draw in (polygon, polygon_perimeter)
    )
    return sorted(filled - border) or outline


def _outline(element: ElementTree.Element, points: str) -> Outline:
    pixels = [
        tuple(round(float(point.findtext(f"{{*}}{axis}Coord"))) for axis in "yx") for point in element.findall(points)
    ]
    if not pixels:
        raise ValueError("no points")
    hole = (element.findtext("{*}inclusion") or "TRUE").strip().upper() == "FALSE"
    return Outline(float(element.findtext("{*}imageZposition")), pixels, hole)


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{path} cannot be read as XML ({error}); take the original file.") from error


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
