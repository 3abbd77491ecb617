"""The engine of all commands over a tree of scans: records, the lock, copies, space, progress, the summary.

What was finished is written down for each scan in ``OUT/.mitsgan``, by the process that finished it, so a run that was
stopped or killed continues where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
from operator import methodcaller
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from MITSGANLib import __version__
from MITSGANLib.errors import InputError, OutputError, reading
from MITSGANLib.files.atomic import atomic_file, output_error, remove_leavings, require_space
from MITSGANLib.files.dicom.headers import read_header
from MITSGANLib.files.dicom.series import DicomSeries
from MITSGANLib.keys.key_files import Key, read_key_file
from MITSGANLib.runtime.progress import Progress

from ..workers import run_all
from .inventory import RECORDS, SUMMARY, Failure, Inventory, Other, StockedScan, read_kept, relative_path

Stage = Callable[[str, str], AbstractContextManager[Progress]]
Tell = Callable[[dict[str, Any]], None]

COMMAND = "command"
KEPT = "folders.jsonl"
_PROTECT = "protect"
# Exit codes of single scans, the worst first: changed, unusable, cannot be told.
_WORST = (7, InputError.exit_code, 8)


@dataclass(frozen=True)
class TreeConfig:
    """What to work on, where to, and how.

    :param tree: folder of the input; never changed.
    :param out: a new or empty folder, or that of an earlier run.
    :param others: what becomes of files that are no scan for this command.
    :param redo: do scans again that are finished.
    :param processes: processes on this machine; each holds one scan.
    :param scheduler: address of a Dask scheduler, whose workers replace the processes.
    :param key: seals or restores each scan: a key file, which each process reads itself, or the key of a passphrase,
        which is never sent to a scheduler.
    """

    tree: Path
    out: Path
    others: Literal["skip", "copy"] = "skip"
    redo: bool = False
    processes: int = 1
    scheduler: str | None = None
    key: Path | Key | None = None

    def read_key(self) -> Key | None:
        """The key itself.

        :raises InputError: its file cannot be read.
        """
        return read_key_file(self.key) if isinstance(self.key, Path) else self.key


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is written down of a finished scan.

    :param settings: what decides the output besides the scan.
    :param stamp: of the scan's files, see ``inventory.StockedScan``.
    :param content: digest of the contents of the scan's files.
    :param outputs: bytes of each file that was written, by its path relative to the output.
    """

    source: str
    uid: str
    settings: dict[str, Any]
    stamp: str
    content: str
    outputs: dict[str, int]
    seconds: float
    warnings: tuple[str, ...] = ()
    version: str = __version__

    def to_json(self) -> str:
        """The text of a record's file."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """A record of the values that JSON gave."""
        return cls(**{**values, "warnings": tuple(values["warnings"])})

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """The record in a file; None where this version can read none, and the scan is done again."""
        try:
            record = cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
            # What is written down as an output may be removed later, so it must lie in the output.
            is_within = all(".." not in Path(file).parts and not Path(file).is_absolute() for file in record.outputs)
            return record if is_within else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def is_current(self, scan: StockedScan, settings: dict[str, Any], out: Path) -> bool:
        """Whether this result still is what a run would make, and is still there."""
        if self.stamp != scan.stamp or self.settings != settings:
            return False
        for output, size in self.outputs.items():
            path = out / output
            if not path.is_file() or path.stat().st_size != size:
                return False
        return True

    @property
    def files(self) -> int:
        """Number of files that were written."""
        return len(self.outputs)

    @property
    def code(self) -> int:
        """The exit code of this scan."""
        return 0

    @property
    def outcome(self) -> str:
        """What became of the scan, beyond that it was worked on."""
        return ""

    def summary(self) -> dict[str, Any]:
        """JSON-ready form for the summary."""
        return {
            "source": self.source,
            "series_instance_uid": self.uid or None,
            "files": self.files,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
        }


@dataclass
class TreeReport:
    """What became of everything in the tree.

    :param command, doing, verb: the command, as what it is, does, and has done.
    :param unit: what is counted of all finished scans, a number of their records; empty for nothing.
    :param finished: the finished scans, and whether an earlier run had finished them.
    :param skipped: files that are no scan for this command, and whether they were copied.
    :param left_over: sources of finished scans in the output that this run did not find, or not find usable.
    :param seconds: since ``started``, a time of ``time.monotonic``.
    """

    command: str
    doing: str
    verb: str
    unit: str = ""
    finished: list[tuple[Record, bool]] = field(default_factory=list)
    skipped: list[tuple[Other, bool]] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def skipped_by_reason(self) -> Counter[str]:
        """Number of files for each reason."""
        counts: Counter[str] = Counter()
        for other, _ in self.skipped:
            counts[other.reason] += len(other.files)
        return counts

    @property
    def amount(self) -> int:
        """How many of ``unit`` all finished scans have."""
        return sum(getattr(record, self.unit) for record, _ in self.finished)

    def figures(self) -> dict[str, Any]:
        """JSON-ready figures over all finished scans."""
        return {self.unit: self.amount} if self.unit else {}

    @property
    def exit_code(self) -> int:
        """The worst of all scans."""
        codes = {record.code for record, _ in self.finished} | {InputError.exit_code for _ in self.failed}
        return next((code for code in _WORST if code in codes), 0)

    def totals(self) -> dict[str, Any]:
        """JSON-ready counts."""
        return {
            "complete": self.complete,
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 1),
            "counts": {
                self.verb: len(self.finished),
                f"{self.verb}_by_an_earlier_run": sum(earlier for _, earlier in self.finished),
                "failed": len(self.failed),
                "skipped_files": self.skipped_by_reason.total(),
                "copied_files": sum(len(other.files) for other, copied in self.skipped if copied),
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; all paths are relative to the tree and, being the same, to the output."""
        return {
            **self.totals(),
            **self.figures(),
            "skipped_files_by_reason": dict(self.skipped_by_reason.most_common()),
            self.verb: [
                {**record.summary(), "earlier": earlier}
                for record, earlier in sorted(self.finished, key=lambda pair: (pair[0].source, pair[0].uid))
            ],
            "failed": [one.summary() for one in sorted(self.failed, key=lambda one: (one.source, one.uid))],
            "skipped": [
                {"source": other.source, "files": len(other.files), "reason": other.reason, "copied": copied}
                for other, copied in sorted(self.skipped, key=lambda pair: (pair[0].source, pair[0].reason))
            ],
            "left_over": sorted(self.left_over),
        }


