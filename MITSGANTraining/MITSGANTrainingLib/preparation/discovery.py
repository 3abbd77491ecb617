"""Which scans lie in the given folders and files: every CT series of DICOM, every NRRD, NIfTI and MetaImage file.

Only headers are read. A folder is read by itself, so that a collection of any size needs little memory; the files of
one series are then brought together wherever they lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from MITSGANLib.errors import InputError
from MITSGANLib.files import volume_files
from MITSGANLib.files.dicom.headers import read_header, require_pydicom
from MITSGANLib.files.dicom.read import read_series
from MITSGANLib.files.dicom.series import DicomSeries, scan_files, walk_folders
from MITSGANLib.runtime.progress import Progress
from MITSGANLib.scan.volume import CTVolume

from ..workers import run_all

_FOLDERS_PER_PROCESS = 16  # fewer do not pay for the start of a process


@dataclass(frozen=True)
class ScanFile:
    """A file, and what changes when it does."""

    path: str
    size: int
    modified_ns: int


@dataclass(frozen=True)
class DiscoveredScan:
    """A scan as found: a series of DICOM files, or one file.

    :param key: a name that does not depend on where the collection lies: the Series Instance UID, else the file's path
        below the folder that was given.
    :param patient_id: from DICOM, or "".
    :param names: what a table of findings may call it, as a set for each degree of precision.
    :param problem: why it cannot be used, or "".
    """

    key: str
    files: tuple[ScanFile, ...]
    series_uid: str = ""
    patient_id: str = ""
    names: tuple[frozenset[str], ...] = ()
    problem: str = ""

    @property
    def path(self) -> str:
        """The file, or the folder of the first file of a series."""
        return str(Path(self.files[0].path).parent) if self.series_uid else self.files[0].path

    @property
    def all_names(self) -> frozenset[str]:
        """Everything that the scan may be called."""
        return frozenset().union(*self.names)

    def load(self) -> CTVolume:
        """Read the voxels.

        :raises InputError: as ``MITSGANLib.files.storage.load_volume``.
        """
        if not self.series_uid:
            return volume_files.read_file(self.files[0].path)
        headers = [header for file in self.files if (header := read_header(Path(file.path)))]
        return read_series(DicomSeries(self.series_uid, tuple(headers)), source=self.path)


@dataclass(frozen=True)
class _Folder:
    """What lies in one folder.

    :param images: Series Instance UID, SOP Instance UID and patient of each DICOM image, and its file.
    :param problems: why series are unusable, by UID.
    """

    images: tuple[tuple[str, str, str, ScanFile], ...]
    problems: tuple[tuple[str, str], ...]
    volumes: tuple[ScanFile, ...]


def discover(
    paths: Sequence[Path],
    *,
    leave: Collection[Path] = (),
    processes: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
) -> list[DiscoveredScan]:
    """All scans in ``paths`` and below, in a fixed order, unusable ones with their problem.

    :param leave: files that are no scans although they look it (segmentations).
    :raises InputError: when a path does not exist, cannot be opened, or nothing in all of them is a scan.
    """
    require_pydicom()
    left = {path.resolve() for path in leave}
    found: dict[str, DiscoveredScan] = {}
    files_seen: set[str] = set()
    for root in paths:
        for source in _in_path(root, left, processes, scheduler, progress):
            if source.files[0].path in files_seen:
                continue
            files_seen.add(source.files[0].path)
            key = source.key
            if key in found:
                key = f"{source.key} in {source.path}"
                problem = "The same series, or a file of the same name, was given before; this one is not used."
                source = dataclasses.replace(source, key=key, problem=source.problem or problem)
            found[key] = source
    if not found:
        where = ", ".join(str(path) for path in paths)
        raise InputError(f"{where}: no DICOM images and no file of {', '.join(volume_files.SUFFIXES)} were found.")
    return [found[key] for key in sorted(found)]


def _in_path(
    root: Path, left: Collection[Path], processes: int, scheduler: str | None, progress: Progress | None
) -> Iterator[DiscoveredScan]:
    if not root.exists():
        raise InputError("does not exist", path=root, hint="check the path")
    if root.is_file():
        base = root.resolve().parent.parent
        if volume_files.format_of(root):
            yield from _volume_sources([_stamp(root.resolve())], base, left)
            return
        header = read_header(root)
        if header is None:
            raise InputError(f"{root} is neither DICOM nor a file of {', '.join(volume_files.SUFFIXES)}.")
        # One slice stands for all of its series in the folder.
        uid, siblings = header.text("SeriesInstanceUID"), read_folder(str(root.resolve().parent))
        yield from (source for source in _series_sources([siblings], base) if source.series_uid == uid)
        return
    folders = sorted(str(folder) for folder, names in walk_folders(root.resolve()) if names)
    workers = min(processes, len(folders) // _FOLDERS_PER_PROCESS)
    contents = {}
    for done, outcome in enumerate(run_all(read_folder, folders, processes=workers, scheduler=scheduler)):
        if progress:
            progress(done + 1, len(folders))
        if outcome.error:
            raise InputError(outcome.error)
        contents[outcome.item] = outcome.result
    in_order = [contents[folder] for folder in folders]
    base = root.resolve().parent
    yield from _series_sources(in_order, base)
    for folder in in_order:
        yield from _volume_sources(folder.volumes, base, left)


def read_folder(folder: str) -> _Folder:
    """The scans' headers in one folder, without its sub-folders."""
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    scan = scan_files(Path(folder), [path for path in files if not volume_files.format_of(path)])
    images = [
        (series.uid, header.text("SOPInstanceUID"), header.text("PatientID"), _stamp(header.path))
        for series in scan.series
        for header in series.headers
    ]
    problems = []
    for series in scan.series:
        if series.problem:
            problems.append((series.uid, f"The series {series.problem}."))
        elif scan.damaged:
            text = f"{len(scan.damaged)} DICOM files beside it are damaged, incomplete or unreadable; copy them again."
            problems.append((series.uid, text))
    volumes = tuple(_stamp(path) for path in files if volume_files.format_of(path))
    return _Folder(tuple(images), tuple(problems), volumes)


