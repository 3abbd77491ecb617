"""Protection of a collection: a tree of folders with CT in, the same tree with its CT protected out.

File for file: a protected image takes the relative path of its original, so that a folder with several series becomes
a folder with the same several series, under their new UIDs. What was finished is written down for each scan in
``OUT/.mitsgan``, by the process that finished it, so a run that was stopped or killed continues where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import hashlib
import json
import logging
import math
import multiprocessing
import os
import posixpath
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from MITSGANLib import __version__, dicom
from MITSGANLib.atomic import atomic_file, output_error
from MITSGANLib.devices import describe_device, resolve_device
from MITSGANLib.dicom.headers import read_header
from MITSGANLib.dicom.series import DicomSeries
from MITSGANLib.errors import DependencyError, InputError, ModelError, OutputError
from MITSGANLib.protector import Protector, load_protector, protect
from MITSGANLib.seal import Key, read_key_file, save_sealed
from MITSGANLib.seal.sealing import seal_file
from MITSGANLib.storage import load_volume, save_volume
from MITSGANLib.volume import PROTECTION, CTVolume, VolumeWarning

from .inventory import (
    ATTACK,
    PROTECTED,
    RECORDS,
    SUMMARY,
    Failure,
    Other,
    Scan,
    data_files,
    file_fact,
    relative_path,
    take_stock,
)
from .workers import run_all

Progress = Callable[[int, int], None]
Stage = Callable[[str, str], AbstractContextManager[Progress]]
Save = Callable[..., tuple[VolumeWarning, ...]]

# A sealed scan takes some 5 % more than a plain, uncompressed one.
_SEALED = 1.1


@dataclass(frozen=True)
class CollectionConfig:
    """What to protect, where to, and how.

    :param tree: folder of the originals; never changed.
    :param out: a new or empty folder, or that of an earlier run.
    :param model: name or .safetensors file of a protector.
    :param strength_hu: largest change in HU; the model's own where None.
    :param device: "auto", "cpu" or "cuda", for each process.
    :param others: what becomes of files that are no CT scan.
    :param redo: protect scans again that are finished.
    :param processes: processes on this machine; each holds one scan.
    :param scheduler: address of a Dask scheduler, whose workers replace the processes.
    :param key: seals each scan, so that it can be restored: a key file, which each process reads itself, or the key of
        a passphrase, which is never sent to a scheduler.
    """

    tree: Path
    out: Path
    model: str = "default"
    strength_hu: float | None = None
    seed: int = 0
    device: str = "auto"
    others: Literal["skip", "copy"] = "skip"
    redo: bool = False
    processes: int = 1
    scheduler: str | None = None
    key: Path | Key | None = None


@dataclass(frozen=True)
class Change:
    """How far a scan was changed. Exact sums, so that scans can be pooled.

    :param squared_hu2: sum of the squared differences over all voxels, HU squared.
    :param maximum_hu: largest absolute difference.
    :param changed: number of voxels that differ.
    """

    voxels: int = 0
    squared_hu2: int = 0
    maximum_hu: int = 0
    changed: int = 0

    @property
    def rmse_hu(self) -> float | None:
        """Root mean square over the whole volume, surrounding air and padding included; None without voxels."""
        return math.sqrt(self.squared_hu2 / self.voxels) if self.voxels else None

    def __add__(self, other: Change) -> Change:
        return Change(
            self.voxels + other.voxels,
            self.squared_hu2 + other.squared_hu2,
            max(self.maximum_hu, other.maximum_hu),
            self.changed + other.changed,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures with their definition."""
        return {
            "rmse_hu": None if self.rmse_hu is None else round(self.rmse_hu, 3),
            "maximum_hu": self.maximum_hu,
            "changed_voxels": self.changed,
            "region": "whole volume",
        }


