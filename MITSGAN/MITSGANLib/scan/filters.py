"""Filters of slices and blocks with the results of SciPy's, in less time.

SciPy's copy line after line, which is slow along columns, above all where rows lie a power of two apart in memory, as
those of 512 voxels do. Here whole rows are added up, or lie a little farther apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

_AT_ONCE = 1 << 16  # values that stay in the cache
# Beyond the end of each row, and after the last row of each slice, so that neither lie a power of two apart.
_GAPS = (0, 1, 16)


def enlarged(blocks: np.ndarray, edge: int, shape: Sequence[int]) -> np.ndarray:
    """Each value as a square of so many voxels of its slice, without what is beyond the scan.

    Slice by slice: ``ndarray.repeat`` keeps Python's lock, and an interface would stand still for all of a long scan.

    :param blocks: (slices, block rows, block columns).
    :param shape: (slices, rows, columns) of the result, of the same type.
    """
    found = np.empty(tuple(shape), blocks.dtype)
    _, rows, columns = found.shape
    for plane, of_slice in zip(found, blocks, strict=True):
        plane[:] = of_slice.repeat(edge, axis=0)[:rows].repeat(edge, axis=1)[:, :columns]
    return found


def smooth(plane: np.ndarray, sigma: float, reach: float = 2.5) -> np.ndarray:
    """Gaussian of a slice (rows, columns), float32; to rounding what ``ndimage.gaussian_filter`` gives.

    :param sigma: in voxels.
    :param reach: of the Gaussian, in sigmas; beyond the border the slice is reflected.
    """
    weights = np.exp(-0.5 * np.square(np.arange(int(reach * sigma + 0.5) + 1) / sigma))
    weights /= 2 * weights.sum() - 1
    for axis in (0, 1):
        plane = weigh(plane, weights, axis, "symmetric")
    return plane


def weigh(
    values: np.ndarray, weights: np.ndarray, axis: int, beyond: Literal["symmetric", "constant"] | None = "constant"
) -> np.ndarray:
    """Sums along an axis with weights that are the same on both sides, float32; to rounding ``ndimage.correlate1d``.

    :param weights: in the middle, beside it, and so on.
    :param beyond: NumPy's name of what lies beyond the border: the values reflected, or 0. None gives the sums of what
        lies within alone, which are fewer.
    """
    weights, reach, wide = weights.astype(np.float32), len(weights) - 1, values.astype(np.float32, copy=False)
    if beyond is not None:
        wide = np.pad(wide, [(reach * (one == axis),) * 2 for one in range(values.ndim)], mode=beyond)
    total = np.empty([size - 2 * reach * (one == axis) for one, size in enumerate(wide.shape)], np.float32)
    rows = max(1, _AT_ONCE * len(total) // max(1, total.size))
    pair = np.empty((rows, *total.shape[1:]), np.float32)
    for first in range(0, len(total), rows):
        here = total[first : first + rows]
        both = pair[: len(here)]
        start = [first, *(0,) * (values.ndim - 1)]

        def seen(by: int, start: Sequence[int] = start, shape: Sequence[int] = here.shape) -> np.ndarray:
            at = [a + (by if one == axis else 0) for one, a in enumerate(start)]
            return wide[tuple(slice(a, a + n) for a, n in zip(at, shape, strict=True))]

        np.multiply(seen(reach), weights[0], out=here)
        for by in range(1, reach + 1):
            np.add(seen(reach - by), seen(reach + by), out=both)
            both *= weights[by]
            here += both
    return total


def correlate(plane: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Weighted sum around each voxel of a slice (rows, columns), float32; to rounding ``ndimage.correlate``.

    :param kernel: of odd edges; beyond the border the slice is reflected.
    """
    wide = np.pad(plane.astype(np.float32, copy=False), [(edge // 2,) * 2 for edge in kernel.shape], mode="symmetric")
    (rows, columns), at_once = plane.shape, max(1, _AT_ONCE // plane.shape[1])
    total, part = np.zeros(plane.shape, np.float32), np.empty((at_once, columns), np.float32)
    for first in range(0, rows, at_once):
        here = total[first : first + at_once]
        for (j, i), weight in np.ndenumerate(kernel.astype(np.float32)):
            seen = wide[first + j : first + j + len(here), i : i + columns]
            here += np.multiply(seen, weight, out=part[: len(here)])
    return total


def box_means(
    values: np.ndarray, size: int | Sequence[int], beyond: Literal["reflect", "constant", "nearest"] = "reflect"
) -> np.ndarray:
    """Mean over a box around each value, of the same type and shape, bit for bit that of ``ndimage.uniform_filter``.

    :param size: edges of the box.
    :param beyond: SciPy's name of what lies beyond the border.
    """
    from scipy import ndimage

    wide = np.add(values.shape, _GAPS[-values.ndim :])
    apart, found = (np.empty(wide, values.dtype)[tuple(map(slice, values.shape))] for _ in range(2))
    apart[...] = values
    return ndimage.uniform_filter(apart, size, mode=beyond, output=found)
