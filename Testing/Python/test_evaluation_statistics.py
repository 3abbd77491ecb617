"""Means and intervals by patient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANTrainingLib.evaluation.statistics import Estimate, Observation, estimate

observations = st.lists(
    st.builds(Observation, st.integers(1, 4), st.one_of(st.none(), st.floats(-1e3, 1e3))), min_size=1, max_size=20
)


@settings(deadline=None, max_examples=50)
@given(found=observations, within=st.sampled_from(["mean", "median"]), random=st.randoms())
def test_interval_holds_the_value_within_the_data_whatever_the_order(found, within, random):
    result = estimate(found, within=within)
    shuffled = list(found)
    random.shuffle(shuffled)
    assert estimate(shuffled, within=within) == result
    values = [o.value for o in found if o.value is not None]
    if not values:
        assert result == Estimate(None)
        return
    margin = 1e-9 * max(map(abs, values))
    assert min(values) - margin <= result.value <= max(values) + margin
    assert result.values == len(values)
    if result.patients < 2:
        assert result.low is result.high is None
    else:
        assert min(values) - margin <= result.low <= result.value + margin
        assert result.value - margin <= result.high <= max(values) + margin


def test_each_patient_counts_once():
    """A patient with many targets does not outvote one with a single target."""
    many = [Observation(1, 10.0)] * 99
    assert estimate([*many, Observation(2, 20.0)]).value == 15


def test_median_within_a_patient_is_not_moved_by_one_wild_value():
    found = [Observation(1, value) for value in (1.0, 2.0, 1e6)]
    assert estimate(found, within="median").value == 2
    assert estimate(found).value > 1e5


def test_seeded():
    found = [Observation(n, float(n**2)) for n in range(9)]
    assert estimate(found, seed=1) == estimate(found, seed=1)
    assert estimate(found, seed=1) != estimate(found, seed=2)


def test_agrees_with_the_normal_approximation_for_many_patients():
    values = np.random.default_rng(0).normal(5, 2, 300)
    result = estimate([Observation(n, float(value)) for n, value in enumerate(values)])
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.05)


def test_resampling_targets_instead_of_patients_would_be_narrower():
    """Two patients that differ, with a hundred targets each: the interval spans both."""
    found = [Observation(n % 2, float(n % 2)) for n in range(200)]
    result = estimate(found)
    assert (result.low, result.high) == (0, 1)
