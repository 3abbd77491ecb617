"""Restoration of a collection: a tree of protected, sealed scans in, the same tree with their originals out.

File for file: an original takes the relative path of its protected image, so that the output of ``protect
--collection`` becomes the tree that it was made from. See ``trees`` for what makes a run resumable.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from MITSGANLib.errors import InputError
from MITSGANLib.files.atomic import remove_leavings
from MITSGANLib.files.volume_files import data_files
from MITSGANLib.keys.key_files import require_cryptography
from MITSGANLib.scan.volume import PROTECTION
from MITSGANLib.seal.sealing import SEAL_SUFFIX, Restored, read_seal, restore

from . import trees
from .inventory import ATTACK, NOT_PROTECTED, Inventory, StockedScan, file_fact

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
    """Restore the original of every sealed scan of a tree into ``config.out``; see :func:`trees.work_through`.

    :raises InputError, OutputError: as :func:`trees.checked` and ``work_through``, or the key cannot be read.
    :raises DependencyError: a package is missing.
    """
    report = trees.TreeReport("restore", "Restoring", "restored", "files")
    require_cryptography()
    config = trees.checked(config)
    if config.read_key() is None:
        raise InputError("Nothing is restored without a key; give the one that the scans were sealed with.")
    return trees.work_through(config, report, _Restoration, _SETTINGS, stage, tell)


@dataclass(frozen=True)
class _Restoration(trees.ScanJob):
    """One scan to restore: a DICOM series by MITSGAN, or any volume file, with its seal if it has one."""

    record_type: ClassVar[type[trees.Record]] = RestorationRecord
    protected: ClassVar[bool | None] = True

    @staticmethod
    def sorted_out(stock: Inventory, tree: Path) -> Inventory:
        scans = tuple(scan if scan.uid else _with_seal(scan, tree) for scan in stock.scans)
        return dataclasses.replace(trees.without_companions(stock), scans=scans)

    def work(self) -> trees.Write | trees.Skipped:
        scan = self.scan
        if scan.uid:
            return self._restored_series
        if scan.files[0] + SEAL_SUFFIX in scan.files:
            return self._restored_file
        # One that is not protected is none of ours.
        provenance = self.load().provenance
        if provenance.is_simulated_attack:
            return self.pass_over(ATTACK, may_copy=False)
        if provenance.last(PROTECTION):
            raise InputError("It has no seal: it was protected without a key, or its seal was left behind.")
        return self.pass_over(NOT_PROTECTED)

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


def _with_seal(scan: StockedScan, tree: Path) -> StockedScan:
    """A volume file together with the seal beside it."""
    seal = tree / (scan.files[0] + SEAL_SUFFIX)
    fact = file_fact(tree, seal) if seal.is_file() else None
    if fact is None:
        return scan
    stamp = f"{scan.stamp} {fact.size} {fact.time_ns} {fact.entry_time_ns}"
    return dataclasses.replace(scan, files=(*scan.files, fact.path), size=scan.size + fact.size, stamp=stamp)
