"""Means and intervals by patient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANTrainingLib.evaluation.statistics import (
    Estimate,
    area_of_places,
    estimate,
    estimate_by_place,
    share_of_places,
)
from MITSGANTrainingLib.training.judge import area_under_curve

scores = st.floats(0, 1).map(lambda value: round(value, 1))
observations = st.dictionaries(st.integers(1, 4), st.lists(st.floats(-1e3, 1e3), max_size=7), min_size=1)


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(found=observations, within=st.sampled_from(["mean", "median"]), random=st.randoms())
def test_interval_holds_the_value_within_the_data_whatever_the_order(found, within, random):
    result = estimate(found, within=within)
    patients = list(found)
    random.shuffle(patients)
    shuffled = {patient: random.sample(found[patient], len(found[patient])) for patient in patients}
    assert estimate(shuffled, within=within) == result
    values = [value for own in found.values() for value in own]
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
    assert estimate({1: [10.0] * 99, 2: [20.0]}).value == 15


def test_median_within_a_patient_is_not_moved_by_one_wild_value():
    found = {1: [1.0, 2.0, 1e6]}
    assert estimate(found, within="median").value == 2
    assert estimate(found).value > 1e5


def test_seeded():
    found = {n: [float(n**2)] for n in range(9)}
    assert estimate(found, seed=1) == estimate(found, seed=1)
    assert estimate(found, seed=1) != estimate(found, seed=2)


def test_agrees_with_the_normal_approximation_for_many_patients():
    values = np.random.default_rng(0).normal(5, 2, 300)
    result = estimate({n: [float(value)] for n, value in enumerate(values)})
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.05)


def test_resampling_targets_instead_of_patients_would_be_narrower():
    """Two patients that differ, with a hundred targets each: the interval spans both."""
    found = {n: [float(n)] * 100 for n in range(2)}
    result = estimate(found)
    assert (result.low, result.high) == (0, 1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(scores, scores), min_size=1, max_size=8), st.data())
def test_a_place_that_counts_twice_is_as_two_places(pairs, data):
    yes, no = (np.array(values) for values in zip(*pairs, strict=True))
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs))))
    times[0] += 1
    area, share = area_of_places(yes, no), share_of_places(yes)
    assert area.of(times[None].astype(float))[0] == pytest.approx(area_under_curve(yes.repeat(times), no.repeat(times)))
    assert share.of(times[None].astype(float))[0] == pytest.approx(yes.repeat(times).mean())


@settings(deadline=None, max_examples=20)
@given(
    st.dictionaries(st.integers(1, 3), st.lists(st.one_of(st.none(), scores), max_size=6), min_size=1),
    st.integers(0, 9),
)
def test_the_interval_over_places_holds_the_value_within_the_data(own, seed):
    found = estimate_by_place({patient: share_of_places(values) for patient, values in own.items()}, seed)
    known = [value for values in own.values() for value in values if value is not None]
    assert found.values == len(known)
    if not known:
        assert found == Estimate(None)
        return
    assert min(known) - 1e-9 <= found.value <= max(known) + 1e-9
    if len(known) > 1:
        assert min(known) - 1e-9 <= found.low <= found.high <= max(known) + 1e-9
    else:
        assert found.low is found.high is None


def test_patients_that_differ_widen_the_interval_over_places():
    rng = np.random.default_rng(0)
    places = [rng.random(50) < share for share in (0.2, 0.8)]
    together = estimate_by_place({1: share_of_places([*places[0], *places[1]])})
    apart = estimate_by_place({n: share_of_places(list(values)) for n, values in enumerate(places)})
    assert apart.value == pytest.approx(together.value)
    assert apart.high - apart.low > 2 * (together.high - together.low)
    normal = 2 * 1.96 * 0.5 / np.sqrt(100)
    assert together.high - together.low == pytest.approx(normal, rel=0.1)


def test_other_units_scale_value_and_interval():
    found = estimate_by_place({1: share_of_places([0.0, 1.0, 1.0, 1.0])}).times(100)
    assert found.value == 75
    assert found.low < 75 < found.high <= 100
    assert Estimate(None).times(100) == Estimate(None)
