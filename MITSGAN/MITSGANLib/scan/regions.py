"""Boxes of voxels of a scan, half-open, with a name; where CT-GAN changes a scan. Arrays are (slice, row, column).

The attacker pastes a 32 mm cube but makes up only its middle 20 mm; the rest it sees and gives back. How far protection
moves the forgery is therefore measured in the middle, as a share of what the attack itself changed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import InputError, TargetError
from .volume import CTVolume

MASK = slice(6, 26)
"""The in-painted middle of each axis of the cube."""

TOUCH_UP_FACTOR = 1.3
"""Edge of what the touch-up changes, in edges of the cube."""

NOISE_SOURCE = (0.5, 0.43, 0.27)
"""Where the touch-up copies noise from, as fractions of slices, rows and columns."""

MIDDLE = "in-painted middle"


@dataclass(frozen=True)
class Region:
    """A box of voxels with half-open bounds: slices k0..k1-1, rows j0..j1-1, columns i0..i1-1.

    :raises InputError: when a bound is negative or the box is empty.
    """

    k0: int
    k1: int
    j0: int
    j1: int
    i0: int
    i1: int
    name: str = "region"

    def __post_init__(self) -> None:
        for low, high in ((self.k0, self.k1), (self.j0, self.j1), (self.i0, self.i1)):
            if not 0 <= low < high:
                raise InputError(f"The region {self.name} must have bounds with 0 <= start < stop, not {low}:{high}.")

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Region:
        """All voxels of a volume of this (slices, rows, columns) shape."""
        slices, rows, columns = shape
        return cls(0, slices, 0, rows, 0, columns, "whole volume")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return self.k1 - self.k0, self.j1 - self.j0, self.i1 - self.i0

    @property
    def index(self) -> tuple[slice, slice, slice]:
        """Index of the region's voxels in the volume's array."""
        return slice(self.k0, self.k1), slice(self.j0, self.j1), slice(self.i0, self.i1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def cube_around(volume: CTVolume, kji: Sequence[int], size_mm: float = 32.0, name: str = "target cube") -> Region:
    """The cube that CT-GAN tampers with, clipped to the scan: round(size / spacing) voxels, center at index n // 2.

    :param kji: (slice, row, column) of the target voxel.
    :raises TargetError: when it lies outside the scan.
    """
    if not volume.contains(kji):
        raise TargetError(
            f"The target voxel {tuple(kji)} lies outside the scan of {volume.shape} voxels; choose another."
        )
    bounds: list[int] = []
    for center, spacing, size in zip(kji, volume.spacing_kji, volume.shape, strict=True):
        count = max(1, round(size_mm / spacing))
        start = int(center) - count // 2
        bounds += [max(0, start), min(size, start + count)]
    return Region(*bounds, name=name)


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
