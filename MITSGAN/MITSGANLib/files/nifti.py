"""What ITK does not say about a NIfTI file: its reader fills the missing end of a file with zeros, and replaces NaN and
infinite values by zero, both without an error. Zero HU is water, so either would pass for tissue.

A NIfTI file may say in two ways where it lies: the qform turns and shifts, the sform is any affine matrix. ITK takes
one of them without a word, and where the sform is sheared (a tilted gantry) the other; where both are there and differ,
no reader can know which is meant. Its writer makes two new ones.
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

_INT16 = 4  # of the data type codes of nifti1.h; below those that can hold NaN
REAL_TYPES = {16: np.float32, 64: np.float64}
NIFTI1_SIZE, NIFTI2_SIZE = 348, 540
CHUNK_BYTES = 1 << 24  # a multiple of every size in REAL_TYPES


# What a voxel's place may differ by between two ways to say it: more than rounding makes, less than anyone could see.
FORM_TOLERANCE_MM = 0.1
# Cosine between two axes of a grid that counts as straight, and between the same axes said in two ways: near half a
# turn, where most CT lies, a quaternion of 32 bits holds no angle more exactly than 7e-4.
STRAIGHT_COSINE = 1e-3
# In mm, by the lowest three bits of xyzt_units.
_UNITS = {1: 1000.0, 3: 0.001}


_MAGIC = b"n+1\0"
# Where a NIfTI-1 header has qfac and voxel size, slope and intercept of the values, units, the codes of both forms, and
# quaternion, offset and matrix.
_PIXDIM, _SCALING, _XYZT_UNITS, _CODES, _PLACES = 76, 112, 123, 252, 256
_FORMS = struct.Struct("<2i22d")


@dataclass(frozen=True)
class NiftiForms:
    """The two ways in which a header says where its voxels lie, in mm of RAS; a code of 0 means: not said.

    :param scale: qfac (-1 for a left-handed grid), and the spacing along (column, row, slice).
    :param quaternion: b, c, d of a unit quaternion, and the offset x, y, z.
    :param srow: the rows of a 3x4 matrix.
    """

    qform_code: int
    sform_code: int
    scale: tuple[float, ...]
    quaternion: tuple[float, ...]
    srow: tuple[float, ...]

    def matrices(self) -> dict[str, np.ndarray]:
        """The matrices (3x4) of the forms that are said, from (column, row, slice) index."""
        found = {}
        if self.qform_code > 0:
            found["qform"] = self._qform()
        if self.sform_code > 0:
            found["sform"] = np.array(self.srow).reshape(3, 4)
        return found

    def to_text(self) -> str:
        """All numbers exactly, not-a-number included, which unused fields may hold."""
        return _FORMS.pack(self.qform_code, self.sform_code, *self.scale, *self.quaternion, *self.srow).hex()

    @classmethod
    def from_text(cls, text: str) -> NiftiForms:
        """:raises ValueError, struct.error: the text is none of :meth:`to_text`."""
        qform, sform, *numbers = _FORMS.unpack(bytes.fromhex(text))
        return cls(qform, sform, tuple(numbers[:4]), tuple(numbers[4:10]), tuple(numbers[10:]))

    def _qform(self) -> np.ndarray:
        b, c, d = self.quaternion[:3]
        rest = b * b + c * c + d * d
        a = math.sqrt(max(0.0, 1 - rest))
        if rest > 1:
            b, c, d = (value / math.sqrt(rest) for value in (b, c, d))
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        qfac, i, j, k = self.scale
        return np.column_stack([rotation * (i, j, -k if qfac < 0 else k), self.quaternion[3:]])


def read_forms(path: Path) -> NiftiForms:
    """:raises InputError: the header is damaged."""
    try:
        with _opened(path) as file:
            header = file.read(NIFTI1_SIZE)
        if header[344:348] != _MAGIC:  # ITK would take it for its forerunner, Analyze
            raise ValueError("no NIfTI-1 file")
        order = _byte_order(header)
        scale = struct.unpack_from(f"{order}4f", header, _PIXDIM)
        codes = struct.unpack_from(f"{order}2h", header, _CODES)
        places = struct.unpack_from(f"{order}18f", header, _PLACES)
        mm = _UNITS.get(header[_XYZT_UNITS] & 7, 1.0)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise _damaged(path) from error
    lengths = [mm * value for value in (*scale[1:], *places[3:])]
    return NiftiForms(*codes, (scale[0], *lengths[:3]), (*places[:3], *lengths[3:6]), tuple(lengths[6:]))


def check_forms(path: Path, shape: tuple[int, int, int], matrix: np.ndarray) -> None:
    """Compare the forms of a file with each other, and with how ITK read it.

    :param shape: (slices, rows, columns).
    :param matrix: 3x4, from (column, row, slice) index to LPS mm, as ITK gives it.
    :raises InputError: a form is sheared, or they differ by more than rounding.
    """
    forms = {name: np.diag([-1.0, -1.0, 1.0]) @ form for name, form in read_forms(path).matrices().items()}
    for form in forms.values():
        if not is_straight(form[:, :3]):
            raise slanted_axes(path)
    for name, form in forms.items():
        if not _agree(form, matrix, shape):
            both = "its qform and its sform" if len(forms) == 2 else f"its {name} and its voxel size"
            raise InputError(
                f"says in two ways where the scan lies, {both}, and they differ",
                path=path,
                hint="export it again from its source, or take away the one that is wrong",
            )


def _agree(form: np.ndarray, matrix: np.ndarray, shape: tuple[int, int, int]) -> bool:
    lengths = [np.linalg.norm(one[:, :3], axis=0) for one in (form, matrix)]
    far = [float(np.abs(form[:, 3] - matrix[:, 3]).max()), *np.abs(lengths[0] - lengths[1]) * shape[::-1]]
    turned = np.abs(form[:, :3] / lengths[0] - matrix[:, :3] / lengths[1]).max()
    return max(far) <= FORM_TOLERANCE_MM and turned <= STRAIGHT_COSINE


def is_straight(axes: np.ndarray) -> bool:
    """Whether the columns of a 3x3 matrix, of any length, are at right angles."""
    lengths = np.linalg.norm(axes, axis=0)
    if not np.all(np.isfinite(axes)) or not np.all(lengths > 0):
        return False
    cosines = (axes / lengths).T @ (axes / lengths)
    return bool(np.abs(cosines - np.eye(3)).max() <= STRAIGHT_COSINE)


def slanted_axes(path: Path) -> InputError:
    """What to say of a grid that is sheared."""
    return InputError(
        "has slanted axes (a tilted gantry, or a registration)",
        path=path,
        hint="resample it to a straight grid in the viewer and save it again",
    )


def write_forms(path: Path, forms: NiftiForms) -> None:
    """Put forms into an uncompressed NIfTI-1 file whose voxel size is in mm, in place of its own.

    :raises ValueError: this is no such file.
    """
    with path.open("r+b") as file:
        header = bytearray(file.read(NIFTI1_SIZE))
        order = _byte_order(header)
        struct.pack_into(f"{order}4f", header, _PIXDIM, *forms.scale)
        struct.pack_into(f"{order}2h", header, _CODES, forms.qform_code, forms.sform_code)
        struct.pack_into(f"{order}18f", header, _PLACES, *forms.quaternion, *forms.srow)
        file.seek(0)
        file.write(header)


def is_second_version(path: Path) -> bool:
    """Whether this is a NIfTI-2 file, which ITK does not read."""
    try:
        with _opened(path) as file:
            return file.read(4) in (struct.pack("<i", NIFTI2_SIZE), struct.pack(">i", NIFTI2_SIZE))
    except (OSError, EOFError, zlib.error):
        return False


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _byte_order(header: bytes) -> str:
    """:raises ValueError: this is no NIfTI-1 header."""
    for order in "<>":
        if struct.unpack_from(f"{order}i", header) == (NIFTI1_SIZE,):
            return order
    raise ValueError("no NIfTI-1 header")


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
        with _opened(path) as file:
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


def holds_voxels(path: Path, values: np.ndarray) -> bool:
    """Whether a NIfTI-1 file (.nii or .nii.gz) holds these values, one by one and as they are.

    Slices are read one at a time: ITK takes memory for all voxels, and for all of them once more while it reads.

    :param values: int16 (slices, rows, columns).
    """
    try:
        with _opened(path) as file:
            header = file.read(NIFTI1_SIZE)
            order, layout = _byte_order(header), _layout(header)
            slope, intercept = struct.unpack_from(f"{order}2f", header, _SCALING)
            if (layout.data_type, layout.size) != (_INT16, values.nbytes) or slope not in (0, 1) or intercept != 0:
                return False
            file.seek(layout.offset)
            for plane in values:
                stored = np.frombuffer(file.read(plane.nbytes), np.dtype(np.int16).newbyteorder(order))
                if not np.array_equal(stored, plane.ravel()):
                    return False
            file.read(1)  # gzip compares its checksum when it meets the end
    except (OSError, EOFError, ValueError, struct.error, zlib.error):
        return False
    return True


def _layout(header: bytes) -> _Layout:
    """:raises ValueError: this is no NIfTI header."""
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
