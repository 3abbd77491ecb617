"""``CTVolume`` -> a new derived DICOM series that keeps the original headers."""

from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import OutputError
from ...runtime.progress import Progress
from ...scan.volume import CTVolume, VolumeWarning
from ..atomic import atomic_folder, refuse_existing_folder
from .derive import Derivation, derived_elements
from .drill import Drill, drill_step
from .encoded import PIXEL_DATA, SOP_INSTANCE_UID, EncodedFile, native_syntax, new_uid, tags_of
from .frames import Frame, slices_by_file
from .geometry import Stack
from .headers import Header, damage_named, has_dicom_preamble, quiet_pydicom, read_encoded, read_header, require_pydicom
from .pixels import decode_frames, decode_stored, shown_hu, stored_for_hu
from .read import stack_of_last, stack_series
from .series import DicomSeries, list_files

if TYPE_CHECKING:
    from pydicom.dataset import FileMetaDataset

    from .encoded import Element


# Why voxels of a written series do not show the volume's HU: the names of the warnings, and what they say.
_MISSED = {
    "padding-kept": "{} voxels of padding differ in the volume; the original padding was written.",
    "quantized-by-rescale": "{} voxels have HU that the original's storage cannot show; the nearest was written.",
}


def write_series(
    volume: CTVolume,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    drill: Drill | None = None,
) -> tuple[VolumeWarning, ...]:
    """Write a volume that was read from DICOM as a new derived series in the same study.

    Headers come from the files in ``volume.provenance.dicom_files``, which must still be there. The files of the new
    series are named in slice order (IM0001.dcm ...); Enhanced CT gives one file. Voxels whose HU did not change keep
    their stored integer. Uncompressed sources keep their transfer syntax, compressed ones become Explicit VR Little
    Endian.

    :param folder: the new folder; an existing one that is not empty is replaced as a whole, only with ``overwrite`` and
        only when it holds nothing but DICOM.
    :param drill: for a simulated attack, which is written as a drill's series alone, in a study of its own; its history
        is not told.
    :returns: what the written series does not show exactly as the volume: ``padding-kept``, ``quantized-by-rescale``.
    :raises OutputError: the volume is a simulated attack, has no DICOM originals or not their geometry, or the folder
        cannot be written.
    :raises InputError: an original file is damaged.
    """
    folder = Path(folder)
    check_series_output(volume, folder, overwrite=overwrite, is_drill=drill is not None)
    require_pydicom()
    stack = _source_stack(volume)
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        return _write_slices(volume, stack, temporary, progress, drill)


def check_series_output(
    volume: CTVolume, folder: str | os.PathLike[str], *, overwrite: bool = False, is_drill: bool = False
) -> None:
    """Refuse at once what :func:`write_series` would refuse for the volume's history or the folder's contents."""
    folder, provenance = Path(folder), volume.provenance
    if provenance.is_simulated_attack and not is_drill:
        raise OutputError(
            "A simulated attack is never written as DICOM, so that it cannot pass for a patient's scan; write it as "
            ".nrrd."
        )
    if not provenance.dicom_files:
        raise OutputError(
            f"The volume came from {provenance.format}, so there are no original DICOM headers to keep; write it as "
            ".nrrd, or start from the DICOM series."
        )
    if provenance.dicom_problem:
        raise OutputError(
            f"The original series {provenance.dicom_problem}",
            hint="anonymize it anew so that UIDs are replaced and not removed, or write the volume as .nrrd",
        )
    target = folder.resolve()
    if any(target in Path(file).resolve().parents for file in provenance.dicom_files):
        raise OutputError(
            "holds the original series, which is never overwritten", path=folder, hint="choose another folder"
        )
    if overwrite:
        refuse_foreign_files(folder)
    refuse_existing_folder(folder, overwrite)


def refuse_foreign_files(folder: Path) -> None:
    """Raise ``OutputError`` where a folder that is to be replaced holds a file that is not DICOM."""
    if folder.is_dir():
        foreign = next((file for file in list_files(folder) if not has_dicom_preamble(file)), None)
        if foreign:
            raise OutputError(
                f"holds files that are not DICOM, such as {foreign.name}", path=folder, hint="choose another folder"
            )


