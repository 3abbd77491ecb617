"""Targets: the voxels that an attack aims at, and how a demonstration chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .lungs import lung_positions, nodule_like_positions
from .volume import CTVolume

Action = Literal["inject", "remove"]
ACTIONS: tuple[Action, ...] = ("inject", "remove")


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
