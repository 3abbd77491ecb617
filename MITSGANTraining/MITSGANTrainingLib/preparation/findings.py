"""What sources of findings have in common: a mark names its scan, and is located once that scan's geometry is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from MITSGANLib.scan.volume import CTVolume

from ..data.dataset import Finding

# Fleischner Society glossary (Radiology 2008;246:697): a nodule is at most 30 mm in diameter.
UNMEASURED_REACH_MM = 15.0
# Readers of LIDC mark a nodule under 3 mm, and a non-nodule of 3 mm or more, by one point each.
SMALL_REACH_MM, NON_NODULE_REACH_MM = 1.5, 5.0


@dataclass(frozen=True)
class Located:
    """Findings in a scan's voxels, and (what, reason) for those that have no place in it."""

    findings: tuple[Finding, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()


class Mark(ABC):
    """One row of a table, one reading or one segmentation. Small and picklable: big files are read when located."""

    @property
    @abstractmethod
    def scan_names(self) -> tuple[str, ...]:
        """What the source may call its scan, most specific first."""

    @property
    def stamp(self) -> tuple:
        """Changes when what the mark says changes."""
        status = self.path.stat()
        return (type(self).__name__.lower(), self.path.name, status.st_size, status.st_mtime_ns)

    @property
    def may_be_injected(self) -> bool:
        """Whether a sample for the injector may come of it; judged without the scan."""
        return True

    @abstractmethod
    def locate(self, volume: CTVolume, readers: int) -> Located:
        """Findings in the voxels of ``volume``; ``readers`` as in ``PreparationOptions``.

        :raises InputError: when the source as a whole cannot be used with this scan.
        """


@dataclass(frozen=True)
class FindingsFile:
    """One ``--findings`` or ``--healthy`` argument, opened."""

    path: Path
    marks: tuple[Mark, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def locate_all(marks: Iterable[Mark], volume: CTVolume, readers: int) -> Located:
    """All marks of one scan together."""
    found = [mark.locate(volume, readers) for mark in marks]
    return Located(
        tuple(finding for one in found for finding in one.findings),
        tuple(entry for one in found for entry in one.left_out),
    )


def outside(volume: CTVolume, kji: Sequence[float]) -> str | None:
    """Why (slice, row, column) is no place in the scan, or None where it is one."""
    nearest = [int(np.floor(value + 0.5)) for value in kji]
    if volume.contains(nearest):
        return None
    return "slice {}, row {}, column {} lies outside the scan of {} slices, {} rows, {} columns".format(
        *nearest, *volume.shape
    )


def measure(voxels: np.ndarray, spacing_kji: Sequence[float]) -> tuple[np.ndarray, float, float]:
    """Center, diameter and reach of a set of voxels.

    The diameter is what readers measure: the longest in a slice, from outer edge to outer edge, that is the largest
    distance of two voxel centers of one slice plus one voxel.

    :param voxels: (n, 3) integers (slice, row, column), n > 0.
    :return: center (slice, row, column) as the mean, longest in-slice diameter in mm, and the distance in mm from the
        center to the outermost voxel's edge.
    """
    spacing = np.asarray(spacing_kji, dtype=np.float64)
    center = voxels.mean(axis=0)
    reach = float(np.linalg.norm((voxels - center) * spacing, axis=1).max() + spacing.max() / 2)
    longest = 0.0
    for k in np.unique(voxels[:, 0]):
        ends = _row_ends(voxels[voxels[:, 0] == k, 1:]) * spacing[1:]
        distances = np.linalg.norm(ends[:, None] - ends[None], axis=2)
        longest = max(longest, float(distances.max()))
    return center, longest + float(spacing[1:].mean()), reach


def _row_ends(pixels: np.ndarray) -> np.ndarray:
    """First and last pixel of every row: the farthest pair is among them."""
    rows, index = np.unique(pixels[:, 0], return_inverse=True)
    low = np.full(len(rows), np.iinfo(np.int64).max)
    high = np.full(len(rows), np.iinfo(np.int64).min)
    np.minimum.at(low, index, pixels[:, 1])
    np.maximum.at(high, index, pixels[:, 1])
    return np.concatenate([np.stack([rows, low], axis=1), np.stack([rows, high], axis=1)])
