"""A folder -> the DICOM series in it, and the choice of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...errors import CHOOSE_SERIES, InputError
from ...runtime.progress import Progress, counted
from .headers import CT_STORAGE, Header, damaged_file, holds_nothing, read_header, require_pydicom

# PS3.3 C.11.1.1.2: the other defined terms (optical density, effective atomic number ...) are no Hounsfield units.
HU_RESCALE_TYPES = ("", "HU", "US")
# What an error may repeat of a header: defined terms, which say nothing about anybody.
RESCALE_TYPES = ("OD", "HU", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT")
MODALITIES = tuple(
    "CR DX ECG IO KO MG MR NM OT PR PT PX REG RF RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT SC SEG SR US XA XC".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class DicomSeries:
    """The files of one Series Instance UID, as found (not in slice order).

    ``images`` are its CT images; ``left_out`` are localizers, pages of pictures and other objects that share the UID.

    :param unread: files beside the images that hold no DICOM, but may once have been slices.
    """

    uid: str
    headers: tuple[Header, ...]
    unread: tuple[Path, ...] = ()

    @cached_property
    def images(self) -> tuple[Header, ...]:
        """The CT images of the series."""
        images = tuple(header for header in self.headers if header.is_ct_image and not header.is_localizer)
        # Where all are pictures, they are what the series holds.
        return tuple(header for header in images if not header.is_picture) or images

    @cached_property
    def left_out(self) -> tuple[Header, ...]:
        """What shares the UID and is no CT image."""
        taken = {id(header) for header in self.images}
        return tuple(header for header in self.headers if id(header) not in taken)

    def text(self, keyword: str) -> str:
        """An element of the first image that has it, else of another file, as one line; empty where none has it.

        What Enhanced CT states for each frame, as the kernel, is not looked up.
        """
        return next((text for header in (*self.images, *self.headers) if (text := header.text(keyword))), "")

    @property
    def image_count(self) -> int:
        """Number of images (frames count singly)."""
        images = self.images or self.headers
        return sum(max(1, int(header.number("NumberOfFrames"))) for header in images)

    @property
    def problem(self) -> str | None:
        """Why this series is no CT volume in HU, as the end of a sentence that begins with "it"; None if it may be one.

        Judged from the kind of object alone; geometry is judged when the series is read.
        """
        if not any(header.text("SOPClassUID") in CT_STORAGE for header in self.headers):
            return f"holds {self._object_name()}, not CT images"
        modality = self.text("Modality")
        if modality != "CT":
            return f"has {f'modality {modality}' if modality in MODALITIES else 'another modality'}, not CT"
        if not self.images:
            return "holds only localizer (scout) images"
        problems = {header.path.name: problem for header in self.images if (problem := image_problem(header))}
        if not problems:
            return None
        name, problem = next(iter(problems.items()))
        return problem if len(problems) == len(self.images) else f"has an image, {name}, that {problem}"

    @property
    def writing_problem(self) -> str | None:
        """Why no series can be derived from this one, as the end of a sentence that begins with "it", or None."""
        names = {"StudyInstanceUID": "Study Instance UID", "SOPInstanceUID": "SOP Instance UID"}
        for header in self.images:
            for keyword, name in names.items():
                if not header.text(keyword):
                    return f"lacks a {name}, such as {header.path.name}, so a derived series cannot refer to it"
        return None

    def summary(self) -> str:
        """UID and number of images. No text of the headers: this goes into errors."""
        return f"{self.uid} ({self.image_count} {'slice' if self.image_count == 1 else 'slices'})"

    def _object_name(self) -> str:
        from pydicom.uid import UID

        uid = UID(self.headers[0].text("SOPClassUID"))
        return uid.name.removesuffix(" Storage") if uid.name != uid else "objects of unknown kind"


@dataclass(frozen=True)
class DicomScan:
    """What a folder holds: every series, and all other files.

    :param damaged: for each file that cannot be read, why.
    :param without_series: CT images that belong to no series.
    :param others: DICOM files that are no images of a series.
    :param unread: files that are no DICOM.
    """

    path: Path
    series: tuple[DicomSeries, ...]
    damaged: Mapping[Path, InputError]
    without_series: tuple[Path, ...]
    others: tuple[Header, ...]
    unread: tuple[Path, ...]

    @property
    def nothing(self) -> str:
        """What is wrong with a folder without series, as the end of a sentence."""
        return "holds DICOM, but no image that belongs to a series" if self.others else "holds no DICOM images"

    def name(self, file: Path) -> str:
        """The path of a file within the folder."""
        return str(file.relative_to(self.path)) if file != self.path else file.name

    @property
    def usable(self) -> tuple[DicomSeries, ...]:
        """The series that may be a CT volume in HU."""
        return tuple(series for series in self.series if series.problem is None)


def scan_dicom(path: str | os.PathLike[str], progress: Progress | None = None) -> DicomScan:
    """Find all DICOM series in a folder and its sub-folders (or in one file), by content and not by suffix.

    :raises InputError: the path does not exist or cannot be read.
    :raises DependencyError: pydicom is not installed.
    """
    require_pydicom()
    path = Path(path)
    return scan_files(path, list_files(path), progress)


def scan_files(path: Path, files: Sequence[Path], progress: Progress | None = None) -> DicomScan:
    """Find the series that some of the files below ``path`` form; see :func:`scan_dicom`."""
    by_uid: dict[str, list[Header]] = {}
    damaged: dict[Path, InputError] = {}
    without_series: list[Path] = []
    others: list[Header] = []
    unread: dict[Path, list[Path]] = {}
    for file in counted(files, progress):
        try:
            header = read_header(file)
        except InputError as error:
            damaged[file] = error
            continue
        if header is None:
            unread.setdefault(file.parent, []).append(file)
        elif uid := header.text("SeriesInstanceUID"):
            by_uid.setdefault(uid, []).append(header)
        elif header.is_ct_image and header.text("Rows"):  # read to its end, or at least behind the UIDs
            without_series.append(file)
        elif header.may_be_cut_off_ct:
            damaged[file] = damaged_file(file)
        else:
            others.append(header)
    series = [DicomSeries(uid, tuple(headers), _lost_slices(headers, unread)) for uid, headers in by_uid.items()]
    series.sort(key=lambda one: (int(one.headers[0].number("SeriesNumber")), one.uid))
    all_unread = tuple(file for found in unread.values() for file in found)
    return DicomScan(path, tuple(series), damaged, tuple(without_series), tuple(others), all_unread)


def _lost_slices(headers: Sequence[Header], unread: Mapping[Path, Sequence[Path]]) -> tuple[Path, ...]:
    """The files that are no DICOM and may have been slices: they are named as slices beside them are.

    Where those have no suffix, many files are; then only one that holds nothing counts.
    """
    images = [header.path for header in headers if header.is_ct_image]
    suffixes = {path.suffix.lower() for path in images}
    beside = [file for folder in dict.fromkeys(path.parent for path in images) for file in unread.get(folder, ())]
    named = [file for file in beside if file.suffix.lower() in suffixes and not file.name.startswith(".")]
    return tuple(file for file in named if file.suffix or holds_nothing(file))


def list_files(path: Path) -> list[Path]:
    """All files of a tree of folders in a fixed order, as :func:`walk_folders` meets them, or the file itself.

    :raises InputError: as :func:`walk_folders`.
    """
    if path.is_file():
        return [path]
    files = (folder / name for folder, names in walk_folders(path) for name in names)
    # Not a pipe or a device, whose opening would wait for ever. A link to nothing may have been a slice.
    return sorted(file for file in files if file.is_file() or not file.exists())


def _refuse_folder(error: OSError) -> None:
    raise InputError(
        f"cannot be opened ({error.strerror})", path=error.filename, hint="check its permissions"
    ) from error


def walk_folders(
    tree: Path,
    *,
    leave: Collection[Path] = (),
    refuse: Callable[[OSError], object] = _refuse_folder,
    skip: Callable[[Path], object] = lambda _folder: None,
) -> Iterator[tuple[Path, list[str]]]:
    """Each folder of a tree with the names of the files in it, in a fixed order.

    Links to folders are followed, each folder once, but none to a folder of the tree or to one that holds the tree.

    :param leave: folders that are left out, wherever a link leads to them.
    :param refuse: called for each folder that cannot be opened; what it raises ends the walk.
    :param skip: called for each folder and each link to one that is passed over.
    :raises InputError: there is no such tree or, without ``refuse``, one of its folders cannot be opened.
    """
    if not tree.is_dir():
        raise InputError("does not exist", path=tree, hint="check the path")
    root = tree.resolve()
    seen = {_identity(folder) for folder in leave if folder.is_dir()}
    for name, subfolders, names in os.walk(tree, onerror=refuse, followlinks=True):
        folder = Path(name)
        if _identity(folder) in seen:
            subfolders.clear()
            skip(folder)
            continue
        seen.add(_identity(folder))
        subfolders.sort()
        for link in [folder / name for name in subfolders if (folder / name).is_symlink()]:
            target = link.resolve()
            if target.is_relative_to(root) or root.is_relative_to(target):
                subfolders.remove(link.name)
                skip(link)
        yield folder, sorted(names)


def _identity(folder: Path) -> tuple[int, int]:
    """What a folder is known by, whichever way leads to it."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def choose_series(scan: DicomScan, uid: str | None = None) -> DicomSeries:
    """The series with this UID, or the only usable one.

    :raises InputError: none is usable, several are and none was named, the named one is missing or unusable, or a
        damaged file may belong to it.
    """
    if scan.without_series:
        others = f" ({len(scan.without_series) - 1} more too)" if len(scan.without_series) > 1 else ""
        raise InputError(
            f"lacks a Series Instance UID{others}, so it is unknown which slices belong together",
            path=scan.without_series[0],
            hint="anonymize the original so that UIDs are replaced and not removed",
        )
    if not scan.series and not scan.damaged:
        raise InputError(scan.nothing, path=scan.path, hint="give the folder of a CT series, or a NRRD or NIfTI file")
    if scan.damaged:
        others = f" ({len(scan.damaged) - 1} more are too)" if len(scan.damaged) > 1 else ""
        raise InputError(
            f"is a damaged, incomplete or unreadable DICOM file{others}",
            path=next(iter(scan.damaged)),
            hint="copy it again from its source or take it out of the folder",
        )
    if uid is None:
        return _only_usable(scan)
    named = next((series for series in scan.series if series.uid == uid), None)
    if named is None:
        raise InputError(f"holds no series {uid}, only {_listing(scan.series)}", path=scan.path, hint=CHOOSE_SERIES)
    if named.problem:
        raise InputError(f"Series {named.summary()} cannot be used: it {named.problem}; choose another.")
    return named


