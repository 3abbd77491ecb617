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
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from MITSGANLib import __version__
from MITSGANLib.errors import InputError, OutputError, reading
from MITSGANLib.files.atomic import atomic_file, output_error, remove_leavings, require_space
from MITSGANLib.files.dicom.headers import read_header
from MITSGANLib.files.dicom.read import read_series
from MITSGANLib.files.dicom.series import DicomSeries
from MITSGANLib.files.storage import load_volume
from MITSGANLib.keys.key_files import Key, read_key_file
from MITSGANLib.runtime.progress import Progress
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.seal.sealing import SEAL_SUFFIX
from MITSGANLib.signature.manifest import SUFFIX as MANIFEST_SUFFIX

from ..workers import run_all
from .inventory import (
    BESIDE,
    NOT_READ,
    RECORDS,
    SUMMARY,
    Failure,
    Inventory,
    Other,
    StockedScan,
    read_kept,
    relative_path,
    take_stock,
)

Stage = Callable[[str, str], AbstractContextManager[Progress]]
Tell = Callable[[dict[str, Any]], None]

COMMAND = "command"
KEPT = "folders.jsonl"
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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """A record of the values that JSON gave."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

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


class Finished(NamedTuple):
    """A scan that is worked on, and whether an earlier run did it."""

    record: Record
    earlier: bool = False

    def summary(self) -> dict[str, Any]:
        """JSON-ready form for the summary."""
        return {**self.record.summary(), "earlier": self.earlier}


class Skipped(NamedTuple):
    """Files that are no scan for this command, and whether they were copied."""

    other: Other
    copied: bool = False


Outcome = Finished | Skipped | Failure


@dataclass
class TreeReport:
    """What became of everything in the tree.

    :param command, doing, verb: the command, as what it is, does, and has done.
    :param unit: what is counted of all finished scans, a number of their records; empty for nothing.
    :param left_over: sources of finished scans in the output that this run did not find, or not find usable.
    :param seconds: since ``started``, a time of ``time.monotonic``.
    """

    command: str
    doing: str
    verb: str
    unit: str = ""
    finished: list[Finished] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def take(self, one: Outcome) -> None:
        """Add what became of something."""
        {Finished: self.finished, Skipped: self.skipped, Failure: self.failed}[type(one)].append(one)

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
                one.summary() for one in sorted(self.finished, key=lambda one: (one.record.source, one.record.uid))
            ],
            "failed": [one.summary() for one in sorted(self.failed, key=lambda one: (one.source, one.uid))],
            "skipped": [
                {**other.summary(), "copied": copied}
                for other, copied in sorted(self.skipped, key=lambda one: (one.other.source, one.other.reason))
            ],
            "left_over": sorted(self.left_over),
        }


Write = Callable[[], tuple[Sequence[str], dict[str, Any]]]
"""Writes the output of a scan, and gives its files by their paths relative to the output, and the values of its record
that are not those of every record.
"""


@dataclass(frozen=True)
class ScanJob:
    """One scan to work on, picklable; subclasses say how in ``work``.

    :param settings: what decides the output besides the scan.
    :param record: of an earlier run.
    """

    record_type: ClassVar[type[Record]]
    protected: ClassVar[bool | None] = None
    """Which scans :func:`inventory.take_stock` is to take."""

    config: TreeConfig
    scan: StockedScan
    settings: dict[str, Any]
    record: Record | None

    @staticmethod
    def sorted_out(stock: Inventory, _tree: Path) -> Inventory:
        """What the command makes of what lies in the tree: seals and manifests are of no use without their files."""
        return without_companions(stock)

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
        """Whether a record of this scan still is what a run would make, and its output is still there."""
        files = ((self.config.out / output, size) for output, size in record.outputs.items())
        return (record.stamp, record.settings) == (self.scan.stamp, self.settings) and all(
            path.is_file() and path.stat().st_size == size for path, size in files
        )

    def run(self) -> Finished | Skipped:
        """Do the work."""
        started = time.monotonic()
        with stopped_by_sigterm():
            if refreshed := self._refreshed():
                return refreshed
            require_space(self.config.out, self.expected_bytes)
            work = self.work()
            return work if isinstance(work, Skipped) else self._finish(work, started)

    def work(self) -> Write | Skipped:
        """All that is to be done before the output is written."""
        raise NotImplementedError

    def known(self) -> dict[str, Any]:
        """Values of the record that are known before the work."""
        return {}

    def load(self) -> CTVolume:
        """The scan itself.

        :raises InputError: it is no CT volume, or changed since.
        """
        tree, scan = self.config.tree, self.scan
        if not scan.uid:
            return load_volume(tree / scan.files[0])
        return read_series(self.found_series(), source=str(tree / scan.source))

    def found_series(self) -> DicomSeries:
        """The headers of the DICOM series.

        :raises InputError: a file is no DICOM any more.
        """
        headers = [read_header(self.config.tree / file) for file in self.scan.files]
        if None in headers:
            raise InputError("Files of the series changed while the collection was worked on; run the command again.")
        return DicomSeries(self.scan.uid, tuple(headers))

    def _finish(self, write: Write, started: float) -> Finished:
        """Write the output and then its record."""
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
        return Finished(record)

    def pass_over(self, reason: str, *, may_copy: bool = True) -> Skipped:
        """Leave the scan as it is, and copy it where such files are to be copied."""
        copied = may_copy and self.config.others == "copy"
        if copied:
            copy_files(self.config, self.scan.files)
        return Skipped(Other(self.scan.files, reason), copied)

    def _refreshed(self) -> Finished | None:
        """The earlier result, when the files were only touched or copied anew since."""
        if self.record is None or self.config.redo:
            return None
        record = dataclasses.replace(self.record, stamp=self.scan.stamp)
        if not self.is_done(record):
            return None
        if record.content != content_digest(self.config.tree, self.scan.files):
            return None
        write_record(self.config.out, self.scan.key, record)
        return Finished(record, earlier=True)


@dataclass(frozen=True)
class CopyJob:
    """Files to copy unchanged; worked off as a :class:`ScanJob` is."""

    config: TreeConfig
    other: Other

    @property
    def targets(self) -> tuple[str, ...]:
        """The files that are written, relative to the output."""
        return self.other.files

    @property
    def expected_bytes(self) -> int:
        """What the output takes on the disk."""
        return self.other.size

    def failed(self, reason: str) -> Failure:
        """What to report where the job failed."""
        return Failure(self.other.source, f"Not copied: {reason}")

    def run(self) -> Skipped:
        """Do the work."""
        with stopped_by_sigterm():
            copy_files(self.config, self.other.files)
        return Skipped(self.other, copied=True)


Job = ScanJob | CopyJob
Report = TypeVar("Report", bound=TreeReport)


def work_through(
    config: TreeConfig,
    report: Report,
    job: type[ScanJob],
    settings: dict[str, Any],
    stage: Stage | None,
    tell: Tell | None = None,
) -> Report:
    """Do all that is left to do in a tree into ``report``, and write the summary there, whatever happens.

    :param config: as :func:`checked` gives it.
    :param settings: what decides the output besides the scan.
    :param stage: gives the progress callable of a stage (called as ``progress(done, total)``) from its description and
        its unit. Progress may raise ``CancelledError``; what is finished then stays, and the summary says that it is
        not complete.
    :param tell: is told what becomes of each scan as soon as that is known, JSON-ready; see :class:`_Teller`.
    :raises InputError: the tree is missing or empty, or the Dask scheduler does not answer.
    :raises OutputError: the output is another command's, is in use by another run, or the disk is too small for all.
    """
    stage, kept = stage or _no_stages, config.out / RECORDS / KEPT
    teller = _Teller(report, tell or (lambda _: None))
    with stage("Scanning", "file") as progress:
        telling, out = teller.scanning(progress), config.out.resolve()
        stock = take_stock(config.tree, telling, protected=job.protected, kept=read_kept(kept), without=out)
        stock = job.sorted_out(stock, config.tree)
    jobs, known = _to_do(config, stock, job, settings, report)
    require_space(config.out, _expected_bytes(jobs, config))
    with claimed(config.out, report.command), _passing_on_sigterm(), _folders_for(jobs, config.out):
        stock.keep(kept)
        del stock
        try:
            with stage(report.doing, "scan") as progress:
                teller.begin(len(known), len(jobs))
                for one in known:
                    teller.take(one)
                before = len(report.finished)
                progress(before, before + len(jobs))
                for done, one in enumerate(_outcomes(jobs, config), start=before + 1):
                    teller.take(one)
                    progress(done, before + len(jobs))
            report.complete = True
        finally:
            report.seconds = time.monotonic() - report.started
            summary = {"version": __version__, "settings": settings, **report.to_dict()}
            _write_json(config.out / SUMMARY, summary)
            teller.end()
    return report


class _Teller:
    """Takes down what becomes of everything, and tells another program of it: dictionaries, each with an ``event``.

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

    def begin(self, known: int, jobs: int) -> None:
        """So much needs no work, and so many jobs are to be done."""
        self._began, self._earlier, self._total = time.monotonic(), known, known + jobs
        self._tell({"event": "begin", "command": self._report.command, "done": known, "total": self._total})

    def take(self, one: Outcome) -> None:
        """Add to the report, and tell."""
        self._report.take(one)
        self._done += 1
        now, left = self._done - self._earlier, None
        if now > 0:
            left = round((time.monotonic() - self._began) / now * (self._total - self._done), 1)
        if isinstance(one, Finished):
            outcome, code, values = one.record.outcome or self._report.verb, one.record.code, one.summary()
        elif isinstance(one, Failure):
            outcome, code, values = "failed", InputError.exit_code, one.summary()
        else:
            outcome, code, values = "copied" if one.copied else "skipped", 0, one.other.summary()
        place = {"event": "scan", "done": self._done, "total": self._total, "seconds_left": left}
        self._tell({**place, "outcome": outcome, "exit_code": code, **values})

    def end(self) -> None:
        """The run ends."""
        self._tell({"event": "end", **self._report.totals()})


