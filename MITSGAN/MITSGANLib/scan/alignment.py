"""The same scan in another order of voxels: formats and programs may turn and mirror the grid, and say so in it."""

from __future__ import annotations

import numpy as np

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
    hu = volume.hu.transpose([2 - axis for axis in axes[::-1]])
    hu = hu[tuple(slice(None, None, -1 if flip else 1) for flip in is_flipped[::-1])]
    corner = np.zeros(3)
    corner[axes[is_flipped]] = np.array(volume.shape[::-1])[axes[is_flipped]] - 1
    return CTVolume(
        hu,
        tuple(np.array(volume.spacing)[axes]),
        tuple(volume.voxel_to_lps(corner[::-1])),
        volume.direction[:, axes] * np.where(is_flipped, -1.0, 1.0),
        volume.provenance,
    )
