"""Cubes and other boxes of a scan: cut around a voxel, rescaled as CT-GAN does, and pasted back.

Torch tensors in HU; axes are (slice, row, column).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Voxel = tuple[int, int, int]
Box = tuple[slice, slice, slice]

CUBE_MM = 32  # edge of the cube that the generator sees, at 1 mm


@dataclass(frozen=True)
class Patch:
    """New voxels of a part of a scan: ``values`` belong at ``start`` (slice, row, column), all inside the scan."""

    start: Voxel
    values: torch.Tensor

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The patch's box in the scan (slices, rows, columns)."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.values.shape, strict=True))


def cube_shape(spacing_kji: Sequence[float]) -> Voxel:
    """Voxels per axis of the 32 mm cube, rounded half to even as numpy does."""
    shape = np.round(CUBE_MM * (1 / np.asarray(spacing_kji, dtype=np.float64))).astype(int)
    return tuple(int(max(n, 1)) for n in shape)


def cube_start(center: Sequence[int], shape: Sequence[int]) -> Voxel:
    """First voxel of a cube around ``center``: half of each edge, rounded half to even, before it."""
    return tuple(int(c - np.round(n / 2)) for c, n in zip(center, shape, strict=True))


def cut(volume: torch.Tensor, start: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """A float64 copy of ``volume[start : start + shape]``; voxels beyond the scan get 0 HU, as in CT-GAN."""
    inner, offset = overlap(start, shape, (0, 0, 0), volume.shape)
    part = volume[box_slices(np.add(start, offset), inner)].double()
    cube = part.new_zeros(tuple(shape))
    cube[box_slices(offset, inner)] = part
    return cube


def rescale(cube: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Cubic-spline zoom to ``shape``, equal to ``scipy.ndimage.zoom(order=3, mode='nearest')``; last three axes."""
    result = cube.double()
    # One axis at a time: the three-fold product at once would need tens of gigabytes.
    for axis, size in zip((-3, -2, -1), shape, strict=True):
        matrix = result.new_tensor(_zoom_matrix(result.shape[axis], size))
        result = (result.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return result


def overlap(
    start: Sequence[int], shape: Sequence[int], other_start: Sequence[int], other_shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Size of the intersection of two boxes (0 where they miss) and its offset within the first."""
    low = np.maximum(start, other_start)
    high = np.minimum(np.add(start, shape), np.add(other_start, other_shape))
    size = np.maximum(high - low, 0)
    return (size if size.all() else np.zeros(3, dtype=int)), np.clip(low - np.asarray(start), 0, None)


def box_slices(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """The index of a box that begins at voxel ``start`` and has ``size`` voxels along each axis."""
    return tuple(slice(int(a), int(a) + int(n)) for a, n in zip(start, size, strict=True))


@functools.lru_cache(maxsize=128)
def _zoom_matrix(size_in: int, size_out: int) -> np.ndarray:
    """(size_out, size_in) matrix of the spline zoom along one axis. The zoom is linear: zoomed unit vectors give it."""
    from scipy import ndimage

    if size_in == 1:
        return np.ones((size_out, 1))
    columns = [ndimage.zoom(unit, size_out / size_in, order=3, mode="nearest") for unit in np.eye(size_in)]
    matrix = np.stack(columns, axis=1)
    return matrix


class PatchedScan:
    """A scan with other voxels in one box, read like a tensor (slices, rows, columns) by the steps of an attack.

    Gradients reach the box alone; neither they nor the new voxels take the memory of a whole scan.
    """

    def __init__(self, scan: torch.Tensor, box: Box, values: torch.Tensor) -> None:
        self._scan, self._box, self._values = scan, box, values
        self.shape, self.device = scan.shape, scan.device

    def __getitem__(self, wanted: Box) -> torch.Tensor:
        """Voxels of ``wanted`` (slices with start and stop inside the scan), float64."""
        part = self._scan[wanted].double()
        common = intersection(wanted, self._box)
        if common is not None:
            part[within(common, wanted)] = self._values[within(common, self._box)].double()
        return part


def intersection(a: Box, b: Box) -> Box | None:
    """The voxels that two boxes share; None where they share none."""
    common = tuple(slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return common if all(part.start < part.stop for part in common) else None


def within(box: Box, outer: Box) -> Box:
    """``box`` as an index into the voxels of ``outer``, which holds it."""
    return tuple(slice(p.start - q.start, p.stop - q.start) for p, q in zip(box, outer, strict=True))