@dataclass(frozen=True)
class Done:
    """What a job reports: a record, or the reason why there is none."""

    record: Record | None = None
    earlier: bool = False
    reason: str = ""
    copied: bool = False


@dataclass(frozen=True)
class ScanJob:
    """One scan to work on, picklable; subclasses say how in ``work``. ``record`` is that of an earlier run."""

    record_type: ClassVar[type[Record]]

    config: TreeConfig
    scan: StockedScan
    settings: dict[str, Any]
    record: Record | None

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are worked on, relative to the tree."""
        return self.scan.files

    @property
    def targets(self) -> tuple[str, ...]:
        """The files that are written, relative to the output, as far as they have the names of their sources."""
        return self.scan.files

    @property
    def expected_bytes(self) -> int:
        """About what the output takes on the disk."""
        return self.scan.expected_bytes

    def failed(self, reason: str) -> Failure:
        """What to report where the job failed."""
        return Failure(self.scan.source, reason, self.scan.uid)

    def is_done(self, record: Record) -> bool:
        """Whether a record of this scan says all that is to be done."""
        return record.is_current(self.scan, self.settings, self.config.out)

    def run(self) -> Done:
        """Do the work."""
        with stopped_by_sigterm():
            return self._refreshed() or self.work()

    def known(self) -> dict[str, Any]:
        """Values of the record that are known before the work."""
        return {}

    def work(self) -> Done:
        """Work on the scan."""
        raise NotImplementedError

    def finish(self, write: Callable[[], tuple[Sequence[str], dict[str, Any]]], started: float) -> Done:
        """Write the output and then its record.

        :param write: writes the output, and gives its files by their paths relative to it, and the values of the record
            that are not those of every record.
        :param started: a time of ``time.monotonic``.
        """
        out, scan = self.config.out, self.scan
        content = content_digest(self.config.tree, scan.files)
        # Without a record, what is there counts as unfinished: from here on the earlier one would not be true.
        record_path(out, scan.key).unlink(missing_ok=True)
        written, values = write()
        record = self.record_type(
            source=scan.source,
            uid=scan.uid,
            settings=self.settings,
            stamp=scan.stamp,
            content=content,
            outputs={output: (out / output).stat().st_size for output in written},
            seconds=round(time.monotonic() - started, 2),
            **self.known(),
            **values,
        )
        write_record(out, scan.key, record)
        for obsolete in set(self.record.outputs if self.record else ()) - set(written):
            (out / obsolete).unlink(missing_ok=True)
        return Done(record)

    def pass_over(self, reason: str, *, may_copy: bool = True) -> Done:
        """Leave the scan as it is, and copy it where such files are to be copied."""
        copied = may_copy and self.config.others == "copy"
        if copied:
            copy_files(self.config, self.scan.files)
        return Done(reason=reason, copied=copied)

    def _refreshed(self) -> Done | None:
        """The earlier result, when the files were only touched or copied anew since."""
        if self.record is None or self.config.redo:
            return None
        record = dataclasses.replace(self.record, stamp=self.scan.stamp)
        if not self.is_done(record):
            return None
        if record.content != content_digest(self.config.tree, self.scan.files):
            return None
        write_record(self.config.out, self.scan.key, record)
        return Done(record, earlier=True)


@dataclass(frozen=True)
class CopyJob:
    """Files to copy unchanged; worked off as a :class:`ScanJob` is."""

    config: TreeConfig
    other: Other

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are worked on, relative to the tree."""
        return self.other.files

    targets = files

    @property
    def expected_bytes(self) -> int:
        """About what the output takes on the disk."""
        return self.other.size

    def failed(self, reason: str) -> Failure:
        """What to report where the job failed."""
        return Failure(self.other.source, f"Not copied: {reason}")

    def run(self) -> Done:
        """Do the work."""
        with stopped_by_sigterm():
            copy_files(self.config, self.other.files)
        return Done(reason=self.other.reason, copied=True)