def image_problem(header: Header) -> str | None:
    """Why the pixels of a CT image cannot be turned into HU, as the end of a sentence that begins with "it"."""
    if header.text("SamplesPerPixel") != "1" or not header.text("PhotometricInterpretation").startswith("MONOCHROME"):
        return "holds color pictures (screen captures), not CT values"
    bits = [header.text(keyword) for keyword in ("BitsAllocated", "BitsStored", "HighBit")]
    if bits[0] != "16":
        return f"has {bits[0] or 'an unknown number of'} bits a pixel, where CT in HU has 16"
    if not bits[1].isdigit() or not 8 < int(bits[1]) <= 16 or bits[2] != str(int(bits[1]) - 1):
        return f"packs its pixels unusually (Bits Stored {bits[1]}, High Bit {bits[2]})"
    if not header.is_enhanced and not (header.text("RescaleSlope") and header.text("RescaleIntercept")):
        return "lacks Rescale Slope or Rescale Intercept, so its HU are unknown"
    if header.text("RescaleType") not in HU_RESCALE_TYPES:
        found = header.text("RescaleType")
        return f"has values of {f'Rescale Type {found}' if found in RESCALE_TYPES else 'another unit'}, not HU"
    if header.number("InConcatenationTotalNumber") > 1:
        return "is one part of a divided multi-frame object (a concatenation)"
    return None


def _only_usable(scan: DicomScan) -> DicomSeries:
    if len(scan.usable) == 1:
        return scan.usable[0]
    if scan.usable:
        raise InputError(
            f"holds {len(scan.usable)} CT series ({_listing(scan.usable)})",
            path=scan.path,
            hint=CHOOSE_SERIES,
        )
    reasons = "; ".join(f"{series.summary()} {series.problem}" for series in scan.series)
    raise InputError(f"holds no CT series in HU: {reasons}", path=scan.path, hint="give the folder of a CT series")


def _listing(series: Sequence[DicomSeries]) -> str:
    return "; ".join(one.summary() for one in series)