def without_companions(stock: Inventory) -> Inventory:
    """The same where seals and manifests are known as what they are, and the rest of what nobody reads is apart."""
    others: list[Other] = []
    for other in stock.others:
        beside = tuple(file for file in other.files if file.endswith((SEAL_SUFFIX, MANIFEST_SUFFIX)))
        if other.reason != NOT_READ or not beside:
            others.append(other)
            continue
        if unknown := tuple(file for file in other.files if file not in beside):
            others.append(dataclasses.replace(other, files=unknown))
        others.append(Other(beside, BESIDE, may_copy=False))
    return dataclasses.replace(stock, others=tuple(others))


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
    if config.scheduler and isinstance(config.key, Key):
        raise InputError("A passphrase is never sent to a scheduler; use a key file that all workers can read.")
    if config.scheduler and any(isinstance(value, bytes) for value in vars(config).values()):
        raise InputError("A passphrase is never sent to a scheduler; sign with key files that none locks.")
    return dataclasses.replace(config, **{name: _absolute(value) for name, value in vars(config).items()})


def _absolute(value: Any) -> Any:
    """A path, a file of weights, or each of several, made absolute; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    if isinstance(value, str) and value.endswith(".safetensors"):
        return str(Path(value).absolute())
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


def write_record(out: Path, key: str, record: Record) -> None:
    """Write the record of a finished scan."""
    _write_json(record_path(out, key), dataclasses.asdict(record))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    remove_leavings(path)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


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


def _to_do(
    config: TreeConfig, stock: Inventory, job: type[ScanJob], settings: dict[str, Any], report: TreeReport
) -> tuple[list[Job], list[Outcome]]:
    """The jobs that are left to do, and what became of all that needs none."""
    read = {path.stem: job.record_type.read(path) for path in (config.out / RECORDS).glob("*.json")}
    records = {key: record for key, record in read.items() if record}
    # What is recorded and gone, where no scan will write any of its files.
    gone = records.keys() - {scan.key for scan in stock.scans}
    written = {file for scan in stock.scans for file in scan.files}
    report.left_over += [records[key].source for key in gone if written.isdisjoint(records[key].outputs)]
    jobs: list[Job] = []
    finished: list[Finished] = []
    skipped: list[Skipped] = []
    for scan in stock.scans:
        one = job(config, scan, settings, records.get(scan.key))
        if one.record and not config.redo and one.is_done(one.record):
            finished.append(Finished(one.record, earlier=True))
        else:
            jobs.append(one)
    for other in stock.others:
        if config.others == "copy" and other.may_copy:
            jobs.append(CopyJob(config, other))
        else:
            skipped.append(Skipped(other))
    return jobs, [*finished, *(_relative(failure, config) for failure in stock.failures), *skipped]


def _outcomes(jobs: Sequence[Job], config: TreeConfig) -> Iterator[Outcome]:
    for one in run_all(methodcaller("run"), jobs, processes=config.processes, scheduler=config.scheduler):
        yield one.result or _relative(one.item.failed(one.error), config)


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
        held = lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"Another run of this command writes to {out}; wait for its end. If there is none, delete {lock.lock_file}."
        ) from error
    except OSError as error:
        raise output_error(error, out) from error
    with held:
        mark, owner = out / RECORDS / COMMAND, command
        if mark.is_file():
            owner = mark.read_text(encoding="utf-8").strip()
        elif any((out / RECORDS).glob("*.json")):
            owner = "protect"  # which came first, and did not write down whose its records are
        if owner != command:
            raise OutputError(f"{out} holds what mitsgan {owner} wrote; choose another folder.")
        if not mark.is_file():
            with atomic_file(mark) as temporary:
                temporary.write_text(command + "\n", encoding="utf-8")
        yield


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


def _expected_bytes(jobs: Sequence[Job], config: TreeConfig) -> int:
    """Bytes that the jobs will take: all that is new, and for each process the largest that replaces another."""
    new, sizes = 0, [0]
    for job in jobs:
        sizes.append(job.expected_bytes)
        if not all((config.out / file).exists() for file in job.targets):
            new += job.expected_bytes
    return new + sum(sorted(sizes)[-config.processes :])


def _relative(failure: Failure, config: TreeConfig) -> Failure:
    """A failure whose reason has its paths relative, as all paths of the summary are."""
    text = failure.reason
    for folder in (config.tree, config.out):
        text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), folder.name)
    return dataclasses.replace(failure, reason=text)


def relative_files(paths: Iterable[str | os.PathLike[str]], tree: Path) -> list[str]:
    """Paths as records have them."""
    return [relative_path(path, tree) for path in paths]
