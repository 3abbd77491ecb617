"""Copied tissue: two places of a CT never have the same noise, so where they do, one is a copy of the other.

No watermark is needed, nor a place to look at. What neighboring voxels do not tell of a voxel keeps its sign under
anything smooth that is added, so the signs of 6x6 voxels make a number that a copy shares with its source. Sorting all
numbers of the lungs finds the pairs, and several pairs that lie equally far apart make a copy. A correlation of the
noise itself at both places then has to confirm it.

The noise that CT-GAN copies has a search of its own: :mod:`.touch_up`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.threads import map_slices
from .blocks import Blocks

FOUND_SD = 11.0
"""A correlation of noise that stands out by more is a copy. What was chosen for equal signs reaches 10 by chance."""

_EDGE = 6  # of the squares whose signs make a number
_NEAR_MM = 10.0  # neighboring slices share noise
_PAIRS = 8  # at one shift, in two slices or more; edges of vessels that run alike share some in one slice
_MOST_SHARED = 4  # squares with the same number; artifacts share it with many
_MOST_SHIFTS = 200
_STRAIGHT, _STRAIGHT_MM = 2, 6.0  # voxels of a shift along the slices alone, and the least extent of such a copy
_CONFIRMED_MM = 9.0
_CLIP_SD = 3.0
_QUIET = 0.4  # of the usual noise; what is flat has the signs of its rounding
_SHARP_SD = 6.0  # what is alike in anatomy, or of a fixed pattern, is so over some voxels


@dataclass(frozen=True)
class Copy:
    """Tissue that is in a scan twice.

    :param kji: voxel (slice, row, column) in the middle of the one place; of the copy, where that is known.
    :param source_kji: of the other.
    :param sd: by how many standard deviations the correlation of their noise stands out.
    :param size_mm: extent along (slice, row, column) of what was found to be the same.
    :param by_touch_up: whether the source is the place that CT-GAN's touch-up copies noise from.
    """

    kji: tuple[int, int, int]
    source_kji: tuple[int, int, int]
    sd: float
    size_mm: tuple[float, float, float]
    by_touch_up: bool = False


def find_copies(blocks: Blocks, fine: np.ndarray) -> list[Copy]:
    """Everything within the lungs that is there twice, the surest first.

    :param fine: of :func:`.noise.residual`.
    """
    mask = blocks.voxels(blocks.lungs).astype(bool)
    usual = float(np.median(np.abs(fine[::3, ::5, ::5][mask[::3, ::5, ::5]]))) if mask.any() else 0.0
    if usual <= 0:
        return []
    pairs = _pairs(*_numbers(fine, mask, _QUIET * usual))
    first, second = (np.stack(np.unravel_index(flat, fine.shape), axis=1) for flat in pairs)
    noise = _Noise(fine, usual, np.array(blocks.volume.spacing_kji))
    far = np.linalg.norm((second - first) * noise.mm, axis=1) > _NEAR_MM
    return _clusters(noise, first[far], (second - first)[far])


def _numbers(fine: np.ndarray, mask: np.ndarray, quiet: float) -> tuple[np.ndarray, np.ndarray]:
    """The signs of each square of 6x6 voxels as a number, and the flat index of its first voxel."""
    rows, columns = (size - _EDGE + 1 for size in fine.shape[1:])

    def look(k: int) -> tuple[np.ndarray, np.ndarray]:
        if rows < 1 or columns < 1 or not mask[k].any():
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        bits = (fine[k] > 0).astype(np.uint64)
        along = sum(bits[:, n : n + columns] << np.uint64(n) for n in range(_EDGE))
        number = sum(along[n : n + rows] << np.uint64(n * _EDGE) for n in range(_EDGE))
        noise = np.abs(fine[k])
        along = sum(noise[:, n : n + columns] for n in range(_EDGE))
        loud = sum(along[n : n + rows] for n in range(_EDGE)) > _EDGE**2 * quiet
        at = np.flatnonzero(loud & mask[k, :rows, :columns] & mask[k, _EDGE - 1 :, _EDGE - 1 :])
        j, i = np.divmod(at, columns)
        return number.ravel()[at], (k * fine.shape[1] + j) * fine.shape[2] + i

    found = map_slices(look, len(fine))
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _pairs(numbers: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places that share a number with few others, pair by pair."""
    order = np.argsort(numbers)
    numbers, places = numbers[order], places[order]
    starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
    counts = np.diff(np.r_[starts, len(numbers)])
    one, other = [], []
    for size in range(2, _MOST_SHARED + 1):
        groups = starts[counts == size]
        for a in range(size):
            for b in range(a + 1, size):
                one.append(places[groups + a])
                other.append(places[groups + b])
    first, second = np.concatenate(one), np.concatenate(other)
    return np.minimum(first, second), np.maximum(first, second)


