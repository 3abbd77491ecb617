"""Copied tissue: two places of a CT never have the same noise, so where they do, one is a copy of the other.

No watermark is needed, nor a place to look at. What neighboring voxels do not tell of a voxel keeps its sign under
anything smooth that is added, so the signs of 6x6 voxels make a number that a copy shares with its source. Sorting all
numbers of the lungs finds the pairs, and several pairs that lie equally far apart make a copy. A correlation of the
noise itself at both places then has to confirm it.

CT-GAN copies noise from one fixed place of every scan onto what it paints. That place is sought everywhere by itself:
it names the tool, and shows where little of its noise is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..attack.regions import NOISE_SOURCE, TOUCH_UP_FACTOR
from ..runtime.threads import map_slices, usable_threads
from ..scan.filters import box_means
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
_TOUCH_UP_MM = (10.0, 20.0, 36.0)
_TOUCH_UP_SD = 8.0
_SHARP_SD = 6.0  # what is alike in anatomy, or of a fixed pattern, is so over some voxels
_FEW_VOXELS = 150


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


def find_copies(blocks: Blocks, fine: np.ndarray, lungs: np.ndarray) -> list[Copy]:
    """Everything within the lungs that is there twice, the surest first.

    :param fine: of :func:`.noise.residual`.
    :param lungs: bool (slices, block rows, block columns).
    """
    mask = blocks.voxels(lungs).astype(bool)
    usual = float(np.median(np.abs(fine[::3, ::5, ::5][mask[::3, ::5, ::5]]))) if mask.any() else 0.0
    if usual <= 0:
        return []
    numbers, places = _numbers(fine, mask, _QUIET * usual)
    one, other = _pairs(numbers, places)
    first, second = (np.stack(np.unravel_index(flat, fine.shape), axis=1) for flat in (one, other))
    mm = np.array(blocks.volume.spacing_kji)
    far = np.linalg.norm((second - first) * mm, axis=1) > _NEAR_MM
    return _clusters(blocks, fine, usual, first[far], second[far])


def find_touch_up(blocks: Blocks, fine: np.ndarray, lungs: np.ndarray) -> list[Copy] | None:
    """Places that carry the noise of CT-GAN's fixed source, the surest first; None where the source has no lung.

    :param fine: of :func:`.noise.residual`.
    :param lungs: bool (slices, block rows, block columns).
    """
    from scipy import fft

    volume = blocks.volume
    mm = np.array(volume.spacing_kji)
    center = np.array([int(size * share) for size, share in zip(volume.shape, NOISE_SOURCE, strict=True)])
    edge = touch_up_edge(volume.spacing_kji)
    mask = blocks.voxels(lungs).astype(bool)
    low, high = _bounds(mask, center, edge)
    box = tuple(map(slice, low, high))
    noise = _normalized(fine[box])
    noise[~mask[box]] = 0
    usable = noise * (volume.hu[box] < -800)
    shape = tuple(fft.next_fast_len(int(size), real=True) for size in noise.shape)
    workers = usable_threads()
    spectrum = fft.rfftn(noise, shape, workers=workers)
    middle = center - low
    found: list[Copy] = []
    any_template = False
    for size_mm in _TOUCH_UP_MM:
        half = np.minimum(np.maximum(np.round(size_mm / 2 / mm), 1), edge // 2).astype(int)
        start = np.maximum(middle - half, 0)
        template = usable[tuple(slice(a, b) for a, b in zip(start, middle + half + 1, strict=True))]
        if np.count_nonzero(template) < _FEW_VOXELS:
            continue
        any_template = True
        of_template = fft.rfftn(template, shape, workers=workers)
        both = fft.irfftn(spectrum * of_template.conj(), shape, workers=workers)
        both = np.roll(both, tuple(middle - start), (0, 1, 2))[tuple(map(slice, noise.shape))]
        both /= np.sqrt(np.sum(template**2))
        inside = mask[box]
        both /= max(1.0, 1.48 * float(np.median(np.abs(both[::2, ::3, ::3][inside[::2, ::3, ::3]]))))
        both[~inside] = 0
        near = np.maximum(np.round(_NEAR_MM * 1.5 / mm), 1).astype(int)
        both[tuple(slice(max(0, a - n), a + n + 1) for a, n in zip(middle, near, strict=True))] = 0
        while True:
            peak = np.array(np.unravel_index(int(both.argmax()), both.shape))
            sd = float(both[tuple(peak)])
            if sd < _TOUCH_UP_SD:
                break
            is_sharp = sd - _beside(both[peak[0]], peak[1:]) >= _SHARP_SD
            both[tuple(slice(max(0, a - n), a + n + 1) for a, n in zip(peak, near, strict=True))] = 0
            kji, source = (tuple(int(i) for i in at) for at in (peak + low, center))
            if is_sharp:
                found.append(Copy(kji, source, sd, (size_mm,) * 3, by_touch_up=True))
    return _apart(found, mm) if any_template else None


def touch_up_edge(spacing_kji: Sequence[float]) -> int:
    """Voxels along every axis that CT-GAN's touch-up changes: as many along thick slices as along the finest axis."""
    from ..scan.cubes import cube_shape

    return int(max(cube_shape(spacing_kji)) * TOUCH_UP_FACTOR)


