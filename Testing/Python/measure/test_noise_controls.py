"""The equal-RMSE controls, noise without a network, and the choice of targets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from MITSGANLib.budget.body import body_mask
from MITSGANLib.errors import InputError, TargetError
from MITSGANLib.measure.noise_controls import equal_rmse_noise
from MITSGANLib.scan.lungs import distance_to_border_mm, lung_mask, lung_positions, nodule_like_positions
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.targets import choose_targets
from MITSGANLib.scan.volume import PROTECTION, CTVolume
from MITSGANTrainingLib.evaluation import ct_noise
from MITSGANTrainingLib.evaluation.ct_noise import (
    NoiseTexture,
    draw_noise,
    equal_rmse_ct_noise,
    measure_texture,
    noise_baseline,
)


@pytest.fixture(scope="module")
def protected(phantom) -> CTVolume:
    """A protection stand-in: a checkered change of 9 HU within the lungs."""
    lung = lung_mask(phantom.volume)
    signs = np.indices(phantom.volume.shape).sum(axis=0) % 2 * 18 - 9
    return phantom.volume.with_hu((phantom.volume.hu + np.where(lung, signs, 0)).astype(np.int16))


class TestEqualNoise:
    def test_rmse_is_equal_in_every_slice(self, phantom, protected):
        noise = equal_rmse_noise(phantom.volume, protected, seed=1)
        wanted, got = (
            np.sqrt(np.mean((scan.hu.astype(float) - phantom.volume.hu) ** 2, axis=(1, 2)))
            for scan in (protected, noise)
        )
        assert wanted.max() > 2
        assert got == pytest.approx(wanted, rel=0.01)

    def test_noise_lies_where_the_change_lies(self, phantom, protected):
        noise = equal_rmse_noise(phantom.volume, protected)
        moved = noise.hu != phantom.volume.hu
        from scipy import ndimage

        reach = ndimage.binary_dilation(protected.hu != phantom.volume.hu, np.ones((1, 5, 5)))
        assert moved.any()
        assert not (moved & ~reach).any()

    def test_it_is_noise_not_the_change(self, phantom, protected):
        noise = equal_rmse_noise(phantom.volume, protected)
        a, b = (scan.hu.astype(float).ravel() - phantom.volume.hu.ravel() for scan in (protected, noise))
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
        assert abs(b[b != 0].mean()) < 0.2

    def test_seeded(self, phantom, protected):
        first, second = (equal_rmse_noise(phantom.volume, protected, seed=4) for _ in range(2))
        assert (first.hu == second.hu).all()
        assert (equal_rmse_noise(phantom.volume, protected, seed=5).hu != first.hu).any()

    def test_no_change_gives_no_noise(self, phantom):
        assert (equal_rmse_noise(phantom.volume, phantom.volume).hu == phantom.volume.hu).all()

    def test_other_geometry_is_refused(self, phantom):
        other = CTVolume(phantom.volume.hu, (1, 1, 1))
        with pytest.raises(InputError, match="geometry"):
            equal_rmse_noise(phantom.volume, other)


@pytest.fixture(scope="module")
def texture(phantom) -> NoiseTexture:
    return measure_texture(phantom.volume)


def rmse_by_slice(clean: CTVolume, other: CTVolume, where: np.ndarray) -> np.ndarray:
    square = np.where(where, (other.hu.astype(float) - clean.hu) ** 2, 0)
    return np.sqrt(square.sum(axis=(1, 2)) / np.maximum(where.sum(axis=(1, 2)), 1))


def neighbor_correlation(change: np.ndarray) -> float:
    """Between voxels beside each other in a row, where both changed."""
    left, right = change[..., :-1], change[..., 1:]
    both = (left != 0) & (right != 0)
    return float(np.corrcoef(left[both], right[both])[0, 1])


class TestTexture:
    def test_level_of_the_phantoms_noise(self, texture):
        assert texture.level_hu.mean() == pytest.approx(12, rel=0.05)

    def test_drawn_noise_measures_as_the_texture_it_was_drawn_from(self):
        frequency = np.linspace(0, 0.5, 40)
        power = frequency * np.exp(-((frequency / 0.15) ** 2))
        level = np.full((30, 8, 8), 15, np.float32)
        level[:, :, :4] = 12
        wanted = NoiseTexture(frequency, power, (0.5, 0.1, 0.0), level, 16)
        flat = CTVolume(np.full((30, 128, 128), 40, np.int16), (1.0, 1.0, 2.0))
        drawn = np.rint(40 + np.stack(list(draw_noise(wanted, flat, seed=5)))).astype(np.int16)
        found = measure_texture(flat.with_hu(drawn))
        assert found.slice_correlation == pytest.approx((0.5, 0.1, 0.0), abs=0.05)
        assert drawn[:, :, :56].std() == pytest.approx(12, rel=0.05)
        assert drawn[:, :, 72:].std() == pytest.approx(15, rel=0.05)
        at = found.frequency_per_mm[2:]
        assert np.corrcoef(np.interp(at, frequency, power), found.power[2:])[0, 1] > 0.98

    def test_lung_alone_has_no_soft_tissue_to_measure_in(self):
        with pytest.raises(InputError, match="soft tissue"):
            measure_texture(CTVolume(np.full((10, 64, 64), -850, np.int16)))


@pytest.fixture(scope="module")
def noise(phantom, protected, texture) -> CTVolume:
    return equal_rmse_ct_noise(phantom.volume, protected, seed=1, texture=texture)


class TestCtLikeNoise:
    def test_rmse_is_equal_in_every_slice_in_lung_and_elsewhere(self, phantom, protected, noise):
        lung = phantom.volume.hu < -500
        for tissue in (lung, ~lung, np.ones_like(lung)):
            wanted, got = (rmse_by_slice(phantom.volume, scan, tissue) for scan in (protected, noise))
            assert got == pytest.approx(wanted, rel=0.01)

    def test_noise_lies_where_the_change_lies(self, phantom, protected, noise):
        from scipy import ndimage

        moved = noise.hu != phantom.volume.hu
        reach = ndimage.binary_dilation(protected.hu != phantom.volume.hu, np.ones((1, 5, 5)))
        assert moved.any()
        assert not (moved & ~reach).any()

    @pytest.mark.slow
    def test_it_looks_like_the_scans_noise_and_the_other_control_does_not(self, phantom, protected, noise):
        white = equal_rmse_noise(phantom.volume, protected, seed=1)
        colored, plain = (neighbor_correlation(scan.hu.astype(float) - phantom.volume.hu) for scan in (noise, white))
        silent = thorax_phantom(phantom.volume.shape, phantom.volume.spacing_kji, seed=3, noise_hu=0).volume
        own = neighbor_correlation(phantom.volume.hu.astype(float) - silent.hu)
        assert own > 0.2
        assert colored == pytest.approx(own, abs=0.1)
        assert abs(plain) < 0.05

    def test_seeded(self, phantom, protected, texture, noise):
        again = equal_rmse_ct_noise(phantom.volume, protected, 1, texture)
        assert (again.hu == noise.hu).all()
        assert (equal_rmse_ct_noise(phantom.volume, protected, 2, texture).hu != noise.hu).any()

    def test_no_change_gives_no_noise(self, phantom, texture):
        assert (equal_rmse_ct_noise(phantom.volume, phantom.volume, 0, texture).hu == phantom.volume.hu).all()

    def test_other_geometry_is_refused(self, phantom, texture):
        other = CTVolume(phantom.volume.hu, (1, 1, 1))
        with pytest.raises(InputError, match="geometry"):
            equal_rmse_ct_noise(phantom.volume, other, 0, texture)

    @settings(max_examples=25, deadline=None)
    @given(
        hu=arrays(np.int16, (2, 12, 12), elements=st.sampled_from([-2000, -1024, -1023, -850, 40, 3070, 3071])),
        change=arrays(np.int16, (2, 12, 12), elements=st.integers(-40, 40)),
    )
    def test_saturated_voxels_and_padding_stay_and_none_becomes_one(self, texture, hu, change):
        clean = CTVolume(hu, (2.8, 2.8, 2.5))
        thin = dataclasses.replace(texture, level_hu=texture.level_hu[:2])
        noise = equal_rmse_ct_noise(clean, clean.with_hu(hu + change), 0, thin).hu
        signal = (hu > -1024) & (hu < 3071)
        assert (noise[~signal] == hu[~signal]).all()
        assert noise[signal].min(initial=0) >= -1023
        assert noise[signal].max(initial=0) <= 3070


class TestBaseline:
    @pytest.mark.parametrize("like_the_scan", [False, True])
    def test_has_its_size_in_the_patient_and_nothing_elsewhere(self, phantom, texture, like_the_scan):
        noisy = noise_baseline(phantom.volume, 6.5, 3, texture if like_the_scan else None)
        body = body_mask(phantom.volume.hu, None, phantom.volume.spacing_kji)
        tissue = body & (phantom.volume.hu > -950)
        assert rmse_by_slice(phantom.volume, noisy, tissue) == pytest.approx(6.5, rel=0.02)
        assert (noisy.hu == phantom.volume.hu)[~body].all()
        assert noisy.provenance.steps[-1].kind == PROTECTION

    @pytest.mark.parametrize("size", [0, -3, float("nan"), float("inf"), 5000])
    def test_unusable_size_is_explained(self, phantom, size):
        with pytest.raises(InputError, match="0 to 4095"):
            noise_baseline(phantom.volume, size)


class TestTargets:
    def test_lung_mask_is_lung_and_not_the_air_around(self, phantom):
        lung = lung_mask(phantom.volume)
        liters = lung.sum() * np.prod(phantom.volume.spacing) / 1e6
        assert 0.8 < liters < 8
        assert phantom.volume.hu[lung].mean() == pytest.approx(-850, abs=60)
        assert not lung[:, :4].any()

    def test_positions_are_seeded_in_the_lung_and_away_from_the_border(self, phantom):
        first, second = (lung_positions(phantom.volume, 20, seed=2) for _ in range(2))
        assert first == second
        assert first != lung_positions(phantom.volume, 20, seed=3)
        lung = lung_mask(phantom.volume)
        assert all(lung[kji] for kji in first)
        assert min(distance_to_border_mm(phantom.volume, kji) for kji in first) >= 16

    def test_the_phantoms_nodule_is_found(self, phantom):
        best = nodule_like_positions(phantom.volume, 5, diameter_mm=phantom.nodule_diameter_mm)
        offsets = (np.array(best) - phantom.nodule_kji) * phantom.volume.spacing_kji
        assert np.linalg.norm(offsets, axis=1).min() < 6

    def test_chosen_targets_cover_both_actions(self, phantom):
        targets = choose_targets(phantom.volume, per_action=2, seed=0)
        assert [t.action for t in targets] == ["inject", "inject", "remove", "remove"]
        assert len({t.kji for t in targets}) == 4

    def test_no_lung_is_explained(self):
        muscle = CTVolume(np.full((40, 40, 40), 50, np.int16))
        for search in (lambda: lung_positions(muscle, 1, 0), lambda: nodule_like_positions(muscle, 1)):
            with pytest.raises(TargetError, match="No lung"):
                search()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(50, 3000), wanted=st.floats(1e4, 1e9))
def test_any_power_is_met(seed, count, wanted):
    """A large one once lay between what float32 and float64 made of the same scale, and no root was found."""
    draw = (18 * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)
    limit = count * 400.0**2  # beyond, values reach the ends of the range of HU
    wanted = min(wanted, limit)
    noisy = ct_noise.with_power(np.full(count, 1000, np.int16), draw, wanted)
    power = np.sum((noisy.astype(float) - 1000) ** 2)
    assert power == pytest.approx(wanted, rel=0.01, abs=count)
