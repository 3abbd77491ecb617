"""What ITK does not say about a NIfTI file: its reader fills the missing end of a file with zeros, and replaces NaN and
infinite values by zero, both without an error. Zero HU is water, so either would pass for tissue.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import InputError

# Data type codes of nifti1.h that can hold NaN.
REAL_TYPES = {16: np.float32, 64: np.float64}
NIFTI1_SIZE, NIFTI2_SIZE = 348, 540
CHUNK_BYTES = 1 << 24  # a multiple of every size in REAL_TYPES


@dataclass(frozen=True)
class _Layout:
    """Where the voxels lie in the file and how they are stored."""

    offset: int
    size: int
    data_type: int
    byte_order: str


def check_nifti(path: Path) -> None:
    """Read through a NIfTI-1 or NIfTI-2 file (.nii or .nii.gz) once.

    :raises InputError: the file ends early or is corrupt, or a voxel is NaN or infinite.
    """
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            layout = _layout(file.read(NIFTI2_SIZE))
            file.seek(layout.offset)
            is_complete, is_finite = _read_through(file, layout)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise _damaged(path) from error
    if not is_complete:
        raise _damaged(path)
    if not is_finite:
        raise InputError(
            "holds NaN or infinite values",
            path=path,
            hint="repair it before use, for example by exporting the original again",
        )


def _layout(header: bytes) -> _Layout:
    """
    :raises ValueError: this is no NIfTI header.
    """
    for byte_order in "<>":
        (size,) = struct.unpack_from(f"{byte_order}i", header)
        if size == NIFTI1_SIZE:
            dimensions = struct.unpack_from(f"{byte_order}8h", header, 40)
            data_type, bits = struct.unpack_from(f"{byte_order}2h", header, 70)
            (offset,) = struct.unpack_from(f"{byte_order}f", header, 108)
        elif size == NIFTI2_SIZE:
            data_type, bits, *dimensions = struct.unpack_from(f"{byte_order}2h8q", header, 12)
            (offset,) = struct.unpack_from(f"{byte_order}q", header, 168)
        else:
            continue
        voxels = math.prod(dimensions[1 : 1 + dimensions[0]])
        return _Layout(int(offset), voxels * bits // 8, data_type, byte_order)
    raise ValueError("no NIfTI header")


def _read_through(file: BinaryIO, layout: _Layout) -> tuple[bool, bool]:
    """Whether all voxels are there, and whether all are finite."""
    dtype = REAL_TYPES.get(layout.data_type)
    missing, is_finite = layout.size, True
    while missing and (chunk := file.read(min(CHUNK_BYTES, missing))):
        missing -= len(chunk)
        if dtype and len(chunk) % np.dtype(dtype).itemsize == 0:
            values = np.frombuffer(chunk, np.dtype(dtype).newbyteorder(layout.byte_order))
            is_finite = is_finite and bool(np.isfinite(values).all())
    file.read(1)  # gzip compares its checksum when it meets the end
    return missing == 0, is_finite


def _damaged(path: Path) -> InputError:
    return InputError("is damaged or incomplete", path=path, hint="copy or export it again")
