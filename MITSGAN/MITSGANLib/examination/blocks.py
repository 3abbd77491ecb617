"""Blocks of a scan, what they look like, and which are lung; arrays of blocks are those of :mod:`..watermark.blocks`.

Everywhere in the examination ``lungs`` are bool, of blocks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ..runtime.threads import map_slices
from ..scan.filters import smooth
from ..scan.lungs import lung_mask
from ..scan.volume import LOWEST_HU
from ..watermark.blocks import BLOCK, BlockGrid
from ..watermark.pattern import block_sums

# A nodule within the lung has lung around it; one at the pleura has it on one side.
_LUNG_SHARE, _PLEURA_SHARE, _AROUND_MM = 0.5, 0.35, 30.0
_WINDPIPE_SHARE = 0.3  # has no more air around
_FINE_VOXELS, _STEEP_VOXELS, _COARSE_VOXELS = 0.8, 1.5, 3.0  # Gaussians
_LEAST_HU = 0.3  # before logarithms; rounding alone is as much


@dataclass(frozen=True, eq=False)
class Texture:
    """What each block looks like, float32 of blocks.

    :param fine: mean logarithm of what is finer than a voxel's surroundings in its slice.
    :param coarse: of what is of 1 to 3 voxels.
    :param steepness: mean gradient in HU a voxel.
    :param level: mean HU.
    """

    fine: np.ndarray
    coarse: np.ndarray
    steepness: np.ndarray
    level: np.ndarray


class Blocks(BlockGrid):
    """How the voxels of a scan lie in blocks, and what these hold."""

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

    @functools.cached_property
    def lungs(self) -> np.ndarray:
        """The lungs, with the vessels and nodules within them, bool of blocks."""
        return self._lungs(_LUNG_SHARE)

    @functools.cached_property
    def lungs_and_pleura(self) -> np.ndarray:
        """The same, with what may belong to a nodule at the pleura, which has lung on one side."""
        return self._lungs(_PLEURA_SHARE)

    @functools.cached_property
    def _shares(self) -> tuple[np.ndarray, np.ndarray]:
        """The share of lung in each block, and around it."""
        shares = np.stack(map_slices(lambda k: self.means(self.lung[k]), self.shape[0]))
        return shares, self.in_boxes(shares, _AROUND_MM) / self.in_boxes(np.ones_like(shares), _AROUND_MM)

    def _lungs(self, around_share: float) -> np.ndarray:
        shares, around = self._shares
        return ((shares > _LUNG_SHARE) & (around > _WINDPIPE_SHARE)) | (around > around_share)
