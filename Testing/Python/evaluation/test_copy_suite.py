"""What copies go through: each says truly where a voxel went, and leaves no record."""

from __future__ import annotations

import numpy as np
import pytest
from copy_suite import COPIES
from MITSGANLib.errors import DependencyError
from MITSGANLib.scan.volume import PROTECTION, CTVolume, ProcessingStep
from scipy import ndimage

BALL = (11, 30, 24)


@pytest.fixture(scope="module")
def scan() -> CTVolume:
    """Lung with noise and one ball."""
    hu = -850 + np.random.default_rng(0).normal(0, 20, (24, 64, 72))
    k, j, i = np.indices(hu.shape)
    distance = np.sqrt(((k - BALL[0]) * 2) ** 2 + (j - BALL[1]) ** 2 + (i - BALL[2]) ** 2)
    hu += 900 * np.clip(6 - distance, 0, 1)
    volume = CTVolume(np.rint(hu).astype(np.int16), (0.8, 0.8, 1.6), (-20.5, 30.25, 7.0))
    return volume.with_hu(volume.hu, ProcessingStep(PROTECTION, "by a test"))


@pytest.mark.parametrize("name", COPIES)
def test_a_ball_goes_where_the_copy_says(scan, name):
    try:
        copy = COPIES[name](scan)
    except DependencyError:
        pytest.skip("the codec is not installed")
    middle = ndimage.center_of_mass(np.maximum(copy.volume.hu.astype(float) + 600, 0) * (copy.volume.hu > -500))
    assert np.abs(np.subtract(middle, copy.place(BALL))).max() < 1.0
    assert np.abs(np.subtract(copy.origin(copy.place(BALL)), BALL)).max() <= 1
    assert not copy.volume.provenance.steps


@pytest.mark.parametrize("name", ["cropped", "axes permuted", "resampled to 1 mm", "mean of two slices", "NIfTI"])
def test_headers_that_tell_tell_the_truth(scan, name):
    copy = COPIES[name](scan)
    at = copy.to_copy[:3, :3] @ BALL + copy.to_copy[:3, 3]
    assert copy.volume.voxel_to_lps(at) == pytest.approx(scan.voxel_to_lps(BALL), abs=1e-3)
