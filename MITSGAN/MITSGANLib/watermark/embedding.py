"""A scan with its watermark: the keyed signs times what is allowed, in whole HU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..budget.budget import Budget, Surroundings, apply_change
from ..runtime.threads import map_slices, slabs
from ..scan.hounsfield import HIGHEST_HU, LOWEST_HU
from ..scan.volume import PROTECTION, CTVolume, ProcessingStep
from .pattern import OPEN_KEY, VERSION, ScanSigns, WatermarkKey

Progress = Callable[[int, int], None]

# 1 to 3 HU in most lungs. Set on LIDC-IDRI-0002 and -0028, where it keeps all limits of fidelity.
DEFAULT_BUDGET = Budget(strength_hu=10.0, lung=1.0, soft_tissue=0.1, bone=0.1, noise_share=0.15)

_STRENGTH = "watermark_strength_hu"


@dataclass(frozen=True)
class Watermark:
    """What scans are marked with, and how strongly.

    :param key: the open one, which everybody has, or one's own.
    """

    key: WatermarkKey = OPEN_KEY
    budget: Budget = DEFAULT_BUDGET

    @property
    def is_open(self) -> bool:
        """Whether everybody can check it, and forge it."""
        return self.key == OPEN_KEY

    def to_dict(self) -> dict[str, float | str]:
        """For the provenance of what is marked; nothing of the key."""
        kind = "open" if self.is_open else "keyed"
        return {"watermark": kind, "watermark_version": VERSION, _STRENGTH: self.budget.strength_hu}

    def marked(self, hu: np.ndarray, around: Surroundings, signs: ScanSigns, first: int) -> np.ndarray:
        """Slices with their signs, int16 (slices, rows, columns); each depends on itself alone.

        :param hu: int16 (slices, rows, columns) in HU: whole slices, which may have been changed already.
        :param around: of these slices as they came.
        :param signs: of the scan, with this watermark's key.
        :param first: index of the first of these slices.
        """
        marked = np.empty_like(hu)

        def mark(k: int) -> None:
            allowed = around.allowed_in(k, hu[k], self.budget)
            pattern = signs.of_slice(first + k, hu[k]).astype(np.float32)
            marked[k] = apply_change(hu[k], pattern * allowed, allowed)

        map_slices(mark, len(hu))
        return marked


def recorded_budget(volume: CTVolume) -> Budget | None:
    """What the scan's provenance says that it was marked with; None where it says nothing, as in most formats."""
    for step in reversed(volume.provenance.steps):
        strength = step.parameters.get(_STRENGTH)
        # What a file says may be anything.
        if step.kind == PROTECTION and isinstance(strength, (int, float)) and 0 < strength <= HIGHEST_HU - LOWEST_HU:
            return DEFAULT_BUDGET.at_strength(float(strength))
    return None


def embed_watermark(
    volume: CTVolume, key: WatermarkKey, *, budget: Budget = DEFAULT_BUDGET, progress: Progress | None = None
) -> CTVolume:
    """The scan with the key's watermark: same geometry, every voxel changed by at most what the budget allows.

    Each slice depends on itself alone. To mark a scan a second time is to lose a part of the first mark.

    :param progress: called with (finished slices, all slices); may raise ``CancelledError``.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    signs, watermark = ScanSigns.of(volume, key), Watermark(key, budget)
    marked = np.empty_like(volume.hu)
    for slab in slabs(volume.shape[0]):
        around = Surroundings.of(
            volume.hu[slab],
            volume.spacing_kji,
            volume.provenance.padding_hu,
            with_noise=budget.noise_share is not None,
        )
        marked[slab] = watermark.marked(volume.hu[slab], around, signs, slab.start)
        if progress:
            progress(slab.stop, volume.shape[0])
    kind = "open" if watermark.is_open else "keyed"
    description = f"MITSGAN {kind} watermark, at most {budget.strength_hu:g} HU"
    return volume.with_hu(marked, ProcessingStep(PROTECTION, description, {**watermark.to_dict(), **budget.to_dict()}))
