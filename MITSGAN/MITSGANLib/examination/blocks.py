"""Blocks of a scan, as all evidence is added up in them: 4x4 voxels of one slice.

Arrays of blocks are those of :mod:`..watermark.sums`: (slice, block row, block column), turned so that rows and columns
run along growing LPS, within whole tiles alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.threads import map_slices
from ..scan.filters import smooth
from ..scan.hounsfield import LOWEST_HU
from ..scan.lungs import lung_mask
from ..scan.volume import CTVolume
from ..watermark.pattern import Grid, block_sums
from ..watermark.sums import BLOCK, enlarge, sum_around, sum_in_boxes

# A nodule within the lung has lung around it; one at the pleura has it on one side.
_LUNG_SHARE, _AROUND_MM = 0.5, 30.0
_WINDPIPE_SHARE = 0.3  # has no more air around
_FINE_VOXELS, _STEEP_VOXELS, _COARSE_VOXELS = 0.8, 1.5, 3.0  # Gaussians
_LEAST_HU = 0.3  # before logarithms; rounding alone is as much
AT_PLEURA = 0.35
"""Share of lung around a block from which on it may belong to a nodule at the pleura."""


@dataclass(frozen=True, eq=False)
class Texture:
    """What each block looks like, float32 (slices, block rows, block columns).

    :param fine: mean logarithm of what is finer than a voxel's surroundings in its slice.
    :param coarse: of what is of 1 to 3 voxels.
    :param steepness: mean gradient in HU a voxel.
    :param level: mean HU.
    """

    fine: np.ndarray
    coarse: np.ndarray
    steepness: np.ndarray
    level: np.ndarray


@dataclass(frozen=True, eq=False)
class Blocks:
    """How the voxels of a scan lie in blocks.

    :param shape: (slices, block rows, block columns).
    :param mm: edges of a block along the same axes.
    """

    volume: CTVolume
    grid: Grid
    shape: tuple[int, int, int]
    mm: tuple[float, float, float]

    @classmethod
    def of(cls, volume: CTVolume) -> Blocks:
        """Those of a scan."""
        spacing = volume.spacing_kji
        shape = (volume.shape[0], *block_sums(volume.hu[0], BLOCK).shape)
        return cls(volume, Grid.of(volume), shape, (spacing[0], *(BLOCK * step for step in spacing[1:])))

    @functools.cached_property
    def lung(self) -> np.ndarray:
        """What is air-filled lung, bool of the scan's shape."""
        return lung_mask(self.volume)

    @functools.cached_property
    def texture(self) -> Texture:
        """What the blocks look like; several kinds of evidence ask for it."""
        from scipy import ndimage

        def look(k: int) -> tuple[np.ndarray, ...]:
            plane = np.maximum(self.volume.hu[k], LOWEST_HU).astype(np.float32)
            near, steep, far = (smooth(plane, sigma) for sigma in (_FINE_VOXELS, _STEEP_VOXELS, _COARSE_VOXELS))
            logs = (np.log(np.abs(values) + _LEAST_HU) for values in (plane - near, near - far))
            steepness = np.hypot(ndimage.sobel(steep, 0), ndimage.sobel(steep, 1)) / 8
            return tuple(map(self.means, (*logs, steepness, plane)))

        return Texture(*map(np.stack, zip(*map_slices(look, self.shape[0]), strict=True)))

    def means(self, plane: np.ndarray) -> np.ndarray:
        """Mean of each block of a slice (rows, columns) as it is stored, float32 (block rows, block columns)."""
        return (block_sums(self.grid.turned(plane), BLOCK) / BLOCK**2).astype(np.float32)

    def most(self, plane: np.ndarray) -> np.ndarray:
        """Largest value of each block of a slice (rows, columns) as it is stored, (block rows, block columns)."""
        rows, columns = self.shape[1:]
        whole = self.grid.turned(plane)[: rows * BLOCK, : columns * BLOCK]
        return whole.reshape(rows, BLOCK, columns, BLOCK).max(axis=(1, 3))

    def in_boxes(self, values: np.ndarray, edge_mm: float) -> np.ndarray:
        """Sum over a cube of this edge around each block."""
        return sum_in_boxes(values, edge_mm, self.mm)

    def around(self, values: np.ndarray, sigma_mm: float, power: int = 1) -> np.ndarray:
        """Sum around each block, weighted by a Gaussian that is 1 in its middle, to a power.

        A variance of weighted sums wants their weights' squares: ``power=2``.
        """
        return sum_around(values, sigma_mm, self.mm, power)

    def middle(self, block: Sequence[float]) -> tuple[int, int, int]:
        """Voxel (slice, row, column) in the middle of a block, whose indices may be fractions."""
        rows, columns = (
            int((index + 0.5) * BLOCK) if flip > 0 else size - 1 - int((index + 0.5) * BLOCK)
            for index, flip, size in zip(block[1:], self.grid.flips, self.volume.shape[1:], strict=True)
        )
        return round(block[0]), rows, columns

    def block_of(self, kji: Sequence[int]) -> tuple[int, int, int]:
        """The block of a voxel (slice, row, column) of the scan; the nearest where rows or columns fill no tile."""
        inner = (
            (index if flip > 0 else size - 1 - index) // BLOCK
            for index, flip, size in zip(kji[1:], self.grid.flips, self.volume.shape[1:], strict=True)
        )
        return kji[0], *(min(block, count - 1) for block, count in zip(inner, self.shape[1:], strict=True))

    def voxels(self, values: np.ndarray) -> np.ndarray:
        """Each block's value at all its voxels, int16 of the scan's shape; 0 where rows or columns fill no tile."""
        found = np.zeros(self.volume.shape, np.int16)
        for plane, of_blocks in zip(found, values, strict=True):
            large = enlarge(of_blocks, BLOCK)
            self.grid.turned(plane)[: large.shape[0], : large.shape[1]] = large
        return found

    def lungs(self, around_share: float = _LUNG_SHARE) -> np.ndarray:
        """Bool (slices, block rows, block columns): the lungs, with the vessels and nodules within them.

        :param around_share: of lung within 30 mm, from which on all tissue belongs to them.
        """
        shares = np.stack(map_slices(lambda k: self.means(self.lung[k]), self.shape[0]))
        around = self.in_boxes(shares, _AROUND_MM) / self.in_boxes(np.ones_like(shares), _AROUND_MM)
        return ((shares > _LUNG_SHARE) & (around > _WINDPIPE_SHARE)) | (around > around_share)
