"""A folder that a receiver fills: each series that is quiet is protected, signed and delivered, whole or not at all.

What was delivered is written down as ``trees`` does, so a watch that was stopped or killed continues where it was, and
delivers nothing twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from MITSGANLib.errors import CancelledError, InputError, NoSpaceError, OutputError
from MITSGANLib.files.atomic import output_error, remove_leavings
from MITSGANLib.save_protected import Proofs
from MITSGANLib.scan.volume import CTVolume

from ..workers import reason_of
from .collection import CollectionConfig, ProtectionJob, ProtectionRecord
from .inventory import Failure, FileFact, FolderStock, Inventory, StockedScan, take_stock
from .trees import Record, Skipped, Tell, checked, claimed, record_path, relative_files

REASON = "reason.txt"


@dataclass(frozen=True)
class WatchConfig:
    """What to watch.

    :param protection: the folder that is filled (``tree``), the one for what is delivered (``out``), and how.
    :param failed: folder for series that could not be delivered; beside both.
    :param settle_s: seconds for which no file of a series may have changed.
    :param poll_s: seconds between two looks.
    :param remove: remove the files of a series once it is delivered.
    """

    protection: CollectionConfig
    failed: Path
    settle_s: float = 30.0
    poll_s: float = 2.0
    remove: bool = False


def watch(config: WatchConfig, tell: Tell, stopped: Callable[[float], bool]) -> None:
    """Deliver what is there and what comes, until it is stopped.

    :param tell: is told of each series that was delivered or failed: ``outcome``, ``source``, ``reason`` and so on.
    :param stopped: waits for so many seconds, and says whether to end. A ``KeyboardInterrupt`` ends the watch at once;
        of the series under way nothing is delivered.
    :raises InputError: the folder is missing, or a key cannot be read.
    :raises OutputError: folders overlap, or the output holds something else or is in use by another watch.
    :raises NoSpaceError: the disk is full. The series that could not be delivered stays where it is.
    :raises ModelError, DependencyError: the model or the device is not there.
    """
    protection = checked(config.protection)
    config = dataclasses.replace(config, protection=protection, failed=config.failed.absolute())
    if not protection.tree.is_dir():
        raise InputError("is not a folder", path=protection.tree, hint="give the folder that the receiver fills")
    for folder in (protection.tree, protection.out):
        if config.failed == folder or config.failed.is_relative_to(folder) or folder.is_relative_to(config.failed):
            raise OutputError("lies within another folder of the watch", path=config.failed, hint="choose one beside")
    protector, _, settings = protection.load()
    protector.place(protection.device)  # refuses one that is not there
    with claimed(protection.out, "watch"):
        watching = _Watch(config, settings, tell)
        while not stopped(config.poll_s):
            watching.look()


@dataclass(frozen=True, kw_only=True)
class DeliveryRecord(ProtectionRecord):
    """Record of a delivered series; ``instances`` are digests of its SOP Instance UIDs."""

    instances: tuple[str, ...]


@dataclass(frozen=True)
class _Delivery(ProtectionJob):
    """One series to deliver, into a folder of its own; whoever takes it from there is free to remove it."""

    record_type: ClassVar[type[Record]] = DeliveryRecord

    instances: tuple[str, ...]

    def known(self) -> dict[str, Any]:
        return {"instances": self.instances}

    def is_done(self, record: Record) -> bool:
        return record.stamp == self.scan.stamp

    def write(self, save: Callable[[Path], None], _original: CTVolume, _proofs: Proofs) -> list[str]:
        place = self.config.out / _name(self.scan.uid, self.scan.key)
        remove_leavings(place)
        save(place)
        return relative_files(sorted(place.iterdir()), self.config.out)


class _Watch:
    """A watch under way."""

    def __init__(self, config: WatchConfig, settings: dict[str, Any], tell: Tell) -> None:
        self.config, self.settings, self.tell = config, settings, tell
        self.kept: dict[str, FolderStock] = {}
        self.seen: dict[FileFact, float] = {}
        self.told: set[str] = set()

    def look(self) -> None:
        """Take stock, and deliver or set aside what is quiet."""
        stock = self._stock()
        for scan in stock.scans:
            if scan.uid and stock.young.isdisjoint(scan.files):
                self._take(scan, stock.instances(scan))
        for failure in stock.failures:
            is_quiet = stock.young.isdisjoint(failure.files)
            if is_quiet and not (failure.scan and self._is_done(failure.scan)):
                self._fail(failure)

    def _stock(self) -> Inventory:
        before, self.seen = self.seen, {}
        now = time.monotonic()

        def is_young(fact: FileFact) -> bool:
            self.seen[fact] = before.get(fact, now)
            return now - self.seen[fact] < self.config.settle_s

        try:
            stock = take_stock(self.config.protection.tree, kept=self.kept, is_young=is_young)
        except InputError:  # there is nothing in it, or it is away for the moment
            return Inventory((), (), ())
        self.kept = dict(stock.folders)
        return stock

    def _is_done(self, scan: StockedScan) -> bool:
        record = DeliveryRecord.read(record_path(self.config.protection.out, scan.key))
        return record is not None and record.stamp == scan.stamp

    def _take(self, scan: StockedScan, instances: Sequence[str]) -> None:
        digests = tuple(sorted(hashlib.sha256(uid.encode()).hexdigest()[:16] for uid in instances))
        record = DeliveryRecord.read(record_path(self.config.protection.out, scan.key))
        job = _Delivery(self.config.protection, scan, self.settings, record, digests)
        if record and not set(record.instances) <= set(digests):
            reason = "Some images were delivered before the others came; send the whole series again."
            self._fail(Failure(scan.source, reason, scan.uid, scan.files))
            return
        if not self._is_done(scan):
            try:
                done = job.run()
                reason = f"It {done.other.reason}." if isinstance(done, Skipped) else ""
            except (CancelledError, NoSpaceError):  # of which the next series would fail, too
                raise
            except Exception as error:  # noqa: BLE001 - one unreadable series must not cost the others
                reason = reason_of(error)
            if reason:
                self._fail(Failure(scan.source, reason, scan.uid, scan.files))
                return
            if not done.earlier:
                self.tell({"outcome": "delivered", "exit_code": 0, **done.record.summary()})
        self._remove(scan)

    def _remove(self, scan: StockedScan) -> None:
        if self.config.remove:
            for file in scan.files:
                (self.config.protection.tree / file).unlink(missing_ok=True)

    def _fail(self, failure: Failure) -> None:
        tree = self.config.protection.tree
        reason = failure.reason.replace(f"{tree}/", "")
        if failure.files:
            _set_aside(tree, failure.files, self.config.failed / _name(failure.uid, failure.files[0]), reason)
        elif failure.source in self.told:  # a folder that cannot be opened
            return
        self.told.add(failure.source)
        self.tell({"outcome": "failed", "exit_code": InputError.exit_code, **failure.summary(), "reason": reason})


def _name(uid: str, otherwise: str) -> str:
    """A name for the folder of a series: its UID; where that is none, a digest, since headers are foreign."""
    is_uid = re.fullmatch(r"[0-9]+(\.[0-9]+)+", uid)
    return uid if is_uid else hashlib.sha256(otherwise.encode(errors="surrogateescape")).hexdigest()[:32]


def _set_aside(tree: Path, files: Sequence[str], folder: Path, reason: str) -> None:
    """Move files into a folder, with the reason beside them. The rest of a move that was killed comes with the next.

    :raises OutputError: the folder cannot be written.
    """
    try:
        for file in files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / REASON).write_text(reason + "\n", encoding="utf-8", errors="replace")
            shutil.move(tree / file, folder / file)
    except OSError as error:
        raise output_error(error, folder) from error
