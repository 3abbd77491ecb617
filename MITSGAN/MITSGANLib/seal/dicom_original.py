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
import itertools
import lzma
import math
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..files.dicom.derive import keep_lossy_history
from ..files.dicom.encoded import EncodedFile, new_item
from ..files.dicom.frames import Frame, frames_of
from ..files.dicom.headers import Header, damaged_file, quiet_pydicom, read_dataset, read_encoded, read_header
from ..files.dicom.pixels import decode_frames, decode_stored, shown_hu
from ..files.dicom.write import new_meta, pixel_changes
from ..scan.volume import VolumeWarning
from .change import Slices, decode_change, encode_change, pack, slice_signs, unpack

if TYPE_CHECKING:
    from pydicom import Dataset

KIND = "dicom"

# Archives correct these when patients are merged or identified.
_CORRECTED = ("PatientID", "PatientName", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID")


class StoredSeries:
    """Stored integers (int16 or uint16) and frames of a series, read file by file.

    :param frames: of each file.
    :param planes: (rows, columns) of each frame, in the order of the files.
    :param hu: the same in HU, int16.
    :raises InputError: a file is no DICOM image of CT, or damaged.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.frames: list[list[Frame]] = []
        for path in paths:
            header = read_header(path)
            if header is None:
                raise damaged_file(path)
            self.frames.append(frames_of(header))
        self._of_planes = list(itertools.chain(*self.frames))
        self._file: tuple[Path | None, np.ndarray] = (None, np.empty(0))
        self.planes = Slices(len(self._of_planes), self._plane)
        self.hu = Slices(len(self._of_planes), lambda k: shown_hu(self.planes[k], self.frame(k)))

    def frame(self, k: int) -> Frame:
        """Where plane ``k`` lies."""
        return self._of_planes[k]

    def _plane(self, k: int) -> np.ndarray:
        frame = self.frame(k)
        if self._file[0] != frame.path:
            self._file = frame.path, decode_frames(read_dataset(frame.path), [frame])
        return self._file[1][frame.index]


def identity(series: StoredSeries) -> dict[str, Any]:
    """What these files are as an image: SHA-256 over stored integers, positions, spacing and rescale.

    UIDs and names are left out, which archives may change, and so is the encoding.
    """
    digest = hashlib.sha256()
    for k, plane in enumerate(series.planes):
        frame = series.frame(k)
        numbers = (*frame.position, *frame.orientation, *frame.pixel_spacing, frame.slope, frame.intercept)
        digest.update(struct.pack("<4i13d", *plane.shape, frame.bits, frame.signed, *numbers))
        digest.update(plane.astype(plane.dtype.newbyteorder("<")).tobytes())
    return {"kind": KIND, "files": len(series.paths), "image_sha256": digest.hexdigest()}


def describe_series(
    originals: Iterable[Path], protected: StoredSeries, watermark: Mapping[str, Any] | None = None
) -> bytes:
    """The payload that turns ``protected`` back into ``originals``, given file by file in the same order.

    :param watermark: record of the watermark that ``protected`` carries, where it is known; makes it shorter.
    :raises InputError: an original is damaged or gone.
    """
    digest, around, facts, unused = hashlib.sha256(), [], [], []
    # Unpacked once, and asked for twice.
    with tempfile.TemporaryFile(dir=protected.paths[0].parent.parent) as spool:
        for path in originals:
            file = _as_restored(path)
            data = file.data
            start, end, is_little_endian = _pixel_span(data, file.dataset, path)
            digest.update(data)
            around += [data[:start], data[end:]]
            stored = decode_frames(file.dataset, frames_of(Header(path, file.dataset)))
            spool.write(stored.tobytes())
            words = np.frombuffer(data[start:end], "<u2" if is_little_endian else ">u2")
            differing = words ^ stored.view(np.uint16).ravel()
            unused.append(bz2.compress(differing.astype("<u2").tobytes()) if differing.any() else b"")
            sizes = {"before": start, "after": len(data) - end, "unused": len(unused[-1])}
            facts.append({**sizes, "little_endian": is_little_endian})
        shape, dtype = stored[0].shape, stored.dtype
        size = math.prod(shape) * dtype.itemsize

        def original(k: int) -> np.ndarray:
            spool.seek(k * size)
            return np.frombuffer(spool.read(size), dtype).reshape(shape)

        planes = protected.planes
        signs = slice_signs(watermark, protected.hu)
        change = encode_change(Slices(len(planes), original), planes, protected.hu, signs)
    parts = {"change": change, "around": lzma.compress(b"".join(around)), "unused": b"".join(unused)}
    return pack({"files": facts, "sha256": digest.hexdigest(), "watermark": watermark}, parts)


def restored_files(payload: bytes, protected: StoredSeries) -> Iterator[bytes]:
    """The bytes of each original, in order.

    :raises InputError: they are not what was sealed; after the last.
    """
    facts, parts = unpack(payload)
    signs = slice_signs(facts.get("watermark"), protected.hu)
    stored = decode_change(parts["change"], protected.planes, protected.hu, signs)
    around, unused, digest = BytesIO(lzma.decompress(parts["around"])), BytesIO(parts["unused"]), hashlib.sha256()
    for fact, frames in zip(facts["files"], protected.frames, strict=True):
        words = np.concatenate([plane.view(np.uint16).ravel() for plane in itertools.islice(stored, len(frames))])
        if fact["unused"]:
            words = words ^ np.frombuffer(bz2.decompress(unused.read(fact["unused"])), "<u2")
        pixels = words.astype("<u2" if fact["little_endian"] else ">u2").tobytes()
        data = around.read(fact["before"]) + pixels + around.read(fact["after"])
        digest.update(data)
        yield data
    if digest.hexdigest() != facts["sha256"]:
        raise InputError("The seal does not give the original files exactly; report this, and keep the protected scan.")


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
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = read_encoded(path)
    syntax = file.dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated and syntax != DeflatedExplicitVRLittleEndian:
        return file
    buffer = BytesIO()
    with quiet_pydicom():
        lossy = new_item()
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
