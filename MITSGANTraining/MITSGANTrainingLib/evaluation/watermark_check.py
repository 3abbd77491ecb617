"""Does ``mitsgan check`` find what was forged? For protections that carry the open watermark.

Each check looks at a whole copy of the scan, as a user's does; several places are forged in one copy, so far from each
other that none is in another's surroundings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from MITSGANLib.scan.cubes import Box
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.checking import Check, check_watermark

from .planting import Voxel, apart

APART_MM = 64.0


@dataclass(frozen=True)
class CheckedPlaces:
    """What a check said of one place.

    :param found: whether it misses the watermark there after the attack.
    :param alarm: whether it did before.
    """

    found: bool
    alarm: bool

    def to_dict(self) -> dict[str, bool]:
        """JSON-ready form, beside a verdict's."""
        return {"check_found": self.found, "check_alarm": self.alarm}


def check_places(
    marked: CTVolume,
    intact: Check,
    places: Sequence[Voxel],
    forge: Callable[[Voxel], tuple[Box, np.ndarray]],
) -> dict[Voxel, CheckedPlaces]:
    """Forge every place, and ask the check about it.

    :param marked: the protected scan.
    :param intact: its check.
    :param forge: gives where an attack at a place changes the scan, and its int16 HU there.
    """
    found: dict[Voxel, CheckedPlaces] = {}
    for group in apart(list(dict.fromkeys(places)), marked.spacing_kji, APART_MM):
        hu = marked.hu.copy()
        for kji in group:
            where, values = forge(kji)
            hu[where] = values
        check = check_watermark(marked.with_hu(hu))
        for kji in group:
            found[kji] = CheckedPlaces(check.at(kji).is_missing, intact.at(kji).is_missing)
    return found
