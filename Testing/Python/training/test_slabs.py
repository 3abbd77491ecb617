"""Slabs around attacked places: they hold the whole cube, lie in the scan, and give what the whole scan gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.budget.budget import Budget, allowed_in_slices
from MITSGANLib.errors import InputError
from MITSGANLib.scan.cubes import cube_shape, cube_start, cut, rescale
from MITSGANLib.scan.lungs import lung_positions, nodule_like_positions
from MITSGANTrainingLib.data.dataset import PreparedScan
from MITSGANTrainingLib.training.slabs import (
    SlabScan,
    attacked_cubes,
    draw_slabs,
    mean_square,
    moved_hu,
)


@pytest.fixture(scope="module")
def prepared(phantom) -> PreparedScan:
    volume = phantom.volume
    lung, structures = lung_positions(volume, 60, seed=0), nodule_like_positions(volume, 4)
    return PreparedScan("p", volume.hu, volume.spacing_kji, None, np.array(lung), np.array(structures), id="scan")


class TestSlabs:
    @pytest.mark.slow
    @settings(max_examples=15, deadline=None)
    @given(
        slices=st.integers(1, 60),
        crop=st.one_of(st.just(0), st.integers(11, 140)),
        share=st.floats(0, 1),
        seed=st.integers(0, 2**20),
    )
    def test_hold_the_whole_cube_and_lie_in_the_scan(self, prepared, slices, crop, share, seed):
        scan = SlabScan(prepared, slices, crop, share)
        cube = np.array(cube_shape(prepared.spacing_kji))
        for slab in scan.draw(0, 3, np.random.default_rng(seed)):
            start = np.array(cube_start(slab.target, cube))
            assert (start >= 0).all()
            assert (start + cube <= slab.shape).all()
            assert (np.array(slab.start) >= 0).all()
            assert (np.add(slab.start, slab.shape) <= prepared.hu.shape).all()
            assert slab.shape[0] == min(max(slices, cube[0]), 48)
            assert slab.shape[1:] == ((min(crop, 128),) * 2 if crop else (128, 128))
            assert (scan.hu(slab) == prepared.hu[slab.box]).all()

    def test_places_are_lung_or_structures_as_asked(self, prepared):
        def places(share: float) -> np.ndarray:
            slabs = SlabScan(prepared, 1, 32, share).draw(0, 40, np.random.default_rng(0))
            return np.array([np.add(slab.start, slab.target) for slab in slabs])

        lung = {tuple(kji) for kji in prepared.lung_positions.tolist()}
        assert {tuple(kji) for kji in places(0.0).tolist()} <= lung
        distances = np.abs((places(1.0)[:, None] - prepared.nodule_like_positions) * prepared.spacing_kji)
        assert distances.max(axis=2).min(axis=1).max() <= 5 + max(prepared.spacing_kji) / 2

    def test_are_seeded_of_one_scan_and_of_each_scan_now_and_then(self, prepared):
        short = dataclasses.replace(prepared, hu=prepared.hu[:40], lung_positions=prepared.lung_positions, id="short")
        scans = [SlabScan(one, 16, 32, 0.5) for one in (prepared, short)]
        draws = [draw_slabs(scans, 3, np.random.default_rng(seed)) for seed in range(20)]
        assert draws == [draw_slabs(scans, 3, np.random.default_rng(seed)) for seed in range(20)]
        assert all(len({slab.scan for slab in slabs}) == 1 for slabs in draws)
        assert {slabs[0].scan for slabs in draws} == {0, 1}

    @pytest.mark.slow
    @pytest.mark.parametrize(("noise_share", "largest"), [(None, range(18, 19)), (0.4, range(4, 18))])
    def test_allowed_change_is_that_of_the_whole_scan(self, prepared, noise_share, largest):
        scan = SlabScan(prepared, 4, 48, 0.0)
        (slab,) = scan.draw(0, 1, np.random.default_rng(1))
        budget = Budget(strength_hu=18.0, noise_share=noise_share)
        whole = allowed_in_slices(prepared.hu, budget, prepared.spacing_kji)
        assert (scan.allowed(slab, budget) == whole[slab.box]).all()
        assert whole[slab.box].max() in largest

    @pytest.mark.parametrize(
        ("changes", "crop", "words"),
        [
            ({}, 9, "raise 'crop'"),
            ({"lung_positions": np.zeros((0, 3), int)}, 0, "no lung position"),
            ({"lung_positions": np.array([[2, 60, 60]])}, 0, "no lung position"),
        ],
    )
    def test_what_does_not_fit_is_refused_with_the_reason(self, prepared, changes, crop, words):
        with pytest.raises(InputError, match=words):
            SlabScan(dataclasses.replace(prepared, **changes), 1, crop, 0.0)


class TestMeasures:
    def test_attacked_cubes_are_those_of_the_attack(self, prepared):
        scan = SlabScan(prepared, 20, 40, 0.5)
        slabs = scan.draw(0, 2, np.random.default_rng(2))
        cubes = attacked_cubes(
            torch.from_numpy(np.stack([scan.hu(slab) for slab in slabs])), slabs, prepared.spacing_kji
        )
        shape, hu = cube_shape(prepared.spacing_kji), torch.from_numpy(prepared.hu.copy())
        for slab, cube in zip(slabs, cubes, strict=True):
            kji = np.add(slab.start, slab.target)
            expected = rescale(cut(hu, cube_start(kji, shape), shape), (32,) * 3)
            assert torch.allclose(cube, expected)

    def test_nothing_moves_where_nothing_changed(self, prepared, untrained_attackers):
        scan = SlabScan(prepared, 1, 32, 0.0)
        slabs = scan.draw(0, 2, np.random.default_rng(2))
        cubes = attacked_cubes(
            torch.from_numpy(np.stack([scan.hu(slab) for slab in slabs])), slabs, prepared.spacing_kji
        )
        attacker = untrained_attackers["remove"]
        assert moved_hu(cubes, cubes, attacker) == 0
        assert moved_hu(cubes, cubes + 40, attacker) > 0

    def test_mean_square_is_in_the_networks_units(self):
        assert mean_square(torch.tensor([100.0, -100.0]), (-1000.0, 1000.0)) == pytest.approx(0.01)
