"""Which findings belong to which scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from MITSGANLib.errors import InputError
from MITSGANLib.files import volume_files

from .discovery import DiscoveredScan, file_stem
from .findings import FindingsFile, Mark
from .readings import open_reading
from .segmentations import Segmentation
from .tables import Coordinates, TableRow, read_table


@dataclass(frozen=True)
class Matched:
    """Marks by the key of their scan, what has no single scan as (what, reason), and how many are of other scans."""

    marks: dict[str, tuple[Mark, ...]]
    left_out: tuple[tuple[str, str], ...]
    elsewhere: int


def open_findings(argument: str, coordinates: Coordinates, healthy: bool = False) -> FindingsFile:
    """Open a CSV table, an XML reading or a folder of them, or a segmentation; ``NAME=FILE`` names its scan.

    :raises InputError: when it does not exist, is of no known kind, or is not what its kind must be.
    """
    path, scan_name = Path(argument), ""
    if not path.exists() and "=" in argument:
        scan_name, _, rest = argument.partition("=")
        path = Path(rest)
    path = path.resolve()  # a worker on another machine runs elsewhere
    if path.is_dir():
        if healthy:
            raise InputError(f"{path} is a folder; healthy places come from a CSV table.")
        readings = tuple(filter(None, map(open_reading, sorted(path.rglob("*.xml")))))
        if not readings:
            raise InputError(f"{path} holds no LIDC reading of a CT (*.xml); give the folder of the readings.")
        return FindingsFile(path, readings)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a CSV table, LIDC XML readings or a segmentation.")
    if path.suffix.lower() == ".csv":
        return read_table(path, coordinates, healthy)
    if path.suffix.lower() == ".xml" and not healthy:
        reading = open_reading(path)
        if reading is None:
            raise InputError(f"{path} is no LIDC reading of a CT (its outermost element is not LidcReadMessage).")
        return FindingsFile(path, (reading,))
    if volume_files.format_of(path) and not healthy:
        return FindingsFile(path, (Segmentation(path, scan_name),))
    kinds = "a CSV table (.csv)" if healthy else "a CSV table, LIDC readings (.xml) or a segmentation (.nrrd, .nii)"
    raise InputError(f"{path} is no file that can be read here; give {kinds}.")


def match(opened: Sequence[FindingsFile], scans: Sequence[DiscoveredScan]) -> Matched:
    """Give each mark to the one scan that it names.

    Names are compared from the most specific on (series, path, file or folder, patient); the first that any scan has
    decides. Tables and readings of whole collections may name more scans than are there.

    :raises InputError: when nothing in one of the files belongs to any scan, or a segmentation has no single scan.
    """
    marks: dict[str, list[Mark]] = {}
    left_out, elsewhere = [entry for file in opened for entry in file.left_out], 0
    named: dict[str, list[tuple[int, DiscoveredScan]]] = {}
    for scan in scans:
        for precision, names in enumerate(scan.names):
            for name in names:
                named.setdefault(name, []).append((precision, scan))
    for file in opened:
        matched = 0
        for mark in file.marks:
            found = _scans_of(mark, named)
            matched += bool(found)
            if len(found) == 1:
                marks.setdefault(found[0].key, []).append(mark)
            elif not found:
                elsewhere += 1
            elif isinstance(mark, Segmentation):
                raise InputError(f"{file.path} may belong to {len(found)} scans; say to which one with NAME=FILE.")
            else:
                what = mark.place if isinstance(mark, TableRow) else f"the reading {mark.path.name}"
                left_out.append((what, f"names {len(found)} scans; name one by its series UID, file or folder"))
        if file.marks and not matched:
            first = PurePosixPath(file.marks[0].scan_names[0].replace("\\", "/")).name
            raise InputError(
                f"Nothing in {file.path} belongs to any of the {len(scans)} scans; it names '{first}', where the "
                "series UID, file or folder name, or PatientID of a scan is expected (for a segmentation: NAME=FILE)."
            )
    return Matched({key: tuple(found) for key, found in marks.items()}, tuple(left_out), elsewhere)


def _scans_of(mark: Mark, named: Mapping[str, Sequence[tuple[int, DiscoveredScan]]]) -> list[DiscoveredScan]:
    """The scans that a mark names most precisely."""
    names = _spellings(mark.scan_name) if isinstance(mark, TableRow) else mark.scan_names
    found = next((named[name] for name in names if name in named), ())
    best = min((precision for precision, _ in found), default=0)
    return list({scan.key: scan for precision, scan in found if precision == best}.values())


def _spellings(name: str) -> tuple[str, ...]:
    """A table's name for a scan, as written, then without folders, then without suffix; ``.dcm`` names its folder."""
    path = PurePosixPath(name.replace("\\", "/").strip("/"))
    if path.suffix.lower() == ".dcm":
        path = path.parent
    return path.as_posix(), path.name, file_stem(path.name)
