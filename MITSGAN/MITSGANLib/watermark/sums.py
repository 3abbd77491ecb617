"""The evidence for a watermark in each block of a scan, before anybody decides on it.

In each block of 4x4 voxels the whitened voxels are correlated with the signs that the key, the place and the tile's HU
call for. In voxels that do not carry them every sign is as likely as its opposite, so the correlation over a window,
divided by the root of its sum of squares (of sums over slices that share a sign), has mean 0 and standard deviation 1
there, whatever the image. Where the watermark is, it has the mean that the rest of the scan around shows.

Arrays of blocks are (slice, block row, block column), turned so that rows and columns run along growing LPS.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..budget.body import body_mask
from ..budget.budget import Budget, allowed_change
from ..budget.noise import LocalNoise, hiding_noise, hiding_noise_in_lungs, local_noise
from ..runtime.progress import Progress
from ..runtime.threads import each_slice, map_slices
from ..scan.filters import box_means, smooth
from ..scan.volume import LOWEST_HU, CTVolume
from .blocks import BLOCK, BlockGrid, enlarge, sum_in_boxes
from .pattern import TILE, Grid, SlicePlace, WatermarkKey, block_sums, grid_secret, layers, of_signs, signs, tile_levels
from .whitening import whitening_kernel

SURROUNDING_MM = 60.0
"""Width of the surrounding that the watermark's remaining strength is measured in: compression takes a part."""

FOUND_SD = 6.0
"""What stands out by more carries the watermark: by chance once in 500 million scans."""

# Lung and all else lose by different amounts.
_LUNG_BELOW_HU = -500.0
# The watermark itself adds to the noise that is measured, 1 % at the default budget. Where that would raise what is
# allowed from none to 1 HU, nothing was embedded.
_SURELY = 0.97
_LUNG_MM, _LUNG_SHARE = 30.0, 0.5  # what has so much of it around belongs to the lung
_LEAST_SIGNAL = 4.0  # squared standard deviations
_CLIP_SD = 3.0
_LEAST_VARIANCE = 0.25  # HU squared: rounding to whole HU alone leaves a third of it
_LEAST_SHARE = 0.2  # of what is usual in a slice; what is painted flat would promise signs beyond all measure
# Painted tissue has little noise, so that no watermark would be expected in it, nor 30 mm around. Where the noise is
# less than this share of the same tissue's around, it is taken for this other one.
_HOLE_SHARE, _HOLE_NOISE = 0.45, 0.85
_TISSUE_MM = 80.0
_LEAST_HIDDEN = 0.4
_PAINT_MM, _PAINT_SHARE, _PULLED_MM = 10.0, 0.7, 32.0