Job = ScanJob | CopyJob
Report = TypeVar("Report", bound=TreeReport)


def work_through(
    config: TreeConfig,
    report: Report,
    job: type[ScanJob],
    settings: dict[str, Any],
    take_stock: Callable[..., Inventory],
    stage: Stage | None,
    tell: Tell | None = None,
) -> Report:
    """Do all that is left to do in a tree into ``report``, and write the summary, whatever happens.

    :param config: as :func:`checked` gives it.
    :param settings: what decides the output besides the scan.
    :param take_stock: gives what the tree holds, as :func:`inventory.take_stock` does.
    :param stage: gives the progress callable of a stage (called as ``progress(done, total)``) from its description and
        its unit. Progress may raise ``CancelledError``; what is finished then stays, and the summary says that it is
        not complete.
    :param tell: is told what becomes of each scan as soon as that is known, JSON-ready; see :class:`_Teller`.
    :raises OutputError: the output is another command's, is in use by another run, or the disk is too small for all.
    """
    stage, kept = stage or _no_stages, config.out / RECORDS / KEPT
    teller = _Teller(report, tell or (lambda _: None))
    with stage("Scanning", "file") as progress:
        inventory = take_stock(
            config.tree, teller.scanning(progress), kept=read_kept(kept), without=config.out.resolve()
        )
    jobs = _sort_out(config, inventory, job, settings, report)
    require_space(config.out, _expected_bytes(jobs, config))
    with claimed(config.out, report.command), _passing_on_sigterm(), _folders_for(jobs, config.out):
        inventory.keep(kept)
        del inventory
        try:
            with stage(report.doing, "scan") as progress:
                _work_off(jobs, config, report, progress, teller)
            report.complete = True
        finally:
            report.seconds = time.monotonic() - report.started
            _write_summary(config, settings, report)
            teller.end()
    return report


class _Teller:
    """Tells another program how far a run is: dictionaries, each with an ``event``.

    ``scanning`` (files ``done`` of ``total``, at most one each second), ``begin`` (scans ``done`` of ``total``),
    ``scan`` for each scan and each group of other files, with its ``outcome``, ``exit_code`` and ``seconds_left`` (None
    while unknown), and ``end`` with the exit code and the counts of all.
    """

    def __init__(self, report: TreeReport, tell: Tell) -> None:
        self._report, self._tell = report, tell
        self._done = self._total = self._earlier = 0
        self._began = self._told = time.monotonic()

    def scanning(self, progress: Progress) -> Progress:
        """A progress that tells as well."""

        def report(done: int, total: int) -> None:
            progress(done, total)
            if time.monotonic() > self._told + 1:
                self._told = time.monotonic()
                self._tell({"event": "scanning", "done": done, "total": total})

        return report

    def begin(self, jobs: int) -> None:
        """All that needs no work is known, and so many jobs are to be done."""
        report, self._began = self._report, time.monotonic()
        known = len(report.finished) + len(report.failed) + len(report.skipped)
        self._earlier, self._total = known, known + jobs
        self._tell({"event": "begin", "command": report.command, "done": known, "total": self._total})
        for record, _ in report.finished:
            self.finished(record, earlier=True)
        for failure in report.failed:
            self.failed(failure)
        for other, copied in report.skipped:
            self.skipped(other, copied)

    def finished(self, record: Record, earlier: bool) -> None:
        """Tell of a finished scan."""
        outcome = record.outcome or self._report.verb
        self._one(outcome, record.code, {**record.summary(), "earlier": earlier})

    def failed(self, failure: Failure) -> None:
        """Tell of a failed scan."""
        self._one("failed", InputError.exit_code, failure.summary())

    def skipped(self, other: Other, copied: bool) -> None:
        """Tell of what is no scan for this command."""
        values = {"source": other.source, "files": len(other.files), "reason": other.reason}
        self._one("copied" if copied else "skipped", 0, values)

    def end(self) -> None:
        """The run ends."""
        self._tell({"event": "end", **self._report.totals()})

    def _one(self, outcome: str, code: int, values: dict[str, Any]) -> None:
        self._done += 1
        now, left = self._done - self._earlier, None
        if now > 0:
            left = round((time.monotonic() - self._began) / now * (self._total - self._done), 1)
        place = {"event": "scan", "done": self._done, "total": self._total, "seconds_left": left}
        self._tell({**place, "outcome": outcome, "exit_code": code, **values})


