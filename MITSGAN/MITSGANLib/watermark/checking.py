"""Where a scan carries a key's watermark, and where it should and does not: what was painted there afterwards.

In each block of 4x4 voxels the whitened voxels are correlated with the signs that the key, the place and the tile's HU
call for. In voxels that do not carry them every sign is as likely as its opposite, so the correlation over a window,
divided by the root of its sum of squares (of sums over slices that share a sign), has mean 0 and standard deviation 1
there, whatever the image. Where the
watermark is, it has the mean that the rest of the scan around shows.

Arrays of blocks are (slice, block row, block column), turned so that rows and columns run along growing LPS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..budget import Budget, allowed_in_slices
from ..errors import TargetError
from ..threads import each_slice
from ..volume import CTVolume, Provenance
from .embedding import DEFAULT_BUDGET
from .pattern import (
    OPEN_KEY,
    TILE,
    Grid,
    SlicePlace,
    WatermarkKey,
    block_sums,
    grid_secret,
    layers,
    signs,
    tile_levels,
)
from .places import Place, Places
from .whitening import whitening_kernel

Progress = Callable[[int, int], None]

UNKNOWN, MARKED, ALTERED = range(3)
"""Classes of blocks: too little signal to tell, the watermark is there, it should be there and is not."""

BLOCK = 4
"""Edge in voxels of the blocks that evidence is added up from."""

# Of what an attack leaves in the scan: a nodule of its own size, or the 20 mm that CT-GAN paints.
WINDOWS_MM = (9.0, 14.0, 20.0)
"""Edges of the windows whose loss is listed; for single places see :mod:`.places`."""
# The strength of the watermark that is left (lossy compression takes a part) is that of so wide a surrounding.
# Lung and all else lose by different amounts.
_SURROUNDING_MM = 60.0
_LUNG_BELOW_HU = -500.0
# A window tells where so many standard deviations are expected, and misses the watermark below both of these.
_TELLING, _MISSING_SD, _MISSING_SHARE = 8.0, 4.0, 0.3
# By chance once in 500 million scans that do not carry it.
_FOUND_SD = 6.0
# Lossy compression takes more from smooth tissue than from the rest, and nobody can tell that from forgery: 5:1
# JPEG 2000 leaves a quarter on LIDC-IDRI-0002, and 93 places would be listed in an untouched copy.
_DEGRADED_GAIN = 0.6
_SMALLEST_MM3 = 150.0
# The watermark itself adds to the noise that is measured, 1 % at the default budget. Where that would raise what is
# allowed from none to 1 HU, nothing was embedded.
_SURELY = 0.97
_LEAST_SIGNAL = 4.0  # squared standard deviations
_CLIP_SD = 3.0
_LEAST_VARIANCE = 0.25  # HU squared: rounding to whole HU alone leaves a third of it


@dataclass(frozen=True)
class Region:
    """A place where the watermark is missing.

    :param kji: voxel (slice, row, column) in its middle.
    :param lps_mm: the same in the patient.
    :param size_mm: extent along (slice, row, column) of the middles of windows without it, roughly what was painted.
    :param share: of the expected watermark that is left where least is left.
    """

    kji: tuple[int, int, int]
    lps_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    share: float

    def to_dict(self) -> dict[str, Any]:
        return {"kji": self.kji, "lps_mm": self.lps_mm, "size_mm": self.size_mm, "share": self.share}


@dataclass(frozen=True, eq=False)
class Check:
    """What a check found.

    :param sd: how many standard deviations the whole scan's watermark stands out.
    :param gain: its strength beside that of an unchanged copy, 1 where nothing was lost.
    :param seen: (windows, slices, block rows, block columns): how much of it a window of each size around each block
        holds, in standard deviations.
    :param expected: of the same shape: what it would be if the window were like its surroundings.
    :param classes: uint8 (slices, block rows, block columns), of :data:`UNKNOWN`, :data:`MARKED` and :data:`ALTERED`;
        all unknown without a watermark, or with one that has lost too much.
    :param regions: where it is missing, the largest first.
    :param places: what is left of it at any place that is asked about.
    """

    volume: CTVolume
    sd: float
    gain: float
    seen: np.ndarray
    expected: np.ndarray
    classes: np.ndarray
    regions: tuple[Region, ...]
    places: Places

    @property
    def is_found(self) -> bool:
        """Whether the scan carries the key's watermark at all."""
        return self.sd >= _FOUND_SD

    @property
    def telling_share(self) -> float:
        """Share of the blocks with any watermark where the check can tell."""
        return float((self.classes != UNKNOWN).sum() / max(1, (self.expected[-1] > 0).sum()))

    @property
    def is_degraded(self) -> bool:
        """Whether so much of it is lost everywhere that places where it is missing cannot be listed."""
        return self.is_found and self.gain < _DEGRADED_GAIN

    def at(self, kji: tuple[int, int, int]) -> Place:
        """What is left of it at a voxel (slice, row, column), in the window that shows a loss most.

        :raises TargetError: outside the scan.
        """
        return self.places.at(kji, self.block_of(kji))

    def block_of(self, kji: tuple[int, int, int]) -> tuple[int, int, int]:
        """The block of a voxel (slice, row, column); the nearest where rows or columns fill no tile.

        :raises TargetError: outside the scan.
        """
        if not self.volume.contains(kji):
            raise TargetError(f"Voxel {kji} lies outside the scan of {self.volume.shape} voxels; choose another.")
        flips = Grid.of(self.volume).flips
        inner = (
            (index if flip > 0 else size - 1 - index) // BLOCK
            for index, flip, size in zip(kji[1:], flips, self.volume.shape[1:], strict=True)
        )
        return kji[0], *(min(block, count - 1) for block, count in zip(inner, self.classes.shape[1:], strict=True))

    def class_volume(self) -> CTVolume:
        """A label map of the scan's geometry: the class of each voxel."""
        found = np.zeros(self.volume.shape, np.int16)
        grid = Grid.of(self.volume)
        for plane, classes in zip(found, self.classes, strict=True):
            large = _enlarge(classes, BLOCK)
            grid.turned(plane)[: large.shape[0], : large.shape[1]] = large
        return dataclasses.replace(self.volume, hu=found, provenance=Provenance())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "found": self.is_found,
            "sd": round(self.sd, 2),
            "gain": round(self.gain, 4),
            "degraded": self.is_degraded,
            "telling_share": round(self.telling_share, 4),
            "regions": [region.to_dict() for region in self.regions],
        }


