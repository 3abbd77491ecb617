"""Cubes and other boxes of a scan: cut around a voxel, rescaled as CT-GAN does, and pasted back.

Torch tensors in HU; axes are (slice, row, column).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Voxel = tuple[int, int, int]
Box = tuple[slice, ...]
"""Slices with start and stop along each axis."""

CUBE_MM = 32  # edge of the cube that the generator sees, at 1 mm


@dataclass(frozen=True)
class Patch:
    """New voxels of a part of a scan: ``values`` belong at ``start`` (slice, row, column)."""

    start: Voxel
    values: torch.Tensor

    @property
    def slices(self) -> Box:
        """Where the patch lies in the scan."""
        return box_at(self.start, self.values.shape)


def cube_shape(spacing_kji: Sequence[float]) -> Voxel:
    """Voxels per axis of the 32 mm cube, rounded half to even as numpy does."""
    shape = np.round(CUBE_MM * (1 / np.asarray(spacing_kji, dtype=np.float64))).astype(int)
    return tuple(int(max(n, 1)) for n in shape)


def cube_start(center: Sequence[int], shape: Sequence[int]) -> Voxel:
    """First voxel of a cube around ``center``: half of each edge, rounded half to even, before it."""
    return tuple(int(c - np.round(n / 2)) for c, n in zip(center, shape, strict=True))


def cut(volume: torch.Tensor, start: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """A float64 copy of ``volume[start : start + shape]``; voxels beyond the scan get 0 HU, as in CT-GAN."""
    import torch

    box = box_at(start, shape)
    inside = intersection(box, whole(volume.shape))
    cube = torch.zeros(tuple(shape), dtype=torch.float64, device=volume.device)
    if inside is not None:
        cube[within(inside, box)] = volume[inside].double()
    return cube


def rescale(cube: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Cubic-spline zoom to ``shape``, equal to ``scipy.ndimage.zoom(order=3, mode='nearest')``; last three axes."""
    result = cube.double()
    # One axis at a time: the three-fold product at once would need tens of gigabytes.
    for axis, size in zip((-3, -2, -1), shape, strict=True):
        matrix = result.new_tensor(_zoom_matrix(result.shape[axis], size))
        result = (result.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return result


@functools.lru_cache(maxsize=128)
def _zoom_matrix(size_in: int, size_out: int) -> np.ndarray:
    """(size_out, size_in) matrix of the spline zoom along one axis. The zoom is linear: zoomed unit vectors give it."""
    from scipy import ndimage

    if size_in == 1:
        return np.ones((size_out, 1))
    columns = [ndimage.zoom(unit, size_out / size_in, order=3, mode="nearest") for unit in np.eye(size_in)]
    return np.stack(columns, axis=1)


class PatchedScan:
    """A scan with other voxels in one box, read by boxes like the tensor or array (slices, rows, columns) that it is.

    A tensor's voxels come as float64, as the steps of an attack want them, an array's as they are. Gradients reach the
    box alone; neither they nor the new voxels take the memory of a whole scan.
    """

    def __init__(self, scan: Any, box: Box, values: Any) -> None:
        self._scan, self._box, self._values = scan, box, values
        self.shape, self.device = scan.shape, scan.device

    def __getitem__(self, wanted: Box) -> Any:
        """A copy of the voxels of ``wanted`` (slices with start and stop inside the scan)."""
        part = self._scan[wanted]
        part = part.copy() if isinstance(part, np.ndarray) else part.double()
        common = intersection(wanted, self._box)
        if common is not None:
            part[within(common, wanted)] = self._values[within(common, self._box)]
        return part


def box_at(start: Sequence[int], size: Sequence[int]) -> Box:
    """The box that begins at voxel ``start`` and has ``size`` voxels along each axis; may reach beyond the scan."""
    return tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))


def whole(shape: Sequence[int]) -> Box:
    """The box of all voxels of a scan of this shape."""
    return tuple(slice(0, size) for size in shape)


def intersection(*boxes: Box) -> Box | None:
    """The voxels that all boxes share; None where they share none."""
    common = tuple(
        slice(max(part.start for part in axis), min(part.stop for part in axis)) for axis in zip(*boxes, strict=True)
    )
    return common if all(part.start < part.stop for part in common) else None


def union(*boxes: Box) -> Box:
    """The smallest box around several."""
    return tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*boxes, strict=True)
    )


def box_around(where: np.ndarray) -> Box | None:
    """The smallest box around what is True; None where nothing is."""
    axes = set(range(where.ndim))
    found = [np.flatnonzero(where.any(axis=tuple(axes - {axis}))) for axis in sorted(axes)]
    return tuple(slice(int(at[0]), int(at[-1]) + 1) for at in found) if found[0].size else None


def within(box: Box, outer: Box) -> Box:
    """``box`` as an index into the voxels of ``outer``, which holds it."""
    return tuple(slice(p.start - q.start, p.stop - q.start) for p, q in zip(box, outer, strict=True))