@dataclass(frozen=True, eq=False)
class Reading:
    """All that the signs of a scan's slices are read with.

    :param kernel: of :func:`~.whitening.whitening_kernel`, along growing LPS.
    :param fading: weights (rows, columns) that the copy's processing left of each sign, along growing LPS; None where
        nothing is lost. See :mod:`.fading`.
    """

    volume: CTVolume
    key: WatermarkKey
    budget: Budget
    noise: LocalNoise | None
    kernel: np.ndarray
    fading: np.ndarray | None = None

    @classmethod
    def bare(cls, volume: CTVolume, key: WatermarkKey, budget: Budget) -> Reading:
        """Measure a scan's noise, for whoever has a filter of his own.

        :param budget: that the watermark was put in with.
        """
        share = budget.noise_share
        surely = dataclasses.replace(budget, noise_share=None if share is None else _SURELY * share)
        noise = None if share is None else _noise_of_tissue(volume)
        return cls(volume, key, surely, noise, np.zeros((1, 1), np.float32))

    @classmethod
    def of(cls, volume: CTVolume, key: WatermarkKey, budget: Budget) -> Reading:
        """Learn the filter of a scan.

        :param budget: that the watermark was put in with.
        """
        reading = cls.bare(volume, key, budget)
        some = np.unique(np.linspace(0, volume.shape[0] - 1, 12).astype(int))
        inside = np.concatenate([reading.allowed_in(k) > 0 for k in some])
        kernel = whitening_kernel(volume.hu[some], inside).astype(np.float32)
        flips = reading.grid.flips
        return dataclasses.replace(reading, kernel=kernel[:: flips[0], :: flips[1]])

    @functools.cached_property
    def grid(self) -> Grid:
        """Where the scan's slices lie."""
        return Grid.of(self.volume)

    def allowed_in(self, k: int) -> np.ndarray:
        """What the watermark may have changed in slice ``k`` at most, int16 (1, rows, columns) as it is stored."""
        part, padding = slice(k, k + 1), self.volume.provenance.padding_hu
        hu = self.volume.hu[part]
        mask = body_mask(hu, padding, self.volume.spacing_kji)
        if self.noise is None:
            return allowed_change(hu, self.budget, mask, padding)
        noise_hu = self.noise.at((part,))[0]
        # What is painted flat hides nothing, and should have been marked all the same.
        noise_hu = np.maximum(hiding_noise(hu[0], noise_hu, mask[0]), np.float32(_LEAST_HIDDEN) * noise_hu)
        lungs_hu = hiding_noise_in_lungs(hu[0], noise_hu, mask[0], self.volume.spacing_kji)
        return allowed_change(hu, self.budget, mask, padding, noise_hu[None], lungs_hu[None])

    def look(self, k: int) -> SliceSigns:
        """What slice ``k`` tells of the signs at its first place, or at another that clearly carries the watermark.

        The largest of several would be above 0 by chance.
        """
        first, *others = (marked.through(self.fading) for marked in self.marked(k))
        for other in others:
            total = other.product.sum()
            if total >= FOUND_SD * np.sqrt(np.square(other.product).sum()) and total > first.product.sum():
                return other
        return first

    def unsigned(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Slice ``k`` along growing LPS, and what each voxel would add to the correlation if its sign were +1.

        :return: int16 and float32 (rows, columns).
        """
        one = self._whitened(k)
        return one.plane, one.product(one.allowed, self.fading)

    def marked(self, k: int) -> Iterator[MarkedSlice]:
        """Slice ``k`` beside its signs, for each place where it may lie; mostly one."""
        one = self._whitened(k)
        for place in self.grid.places(k):
            yield MarkedSlice.of(one, self.key, place)

    def _whitened(self, k: int) -> _WhitenedSlice:
        allowed = self.grid.turned(self.allowed_in(k)[0]).astype(np.float32)
        return _WhitenedSlice.of(self.grid.turned(self.volume.hu[k]), allowed, self.kernel)


@dataclass(frozen=True, eq=False)
class Sums:
    """What the voxels of each block add up to; arrays of blocks.

    :param correlation: of the whitened voxels with the signs.
    :param squares: its variance where the watermark is not, from the same voxels.
    :param full: what the correlation comes to where nothing of the watermark is lost.
    :param is_lung: which blocks are lung.
    """

    blocks: BlockGrid
    correlation: np.ndarray
    squares: np.ndarray
    full: np.ndarray
    is_lung: np.ndarray

    @classmethod
    def of(cls, reading: Reading, progress: Progress | None = None) -> Sums:
        """Add up a scan's blocks, slice after slice."""
        volume, grid = reading.volume, reading.grid
        found = []
        runs = _Runs(volume.shape[1:])
        for k, best in enumerate(each_slice(reading.look, volume.shape[0])):
            planes = best.product, runs.squares(best), best.expected**2
            is_lung = block_sums(grid.turned(volume.hu[k]), BLOCK) < _LUNG_BELOW_HU * BLOCK**2
            found.append((*(block_sums(values, BLOCK) for values in planes), is_lung))
            if progress:
                progress(k + 1, volume.shape[0])
        return cls(BlockGrid.of(volume), *(np.stack(values) for values in zip(*found, strict=True)))

    @property
    def sd(self) -> float:
        """How many standard deviations the whole scan's watermark stands out."""
        return float(self.correlation.sum()) / max(float(np.sqrt(self.squares.sum())), 1e-12)

    @property
    def gain(self) -> float:
        """The share of it that is left in the whole scan."""
        return float(self.correlation.sum()) / max(float(self.full.sum()), 1e-12)

    @functools.cached_property
    def left(self) -> np.ndarray:
        """What the correlation of each block comes to where as much of the watermark is lost as around."""
        left = np.zeros_like(self.full)
        for tissue in (self.is_lung, ~self.is_lung):
            parts = self.correlation * tissue, self.full * tissue
            near, wide = (self.blocks.in_boxes(values, SURROUNDING_MM) for values in parts)
            gain = np.where(wide > _LEAST_SIGNAL, near / np.maximum(wide, _LEAST_SIGNAL), 0).clip(0)
            left += gain * self.full * tissue
        return left

    def in_boxes(self, edge_mm: float) -> tuple[np.ndarray, np.ndarray]:
        """What boxes around each block hold of the watermark, and what they should, in standard deviations."""
        in_boxes = self.blocks.in_boxes
        squares, full = (in_boxes(values, edge_mm) for values in (self.squares, self.full))
        # Products with slices before may be negative, so that few of them may come to too little, and all else to too
        # much.
        wide_squares, wide_full = (in_boxes(values, SURROUNDING_MM) for values in (self.squares, self.full))
        squares = np.maximum(squares, full * (wide_squares / np.maximum(wide_full, _LEAST_SIGNAL)))
        # Running sums leave crumbs where nothing is; and a standard deviation wants more than a voxel or two.
        any_signal = (full > _LEAST_SIGNAL) & (squares > _LEAST_SIGNAL)
        root = np.sqrt(np.where(any_signal, squares, 1))
        held = (in_boxes(values, edge_mm) for values in (self.correlation, self.left))
        seen, expected = (np.where(any_signal, values / root, 0).astype(np.float32) for values in held)
        return seen, expected

    def in_lungs(self, sigma_mm: float) -> tuple[np.ndarray, np.ndarray]:
        """What Gaussian surroundings hold of the watermark within the lungs, and should, in standard deviations."""
        blocks = self.blocks
        near = blocks.in_boxes(self.is_lung.astype(np.float32), _LUNG_MM)
        where = self.is_lung | (near > _LUNG_SHARE * blocks.in_boxes(np.ones_like(near), _LUNG_MM))
        seen, expected = (blocks.around(values * where, sigma_mm) for values in (self.correlation, self.left))
        squares = blocks.around(self.squares.clip(0) * where, sigma_mm, power=2)
        root = np.sqrt(np.maximum(squares, _LEAST_SIGNAL))
        return seen / root, expected / root


@dataclass(frozen=True, eq=False)
class SliceSigns:
    """What each voxel (row, column) of a slice, along growing LPS, tells of the signs.

    :param product: with its sign; what adds up to the correlation of the whitened voxels with the signs. What voxels
        that share a sign come to stands at the first of them, as by chance it is of either sign.
    :param expected: of the whitened voxel, in its standard deviations, where the watermark is.
    :param tiles: (layer and level, tile rows, tile columns): what the signs of a tile depend on.
    """

    product: np.ndarray
    expected: np.ndarray
    tiles: np.ndarray


def _noise_of_tissue(volume: CTVolume) -> LocalNoise:
    """The noise that the budget was measured by, also where what is painted has less: that of the same tissue around.

    :return: as of :func:`~MITSGANLib.budget.noise.local_noise`.
    """
    from scipy import ndimage

    padding = volume.provenance.padding_hu
    parts = map_slices(lambda k: local_noise(volume.hu[k : k + 1], volume.spacing_kji, padding), volume.shape[0])
    first = parts[0]
    grid_hu = np.concatenate([part.grid_hu for part in parts])
    points = [first.first + first.step * np.arange(count) for count in grid_hu.shape[1:]]

    def level(k: int) -> np.ndarray:
        means = box_means(np.maximum(volume.hu[k], LOWEST_HU).astype(np.float32), 2 * first.first + 1)
        return means[np.ix_(*points)]

    is_lung = np.stack(map_slices(level, volume.shape[0])) < _LUNG_BELOW_HU
    block_mm = (volume.spacing_kji[0], *(first.step * mm for mm in volume.spacing_kji[1:]))
    holes, noise_hu = _below_tissue(grid_hu, grid_hu > 0, is_lung, block_mm)
    if not holes.any():
        return dataclasses.replace(first, grid_hu=grid_hu, shape=volume.shape)

    def roughness(k: int) -> np.ndarray:
        plane = np.maximum(volume.hu[k], LOWEST_HU).astype(np.float32)
        rest = plane - smooth(plane, 2.0, 4.0)
        return np.sqrt(box_means(rest * rest, 2 * first.first + 1).clip(0))[np.ix_(*points)]

    # The map is pulled down by a single flat pocket, of which lungs have some. Paint is flat all over.
    rough = np.stack(map_slices(roughness, volume.shape[0]))
    flat, _ = _below_tissue(rough, grid_hu > 0, is_lung, block_mm)
    size = [max(1, round(_PAINT_MM / step)) for step in block_mm]
    painted = ndimage.uniform_filter((flat & holes).astype(np.float32), size) > _PAINT_SHARE
    near = ndimage.maximum_filter(painted, [2 * round(_PULLED_MM / step) + 1 for step in block_mm])
    return dataclasses.replace(
        first, grid_hu=np.where(holes & near, np.float32(_HOLE_NOISE) * noise_hu, grid_hu), shape=volume.shape
    )


def _below_tissue(
    values: np.ndarray, known: np.ndarray, is_lung: np.ndarray, block_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where values are far below those of the same tissue around, and these: both (slices, rows, columns)."""
    expected = np.zeros_like(values)
    for tissue in (is_lung, ~is_lung):
        total, count = (
            sum_in_boxes(part.astype(np.float32), _TISSUE_MM, block_mm)
            for part in (values * (tissue & known), tissue & known)
        )
        np.copyto(expected, total / np.maximum(count, 1), where=tissue)
    return known & (values < _HOLE_SHARE * expected), expected


def _box_of_tiles(allowed: np.ndarray) -> tuple[slice, slice] | None:
    """Whole tiles of a slice around all that may be marked, with two more tiles around for the filter; None for none.

    What depends on anything outside of the box is multiplied by 0.
    """
    rows, columns = (np.flatnonzero(allowed.any(axis=axis)) for axis in (1, 0))
    whole = [size // TILE for size in allowed.shape]
    if not rows.size or not min(whole):
        return None
    ends = (
        (max(0, at[0] // TILE - 2), min(count, at[-1] // TILE + 3))
        for at, count in zip((rows, columns), whole, strict=True)
    )
    box = tuple(slice(start * TILE, stop * TILE) for start, stop in ends)
    return box if all(part.start < part.stop for part in box) else None


@dataclass(frozen=True, eq=False)
class _WhitenedSlice:
    """A slice, and its voxels after the filter; arrays (rows, columns) along growing LPS.

    :param allowed: what the watermark may add at most, in HU.
    :param box: of the slice, whole tiles around all that may be marked; None where nothing may.
    :param back: the whitened voxels of the box, weighted, and back through the filter.
    :param weight: of each whitened voxel of the box, in parts of its standard deviation.
    """

    plane: np.ndarray
    allowed: np.ndarray
    kernel: np.ndarray
    box: tuple[slice, slice] | None
    back: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, plane: np.ndarray, allowed: np.ndarray, kernel: np.ndarray) -> _WhitenedSlice:
        from scipy import ndimage

        box = _box_of_tiles(allowed)
        if box is None:
            return cls(plane, allowed, kernel, None, *np.zeros((2, 0, 0), np.float32))
        whitened = ndimage.correlate(plane[box].astype(np.float32), kernel)
        tile_rows, tile_columns = (size // TILE for size in whitened.shape)
        tiles = np.abs(whitened).reshape(tile_rows, TILE, tile_columns, TILE).transpose(0, 2, 1, 3)
        middle = 1.48 * np.median(tiles.reshape(tile_rows, tile_columns, TILE * TILE), axis=-1)
        limit = _CLIP_SD * np.maximum(middle, 0.5)[..., None, None]
        variance = np.mean(np.minimum(tiles, limit) ** 2, axis=(2, 3))
        marked = allowed[box].reshape(tile_rows, TILE, tile_columns, TILE).any(axis=(1, 3))
        usual = float(np.median(variance[marked])) if marked.any() else 0.0
        variance = np.maximum(variance, max(_LEAST_VARIANCE, _LEAST_SHARE * usual))
        spread = np.sqrt(enlarge(variance, TILE))
        # At edges of anatomy and of the picture a voxel says nothing of the watermark.
        usable = np.abs(whitened) < _CLIP_SD * spread
        weighted = np.where(usable, whitened / spread**2, np.float32(0))
        back = ndimage.correlate(weighted, kernel[::-1, ::-1])
        return cls(plane, allowed, kernel, box, back, usable / spread)

    def product(self, mark: np.ndarray, fading: np.ndarray | None) -> np.ndarray:
        """What each voxel adds to the correlation with marks in HU that went through a filter, float32."""
        from scipy import ndimage

        product = np.zeros(self.plane.shape, np.float32)
        if self.box is not None:
            # Each voxel's own sign can be factored out: then squares add up to the variance.
            back = self.back if fading is None else ndimage.correlate(self.back, fading[::-1, ::-1])
            product[self.box] = mark[self.box] * back
        return product

    def expected(self, mark: np.ndarray, fading: np.ndarray | None) -> np.ndarray:
        """What such marks come to in each voxel, in its standard deviations, float32."""
        from scipy import ndimage

        expected = np.zeros(self.plane.shape, np.float32)
        if self.box is not None:
            left = mark[self.box] if fading is None else ndimage.correlate(mark[self.box], fading)
            expected[self.box] = ndimage.correlate(left, self.kernel) * self.weight
        return expected


@dataclass(frozen=True, eq=False)
class MarkedSlice:
    """A slice, whitened, beside what the watermark adds to it; arrays (rows, columns) along growing LPS.

    :param mark: what the watermark adds, in HU.
    :param unsure: which tiles may have other signs.
    :param tiles: of :class:`SliceSigns`.
    :param version: of the signs.
    """

    whitened: _WhitenedSlice
    mark: np.ndarray
    unsure: np.ndarray
    tiles: np.ndarray
    version: int

    @classmethod
    def of(cls, whitened: _WhitenedSlice, key: WatermarkKey, place: SlicePlace) -> MarkedSlice:
        """A slice at its place."""
        levels, unsure = tile_levels(whitened.plane)
        secret = grid_secret(key, place)
        tiles = np.stack([layers(secret, place.depth, levels.shape), levels])
        mark = signs(secret, place.depth, levels, whitened.plane.shape) * whitened.allowed
        return cls(whitened, mark, unsure, tiles, key.version)

    def through(self, fading: np.ndarray | None) -> SliceSigns:
        """What its voxels tell of signs that went through a filter; see :class:`Reading`."""
        product, expected = (look(self.mark, fading) for look in (self.whitened.product, self.whitened.expected))
        rows, columns = (size * TILE for size in self.unsure.shape)
        for values in (product, expected):
            values[:rows, :columns][enlarge(self.unsure, TILE)] = 0
        return SliceSigns(of_signs(product, self.version), expected, self.tiles)


class _Runs:
    """The variance of products that share a sign with those of the slices before, taken slice by slice.

    A sign that stays the same over some slices multiplies the sum of what it multiplies in each, so the square of that
    sum is the variance; each slice has its own square of it, and twice its products with those before it.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._before = np.zeros(tuple(shape), np.float32)
        self._tiles: np.ndarray | None = None

    def squares(self, of: SliceSigns) -> np.ndarray:
        """The share of the variance of the slice that comes next, (rows, columns)."""
        if self._tiles is not None:
            other = enlarge((of.tiles != self._tiles).any(axis=0), TILE)
            self._before[: other.shape[0], : other.shape[1]][other] = 0
        squares = of.product * (of.product + 2 * self._before)
        self._before += of.product
        self._tiles = of.tiles
        return squares