def check_watermark(
    volume: CTVolume, key: WatermarkKey = OPEN_KEY, *, budget: Budget = DEFAULT_BUDGET, progress: Progress | None = None
) -> Check:
    """Look for the key's watermark everywhere in a scan of whole, uncropped slices on their own grid.

    :param budget: that the watermark was embedded with.
    :param progress: called with (finished slices, all slices); may raise ``CancelledError``.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    sums = _Sums.of(volume, key, budget, progress)
    total = float(sums.correlation.sum())
    sd = total / max(float(np.sqrt(sums.squares.sum())), 1e-12)
    gain = total / max(float(sums.full.sum()), 1e-12)
    mm = (volume.spacing_kji[0], *(BLOCK * step for step in volume.spacing_kji[1:]))
    left = _left(sums, mm)
    evidence = [_in_windows(sums, left, size_mm, mm) for size_mm in WINDOWS_MM]
    seen, expected = (np.stack(values) for values in zip(*evidence, strict=True))
    classes = np.zeros(sums.full.shape, np.uint8)
    regions: tuple[Region, ...] = ()
    if sd >= _FOUND_SD and gain >= _DEGRADED_GAIN:
        telling = (expected >= _TELLING) & (expected[0] > 0)
        missing = telling & (seen < np.maximum(_MISSING_SD, _MISSING_SHARE * expected))
        altered = _without_specks(missing.any(axis=0), float(np.prod(mm)))
        classes[telling.any(axis=0)] = MARKED
        classes[altered] = ALTERED
        share = np.where(telling, seen / np.where(telling, expected, 1), 1).min(axis=0)
        regions = _regions(volume, altered, share)
    places = Places.of(sums.correlation, sums.squares, sums.full, left, sums.is_lung, mm)
    return Check(volume, sd, gain, seen, expected, classes, regions, places)


def check_place(volume: CTVolume, kji: tuple[int, int, int], key: WatermarkKey = OPEN_KEY) -> Place | None:
    """What is left of the watermark around one voxel, from the slices around it alone; None where there is none.

    As :meth:`Check.at` of the whole scan, but for the filter, which is learned from fewer slices.

    :param kji: voxel (slice, row, column).
    :raises TargetError: outside the scan.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    if not volume.contains(kji):
        raise TargetError(f"Voxel {kji} lies outside the scan of {volume.shape} voxels; choose another.")
    reach = int(np.ceil((_SURROUNDING_MM + WINDOWS_MM[-1]) / 2 / volume.spacing_kji[0])) + 1
    first = max(0, kji[0] - reach)
    slab = dataclasses.replace(
        volume, hu=volume.hu[first : kji[0] + reach + 1], origin=tuple(volume.voxel_to_lps((first, 0, 0)))
    )
    check = check_watermark(slab, key)
    return dataclasses.replace(check.at((kji[0] - first, *kji[1:])), kji=kji) if check.is_found else None


