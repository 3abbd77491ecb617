"""Controls: what a change of the same size does without a network. Without them, no effect can be credited to one.

Two kinds of noise: white Gaussian noise, and noise like the scan's own, whose spectrum, correlation between slices and
local level are measured in the scan's soft tissue. Arrays are (slice, row, column) in HU.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..scan.cubes import Box
from ..scan.volume import CTVolume, ProcessingStep

if TYPE_CHECKING:
    from collections.abc import Sequence

NOISE_CONTROL = "noise-control"


def equal_rmse_noise(clean: CTVolume, protected: CTVolume, seed: int | Sequence[int] = 0) -> CTVolume:
    """``clean`` with white Gaussian noise in place of the protection: same RMSE, voxel by voxel where the change lies.

    The noise's standard deviation at a voxel is the root mean square of the protection's change in the 9x9 voxels
    around it in the slice, so the control spends as much in the same tissue.

    :return: int16 HU of the same geometry, its RMSE against ``clean`` within 1 % of the protection's.
    :raises InputError: when the two scans do not share their geometry.
    """
    from scipy import ndimage

    if not clean.same_geometry(protected):
        raise InputError("The control needs the protected scan of the same geometry; protect this very scan first.")
    rng = np.random.default_rng(seed)
    noisy = clean.hu.copy()
    for k, (before, after) in enumerate(zip(clean.hu, protected.hu, strict=True)):
        change = np.subtract(after, before, dtype=np.float32)
        changed = change != 0
        # Per slice, so that a control of part of a series equals that of the whole in size, slice by slice.
        power = float(np.mean(change**2))
        if power == 0:
            continue
        envelope = np.sqrt(ndimage.uniform_filter(change**2, 9, mode="nearest"))
        draw = rng.standard_normal(change.shape, dtype=np.float32) * envelope * neighbors(changed)
        noisy[k] = _scaled(before, draw, power)
    words = "Gaussian noise of the protection's RMSE, a control without a network"
    return clean.with_hu(noisy, ProcessingStep(NOISE_CONTROL, words, {"seed": seed}))


def noise_in_boxes(clean: CTVolume, protected: CTVolume, boxes: Sequence[Box], seed: int = 0) -> np.ndarray:
    """``clean`` with :func:`equal_rmse_noise` in some boxes alone, each of the protection's RMSE in that box.

    For an effect that depends on these boxes alone: what noise does elsewhere need not be computed.

    :param boxes: in the order in which they are drawn; where two overlap, the last one stays.
    :return: int16 HU (slices, rows, columns), the caller's own.
    """
    noisy = clean.hu.copy()
    for number, box in enumerate(boxes):
        parts = [dataclasses.replace(scan, hu=scan.hu[box]) for scan in (clean, protected)]
        noisy[box] = equal_rmse_noise(*parts, seed=(seed, number)).hu
    return noisy


def neighbors(changed: np.ndarray) -> np.ndarray:
    """Voxels that the protection may have changed: those it changed, and what lies between them."""
    from scipy import ndimage

    return ndimage.binary_closing(changed, iterations=2) | changed


def _scaled(before: np.ndarray, draw: np.ndarray, power: float) -> np.ndarray:
    """``before`` plus ``draw`` scaled to the mean square ``power`` after rounding to whole HU."""
    scale = np.sqrt(power / max(float(np.mean(draw**2)), 1e-12))
    for _ in range(4):  # rounding adds or takes a little power; four corrections leave under 0.1 %
        rounded = np.rint(draw * scale)
        scale *= np.sqrt(power / max(float(np.mean(rounded**2)), 1e-12))
    return np.clip(before + np.rint(draw * scale), -32768, 32767).astype(np.int16)
