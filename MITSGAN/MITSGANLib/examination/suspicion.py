"""Maps of evidence, each in units of what a scan's own untouched tissue scatters by.

Scanners, kernels and doses differ, so no limit in HU or standard deviations fits all. A score of 1 is listed. Limits
were set on five scans and reported on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..watermark.checking import Check
from .blocks import Blocks
from .noise import COARSE, FINE, NoiseMap
from .whitened import Whitened

WATERMARK, NOISE, COARSE_NOISE, COLOR = "watermark", "noise missing", "coarse noise missing", "noise of another color"
FOREIGN = "noise that the scanner does not let through"

_WITNESSES = ((WATERMARK,), (NOISE, COARSE_NOISE, COLOR, FOREIGN))

# Scores are roots of logarithms of chances, so that their squares add up. With foreign noise the logarithm is linear:
# 1 % of untouched lungs have 0.25 of its limit, 0.1 % have 0.35, none 0.8. Noise is missing by anatomy as well, so that
# little of it counts for less.
_FOREIGN_POWER, _NOISE_POWER = 0.5, 1.5

# What is an alarm at a place that somebody asks about: few places of the scan have as much nearby. 0.1 to 1.0 % of four
# untouched scans' places have so many times what a tenth has, which hardly rises with what was forged elsewhere.
_ASKED, _ASKED_PERCENTILE, _ASKED_TIMES = (0.65, 0.8), 90, 1.34
NEAR_MM = 4.0
"""How far from a place that is asked about the strongest evidence is taken."""

# By how many standard deviations the watermark falls short in Gaussian surroundings with these sigmas. A key draws the
# signs, so that these are of chance alone, whatever the image.
_WATERMARK_MM, _WATERMARK_LIMIT = (3.0, 4.0, 6.0, 8.0), 5.5
_LEAST_SCATTER = 0.8
_GAIN_VARIES = 0.02  # of what is expected
_GAIN_MM, _GAIN_TRUST, _LEAST_GAIN, _DENSE_HU = 60.0, 400.0, 0.85, -500.0
_LEAST_SQUARES = 1.0  # in so few voxels nothing is of chance alone
# Of what is left of it after lossy compression and the like, in Gaussian surroundings of ``SIGMAS_MM``: by how many
# scatters it falls short. Untouched lung of LIDC-IDRI-0001 reaches 5.7, 4.6 and 4.6 after a Gaussian of 0.5 voxel, and
# 3.5, 3.1 and 2.7 after 10:1 JPEG 2000; that of LIDC-IDRI-0028 then 4.1, 4.0 and 3.8.
_FADED_LIMITS = (7.0, 5.5, 5.5)
# How much is left depends on the tissue: with 0.02 the lungs of untouched copies after a Gaussian of 0.5 voxel have a
# place of 1.23 on LIDC-IDRI-0028, 1.07 on Lung_Dx-A0001 (B), and 1.39 on LIDC-IDRI-0001; with 0.08 0.85, 0.90, 0.99.
_FADED_VARIES = 0.1  # of what is expected
_FADED_SD = 2.0  # below this a place says nothing, and does not belong to the scatter
# Noise that is not explained by what is coarser. At 8.4 and 7.8 untouched LIDC-IDRI-0001 had a place of 1.22 between
# heart and lung (f3962ad), and at 1.4 times that LIDC-IDRI-0293 one of 0.92 beside the windpipe. So 1.6 times it is.
_FOREIGN_LIMITS = ((10.0, 13.6), (14.0, 12.5))
# Lossy compression, medians and means of slices leave more noise in some places than in others: untouched lungs of
# LIDC-IDRI-0001 then reach 1.25 to 1.51 of these limits, those of three other scans 0.57.
_LOSSY_GAIN, _LOSSY_TIMES = 0.8, 2.0
_FITTED, _ROUNDS = 20000, 5
_TAIL_PERCENTILE, _TAIL = 97.0, 2.4  # where that is of scans that were not compressed
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


def together(suspicions: Sequence[Suspicion]) -> np.ndarray:
    """What all say of each block, float32; 1 is listed.

    The watermark and the noise are witnesses of their own: what one says by chance the other does not. Where each says
    0.7 they come to 1. All that is said of the noise counts once, as air and edges can make it odd in several ways.
    """
    total = np.zeros(suspicions[0].score.shape, np.float32)
    for kinds in _WITNESSES:
        own = [one.score for one in suspicions if one.kind in kinds]
        if own:
            total += np.maximum(np.max(own, axis=0), 0) ** 2
    return np.sqrt(total)


def asked_limit(near: np.ndarray, lungs: np.ndarray) -> float:
    """What is an alarm at a place that somebody asks about; a whole scan has a million places.

    :param near: the most of :func:`together` within :data:`NEAR_MM`.
    """
    low, high = _ASKED
    usual = np.percentile(near[lungs], _ASKED_PERCENTILE) if lungs.any() else high
    return float(np.clip(_ASKED_TIMES * usual, low, high))


def strength(kinds: Mapping[str, float]) -> float:
    """The same of one place.

    :param kinds: the strength of each kind of evidence there; of kinds that are no suspicions the largest counts.
    """
    own = [max((max(kinds.get(kind, 0.0), 0.0) for kind in witness), default=0.0) for witness in _WITNESSES]
    known = {kind for witness in _WITNESSES for kind in witness}
    others = [value for kind, value in kinds.items() if kind not in known]
    return max([float(np.linalg.norm(own)), *others])


class _Windows:
    """One kind of evidence, sought in one window after the other: the most of all counts."""

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        self._kind, self._score, self._told = kind, np.zeros(shape, np.float32), np.zeros(shape, bool)

    def add(self, here: np.ndarray, times: np.ndarray, can_tell: np.ndarray | bool) -> None:
        """Where there is a window, how many times its limit it shows, and where a forgery would reach that."""
        np.maximum(self._score, np.where(here, times, 0), out=self._score)
        self._told |= here & can_tell

    def suspicion(self, power: float = 1.0) -> Suspicion:
        return Suspicion(self._kind, self._score**power, self._told)


def of_noise(noise: NoiseMap, lungs: np.ndarray) -> list[Suspicion]:
    """Noise that is missing in either band, or of another color."""
    fine, coarse = noise.differences[:, FINE], noise.differences[:, COARSE]
    kinds = (NOISE, _FINE_LIMITS, -fine), (COARSE_NOISE, _COARSE_LIMITS, -coarse), (COLOR, _COLOR_LIMITS, fine - coarse)
    found = []
    for kind, limits, values in kinds:
        windows = _Windows(kind, lungs.shape)
        for one, known, (scatters, least) in zip(values, noise.known, limits, strict=True):
            here = lungs & known
            if np.count_nonzero(here) < _FEW_BLOCKS:
                continue
            # Vessels and edges fill the other side, so this one has to tell: what fills a quarter hides itself.
            middle, scatter = _scatter(one[here], 75)
            limit = max(scatters * scatter, least)
            windows.add(here, (one - middle) / limit, limit <= _MOST_LIMIT[kind])
        found.append(windows.suspicion(_NOISE_POWER))
    return found


def of_faded_watermark(check: Check, lungs: np.ndarray) -> Suspicion:
    """A watermark of which compression or smoothing left a part, where it falls short of its surroundings."""
    windows = _Windows(WATERMARK, lungs.shape)
    for limit, seen, expected in zip(_FADED_LIMITS, check.seen_in_lungs, check.expected_in_lungs, strict=True):
        here = lungs & (expected >= _FADED_SD)
        if np.count_nonzero(here) < _FEW_BLOCKS:
            continue
        short = expected - seen
        # Nothing adds to a watermark, so what is above the expected is chance, and what tissue makes of it.
        middle, scatter = _scatter(short[here], 16)
        allowed = limit * np.hypot(max(scatter, _LEAST_SCATTER), _FADED_VARIES * expected)
        windows.add(here, (short - max(middle, 0)) / allowed, expected >= allowed)
    return windows.suspicion()


def of_watermark(blocks: Blocks, whitened: Whitened) -> Suspicion:
    """A watermark that falls short of its surroundings."""
    lungs = blocks.lungs
    windows = _Windows(WATERMARK, lungs.shape)
    # Outside of the lungs nothing is forged, and hides what is.
    parts = [values * lungs for values in (whitened.held, _left(blocks, whitened), whitened.squares)]
    marked = lungs & ~whitened.is_bare[:, None, None]
    for sigma_mm in _WATERMARK_MM:
        seen, expected = (blocks.around(values, sigma_mm) for values in parts[:2])
        squares = blocks.around(parts[2], sigma_mm, power=2)
        here = lungs & (squares > _LEAST_SQUARES)
        if np.count_nonzero(here & marked) < _FEW_BLOCKS:
            continue
        root = np.sqrt(np.maximum(squares, _LEAST_SQUARES))
        # Nothing adds to a watermark, so what is above the expected is chance alone. Slices that share signs have less.
        _, scatter = _scatter(((expected - seen) / root)[here & marked], 16)
        allowed = _WATERMARK_LIMIT * np.hypot(max(scatter, _LEAST_SCATTER) * root, _GAIN_VARIES * expected)
        windows.add(here, (expected - seen) / allowed, expected >= allowed)
    return windows.suspicion()


def _left(blocks: Blocks, whitened: Whitened) -> np.ndarray:
    """What each block would hold of the watermark if it were like its surroundings: lung, and what is denser."""
    left = np.zeros_like(whitened.full)
    is_lung = blocks.texture.level < _DENSE_HU
    for tissue in (blocks.lungs & is_lung, blocks.lungs & ~is_lung):
        held, full = (values * tissue for values in (whitened.held, whitened.full))
        of_marked = full[~whitened.is_bare].sum()
        usual = float(held[~whitened.is_bare].sum() / max(of_marked, 1e-9))
        near, wide = (blocks.in_boxes(values, _GAIN_MM) for values in (held, full))
        gain = (near + usual * _GAIN_TRUST) / (wide + _GAIN_TRUST)
        left += np.where(tissue, gain.clip(_LEAST_GAIN * usual, None) * full, 0)
    return left


def of_foreign_noise(blocks: Blocks, whitened: Whitened) -> Suspicion:
    """Noise that the scanner does not let through."""
    lungs, texture = blocks.lungs_and_pleura, blocks.texture
    windows, number = _Windows(FOREIGN, lungs.shape), np.ones_like(texture.level)
    clipped = texture.level.clip(-1024, 200) / 300
    maps = whitened.whitened, whitened.bare, texture.fine, texture.coarse, texture.steepness, clipped
    times = _LOSSY_TIMES if 0 < whitened.gain_of_marked < _LOSSY_GAIN else 1.0
    for edge_mm, usual_limit in _FOREIGN_LIMITS:
        count = blocks.in_boxes(number, edge_mm)
        of_all, of_bare, fine, coarse, steepness, level = (blocks.in_boxes(values, edge_mm) / count for values in maps)
        left = np.minimum(of_all, of_bare)
        about = [fine, coarse, np.log(np.maximum(steepness, 0) + 3), level]
        unexplained, scatter = _unexplained(left, about, lungs)
        limit = times * usual_limit * scatter
        # White noise as strong as what is fine here would leave that much more.
        windows.add(lungs, unexplained / limit, fine + np.log(whitened.spread) - left >= limit)
    return windows.suspicion(_FOREIGN_POWER)


def _unexplained(values: np.ndarray, about: list[np.ndarray], where: np.ndarray) -> tuple[np.ndarray, float]:
    """What others do not tell of values, by a robust quadratic fit, and its scatter."""
    terms = [np.ones_like(values), *about]
    terms += [one * other for n, one in enumerate(about) for other in about[n:]]
    some = np.flatnonzero(where)[:: max(1, np.count_nonzero(where) // _FITTED)]
    x, y = np.stack([term.ravel()[some] for term in terms], axis=1).astype(np.float64), values.ravel()[some]
    trust = np.ones(len(y))
    for _ in range(_ROUNDS):
        weights = np.linalg.lstsq(x * trust[:, None], y * trust, rcond=None)[0]
        rest = y - x @ weights
        scatter = max(1.48 * float(np.median(np.abs(rest))), 1e-6)
        trust = np.sqrt(1 / np.maximum(1, np.abs(rest) / scatter))
    told = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    # Lossy compression leaves more in some places than in others.
    scatter = max(scatter, float(np.percentile(rest, _TAIL_PERCENTILE)) / _TAIL)
    return (values - told).astype(np.float32), scatter


def _scatter(values: np.ndarray, percentile: float) -> tuple[float, float]:
    """Median, and how far from it a percentile lies."""
    middle, end = np.percentile(values, (50, percentile))
    return float(middle), float(abs(end - middle))
