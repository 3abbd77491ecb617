"""What sources of findings have in common: a mark names its scan, and is located once that scan's geometry is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from MITSGANLib.scan.volume import CTVolume
from scipy.spatial.distance import pdist

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


def outside(volume: CTVolume, kji: Sequence[float]) -> str | None:
    """Why (slice, row, column) is no place in the scan, or None where it is one."""
    nearest = [int(np.floor(value + 0.5)) for value in kji]
    words = "slice {}, row {}, column {} lies outside the scan of {} slices, {} rows, {} columns"
    return None if volume.contains(nearest) else words.format(*nearest, *volume.shape)


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
    ordered = voxels[np.lexsort(voxels.T[::-1])]
    # The farthest pair of a slice is among the first and last pixels of its rows.
    starts = np.flatnonzero(np.diff(ordered[:, :2], axis=0, prepend=-1).any(axis=1))
    ends = ordered[np.concatenate([starts, np.append(starts[1:], len(ordered)) - 1])]
    longest = max(pdist(ends[ends[:, 0] == k, 1:] * spacing[1:]).max() for k in np.unique(ends[:, 0]))
    return center, float(longest + spacing[1:].mean()), reach


def nodule(
    kji: tuple[float, float, float], diameter_mm: float, readers: int | None, reach_mm: float | None = None
) -> Finding:
    """A measured nodule, which LIDC calls small below 3 mm; its reach is its radius where no other is known."""
    kind = "small nodule" if diameter_mm < 2 * SMALL_REACH_MM else "nodule"
    return Finding(kji, diameter_mm, kind, readers, diameter_mm / 2 if reach_mm is None else reach_mm)
