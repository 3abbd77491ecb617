"""Restoration of a collection: a tree of protected, sealed scans in, the same tree with their originals out.

File for file: an original takes the relative path of its protected image, so that the output of ``protect
--collection`` becomes the tree that it was made from. See ``trees`` for what makes a run resumable.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from MITSGANLib.errors import InputError
from MITSGANLib.files.atomic import remove_leavings, require_space
from MITSGANLib.files.storage import load_volume
from MITSGANLib.files.volume_files import data_files
from MITSGANLib.keys.key_files import require_cryptography
from MITSGANLib.scan.volume import PROTECTION
from MITSGANLib.seal.sealing import SEAL_SUFFIX, Restored, read_seal, restore
from MITSGANLib.signature.manifest import SUFFIX as MANIFEST_SUFFIX

from . import inventory, trees

BESIDE = "is a seal or a manifest of another file"

# What is restored does not depend on how: whichever key opens the seal gives the same files.
_SETTINGS: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class RestorationRecord(trees.Record):
    """Record of a restored scan. ``sha256`` is that of ``seal.Restored``."""

    sha256: str

    def summary(self) -> dict[str, Any]:
        return {**super().summary(), "sha256": self.sha256}


def restore_collection(
    config: trees.TreeConfig, stage: trees.Stage | None = None, tell: trees.Tell | None = None
) -> trees.TreeReport:
    """Restore the original of every sealed scan of a tree into ``config.out``, and write the summary there.

    :raises InputError: the tree is missing or empty, the key cannot be read, or the Dask scheduler does not answer.
    :raises OutputError: the output overlaps the tree, holds something else, is in use by another run, or the disk has
        too little space for all of it.
    :raises DependencyError: a package is missing.
    """
    report = trees.TreeReport("restore", "Restoring", "restored", "files")
    require_cryptography()
    config = trees.checked(config)
    if config.read_key() is None:
        raise InputError("Nothing is restored without a key; give the one that the scans were sealed with.")
    return trees.work_through(config, report, _Restoration, _SETTINGS, take_sealed_stock, stage, tell)


def take_sealed_stock(tree: Path, progress: inventory.Progress | None = None, **known: Any) -> inventory.Inventory:
    """What a tree holds: ``scans`` are DICOM series by MITSGAN, and all volume files, each with its seal if it has one.

    :param known: what else ``inventory.take_stock`` takes.
    :raises InputError, DependencyError: as ``inventory.take_stock``.
    """
    stock = without_companions(inventory.take_stock)(tree, progress, protected=True, **known)
    scans = [scan if scan.uid else _with_seal(scan, tree) for scan in stock.scans]
    return dataclasses.replace(stock, scans=tuple(scans))


def without_companions(take: Callable[..., inventory.Inventory]) -> Callable[..., inventory.Inventory]:
    """What takes stock as ``take`` does, and knows seals and manifests, which are of no use without their files."""

    def taken(*arguments: Any, **known: Any) -> inventory.Inventory:
        stock = take(*arguments, **known)
        others: list[inventory.Other] = []
        for other in stock.others:
            others += _without_companions(other) if other.reason == inventory.NOT_READ else [other]
        return dataclasses.replace(stock, others=tuple(others))

    return taken


@dataclass(frozen=True)
class _Restoration(trees.ScanJob):
    """One scan to restore."""

    record_type: ClassVar[type[trees.Record]] = RestorationRecord

    def work(self) -> trees.Done:
        started = time.monotonic()
        config, scan = self.config, self.scan
        require_space(config.out, self.expected_bytes)
        if not scan.uid and _seal_of(scan.files[0]) not in scan.files:
            return self._unsealed()
        return self.finish(self._restored_series if scan.uid else self._restored_file, started)

    def _unsealed(self) -> trees.Done:
        """A volume file without a seal: one that is not protected is none of ours."""
        volume = load_volume(self.config.tree / self.scan.files[0])
        if volume.provenance.is_simulated_attack:
            return self.pass_over(inventory.ATTACK, may_copy=False)
        if volume.provenance.last(PROTECTION):
            raise InputError("It has no seal: it was protected without a key, or its seal was left behind.")
        return self.pass_over(inventory.NOT_PROTECTED)

    def _restored_file(self) -> tuple[list[str], dict[str, Any]]:
        name, out = self.scan.files[0], self.config.out
        remove_leavings(out / name)
        restored = restore(self.config.tree / name, out / name, self.config.read_key(), overwrite=True)
        written = trees.relative_files([out / name, *data_files(out / name)], out)
        return written, _values(restored)

    def _restored_series(self) -> tuple[list[str], dict[str, Any]]:
        results: list[Restored] = []

        def fill(folder: Path) -> list[Path]:
            # Other series may lie in the same folder, and this one in several.
            protected = folder / "protected"
            protected.mkdir()
            for number, file in enumerate(self.scan.files):
                _link(self.config.tree / file, protected / f"{number:06d}")
            results.append(restore(protected, folder / "new", self.config.read_key()))
            return sorted((folder / "new").iterdir())

        _, sealed = read_seal([self.config.tree / file for file in self.scan.files])
        names = trees.relative_files(sealed, self.config.tree)
        trees.write_together(self.config.out, names, fill)
        return names, _values(results[0])


def _values(restored: Restored) -> dict[str, Any]:
    return {"sha256": restored.sha256, "warnings": tuple(warning.name for warning in restored.warnings)}


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file)
    except OSError:  # Windows asks for a privilege, some disks know no links
        shutil.copyfile(file, link)


def _seal_of(name: str) -> str:
    return name + SEAL_SUFFIX


def _with_seal(scan: inventory.StockedScan, tree: Path) -> inventory.StockedScan:
    """A volume file together with the seal beside it."""
    seal = tree / _seal_of(scan.files[0])
    fact = inventory.file_fact(tree, seal) if seal.is_file() else None
    if fact is None:
        return scan
    stamp = f"{scan.stamp} {fact.size} {fact.time_ns} {fact.entry_time_ns}"
    return dataclasses.replace(scan, files=(*scan.files, fact.path), size=scan.size + fact.size, stamp=stamp)


def _without_companions(other: inventory.Other) -> Iterator[inventory.Other]:
    """Files that nobody reads, apart from the seals and manifests of other files."""
    beside = tuple(file for file in other.files if file.endswith((SEAL_SUFFIX, MANIFEST_SUFFIX)))
    unknown = tuple(file for file in other.files if file not in beside)
    if unknown:
        yield dataclasses.replace(other, files=unknown)
    if beside:
        yield inventory.Other(beside, BESIDE, may_copy=False)
