"""A scan with its watermark: the keyed signs times what is allowed, in whole HU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..budget.budget import WATERMARK_BUDGET, Budget, Surroundings, apply_change
from ..runtime.threads import map_slices
from ..scan.volume import HIGHEST_HU, LOWEST_HU, PROTECTION, CTVolume
from .pattern import OPEN_KEY, UNCHECKERED, ScanSigns, WatermarkKey
from .pattern import VERSION as VERSION_OF_SIGNS

VERSION = 3
"""Version of the watermark in provenance: since 2 as high in nodules and vessels as the noise hides, since 3 with
checkered signs. A record without one is of version 1."""

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

    @property
    def version(self) -> int:
        """See :data:`VERSION`."""
        if self.key.version != UNCHECKERED:
            return VERSION
        return 1 if self.budget.in_lungs is None else 2

    def to_dict(self) -> dict[str, float | str]:
        """What provenance says of a scan with this watermark; nothing of the key."""
        kind = "open" if self.is_open else "keyed"
        return {"watermark": kind, _VERSION: self.version, _STRENGTH: self.budget.strength_hu}

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


def versions(key: WatermarkKey = OPEN_KEY) -> tuple[Watermark, ...]:
    """Everything that scans were ever marked with by default, the newest first.

    :param key: of whatever version.
    """
    unchecked = dataclasses.replace(key, version=UNCHECKERED)
    newest = Watermark(dataclasses.replace(key, version=VERSION_OF_SIGNS))
    return newest, Watermark(unchecked), Watermark(unchecked, VERSION_1_BUDGET)


def recorded_watermark(volume: CTVolume, key: WatermarkKey = OPEN_KEY) -> Watermark | None:
    """What the scan's provenance says that it was marked with; None where it says nothing, as in most formats.

    :param key: that it was marked with, of whatever version.
    """
    for step in reversed(volume.provenance.steps):
        # What a file says may be anything.
        strength, version = step.parameters.get(_STRENGTH), step.parameters.get(_VERSION, 1)
        if step.kind == PROTECTION and isinstance(strength, (int, float)) and 0 < strength <= HIGHEST_HU - LOWEST_HU:
            version = version if isinstance(version, (int, float)) else 1
            *newer, oldest = versions(key)
            own = next((one for one in newer if version >= one.version), oldest)
            return dataclasses.replace(own, budget=own.budget.at_strength(float(strength)))
    return None