def _source_stack(volume: CTVolume) -> Stack:
    """The originals of a volume, checked to be the ones it was read from."""
    stack = stack_of_last(volume.provenance.dicom_files)
    if stack is None:
        headers = [_source_header(Path(file)) for file in volume.provenance.dicom_files]
        stack = stack_series(DicomSeries(volume.provenance.series_instance_uid or "", tuple(headers)))
    original = CTVolume(
        np.broadcast_to(np.int16(0), stack.shape), stack.spacing, stack.origin, stack.direction, volume.provenance
    )
    if not volume.same_geometry(original):
        raise OutputError(
            "The volume's size or position differs from the original DICOM series, so their headers do not fit; write "
            "it as .nrrd."
        )
    return stack


def _source_header(path: Path) -> Header:
    header = read_header(path) if path.is_file() else None
    if header is None:
        raise OutputError(
            "is gone, and the header of this original is needed", path=path, hint="restore it, or write .nrrd"
        )
    return header


def _write_slices(
    volume: CTVolume, stack: Stack, folder: Path, progress: Progress | None, drill: Drill | None
) -> tuple[VolumeWarning, ...]:
    uid = drill.series_uid if drill else new_uid()
    steps = (drill_step(),) if drill else volume.provenance.steps
    derivation = Derivation(uid, datetime.datetime.now(datetime.UTC), steps, drill)
    files = slices_by_file(stack.frames)
    digits = max(4, len(str(len(files))))
    missed: Counter[str] = Counter()
    done = 0
    for number, (path, slices) in enumerate(files.items(), start=1):
        if progress:
            progress(done, len(stack.frames))
        file = read_encoded(path)
        with quiet_pydicom():
            words = _new_words(file, volume, stack, slices, missed)
            with damage_named(path):
                headers = derived_elements(file.dataset, derivation)
            changes = {**headers, **pixel_changes(file, words)}
            meta = new_meta(file, changes[SOP_INSTANCE_UID].value)
            with (folder / f"IM{number:0{digits}d}.dcm").open("wb") as stream:
                file.write(stream, changes, meta)
        done += len(slices)
    if progress:
        progress(done, len(stack.frames))
    return tuple(VolumeWarning(name, text.format(missed[name])) for name, text in _MISSED.items() if missed[name])


def _new_words(
    file: EncodedFile, volume: CTVolume, stack: Stack, slices: Sequence[int], missed: Counter[str]
) -> np.ndarray:
    """Pixel words (frames, rows, columns) of one file for the volume's ``slices``. Adds what they cannot show."""
    frames = [stack.frames[k] for k in slices]
    original = decode_frames(file.dataset, frames)
    stored = original.copy()
    for k, frame in zip(slices, frames, strict=True):
        stored[frame.index] = stored_for_hu(volume.hu[k], original[frame.index], frame)
        differs = shown_hu(stored[frame.index], frame) != volume.hu[k]
        if differs.any():
            is_padding = frame.is_padding(original[frame.index])
            missed["padding-kept"] += np.count_nonzero(differs & is_padding)
            missed["quantized-by-rescale"] += np.count_nonzero(differs & ~is_padding)
    return _with_overlay(file, stored, frames[0])


def _with_overlay(file: EncodedFile, stored: np.ndarray, frame: Frame) -> np.ndarray:
    """Put back overlay planes that old scanners packed into the unused high bits of pixel words (retired in 2004)."""
    has_overlays = any(tag & 0xFFFF == 0x0102 and tag >> 16 in range(0x6000, 0x6020) for tag, _, _ in file.spans)
    if frame.bits == 16 or not has_overlays:
        return stored
    used = np.uint16((1 << frame.bits) - 1)
    words = decode_stored(file.dataset, frame.path, unused_bits=True).view(np.uint16)
    return words & ~used | stored.view(np.uint16) & used


def pixel_changes(file: EncodedFile, words: np.ndarray) -> dict[int, Element | None]:
    """The elements that put uncompressed 16-bit words in place of a file's pixels.

    :param words: (frames, rows, columns), int16 or uint16.
    """
    from pydicom import DataElement

    words = words.astype(words.dtype.newbyteorder("<" if file.dataset.original_encoding[1] else ">"), copy=False)
    packed = dict.fromkeys(tags_of(["ExtendedOffsetTable", "ExtendedOffsetTableLengths"]))
    return {**packed, PIXEL_DATA: DataElement(PIXEL_DATA, "OW", words.tobytes())}


def new_meta(file: EncodedFile, instance_uid: str) -> FileMetaDataset:
    """New file meta information: the writer is MITSGAN by pydicom, not the scanner (PS3.10 7.1), with pixels unpacked.

    The transfer syntax stays where it is uncompressed.
    """
    from pydicom.dataset import FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = file.dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = instance_uid
    meta.TransferSyntaxUID = native_syntax(*file.dataset.original_encoding)
    return meta