def _around(values: np.ndarray, edge_mm: float, block_mm: Sequence[float]) -> np.ndarray:
    """Sum over a window with an odd number of blocks."""
    from scipy import ndimage

    size = [max(1, round((edge_mm / step - 1) / 2) * 2 + 1) for step in block_mm]
    return ndimage.uniform_filter(values, size, mode="constant") * np.prod(size)


def _left(sums: _Sums, block_mm: Sequence[float]) -> np.ndarray:
    """What the correlation of each block comes to where as much of the watermark is lost as around."""
    left = np.zeros_like(sums.full)
    for tissue in (sums.is_lung, ~sums.is_lung):
        near, wide = (_around(values * tissue, _SURROUNDING_MM, block_mm) for values in (sums.correlation, sums.full))
        gain = np.where(wide > _LEAST_SIGNAL, near / np.maximum(wide, _LEAST_SIGNAL), 0).clip(0)
        left += gain * sums.full * tissue
    return left


def _in_windows(
    sums: _Sums, left: np.ndarray, size_mm: float, block_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """What windows around each block hold of the watermark, and what they should, in standard deviations."""
    squares, full = (_around(values, size_mm, block_mm) for values in (sums.squares, sums.full))
    # Running sums leave crumbs where nothing is; and a standard deviation wants more than a voxel or two.
    any_signal = (full > _LEAST_SIGNAL) & (squares > _LEAST_SIGNAL)
    root = np.sqrt(np.where(any_signal, squares, 1))
    held = (_around(values, size_mm, block_mm) for values in (sums.correlation, left))
    seen, expected = (np.where(any_signal, values / root, 0).astype(np.float32) for values in held)
    return seen, expected


@dataclass(frozen=True, eq=False)
class _Sums:
    """Of each block.

    :param correlation: of the whitened voxels with the signs.
    :param squares: its variance where the watermark is not, from the same voxels.
    :param full: what the correlation comes to where nothing of the watermark is lost.
    :param is_lung: which blocks are lung.
    """

    correlation: np.ndarray
    squares: np.ndarray
    full: np.ndarray
    is_lung: np.ndarray

    @classmethod
    def of(cls, volume: CTVolume, key: WatermarkKey, budget: Budget, progress: Progress | None) -> _Sums:
        grid, padding = Grid.of(volume), volume.provenance.padding_hu

        share = budget.noise_share
        surely = dataclasses.replace(budget, noise_share=None if share is None else _SURELY * share)

        def allowed_in(slab: slice) -> np.ndarray:
            return allowed_in_slices(volume.hu[slab], surely, volume.spacing_kji, padding)

        some = np.unique(np.linspace(0, volume.shape[0] - 1, 12).astype(int))
        inside = np.concatenate([allowed_in(slice(k, k + 1)) > 0 for k in some])
        kernel = whitening_kernel(volume.hu[some], inside).astype(np.float32)
        kernel = kernel[:: grid.flips[0], :: grid.flips[1]]

        def look(k: int) -> _Slice:
            allowed = grid.turned(allowed_in(slice(k, k + 1))[0]).astype(np.float32)
            plane = grid.turned(volume.hu[k])
            return _best(_Slice.of(plane, allowed, kernel, key, place) for place in grid.places(k))

        found = []
        runs = _Runs(grid.turned(volume.hu[0]).shape)
        for k, best in enumerate(each_slice(look, volume.shape[0])):
            planes = best.product, runs.squares(best), best.expected**2
            is_lung = block_sums(grid.turned(volume.hu[k]), BLOCK) < _LUNG_BELOW_HU * BLOCK**2
            found.append((*(block_sums(values, BLOCK) for values in planes), is_lung))
            if progress:
                progress(k + 1, volume.shape[0])
        return cls(*(np.stack(values) for values in zip(*found, strict=True)))


@dataclass(frozen=True, eq=False)
class _Slice:
    """Of each voxel (row, column) of a slice along growing LPS.

    :param product: with its sign; what adds up to the correlation of the whitened voxels with the signs.
    :param expected: of the whitened voxel, in its standard deviations, where the watermark is.
    :param tiles: (layer and level, tile rows, tile columns): what the signs of a tile depend on.
    """

    product: np.ndarray
    expected: np.ndarray
    tiles: np.ndarray

    @classmethod
    def of(
        cls, plane: np.ndarray, allowed: np.ndarray, kernel: np.ndarray, key: WatermarkKey, place: SlicePlace
    ) -> _Slice:
        levels, unsure = tile_levels(plane)
        secret = grid_secret(key, place)
        tiles = np.stack([layers(secret, place.depth, levels.shape), levels])
        product, expected = np.zeros(plane.shape, np.float32), np.zeros(plane.shape, np.float32)
        box = _box_of_tiles(allowed)
        if box is not None:
            mark = signs(secret, place.depth, levels, plane.shape)[box] * allowed[box]
            found = _in_box(plane[box].astype(np.float32), mark, kernel)
            for values, part in zip((product, expected), found, strict=True):
                values[box] = part
                rows, columns = (size * TILE for size in levels.shape)
                values[:rows, :columns][_enlarge(unsure, TILE)] = 0
        return cls(product, expected, tiles)


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


def _in_box(values: np.ndarray, mark: np.ndarray, kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What :class:`_Slice` holds, of whole tiles.

    :param values: HU (rows, columns), float32.
    :param mark: what the watermark adds to them.
    """
    from scipy import ndimage

    whitened = ndimage.correlate(values, kernel)
    tile_rows, tile_columns = (size // TILE for size in values.shape)
    tiles = np.abs(whitened).reshape(tile_rows, TILE, tile_columns, TILE).transpose(0, 2, 1, 3)
    middle = 1.48 * np.median(tiles.reshape(tile_rows, tile_columns, TILE * TILE), axis=-1)
    limit = _CLIP_SD * np.maximum(middle, 0.5)[..., None, None]
    variance = np.maximum(np.mean(np.minimum(tiles, limit) ** 2, axis=(2, 3)), _LEAST_VARIANCE)
    spread = np.sqrt(_enlarge(variance, TILE))
    # At edges of anatomy and of the picture a voxel says nothing of the watermark.
    usable = np.abs(whitened) < _CLIP_SD * spread
    weighted = np.where(usable, whitened / spread**2, np.float32(0))
    # Back through the filter, so that each voxel's own sign can be factored out: then squares add up to the variance.
    product = mark * ndimage.correlate(weighted, kernel[::-1, ::-1])
    return product, ndimage.correlate(mark, kernel) * usable / spread


def _best(candidates: Iterator[_Slice]) -> _Slice:
    """The first, unless another clearly carries the watermark: the largest of several would be above 0 by chance."""
    first, *others = candidates
    for other in others:
        total = other.product.sum()
        if total >= _FOUND_SD * np.sqrt(np.square(other.product).sum()) and total > first.product.sum():
            return other
    return first


class _Runs:
    """The variance of products that share a sign with those of the slices before, taken slice by slice.

    A sign that stays the same over some slices multiplies the sum of what it multiplies in each, so the square of that
    sum is the variance; each slice has its own square of it, and twice its products with those before it.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._before = np.zeros(tuple(shape), np.float32)
        self._tiles: np.ndarray | None = None

    def squares(self, of: _Slice) -> np.ndarray:
        """The share of the variance of the slice that comes next, (rows, columns)."""
        if self._tiles is not None:
            other = _enlarge((of.tiles != self._tiles).any(axis=0), TILE)
            self._before[: other.shape[0], : other.shape[1]][other] = 0
        squares = of.product * (of.product + 2 * self._before)
        self._before += of.product
        self._tiles = of.tiles
        return squares


def _enlarge(blocks: np.ndarray, edge: int) -> np.ndarray:
    return blocks.repeat(edge, axis=0).repeat(edge, axis=1)


def _without_specks(missing: np.ndarray, block_mm3: float) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(missing, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * block_mm3
    sizes[0] = 0
    return sizes[labels] >= _SMALLEST_MM3


def _regions(volume: CTVolume, missing: np.ndarray, share: np.ndarray) -> tuple[Region, ...]:
    from scipy import ndimage

    labels, _ = ndimage.label(missing, np.ones((3, 3, 3)))
    flips = Grid.of(volume).flips
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        here = labels[box] == number
        middle = [part.start + index for part, index in zip(box, ndimage.center_of_mass(here), strict=True)]
        size = [(part.stop - part.start) for part in box]
        kji = [round(middle[0])]
        for axis, flip in zip((1, 2), flips, strict=True):
            index = int((middle[axis] + 0.5) * BLOCK)
            kji.append(index if flip > 0 else volume.shape[axis] - 1 - index)
            size[axis] *= BLOCK
        size_mm = tuple(round(float(n * step), 1) for n, step in zip(size, volume.spacing_kji, strict=True))
        lps = tuple(round(float(value), 1) for value in volume.voxel_to_lps(kji))
        found.append((here.sum(), Region(tuple(kji), lps, size_mm, round(float(share[box][here].min()), 3))))
    return tuple(region for _, region in sorted(found, key=lambda pair: -pair[0]))
