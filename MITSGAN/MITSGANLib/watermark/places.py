"""What is left of the watermark at one place that somebody asks about, and whether that is less than chance leaves.

A whole scan has a million places, so that what :func:`~.checking.check_watermark` lists by itself must be far beyond
chance. Of one place that is asked about, less is enough: it misses the watermark where it falls short of its
surroundings by three times of what four in five places of the same scan and tissue keep within. So the limit fits each
scan, its kernel and what a lossy compression has left.

Arrays of blocks are (slice, block row, block column).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTHS_MM = (8.0, 14.0)
"""Full widths at half maximum of the Gaussian windows in which a place is looked at."""

# On LIDC-IDRI-0028, LIDC-IDRI-0002 and Lung_Dx-A0001 (kernel B) 1 % of untouched lung falls short by 3.1, 2.9 and 3.0
# times of what 80 % keep within, 1 % of all else by 3.0, 2.8 and 2.9 times. Seven places forged in one copy of -0028
# raise the limit by 6 %; one from 90 % would rise by 16 %.
_USUAL_SHARE, _TIMES_USUAL = 80.0, 3.0
# Where there are fewer places to compare with: the largest limit of the scans above.
_FEWEST_PLACES, _UNKNOWN_LIMIT = 1000, 2.0
# Of what is rounded and computed alike everywhere, as in a made-up scan, nothing falls short by chance.
_SMALLEST_LIMIT = 0.5
_LEAST_SIGNAL = 4.0  # squared standard deviations, in a window
_COMPARABLE = 0.5  # and in a block


@dataclass(frozen=True)
class Place:
    """What is left of the watermark around one voxel.

    :param window_mm: width at half maximum of the window that shows a loss most.
    :param seen: how much the window holds, in standard deviations.
    :param expected: what it would hold if it were like its surroundings.
    :param threshold: what it may fall short by; about one untouched place in 100 falls short by more.
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
    :param is_lung: bool (slices, block rows, block columns).
    :param thresholds: of what is not lung, and of lung.
    """

    seen: np.ndarray
    expected: np.ndarray
    is_lung: np.ndarray
    thresholds: tuple[float, float]

    @classmethod
    def of(
        cls,
        correlation: np.ndarray,
        squares: np.ndarray,
        full: np.ndarray,
        left: np.ndarray,
        is_lung: np.ndarray,
        block_mm: Sequence[float],
    ) -> Places:
        """From the sums of every block.

        :param correlation: of the whitened voxels with the signs.
        :param squares: its variance where the watermark is not.
        :param full: what the correlation comes to where nothing of the watermark is lost.
        :param left: what it comes to where as much is lost as around.
        :param block_mm: edges of a block along (slice, row, column).
        """
        windows = [_in_window(correlation, squares, full, left, width_mm, block_mm) for width_mm in WIDTHS_MM]
        seen, expected = (np.stack(values) for values in zip(*windows, strict=True))
        shortfall = (expected - seen).max(axis=0)
        comparable = full > _COMPARABLE
        limits = (_threshold(shortfall[comparable & (is_lung == tissue)]) for tissue in (False, True))
        return cls(seen, expected, is_lung, tuple(limits))

    def at(self, kji: tuple[int, int, int], block: tuple[int, int, int]) -> Place:
        """What is left at a voxel, in the window that shows a loss most.

        :param kji: voxel (slice, row, column), for the record.
        :param block: the one that it lies in.
        """
        seen, expected = (values[:, block[0], block[1], block[2]] for values in (self.seen, self.expected))
        window = int(np.argmax(expected - seen))
        threshold = self.thresholds[int(self.is_lung[block])]
        return Place(kji, WIDTHS_MM[window], float(seen[window]), float(expected[window]), threshold)


def _threshold(shortfall: np.ndarray) -> float:
    """What a place may fall short by, from what places of its tissue do."""
    if shortfall.size < _FEWEST_PLACES:
        return _UNKNOWN_LIMIT
    return max(_TIMES_USUAL * float(np.percentile(shortfall, _USUAL_SHARE)), _SMALLEST_LIMIT)


def _in_window(
    correlation: np.ndarray,
    squares: np.ndarray,
    full: np.ndarray,
    left: np.ndarray,
    width_mm: float,
    block_mm: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """What Gaussian windows around each block hold of the watermark, and what they should, in standard deviations."""
    weights = [_gaussian(width_mm / 2.355 / step) for step in block_mm]
    # A weighted sum has the variance of what it sums times the squares of the weights.
    variance = _weighted(squares, [weight**2 for weight in weights])
    any_signal = (_weighted(full, weights) > _LEAST_SIGNAL) & (variance > _LEAST_SIGNAL)
    root = np.sqrt(np.where(any_signal, variance, 1))
    held = (np.where(any_signal, _weighted(values, weights) / root, 0) for values in (correlation, left))
    seen, expected = (values.astype(np.float32) for values in held)
    return seen, expected


def _gaussian(sigma: float) -> np.ndarray:
    reach = int(3 * sigma + 0.5)
    return np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)


def _weighted(values: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    from scipy import ndimage

    for axis, along in enumerate(weights):
        values = ndimage.correlate1d(values, along, axis=axis, mode="constant")
    return values