def _beside(plane: np.ndarray, at: Sequence[int]) -> float:
    """The largest value 3 or 4 voxels from a place of a slice, where noise has nothing in common any more."""
    low = [max(0, index - 4) for index in at]
    part = plane[low[0] : at[0] + 5, low[1] : at[1] + 5].copy()
    part[max(0, at[0] - 2) - low[0] : at[0] + 3 - low[0], max(0, at[1] - 2) - low[1] : at[1] + 3 - low[1]] = -np.inf
    return float(part.max())


def _normalized(fine: np.ndarray) -> np.ndarray:
    """In standard deviations of each slice's neighborhood, clipped, so that no edge decides."""
    found = np.empty_like(fine)

    def normalize(k: int) -> None:
        plane = fine[k]
        limit = _CLIP_SD * 1.48 * max(float(np.median(np.abs(plane))), 0.1)
        power = box_means(np.clip(plane, -4 * limit, 4 * limit) ** 2, 15)
        np.clip(plane / np.sqrt(power + 0.1), -_CLIP_SD, _CLIP_SD, out=found[k])

    map_slices(normalize, len(fine))
    return found


def _bounds(mask: np.ndarray, center: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Box around a mask and the source; the lowest voxel, and the one after the highest."""
    low, high = [], []
    for axis in range(3):
        at = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        ends = [at[0], at[-1] + 1] if at.size else [center[axis], center[axis] + 1]
        low.append(max(0, min(ends[0], center[axis] - edge // 2)))
        high.append(min(mask.shape[axis], max(ends[1], center[axis] + edge // 2 + 1)))
    return np.array(low), np.array(high)


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


def _clusters(blocks: Blocks, fine: np.ndarray, usual: float, first: np.ndarray, second: np.ndarray) -> list[Copy]:
    """Pairs at the same shift, near each other, that the correlation of the noise confirms."""
    from scipy import ndimage

    mm = np.array(blocks.volume.spacing_kji)
    shifts = second - first
    # As one number each: rows are compared one by one, with Python's lock, for seconds in a long scan.
    _, rows, columns = fine.shape
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
            sd = _correlation(fine, usual, middle, shift, mm)
            if sd >= FOUND_SD and not _is_upright(fine, usual, middle, shift, mm, sd):
                ends = (tuple(int(i) for i in at) for at in (middle, middle + shift))
                found.append(Copy(*ends, sd, tuple(round(float(edge), 1) for edge in size)))
    return _apart(found, mm)


def _correlation(fine: np.ndarray, usual: float, kji: np.ndarray, shift: np.ndarray, mm: np.ndarray) -> float:
    """By how many standard deviations the noise around two places is alike."""
    half = np.maximum(np.round(_CONFIRMED_MM / 2 / mm), 0).astype(int)
    low = np.maximum(np.maximum(kji - half, 0), -shift)
    high = np.minimum(np.minimum(kji + half + 1, fine.shape), fine.shape - shift)
    if (high <= low).any():
        return 0.0
    limit = _CLIP_SD * 1.48 * usual
    one, other = (
        np.clip(fine[tuple(map(slice, low + by, high + by))], -limit, limit) for by in (np.zeros(3, int), shift)
    )
    product = one * other
    return float(product.sum() / np.sqrt(max(float(np.square(product).sum()), 1e-9)))


def _is_upright(fine: np.ndarray, usual: float, kji: np.ndarray, shift: np.ndarray, mm: np.ndarray, sd: float) -> bool:
    """Whether two places are alike because the edge of something upright passes both: so are then slices beside."""
    if np.abs(shift[1:]).max() > _STRAIGHT:
        return False
    beside = [shift + np.array((slices, 0, 0)) for slices in np.array((-1, 1)) * int(np.ceil(_NEAR_MM / 2 / mm[0]))]
    return sd - max(_correlation(fine, usual, kji, one, mm) for one in beside) < _SHARP_SD


def _apart(copies: Sequence[Copy], mm: np.ndarray) -> list[Copy]:
    """The surest of those at about the same place, the surest first."""
    kept: list[Copy] = []
    for copy in sorted(copies, key=lambda copy: -copy.sd):
        if all(np.linalg.norm(np.subtract(copy.kji, other.kji) * mm) > 1.5 * _NEAR_MM for other in kept):
            kept.append(copy)
    return kept
