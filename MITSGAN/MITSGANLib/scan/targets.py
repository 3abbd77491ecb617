"""Targets: the voxels that an attack aims at, and how a demonstration chooses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import TargetError
from .lungs import distance_to_border_mm, lung_positions, nodule_like_positions
from .regions import cube_around
from .volume import CTVolume

Action = Literal["inject", "remove"]
ACTIONS: tuple[Action, ...] = ("inject", "remove")

_HALF_CUBE_MM = 16.0
_MADE_UP_MM = 20.0
_AIR_BELOW_HU, _MOST_AIR = -960, 0.95
_SOFT_ABOVE_HU = -400
_OUTGROWN = 0.57  # of what is made up; a ball that just fits in fills 0.52


@dataclass(frozen=True)
class Target:
    """A place to attack: the action, the voxel (slice, row, column), and why this one."""

    action: Action
    kji: tuple[int, int, int]
    reason: str


def choose_targets(volume: CTVolume, per_action: int = 3, seed: int = 0) -> tuple[Target, ...]:
    """Seeded places in the lungs to inject at, and the most nodule-like structures to remove.

    :raises TargetError: when the scan has no lung in which the attack's 32 mm cube fits.
    """
    inject = [
        Target("inject", kji, f"random lung voxel, seed {seed}") for kji in lung_positions(volume, per_action, seed)
    ]
    reason = "compact bright structure in the lung (nodule, or vessel seen end on)"
    remove = [Target("remove", kji, reason) for kji in nodule_like_positions(volume, per_action)]
    return (*inject, *remove)


def check_target(volume: CTVolume, kji: Sequence[int]) -> None:
    """Refuse a voxel ``kji`` (slice, row, column) at which an attack would be meaningless.

    :raises TargetError: when it lies outside the scan, too near its border, or in air.
    """
    if not volume.contains(kji):
        raise TargetError(
            f"The target (slice, row, column) {tuple(kji)} lies outside the scan, which has {volume.shape} voxels; "
            "choose a point inside."
        )
    distance = distance_to_border_mm(volume, kji)
    if distance < _HALF_CUBE_MM:
        raise TargetError(
            f"The target lies {distance:.1f} mm from the scan's border; the attack needs {_HALF_CUBE_MM:.0f} mm on "
            "each side. Choose a point further inside."
        )
    cube = volume.hu[cube_around(volume, kji).index]
    # Lung lies near -850 HU, air at -1000: a cube of air alone has no tissue that a tumor could sit in.
    if np.mean(cube < _AIR_BELOW_HU) > _MOST_AIR:
        raise TargetError("The target lies in air; choose a point in the lung or at a nodule.")


def outgrows_attack(volume: CTVolume, kji: Sequence[int]) -> bool:
    """Whether the structure at voxel ``kji`` (slice, row, column) is larger than the 20 mm that an attack makes up.

    Its removal then leaves a rim around a patch. What touches the middle and is denser than lung counts. It need not
    reach out on every side: tumors are seldom balls.
    """
    from scipy import ndimage

    region = cube_around(volume, kji, _MADE_UP_MM)
    labels, _count = ndimage.label(volume.hu[region.index] > _SOFT_ABOVE_HU)
    start = (region.k0, region.j0, region.i0)
    here = labels[tuple(index - first for index, first in zip(kji, start, strict=True))]
    if not here:
        return False
    return float(np.mean(labels == here)) > _OUTGROWN
