"""The lungs of a chest CT: a quick mask, and seeded target voxels inside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import TargetError
from .filters import enlarged
from .volume import CTVolume

LUNG_BELOW_HU = -500
MINIMUM_LUNG_ML = 50.0


def lung_mask(volume: CTVolume) -> np.ndarray:
    """Bool (slices, rows, columns): air-filled lung, without the air around the patient and small gas pockets.

    Vessels and nodules inside the lung are left out; see :func:`lung_positions` for targets.
    """
    import SimpleITK as sitk

    # Half resolution in the plane: a quarter of the time, and targets need no more.
    aerated = volume.hu[:, ::2, ::2] < LUNG_BELOW_HU
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(aerated.view(np.uint8))))
    border = np.concatenate([labels[:, (0, -1), :].ravel(), labels[:, :, (0, -1)].ravel()])
    voxel_ml = float(np.prod(volume.spacing)) * 4 / 1000
    sizes = np.bincount(labels.ravel())
    keep = sizes * voxel_ml >= MINIMUM_LUNG_ML
    keep[np.unique(border)] = False
    keep[0] = False
    return enlarged(keep[labels], 2, volume.shape)


def lung_positions(
    volume: CTVolume, count: int, seed: int, margin_mm: float = 16.0, mask: np.ndarray | None = None
) -> list[tuple[int, int, int]]:
    """Seeded voxels (slice, row, column) inside the lung, at least ``margin_mm`` from the scan's border.

    :param margin_mm: half the attacker's cube, so that the whole cube lies in the scan.
    :param mask: the result of :func:`lung_mask`, where it is already known.
    :raises TargetError: when no lung is found there.
    """
    lung = (lung_mask(volume) if mask is None else mask) & interior(volume, margin_mm)
    candidates = np.flatnonzero(lung)
    if candidates.size == 0:
        raise TargetError("No lung was found in this scan; use a chest CT, or name the places to attack.")
    chosen = np.random.default_rng(seed).choice(candidates, size=count, replace=candidates.size < count)
    return [tuple(int(index) for index in np.unravel_index(flat, volume.shape)) for flat in chosen]


def nodule_like_positions(
    volume: CTVolume, count: int, diameter_mm: float = 10.0, margin_mm: float = 16.0
) -> list[tuple[int, int, int]]:
    """Voxels (slice, row, column) of the brightest compact structures in the lungs, best first, 30 mm apart.

    They are where erasing something makes sense to look at: nodules, but vessels seen end on just as well. This is no
    detector. The measure is the scale-normalized Laplacian of a Gaussian, largest for a ball of ``diameter_mm``.

    :raises TargetError: when no lung is found.
    """
    import SimpleITK as sitk

    lung = lung_mask(volume)
    if not lung.any():
        raise TargetError("No lung was found in this scan; use a chest CT, or name the places to attack.")
    # Half resolution in the plane and HU clipped to lung and soft tissue, so that bone and air do not dominate.
    step = 2
    tissue = np.clip(volume.hu[:, ::step, ::step], -900, 100).astype(np.float32)
    image = sitk.GetImageFromArray(tissue)
    image.SetSpacing((volume.spacing[0] * step, volume.spacing[1] * step, volume.spacing[2]))
    sigma = diameter_mm / (2 * np.sqrt(3))
    response = -sitk.GetArrayFromImage(sitk.LaplacianRecursiveGaussian(image, sigma, True))
    # A structure inside the lung has lung all around: count only where most of a 30 mm neighborhood is lung.
    near = sitk.GetImageFromArray(lung[:, ::step, ::step].astype(np.float32))
    near.CopyInformation(image)
    share = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(near, 9.0))
    response = np.where((share > 0.6) & interior(volume, margin_mm)[:, ::step, ::step], response, 0)
    distance = np.array(volume.spacing_kji) * (1, step, step)
    found: list[tuple[int, int, int]] = []
    while len(found) < count and response.max() > 0:
        peak = np.array(np.unravel_index(int(response.argmax()), response.shape))
        found.append((int(peak[0]), int(peak[1]) * step, int(peak[2]) * step))
        low = np.maximum(peak - np.ceil(30 / distance).astype(int), 0)
        high = peak + np.ceil(30 / distance).astype(int) + 1
        response[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 0
    return found


def interior(volume: CTVolume, margin_mm: float) -> np.ndarray:
    """Bool (slices, rows, columns): voxels at least ``margin_mm`` from each face of the scan."""
    inside = np.zeros(volume.shape, bool)
    axes = zip(map(np.arange, volume.shape), volume.spacing_kji, strict=True)
    inside[np.ix_(*((np.minimum(index, index[::-1]) + 0.5) * mm >= margin_mm for index, mm in axes))] = True
    return inside


def distance_to_border_mm(volume: CTVolume, kji: Sequence[int]) -> float:
    """Smallest distance in mm from the center of voxel (slice, row, column) to a face of the scan; negative outside."""
    return min(
        min(index + 0.5, size - index - 0.5) * spacing
        for index, size, spacing in zip(kji, volume.shape, volume.spacing_kji, strict=True)
    )
