"""Nodules as cubes in HU, of patients or drawn, and putting one into a scan, so that removals have one to remove."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from MITSGANLib.errors import InputError, TargetError
from MITSGANLib.scan.cubes import Box, box_at, intersection, whole
from MITSGANLib.scan.volume import SIMULATED_ATTACK, CTVolume, ProcessingStep, hu_from_float
from scipy import ndimage

FADE_MM = 4.0  # over which a planted nodule fades into the scan, beyond its radius
_NOISE_REACH = 4.0  # medians of the absolute detail: 2.7 standard deviations of Gaussian noise


@dataclass(frozen=True, eq=False)
class Nodules:
    """Cubes around nodules.

    :param hu: int16 (n, edge, edge, edge) HU at 1 mm; axes are slice, row, column.
    :param centers: (n, 3) the nodule's middle, in mm from the cube's middle voxel.
    :param radii: (n,) in mm.
    :param patients: (n,) whom each came from.
    """

    hu: np.ndarray
    centers: np.ndarray
    radii: np.ndarray
    patients: np.ndarray

    def of(self, patients: Sequence[str]) -> Nodules:
        """Those of some patients."""
        return self.take(np.isin(self.patients, list(patients)))

    def take(self, chosen: np.ndarray) -> Nodules:
        """Those of some numbers, or where a mask (n,) is true."""
        return Nodules(*(getattr(self, entry.name)[chosen] for entry in dataclasses.fields(self)))


def read_nodules(path: Path, at_least: int = 1) -> Nodules:
    """Nodules from an ``.npz`` with ``hu``, ``patient``, ``diameter_mm`` and, where known, ``mask`` of their voxels.

    :param at_least: smallest edge of the cubes, in voxels.
    :raises InputError: when it is missing or damaged, or its cubes are too small.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            hu, diameters, patients = (data[name] for name in ("hu", "diameter_mm", "patient"))
            centers = np.zeros((len(hu), 3))
            if "mask" in data.files:
                middle = (np.array(hu.shape[1:]) - 1) // 2
                centers = np.stack([np.argwhere(mask).mean(axis=0) for mask in data["mask"]]) - middle
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        problem = f"The nodules {path} cannot be read ({error}); give an .npz with hu, patient and diameter_mm."
        raise InputError(problem) from error
    if hu.ndim != 4 or min(hu.shape) < 1 or min(hu.shape[1:]) < at_least:
        raise InputError(f"The nodules {path} are {hu.shape[1:]} voxels; they must be cubes of at least {at_least}.")
    return Nodules(hu, centers, diameters / 2, patients)


def synthetic_nodules(count: int = 12, seed: int = 0, edge: int = 41) -> Nodules:
    """Solid nodules that were drawn, not scanned: lobulated balls of 8 to 18 mm, some with spicules, in bare lung.

    For use where no nodules of patients may be kept. They stand for what a remover is to erase, not for pathology.

    :param edge: of the cubes, in voxels of 1 mm; odd.
    """
    rng = np.random.default_rng(seed)
    middle = edge // 2
    offsets = np.stack(np.meshgrid(*[np.arange(edge) - middle] * 3, indexing="ij")).astype(np.float64)
    distance = np.linalg.norm(offsets, axis=0)
    directions = offsets / np.maximum(distance, 1e-9)
    cubes, radii = [], []
    for _ in range(count):
        radius = rng.uniform(4.0, 9.0)
        # A few broad bumps on the sphere: the surface swings by about a tenth of the radius.
        bumps = rng.normal(size=(6, 3))
        bumps /= np.linalg.norm(bumps, axis=1, keepdims=True)
        heights = rng.normal(0, 0.1, 6)
        swell = sum(h * np.exp(4 * (np.tensordot(b, directions, 1) - 1)) for h, b in zip(heights, bumps, strict=True))
        solid = distance <= radius * (0.9 + swell)
        for spicule in bumps[: rng.integers(0, 5)]:
            along = np.tensordot(spicule, offsets, 1)
            aside = np.sqrt(np.maximum(distance**2 - along**2, 0))
            solid |= (along > 0) & (along < radius + 2.5) & (aside < 0.8)
        tissue, lung = rng.uniform(-40, 60), rng.uniform(-880, -840)
        texture = ndimage.gaussian_filter(rng.normal(size=solid.shape), 1.5)
        share = ndimage.gaussian_filter(solid.astype(np.float64), 0.8)
        cubes.append(lung + share * (tissue - lung) + 15 * texture / texture.std())
        radii.append(radius)
    names = np.array([f"synthetic-{number}" for number in range(count)])
    return Nodules(hu_from_float(np.stack(cubes)), np.zeros((count, 3)), np.array(radii), names)


def plant_nodule(
    volume: CTVolume, kji: Sequence[int], nodule: np.ndarray, radius_mm: float, center_mm: Sequence[float] = (0, 0, 0)
) -> CTVolume:
    """A scan with another nodule in it, marked as simulated; parameters as of :func:`nodule_patch`."""
    hu = volume.hu.copy()
    box, values = nodule_patch(hu, volume.spacing_kji, kji, nodule, radius_mm, center_mm)
    hu[box] = values
    what = "SIMULATED: a nodule was planted; not this patient's image"
    return volume.with_hu(hu, ProcessingStep(SIMULATED_ATTACK, what, {"target_kji": [int(index) for index in kji]}))


def nodule_patch(
    hu: np.ndarray,
    spacing_kji: Sequence[float],
    kji: Sequence[int],
    nodule: np.ndarray,
    radius_mm: float,
    center_mm: Sequence[float] = (0, 0, 0),
) -> tuple[Box, np.ndarray]:
    """What planting changes in a scan: where, and the int16 HU there.

    The nodule fades into the lung around it, and bears the scan's own noise: without it a nodule from a cube at 1 mm
    would be smoother than the scan, and a forensic judge would take it for a forgery.

    :param hu: (slices, rows, columns).
    :param kji: voxel (slice, row, column) where the nodule's middle comes to lie.
    :param nodule: HU (edge, edge, edge) at 1 mm, along the axes of the scan.
    :param center_mm: of the nodule, from the middle voxel of its cube.
    :raises TargetError: when the voxel lies outside the scan.
    """
    if not all(0 <= index < size for index, size in zip(kji, hu.shape, strict=True)):
        raise TargetError(
            f"The place (slice, row, column) {tuple(kji)} lies outside the scan of {hu.shape} voxels; choose another."
        )
    spacing = np.array(spacing_kji)
    reach = np.ceil((radius_mm + FADE_MM) / spacing).astype(int)
    box = intersection(box_at(np.array(kji) - reach, 2 * reach + 1), whole(hu.shape))
    axes = [(np.arange(part.start, part.stop) - k) * mm for part, k, mm in zip(box, kji, spacing, strict=True)]
    from_middle = np.stack(np.meshgrid(*axes, indexing="ij"))
    middle = (np.array(nodule.shape) - 1) // 2 + np.array(center_mm)
    at = from_middle + middle[:, None, None, None]
    values = ndimage.map_coordinates(nodule.astype(np.float64), at, order=1, mode="nearest")
    before = hu[box].astype(np.float64)
    detail = before - ndimage.gaussian_filter(before, (0, 1, 1))
    # Vessels stand far out of the noise, and must not show through the nodule.
    limit = _NOISE_REACH * np.median(np.abs(detail))
    distance = np.linalg.norm(from_middle, axis=0)
    weight = np.clip((radius_mm + FADE_MM - distance) / FADE_MM, 0, 1)
    return box, hu_from_float(before + weight * (values + np.clip(detail, -limit, limit) - before))
