"""What a tree of folders holds: CT scans to protect, other files, and what may be CT but cannot be used.

Everything is judged by headers alone, and each is read once. DICOM is known by its content, the other formats by their
suffix. Paths are relative to the tree, with forward slashes.
"""

from __future__ import annotations

import hashlib
import math
import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from MITSGANLib.errors import InputError, OtherKindError
from MITSGANLib.files import volume_files
from MITSGANLib.files.dicom.derive import MANUFACTURER
from MITSGANLib.files.dicom.headers import Header, require_pydicom
from MITSGANLib.files.dicom.series import HU_RESCALE_TYPES, DicomSeries, scan_files

Progress = Callable[[int, int], None]

SUMMARY = "mitsgan-collection.json"
RECORDS = ".mitsgan"

LOST = "is named as the slices beside it but is no DICOM, or empty; a slice may be missing"
NOT_READ = "is neither DICOM nor a NRRD, NIfTI or MetaImage file"
LINKED_FOLDER = "is a link to a folder, and links to folders are not followed"
NOT_A_FILE = "is a link to nothing, or no regular file"
INDEX = "is an index of the original files (DICOMDIR)"
NO_SERIES = "is a DICOM object that belongs to no series"
BESIDE_CT = "is a localizer or another object within a CT series"
PROTECTED = "is protected already, or was written by MITSGAN for another reason"
NOT_PROTECTED = "is not protected"
ATTACK = "is a simulated attack"

_DICOMDIR = "1.2.840.10008.1.3.10"
# Headers and file system blocks, on top of 2 bytes a voxel.
_HEADER_BYTES = 8192


