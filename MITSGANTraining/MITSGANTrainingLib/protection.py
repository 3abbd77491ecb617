"""What ``mitsgan protect`` does to a scan: a model's change, a keyed watermark, or one after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MITSGANLib.errors import InputError
from MITSGANLib.protector import Protector, load_protector, protect
from MITSGANLib.seal import read_key_file
from MITSGANLib.volume import CTVolume
from MITSGANLib.watermark import DEFAULT_BUDGET, WatermarkKey, embed_watermark, watermark_key

NO_MODEL = "none"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Protection:
    """Loaded and ready to run; at least one of both is there.

    :param watermark_id: tells the watermark's key file from others, and nothing about its secret.
    """

    protector: Protector | None
    watermark: WatermarkKey | None
    watermark_id: str | None

    @property
    def name(self) -> str:
        """For people."""
        parts = [self.protector.name] if self.protector else []
        return " and ".join([*parts, "a watermark"] if self.watermark else parts)

    def settings(self) -> dict[str, Any]:
        """What decides the output besides the scan, JSON-ready."""
        found: dict[str, Any] = {}
        if self.protector:
            ready = self.protector
            found |= {"model_sha256": ready.digest, "seed": ready.seed, "budget": ready.budget.to_dict()}
        if self.watermark:
            found["watermark"] = {"key": self.watermark_id, "budget": DEFAULT_BUDGET.to_dict()}
        return found

    def apply(self, volume: CTVolume, device: str, progress: Progress | None = None) -> CTVolume:
        """The protected scan. Progress counts slices, those of the watermark after those of the model.

        :raises MITSGANError: as :func:`~MITSGANLib.protector.protect`.
        """
        slices = volume.shape[0]
        total = slices * (bool(self.protector) + bool(self.watermark))

        def from_slice(start: int) -> Progress | None:
            return progress and (lambda done, _slices: progress(start + done, total))

        if self.protector:
            volume = protect(volume, model=self.protector, device=device, progress=from_slice(0))
        if self.watermark:
            volume = embed_watermark(volume, self.watermark, progress=from_slice(total - slices))
        return volume


@functools.lru_cache(maxsize=1)
def load_protection(
    model: str | None, strength_hu: float | None = None, seed: int = 0, watermark: Path | None = None
) -> Protection:
    """Loaded once in each process.

    :param model: a protector as :func:`~MITSGANLib.protector.load_protector` takes it, or "none". None is "none" with a
        watermark, so that the scan changes no more than it must, and the default without.
    :param watermark: key file.
    :raises InputError: when neither is left, or the key file cannot be read.
    :raises ModelError: when the model is unknown or corrupt.
    """
    if model is None:
        model = NO_MODEL if watermark else "default"
    if model == NO_MODEL and not watermark:
        raise InputError("Without a model there is only the watermark: give its key with --watermark, or name a model.")
    if model == NO_MODEL and strength_hu is not None:
        raise InputError("--strength-hu is a model's strength; name the model too, or leave it out.")
    protector = None if model == NO_MODEL else load_protector(model, strength_hu=strength_hu, seed=seed)
    key = read_key_file(watermark) if watermark else None
    return Protection(protector, key and watermark_key(key), key and key.id)
