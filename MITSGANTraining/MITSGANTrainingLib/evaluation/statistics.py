"""Figures over targets and patients, with confidence intervals by patient.

Targets of one patient share anatomy, scanner and noise, so patients are resampled, never targets or slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Observation:
    """One value at one target of one patient (a number, not an identity); None where there is no value."""

    patient: int
    value: float | None


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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "patients": self.patients,
            "values": self.values,
        }


def estimate(
    observations: Sequence[Observation], *, within: Literal["mean", "median"] = "mean", seed: int = 0
) -> Estimate:
    """Mean over patients of the mean or median over each one's values, with its percentile bootstrap interval.

    :param within: how a patient's own values become one: the median where single values run far off.
    :param seed: of the resampling; the same observations in any order give the same interval.
    """
    by_patient: dict[int, list[float]] = {}
    for observation in observations:
        if observation.value is not None:
            by_patient.setdefault(observation.patient, []).append(observation.value)
    if not by_patient:
        return Estimate(None)
    combine = np.mean if within == "mean" else np.median
    # Sorted within and between patients: the order of the work must not show in the last digits.
    own = np.array([combine(sorted(by_patient[patient])) for patient in sorted(by_patient)])
    count = sum(len(values) for values in by_patient.values())
    if len(own) < 2:
        return Estimate(float(own[0]), patients=1, values=count)
    from scipy import stats

    found = stats.bootstrap(
        (own,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = (float(bound) for bound in found.confidence_interval)
    return Estimate(float(own.mean()), low, high, len(own), count)
