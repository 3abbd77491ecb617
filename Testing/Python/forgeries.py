"""Forgeries that need no trained weights, for benches and tests: paint, clones, pastes and edits of single places.

Each gives a box of the scan and the int16 HU that the forger leaves there. Edges are feathered, as an image editor's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from MITSGANLib.scan.volume import CTVolume
from MITSGANTrainingLib.data.nodules import Nodules, nodule_patch

Voxel = tuple[int, int, int]
Box = tuple[slice, slice, slice]
Forged = tuple[Box, np.ndarray]

RADIUS_MM, FEATHER_MM = 10.0, 3.0
NODULE_MM = 8.0
_LUNG_BELOW_HU = -600
_SHELL_MM = 4.0
_FINE_MM = 2.0


def paint(volume: CTVolume, kji: Voxel, noise_hu: float, rng: np.random.Generator) -> Forged:
    """A ball of the lung's mean around it, with white noise of this standard deviation."""
    box, hu, distance = _around(volume, kji, RADIUS_MM + _SHELL_MM)
    fill = _lung_around(hu, distance) + noise_hu * rng.standard_normal(hu.shape)
    return box, _blend(hu, fill, distance, RADIUS_MM)


def clone(volume: CTVolume, kji: Voxel, source: Voxel, radius_mm: float = RADIUS_MM) -> Forged:
    """A ball of another place of the same scan."""
    box, hu, distance = _around(volume, kji, radius_mm)
    return box, _blend(hu, _moved(volume, box, kji, source), distance, radius_mm)


def copied_noise(volume: CTVolume, kji: Voxel, source: Voxel) -> Forged:
    """A ball of the lung's mean around it, with the noise of another place."""
    box, hu, distance = _around(volume, kji, RADIUS_MM + _SHELL_MM)
    taken = _moved(volume, box, kji, source)
    fill = _lung_around(hu, distance) + np.clip(taken - _smooth(taken, volume, _FINE_MM), -150, 150)
    return box, _blend(hu, fill, distance, RADIUS_MM)


def paste(volume: CTVolume, kji: Voxel, nodules: Nodules, number: int) -> Forged:
    """A nodule of another patient."""
    return nodule_patch(
        volume.hu, volume.spacing_kji, kji, nodules.hu[number], float(nodules.radii[number]), nodules.centers[number]
    )


def blur(volume: CTVolume, kji: Voxel) -> Forged:
    """What is there, after a Gaussian of 2 mm."""
    box, hu, distance = _around(volume, kji, NODULE_MM + 4)
    return box, _blend(hu, _smooth(hu, volume, 2.0), distance, NODULE_MM)


def median(volume: CTVolume, kji: Voxel) -> Forged:
    """What is there, after a median of 7x7 voxels in each slice."""
    from scipy import ndimage

    box, hu, distance = _around(volume, kji, NODULE_MM + 4)
    return box, _blend(hu, ndimage.median_filter(hu, (1, 7, 7)), distance, NODULE_MM)


def shrink(volume: CTVolume, kji: Voxel) -> Forged:
    """What is there at 0.6 of its size, interpolated."""
    from scipy import ndimage

    box, hu, distance = _around(volume, kji, NODULE_MM + 4)
    middle = np.subtract(kji, [part.start for part in box])
    fine = np.stack(np.indices(hu.shape)).astype(np.float64)
    at = middle[:, None, None, None] + (fine - middle[:, None, None, None]) / 0.6
    small = ndimage.map_coordinates(hu, at, order=1, mode="nearest")
    return box, _blend(hu, small, distance, NODULE_MM)


