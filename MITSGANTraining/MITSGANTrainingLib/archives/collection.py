"""Protection of a collection: a tree of folders with CT in, the same tree with its CT protected out.

File for file: a protected image takes the relative path of its original, so that a folder with several series becomes
a folder with the same several series, under their new UIDs. See ``trees`` for what makes a run resumable.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from MITSGANLib.errors import DependencyError, ModelError
from MITSGANLib.files.atomic import remove_leavings
from MITSGANLib.files.volume_files import data_files
from MITSGANLib.keys.key_files import read_key_file
from MITSGANLib.keys.signing_keys import fingerprint, load_signing_key, raw_public_key
from MITSGANLib.protection.protector import Protector, load_protector, protect
from MITSGANLib.save_protected import Proofs, save_protected
from MITSGANLib.scan.volume import PROTECTION, CTVolume
from MITSGANLib.signature.signing import Signers
from MITSGANLib.watermark.pattern import watermark_key

from . import trees
from .inventory import ATTACK, PROTECTED, Inventory

# A sealed scan takes some 5 % more than a plain, uncompressed one.
_SEALED = 1.1


@functools.lru_cache(maxsize=1)
def load_settings(
    model: str, strength_hu: float | None = None, seed: int = 0, watermark: Path | None = None
) -> tuple[Protector, dict[str, Any]]:
    """A protector that is ready to run, loaded once in each process; and what decides its output besides the scan.

    :param model: a protector as :func:`~MITSGANLib.protection.protector.load_protector` takes it.
    :param watermark: key file, in place of the open watermark's key. Its identity, which says nothing about its secret,
        is among the settings.
    :raises InputError: when the key file cannot be read.
    :raises ModelError: when the model is unknown or corrupt.
    """
    key = watermark and read_key_file(watermark)
    ready = load_protector(model, strength_hu=strength_hu, seed=seed, watermark=key and watermark_key(key))
    settings: dict[str, Any] = {"strength_hu": ready.strength_hu}
    if ready.has_model:
        settings |= {"model_sha256": ready.digest, "seed": ready.seed, "budget": ready.budget.to_dict()}
    if ready.watermark:
        settings["watermark"] = {"key": key.id if key else "open", "budget": ready.watermark.budget.to_dict()}
    return ready, settings


@dataclass(frozen=True)
class CollectionConfig(trees.TreeConfig):
    """What to protect, where to, and how.

    :param model: name or .safetensors file of a protector, or as in :func:`load_settings`.
    :param strength_hu: largest change in HU; the model's own where None.
    :param watermark: key file of a watermark; each process reads it itself.
    :param device: "auto", "cpu" or "cuda", for each process.
    :param signing_key: file of an Ed25519 key that signs each scan; each process reads it itself.
    :param signing_passphrase: unlocks that file; never sent to a scheduler.
    """

    model: str = "default"
    strength_hu: float | None = None
    seed: int = 0
    watermark: Path | None = None
    device: str = "auto"
    signing_key: Path | None = None
    signing_passphrase: bytes | None = field(default=None, repr=False)

    def load(self) -> tuple[Protector, Proofs, dict[str, Any]]:
        """The protector, the keys that seal and sign, and what all of them have in the settings of a record.

        :raises MITSGANError: as :func:`load_settings`; a file is no such key, or its passphrase is missing or wrong.
        """
        protector, settings = load_settings(self.model, self.strength_hu, self.seed, self.watermark)
        signers = self.signing_key and Signers(load_signing_key(self.signing_key, self.signing_passphrase))
        proofs = Proofs(self.read_key(), signers)
        if proofs.key is not None:
            settings = settings | {"sealed_with": proofs.key.id or "passphrase"}
        if signers is not None:
            settings = settings | {"signed_by": fingerprint(raw_public_key(signers.key.public_key()))}
        return protector, proofs, settings


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


@dataclass(frozen=True, kw_only=True)
class ProtectionRecord(trees.Record):
    """Record of a protected scan. ``settings`` are those of the protector, and which keys seal and sign."""

    slices: int
    change: Change
    device: str

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProtectionRecord:
        return super().from_dict({**values, "change": Change(**values["change"])})

    def summary(self) -> dict[str, Any]:
        figures = {"slices": self.slices, "change": self.change.to_dict(), "device": self.device}
        return {**super().summary(), **figures}


@dataclass
class ProtectionReport(trees.TreeReport):
    """What became of everything in the tree."""

    @property
    def change(self) -> Change:
        """The change pooled over the voxels of all protected scans."""
        return sum((record.change for record, _ in self.finished), Change())

    def figures(self) -> dict[str, Any]:
        return {**super().figures(), "change": self.change.to_dict()}


def measure_change(before: CTVolume, after: CTVolume) -> Change:
    """The difference of two scans of one shape, slice by slice, since whole scans in float64 are large."""
    total = Change()
    for old, new in zip(before.hu, after.hu, strict=True):
        difference = np.subtract(new, old, dtype=np.int64)
        squared = int(np.sum(np.square(difference)))
        total += Change(difference.size, squared, int(np.abs(difference).max()), int(np.count_nonzero(difference)))
    return total


def protect_collection(
    config: CollectionConfig, stage: trees.Stage | None = None, tell: trees.Tell | None = None
) -> ProtectionReport:
    """Protect every CT scan of a tree into ``config.out``; see :func:`trees.work_through`.

    :raises InputError, OutputError: as :func:`trees.checked` and ``work_through``, or a key cannot be read.
    :raises ModelError, DependencyError: the model or the device is not there.
    """
    config = trees.checked(config)
    report = ProtectionReport("protect", "Protecting", "protected", "slices")
    protector, _, settings = config.load()
    if not config.scheduler:
        protector.place(config.device)  # refuses one that is not there
    return trees.work_through(config, report, ProtectionJob, settings, stage, tell)


@dataclass(frozen=True)
class ProtectionJob(trees.ScanJob):
    """One scan to protect."""

    record_type: ClassVar[type[trees.Record]] = ProtectionRecord
    protected: ClassVar[bool | None] = False

    config: CollectionConfig

    @staticmethod
    def sorted_out(stock: Inventory, _tree: Path) -> Inventory:
        return stock

    @property
    def expected_bytes(self) -> int:
        return math.ceil(self.scan.expected_bytes * (1 if self.config.key is None else _SEALED))

    def work(self) -> trees.Write | trees.Skipped:
        volume = self.load()
        if volume.provenance.is_simulated_attack:
            return self.pass_over(ATTACK, may_copy=False)
        if volume.provenance.last(PROTECTION):
            return self.pass_over(PROTECTED)
        protector, proofs, settings = self.config.load()
        if settings != self.settings:
            raise ModelError("The model or a key file differs on this machine; install the same on all workers.")
        protected = _protect(volume, protector, self.config.device)
        values = {
            "slices": volume.shape[0],
            "change": measure_change(volume, protected),
            "device": protector.place(self.config.device),
        }
        mark = protector.watermark and protector.watermark.key

        def write() -> tuple[list[str], dict[str, Any]]:
            warnings = [*volume.provenance.warnings]

            def save(path: Path) -> None:
                warnings.extend(save_protected(protected, path, proofs, volume, watermark=mark, overwrite=True))

            written = self.write(save, volume, proofs)
            return written, {**values, "warnings": tuple(warning.name for warning in warnings)}

        return write

    def write(self, save: Callable[[Path], None], original: CTVolume, proofs: Proofs) -> list[str]:
        """Write a protected scan at the places of its originals; their relative paths.

        :param save: writes it, with its proofs, to a file or a folder.
        """
        config, scan = self.config, self.scan
        if not scan.uid:
            target = config.out / scan.files[0]
            remove_leavings(target)
            save(target)
            return trees.relative_files([target, *data_files(target), *proofs.companions(target)[0]], config.out)

        def fill(folder: Path) -> list[Path]:
            save(folder / "new")
            # The writer names its files in slice order, the order of the originals.
            return sorted((folder / "new").iterdir())

        written = trees.relative_files(original.provenance.dicom_files, config.tree)
        trees.write_together(config.out, written, fill)
        return written


def _protect(volume: CTVolume, protector: Protector, device: str) -> CTVolume:
    try:
        return protect(volume, model=protector, device=device)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise DependencyError(
            "The device ran out of memory; use fewer processes, which share one GPU, or the CPU."
        ) from error
