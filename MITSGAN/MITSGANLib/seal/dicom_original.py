"""What is sealed of a DICOM series, and its files restored: every byte of them.

A file is its pixel words and the bytes before and after. The words differ from the protected ones by the change, and in
the bits above Bits Stored, where old scanners put overlays; both are sealed, and so are the other bytes. So a restored
file *is* the original, and may carry its SOP Instance UID. Only files that were compressed or deflated come back
otherwise: the same data set with the same pixels, uncompressed (Explicit VR Little Endian), which PS3.3 C.12.1.1 and
PS3.4 C.4.2 let keep its UID, as an archive does that sends it to a receiver without that compression.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..files.dicom.derive import keep_lossy_history
from ..files.dicom.encoded import EncodedFile
from ..files.dicom.frames import Frame, frames_of
from ..files.dicom.headers import Header, damaged_file, quiet_pydicom, read_dataset, read_encoded, read_header
from ..files.dicom.pixels import decode_stored, to_int16_hu
from ..files.dicom.write import new_meta, pixel_changes
from ..scan.volume import VolumeWarning
from .change import decode_change, encode_change
from .known_signs import from_record, signs_of_slices
from .packing import Reader, pack, unpack

if TYPE_CHECKING:
    from pydicom import Dataset

    from ..watermark.pattern import ScanSigns

KIND = "dicom"

# Archives correct these when patients are merged or identified.
_CORRECTED = ("PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID")


@dataclass(frozen=True)
class StoredFile:
    """Stored integers (frames, rows, columns) of a DICOM file, int16 or uint16, and where its frames lie."""

    path: Path
    frames: tuple[Frame, ...]
    stored: np.ndarray

    @classmethod
    def read(cls, path: Path) -> StoredFile:
        """Read a DICOM file.

        :raises InputError: no DICOM image of CT, or a damaged one.
        """
        header = read_header(path)
        if header is None:
            raise damaged_file(path)
        return cls.of(header, read_dataset(path))

    @classmethod
    def of(cls, header: Header, dataset: Dataset) -> StoredFile:
        """The file of a header whose data set is already read."""
        frames = tuple(frames_of(header))
        return cls(header.path, frames, decode_stored(dataset, header.path, unused_bits=frames[0].needs_unused_bits))

    def hu(self) -> list[np.ndarray]:
        """The HU (rows, columns) of each frame, int16."""
        return [to_int16_hu(frame.hu(plane)) for frame, plane in zip(self.frames, self.stored, strict=True)]


def identity(files: Sequence[StoredFile]) -> dict[str, Any]:
    """What these files are as an image: SHA-256 over stored integers, positions, spacing and rescale.

    UIDs and names are left out, which archives may change, and so is the encoding.
    """
    digest = hashlib.sha256()
    for file in files:
        for frame, plane in zip(file.frames, file.stored, strict=True):
            numbers = (*frame.position, *frame.orientation, *frame.pixel_spacing, frame.slope, frame.intercept)
            digest.update(struct.pack("<4i13d", *plane.shape, frame.stored.bits, frame.stored.signed, *numbers))
            digest.update(plane.astype(plane.dtype.newbyteorder("<")).tobytes())
    return {"kind": KIND, "files": len(files), "image_sha256": digest.hexdigest()}


def describe_series(
    originals: Sequence[Path], protected: Sequence[StoredFile], watermark: ScanSigns | None = None
) -> bytes:
    """The payload that turns ``protected`` back into ``originals``, given file by file in the same order.

    :param watermark: the signs of the watermark that ``protected`` carries, where they are known; make it shorter.

    :raises InputError: an original is damaged or gone.
    """
    digest = hashlib.sha256()
    around, facts, stored, unused = [], [], [], []
    for path in originals:
        file = _as_restored(path)
        data = file.data
        start, end, is_little_endian = _pixel_span(data, file.dataset, path)
        digest.update(data)
        around += [data[:start], data[end:]]
        stored.append(StoredFile.of(Header(path, file.dataset), file.dataset).stored)
        differing = _words(data[start:end], is_little_endian) ^ stored[-1].view(np.uint16).ravel()
        unused.append(bz2.compress(differing.astype("<u2").tobytes()) if differing.any() else b"")
        fact = {"before": start, "after": len(data) - end, "unused": len(unused[-1]), "little_endian": is_little_endian}
        facts.append(fact)
    after, hu = np.concatenate([file.stored for file in protected]), _all_hu(protected)
    parts = {
        "change": encode_change(np.concatenate(stored), after, hu, signs_of_slices(watermark, hu)),
        "around": lzma.compress(b"".join(around)),
        "unused": b"".join(unused),
    }
    return pack({"files": facts, "sha256": digest.hexdigest(), "watermark": watermark and watermark.to_dict()}, parts)


def restored_files(payload: bytes, protected: Sequence[StoredFile]) -> list[bytes]:
    """The bytes of each original, in order.

    :raises InputError: they are not what was sealed.
    """
    facts, parts = unpack(payload)
    after, hu = np.concatenate([file.stored for file in protected]), _all_hu(protected)
    stored = decode_change(parts["change"], after, hu, signs_of_slices(from_record(facts.get("watermark")), hu))
    around, unused = Reader(lzma.decompress(parts["around"])), Reader(parts["unused"])
    files, digest, first = [], hashlib.sha256(), 0
    for fact, file in zip(facts["files"], protected, strict=True):
        words = stored[first : first + len(file.stored)].view(np.uint16).ravel()
        if fact["unused"]:
            words = words ^ np.frombuffer(bz2.decompress(unused.take(fact["unused"])), "<u2")
        pixels = words.astype("<u2" if fact["little_endian"] else ">u2").tobytes()
        files.append(around.take(fact["before"]) + pixels + around.take(fact["after"]))
        digest.update(files[-1])
        first += len(file.stored)
    if digest.hexdigest() != facts["sha256"]:
        raise InputError("The seal does not give the original files exactly; report this, and keep the protected scan.")
    return files


def correction_warnings(protected: Path, restored: bytes) -> tuple[VolumeWarning, ...]:
    """A warning where identifying elements of a protected file were corrected after protection."""
    original = read_dataset(BytesIO(restored), stop_before_pixels=True)
    current = read_dataset(protected, stop_before_pixels=True)
    with quiet_pydicom():
        changed = [word for word in _CORRECTED if str(original.get(word) or "") != str(current.get(word) or "")]
    if not changed:
        return ()
    text = f"{', '.join(changed)} of the protected files were changed since; the restored files have the original ones."
    return (VolumeWarning("headers-changed", text),)


def _as_restored(path: Path) -> EncodedFile:
    """A file as it will be restored: itself, or the same uncompressed."""
    from pydicom import Dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = read_encoded(path)
    syntax = file.dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated and syntax != DeflatedExplicitVRLittleEndian:
        return file
    buffer = BytesIO()
    with quiet_pydicom():
        lossy = Dataset()
        keep_lossy_history(file.dataset, lossy)
        changes = pixel_changes(file, decode_stored(file.dataset, path, unused_bits=True))
        changes |= {element.tag: element for element in lossy}
        file.write(buffer, changes, new_meta(file, file.dataset.SOPInstanceUID))
        return EncodedFile.parse(buffer.getvalue())


def _pixel_span(data: bytes, dataset: Dataset, path: Path) -> tuple[int, int, bool]:
    """Where the pixel words of an uncompressed file begin and end, and whether they are little-endian."""
    element = dataset.get_item("PixelData")
    frames = int(dataset.get("NumberOfFrames") or 1)
    start = element.value_tell if element is not None else 0
    end = start + 2 * frames * int(dataset.Rows) * int(dataset.Columns)
    if element is None or data[start:end] != element.value[: end - start]:
        raise damaged_file(path)
    return start, end, element.is_little_endian


def _words(data: bytes, is_little_endian: bool) -> np.ndarray:
    return np.frombuffer(data, "<u2" if is_little_endian else ">u2").astype(np.uint16)


def _all_hu(files: Sequence[StoredFile]) -> list[np.ndarray]:
    return [plane for file in files for plane in file.hu()]