def deep_prior(volume: CTVolume, kji: Voxel, steps: int = 200) -> Forged:
    """What a small network, fitted to the tissue around and to nothing else, makes of the hole (deep image prior).

    Ulyanov et al. 2018, Deep Image Prior; the network is smaller, and convolves in three dimensions.
    """
    import torch

    box, hu, distance = _around(volume, kji, RADIUS_MM + _SHELL_MM)
    low, high = float(hu.min()), float(hu.max())
    wanted = torch.from_numpy((hu - low) / max(high - low, 1.0)).float()
    known = torch.from_numpy(distance >= RADIUS_MM - FEATHER_MM)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [(8, 16), (16, 16), (16, 16), (16, 1)]
        convolutions = torch.nn.ModuleList(torch.nn.Conv3d(a, b, 3, padding=1) for a, b in layers)
        noise = torch.rand(1, 8, *hu.shape)
    optimizer = torch.optim.Adam(convolutions.parameters(), lr=0.01)

    def made() -> torch.Tensor:
        first, inner, last, out = convolutions
        found = torch.relu(first(noise))
        small = torch.nn.functional.avg_pool3d(found, (1, 2, 2))
        coarse = torch.nn.functional.interpolate(torch.relu(inner(small)), size=found.shape[2:])
        return out(torch.relu(last(found + coarse)))[0, 0]

    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(made()[known], wanted[known]).backward()
        optimizer.step()
    with torch.no_grad():
        fill = made().numpy() * (high - low) + low
    return box, _blend(hu, fill, distance, RADIUS_MM)


def smooth_edit(volume: CTVolume, kji: Voxel, height_hu: float = 700.0) -> Forged:
    """A smooth bump on top of every voxel's own noise; where the place is bright, what is smooth of it taken away."""
    box, hu, distance = _around(volume, kji, RADIUS_MM)
    bump = height_hu / (1 + np.exp((distance - 4.0) / 0.8))
    if hu[distance < 3].mean() > _LUNG_BELOW_HU:
        lung = _lung_around(hu, distance)
        bump = np.clip((RADIUS_MM - 2 - distance) / 2, 0, 1) * np.minimum(lung - _smooth(hu, volume, 1.0), 0)
    return box, np.clip(np.rint(hu + bump), -1024, 3071).astype(np.int16)


def forge(volume: CTVolume, places: Sequence[Voxel], by: Callable[[CTVolume, Voxel], Forged]) -> CTVolume:
    """The scan after one forgery at each place."""
    hu = volume.hu.copy()
    for kji in places:
        box, values = by(volume, kji)
        hu[box] = values
    return volume.with_hu(hu)


def _around(volume: CTVolume, kji: Voxel, reach_mm: float) -> tuple[Box, np.ndarray, np.ndarray]:
    """A box of the scan, its HU in float64, and the distance of its voxels from the place in mm."""
    reach = np.ceil((reach_mm + FEATHER_MM) / np.array(volume.spacing_kji)).astype(int)
    box = tuple(
        slice(max(0, at - n), min(size, at + n + 1)) for at, n, size in zip(kji, reach, volume.shape, strict=True)
    )
    axes = [
        (np.arange(part.start, part.stop) - at) * mm for part, at, mm in zip(box, kji, volume.spacing_kji, strict=True)
    ]
    distance = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None] ** 2)
    return box, volume.hu[box].astype(np.float64), distance


def _blend(hu: np.ndarray, fill: np.ndarray, distance: np.ndarray, radius_mm: float) -> np.ndarray:
    weight = np.clip((radius_mm - distance) / FEATHER_MM, 0, 1)
    return np.clip(np.rint(hu + weight * (fill - hu)), -1024, 3071).astype(np.int16)


def _lung_around(hu: np.ndarray, distance: np.ndarray) -> float:
    shell = hu[(distance > RADIUS_MM - FEATHER_MM) & (hu < _LUNG_BELOW_HU)]
    return float(shell.mean()) if shell.size else float(np.median(hu))


def _smooth(hu: np.ndarray, volume: CTVolume, fwhm_mm: float) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(hu, [fwhm_mm / 2.355 / mm for mm in volume.spacing_kji], mode="nearest")


def _moved(volume: CTVolume, box: Box, kji: Voxel, source: Voxel) -> np.ndarray:
    """The tissue of another place where that of a box is; beyond the scan its border repeats."""
    axes = [
        np.clip(np.arange(part.start, part.stop) - at + other, 0, size - 1)
        for part, at, other, size in zip(box, kji, source, volume.shape, strict=True)
    ]
    return volume.hu[np.ix_(*axes)].astype(np.float64)
