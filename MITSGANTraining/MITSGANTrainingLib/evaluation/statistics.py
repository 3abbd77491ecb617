"""Figures over targets and patients, with confidence intervals by patient.

Targets of one patient share anatomy, scanner and noise, so patients are resampled, never targets or slices. Shares of
places and areas under curves are rougher figures: there the places of each patient drawn are resampled as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
PLACE_RESAMPLES = 2_000


@dataclass(frozen=True)
class Estimate:
    """A figure over patients.

    :param value: mean over patients of each patient's own figure; None without values.
    :param low, high: 95 % bootstrap interval over patients; None with fewer than two.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    patients: int = 0
    values: int = 0

    def times(self, factor: float) -> Estimate:
        """In another unit, such as percent."""
        scaled = {name: None if (v := getattr(self, name)) is None else factor * v for name in ("value", "low", "high")}
        return dataclasses.replace(self, **scaled)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)


def estimate(
    observed: Mapping[int, Sequence[float]], *, within: Literal["mean", "median"] = "mean", seed: int = 0
) -> Estimate:
    """Mean over patients of the mean or median over each one's values, with its percentile bootstrap interval.

    :param observed: values at targets, by patient (a number, not an identity).
    :param within: how a patient's own values become one: the median where single values run far off.
    :param seed: of the resampling; the same values in any order give the same interval.
    """
    # Sorted within and between patients: the order of the work must not show in the last digits.
    by_patient = [sorted(values) for _, values in sorted(observed.items()) if values]
    if not by_patient:
        return Estimate(None)
    combine = np.mean if within == "mean" else np.median
    own, count = np.array([combine(values) for values in by_patient]), sum(map(len, by_patient))
    if len(own) < 2:
        return Estimate(float(own[0]), patients=1, values=count)
    found = stats.bootstrap(
        (own,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Estimate(float(own.mean()), *map(float, found.confidence_interval), len(own), count)


@dataclass(frozen=True)
class PlaceFigure:
    """A figure over one patient's places, as it is when each place counts a number of times.

    :param of: weights (draws, places), which sum to the number of places, to figures (draws,).
    """

    places: int
    of: Callable[[np.ndarray], np.ndarray]


def share_of_places(values: Sequence[float | None]) -> PlaceFigure:
    """The mean of the values that there are, such as of zeros and ones."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    return PlaceFigure(len(known), lambda weights: weights @ known / weights.sum(axis=1))


def area_of_places(yes: Sequence[float], no: Sequence[float]) -> PlaceFigure:
    """Area under the ROC curve between two scores of each place, ties counting half."""
    scores, others = np.asarray(yes)[:, None], np.asarray(no)[None, :]
    above = (scores > others) + 0.5 * (scores == others)
    return PlaceFigure(len(yes), lambda weights: ((weights @ above) * weights).sum(axis=1) / weights.sum(axis=1) ** 2)


def estimate_by_place(own: Mapping[int, PlaceFigure], seed: int = 0) -> Estimate:
    """Mean over patients of each one's figure, with the interval of a two-stage bootstrap: patients, then their places.

    :param own: by patient; with one patient, places alone are resampled.
    :return: without an interval where there are fewer than two places.
    """
    figures = [own[patient] for patient in sorted(own) if own[patient].places]
    if not figures:
        return Estimate(None)
    value = float(np.mean([figure.of(np.ones((1, figure.places)))[0] for figure in figures]))
    places = sum(figure.places for figure in figures)
    if places < 2:
        return Estimate(value, patients=1, values=places)
    rng = np.random.default_rng(seed)
    patients = rng.integers(len(figures), size=(PLACE_RESAMPLES, len(figures)))
    drawn = np.empty(patients.shape)
    for number, figure in enumerate(figures):
        chosen, n = patients == number, figure.places
        drawn[chosen] = figure.of(rng.multinomial(n, np.full(n, 1 / n), size=int(chosen.sum())).astype(np.float64))
    return Estimate(value, *interval(drawn.mean(axis=1)), len(figures), places)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The percentile interval of a figure from its draws (n,)."""
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
