"""Where CT-GAN changes a scan, where forgeries are measured, and the one figure that panel and report quote of it.

The attacker pastes a 32 mm cube but makes up only its middle 20 mm; the rest it sees and gives back. How far protection
moves the forgery is therefore measured in the middle, as a share of what the attack itself changed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..scan.regions import Region, cube_around
from ..scan.volume import CTVolume

MASK = slice(6, 26)
"""The in-painted middle of each axis of the cube."""

TOUCH_UP_FACTOR = 1.3
"""Edge of what the touch-up changes, in edges of the cube."""

NOISE_SOURCE = (0.5, 0.43, 0.27)
"""Where the touch-up copies noise from, as fractions of slices, rows and columns."""

MIDDLE = "in-painted middle"


@dataclass(frozen=True)
class TargetRegions:
    """The regions at a target.

    :param square: the 32 mm square on the target's slice (the papers' tables).
    :param cube: the 32 mm cube that the attack pastes.
    :param middle: its middle 20 mm, which the attacker's network made up.
    """

    square: Region
    cube: Region
    middle: Region


def regions_at(volume: CTVolume, kji: Sequence[int]) -> TargetRegions:
    """The regions around voxel ``kji`` (slice, row, column), clipped to the volume."""
    cube = cube_around(volume, kji)
    square = replace(cube, k0=int(kji[0]), k1=int(kji[0]) + 1, name="target square")
    return TargetRegions(square, cube, cube_around(volume, kji, MASK.stop - MASK.start, MIDDLE))
