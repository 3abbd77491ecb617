"""The lungs after the sharpest filter that a scan's own noise allows: signs and foreign noise stand out most there.

What 115 neighbors in five slices do not tell of a voxel is learned from the scan's own lungs, without the watermark.
On smooth kernels and large voxels hardly anything is left then: the scanner's kernel, and slices that overlap, let
nothing through that is as fine as that. The signs are there, and so is all that a network, an interpolation or white
paint puts in. On LIDC's and other scans the same window of 14 mm holds 1.1 (sharp kernel) to 2 times (large voxels) as
many standard deviations of the watermark as after the filter of :mod:`..watermark.whitening`.

Arrays of blocks are those of :mod:`.blocks`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..runtime.threads import map_slices, slabs
from ..scan.filters import smooth
from ..scan.volume import LOWEST_HU, CTVolume
from ..watermark.blocks import BLOCK, enlarge
from ..watermark.embedding import Watermark
from ..watermark.pattern import (
    LAYER_MM,
    TILE,
    Grid,
    ScanSigns,
    WatermarkKey,
    grid_secret,
    of_signs,
    tile_levels,
)
from ..watermark.sums import FOUND_SD, Reading
from .blocks import Blocks

# Neighbors along rows and columns that a voxel is told from: in its slice, in the next ones, in those after.
_REACH = (3, 2, 1)
_DEPTH, _WIDE = len(_REACH) - 1, max(_REACH)
_VOXELS, _FEW_VOXELS = 25000, 3000
_ROUNDS = 4
_CLIP_SD = 3.0
# The noise of a voxel is that within some voxels, where edges count as much as this many standard deviations at most.
_NEAR_VOXELS, _EDGE_SD = 2.0, 6.0
_LEAST_VARIANCE, _LEAST_SHARE = 0.1, 0.3  # HU squared; of what is usual in a slice's lungs
_LUNG_BELOW_HU = -500.0
_LEVEL_HU, _LEVEL_SHARE = 1.0, 0.4  # signs move the mean of a tile, by chance up to this share of their height
_LEAST_FINE_HU = 0.1  # before logarithms
_BARE_SHARE, _FEW_SLICES = 0.2, 3  # of the watermark that a slice should hold; slices that say what became of a scan


WHOLE_GAIN = 0.6
"""With less of the watermark left in the lungs, the scan as a whole is asked what became of it."""


@dataclass(frozen=True, eq=False)
class Whitened:
    """What is in each block, float32 (slices, block rows, block columns).

    :param held: what the whitened voxels come to along the watermark's signs, weighted by their variance; 0 without a
        watermark.
    :param full: what that would be where nothing is lost.
    :param squares: variance of ``held`` by chance, whatever the image: each sign is as likely as its opposite.
    :param whitened: mean logarithm of what the filter left.
    :param bare: the same of the scan without its watermark.
    :param gain: of the watermark in the lungs, 0 where there is none.
    :param sd: how many standard deviations it stands out in the voxels that the filter was learned from.
    :param spread: by how much the filter multiplies white noise.
    :param marks: what the watermark should have added to each voxel, int16 (slices, rows, columns) in HU.
    """

    held: np.ndarray
    full: np.ndarray
    squares: np.ndarray
    whitened: np.ndarray
    bare: np.ndarray
    gain: float
    sd: float
    spread: float
    marks: np.ndarray

    @functools.cached_property
    def is_bare(self) -> np.ndarray:
        """Slices that clearly hold no watermark where others do, bool: these were put in.

        Compression and smoothing leave about as much in each slice.
        """
        held, full, squares = (values.sum(axis=(1, 2)) for values in (self.held, self.full, self.squares))
        is_telling = full >= FOUND_SD * np.sqrt(squares.clip(_LEAST_VARIANCE))
        is_bare = is_telling & (held < _BARE_SHARE * full)
        is_marked = is_telling & ~is_bare
        if min(np.count_nonzero(is_bare), np.count_nonzero(is_marked)) < _FEW_SLICES:
            return np.zeros_like(is_bare)
        left = held[is_marked].sum() / full[is_marked].sum()
        return is_bare & (left >= WHOLE_GAIN)

    @property
    def gain_of_marked(self) -> float:
        """The gain, without slices that were put in."""
        if not self.is_bare.any():
            return self.gain
        held, full = (values[~self.is_bare].sum() for values in (self.held, self.full))
        return float(np.clip(held / full, self.gain, 1))


@dataclass(frozen=True, eq=False)
class _Marks:
    """What a watermark should have added to each voxel of a scan, and where that is sure; (slices, rows, columns).

    :param hu: int16.
    :param sure: bool: voxels of tiles whose level the signs themselves cannot have changed.
    :param version: of the signs.
    """

    hu: np.ndarray
    sure: np.ndarray
    version: int

    @classmethod
    def of(cls, blocks: Blocks, watermark: Watermark) -> _Marks:
        volume, grid = blocks.volume, blocks.grid
        reading = Reading.bare(volume, watermark.key, watermark.budget)
        signs = _signs(volume, watermark.key)
        marks, sure = np.empty(volume.shape, np.int16), np.zeros(volume.shape, bool)
        rows, columns = (size // TILE for size in volume.shape[1:])
        inner = slice(rows * TILE), slice(columns * TILE)

        def mark(k: int) -> None:
            marks[k] = reading.allowed_in(k)[0] * signs.of_slice(k, volume.hu[k])
            height = grid.turned(np.abs(marks[k]).astype(np.float32))[inner]
            of_tiles = height.reshape(rows, TILE, columns, TILE).mean(axis=(1, 3))
            _, unsure = tile_levels(grid.turned(volume.hu[k]), _LEVEL_HU + _LEVEL_SHARE * of_tiles)
            grid.turned(sure[k])[inner] = ~enlarge(unsure, TILE)

        map_slices(mark, volume.shape[0])
        return cls(marks, sure, watermark.key.version)


@dataclass(frozen=True, eq=False)
class _Kernel:
    """Weights (slices, rows, columns) with 1 in the middle, and the watermark that was taken off to learn them."""

    weights: np.ndarray
    gain: float
    sd: float


def whiten(blocks: Blocks, watermark: Watermark) -> Whitened | None:
    """Filter the lungs; None where they are too small to learn from.

    :param watermark: that the scan may be marked with.
    """
    marks = _Marks.of(blocks, watermark)
    kernel = _learned(blocks.volume.hu, marks, blocks.lung)
    if kernel is None:
        return None
    planes = zip(*_filtered(blocks, marks, kernel), strict=True)
    stacked = [np.stack(values).astype(np.float32) for values in planes]
    return Whitened(*stacked, kernel.gain, kernel.sd, float(np.linalg.norm(kernel.weights)), marks.hu)


def _signs(volume: CTVolume, key: WatermarkKey) -> ScanSigns:
    """The scan's signs, from the place that it had before a file format rounded it: where it carries most of them."""
    from scipy import ndimage

    grid, middle = Grid.of(volume), volume.shape[0] // 2
    depths = tuple(grid.place(k).depth for k in range(volume.shape[0]))
    found = [ScanSigns(grid_secret(key, place), grid.flips, depths) for place in grid.places(middle)]
    if len(found) == 1:
        return found[0]
    plane = np.maximum(volume.hu[middle], LOWEST_HU).astype(np.float32)
    rest = np.clip(ndimage.laplace(plane), -100, 100) * ((plane > -960) & (plane < 300))
    # A Laplacian has a negative middle.
    return min(found, key=lambda signs: float((signs.of_slice(middle, volume.hu[middle]) * rest).sum()))


