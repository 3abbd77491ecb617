"""Signed gradients: within the budget, only where the attacker looks, far stronger than noise of the same size."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.attack.attacker import load_attacker, simulate_attack, tampered_box
from MITSGANLib.attack.chain import tamper
from MITSGANLib.budget.body import body_mask
from MITSGANLib.budget.budget import Budget, allowed_change
from MITSGANLib.errors import InputError, TargetError
from MITSGANLib.scan.regions import cube_around
from MITSGANLib.scan.volume import PROTECTION, CTVolume
from MITSGANTrainingLib.evaluation.gradient_search import PatchedScan, protect_by_gradient

BUDGET = Budget(strength_hu=20.0)


@pytest.fixture(scope="module")
def attackers(untrained_attackers) -> list:
    return list(untrained_attackers.values())


@pytest.fixture(scope="module")
def protected(phantom, attackers) -> CTVolume:
    return protect_by_gradient(phantom.volume, [phantom.nodule_kji], attackers, budget=BUDGET, steps=4)


@pytest.fixture(scope="module")
def allowed(phantom) -> np.ndarray:
    hu = phantom.volume.hu
    return allowed_change(hu, BUDGET, body_mask(hu, None, phantom.volume.spacing_kji))


def moved(clean: CTVolume, other: CTVolume, kji, attacker) -> float:
    """Root mean square of what the attack's outcome moved by in the middle of the cube, in HU."""
    middle = cube_around(clean, kji, size_mm=20).index
    outcomes = (simulate_attack(scan, kji, attacker.action, attacker=attacker).hu[middle] for scan in (clean, other))
    return float(np.sqrt(np.mean(np.square(np.subtract(*outcomes, dtype=np.float64)))))


class TestBound:
    def test_change_is_within_what_is_allowed_in_whole_hu(self, phantom, protected, allowed):
        change = np.abs(protected.hu.astype(int) - phantom.volume.hu)
        assert protected.hu.dtype == np.int16
        assert (change <= allowed).all()
        assert change.max() == 20, "the budget is spent"

    def test_only_what_the_network_sees_of_the_cube_changes(self, phantom, protected):
        volume, changed = phantom.volume, protected.hu != phantom.volume.hu
        cube = np.zeros_like(changed)
        cube[tampered_box(volume, phantom.nodule_kji)] = True
        assert not changed[~cube].any()
        core = cube_around(volume, phantom.nodule_kji, size_mm=14).index
        assert not changed[core].any()

    def test_no_strength_no_change(self, phantom, attackers):
        result = protect_by_gradient(
            phantom.volume, [phantom.nodule_kji], attackers, budget=Budget(strength_hu=0.0), steps=1
        )
        assert (result.hu == phantom.volume.hu).all()


class TestEffect:
    @pytest.mark.slow
    @pytest.mark.parametrize("action", ["inject", "remove"])
    def test_moves_an_attack_far_more_than_random_signs(self, phantom, action):
        """With the shipped attackers: what untrained ones forge hardly depends on what they see."""
        volume, kji, attacker = phantom.volume, phantom.nodule_kji, load_attacker("default", action)
        protected = protect_by_gradient(volume, [kji], [attacker], budget=BUDGET, steps=4)
        change = protected.hu.astype(int) - volume.hu
        signs = np.random.default_rng(1).choice((-1, 1), change.shape)
        by_noise = moved(volume, volume.with_hu((volume.hu + signs * change).astype(np.int16)), kji, attacker)
        assert moved(volume, protected, kji, attacker) > 2 * by_noise > 0

    def test_one_step_is_the_sign_of_the_gradient(self, phantom, attackers, allowed):
        """From half of either sign, one step of one and a half reaches the whole allowed change everywhere."""
        kji = phantom.nodule_kji
        result = protect_by_gradient(phantom.volume, [kji], attackers[:1], budget=BUDGET, steps=1)
        change = np.abs(result.hu.astype(int) - phantom.volume.hu)
        assert change.any()
        assert np.mean(change[change > 0] == allowed[change > 0]) > 0.99

    @pytest.mark.slow
    def test_overlapping_targets_are_all_protected(self, phantom, attackers, allowed):
        k, j, i = phantom.nodule_kji
        targets = [(k, j, i), (k, j, i + 5)]
        result = protect_by_gradient(phantom.volume, targets, attackers[:1], budget=BUDGET, steps=4)
        assert (np.abs(result.hu.astype(int) - phantom.volume.hu) <= allowed).all()
        alone = [protect_by_gradient(phantom.volume, [t], attackers[:1], budget=BUDGET, steps=4) for t in targets]
        for target, single in zip(targets, alone, strict=True):
            together = moved(phantom.volume, result, target, attackers[0])
            assert together > 0.5 * moved(phantom.volume, single, target, attackers[0])

    @pytest.mark.slow
    def test_targets_apart_do_not_touch_each_other(self, phantom, attackers):
        """Also where the box around two overlapping cubes reaches around a third one's."""
        k, j, i = phantom.nodule_kji
        first, second, third = (k, j, i), (k, j + 9, i - 9), (k, j + 12, i + 3)
        pair = protect_by_gradient(phantom.volume, [first, second], attackers[:1], budget=BUDGET, steps=1)
        alone = protect_by_gradient(phantom.volume, [third], attackers[:1], budget=BUDGET, steps=1)
        boxes = [tampered_box(phantom.volume, target) for target in (first, second, third)]
        cubes = [np.zeros(phantom.volume.shape, bool) for _ in boxes]
        for cube, box in zip(cubes, boxes, strict=True):
            cube[box] = True
        assert (cubes[0] & cubes[1]).any()
        assert not (cubes[2] & (cubes[0] | cubes[1])).any()
        both = protect_by_gradient(phantom.volume, [first, second, third], attackers[:1], budget=BUDGET, steps=1)
        assert (both.hu[~cubes[2]] == pair.hu[~cubes[2]]).all()
        assert ((both.hu != phantom.volume.hu)[cubes[2]] == (alone.hu != phantom.volume.hu)[cubes[2]]).mean() > 0.9


