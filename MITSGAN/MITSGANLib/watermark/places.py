"""What is left of the watermark at one place that somebody asks about, and whether that is less than chance leaves.

A whole scan has a million places, so that what :func:`~.checking.check_watermark` lists by itself must be far beyond
chance. Of one place that is asked about, less is enough: the limit is how far one in 100 untouched places of the same
copy and tissue falls short of its surroundings. So it fits each scan, its kernel and what a lossy compression has left.

Arrays of blocks are (slice, block row, block column).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .sums import Sums, deviations

WIDTHS_MM = (8.0, 14.0)
"""Full widths at half maximum of the Gaussian windows in which a place is looked at."""

_WIDTH_IN_SIGMAS, _REACH_IN_SIGMAS = 2.355, 3.0

REACH_MM = _REACH_IN_SIGMAS * max(WIDTHS_MM) / _WIDTH_IN_SIGMAS
"""How far from a place they look."""

# The limit lies above the median by 2.5 times of what the lowest tenth lies below it, as what is forged is only ever
# above. A hundredth of untouched lung lies above 2.7, 2.3 and 2.6 times (LIDC-IDRI-0028, LIDC-IDRI-0002, Lung_Dx-A0001
# with kernel B), of all else above 2.6, 2.4 and 2.5. A dozen places forged by ctgan-small raise the limit by 5 %; 8 %
# of the lung without a watermark raise it by 40 %, and 19 of 20 blocks there are found all the same.
_LOWEST_SHARE, _TIMES = 10.0, 2.5
# With fewer places to compare with, and so in the other tissue, any limit is a guess: above all of the scans above.
_FEWEST_PLACES, _UNKNOWN_LIMIT = 1000, 3.0
# Of what is computed alike everywhere, as in a made-up scan, nothing falls short by chance.
_SMALLEST_LIMIT = 0.5
# Squared standard deviations of whatever a block needs for being compared with.
_COMPARABLE = 0.5
# Of what the larger window has on average.
_LEAST_MIDDLE = 0.25


@dataclass(frozen=True)
class Place:
    """What is left of the watermark around one voxel.

    :param window_mm: width at half maximum of the window that shows a loss most.
    :param seen: how much the window holds, in standard deviations.
    :param expected: what it would hold if it were like its surroundings.
    :param threshold: what it may fall short by, in standard deviations; about one untouched place in 100 falls short by
        more, unless there were too few to tell that.
    """

    kji: tuple[int, int, int]
    window_mm: float
    seen: float
    expected: float
    threshold: float

    @property
    def missing_sd(self) -> float:
        """By how many standard deviations it falls short."""
        return self.expected - self.seen

    @property
    def is_missing(self) -> bool:
        """Whether it falls short by more than it may at an untouched place."""
        return self.can_tell and self.missing_sd > self.threshold

    @property
    def can_tell(self) -> bool:
        """Whether so much of it is expected that its absence would be noticed."""
        return self.expected > self.threshold

    @property
    def words(self) -> str:
        """One sentence for people."""
        figures = f"{self.seen:.1f} of {self.expected:.1f} standard deviations are left in {self.window_mm:.0f} mm"
        if self.is_missing:
            return f"watermark MISSING: {figures}."
        return f"watermark there: {figures}." if self.can_tell else f"cannot be told: {figures}."

    def to_dict(self) -> dict[str, Any]:
        return {
            "kji": self.kji,
            "window_mm": self.window_mm,
            "seen_sd": round(self.seen, 2),
            "expected_sd": round(self.expected, 2),
            "threshold_sd": round(self.threshold, 2),
            "missing": self.is_missing,
            "can_tell": self.can_tell,
        }


@dataclass(frozen=True, eq=False)
class Places:
    """The evidence at every block, ready to be asked.

    :param seen: float32 (windows, slices, block rows, block columns), in standard deviations.
    :param expected: of the same shape: what it would be if the window were like its surroundings.
    :param has_middle: bool (slices, block rows, block columns): where a larger window that lacks nothing speaks for the
        place. Where its middle can hardly bear signs, as under strong noise, what is around it says nothing of it.
    :param in_lung: bool of the same shape: where most of the larger window is lung, as around a small nodule.
    :param thresholds: what a place may fall short by, in standard deviations: one that is not in a lung, and one in it.
    """

    seen: np.ndarray
    expected: np.ndarray
    has_middle: np.ndarray
    in_lung: np.ndarray
    thresholds: tuple[float, float]

    @classmethod
    def of(cls, sums: Sums, left: np.ndarray, block_mm: Sequence[float]) -> Places:
        """From the sums of every block.

        :param left: what the correlation comes to where as much is lost as around.
        :param block_mm: edges of a block along (slice, row, column).
        """
        windows = [_in_window(sums, left, width_mm, block_mm) for width_mm in WIDTHS_MM]
        seen, expected = (np.stack(values) for values in zip(*windows, strict=True))
        shortfall = (expected - seen).max(axis=0)
        comparable = sums.full > _COMPARABLE
        in_lung = _mean_in_window(sums.is_lung.astype(np.float32), max(WIDTHS_MM), block_mm) > 0.5
        limits = [_threshold(shortfall[comparable & (in_lung == tissue)]) for tissue in (False, True)]
        known = [limit for limit in limits if limit is not None]
        other, lung = (limit or max(known, default=_UNKNOWN_LIMIT) for limit in limits)
        near, wide = (_mean_in_window(sums.full, width_mm, block_mm) for width_mm in WIDTHS_MM)
        return cls(seen, expected, near >= _LEAST_MIDDLE * wide, in_lung, (other, lung))

    def at(self, kji: tuple[int, int, int], block: tuple[int, int, int]) -> Place:
        """What is left at a voxel, in the window that shows a loss most.

        :param kji: voxel (slice, row, column), for the record.
        :param block: the one that it lies in.
        """
        seen, expected = (values[:, block[0], block[1], block[2]] for values in (self.seen, self.expected))
        threshold = self.thresholds[int(self.in_lung[block])]
        shortfall, tells = expected - seen, expected > threshold
        is_lost = tells & (shortfall > threshold)
        if not is_lost.any():
            tells[1:] &= self.has_middle[block]
        among = is_lost if is_lost.any() else tells
        window = int(np.argmax(np.where(among, shortfall, -np.inf)) if among.any() else 0)
        return Place(kji, WIDTHS_MM[window], float(seen[window]), float(expected[window]), threshold)


def _threshold(shortfall: np.ndarray) -> float | None:
    """What a place may fall short by, from what places of its tissue do; None where they are too few."""
    if shortfall.size < _FEWEST_PLACES:
        return None
    low, middle = np.percentile(shortfall, (_LOWEST_SHARE, 50.0))
    return max(float(middle + _TIMES * (middle - low)), _SMALLEST_LIMIT)


def _in_window(
    sums: Sums, left: np.ndarray, width_mm: float, block_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`~.sums.deviations` of Gaussian windows around each block."""
    weights = _gaussian(width_mm, block_mm)
    return deviations(sums, left, lambda values, power: _weighted(values, [along**power for along in weights]))


def _mean_in_window(values: np.ndarray, width_mm: float, block_mm: Sequence[float]) -> np.ndarray:
    """Weighted means; what lies outside the scan counts as 0."""
    return _weighted(values, [along / along.sum() for along in _gaussian(width_mm, block_mm)])


def _weighted(values: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    from scipy import ndimage

    for axis, along in enumerate(weights):
        values = ndimage.correlate1d(values, along, axis=axis, mode="constant")
    return values


def _gaussian(width_mm: float, block_mm: Sequence[float]) -> list[np.ndarray]:
    """Weights along each axis, 1 in the middle, to three standard deviations on either side."""
    sigmas = [width_mm / _WIDTH_IN_SIGMAS / step for step in block_mm]
    reaches = [int(_REACH_IN_SIGMAS * sigma + 0.5) for sigma in sigmas]
    return [np.exp(-0.5 * (np.arange(-n, n + 1) / sigma) ** 2) for n, sigma in zip(reaches, sigmas, strict=True)]
