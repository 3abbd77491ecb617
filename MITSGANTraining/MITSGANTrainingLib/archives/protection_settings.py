"""What ``mitsgan protect`` does to a scan: a protector, and whose watermark it carries."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MITSGANLib.keys.key_files import read_key_file
from MITSGANLib.protection.protector import Protector, load_protector, protect
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.pattern import WatermarkKey, watermark_key

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ProtectionSettings:
    """Loaded and ready to run.

    :param watermark_id: tells the watermark's key file from others, and nothing about its secret; None for the open
        watermark, or none.
    """

    protector: Protector
    watermark_id: str | None

    @property
    def watermark_key(self) -> WatermarkKey | None:
        """The watermark's key; None without one."""
        return self.protector.watermark and self.protector.watermark.key

    @property
    def name(self) -> str:
        """For people."""
        return self.protector.title

    def settings(self) -> dict[str, Any]:
        """What decides the output besides the scan, JSON-ready."""
        ready = self.protector
        found: dict[str, Any] = {"strength_hu": ready.strength_hu}
        if ready.generator is not None:
            found |= {"model_sha256": ready.digest, "seed": ready.seed, "budget": ready.budget.to_dict()}
        if ready.watermark:
            found["watermark"] = {"key": self.watermark_id or "open", "budget": ready.watermark.budget.to_dict()}
        return found

    def apply(self, volume: CTVolume, device: str, progress: Progress | None = None) -> CTVolume:
        """The protected scan.

        :raises MITSGANError: as :func:`~MITSGANLib.protection.protector.protect`.
        """
        return protect(volume, model=self.protector, device=device, progress=progress)


@functools.lru_cache(maxsize=1)
def load_settings(
    model: str, strength_hu: float | None = None, seed: int = 0, watermark: Path | None = None
) -> ProtectionSettings:
    """Loaded once in each process.

    :param model: a protector as :func:`~MITSGANLib.protection.protector.load_protector` takes it.
    :param watermark: key file, in place of the open watermark's key.
    :raises InputError: when the key file cannot be read.
    :raises ModelError: when the model is unknown or corrupt.
    """
    key = read_key_file(watermark) if watermark else None
    ready = load_protector(
        model, strength_hu=strength_hu, seed=seed, watermark=None if key is None else watermark_key(key)
    )
    return ProtectionSettings(ready, key and key.id)
