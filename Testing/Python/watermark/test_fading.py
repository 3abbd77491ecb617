"""What lossy compression or smoothing leaves of the watermark is found, and what was painted before still shows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.budget.budget import WATERMARK_BUDGET
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.checking import check_watermark
from MITSGANLib.watermark.fading import fading_of, with_lost_padding
from MITSGANLib.watermark.pattern import OPEN_KEY
from MITSGANLib.watermark.sums import FOUND_SD, Reading, Sums
from scipy import ndimage

PADDING = -3024


@pytest.fixture(scope="module")
def scan() -> CTVolume:
    """A thorax whose lungs the field of view cuts, with a scanner's noise and padding around the circle."""
    volume = thorax_phantom(shape=(12, 200, 260), spacing_kji=(4.0, 1.2, 1.2), seed=5, noise_hu=0).volume
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 60, volume.shape), (0, 0.7, 0.7))
    hu = np.rint(np.clip(volume.hu + noise, -1023, 3000)).astype(np.int16)
    j, i = np.mgrid[:200, :260]
    hu[:, np.hypot(j - 99.5, i - 129.5) > 92] = PADDING
    return volume.with_hu(hu)


@pytest.fixture(scope="module")
def marked(scan) -> CTVolume:
    return protect(scan, model=watermark_alone())


def reading(volume: CTVolume) -> Reading:
    return Reading.of(volume, OPEN_KEY, WATERMARK_BUDGET)


def smoothed(volume: CTVolume) -> CTVolume:
    return volume.with_hu(np.rint(ndimage.uniform_filter(volume.hu.astype(float), (0, 3, 3))).astype(np.int16))


@pytest.mark.slow
def test_a_median_hides_it_from_a_look_for_what_was_put_in_alone(marked):
    copy = marked.with_hu(ndimage.median_filter(marked.hu, (1, 3, 3)))
    check = check_watermark(copy)
    assert Sums.of(with_lost_padding(reading(copy))).sd < FOUND_SD
    assert check.is_found
    assert check.is_degraded


@pytest.mark.slow
def test_a_place_painted_before_smoothing_is_missed_beside_the_others(marked):
    # The lungs reach the border of the picture, so that they are told by their HU alone.
    level = ndimage.uniform_filter(marked.hu.astype(float), (3, 21, 21))
    inside = np.argwhere((level > -900) & (level < -750))
    place, *others = (
        tuple(map(int, kji)) for kji in inside[np.linspace(len(inside) // 2, len(inside) - 1, 12).astype(int)]
    )
    hu = marked.hu.copy()
    box = tuple(slice(at - n, at + n + 1) for at, n in zip(place, (3, 10, 10), strict=True))
    hu[box] = np.roll(marked.hu, (3, 5), (1, 2))[box]
    check = check_watermark(smoothed(marked.with_hu(hu)))
    far = [kji for kji in others if (np.abs(np.subtract(kji, place)) > (8, 30, 30)).any()]
    assert far
    assert check.at(place).missing_sd > max(check.at(kji).missing_sd for kji in far)


@pytest.mark.slow
def test_nothing_is_found_where_nothing_was_put(scan):
    assert fading_of(reading(scan)) is None
    assert not check_watermark(smoothed(scan)).is_found


@pytest.mark.slow
def test_padding_that_a_format_cut_off_is_told_by_the_signs(marked):
    clipped = marked.with_hu(np.maximum(marked.hu, np.int16(-1024)))
    assert with_lost_padding(reading(clipped)).volume.provenance.padding_hu == -1024
    assert with_lost_padding(reading(marked)).volume is marked
    kept, lost = check_watermark(marked), check_watermark(clipped)
    assert lost.sd > 0.95 * kept.sd


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_noise_alone_holds_no_signs(seed):
    noise = np.random.default_rng(seed).normal(-850, 25, (2, 64, 64))
    volume = CTVolume(np.rint(noise).astype(np.int16), (0.7, 0.7, 2.5))
    everywhere = dataclasses.replace(WATERMARK_BUDGET, noise_share=None)
    assert fading_of(Reading.of(volume, OPEN_KEY, everywhere)) is None
