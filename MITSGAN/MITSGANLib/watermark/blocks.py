"""Blocks of a scan, as all evidence is added up in them: 4x4 voxels of one slice.

Arrays of blocks are (slice, block row, block column), turned so that rows and columns run along growing LPS, within
whole tiles alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..scan.filters import box_means, weigh
from ..scan.volume import CTVolume
from .pattern import Grid, block_sums

BLOCK = 4
"""Edge in voxels of the blocks."""

_REACH = 2.5  # of a Gaussian, in sigmas


@dataclass(frozen=True, eq=False)
class BlockGrid:
    """How the voxels of a scan lie in blocks.

    :param shape: (slices, block rows, block columns).
    :param mm: edges of a block along the same axes.
    """

    volume: CTVolume
    grid: Grid
    shape: tuple[int, int, int]
    mm: tuple[float, float, float]

    @classmethod
    def of(cls, volume: CTVolume) -> BlockGrid:
        """Those of a scan."""
        spacing = volume.spacing_kji
        shape = (volume.shape[0], *block_sums(volume.hu[0], BLOCK).shape)
        return cls(volume, Grid.of(volume), shape, (spacing[0], *(BLOCK * step for step in spacing[1:])))

    def in_boxes(self, values: np.ndarray, edge_mm: float) -> np.ndarray:
        """Sum over a cube of this edge around each block."""
        return sum_in_boxes(values, edge_mm, self.mm)

    def around(self, values: np.ndarray, sigma_mm: float, power: int = 1) -> np.ndarray:
        """Sum around each block, weighted by a Gaussian that is 1 in its middle, to a power; float32.

        A variance of weighted sums wants their weights' squares: ``power=2``.
        """
        found = values.astype(np.float32, copy=False)
        for axis, edge in enumerate(self.mm):
            steps = np.arange(round(_REACH * sigma_mm / edge) + 1)
            found = weigh(found, np.exp(-0.5 * np.square(steps * edge / sigma_mm)) ** power, axis)
        return found

    def middle(self, block: Sequence[float]) -> tuple[int, int, int]:
        """Voxel (slice, row, column) in the middle of a block, whose indices may be fractions."""
        inner = (int((index + 0.5) * BLOCK) for index in block[1:])
        return round(block[0]), *self._flipped(inner)

    def middles(self) -> Iterator[np.ndarray]:
        """Slices, rows and columns of the middles of all blocks, each (blocks along its axis)."""
        yield np.arange(self.shape[0], dtype=float)
        yield from self._flipped((np.arange(count) + 0.5) * BLOCK - 0.5 for count in self.shape[1:])

    def block_of(self, kji: Sequence[int]) -> tuple[int, int, int]:
        """The block of a voxel (slice, row, column) of the scan; the nearest where rows or columns fill no tile."""
        inner = (index // BLOCK for index in self._flipped(kji[1:]))
        return kji[0], *(min(block, count - 1) for block, count in zip(inner, self.shape[1:], strict=True))

    def _flipped(self, inner: Iterable[int]) -> Iterator[int]:
        """Row and column along growing LPS, or back."""
        for index, flip, size in zip(inner, self.grid.flips, self.volume.shape[1:], strict=True):
            yield index if flip > 0 else size - 1 - index

    def voxels(self, values: np.ndarray) -> np.ndarray:
        """Each block's value at all its voxels, int16 of the scan's shape; 0 where rows or columns fill no tile."""
        found = np.zeros(self.volume.shape, np.int16)
        for plane, of_blocks in zip(found, values, strict=True):
            large = enlarge(of_blocks, BLOCK)
            self.grid.turned(plane)[: large.shape[0], : large.shape[1]] = large
        return found


def sum_in_boxes(values: np.ndarray, edge_mm: float, block_mm: Sequence[float]) -> np.ndarray:
    """Sum over a box with an odd number of blocks around each.

    :param block_mm: edges of a block along (slice, row, column).
    """
    size = [max(1, round((edge_mm / step - 1) / 2) * 2 + 1) for step in block_mm]
    return box_means(values, size, "constant") * np.prod(size)


def enlarge(blocks: np.ndarray, edge: int) -> np.ndarray:
    """Each value of (rows, columns) as a square of so many voxels."""
    return blocks.repeat(edge, axis=0).repeat(edge, axis=1)
