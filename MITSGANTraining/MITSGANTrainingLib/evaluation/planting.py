"""Removals need something to remove: synthetic or other patients' nodules, planted at seeded places of healthy lung.

Erasing healthy lung says nothing about success, and few scans hold many known nodules. Nodules are planted far enough
apart that no attack reads another's; what does not fit into one copy of the scan goes into a further one (a scene).
Protection comes after planting, as it would come after a real nodule.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from MITSGANLib.errors import InputError
from MITSGANLib.scan.cubes import Voxel, box_at, intersection, whole
from MITSGANLib.scan.lungs import lung_mask, lung_positions
from MITSGANLib.scan.targets import Target
from MITSGANLib.scan.volume import CTVolume

from ..data.nodules import FADE_MM, Nodules, plant_nodule, read_nodules, synthetic_nodules

SYNTHETIC = None  # in place of a file: nodules that were drawn, as no patient's may be kept here

_LARGEST_MM = 20.0  # what the attacker's network makes up; it cannot remove more
APART_MM = 34.0  # along some axis: an attack reads 16 mm around its place, and a nodule reaches 14 mm as it fades
_ROOM_MM = 12.0  # around a place, of which most must be lung
_ROOM_SHARE = 0.8
_CANDIDATES = 30  # places looked at for each one wanted
_STREAM = 7  # keeps these draws apart from those of the places to inject at


@dataclass(frozen=True)
class Plant:
    """A nodule to be planted.

    :param kji: voxel (slice, row, column) of its middle.
    :param nodule: its number in the file, from 0.
    :param flips: along slices, rows and columns.
    :param quarter_turns: in the plane, after the flips.
    """

    kji: Voxel
    nodule: int
    flips: tuple[bool, bool, bool]
    quarter_turns: int


@dataclass(frozen=True)
class Scene:
    """A scan as it is before protection, and the places attacked in it.

    :param plants: put into it first; none for the scan as it came.
    """

    targets: tuple[Target, ...]
    plants: tuple[Plant, ...] = ()


@dataclass(frozen=True)
class NoduleFile:
    """Where nodules to plant lie.

    :param path: empty for synthetic ones.
    :param digest: SHA-256 of the file, or of the synthetic cubes.
    """

    path: str
    digest: str

    @classmethod
    def of(cls, path: Path | None) -> NoduleFile:
        """The nodules of a file, or synthetic ones.

        :raises InputError: when the file is missing or damaged, or has no nodule that an attack can remove.
        """
        if path is None:
            return cls("", hashlib.sha256(synthetic_nodules().hu.tobytes()).hexdigest())
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"The nodules {path} cannot be read ({error}); check --nodules.") from error
        found = cls(str(path.resolve()), digest)
        found.read()
        return found

    def read(self) -> Nodules:
        """:raises InputError: as :meth:`of`, and when the file has changed since."""
        return _read(self)

    def describe(self) -> dict[str, Any]:
        """For results; no paths."""
        kind = "of other patients" if self.path else "synthetic"
        return {"nodules": len(self.read().hu), "kind": kind, "sha256": self.digest}


def draw_scenes(volume: CTVolume, count: int, nodules: Nodules, seed: int) -> tuple[Scene, ...]:
    """Seeded nodules and places for them, each with lung around it as far as the scan has such places.

    Each scene takes as many as find room in it, so that few copies of the scan have to be protected.

    :raises TargetError: when no lung is found.
    """
    rng = np.random.default_rng((seed, _STREAM))
    lung = lung_mask(volume)
    candidates = list(dict.fromkeys(lung_positions(volume, _CANDIDATES * count, int(rng.integers(2**31)), mask=lung)))
    # Places with room in the order drawn, then the others, the roomiest first.
    shares = {kji: _share_of_lung(lung, volume.spacing_kji, kji) for kji in candidates}
    candidates.sort(key=lambda kji: -min(shares[kji], _ROOM_SHARE))
    roomy = sum(share >= _ROOM_SHARE for share in shares.values())
    groups: list[list[Voxel]] = []
    for group in apart(candidates[: max(roomy, count)], volume.spacing_kji, APART_MM):
        groups.append(group[: count - sum(map(len, groups))])
    numbers = _in_turn(len(nodules.hu), sum(map(len, groups)), rng)
    scenes = []
    for group in filter(None, groups):
        plants = tuple(
            Plant(kji, next(numbers), tuple(bool(flip) for flip in rng.random(3) < 0.5), int(rng.integers(4)))
            for kji in group
        )
        words = "another nodule of {:.0f} mm, planted, seed {}"
        targets = [Target("remove", p.kji, words.format(2 * nodules.radii[p.nodule], seed)) for p in plants]
        scenes.append(Scene(tuple(targets), plants))
    return tuple(scenes)


def planted(volume: CTVolume, plants: Sequence[Plant], nodules: Nodules) -> CTVolume:
    """The scan with these nodules in it, marked as simulated; the scan itself without any."""
    for plant in plants:
        cube, center = nodules.hu[plant.nodule], nodules.centers[plant.nodule].copy()
        axes = np.flatnonzero(plant.flips)
        cube, center[axes] = np.flip(cube, axes), -center[axes]
        for _ in range(plant.quarter_turns):
            # As rot90 in the plane of the last two axes: what lay at (row, column) comes to lie at (-column, row).
            center = np.array([center[0], -center[2], center[1]])
        cube = np.rot90(cube, plant.quarter_turns, axes=(1, 2))
        volume = plant_nodule(volume, plant.kji, cube, float(nodules.radii[plant.nodule]), center)
    return volume


@functools.lru_cache(maxsize=2)
def _read(file: NoduleFile) -> Nodules:
    if not file.path:
        return synthetic_nodules()
    path = Path(file.path)
    nodules = read_nodules(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != file.digest:
        raise InputError(f"{path} has changed since the evaluation began; run it again.")
    room = (np.array(nodules.hu.shape[1:]).min() - 1) / 2 - np.abs(nodules.centers).max(axis=1)
    # Larger ones stay after removal, and what reaches beyond its cube would be made up by planting.
    fits = (2 * nodules.radii <= _LARGEST_MM) & (nodules.radii + FADE_MM <= room + 1)
    if not fits.any():
        raise InputError(
            f"No nodule of {path} is below {_LARGEST_MM:g} mm with {FADE_MM:g} mm of lung around it in its cube; give "
            "others, or --nodules none."
        )
    return nodules.take(fits)


def _in_turn(kinds: int, count: int, rng: np.random.Generator) -> Iterator[int]:
    """``count`` numbers below ``kinds``: all of them in turn, in an order drawn anew each time."""
    for start in range(0, count, kinds):
        yield from rng.permutation(kinds)[: count - start].tolist()


def apart(places: Sequence[Voxel], spacing_kji: Sequence[float], mm: float) -> list[list[Voxel]]:
    """The places in groups, those of a group at least so far from each other along some axis; the first ones first.

    :param places: voxels (slice, row, column).
    """
    groups: list[list[Voxel]] = []
    for kji in places:
        fits = (g for g in groups if all(apart_mm(kji, other, spacing_kji) >= mm for other in g))
        group = next(fits, None)
        if group is None:
            groups.append(group := [])
        group.append(kji)
    return groups


def apart_mm(one: Voxel, other: Voxel, spacing_kji: Sequence[float]) -> float:
    """The distance of two voxels (slice, row, column) along the axis on which they are farthest apart."""
    return max(abs(a - b) * mm for a, b, mm in zip(one, other, spacing_kji, strict=True))


def _share_of_lung(lung: np.ndarray, spacing_kji: Sequence[float], kji: Sequence[int]) -> float:
    reach = np.ceil(_ROOM_MM / np.asarray(spacing_kji)).astype(int)
    return float(lung[intersection(box_at(np.subtract(kji, reach), 2 * reach + 1), whole(lung.shape))].mean())
