"""A scan as it is signed and verified: its voxels, and for DICOM what each file says of its slices.

What is to be verified may be broken on purpose: slices missing, double, or of another series. Such a folder is no
``CTVolume``, and is read as a heap of single slices instead, each where its own header puts it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..files import volume_files
from ..files.dicom.frames import frames_of
from ..files.dicom.geometry import stack_frames
from ..files.dicom.headers import Header, damage_named, quiet_pydicom, read_dataset
from ..files.dicom.pixels import decode_frames, shown_hu
from ..files.dicom.private_block import get_entry
from ..files.dicom.read import read_series
from ..files.dicom.series import DicomSeries, image_problem, scan_dicom
from ..files.storage import load_volume
from ..runtime.progress import Progress
from ..scan.volume import CTVolume
from .digests import Headers, read_headers
from .manifest import read_document

if TYPE_CHECKING:
    from pydicom import Dataset

ENTRY = "manifest"


@dataclass(frozen=True)
class ImageFile:
    """One DICOM file: its signed headers, and the share of a manifest in it, if any (checked by nobody yet)."""

    path: Path
    headers: Headers
    share: bytes | None


@dataclass(frozen=True)
class LooseSlice:
    """One slice of a heap: a volume of a single slice, and the file that it came from."""

    volume: CTVolume
    file: ImageFile


@dataclass(frozen=True)
class ScanContents:
    """A scan that was read: its ``volume`` and, for DICOM, ``images``, the file of each slice in slice order.

    Where ``problem`` says why the slices form no volume, ``loose`` is a heap of them; ``unreadable`` files hold none.
    """

    path: Path
    format: str
    volume: CTVolume | None = None
    images: tuple[ImageFile, ...] = ()
    loose: tuple[LooseSlice, ...] = ()
    unreadable: tuple[Path, ...] = ()
    problem: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The DICOM files, each once."""
        return tuple(self._by_path)

    @property
    def shares(self) -> Iterator[bytes]:
        """What the files carry of manifests, each once."""
        return (image.share for image in self._by_path.values() if image.share is not None)

    @property
    def _by_path(self) -> dict[Path, ImageFile]:
        return {image.path: image for image in (*self.images, *(one.file for one in self.loose))}


def read_contents(
    path: str | os.PathLike[str], series: str | None = None, progress: Progress | None = None
) -> ScanContents:
    """Read a scan that forms a volume, as :func:`storage.load_volume` does, with what its DICOM files say.

    :raises InputError: as ``load_volume``.
    """
    path = Path(path)
    with damage_named(path, volume_files.damaged_file if volume_files.format_of(path) else None):
        volume = load_volume(path, series, progress)
    return contents_of(volume, path)


def contents_of(volume: CTVolume, path: Path) -> ScanContents:
    """A scan that was read, with what its DICOM files say.

    :raises InputError: one of them cannot be read any more.
    """
    if not volume.provenance.dicom_files:
        return ScanContents(path, volume.provenance.format, volume)
    # One file for each slice, or one alone for Enhanced CT.
    images = [_image_file(file, read_dataset(file)) for file in map(Path, volume.provenance.dicom_files)]
    if len(images) == 1:
        images *= volume.shape[0]
    return ScanContents(path, "dicom", volume, tuple(images))


def read_contents_to_verify(
    path: str | os.PathLike[str], series: str | None = None, progress: Progress | None = None
) -> ScanContents:
    """Read a scan, or what is left of it.

    Of several series in a folder, that with a manifest is taken if it forms a volume; otherwise all their slices make a
    heap, since one of them may have been put in the place of a signed one.

    :raises InputError: there is nothing that could be a CT, or several signed series and none chosen.
    :raises DependencyError: a package that the files need is not installed.
    """
    try:
        return read_contents(path, series, progress)
    except InputError as error:
        path = Path(path)
        if path.is_file() and volume_files.format_of(path):
            raise
        problem = error
    scan = scan_dicom(path)
    headers = [
        header
        for one in scan.series
        for header in one.images
        if series in (None, one.uid) and image_problem(header) is None
    ]
    if not headers:
        raise problem
    if series is None and not scan.damaged:
        signed = _signed_series(headers)
        if len(signed) > 1 and any(signed.values()):
            raise problem
        if len(signed) == 1:
            try:
                return read_contents(path, *signed, progress)
            except InputError as error:
                problem = error
    return _heap(path, headers, tuple(scan.damaged), str(problem))


def is_deidentified(scan: ScanContents) -> bool:
    """Whether a file of a scan says that the patient's identity was removed (PS3.3 C.7.1.1)."""
    with quiet_pydicom():
        for file in scan.files:
            with suppress(InputError):  # said elsewhere
                if str(read_dataset(file).get("PatientIdentityRemoved") or "").strip() == "YES":
                    return True
    return False


def read_series_to_verify(series: DicomSeries, path: Path) -> ScanContents:
    """Read one series, or what is left of it; see :func:`read_contents_to_verify`.

    :param path: of the folder that it is in.
    :raises InputError: there is nothing that could be a CT.
    """
    try:
        with damage_named(path):
            return contents_of(read_series(series, source=str(path)), path)
    except InputError as error:
        headers = [header for header in series.images if image_problem(header) is None]
        if not headers:
            raise
        return _heap(path, headers, (), str(error))


def _signed_series(headers: Sequence[Header]) -> dict[str, bool]:
    """The series whose files carry a manifest, and of each whether all slices of it are there."""
    found: dict[str, int] = defaultdict(int)
    wanted: dict[str, int] = {}
    for header in headers:
        try:
            signed = read_document(_share(read_dataset(header.path)) or b"")
        except InputError:  # damaged, or no manifest
            continue
        uid = header.text("SeriesInstanceUID")
        found[uid] += len(signed.records)
        wanted[uid] = signed.manifest.shape[0]
    return {uid: found[uid] == wanted[uid] for uid in found}


def _heap(path: Path, headers: list[Header], damaged: tuple[Path, ...], problem: str) -> ScanContents:
    loose, unreadable = [], list(damaged)
    for header in headers:
        try:
            with damage_named(header.path):
                loose += loose_slices(header)
        except InputError:
            unreadable.append(header.path)
    return ScanContents(path, "dicom", loose=tuple(loose), unreadable=tuple(unreadable), problem=problem)


def loose_slices(header: Header) -> list[LooseSlice]:
    """The slices of one file, each where its own header puts it.

    :raises InputError: the file is damaged.
    """
    frames = frames_of(header)
    dataset = read_dataset(header.path)
    stored = decode_frames(dataset, frames)
    file = _image_file(header.path, dataset)
    slices = []
    for frame in frames:
        hu, place = shown_hu(stored[frame.index], frame)[None], stack_frames([frame])
        slices.append(LooseSlice(CTVolume(hu, place.spacing, place.origin, place.direction), file))
    return slices


def _image_file(path: Path, dataset: Dataset) -> ImageFile:
    return ImageFile(path, read_headers(dataset), _share(dataset))


def _share(dataset: Dataset) -> bytes | None:
    """The share of a manifest; what is damaged counts as if it were not there."""
    with quiet_pydicom():
        try:
            return get_entry(dataset, ENTRY)
        except Exception:  # noqa: BLE001 - pydicom meets damage with anything
            return None