@dataclass(frozen=True)
class StockedScan:
    """One CT scan of the tree: the images of a DICOM series, or a volume file and the files that its header names.

    :param files: relative to the tree, with forward slashes.
    :param uid: Series Instance UID; empty for a volume file.
    :param size: bytes of all files.
    :param stamp: digest of the files' names, sizes and times of change: while it holds, the content does, too.
    """

    files: tuple[str, ...]
    uid: str
    voxels: int
    size: int
    stamp: str

    @property
    def source(self) -> str:
        """The volume file, or the folder that holds all images of the series."""
        if not self.uid:
            return self.files[0]
        return posixpath.commonpath([posixpath.dirname(file) for file in self.files]) or "."

    @property
    def key(self) -> str:
        """What the scan is known by from run to run, even after slices were added or replaced."""
        folders = sorted({posixpath.dirname(file) for file in self.files}) if self.uid else [self.files[0]]
        return hashlib.sha256(os.fsencode("\0".join([self.uid, *folders]))).hexdigest()[:32]

    @property
    def expected_bytes(self) -> int:
        """About what its protected form takes: DICOM is written uncompressed, volume files compressed."""
        plain = 2 * self.voxels + _HEADER_BYTES * len(self.files)
        return max(self.size, plain) if self.uid else min(plain, self.size * 5 // 4 + _HEADER_BYTES)


@dataclass(frozen=True)
class Other:
    """Files of one folder that are no CT scan, why, and whether they may be copied as they are."""

    files: tuple[str, ...]
    reason: str
    size: int = 0
    may_copy: bool = True

    @property
    def source(self) -> str:
        """The one file, or the folder of several."""
        return self.files[0] if len(self.files) == 1 else posixpath.dirname(self.files[0]) or "."


@dataclass(frozen=True)
class Failure:
    """CT, or what may be CT, that was not protected: the outcome that needs a person."""

    source: str
    reason: str
    uid: str = ""


@dataclass(frozen=True)
class Inventory:
    """Everything in a tree, from headers alone."""

    scans: tuple[StockedScan, ...]
    others: tuple[Other, ...]
    failures: tuple[Failure, ...]


def take_stock(tree: Path, progress: Progress | None = None, *, protected: bool = False) -> Inventory:
    """What a tree holds; each header is read once, and kept no longer than its folder takes.

    DICOM is known by its content, the other formats by their suffix. Images of one Series Instance UID are one scan
    even where they lie in several folders, unless an image is there twice: then each folder has a copy of its own.

    :param protected: DICOM series by MITSGAN are the scans, and the others are passed over; else it is the reverse.
    :raises InputError: the tree does not exist or is empty.
    :raises DependencyError: pydicom is not installed.
    """
    require_pydicom()
    stock = _Stock(tree, protected)
    folders = list(stock.walk())
    total = sum(len(names) for _, names in folders)
    if not total and not stock.failures:
        raise InputError(f"{tree} holds no files; give the folder that holds the scans.")
    done = 0
    for folder, names in folders:
        stock.take_folder(folder, names, lambda within, before=done: progress and progress(before + within, total))
        done += len(names)
    if progress:
        progress(total, total)
    return stock.inventory()


@dataclass(frozen=True)
class FileFact:
    """A file as the inventory knows it."""

    path: str
    size: int
    time_ns: int


@dataclass(frozen=True)
class _Part:
    """The CT images of one series in one folder."""

    folder: str
    images: tuple[FileFact, ...]
    instances: tuple[str, ...]
    voxels: int


class _Stock:
    """The inventory while it is taken."""

    def __init__(self, tree: Path, protected: bool) -> None:
        self.tree, self.protected = tree, protected
        self.scans: list[StockedScan] = []
        self.others: list[Other] = []
        self.failures: list[Failure] = []
        self.parts: dict[str, list[_Part]] = {}
        self.damaged: dict[str, str] = {}  # by folder, the name of one
        self.unknown: list[FileFact] = []
        self.lost: list[FileFact] = []
        self.companions: set[str] = set()

    def walk(self) -> Iterator[tuple[str, list[str]]]:
        """Every folder (relative, "" for the tree itself) and the names of its files, in a fixed order.

        :raises InputError: the tree is no folder.
        """
        if not self.tree.is_dir():
            raise InputError(f"{self.tree} is not a folder; give the folder that holds the scans.")
        for path, subfolders, names in os.walk(self.tree, onerror=self._refuse_folder):
            folder = relative_path(path, self.tree)
            if not folder:  # what an earlier run left, where the tree is its output
                subfolders[:] = [name for name in subfolders if name != RECORDS]
                names = [name for name in names if name != SUMMARY]
            subfolders.sort()
            for name in subfolders:
                if Path(path, name).is_symlink():
                    self.others.append(Other((posixpath.join(folder, name),), LINKED_FOLDER, may_copy=False))
            yield folder, sorted(names)

    def take_folder(self, folder: str, names: Iterable[str], progress: Callable[[int], object]) -> None:
        """Sort the files of one folder into what they are."""
        facts: dict[Path, FileFact] = {}
        for name in names:
            path = self.tree / folder / name
            try:
                fact = file_fact(self.tree, path)
            except PermissionError as error:
                self._take_damaged(folder, name, f"It cannot be read ({error.strerror}); check its permissions.")
                continue
            except OSError:
                fact = None
            if fact is None:
                self.others.append(Other((posixpath.join(folder, name),), NOT_A_FILE, may_copy=False))
            elif volume_files.format_of(path):
                self._take_volume(path, fact)
            else:
                facts[path] = fact
        scan = scan_files(self.tree / folder, list(facts), lambda done, _total: progress(done))
        for path, error in scan.damaged.items():
            self._take_damaged(folder, path.name, str(error))
        for path in scan.without_series:
            reason = f"{path} has no Series Instance UID, so it is unknown which slices belong together."
            self.failures.append(Failure(facts[path].path, reason))
        for header in scan.others:
            is_index = header.dataset.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR
            fact, reason = facts[header.path], INDEX if is_index else NO_SERIES
            self.others.append(Other((fact.path,), reason, fact.size, may_copy=not is_index))
        lost = {file for series in scan.series for file in series.unread}
        for path in scan.unread:
            (self.lost if path in lost else self.unknown).append(facts[path])
        for series in scan.series:
            self._take_series(folder, series, facts)

    def inventory(self) -> Inventory:
        """All of it, once every folder was taken."""
        for uid, parts in self.parts.items():
            instances = [instance for part in parts for instance in part.instances]
            is_one = len(set(instances)) == len(instances)
            for group in [parts] if is_one else [[part] for part in parts]:
                self._take_scan(uid, group)
        unknown = [*self._others(self.unknown, NOT_READ), *self._others(self.lost, LOST)]
        scans = sorted(self.scans, key=lambda scan: (scan.source, scan.uid))
        return Inventory(tuple(scans), (*self.others, *unknown), tuple(self.failures))

    def _others(self, facts: Iterable[FileFact], reason: str) -> list[Other]:
        """Files that are nobody's, by folder."""
        by_folder: dict[str, list[FileFact]] = {}
        for fact in facts:
            if fact.path not in self.companions:
                by_folder.setdefault(posixpath.dirname(fact.path), []).append(fact)
        return [_other(found, reason) for found in by_folder.values()]

    def _refuse_folder(self, error: OSError) -> None:
        folder = relative_path(error.filename, self.tree) or "."
        self.failures.append(Failure(folder, f"It cannot be opened ({error.strerror}); check its permissions."))

    def _take_damaged(self, folder: str, name: str, reason: str) -> None:
        self.damaged[folder] = name
        self.failures.append(Failure(posixpath.join(folder, name), reason))

    def _take_volume(self, path: Path, fact: FileFact) -> None:
        data = [file_fact(self.tree, file) for file in volume_files.data_files(path) if file.is_relative_to(self.tree)]
        self.companions.update(one.path for one in data)
        try:
            header = volume_files.read_file_header(path)
        except InputError as error:
            if isinstance(error, OtherKindError):
                self.others.append(_other([fact, *data], error.what))
            else:  # it may be a CT
                self.failures.append(Failure(fact.path, str(error)))
            return
        self.scans.append(_scan((fact, *data), "", math.prod(header.shape)))

    def _take_series(self, folder: str, series: DicomSeries, all_facts: Mapping[Path, FileFact]) -> None:
        uid, facts = series.uid, {header.path: all_facts[header.path] for header in series.headers}
        problem = series.problem or (None if self.protected else series.writing_problem)
        if problem:
            if series.modality == "CT" and any(_claims_hu(header) for header in series.images):
                reason = f"The series {problem}; export it again from its source."
                self.failures.append(Failure(folder or ".", reason, uid))
            else:
                self.others.append(_other(list(facts.values()), problem))
            return
        is_protected = any(MANUFACTURER in header.contributors for header in series.images)
        if is_protected != self.protected:
            self.others.append(_other(list(facts.values()), PROTECTED if is_protected else NOT_PROTECTED))
            return
        if series.left_out:
            self.others.append(_other([facts[header.path] for header in series.left_out], BESIDE_CT))
        part = _Part(
            folder,
            tuple(facts[header.path] for header in series.images),
            tuple(header.text("SOPInstanceUID") for header in series.images),
            sum(_voxels(header) for header in series.images),
        )
        self.parts.setdefault(uid, []).append(part)

    def _take_scan(self, uid: str, parts: Sequence[_Part]) -> None:
        scan = _scan([fact for part in parts for fact in part.images], uid, sum(part.voxels for part in parts))
        damaged = next((part.folder for part in parts if part.folder in self.damaged), None)
        # Of a sealed series the files themselves say whether all of them are there.
        if damaged is None or self.protected:
            self.scans.append(scan)
            return
        reason = (
            f"{self.damaged[damaged]} in {damaged or 'its folder'} is damaged and may belong to this series; copy it "
            "again from its source or take it out of the folder."
        )
        self.failures.append(Failure(scan.source, reason, uid))


def relative_path(path: str | os.PathLike[str], tree: Path) -> str:
    """A path within the tree as records and summaries have it; "" for the tree itself."""
    relative = os.path.relpath(path, tree).replace(os.sep, "/")
    return "" if relative == "." else relative


def file_fact(tree: Path, path: Path) -> FileFact | None:
    """What the file system says of a regular file; None for a pipe or a device, whose opening would wait for ever.

    :raises OSError: it is not there, or a link in a circle.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return None
    return FileFact(relative_path(path, tree), status.st_size, status.st_mtime_ns)


def _scan(facts: Sequence[FileFact], uid: str, voxels: int) -> StockedScan:
    lines = sorted(f"{fact.path}\0{fact.size}\0{fact.time_ns}" for fact in facts)
    stamp = hashlib.sha256(os.fsencode("\n".join(lines))).hexdigest()
    return StockedScan(tuple(fact.path for fact in facts), uid, voxels, sum(fact.size for fact in facts), stamp)


def _other(facts: Sequence[FileFact], reason: str) -> Other:
    return Other(tuple(fact.path for fact in facts), reason, sum(fact.size for fact in facts))


def _voxels(header: Header) -> int:
    return int(header.number("Rows") * header.number("Columns") * max(1, header.number("NumberOfFrames")))


def _claims_hu(header: Header) -> bool:
    """Whether a CT image that cannot be used would be one in HU: no color screen capture, no map of another unit."""
    is_gray = header.text("PhotometricInterpretation").startswith("MONOCHROME")
    return is_gray and header.text("RescaleType") in HU_RESCALE_TYPES
