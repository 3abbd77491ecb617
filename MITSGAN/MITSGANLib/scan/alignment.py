"""The same scan in another order of voxels: formats and programs may turn and mirror the grid, and say so in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .cubes import box_at, intersection, whole, within
from .volume import CTVolume


def aligned(volume: CTVolume, direction: np.ndarray) -> CTVolume:
    """A scan with its axes permuted and flipped, nothing resampled, such that they run as in ``direction`` if they can.

    :param direction: 3x3 as in ``CTVolume``.
    :returns: the same points in space with the same values; the volume itself where its axes have no clear order
        against ``direction``.
    """
    cosines = np.asarray(direction).T @ volume.direction
    # The axis of the volume (column, row, slice) that runs most along each axis of the direction.
    axes = np.abs(cosines).argmax(axis=1)
    if sorted(axes) != [0, 1, 2]:
        return volume
    is_flipped = cosines[np.arange(3), axes] < 0
    # Arrays have the axes in reverse order.
    hu = _turned(volume.hu, 2 - axes[::-1], is_flipped[::-1])
    corner = np.zeros(3)
    corner[axes[is_flipped]] = np.array(volume.shape[::-1])[axes[is_flipped]] - 1
    return CTVolume(
        hu,
        tuple(np.array(volume.spacing)[axes]),
        tuple(volume.voxel_to_lps(corner[::-1])),
        volume.direction[:, axes] * np.where(is_flipped, -1.0, 1.0),
        volume.provenance,
    )


def between(one: CTVolume, other: CTVolume) -> np.ndarray:
    """4x4 from voxel (slice, row, column, 1) of one scan to that of another at the same point in the patient."""
    matrix = np.linalg.solve(other.voxel_to_lps_matrix, one.voxel_to_lps_matrix)
    turned = matrix[[2, 1, 0, 3]][:, [2, 1, 0, 3]]
    near = np.rint(turned)
    return np.where(np.abs(turned - near) < 1e-4, near, turned)


def pasted(values: np.ndarray, to_grid: np.ndarray, shape: Sequence[int], fill: int) -> np.ndarray:
    """Values of one grid's voxels at those of another, where each of the one is one of the other.

    :param values: (slices, rows, columns).
    :param to_grid: 4x4 from their voxel (slice, row, column, 1) to that of the grid: axes permuted, flipped and moved.
    :param shape: (slices, rows, columns) of the grid.
    :param fill: what the grid's other voxels get.
    """
    turn = np.rint(to_grid[:3, :3]).astype(int)
    axes = np.abs(turn).argmax(axis=1)
    is_flipped = turn[np.arange(3), axes] < 0
    turned = _turned(values, axes, is_flipped)
    box = box_at(
        np.rint(to_grid[:3, 3]).astype(int) - np.where(is_flipped, np.array(turned.shape) - 1, 0), turned.shape
    )
    found = np.full(tuple(shape), fill, values.dtype)
    common = intersection(box, whole(shape))
    if common is not None:
        found[common] = turned[within(common, box)]
    return found


def _turned(values: np.ndarray, axes: Sequence[int], is_flipped: np.ndarray) -> np.ndarray:
    return np.flip(values.transpose(axes), tuple(np.flatnonzero(is_flipped)))
