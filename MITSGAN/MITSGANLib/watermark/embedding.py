"""A scan with its watermark: the keyed signs times what is allowed, in whole HU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..budget import Budget, allowed_in_slices, apply_change
from ..volume import PROTECTION, CTVolume, ProcessingStep
from .pattern import Grid, WatermarkKey, signs, tile_levels

Progress = Callable[[int, int], None]

# 1 to 3 HU in most lungs. Set on LIDC-IDRI-0002 and -0028, where it keeps all limits of fidelity.
DEFAULT_BUDGET = Budget(strength_hu=10.0, lung=1.0, soft_tissue=0.1, bone=0.1, noise_share=0.15)


def embed_watermark(
    volume: CTVolume, key: WatermarkKey, *, budget: Budget = DEFAULT_BUDGET, progress: Progress | None = None
) -> CTVolume:
    """The scan with the key's watermark: same geometry, every voxel changed by at most what the budget allows.

    Each slice depends on itself alone. To mark a scan a second time is to lose a part of the first mark.

    :param progress: called with (finished slices, all slices); may raise ``CancelledError``.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    grid = Grid.of(volume)
    padding = volume.provenance.padding_hu
    marked = np.empty_like(volume.hu)
    for k, plane in enumerate(volume.hu):
        slab = slice(k, k + 1)
        allowed = allowed_in_slices(volume.hu[slab], budget, volume.spacing_kji, padding)
        levels, _ = tile_levels(grid.turned(plane))
        pattern = grid.turned(signs(key, grid.place(k), levels, plane.shape))
        marked[slab] = apply_change(volume.hu[slab], pattern[None] * allowed.astype(np.float32), allowed)
        if progress:
            progress(k + 1, volume.shape[0])
    description = f"MITSGAN keyed watermark, at most {budget.strength_hu:g} HU"
    return volume.with_hu(marked, ProcessingStep(PROTECTION, description, {"watermark": 1, **budget.to_dict()}))
