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

# Data type codes of nifti1.h: that of HU, and those that can hold NaN.
_INT16, _REAL_TYPES = 4, {16: np.float32, 64: np.float64}
_CHUNK_BYTES = 1 << 24  # a multiple of every size in _REAL_TYPES

# What a voxel's place may differ by between two ways to say it: more than rounding makes, less than anyone could see.
FORM_TOLERANCE_MM = 0.1
# Cosine between two axes of a grid that counts as straight, and between the same axes said in two ways: near half a
# turn, where most CT lies, a quaternion of 32 bits holds no angle more exactly than 7e-4.
STRAIGHT_COSINE = 1e-3
# In mm, by the lowest three bits of xyzt_units.
_UNITS = {1: 1000.0, 3: 0.001}

# What is read of a NIfTI-1 header: type and place of each field of nifti1.h.
_FIELDS = np.dtype(
    {
        "sizeof_hdr": ("i4", 0),
        "dim": ("8i2", 40),
        "datatype": ("i2", 70),
        "bitpix": ("i2", 72),
        "pixdim": ("8f4", 76),
        "vox_offset": ("f4", 108),
        "slope_and_intercept": ("2f4", 112),
        "xyzt_units": ("u1", 123),
        "form_codes": ("2i2", 252),
        "quaternion_and_offset": ("6f4", 256),
        "srow": ("12f4", 280),
        "magic": ("S4", 344),
    }
)
_SECOND_VERSION_SIZE = 540
_FORMS = struct.Struct("<2i22d")
# What reading foreign bytes meets.
_UNREADABLE = (OSError, EOFError, OverflowError, ValueError, zlib.error)


@dataclass(frozen=True)
class NiftiForms:
    """The two ways in which a header says where its voxels lie, in mm of RAS. A code of 0 means: not said.

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
        import SimpleITK as sitk

        b, c, d = self.quaternion[:3]
        a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        rotation = np.reshape(sitk.VersorTransform((b, c, d, a)).GetMatrix(), (3, 3))
        qfac, i, j, k = self.scale
        return np.column_stack([rotation * (i, j, -k if qfac < 0 else k), self.quaternion[3:]])


def read_forms(path: Path) -> NiftiForms:
    """:raises InputError: the header is damaged."""
    try:
        with _opened(path) as file:
            header = _header(file.read(_FIELDS.itemsize))
    except _UNREADABLE as error:
        raise _damaged(path) from error
    if header["magic"] != b"n+1":  # ITK would take it for its forerunner, Analyze
        raise _damaged(path)
    mm = _UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
    (qfac, *spacing), quaternion = header["pixdim"][:4].tolist(), header["quaternion_and_offset"].tolist()
    lengths = [[mm * value for value in values] for values in (spacing, quaternion[3:], header["srow"].tolist())]
    return NiftiForms(
        *header["form_codes"].tolist(),
        scale=(qfac, *lengths[0]),
        quaternion=(*quaternion[:3], *lengths[1]),
        srow=tuple(lengths[2]),
    )


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
        content = bytearray(file.read(_FIELDS.itemsize))
        header = _header(content)
        header["pixdim"][:4] = forms.scale
        header["form_codes"] = forms.qform_code, forms.sform_code
        header["quaternion_and_offset"], header["srow"] = forms.quaternion, forms.srow
        file.seek(0)
        file.write(content)


def is_second_version(path: Path) -> bool:
    """Whether this is a NIfTI-2 file, which ITK does not read."""
    try:
        with _opened(path) as file:
            return file.read(4) in [struct.pack(f"{order}i", _SECOND_VERSION_SIZE) for order in "<>"]
    except _UNREADABLE:
        return False


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _header(content: bytes | bytearray) -> np.void:
    """The fields of a header, in its byte order. Those of a bytearray can be set.

    :raises ValueError: this is no NIfTI-1 header.
    """
    for order in "<>":
        header = np.frombuffer(content, _FIELDS.newbyteorder(order), 1)[0]
        if header["sizeof_hdr"] == _FIELDS.itemsize:
            return header
    raise ValueError("no NIfTI-1 header")


def _stored_type(header: np.void, kind: type) -> np.dtype:
    """A type of numbers in the byte order of a file."""
    return np.dtype(kind).newbyteorder(header.dtype["datatype"].byteorder)


def _stored_bytes(header: np.void) -> int:
    """What all voxels take in the file."""
    axes, *sizes = header["dim"].tolist()
    return math.prod(sizes[:axes]) * int(header["bitpix"]) // 8


def check_nifti(path: Path) -> None:
    """Read through a NIfTI-1 file (.nii or .nii.gz) once.

    :raises InputError: the file ends early or is corrupt, or a voxel is NaN or infinite.
    """
    is_finite = True
    try:
        with _opened(path) as file:
            header = _header(file.read(_FIELDS.itemsize))
            real, missing = _REAL_TYPES.get(int(header["datatype"])), _stored_bytes(header)
            file.seek(int(header["vox_offset"]))
            while missing and (chunk := file.read(min(_CHUNK_BYTES, missing))):
                missing -= len(chunk)
                if real and len(chunk) % np.dtype(real).itemsize == 0:
                    is_finite = is_finite and bool(np.isfinite(np.frombuffer(chunk, _stored_type(header, real))).all())
            file.read(1)  # gzip compares its checksum when it meets the end
    except _UNREADABLE as error:
        raise _damaged(path) from error
    if missing:
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
            header = _header(file.read(_FIELDS.itemsize))
            slope, intercept = header["slope_and_intercept"].tolist()
            if (header["datatype"], _stored_bytes(header)) != (_INT16, values.nbytes):
                return False
            if slope not in (0, 1) or intercept != 0:
                return False
            file.seek(int(header["vox_offset"]))
            for plane in values:
                if not np.array_equal(
                    np.frombuffer(file.read(plane.nbytes), _stored_type(header, np.int16)), plane.ravel()
                ):
                    return False
            file.read(1)  # gzip compares its checksum when it meets the end
    except _UNREADABLE:
        return False
    return True


def _damaged(path: Path) -> InputError:
    return InputError("is damaged or incomplete", path=path, hint="copy or export it again")
