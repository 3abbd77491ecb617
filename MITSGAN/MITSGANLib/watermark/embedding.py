"""A scan with its watermark: the keyed signs times what is allowed, in whole HU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..budget.budget import WATERMARK_BUDGET, Budget, Surroundings, apply_change
from ..runtime.threads import map_slices
from ..scan.hounsfield import HIGHEST_HU, LOWEST_HU
from ..scan.volume import PROTECTION, CTVolume
from .pattern import OPEN_KEY, ScanSigns, WatermarkKey

VERSION = 2
"""Version of the watermark in provenance: the same signs since 1, and since 2 as high in nodules and vessels as the
noise hides. A record without one is of version 1."""

_STRENGTH, _VERSION = "watermark_strength_hu", "watermark_version"
VERSION_1_BUDGET = dataclasses.replace(WATERMARK_BUDGET, in_lungs=None)
"""What scans were marked with before nodules and vessels had limits of their own."""


@dataclass(frozen=True)
class Watermark:
    """What scans are marked with, and how strongly.

    :param key: the open one, which everybody has, or one's own.
    """

    key: WatermarkKey = OPEN_KEY
    budget: Budget = WATERMARK_BUDGET

    @property
    def is_open(self) -> bool:
        """Whether everybody can check it, and forge it."""
        return self.key == OPEN_KEY

    def to_dict(self) -> dict[str, float | str]:
        """What provenance says of a scan with this watermark; nothing of the key."""
        kind = "open" if self.is_open else "keyed"
        version = 1 if self.budget.in_lungs is None else VERSION
        return {"watermark": kind, _VERSION: version, _STRENGTH: self.budget.strength_hu}

    def marked(self, hu: np.ndarray, around: Surroundings, signs: ScanSigns, first: int) -> np.ndarray:
        """Slices with their signs, int16 (slices, rows, columns); each depends on itself alone.

        :param hu: int16 (slices, rows, columns) in HU: whole slices, which may have been changed already.
        :param around: of these slices as they came.
        :param signs: of the scan, with this watermark's key.
        :param first: index of the first of these slices.
        """
        marked = hu.copy()

        def mark(k: int) -> None:
            box = around.box(k)
            if box is not None:
                allowed = around.allowed_in(k, hu[k], self.budget)[box]
                change = signs.of_slice(first + k, hu[k])[box] * allowed
                marked[k][box] = apply_change(hu[k][box], change, allowed)

        map_slices(mark, len(hu))
        return marked


def recorded_budget(volume: CTVolume) -> Budget | None:
    """What the scan's provenance says that it was marked with; None where it says nothing, as in most formats."""
    for step in reversed(volume.provenance.steps):
        strength = step.parameters.get(_STRENGTH)
        # What a file says may be anything.
        if step.kind == PROTECTION and isinstance(strength, (int, float)) and 0 < strength <= HIGHEST_HU - LOWEST_HU:
            version = step.parameters.get(_VERSION, 1)
            own = WATERMARK_BUDGET if isinstance(version, (int, float)) and version >= VERSION else VERSION_1_BUDGET
            return own.at_strength(float(strength))
    return None