def found_series(tree: Path, scan: StockedScan) -> DicomSeries:
    """The headers of a DICOM series that an inventory found.

    :raises InputError: a file is no DICOM any more.
    """
    headers = [read_header(tree / file) for file in scan.files]
    if None in headers:
        raise InputError("Files of the series changed while the collection was worked on; run the command again.")
    return DicomSeries(scan.uid, tuple(headers))


def checked(config: TreeConfig) -> TreeConfig:
    """The configuration with absolute paths, which other processes and machines understand, too.

    :raises OutputError: tree and output overlap, or the output holds something else.
    :raises InputError: a passphrase would have to be sent to a scheduler.
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
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if config.scheduler and isinstance(config.key, Key):
        raise InputError("A passphrase is never sent to a scheduler; use a key file that all workers can read.")
    if config.scheduler and any(isinstance(value, bytes) for value in values.values()):
        raise InputError("A passphrase is never sent to a scheduler; sign with key files that none locks.")
    return dataclasses.replace(config, **{name: _absolute(value) for name, value in values.items()})


def _absolute(value: Any) -> Any:
    """A path, or each of several, made absolute; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    return value.absolute() if isinstance(value, Path) else value


def write_together(out: Path, names: Sequence[str], fill: Callable[[Path], Sequence[Path]]) -> None:
    """Files that appear together in the folders of the output: all of them, or should one fail, none.

    :param names: of the files, relative to the output.
    :param fill: writes into an empty folder, and gives its files in the order of ``names``.
    """
    with ExitStack() as stack:
        folders: dict[str, Path] = {}
        for name in names:
            if (folder := posixpath.dirname(name)) not in folders:
                remove_leavings(out / name)
                folders[folder] = stack.enter_context(atomic_file(out / name, overwrite=True)).parent
        work = next(iter(folders.values())) / RECORDS
        work.mkdir()
        for file, name in zip(fill(work), names, strict=True):
            file.rename(folders[posixpath.dirname(name)] / posixpath.basename(name))
        shutil.rmtree(work)


def copy_files(config: TreeConfig, names: Iterable[str]) -> None:
    """Copy with times of change; what is there with the same size and time stays."""
    for name in names:
        source, target = config.tree / name, config.out / name
        if target.is_file() and _status(source) == _status(target):
            continue
        with reading(source):
            source.open("rb").close()
        remove_leavings(target)
        with atomic_file(target, overwrite=True) as temporary:
            shutil.copy2(source, temporary)