def _learned(hu: np.ndarray, marks: _Marks, lung: np.ndarray) -> _Kernel | None:
    """The filter, by robust least squares on voxels of the lung; once more without the watermark, where it is there."""
    if min(hu.shape[1:]) <= 2 * _WIDE or hu.shape[0] <= 2 * _DEPTH:
        return None
    usable = lung & (hu > LOWEST_HU)
    usable[:_DEPTH] = usable[-_DEPTH:] = False
    usable[:, :_WIDE] = usable[:, -_WIDE:] = usable[:, :, :_WIDE] = usable[:, :, -_WIDE:] = False
    candidates = np.flatnonzero(usable)
    if len(candidates) < _FEW_VOXELS:
        return None
    chosen = np.random.default_rng(0).permutation(len(candidates))[:_VOXELS]
    at = np.unravel_index(np.sort(candidates[chosen]), hu.shape)
    offsets = [
        (k, j, i)
        for k in range(-_DEPTH, _DEPTH + 1)
        for j in range(-_REACH[abs(k)], _REACH[abs(k)] + 1)
        for i in range(-_REACH[abs(k)], _REACH[abs(k)] + 1)
        if (k, j, i) != (0, 0, 0)
    ]

    def around(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [values[tuple(index + by for index, by in zip(at, offset, strict=True))] for offset in offsets]
        return np.stack(found, axis=1).astype(np.float64), values[at].astype(np.float64)

    x, y = around(hu)
    x, y = np.maximum(x, LOWEST_HU), np.maximum(y, LOWEST_HU)
    weights, gain, sd = _robust_weights(x, y), 0.0, 0.0
    if marks.hu.any():
        mark_x, mark_y = around(marks.hu)
        left, mark = y - x @ weights, mark_y - mark_x @ weights
        told = marks.sure[at] & (np.abs(left) < _CLIP_SD * 1.48 * np.median(np.abs(left)))
        held, full = (left * mark)[told], (mark * mark)[told]
        sd = float(held.sum() / max(np.sqrt(np.square(held).sum()), 1e-9))
        if sd >= FOUND_SD:
            gain = float(min(1.0, held.sum() / full.sum()))
            weights = _robust_weights(x - gain * mark_x, y - gain * mark_y)
    kernel = np.zeros((2 * _DEPTH + 1, 2 * _WIDE + 1, 2 * _WIDE + 1))
    kernel[_DEPTH, _WIDE, _WIDE] = 1.0
    for (k, j, i), weight in zip(offsets, weights, strict=True):
        kernel[_DEPTH + k, _WIDE + j, _WIDE + i] = -weight
    return _Kernel(kernel, gain, sd)


def _robust_weights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights with a sum of 1, by least squares that are repeated with large residuals counting less (Huber)."""
    mean = x.mean(axis=1, keepdims=True)
    x, y = x - mean, y - mean[:, 0]
    trust = np.ones(len(y))
    for _ in range(_ROUNDS):
        trusted = x * trust[:, None]
        squares = trusted.T @ x
        ridge = 1e-6 * np.trace(squares) / len(squares) * np.eye(len(squares))
        weights = np.linalg.solve(squares + ridge, trusted.T @ y)
        left = np.abs(y - x @ weights)
        trust = 1 / np.maximum(1, left / max(1.48 * float(np.median(left)), 1e-3))
    return weights + (1 - weights.sum()) / len(weights)


def _filtered(blocks: Blocks, marks: _Marks, kernel: _Kernel) -> Iterator[tuple[np.ndarray, ...]]:
    """What :class:`Whitened` holds of each slice."""
    from scipy import fft

    hu = blocks.volume.hu
    shape = tuple(fft.next_fast_len(size + 2 * _WIDE, real=True) for size in hu.shape[1:])
    edges = [(0, total - size) for total, size in zip(shape, hu.shape[1:], strict=True)]
    # Correlation: the weight at an offset multiplies the voxel there.
    placed = np.zeros((len(kernel.weights), *shape), np.float32)
    for (k, j, i), weight in np.ndenumerate(kernel.weights):
        placed[k, (_WIDE - j) % shape[0], (_WIDE - i) % shape[1]] = weight
    of_kernel = fft.rfft2(placed)

    def spectrum(k: int) -> tuple[np.ndarray, np.ndarray | None]:
        plane = np.pad(np.maximum(hu[k], LOWEST_HU).astype(np.float32), edges, mode="edge")
        mark = marks.hu[k]
        return fft.rfft2(plane), fft.rfft2(np.pad(mark.astype(np.float32), edges)) if mark.any() else None

    def back(parts: Iterable[np.ndarray | None]) -> np.ndarray:
        total, product = np.zeros_like(of_kernel[0]), np.empty_like(of_kernel[0])
        for part, weights in zip(parts, of_kernel, strict=True):
            if part is not None:
                total += np.multiply(part, weights, out=product)
        return fft.irfft2(total, shape)[: hu.shape[1], : hu.shape[2]]

    spectra: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}

    def look(k: int) -> tuple[np.ndarray, ...]:
        near = [spectra[index] for index in np.clip(np.arange(k - _DEPTH, k + _DEPTH + 1), 0, len(hu) - 1)]
        left, mark = map(back, zip(*near, strict=True))
        # At either end neighbors are missing. Where slices share signs, what each adds averages out with the next.
        inner = (min(k, len(hu) - 1 - k) - _DEPTH + 1) * blocks.mm[0] / LAYER_MM
        share = np.float32(np.clip(inner, 0, 1)) if 2 * blocks.mm[0] < LAYER_MM else 1
        return _sums(blocks, hu[k], left, mark, marks.hu[k] * marks.sure[k] * share, kernel.gain, marks.version)

    for slab in slabs(len(hu)):
        # Of slices that the slab before looked at, too, the spectra are there.
        spectra = {k: spectra[k] for k in spectra if k >= slab.start - _DEPTH}
        new = range(max(spectra, default=-1) + 1, min(slab.stop + _DEPTH, len(hu)))
        spectra |= zip(new, map_slices(lambda number, new=new: spectrum(new[number]), len(new)), strict=True)
        yield from map_slices(lambda number, first=slab.start: look(first + number), slab.stop - slab.start)


def _sums(
    blocks: Blocks, hu: np.ndarray, left: np.ndarray, mark: np.ndarray, signs: np.ndarray, gain: float, version: int
) -> tuple[np.ndarray, ...]:
    """What :class:`Whitened` holds of one slice.

    :param left: of its voxels after the filter.
    :param mark: the same of what the watermark should have added.
    :param signs: what it should have added, in HU; 0 in voxels that say nothing of it.
    :param version: of the signs.
    """
    bare = left - np.float32(gain) * mark
    held = full = squares = np.zeros(blocks.shape[1:], np.float32)
    told = signs != 0
    if told.any():
        # Where the signs are missing, what is left without them is more than with them.
        rest = np.minimum(np.abs(left), np.abs(bare))
        lung = told & (hu < _LUNG_BELOW_HU)
        middle = 1.48 * float(np.median(rest[lung if lung.any() else told]))
        variance = smooth(np.square(np.minimum(rest, _EDGE_SD * middle)), _NEAR_VOXELS)
        variance = np.maximum(variance, max(_LEAST_VARIANCE, _LEAST_SHARE * middle**2))
        weights = signs * (rest < _CLIP_SD * np.sqrt(variance)) / variance
        turned = blocks.grid.turned
        chance = turned(np.square(of_signs(turned(bare * weights), version)))
        held, full, squares = (blocks.means(values) * BLOCK**2 for values in (left * weights, mark * weights, chance))
    logs = (np.log(np.abs(values) + _LEAST_FINE_HU) for values in (left, bare))
    return held, full, squares, *map(blocks.means, logs)