def _clusters(noise: _Noise, first: np.ndarray, shifts: np.ndarray) -> list[Copy]:
    """Pairs at the same shift, near each other, that the correlation of the noise confirms."""
    from scipy import ndimage

    mm = noise.mm
    # As one number each: rows are compared one by one, with Python's lock, for seconds in a long scan.
    _, rows, columns = noise.fine.shape
    numbers = (shifts[:, 0] * (2 * rows) + shifts[:, 1]) * (2 * columns) + shifts[:, 2]
    _, one_of, which, counts = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
    order = [number for number in np.argsort(-counts)[:_MOST_SHIFTS] if counts[number] >= _PAIRS]
    found = []
    for number in order:
        shift, places = shifts[one_of[number]], first[which == number]
        low = places.min(axis=0)
        cells = np.floor((places - low) * mm / _CONFIRMED_MM).astype(int)
        here = np.zeros(cells.max(axis=0) + 1, int)
        np.add.at(here, tuple(cells.T), 1)
        labels, count = ndimage.label(here, np.ones((3, 3, 3)))
        of_place = labels[tuple(cells.T)]
        for label in range(1, count + 1):
            of_label = places[of_place == label]
            if len(of_label) < _PAIRS or np.ptp(of_label[:, 0]) < 1:
                continue
            size = (np.ptp(of_label, axis=0) + np.array((1, _EDGE, _EDGE))) * mm
            # Detectors leave the same pattern at the same row and column of distant slices, thin and narrow.
            if np.abs(shift[1:]).max() <= _STRAIGHT and size.min() < _STRAIGHT_MM:
                continue
            middle = np.round(of_label.mean(axis=0)).astype(int) + np.array((0, _EDGE // 2, _EDGE // 2))
            sd = noise.correlation(middle, shift)
            if sd >= FOUND_SD and not noise.is_upright(middle, shift, sd):
                ends = (tuple(int(i) for i in at) for at in (middle, middle + shift))
                found.append(Copy(*ends, sd, tuple(round(float(edge), 1) for edge in size)))
    return apart(found, mm)


@dataclass(frozen=True, eq=False)
class _Noise:
    """A scan's noise (slices, rows, columns) in HU, its usual height, and its voxels in mm."""

    fine: np.ndarray
    usual: float
    mm: np.ndarray

    def correlation(self, kji: np.ndarray, shift: np.ndarray) -> float:
        """By how many standard deviations the noise around two places is alike."""
        fine, limit = self.fine, _CLIP_SD * 1.48 * self.usual
        half = np.maximum(np.round(_CONFIRMED_MM / 2 / self.mm), 0).astype(int)
        low = np.maximum(np.maximum(kji - half, 0), -shift)
        high = np.minimum(np.minimum(kji + half + 1, fine.shape), fine.shape - shift)
        if (high <= low).any():
            return 0.0
        one, other = (np.clip(fine[tuple(map(slice, low + by, high + by))], -limit, limit) for by in (0, shift))
        product = one * other
        return float(product.sum() / np.sqrt(max(float(np.square(product).sum()), 1e-9)))

    def is_upright(self, kji: np.ndarray, shift: np.ndarray, sd: float) -> bool:
        """Whether two places are alike because the edge of something upright passes both: so are slices beside."""
        if np.abs(shift[1:]).max() > _STRAIGHT:
            return False
        reach = int(np.ceil(_NEAR_MM / 2 / self.mm[0]))
        return sd - max(self.correlation(kji, shift + np.array((by, 0, 0))) for by in (-reach, reach)) < _SHARP_SD


def apart(copies: Sequence[Copy], mm: np.ndarray) -> list[Copy]:
    """The surest of those at about the same place, the surest first."""
    kept: list[Copy] = []
    for copy in sorted(copies, key=lambda copy: -copy.sd):
        if all(np.linalg.norm(np.subtract(copy.kji, other.kji) * mm) > 1.5 * _NEAR_MM for other in kept):
            kept.append(copy)
    return kept
