"""What a tree of folders holds: CT scans to protect, other files, and what may be CT but cannot be used.

Everything is judged by headers alone, and each is read once. DICOM is known by its content, the other formats by their
suffix. What DICOM a folder holds is kept from run to run, and read again only where a file of it changed. Paths are
relative to the tree, with forward slashes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import posixpath
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MITSGANLib import __version__
from MITSGANLib.errors import InputError, OtherKindError
from MITSGANLib.files import volume_files
from MITSGANLib.files.atomic import atomic_file
from MITSGANLib.files.dicom.derive import MANUFACTURER
from MITSGANLib.files.dicom.headers import Header, require_pydicom
from MITSGANLib.files.dicom.series import HU_RESCALE_TYPES, DicomSeries, scan_files, walk_folders
from MITSGANLib.runtime.progress import Progress

SUMMARY = "mitsgan-collection.json"
RECORDS = ".mitsgan"

LOST = "is named as the slices beside it but is no DICOM, or empty; a slice may be missing"
NOT_READ = "is neither DICOM nor a NRRD, NIfTI or MetaImage file"
LINKED_FOLDER = "is a link to a folder that is in the tree anyway, or that holds the tree"
NOT_A_FILE = "is a link to nothing, or no regular file"
INDEX = "is an index of the original files (DICOMDIR)"
NO_SERIES = "is a DICOM object that belongs to no series"
BESIDE_CT = "is a localizer or another object within a CT series"
PROTECTED = "is protected already, or was written by MITSGAN for another reason"
NOT_PROTECTED = "is not protected"
ATTACK = "is a simulated attack"
BESIDE = "is a seal or a manifest of another file"

_DICOMDIR = "1.2.840.10008.1.3.10"
_KEPT_FORMAT = 1
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

    def summary(self) -> dict[str, Any]:
        """JSON-ready form for the summary."""
        return {"source": self.source, "files": len(self.files), "reason": self.reason}


@dataclass(frozen=True)
class Failure:
    """CT, or what may be CT, that was not protected: the outcome that needs a person.

    :param scan: what it would have been but for its neighbors, if that is known.
    """

    source: str
    reason: str
    uid: str = ""
    files: tuple[str, ...] = ()
    scan: StockedScan | None = None

    def summary(self) -> dict[str, Any]:
        """JSON-ready form for the summary."""
        return {"source": self.source, "series_instance_uid": self.uid or None, "reason": self.reason}


@dataclass(frozen=True)
class FileFact:
    """A file as the file system knows it: when it was changed, and when its entry was, which nobody can set back."""

    path: str
    size: int
    time_ns: int
    entry_time_ns: int


@dataclass(frozen=True)
class _Part:
    """The CT images of one series in one folder."""

    uid: str
    folder: str
    images: tuple[FileFact, ...]
    instances: tuple[str, ...]
    voxels: int


@dataclass
class FolderStock:
    """What DICOM lies in one folder.

    :param stamp: of all its files; while it holds, the rest does.
    :param damaged: name of a file that cannot be read; may be another time, so such a folder is never kept.
    :param unknown: files that are no DICOM.
    :param lost: those of them that may once have been slices.
    """

    stamp: str
    parts: list[_Part] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unknown: list[FileFact] = field(default_factory=list)
    lost: list[FileFact] = field(default_factory=list)
    damaged: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FolderStock:
        """What JSON gave."""
        facts = lambda rows: [FileFact(**row) for row in rows]  # noqa: E731
        parts = [
            _Part(**{**row, "images": tuple(facts(row["images"])), "instances": tuple(row["instances"])})
            for row in values["parts"]
        ]
        others = [Other(**{**row, "files": tuple(row["files"])}) for row in values["others"]]
        failures = [Failure(**{**row, "files": tuple(row["files"])}) for row in values["failures"]]
        return cls(values["stamp"], parts, others, failures, facts(values["unknown"]), facts(values["lost"]))


@dataclass(frozen=True)
class Inventory:
    """Everything in a tree, from headers alone.

    :param folders: what the next one need not read again.
    :param young: files that may not be whole yet.
    """

    scans: tuple[StockedScan, ...]
    others: tuple[Other, ...]
    failures: tuple[Failure, ...]
    folders: Mapping[str, FolderStock] = field(default_factory=dict)
    young: frozenset[str] = frozenset()

    def instances(self, scan: StockedScan) -> list[str]:
        """The SOP Instance UIDs of a DICOM series."""
        files = set(scan.files)
        folders = {posixpath.dirname(file) for file in files}
        parts = (part for folder in folders for part in self.folders[folder].parts if part.uid == scan.uid)
        images = (pair for part in parts for pair in zip(part.images, part.instances, strict=True))
        return [instance for image, instance in images if image.path in files]

    def keep(self, path: Path) -> None:
        """Write down what :func:`read_kept` gives to the next run, a line for each folder."""
        with atomic_file(path, overwrite=True) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps([_KEPT_FORMAT, __version__]) + "\n")
            for folder, stock in self.folders.items():
                if not stock.damaged:
                    file.write(json.dumps([folder, dataclasses.asdict(stock)]) + "\n")


def read_kept(path: Path) -> dict[str, FolderStock]:
    """What :meth:`Inventory.keep` wrote; nothing where there is none, or none by this version."""
    try:
        with path.open(encoding="utf-8") as file:
            if json.loads(next(file, "0")) != [_KEPT_FORMAT, __version__]:
                return {}
            return {folder: FolderStock.from_dict(stock) for folder, stock in map(json.loads, file)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def take_stock(
    tree: Path,
    progress: Progress | None = None,
    *,
    protected: bool | None = False,
    kept: Mapping[str, FolderStock] | None = None,
    without: Path | None = None,
    is_young: Callable[[FileFact], bool] = lambda _: False,
) -> Inventory:
    """What a tree holds; each header is read once, and kept no longer than its folder takes.

    DICOM is known by its content, the other formats by their suffix. Images of one Series Instance UID are one scan
    even where they lie in several folders, unless an image is there twice: then each folder has a copy of its own.
    Links to folders are followed, each folder once.

    :param protected: DICOM series by MITSGAN are the scans, and the others are passed over; else it is the reverse.
        None takes both, complete or not, as they are to be judged.
    :param kept: ``folders`` of an earlier inventory of the same tree, taken in the same way.
    :param without: a folder that is left out, wherever a link leads to it.
    :param is_young: whether a file may not be whole yet; then it is no damage that it cannot be read.
    :raises InputError: the tree does not exist or is empty.
    :raises DependencyError: pydicom is not installed.
    """
    require_pydicom()
    stock = _Stock(tree, protected, kept or {}, without, is_young)
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


@dataclass
class _Stock:
    """The inventory while it is taken; see :func:`take_stock`."""

    tree: Path
    protected: bool | None
    kept: Mapping[str, FolderStock]
    without: Path | None
    is_young: Callable[[FileFact], bool]
    young: set[str] = field(default_factory=set)
    scans: list[StockedScan] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    folders: dict[str, FolderStock] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)  # by folder, the name of one
    companions: set[str] = field(default_factory=set)

    def walk(self) -> Iterator[tuple[str, list[str]]]:
        """Every folder (relative, "" for the tree itself) and the names of its files, in a fixed order.

        :raises InputError: the tree is no folder.
        """
        if not self.tree.is_dir():
            raise InputError(f"{self.tree} is not a folder; give the folder that holds the scans.")
        # What an earlier run left, where the tree is its output.
        leave = [self.tree / RECORDS, *([self.without] if self.without else [])]
        for path, names in walk_folders(self.tree, leave=leave, refuse=self._refuse_folder, skip=self._skip_folder):
            folder = relative_path(path, self.tree)
            yield folder, names if folder else [name for name in names if name != SUMMARY]

    def take_folder(self, folder: str, names: Iterable[str], progress: Callable[[int], object]) -> None:
        """Sort the files of one folder into what they are."""
        facts: dict[Path, FileFact] = {}
        for name in names:
            path = self.tree / folder / name
            try:
                fact = file_fact(self.tree, path)
            except PermissionError as error:
                reason = f"It cannot be read ({error.strerror}); check its permissions."
                self.damaged[folder] = name
                self.failures.append(Failure(posixpath.join(folder, name), reason))
                continue
            except OSError:
                fact = None
            if fact is None:
                self.others.append(Other((posixpath.join(folder, name),), NOT_A_FILE, may_copy=False))
            elif volume_files.format_of(path):
                self._take_volume(path, fact)
            else:
                facts[path] = fact
                if self.is_young(fact):
                    self.young.add(fact.path)
        if not facts:
            return
        stamp, found = _stamp(facts.values(), f"protected {self.protected}"), self.kept.get(folder)
        if found is None or found.stamp != stamp:
            found = self._read_folder(folder, facts, stamp, progress)
        self.folders[folder] = found
        self.others += found.others
        self.failures += found.failures
        if found.damaged:
            self.damaged[folder] = found.damaged

    def inventory(self) -> Inventory:
        """All of it, once every folder was taken."""
        by_uid: dict[str, list[_Part]] = defaultdict(list)
        for part in (part for found in self.folders.values() for part in found.parts):
            by_uid[part.uid].append(part)
        for parts in by_uid.values():
            instances = [instance for part in parts for instance in part.instances]
            is_one = len(set(instances)) == len(instances)
            for group in [parts] if is_one else [[part] for part in parts]:
                self._take_scan(group)
        for found in self.folders.values():
            for facts, reason in ((found.unknown, NOT_READ), (found.lost, LOST)):
                if left := [fact for fact in facts if fact.path not in self.companions]:
                    self.others.append(_other(left, reason))
        scans = sorted(self.scans, key=lambda scan: (scan.source, scan.uid))
        return Inventory(tuple(scans), tuple(self.others), tuple(self.failures), self.folders, frozenset(self.young))

    def _refuse_folder(self, error: OSError) -> None:
        folder = relative_path(error.filename, self.tree) or "."
        self.failures.append(Failure(folder, f"It cannot be opened ({error.strerror}); check its permissions."))

    def _skip_folder(self, path: Path) -> None:
        if path != self.tree / RECORDS:
            self.others.append(Other((relative_path(path, self.tree),), LINKED_FOLDER, may_copy=False))

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
        self.scans.append(stock_files((fact, *data), "", math.prod(header.shape)))

    def _read_folder(
        self, folder: str, facts: Mapping[Path, FileFact], stamp: str, progress: Callable[[int], object]
    ) -> FolderStock:
        found = FolderStock(stamp)
        scan = scan_files(self.tree / folder, list(facts), lambda done, _total: progress(done))
        for path, error in scan.damaged.items():
            if facts[path].path in self.young:
                found.stamp = ""  # to be read again
                continue
            found.damaged = path.name
            found.failures.append(Failure(facts[path].path, str(error), files=(facts[path].path,)))
        for path in scan.without_series:
            reason = f"{facts[path].path} has no Series Instance UID, so it is unknown which slices belong together."
            found.failures.append(Failure(facts[path].path, reason, files=(facts[path].path,)))
        for header in scan.others:
            is_index = header.dataset.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR
            fact, reason = facts[header.path], INDEX if is_index else NO_SERIES
            found.others.append(Other((fact.path,), reason, fact.size, may_copy=not is_index))
        lost = {file for series in scan.series for file in series.unread}
        for path in scan.unread:
            (found.lost if path in lost else found.unknown).append(facts[path])
        for series in scan.series:
            self._read_series(folder, series, facts, found)
        return found

    def _read_series(
        self, folder: str, series: DicomSeries, facts: Mapping[Path, FileFact], found: FolderStock
    ) -> None:
        def facts_of(headers: Iterable[Header]) -> tuple[FileFact, ...]:
            return tuple(facts[header.path] for header in headers)

        problem = series.problem or (None if self.protected is not False else series.writing_problem)
        if problem and series.text("Modality") == "CT" and any(_claims_hu(header) for header in series.images):
            reason = f"The series {problem}; export it again from its source."
            files = tuple(fact.path for fact in facts_of(series.headers))
            found.failures.append(Failure(folder or ".", reason, series.uid, files))
            return
        is_protected = any(MANUFACTURER in header.contributors for header in series.images)
        if not problem and self.protected not in (None, is_protected):
            problem = PROTECTED if is_protected else NOT_PROTECTED
        if problem:
            found.others.append(_other(facts_of(series.headers), problem))
            return
        if series.left_out:
            found.others.append(_other(facts_of(series.left_out), BESIDE_CT))
        instances = tuple(header.text("SOPInstanceUID") for header in series.images)
        voxels = sum(_voxels(header) for header in series.images)
        found.parts.append(_Part(series.uid, folder, facts_of(series.images), instances, voxels))

    def _take_scan(self, parts: Sequence[_Part]) -> None:
        uid = parts[0].uid
        scan = stock_files([fact for part in parts for fact in part.images], uid, sum(part.voxels for part in parts))
        damaged = next((part.folder for part in parts if part.folder in self.damaged), None)
        # Of a sealed or signed series the files themselves say whether all of them are there.
        if damaged is None or self.protected is not False:
            self.scans.append(scan)
            return
        reason = (
            f"{self.damaged[damaged]} in {damaged or 'its folder'} is damaged and may belong to this series; copy it "
            "again from its source or take it out of the folder."
        )
        self.failures.append(Failure(scan.source, reason, uid, scan.files, scan))


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
    return FileFact(relative_path(path, tree), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def stock_files(facts: Sequence[FileFact], uid: str = "", voxels: int = 0) -> StockedScan:
    """Files that belong together, as a scan."""
    return StockedScan(tuple(fact.path for fact in facts), uid, voxels, sum(fact.size for fact in facts), _stamp(facts))


def _stamp(facts: Iterable[FileFact], *more: str) -> str:
    """Digest of the files' names, sizes and times, and of more that matters."""
    lines = sorted(f"{fact.path}\0{fact.size}\0{fact.time_ns}\0{fact.entry_time_ns}" for fact in facts)
    return hashlib.sha256(os.fsencode("\n".join([*lines, *more]))).hexdigest()


def _other(facts: Sequence[FileFact], reason: str) -> Other:
    return Other(tuple(fact.path for fact in facts), reason, sum(fact.size for fact in facts))


def _voxels(header: Header) -> int:
    return int(header.number("Rows") * header.number("Columns") * max(1, header.number("NumberOfFrames")))


def _claims_hu(header: Header) -> bool:
    """Whether a CT image that cannot be used would be one in HU: no color screen capture, no map of another unit."""
    is_gray = header.text("PhotometricInterpretation").startswith("MONOCHROME")
    return is_gray and header.text("RescaleType") in HU_RESCALE_TYPES
