"""The equal-RMSE control and the choice of targets."""

from __future__ import annotations

import numpy as np
import pytest
from MITSGANLib.controls import equal_rmse_noise
from MITSGANLib.demonstration import choose_targets
from MITSGANLib.errors import InputError, TargetError
from MITSGANLib.lungs import distance_to_border_mm, lung_mask, lung_positions, nodule_like_positions
from MITSGANLib.volume import CTVolume


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
