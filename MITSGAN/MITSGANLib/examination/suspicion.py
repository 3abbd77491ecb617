"""Maps of evidence, each in units of what a scan's own untouched tissue scatters by.

Scanners, kernels and doses differ, so no limit in HU or standard deviations fits all. A score of 1 is listed. Limits
were set on five scans and reported on others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..watermark.checking import Check
from .noise import COARSE, FINE, NoiseMap

WATERMARK, NOISE, COARSE_NOISE, COLOR = "watermark", "noise missing", "coarse noise missing", "noise of another color"

ASKED = 0.65
"""A score from here on is an alarm at a place that somebody asks about; a whole scan has a million places."""

# For windows of 9, 14 and 20 mm: how many of the scan's own scatters, and how many standard deviations at least. No
# window of the five scans' untouched lungs reaches them.
_WATERMARK_LIMITS = ((6.8, 4.8), (4.2, 3.5), (3.4, 3.0))
_WATERMARK_SD = 4.0  # below this a window says nothing, and does not belong to the scatter
# For windows of 9 and 14 mm, likewise, with the least logarithm of noise.
_FINE_LIMITS = ((8.8, 0.5), (8.2, 0.45))
_COARSE_LIMITS = ((6.6, 1.5), (6.2, 1.0))
_COLOR_LIMITS = ((7.0, 1.0), (6.5, 0.8))
# Where a limit is beyond these logarithms, paint with a quarter of the noise, or with white noise, may not show.
_MOST_LIMIT = {NOISE: 1.4, COARSE_NOISE: 1.6, COLOR: 1.8}
_FEW_BLOCKS = 500


@dataclass(frozen=True, eq=False)
class Suspicion:
    """One kind of evidence in every block.

    :param score: float32 (slices, block rows, block columns); 1 is listed.
    :param told: bool of the same shape, where a forgery of its kind would be.
    """

    kind: str
    score: np.ndarray
    told: np.ndarray


def of_noise(noise: NoiseMap, lungs: np.ndarray) -> list[Suspicion]:
    """Noise that is missing in either band, or of another color.

    :param lungs: bool (slices, block rows, block columns).
    """
    color = noise.differences[:, FINE] - noise.differences[:, COARSE]
    found = []
    for kind, limits, values in (
        (NOISE, _FINE_LIMITS, -noise.differences[:, FINE]),
        (COARSE_NOISE, _COARSE_LIMITS, -noise.differences[:, COARSE]),
        (COLOR, _COLOR_LIMITS, color),
    ):
        score, told = np.zeros(lungs.shape, np.float32), np.zeros(lungs.shape, bool)
        for window, (scatters, least) in enumerate(limits):
            here = lungs & noise.known[window]
            if np.count_nonzero(here) < _FEW_BLOCKS:
                continue
            # Vessels and edges fill the other side, so this one has to tell: what fills a quarter hides itself.
            middle, scatter = _scatter(values[window][here], 75)
            limit = max(scatters * scatter, least)
            np.maximum(score, np.where(here, (values[window] - middle) / limit, 0), out=score)
            told |= here & (limit <= _MOST_LIMIT[kind])
        found.append(Suspicion(kind, score, told))
    return found


def of_watermark(check: Check, lungs: np.ndarray) -> Suspicion:
    """A watermark that falls short of its surroundings.

    :param lungs: bool (slices, block rows, block columns).
    """
    score, told = np.zeros(lungs.shape, np.float32), np.zeros(lungs.shape, bool)
    if check.is_found:
        for (scatters, least), seen, expected in zip(_WATERMARK_LIMITS, check.seen, check.expected, strict=True):
            here = lungs & (expected >= _WATERMARK_SD)
            if np.count_nonzero(here) < _FEW_BLOCKS:
                continue
            short = expected - seen
            # Nothing adds to a watermark, so what is above the expected is chance alone.
            middle, scatter = _scatter(short[here], 5)
            limit = max(scatters * scatter, least)
            np.maximum(score, np.where(here, (short - max(middle, 0)) / limit, 0), out=score)
            told |= here & (expected >= limit)
    return Suspicion(WATERMARK, score, told)


def _scatter(values: np.ndarray, percentile: float) -> tuple[float, float]:
    """Median, and how far from it a percentile lies."""
    middle, end = np.percentile(values, (50, percentile))
    return float(middle), float(abs(end - middle))
