"""Where a forgery is measured, and the one figure that panel, report and tables quote of it.

The attacker pastes a 32 mm cube but makes up only its middle 20 mm; the rest it sees and gives back. How far protection
moves the forgery is therefore measured in the middle, as a share of what the attack itself changed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..scan.regions import Region, cube_around, square_around
from ..scan.volume import CTVolume

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
    from .chain import MASK

    where = (volume.shape, volume.spacing_kji, kji)
    middle = cube_around(*where, size_mm=MASK.stop - MASK.start, name=MIDDLE)
    return TargetRegions(square_around(*where), cube_around(*where), middle)