class TestRecord:
    def test_geometry_stays_and_the_step_says_what_it_knew(self, phantom, protected):
        assert protected.same_geometry(phantom.volume)
        step = protected.provenance.steps[-1]
        assert step.kind == PROTECTION
        assert "upper bound" in step.description
        assert step.parameters["targets_kji"] == [list(phantom.nodule_kji)]
        assert step.parameters["strength_hu"] == 20.0
        assert step.parameters["attackers"] == ["untrained inject", "untrained remove"]
        assert not protected.provenance.is_simulated_attack

    @pytest.mark.slow
    def test_same_seed_same_voxels_other_seed_other_voxels(self, phantom, attackers):
        def run(seed: int) -> np.ndarray:
            return protect_by_gradient(
                phantom.volume, [phantom.nodule_kji], attackers[:1], budget=BUDGET, steps=2, seed=seed
            ).hu

        assert (run(0) == run(0)).all()
        assert (run(0) != run(1)).any()


class TestBadInput:
    def test_says_what_is_missing(self, phantom, attackers):
        place = [phantom.nodule_kji]
        with pytest.raises(InputError, match="target"):
            protect_by_gradient(phantom.volume, [], attackers, budget=BUDGET, steps=1)
        with pytest.raises(InputError, match="attacker"):
            protect_by_gradient(phantom.volume, place, [], budget=BUDGET, steps=1)
        with pytest.raises(InputError, match="step"):
            protect_by_gradient(phantom.volume, place, attackers, budget=BUDGET, steps=0)
        with pytest.raises(TargetError, match="outside"):
            protect_by_gradient(phantom.volume, [(900, 0, 0)], attackers, budget=BUDGET, steps=1)


class TestPatchedScan:
    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_reads_as_the_scan_with_the_box_pasted(self, data):
        shape = (5, 6, 7)
        scan = torch.arange(210, dtype=torch.int16).reshape(shape)

        def box() -> tuple[slice, ...]:
            bounds = (sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2))) for n in shape)
            return tuple(slice(*pair) for pair in bounds)

        place, wanted = box(), box()
        values = -torch.ones([s.stop - s.start for s in place], dtype=torch.float64)
        pasted = scan.double()
        pasted[place] = values
        assert torch.equal(PatchedScan(scan, place, values)[wanted], pasted[wanted])
        assert scan.min() == 0, "the scan itself stays"

    @pytest.mark.parametrize("action", ["inject", "remove"])
    def test_the_whole_attack_on_it_equals_that_on_a_copy(self, phantom, untrained_attackers, action):
        volume, kji = phantom.volume, phantom.nodule_kji
        box, scan = tampered_box(volume, kji), torch.from_numpy(volume.hu.copy())
        values = scan[box].double() + 15
        inpainter = untrained_attackers[action].inpainter
        pasted = scan.double()
        pasted[box] = values
        expected = tamper(pasted, kji, volume.spacing_kji, inpainter, action)
        found = tamper(PatchedScan(scan, box, values), kji, volume.spacing_kji, inpainter, action)
        assert found.start == expected.start
        assert torch.equal(found.values, expected.values)


def test_works_where_slices_are_thick(phantom, attackers):
    """At 8 mm the cube has four slices, and little of it is not its middle."""
    thick = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[::3].copy(), spacing=(2.8, 2.8, 8.0))
    k, j, i = phantom.nodule_kji
    result = protect_by_gradient(thick, [(k // 3, j, i)], attackers[:1], budget=BUDGET, steps=1)
    assert 0 < np.abs(result.hu.astype(int) - thick.hu).max() <= 20