@dataclass(frozen=True)
class Record:
    """What is written down of a finished scan.

    :param settings: what decides the output besides the scan: SHA-256 of the model, budget, seed, and which key.
    :param content: digest of the contents of the scan's files.
    :param outputs: bytes of each file that was written, by its path relative to the output.
    """

    source: str
    uid: str
    settings: dict[str, Any]
    stamp: str
    content: str
    outputs: dict[str, int]
    slices: int
    change: Change
    seconds: float
    device: str
    warnings: tuple[str, ...]
    version: str = __version__

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in a file; None where there is none that this version can read, so that the scan is redone."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            change, warnings = Change(**values.pop("change")), tuple(values.pop("warnings"))
            record = cls(**values, change=change, warnings=warnings)
            # What is written down as an output may be removed later, so it must lie in the output.
            is_within = all(".." not in Path(file).parts and not Path(file).is_absolute() for file in record.outputs)
            return record if is_within else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


@dataclass
class Report:
    """What became of everything in the tree.

    :param protected: the finished scans, and whether an earlier run had finished them.
    :param skipped: files that are no CT to be protected, and whether they were copied.
    :param left_over: sources of protected scans in the output that this run did not find, or not find usable.
    """

    protected: list[tuple[Record, bool]] = field(default_factory=list)
    skipped: list[tuple[Other, bool]] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0

    @property
    def change(self) -> Change:
        """The change pooled over the voxels of all protected scans."""
        return sum((record.change for record, _ in self.protected), Change())

    @property
    def slices(self) -> int:
        return sum(record.slices for record, _ in self.protected)

    @property
    def skipped_by_reason(self) -> Counter[str]:
        """Number of files for each reason."""
        counts: Counter[str] = Counter()
        for other, _ in self.skipped:
            counts[other.reason] += len(other.files)
        return counts

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; all paths are relative to the tree and, being the same, to the output."""
        return {
            "complete": self.complete,
            "seconds": round(self.seconds, 1),
            "counts": {
                "protected": len(self.protected),
                "protected_by_an_earlier_run": sum(earlier for _, earlier in self.protected),
                "failed": len(self.failed),
                "skipped_files": self.skipped_by_reason.total(),
                "copied_files": sum(len(other.files) for other, copied in self.skipped if copied),
            },
            "slices": self.slices,
            "change": self.change.to_dict(),
            "skipped_files_by_reason": dict(self.skipped_by_reason.most_common()),
            "protected": [
                {
                    "source": record.source,
                    "series_instance_uid": record.uid or None,
                    "files": len(record.outputs),
                    "slices": record.slices,
                    "change": record.change.to_dict(),
                    "seconds": record.seconds,
                    "device": record.device,
                    "earlier": earlier,
                    "warnings": list(record.warnings),
                }
                for record, earlier in sorted(self.protected, key=lambda pair: (pair[0].source, pair[0].uid))
            ],
            "failed": [
                {"source": one.source, "series_instance_uid": one.uid or None, "reason": one.reason}
                for one in sorted(self.failed, key=lambda one: (one.source, one.uid))
            ],
            "skipped": [
                {"source": other.source, "files": len(other.files), "reason": other.reason, "copied": copied}
                for other, copied in sorted(self.skipped, key=lambda pair: (pair[0].source, pair[0].reason))
            ],
            "left_over": sorted(self.left_over),
        }


def measure_change(before: CTVolume, after: CTVolume) -> Change:
    """The difference of two scans of one shape, slice by slice, since whole scans in float64 are large."""
    total = Change()
    for old, new in zip(before.hu, after.hu, strict=True):
        difference = np.subtract(new, old, dtype=np.int64)
        squared = int(np.sum(np.square(difference)))
        total += Change(difference.size, squared, int(np.abs(difference).max()), int(np.count_nonzero(difference)))
    return total


def protect_collection(config: CollectionConfig, stage: Stage | None = None) -> Report:
    """Protect every CT scan of a tree into ``config.out``, and write the summary there.

    :param stage: gives the progress callable of a stage (called as ``progress(done, total)``) from its description and
        its unit. Progress may raise ``CancelledError``; what is finished then stays, and the summary says that it is
        not complete.
    :raises InputError: the tree is missing or empty, or the Dask scheduler does not answer.
    :raises OutputError: the output overlaps the tree, holds something else, is in use by another run, or the disk has
        too little space for all of it.
    :raises ModelError, DependencyError: the model or the device is not there.
    """
    started = time.monotonic()
    config = _checked(config)
    protector = load_protector(config.model, strength_hu=config.strength_hu, seed=config.seed)
    settings = _settings(protector, _key(config))
    if not config.scheduler:
        resolve_device(config.device)
    stage = stage or _silent
    with stage("Scanning", "file") as progress:
        inventory = take_stock(config.tree, progress)
    records = {key: record for key in _recorded_keys(config.out) if (record := _read_record(config.out, key))}
    report = Report(failed=list(inventory.failures), left_over=_left_over(records, inventory.scans))
    jobs: list[_Protection | _Copy] = []
    for scan in inventory.scans:
        record = records.get(scan.key)
        if record and not config.redo and _is_current(record, scan, settings, config.out):
            report.protected.append((record, True))
        else:
            jobs.append(_Protection(config, scan, settings, record))
    for other in inventory.others:
        if config.others == "copy" and other.may_copy:
            jobs.append(_Copy(config, other))
        else:
            report.skipped.append((other, False))
    _require_space(config.out, _expected_bytes(jobs, config))
    with _claimed(config.out), _passing_on_sigterm(), _folders_for(jobs, config.out):
        try:
            with stage("Protecting", "scan") as progress:
                _work_off(jobs, config, report, progress)
            report.complete = True
        finally:
            report.seconds = time.monotonic() - started
            _write_summary(config, settings, report)
    return report


def _silent(_description: str, _unit: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda _done, _total: None)


@dataclass(frozen=True)
class _Done:
    """What a job reports: a record, or the reason why there is none."""

    record: Record | None = None
    earlier: bool = False
    reason: str = ""
    copied: bool = False


@dataclass(frozen=True)
class _Protection:
    """One scan to protect. ``record`` is that of an earlier run."""

    config: CollectionConfig
    scan: Scan
    settings: dict[str, Any]
    record: Record | None

    @property
    def files(self) -> tuple[str, ...]:
        return self.scan.files

    @property
    def expected_bytes(self) -> int:
        return math.ceil(self.scan.expected_bytes * (1 if self.config.key is None else _SEALED))

    def failed(self, reason: str) -> Failure:
        return Failure(self.scan.source, reason, self.scan.uid)

    def run(self) -> _Done:
        with _stopped_by_sigterm():
            return self._refreshed() or self._protected()

    def _refreshed(self) -> _Done | None:
        """The earlier result, when the files were only touched or copied anew since."""
        if self.record is None or self.config.redo:
            return None
        record = dataclasses.replace(self.record, stamp=self.scan.stamp)
        if not _is_current(record, self.scan, self.settings, self.config.out):
            return None
        if record.content != _content(self.config.tree, self.scan.files):
            return None
        _write_record(self.config.out, self.scan.key, record)
        return _Done(record, earlier=True)

    def _protected(self) -> _Done:
        started = time.monotonic()
        config, scan = self.config, self.scan
        _require_space(config.out, self.expected_bytes)
        volume = _load(config.tree, scan)
        if volume.provenance.is_simulated_attack:
            return _Done(reason=ATTACK)
        if any(step.kind == PROTECTION for step in volume.provenance.steps):
            copied = config.others == "copy"
            if copied:
                _copy_files(config, scan.files)
            return _Done(reason=PROTECTED, copied=copied)
        protector = _protector(config.model, config.strength_hu, config.seed)
        key = _key(config)
        if _settings(protector, key) != self.settings:
            raise ModelError(
                f"Model '{protector.name}' or the key file differs on this machine; install the same on all workers."
            )
        protected = _protect(volume, protector, config.device)
        record = Record(
            source=scan.source,
            uid=scan.uid,
            settings=self.settings,
            stamp=scan.stamp,
            content=_content(config.tree, scan.files),
            outputs={},
            slices=volume.shape[0],
            change=measure_change(volume, protected),
            seconds=0.0,
            device=describe_device(resolve_device(config.device)),
            warnings=tuple(warning.name for warning in volume.provenance.warnings),
        )
        # Without a record, what is there counts as unfinished: from here on the earlier one would not be true.
        _record_path(config.out, scan.key).unlink(missing_ok=True)
        outputs, warnings = _write(protected, functools.partial(_save, original=volume, key=key), config, scan)
        record = dataclasses.replace(
            record,
            outputs={output: (config.out / output).stat().st_size for output in outputs},
            seconds=round(time.monotonic() - started, 2),
            warnings=(*record.warnings, *warnings),
        )
        _write_record(config.out, scan.key, record)
        for obsolete in set(self.record.outputs if self.record else ()) - set(outputs):
            (config.out / obsolete).unlink(missing_ok=True)
        return _Done(record)


@dataclass(frozen=True)
class _Copy:
    """Files to copy unchanged."""

    config: CollectionConfig
    other: Other

    @property
    def files(self) -> tuple[str, ...]:
        return self.other.files

    @property
    def expected_bytes(self) -> int:
        return self.other.size

    def failed(self, reason: str) -> Failure:
        return Failure(self.other.source, f"Not copied: {reason}")

    def run(self) -> _Done:
        with _stopped_by_sigterm():
            _copy_files(self.config, self.other.files)
        return _Done(reason=self.other.reason, copied=True)


def _run_job(job: _Protection | _Copy) -> _Done:
    # In a process of its own the command line has not silenced pydicom, which logs header values that it finds odd.
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    return job.run()


def _work_off(
    jobs: Sequence[_Protection | _Copy], config: CollectionConfig, report: Report, progress: Progress
) -> None:
    finished = len(report.protected)
    total = finished + len(jobs)
    progress(finished, total)
    outcomes = run_all(_run_job, jobs, processes=config.processes, scheduler=config.scheduler)
    for done, outcome in enumerate(outcomes, start=finished + 1):
        job, result = outcome.item, outcome.result
        if result is None:
            report.failed.append(job.failed(outcome.error))
        elif result.record:
            report.protected.append((result.record, result.earlier))
        else:
            report.skipped.append((Other(job.files, result.reason), result.copied))
        progress(done, total)


@contextmanager
def _folders_for(jobs: Iterable[_Protection | _Copy], out: Path) -> Iterator[None]:
    """The folders that jobs write to, made before, since two jobs may need the same; removed again where empty."""
    folders = {folder for job in jobs for file in job.files for folder in (out / file).parents if folder != out}
    folders = sorted((folder for folder in folders if folder.is_relative_to(out)), key=lambda one: len(one.parts))
    try:
        for folder in folders:
            _make(folder)
        yield
    finally:
        for folder in reversed(folders):
            with suppress(OSError):  # not empty
                folder.rmdir()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, folder) from error


def _load(tree: Path, scan: Scan) -> CTVolume:
    if not scan.uid:
        return load_volume(tree / scan.files[0])
    headers = [read_header(tree / file) for file in scan.files]
    if None in headers:
        raise InputError("Files of the series changed while the collection was worked on; run the command again.")
    return dicom.read_series(DicomSeries(scan.uid, tuple(headers)), source=str(tree / scan.source))


@functools.lru_cache(maxsize=1)
def _protector(model: str, strength_hu: float | None, seed: int) -> Protector:
    """Loaded once in each process."""
    return load_protector(model, strength_hu=strength_hu, seed=seed)


def _key(config: CollectionConfig) -> Key | None:
    return read_key_file(config.key) if isinstance(config.key, Path) else config.key


def _settings(protector: Protector, key: Key | None) -> dict[str, Any]:
    settings = {"model_sha256": protector.digest, "seed": protector.seed, "budget": protector.budget.to_dict()}
    return settings if key is None else {**settings, "sealed_with": key.id or "passphrase"}


def _protect(volume: CTVolume, protector: Protector, device: str) -> CTVolume:
    try:
        return protect(volume, model=protector, device=device)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise DependencyError(
            "The device ran out of memory; use fewer processes, which share one GPU, or --device cpu."
        ) from error


def _save(
    volume: CTVolume, path: Path, *, original: CTVolume, key: Key | None, overwrite: bool = False
) -> tuple[VolumeWarning, ...]:
    """Save a protected volume, sealed where there is a key."""
    if key is None:
        return save_volume(volume, path, overwrite=overwrite)
    return save_sealed(volume, original, path, key, overwrite=overwrite)


def _write(volume: CTVolume, save: Save, config: CollectionConfig, scan: Scan) -> tuple[list[str], list[str]]:
    """Write a protected scan at the places of its originals; their relative paths, and names of warnings."""
    if scan.uid:
        return _write_series(volume, save, config)
    target = config.out / scan.files[0]
    _remove_leavings(target)
    warnings = save(volume, target, overwrite=True)
    beside = data_files(target) if config.key is None else [*data_files(target), seal_file(target)]
    written = [scan.files[0], *(relative_path(file, config.out) for file in beside)]
    return written, [warning.name for warning in warnings]


def _write_series(volume: CTVolume, save: Save, config: CollectionConfig) -> tuple[list[str], list[str]]:
    """The series is written whole beside its place; then all files move in, and all move back should one fail."""
    originals = [relative_path(file, config.tree) for file in volume.provenance.dicom_files]
    with ExitStack() as stack:
        folders: dict[str, Path] = {}
        for original in originals:
            if (folder := posixpath.dirname(original)) not in folders:
                _remove_leavings(config.out / original)
                folders[folder] = stack.enter_context(atomic_file(config.out / original, overwrite=True)).parent
        series = next(iter(folders.values())) / RECORDS
        warnings = save(volume, series)
        # The writer names its files in slice order, the order of the originals.
        for file, original in zip(sorted(series.iterdir()), originals, strict=True):
            file.rename(folders[posixpath.dirname(original)] / posixpath.basename(original))
        series.rmdir()
    return originals, [warning.name for warning in warnings]


def _copy_files(config: CollectionConfig, names: Iterable[str]) -> None:
    """Copy with times of change; what is there with the same size and time stays."""
    for name in names:
        source, target = config.tree / name, config.out / name
        if target.is_file() and file_fact(config.tree, source) == file_fact(config.out, target):
            continue
        try:
            source.open("rb").close()
        except OSError as error:
            raise InputError(f"{source} cannot be read ({error.strerror}); check its permissions.") from error
        _remove_leavings(target)
        with atomic_file(target, overwrite=True) as temporary:
            shutil.copy2(source, temporary)


def _remove_leavings(target: Path) -> None:
    """Remove what a killed run left of its unfinished work on this file (see ``atomic``); only one job writes it."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.????????.partial"):
        shutil.rmtree(path, ignore_errors=True)


