"""Targets: what cannot be attacked, and what an attack is too small for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import TargetError
from MITSGANLib.scan.targets import check_target, outgrows_attack
from MITSGANLib.scan.volume import CTVolume

LUNG = -850


def ball(diameter_mm: float, spacing_kji: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> CTVolume:
    """A ball of soft tissue in the middle of 80 mm of lung."""
    shape = tuple(round(80 / mm) for mm in spacing_kji)
    away = np.linalg.norm(
        np.stack(np.meshgrid(*((np.arange(n) - n // 2) * mm for n, mm in zip(shape, spacing_kji, strict=True)))), axis=0
    )
    hu = np.where(away.transpose(1, 0, 2) <= diameter_mm / 2, 40, LUNG).astype(np.int16)
    return CTVolume(hu, spacing_kji[::-1])


def middle(volume: CTVolume) -> tuple[int, int, int]:
    return tuple(size // 2 for size in volume.shape)


@pytest.mark.parametrize(
    ("diameter_mm", "is_too_large"), [(6, False), (14, False), (20, False), (30, True), (40, True)]
)
@pytest.mark.parametrize("spacing_kji", [(2.0, 1.0, 1.0), (2.5, 0.7, 0.7), (1.0, 1.4, 1.4)])
def test_a_ball_of_30_mm_is_too_large_and_one_of_20_is_not(diameter_mm, is_too_large, spacing_kji):
    volume = ball(diameter_mm, spacing_kji)
    assert outgrows_attack(volume, middle(volume)) == is_too_large


def test_a_mass_that_is_wider_than_high_is_too_large():
    volume = ball(33, (3.3, 1.0, 1.0))
    flat = CTVolume(volume.hu, (1.0, 1.0, 2.0))
    assert outgrows_attack(flat, middle(flat)), "33 mm wide and 20 mm high, as that of LIDC-IDRI-0001"


def test_what_lies_beside_the_target_does_not_count():
    volume = ball(10)
    hu = volume.hu.copy()
    hu[:, :30] = 40
    assert not outgrows_attack(volume.with_hu(hu), middle(volume))
    assert not outgrows_attack(ball(0), middle(ball(0))), "lung"


@settings(deadline=None, max_examples=30)
@given(st.tuples(st.integers(-3, 42), st.integers(-3, 82), st.integers(-3, 82)))
def test_only_targets_with_16_mm_on_each_side_can_be_attacked(kji):
    volume = ball(10)
    sides = [
        min(index + 0.5, size - index - 0.5) * mm
        for index, size, mm in zip(kji, volume.shape, volume.spacing_kji, strict=True)
    ]
    if min(sides) >= 16:
        check_target(volume, kji)
    else:
        with pytest.raises(TargetError, match=r"border|outside"):
            check_target(volume, kji)


def test_air_cannot_be_attacked():
    volume = ball(0)
    with pytest.raises(TargetError, match="in air"):
        check_target(volume.with_hu(np.full_like(volume.hu, -1000)), middle(volume))
