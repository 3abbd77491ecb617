"""What the examiner's tests forge: a phantom with a scanner's noise, the same watermarked, and a place in it."""

from __future__ import annotations

import numpy as np
import pytest
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.pattern import OPEN_KEY
from scipy import ndimage


@pytest.fixture(scope="session")
def scan() -> CTVolume:
    """Just so many slices that most forgeries are found."""
    return noisy_thorax(28)


def noisy_thorax(slices: int) -> CTVolume:
    """Noise of a soft kernel and of slices that overlap: smooth along all axes."""
    shape = (slices, 200, 200)
    bare = thorax_phantom(shape=shape, spacing_kji=(3.0, 1.5, 1.5), seed=3, noise_hu=0.0).volume
    noise = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal(bare.shape), (0.7, 1.0, 1.0))
    return bare.with_hu(np.clip(np.rint(bare.hu + 20 * noise / noise.std()), -1024, 3071).astype(np.int16))


@pytest.fixture(scope="session")
def marked(scan: CTVolume) -> CTVolume:
    return protect(scan, model=watermark_alone(OPEN_KEY))


@pytest.fixture(scope="session")
def place(scan: CTVolume) -> tuple[int, int, int]:
    """A voxel in the lung."""
    return lung_positions(scan, 1, 4, margin_mm=30.0)[0]


@pytest.fixture(scope="session")
def tall() -> CTVolume:
    """With more lung, for what is listed only where much of it lacks the like."""
    return noisy_thorax(40)
