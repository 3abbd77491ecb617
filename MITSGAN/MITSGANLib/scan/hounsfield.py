"""Which CT values hold a signal, and the checks that arrays of HU pass."""

from __future__ import annotations

import numpy as np

from ..errors import InputError

# The range of 12-bit CT with an intercept of -1024. Values at its ends are saturated (or padding) and hold no signal.
LOWEST_HU, HIGHEST_HU = -1024, 3071


def require_int16(hu: np.ndarray) -> np.ndarray:
    """The array as it is, of any shape.

    :raises InputError: when it is not int16, as HU are kept here.
    """
    hu = np.asarray(hu)
    if hu.dtype != np.int16:
        raise InputError(
            f"Voxels must be int16 in HU, not {hu.dtype}; read the scan with MITSGANLib.files.volume_files or dicom."
        )
    return hu


def as_volume(hu: np.ndarray) -> np.ndarray:
    """The array as (slices, rows, columns); one slice (rows, columns) becomes a volume of one.

    :raises InputError: when it is neither, or empty.
    """
    hu = np.asarray(hu)
    if hu.ndim == 2:
        hu = hu[None]
    if hu.ndim != 3 or 0 in hu.shape:
        raise InputError(f"A CT must be a non-empty 3-D array (slice, row, column), not one of shape {hu.shape}.")
    return hu


def is_padding(plane: np.ndarray, padding_hu: int | None) -> np.ndarray:
    """Which voxels hold no CT value: those below -1024 HU or at ``padding_hu``; bool, same shape."""
    padding = plane < LOWEST_HU
    return padding if padding_hu is None else padding | (plane == padding_hu)
