"""Where a copy's voxels lie in what is examined of it.

Axes that were permuted, with the header saying so, are put in their usual order first: lungs are sought, and noise is
compared, in slices across the body. A copy whose signs lie on another grid, of which its voxels are a part, is examined
on that grid. What is told then is told of the copy's own voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..scan.alignment import aligned, between, pasted
from ..scan.volume import CTVolume
from ..watermark.regridding import Regridding

Voxel = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Placement:
    """A copy, and the same voxels in the order in which they are examined.

    :param to_examined: 4x4, from voxel (slice, row, column, 1) of the copy to that of what is examined; whole numbers.
    :param words: how the copy lies, for people; empty where it is examined as it is.
    """

    copy: CTVolume
    examined: CTVolume
    to_examined: np.ndarray
    words: str = ""

    @classmethod
    def as_stored(cls, copy: CTVolume) -> Placement:
        """The copy as it is."""
        return cls(copy, copy, np.eye(4))

    @classmethod
    def upright(cls, copy: CTVolume) -> Placement:
        """With slices across the body, as far as the header tells; the copy as it is where they are."""
        turned = aligned(copy, np.eye(3))
        to_turned = between(copy, turned)
        if np.allclose(np.abs(to_turned[:3, :3]), np.eye(3), atol=1e-3):
            return cls.as_stored(copy)
        return cls(copy, turned, np.rint(to_turned), "axes permuted")

    def on(self, regridding: Regridding) -> Placement:
        """The copy on the grid of the signs, in the slices that it holds.

        :param regridding: of what is examined so far; exact.
        """
        moved = regridding.moved(self.examined)
        corners = np.array([[0, 0, 0, 1], [*np.subtract(self.examined.shape, 1), 1]])
        ends = np.rint(corners @ regridding.to_grid[0]).astype(int)
        low, high = max(0, int(ends.min())), min(moved.shape[0], int(ends.max()) + 1)
        held = dataclasses.replace(moved, hu=moved.hu[low:high], origin=tuple(moved.voxel_to_lps((low, 0, 0))))
        shift = np.eye(4)
        shift[0, 3] = -low
        words = ", ".join(filter(None, (self.words, regridding.words)))
        return Placement(self.copy, held, np.rint(shift @ regridding.to_grid @ self.to_examined), words)

    def inside(self, kji: Sequence[int]) -> Voxel:
        """Where a voxel of the copy is examined; the nearest that is."""
        return _at(self.to_examined, kji, self.examined)

    def outside(self, kji: Sequence[float]) -> Voxel:
        """The voxel of the copy that is examined there; the nearest where the copy has none."""
        return _at(np.linalg.inv(self.to_examined), kji, self.copy)

    def size_outside(self, size_mm: Sequence[float]) -> tuple[float, float, float]:
        """An extent along the axes of what is examined, along those of the copy."""
        return tuple(float(mm) for mm in np.abs(self.to_examined[:3, :3]).T @ np.asarray(size_mm, float))

    def values_outside(self, values: np.ndarray) -> np.ndarray:
        """Values of the examined voxels, of the copy's shape; 0 for those of its voxels that are not examined."""
        if self.examined is self.copy:
            return values
        return pasted(values, np.linalg.inv(self.to_examined), self.copy.shape, 0)


def _at(matrix: np.ndarray, kji: Sequence[float], volume: CTVolume) -> Voxel:
    at = np.rint(matrix[:3, :3] @ np.asarray(kji, float) + matrix[:3, 3])
    return tuple(int(index) for index in np.clip(at, 0, np.subtract(volume.shape, 1)))