def _content(tree: Path, names: Iterable[str]) -> str:
    """Digest of the files' contents, whatever their names and order."""
    digests = []
    for name in names:
        with (tree / name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _checked(config: CollectionConfig) -> CollectionConfig:
    """The configuration with absolute paths, which other processes and machines understand, too.

    :raises OutputError: tree and output overlap, or the output holds something else.
    """
    true_tree, true_out = config.tree.resolve(), config.out.resolve()
    if true_tree.is_relative_to(true_out) or true_out.is_relative_to(true_tree):
        raise OutputError(
            f"{config.out} and {config.tree} lie within each other, so originals might be overwritten; choose an "
            "output folder beside the tree."
        )
    out = config.out.absolute()
    if out.exists() and not out.is_dir():
        raise OutputError(f"{config.out} is a file; give the name of a folder.")
    if out.is_dir() and not (out / RECORDS).is_dir() and any(out.iterdir()):
        raise OutputError(
            f"{config.out} holds files that no earlier run of this command wrote; choose a new or empty folder."
        )
    model = str(Path(config.model).absolute()) if config.model.endswith(".safetensors") else config.model
    key = config.key.absolute() if isinstance(config.key, Path) else config.key
    if key is not None and config.scheduler and not isinstance(key, Path):
        raise InputError("A passphrase is never sent to a scheduler; seal with a key file that all workers can read.")
    return dataclasses.replace(config, tree=config.tree.absolute(), out=out, model=model, key=key)


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Keep other runs away from the output while this one writes to it; the lock ends with the process.

    :raises OutputError: another run has it, or it cannot be made.
    """
    from filelock import FileLock, Timeout

    _make(out / RECORDS)
    lock = FileLock(out / RECORDS / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"Another run of this command writes to {out}; wait for its end. If there is none, delete {lock.lock_file}."
        ) from error
    except OSError as error:
        raise output_error(error, out) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _passing_on_sigterm() -> Iterator[None]:
    """SIGTERM also reaches the processes that work for this one, which else would first finish their scans."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: object) -> None:
        for child in multiprocessing.active_children():
            child.terminate()
        if callable(previous):
            previous(number, frame)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """In a process of its own, SIGTERM ends the work as Ctrl-C does, so that temporary files are removed, and then it.

    The process has to end: a pool keeps the next item ready for it, which it would begin.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    received = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal received
        received = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would disturb the removal
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if received:
            signal.raise_signal(signal.SIGTERM)


def _record_path(out: Path, key: str) -> Path:
    return out / RECORDS / f"{key}.json"


def _recorded_keys(out: Path) -> list[str]:
    return [path.stem for path in (out / RECORDS).glob("*.json")]


def _read_record(out: Path, key: str) -> Record | None:
    return Record.read(_record_path(out, key))


def _write_record(out: Path, key: str, record: Record) -> None:
    path = _record_path(out, key)
    _remove_leavings(path)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(record.to_json(), encoding="utf-8")


def _is_current(record: Record, scan: Scan, settings: dict[str, Any], out: Path) -> bool:
    """Whether a recorded result still is what this run would make, and is still there."""
    if record.stamp != scan.stamp or record.settings != settings:
        return False
    for output, size in record.outputs.items():
        path = out / output
        if not path.is_file() or path.stat().st_size != size:
            return False
    return True


def _left_over(records: dict[str, Record], scans: Sequence[Scan]) -> list[str]:
    """Sources of recorded scans that are not among the scans, and none of whose files a scan will write."""
    keys = {scan.key for scan in scans}
    written = {file for scan in scans for file in scan.files}
    return [r.source for key, r in records.items() if key not in keys and written.isdisjoint(r.outputs)]


def _expected_bytes(jobs: Sequence[_Protection | _Copy], config: CollectionConfig) -> int:
    """Space that the jobs will take: all that is new, and the largest of each process while it replaces another."""
    new, sizes = 0, [0]
    for job in jobs:
        sizes.append(job.expected_bytes)
        if not all((config.out / file).exists() for file in job.files):
            new += job.expected_bytes
    return new + sum(sorted(sizes)[-config.processes :])


def _require_space(out: Path, needed: int) -> None:
    """
    :raises OutputError: the disk of the output has less than ``needed`` bytes free.
    """
    folder = next(parent for parent in (out, *out.parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{needed / 1e9:.1f} GB are needed on the disk of {out}, but only {free / 1e9:.1f} GB are free; free some "
            "space or choose another disk."
        )


def _write_summary(config: CollectionConfig, settings: dict[str, Any], report: Report) -> None:
    report.failed = [dataclasses.replace(one, reason=_without_folders(one.reason, config)) for one in report.failed]
    summary = {"version": __version__, "settings": settings, **report.to_dict()}
    path = config.out / SUMMARY
    _remove_leavings(path)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _without_folders(text: str, config: CollectionConfig) -> str:
    """A sentence with its paths relative, as all paths of the summary are."""
    for folder in (config.tree, config.out):
        text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
    return text
