"""The bench of prevention: a patient's own nodules under the change, as it would lie over them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from MITSGANLib.budget.budget import Budget, allowed_in_slices
from MITSGANLib.scan.lungs import lung_positions
from MITSGANTrainingLib.data.nodules import synthetic_nodules
from MITSGANTrainingLib.evaluation.planting import planted


@pytest.fixture(scope="module")
def benchmark(script) -> ModuleType:
    return script("prevention")


def test_each_nodule_is_taken_once_before_one_comes_again(benchmark):
    nodules = synthetic_nodules(4)
    places = [(n, n, n) for n in range(10)]
    plants = benchmark.nodules_at(places, nodules, seed=3)
    assert [plant.kji for plant in plants] == places
    assert sorted(plant.nodule for plant in plants[:4]) == sorted(plant.nodule for plant in plants[4:8]) == [0, 1, 2, 3]
    assert plants == benchmark.nodules_at(places, nodules, seed=3)


def test_the_change_lies_over_the_nodule_as_far_as_the_budget_allows_there(benchmark, phantom):
    """Less within it than in the lung around, where the same change was allowed in full."""
    volume, nodules, budget = phantom.volume, synthetic_nodules(2), Budget(strength_hu=40.0, soft_tissue=0.3)
    (plant,) = benchmark.nodules_at(lung_positions(volume, 1, seed=2, margin_mm=20.0), nodules, seed=2)
    before = planted(volume, [plant], nodules).hu
    reach = [round(16 / mm) for mm in volume.spacing_kji]  # no nodule is planted farther from its middle
    where = tuple(slice(k - n, k + n + 1) for k, n in zip(plant.kji, reach, strict=True))
    untouched = benchmark.covered(volume, volume, plant, nodules, budget)
    np.testing.assert_array_equal(untouched[where], before[where])
    shown = volume.with_hu(volume.hu + np.int16(40))
    found = benchmark.covered(volume, shown, plant, nodules, budget)
    moved = found[where] - before[where]
    allowed = allowed_in_slices(before, budget, volume.spacing_kji, volume.provenance.padding_hu)[where]
    np.testing.assert_array_equal(moved, allowed)
    middle = tuple(k - part.start for k, part in zip(plant.kji, where, strict=True))
    assert moved[middle] <= 12 < moved.max() == 40