def _status(path: Path) -> tuple[int, int]:
    """Size and time of change."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def content_digest(tree: Path, names: Iterable[str]) -> str:
    """Digest of the files' contents, whatever their names and order."""
    digests = []
    for name in names:
        with (tree / name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def record_path(out: Path, key: str) -> Path:
    """Where the record of a scan lies."""
    return out / RECORDS / f"{key}.json"


def read_records(out: Path, kind: type[Record]) -> dict[str, Record]:
    """The readable records of an output by the keys of their scans."""
    found = {path.stem: kind.read(path) for path in (out / RECORDS).glob("*.json")}
    return {key: record for key, record in found.items() if record}


def write_record(out: Path, key: str, record: Record) -> None:
    """Write the record of a finished scan."""
    path = record_path(out, key)
    remove_leavings(path)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(record.to_json(), encoding="utf-8")


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
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


def _no_stages(_description: str, _unit: str) -> AbstractContextManager[Progress]:
    """The ``Stage`` of whoever does not look."""
    return nullcontext(lambda _done, _total: None)


def _sort_out(
    config: TreeConfig, inventory: Inventory, job: type[ScanJob], settings: dict[str, Any], report: TreeReport
) -> list[Job]:
    """The jobs that are left to do; what needs none goes into ``report``."""
    records = read_records(config.out, job.record_type)
    report.failed += inventory.failures
    report.left_over += _left_over(records, inventory.scans)
    jobs: list[Job] = []
    for scan in inventory.scans:
        one = job(config, scan, settings, records.get(scan.key))
        if one.record and not config.redo and one.is_done(one.record):
            report.finished.append((one.record, True))
        else:
            jobs.append(one)
    for other in inventory.others:
        if config.others == "copy" and other.may_copy:
            jobs.append(CopyJob(config, other))
        else:
            report.skipped.append((other, False))
    return jobs


def _work_off(jobs: Sequence[Job], config: TreeConfig, report: TreeReport, progress: Progress, teller: _Teller) -> None:
    report.failed = [_relative(failure, config) for failure in report.failed]
    finished = len(report.finished)
    total = finished + len(jobs)
    progress(finished, total)
    teller.begin(len(jobs))
    outcomes = run_all(methodcaller("run"), jobs, processes=config.processes, scheduler=config.scheduler)
    for done, outcome in enumerate(outcomes, start=finished + 1):
        job, result = outcome.item, outcome.result
        if result is None:
            report.failed.append(_relative(job.failed(outcome.error), config))
            teller.failed(report.failed[-1])
        elif result.record:
            report.finished.append((result.record, result.earlier))
            teller.finished(*report.finished[-1])
        else:
            report.skipped.append((Other(job.files, result.reason), result.copied))
            teller.skipped(*report.skipped[-1])
        progress(done, total)


@contextmanager
def _folders_for(jobs: Iterable[Job], out: Path) -> Iterator[None]:
    """The folders that jobs write to, made before, since two jobs may need the same; removed again where empty."""
    folders = {folder for job in jobs for file in job.targets for folder in (out / file).parents if folder != out}
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


@contextmanager
def claimed(out: Path, command: str) -> Iterator[None]:
    """Keep other runs away from the output while this one writes to it; the lock ends with the process.

    :raises OutputError: another run has it, it holds the output of another command, or it cannot be made.
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
        _mark(out, command)
        yield
    finally:
        lock.release()


def _mark(out: Path, command: str) -> None:
    """Write down whose output this is; records without it are those of ``protect``, which came first."""
    mark = out / RECORDS / COMMAND
    if mark.is_file():
        owner = mark.read_text(encoding="utf-8").strip()
    else:
        owner = _PROTECT if any((out / RECORDS).glob("*.json")) else command
    if owner != command:
        raise OutputError(f"{out} holds what mitsgan {owner} wrote; choose another folder.")
    if not mark.is_file():
        with atomic_file(mark) as temporary:
            temporary.write_text(command + "\n", encoding="utf-8")


@contextmanager
def _passing_on_sigterm() -> Iterator[None]:
    """Pass SIGTERM on to the processes that work for this one: else they would finish their scans first."""
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


def _left_over(records: dict[str, Record], scans: Sequence[StockedScan]) -> list[str]:
    """Sources of recorded scans that are gone, where no scan will write any of their files."""
    keys = {scan.key for scan in scans}
    written = {file for scan in scans for file in scan.files}
    return [r.source for key, r in records.items() if key not in keys and written.isdisjoint(r.outputs)]


def _expected_bytes(jobs: Sequence[Job], config: TreeConfig) -> int:
    """Bytes that the jobs will take: all that is new, and for each process the largest that replaces another."""
    new, sizes = 0, [0]
    for job in jobs:
        sizes.append(job.expected_bytes)
        if not all((config.out / file).exists() for file in job.targets):
            new += job.expected_bytes
    return new + sum(sorted(sizes)[-config.processes :])


def _write_summary(config: TreeConfig, settings: dict[str, Any], report: TreeReport) -> None:
    summary = {"version": __version__, "settings": settings, **report.to_dict()}
    path = config.out / SUMMARY
    remove_leavings(path)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _relative(failure: Failure, config: TreeConfig) -> Failure:
    """A failure whose reason has its paths relative, as all paths of the summary are."""
    text = failure.reason
    for folder in (config.tree, config.out):
        text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
    return dataclasses.replace(failure, reason=text)


def relative_files(paths: Iterable[str | os.PathLike[str]], tree: Path) -> list[str]:
    """Paths as records have them."""
    return [relative_path(path, tree) for path in paths]
