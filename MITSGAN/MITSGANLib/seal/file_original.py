"""What is sealed of a NRRD, NIfTI or MetaImage file, and that file restored: every value, its type, place and history.

The values are those that ITK reads (with NIfTI's scaling applied), of whatever type. Their HU differ from the protected
ones by the change; what the HU do not tell (fractions, values outside int16) is sealed too. Bytes of the file may
differ in compression. Of a volume that came from elsewhere (DICOM) the HU and the geometry are sealed, no headers.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, OutputError
from ..files.nifti import NiftiForms, holds_voxels, read_forms
from ..files.volume_files import (
    GEOMETRY_TOLERANCE_MM,
    format_of,
    header_text,
    image_of,
    image_reader,
    read_metadata,
    same_voxels,
    write_image,
)
from ..scan.plausibility import to_hu
from ..scan.volume import CTVolume
from .change import decode_change, encode_change, pack, slice_signs, unpack

KIND = "volume"
_NOT_EXACT = "The seal does not give the original exactly; report this, and keep the protected scan."


@dataclass(frozen=True, eq=False)
class StoredImage:
    """The values of a file as ITK reads them, (slices, rows, columns), with geometry (LPS mm) and header entries.

    :param forms: how NIfTI says the geometry.
    """

    values: np.ndarray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    format: str
    metadata: Mapping[str, str]
    forms: NiftiForms | None = None

    @classmethod
    def read(cls, path: Path, known: np.ndarray | None = None) -> StoredImage:
        """Read a NRRD, NIfTI or MetaImage file.

        :param known: what its values may be; where they are, they are in memory once.
        :raises InputError: the file is damaged.
        """
        import SimpleITK as sitk

        reader = image_reader(path)
        is_nifti = format_of(path).name == "nifti"
        try:
            if is_nifti and known is not None and holds_voxels(path, known):
                values = known
            else:
                image = reader.Execute()
                view = sitk.GetArrayViewFromImage(image)
                is_known = known is not None and view.dtype == known.dtype and same_voxels(view, known)
                values = known if is_known else view.copy()
        except RuntimeError as error:
            raise InputError("is damaged or incomplete", path=path, hint="copy or export it again") from error
        return cls(
            values,
            reader.GetSpacing(),
            reader.GetOrigin(),
            reader.GetDirection(),
            format_of(path).name,
            read_metadata(reader),
            read_forms(path) if is_nifti else None,
        )

    @classmethod
    def of(cls, volume: CTVolume) -> StoredImage:
        """The file that a volume was read from; where it came from none, a file of its HU."""
        source = Path(volume.provenance.source)
        file_format = format_of(source)
        if file_format and file_format.name == volume.provenance.format and source.is_file():
            image = cls.read(source, volume.hu)
            if image.values is volume.hu or np.array_equal(to_hu(image.values)[0], volume.hu):
                return image
            raise InputError("was changed while it was worked on", path=source, hint="run the command again")
        return cls(volume.hu, volume.spacing, volume.origin, tuple(volume.direction.ravel().tolist()), "", {})

    def write(self, path: Path, destination: Path) -> None:
        """Write compressed, and read back to see that every value is there.

        :param destination: where the file will be, which errors name.
        :raises OutputError: the file cannot be written completely.
        """
        is_as_sealed = format_of(path).name == self.format
        # Earlier seals hold text that is no UTF-8 as it was read.
        entries = {key: header_text(text) for key, text in self.metadata.items()} if is_as_sealed else {}
        image = image_of(self.values, self, entries)
        try:
            write_image(image, path, destination, self.forms if is_as_sealed else None)
            written = StoredImage.read(path)
        except InputError as error:
            raise OutputError(
                "could not be written", path=destination, hint="check the free space on the disk"
            ) from error
        if written.values.dtype != self.values.dtype or written.values.tobytes() != self.values.tobytes():
            raise OutputError(
                f"cannot hold the original's values of type {self.values.dtype} exactly",
                path=destination,
                hint="give a name that ends in .nrrd",
            )


def identity(volume: CTVolume) -> dict[str, Any]:
    """What a protected volume is: SHA-256 over its HU, and its geometry."""
    return {
        "kind": KIND,
        "shape": list(volume.shape),
        "spacing": list(volume.spacing),
        "origin": list(volume.origin),
        "direction": volume.direction.ravel().tolist(),
        "hu_sha256": hashlib.sha256(_little(volume.hu)).hexdigest(),
    }


def is_same(volume: CTVolume, sealed: Mapping[str, Any]) -> bool:
    """Whether a volume is the one of an identity; NIfTI may have moved it by its rounding."""
    mine = identity(volume)
    if any(sealed.get(name) != mine[name] for name in ("kind", "shape", "hu_sha256")):
        return False
    then = CTVolume(volume.hu, sealed["spacing"], sealed["origin"], np.array(sealed["direction"]))
    return volume.same_geometry(then, GEOMETRY_TOLERANCE_MM)


def describe_image(original: StoredImage, protected: CTVolume, watermark: Mapping[str, Any] | None = None) -> bytes:
    """The payload that turns ``protected`` back into ``original``, of the same shape.

    :param watermark: record of the watermark that ``protected`` carries, where it is known; makes it shorter.
    """
    values = original.values
    hu = values if values.dtype == np.int16 else to_hu(values)[0]
    facts = {
        "type": values.dtype.newbyteorder("<").str,
        "sha256": hashlib.sha256(_little(values)).hexdigest(),
        "spacing": original.spacing,
        "origin": original.origin,
        "direction": original.direction,
        "format": original.format,
        "metadata": dict(original.metadata),
        "watermark": watermark,
    }
    if original.forms:
        facts["forms"] = original.forms.to_text()
    parts = {"change": encode_change(hu, protected.hu, protected.hu, slice_signs(watermark, protected.hu))}
    if values.dtype != np.int16:
        remainder = np.bitwise_xor(_bits(values), _bits(hu.astype(values.dtype)))
        parts["remainder"] = lzma.compress(_little(remainder))
    return pack(facts, parts)


def check_payload(payload: bytes, protected: CTVolume) -> None:
    """Refuse a payload that does not give the original; of 16-bit values without all of them in memory.

    :raises InputError: it does not.
    """
    facts, parts = unpack(payload)
    if "remainder" in parts:
        restored_image(payload, protected)
        return
    digest = hashlib.sha256()
    for plane in _planes(facts, parts, protected):
        digest.update(_little(plane))
    if digest.hexdigest() != facts["sha256"]:
        raise InputError(_NOT_EXACT)


def _planes(facts: Mapping[str, Any], parts: Mapping[str, bytes], protected: CTVolume) -> Iterator[np.ndarray]:
    """The HU of the original, slice after slice."""
    signs = slice_signs(facts.get("watermark"), protected.hu)
    return decode_change(parts["change"], protected.hu, protected.hu, signs)


def restored_image(payload: bytes, protected: CTVolume) -> StoredImage:
    """The original of a payload.

    :raises InputError: it is not what was sealed.
    """
    facts, parts = unpack(payload)
    values = np.empty_like(protected.hu)
    for k, plane in enumerate(_planes(facts, parts, protected)):
        values[k] = plane
    dtype = np.dtype(facts["type"]).newbyteorder("=")
    if "remainder" in parts:
        bits = _bits(values.astype(dtype))
        little = bits.dtype.newbyteorder("<")
        remainder = np.frombuffer(lzma.decompress(parts["remainder"]), little).reshape(bits.shape)
        values = np.bitwise_xor(bits, remainder).astype(bits.dtype, copy=False).view(dtype)
    if hashlib.sha256(_little(values)).hexdigest() != facts["sha256"]:
        raise InputError(_NOT_EXACT)
    geometry = (tuple(facts[name]) for name in ("spacing", "origin", "direction"))
    forms = NiftiForms.from_text(facts["forms"]) if "forms" in facts else None
    return StoredImage(values, *geometry, facts["format"], facts["metadata"], forms)


def _bits(values: np.ndarray) -> np.ndarray:
    """The bits of numbers of any type as unsigned integers."""
    return values.view(f"u{values.dtype.itemsize}")


def _little(values: np.ndarray) -> np.ndarray:
    """Numbers such that their bytes in memory are little-endian and in order; the same array where they are."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
