"""What a copy's processing left of each sign: lossy compression, smoothing and resampling blur it, all over the scan.

The signs are finer than anatomy and most noise, so that they are the first to go: 10:1 JPEG 2000 leaves a fifth of what
is finest of them, but all of what is coarse. Looking for them as they were put in then misses nearly all that is left.
So a small filter is learned from the copy, with which they stand out most; what falls short of that is forged.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..scan.volume import LOWEST_HU
from .sums import Reading

_REACH = 2
_MOST_SLICES = 10
# Smoothing takes more of the noise than of what the noise allowed.
_NOISE_LOST = 2.0
# Less than this share of a slice more in the body, or less than this more of signs, is chance.
_MORE_BODY, _MORE_SIGNS = 0.02, 1.05
# Of as many weights as there are, the best come to less by chance in one of 10**12 scans.
_FOUND = 75.0


@dataclass(frozen=True, eq=False)
class Fading:
    """A filter with which faded signs stand out most.

    :param weights: float32 (5, 5), the same in all directions.
    :param sd: how many standard deviations they stand out in the slices that it was learned from.
    :param gain: the share of the signs that is left there, as they were put in.
    """

    weights: np.ndarray
    sd: float
    gain: float


def faded(reading: Reading) -> tuple[Reading, float] | None:
    """The same with the filter that fits the copy, and with more noise where that explains the copy better.

    :return: and the share of the signs that is left as they were put in; None where nothing of the watermark is.
    """
    share = reading.budget.noise_share
    found = []
    for noise_share in (None,) if share is None else (share, _NOISE_LOST * share):
        noisier = dataclasses.replace(reading, budget=dataclasses.replace(reading.budget, noise_share=noise_share))
        if (fading := fading_of(noisier)) is not None:
            found.append((fading, noisier))
    if not found:
        return None
    fading, best = max(found, key=lambda pair: pair[0].sd)
    return dataclasses.replace(best, fading=fading.weights), found[0][0].gain


def with_lost_padding(reading: Reading) -> Reading:
    """The same with -1024 HU as padding where a file format made that of it: then lungs reach its border, or not.

    Formats of 12 bits hold nothing below -1024 HU, so that they tell padding and air no more.
    """
    volume = reading.volume
    corners = volume.hu[:, :: max(1, volume.shape[1] - 1), :: max(1, volume.shape[2] - 1)]
    if volume.provenance.padding_hu is not None or (corners != LOWEST_HU).any() or volume.hu.min() < LOWEST_HU:
        return reading
    provenance = dataclasses.replace(volume.provenance, padding_hu=LOWEST_HU)
    other = dataclasses.replace(reading, volume=dataclasses.replace(volume, provenance=provenance))
    some = _some_slices(volume.shape[0])
    body, other_body = (np.mean([np.mean(one.allowed_in(k) > 0) for k in some]) for one in (reading, other))
    if other_body < body + _MORE_BODY:
        return reading
    before, after = (fading_of(one) for one in (reading, other))
    return other if after and after.sd > _MORE_SIGNS * (before.sd if before else 0) else reading


def fading_of(reading: Reading) -> Fading | None:
    """Learn the filter from some slices of a copy; None where they hold nothing of the watermark.

    :param reading: without a filter.
    """
    # All weights that a filter without a direction may have: float32 (kinds, 5, 5) of 0 and 1.
    away = np.abs(np.arange(-_REACH, _REACH + 1))
    far, near = np.maximum.outer(away, away), np.minimum.outer(away, away)
    kinds = [(a, b) for a in range(_REACH + 1) for b in range(a + 1)]
    rings = np.stack([(far == a) & (near == b) for a, b in kinds]).astype(np.float32)
    found: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}
    for k in _some_slices(reading.volume.shape[0]):
        for place, marked in enumerate(reading.marked(k)):
            products = np.stack([marked.through(ring).product.ravel() for ring in rings]).astype(np.float64)
            full = float(np.square(marked.through(None).expected).sum())
            before = found.get(place, (0, 0, 0))
            of_slice = products.sum(axis=1), products @ products.T, full
            found[place] = tuple(one + other for one, other in zip(before, of_slice, strict=True))
    best = None
    for sums, variance, full in found.values():
        weights = np.linalg.lstsq(variance, sums, rcond=1e-9)[0]
        gained = float(weights @ sums)
        if gained >= _FOUND and (best is None or gained > best.sd**2):
            filtered = np.tensordot(weights, rings, 1).astype(np.float32)
            best = Fading(filtered, gained**0.5, float(sums[0]) / max(full, 1e-12))
    return best


def _some_slices(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, _MOST_SLICES + 2).astype(int)[1:-1]).tolist()
