"""What is to be done, before any voxel is read: which scans, with which findings, on which side of the split."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.runtime.progress import Progress

from ..data.dataset import CUBES_FOLDER, DATASET_FILE, SCANS_FOLDER
from .cutting import PreparationOptions
from .discovery import DiscoveredScan, discover, file_stem
from .findings import Mark
from .matching import Matched, match, open_findings
from .ready import ReadyCubes, read_ready_cubes
from .segmentations import Segmentation
from .splitting import Split, SplitOptions, split_patients
from .tables import Coordinates, TableRow

# To be raised whenever the same options give other samples, so that scans cut before are cut again.
CUTTING_VERSION = 1


@dataclass(frozen=True)
class Request:
    """What to prepare from what, and where to.

    :param findings: CSV tables, XML readings or folders of them, segmentations (``NAME=FILE`` names the scan).
    :param healthy: CSV tables of healthy places.
    :param cubes: files of ready cubes, see ``ready``.
    :param exclude: scans and patients never to use, by any name that a table may call them.
    :param keep_names: write patients' identifiers as they are, not as digests.
    :param scheduler: address of a Dask scheduler, in place of ``processes``.
    """

    scans: tuple[Path, ...]
    out: Path
    findings: tuple[str, ...] = ()
    healthy: tuple[str, ...] = ()
    cubes: tuple[Path, ...] = ()
    coordinates: Coordinates = "world"
    options: PreparationOptions = field(default_factory=PreparationOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    exclude: tuple[str, ...] = ()
    keep_names: bool = False
    processes: int = 1
    scheduler: str | None = None


@dataclass(frozen=True)
class ScanTask:
    """One scan to cut, all that a worker needs.

    :param digest: of everything that its samples depend on: options, files, findings.
    """

    id: str
    source: DiscoveredScan
    patient: str
    marks: tuple[Mark, ...]
    options: PreparationOptions
    folder: Path
    digest: str
    seed: int


@dataclass(frozen=True)
class PreparationPlan:
    """The scans to use and those that cannot be, the ready cubes, and the split of all their patients."""

    request: Request
    tasks: tuple[ScanTask, ...]
    unusable: tuple[DiscoveredScan, ...]
    ready: tuple[ReadyCubes, ...]
    split: Split
    matched: Matched

    @property
    def public_names(self) -> dict[str, str]:
        """What each patient is called in the prepared data."""
        patients = (*self.split.training, *self.split.validation)
        return {patient: patient if self.request.keep_names else f"p-{short_digest(patient)}" for patient in patients}


def make_plan(request: Request, progress: Progress | None = None) -> PreparationPlan:
    """Everything that can be found wrong without reading voxels is found here.

    :param progress: called as ``progress(done, total)`` in folders whose headers were read.
    :raises InputError: wrong tables, no scan that can be used, or a side of the split without patients.
    :raises OutputError: ``out`` holds other files.
    """
    out = request.out.resolve()
    _check_output(out)
    opened = [open_findings(argument, request.coordinates) for argument in request.findings]
    opened += [open_findings(argument, request.coordinates, healthy=True) for argument in request.healthy]
    excluded = set(request.exclude)
    ready = [read_ready_cubes(path, request.options.injector_from_mm).without(excluded) for path in request.cubes]
    found = discover(
        request.scans,
        leave=[mark.path for file in opened for mark in file.marks if isinstance(mark, Segmentation)],
        processes=request.processes,
        scheduler=request.scheduler,
        progress=progress,
    )
    unusable = tuple(source for source in found if source.problem)
    usable = [source for source in found if not source.problem]
    if not usable:
        raise nothing_usable([source.problem for source in unusable])
    matched = match(opened, usable)
    patients = _patients(usable, matched.marks)
    wanted = [
        source for source in usable if excluded.isdisjoint(source.all_names) and patients[source.key] not in excluded
    ]
    if not wanted:
        raise InputError(f"All {len(usable)} scans are excluded; leave some.")
    tasks = tuple(_task(source, patients[source.key], matched, request, out) for source in wanted)
    return PreparationPlan(request, tasks, unusable, tuple(ready), _split(tasks, ready, request.split), matched)


def nothing_usable(reasons: Sequence[str]) -> InputError:
    """The error when no scan is left, with every reason once."""
    return InputError(f"None of {len(reasons)} scans can be used. {' '.join(sorted(set(reasons)))}")


def short_digest(text: str) -> str:
    """The first 12 hexadecimal digits of a SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_output(out: Path) -> None:
    """Only a folder that is new, empty or of an earlier run is written into."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give the name of a folder.")
    known = {DATASET_FILE, SCANS_FOLDER, CUBES_FOLDER}
    others = sorted({path.name for path in out.iterdir()} - known) if out.is_dir() else []
    if others:
        raise OutputError(f"{out} holds other things than prepared data ({others[0]}); give a new or empty folder.")


def _patients(usable: Sequence[DiscoveredScan], marks: Mapping[str, Sequence[Mark]]) -> dict[str, str]:
    """The patient of each scan by its key: DICOM's PatientID, else what a table says, else the file's name.

    Files of one name in several folders keep the folders in their name.
    """
    stems = Counter(file_stem(Path(source.key).name) for source in usable)
    found = {}
    for source in usable:
        told = [mark.patient for mark in marks.get(source.key, ()) if isinstance(mark, TableRow) and mark.patient]
        stem = file_stem(Path(source.key).name)
        own = source.key if source.series_uid else stem if stems[stem] == 1 else file_stem(source.key)
        found[source.key] = source.patient_id or next(iter(told), own)
    return found


def _task(source: DiscoveredScan, patient: str, matched: Matched, request: Request, out: Path) -> ScanTask:
    marks = matched.marks.get(source.key, ())
    name = short_digest(source.key)
    if request.keep_names:
        name = f"{re.sub(r'[^A-Za-z0-9-]+', '_', patient)}-{name[:8]}"
    files = sorted((Path(file.path).name, file.size, file.modified_ns) for file in source.files)
    facts = [CUTTING_VERSION, dataclasses.asdict(request.options), files, [mark.stamp for mark in marks]]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    # From the key and not from the path: where a collection lies must not change what is drawn.
    seed = int(short_digest(f"{request.options.seed} {source.key}"), 16)
    return ScanTask(name, source, patient, marks, request.options, out / SCANS_FOLDER / name, digest, seed)


def _split(tasks: Sequence[ScanTask], ready: Sequence[ReadyCubes], options: SplitOptions) -> Split:
    with_findings = {task.patient for task in tasks if any(mark.may_be_injected for mark in task.marks)}
    others = {task.patient for task in tasks} - with_findings
    # Two groups of which one has a single patient may not divide evenly; together they do.
    scans = [with_findings, others] if min(len(with_findings), len(others)) > 1 else [with_findings | others]
    return split_patients([*scans, {str(name) for cubes in ready for name in cubes.patients}], options)