def _series_sources(folders: Iterable[_Folder], base: Path) -> Iterator[DiscoveredScan]:
    images: dict[str, dict[str, tuple[str, ScanFile]]] = {}
    problems: dict[str, str] = {}
    for folder in folders:
        for uid, instance, patient, file in folder.images:
            # A copy of an image in another folder counts once.
            images.setdefault(uid, {}).setdefault(instance or file.path, (patient, file))
        problems.update(folder.problems)
    for uid, members in images.items():
        (patient, *_), files = zip(*members.values(), strict=True)
        parents = {Path(file.path).parent for file in files}
        names = (
            frozenset([uid]),
            frozenset(parent.relative_to(base).as_posix() for parent in parents),
            frozenset(parent.name for parent in parents),
            frozenset([patient] if patient else []),
        )
        yield DiscoveredScan(uid, files, uid, patient, names, problems.get(uid, ""))


def _volume_sources(volumes: Iterable[ScanFile], base: Path, left: Collection[Path]) -> Iterator[DiscoveredScan]:
    for file in volumes:
        path = Path(file.path)
        if path.resolve() in left:
            continue
        key = path.relative_to(base).as_posix()
        names = tuple(map(frozenset, ([key, key.partition("/")[2]], [path.name], [file_stem(path.name)])))
        problem = ""
        try:
            volume_files.read_file_header(path)
        except InputError as error:
            problem = str(error)
        yield DiscoveredScan(key, (file,), names=names, problem=problem)


def file_stem(name: str) -> str:
    """A file name without the suffix of its format (``.nii.gz`` is one)."""
    suffix = max((suffix for suffix in volume_files.SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(suffix)]


def _stamp(path: Path) -> ScanFile:
    status = path.stat()
    return ScanFile(str(path), status.st_size, status.st_mtime_ns)
