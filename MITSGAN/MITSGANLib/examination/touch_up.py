"""CT-GAN's own noise: its touch-up copies noise from one fixed place of every scan onto what it paints.

That place is sought everywhere, without being told where. It names the tool. What a removal leaves is the noise of a
whole region, lung and all. An injection keeps the brighter of forged and clean, so that its noise is left in what is
denser than lung alone, and there nearly all of it is: the nodule that a network gives is smooth. So dense tissue is
looked at by itself, and coarser than elsewhere, since that outlives compression.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.threads import map_slices, usable_threads
from ..scan.filters import box_means, correlate, smooth
from ..scan.regions import NOISE_SOURCE, TOUCH_UP_FACTOR
from ..scan.volume import LOWEST_HU
from .blocks import Blocks
from .copies import Copy, apart
from .suspicion import NEAR_MM

_NEAR_MM = 15.0  # from its source, where it is like itself
_FEW_VOXELS = 150
_LUNG_HU = -800.0  # what CT-GAN takes for noise lies below
_CLIP_SD = 3.0
_SIZES_MM = (10.0, 20.0, 36.0)
_FOUND_SD, _FOUND_IN_LOSSY_SD = 8.0, 12.0  # lossy compression repeats itself, and more so in one place than in another
_SHARP_SD = 6.0  # what is alike in anatomy, or of a fixed pattern, is so over some voxels

# In dense tissue: CT-GAN's own weight of what it forged, by its HU, and a Gaussian about as wide as its window.
_DENSE_HU, _DENSE_WIDTH_HU, _DENSE_VOXELS = -700.0, 70.0, 1.2
_SIGMA_MM, _REACH = 7.5, 2.0
_AROUND_LUNGS_MM = 8.0  # nodules at the pleura count as outside
_BAND_VOXELS = 0.7  # what is finer than this Gaussian is compared
_LEAST_SQUARES = 10.0  # in so little tissue nothing is alike by chance alone
# Untouched LIDC-IDRI-0028, LIDC-IDRI-0306 and Lung_Dx-A0001 (B), protected or not, reach 6.1, 6.0 and 6.0, and after
# 10:1 JPEG 2000 6.8, 5.8 and 7.3. 0.2 % of their places or fewer have 1.35 times what a tenth of them has.
_ADDED_SD, _ADDED_IN_LOSSY_SD = 7.5, 8.0
_ASKED_SD, _ASKED_PERCENTILE, _ASKED_TIMES = 4.8, 90, 1.35
_SHARP, _UNSHARP_SD = 0.6, 4.0


@dataclass(frozen=True, eq=False)
class TouchUp:
    """Where CT-GAN's noise is.

    :param source_kji: voxel (slice, row, column) in the middle of the place that it is copied from.
    :param copies: places that are listed, the surest first.
    :param dense: float32 (slices, block rows, block columns): how much the dense tissue around is like the source, at
        most, within :data:`.suspicion.NEAR_MM` of the block; 1 is an alarm at a place that somebody asks about.
    """

    source_kji: tuple[int, int, int]
    copies: tuple[Copy, ...]
    dense: np.ndarray


def find_touch_up(
    blocks: Blocks, fine: np.ndarray, kernel: np.ndarray, *, is_lossy: bool | None = None
) -> TouchUp | None:
    """Look everywhere for the noise of CT-GAN's fixed source; None where the source has no lung.

    :param fine: of :func:`.noise.residual`.
    :param kernel: that gave it, of :func:`.noise.fine_kernel`.
    :param is_lossy: whether the copy was compressed or smoothed; None where nothing tells.
    """
    from scipy import ndimage

    source = _Source.of(blocks, blocks.lungs)
    if np.count_nonzero(blocks.volume.hu[source.box_around()] < _LUNG_HU) < _FEW_VOXELS:
        return None
    removed = _in_all_tissue(source, fine, _FOUND_IN_LOSSY_SD if is_lossy else _FOUND_SD)
    if removed is None:
        return None

    def most_within(values: np.ndarray, reach_mm: float) -> np.ndarray:
        return ndimage.maximum_filter(values, [2 * max(1, round(reach_mm / edge)) + 1 for edge in blocks.mm])

    wide = _Source.of(blocks, most_within(blocks.lungs, _AROUND_LUNGS_MM))
    added, bands = _in_dense_tissue(wide, fine, kernel, _ADDED_SD if is_lossy is False else _ADDED_IN_LOSSY_SD)
    dense = np.zeros(blocks.shape, np.float32)
    for dense_sd in bands:
        near = most_within(dense_sd, NEAR_MM)
        asked_sd = max(_ASKED_SD, _ASKED_TIMES * float(np.percentile(near[blocks.lungs], _ASKED_PERCENTILE)))
        np.maximum(dense, near / asked_sd, out=dense)
    listed = apart([*removed, *added], np.array(blocks.volume.spacing_kji))
    return TouchUp(tuple(int(at) for at in source.kji), tuple(listed), dense)


def touch_up_edge(spacing_kji: Sequence[float]) -> int:
    """Voxels along every axis that CT-GAN's touch-up changes: as many along thick slices as along the finest axis."""
    from ..scan.cubes import cube_shape

    return int(max(cube_shape(spacing_kji)) * TOUCH_UP_FACTOR)


@dataclass(frozen=True, eq=False)
class _Source:
    """The place that noise is copied from, and a box around the lungs and it.

    :param mask: bool of the scan's shape, the lungs.
    :param kji: voxel (slice, row, column) in its middle.
    :param mm: voxel size along the same axes.
    :param low: first voxel of the box.
    """

    blocks: Blocks
    mask: np.ndarray
    kji: np.ndarray
    mm: np.ndarray
    edge: int
    low: np.ndarray
    box: tuple[slice, slice, slice]

    @classmethod
    def of(cls, blocks: Blocks, lungs: np.ndarray) -> _Source:
        """That of a scan."""
        volume = blocks.volume
        kji = np.array([int(size * share) for size, share in zip(volume.shape, NOISE_SOURCE, strict=True)])
        edge = touch_up_edge(volume.spacing_kji)
        mask = blocks.voxels(lungs).astype(bool)
        low, high = [], []
        for axis in range(3):
            at = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
            ends = [at[0], at[-1] + 1] if at.size else [kji[axis], kji[axis] + 1]
            low.append(max(0, min(ends[0], kji[axis] - edge // 2)))
            high.append(min(mask.shape[axis], max(ends[1], kji[axis] + edge // 2 + 1)))
        return cls(blocks, mask, kji, np.array(volume.spacing_kji), edge, np.array(low), tuple(map(slice, low, high)))

    def box_around(self, size_mm: float | None = None) -> tuple[slice, slice, slice]:
        """The part of the scan that is copied: all of it, or less."""
        half = np.full(3, self.edge // 2)
        if size_mm is not None:
            half = np.minimum(np.maximum(np.round(size_mm / 2 / self.mm), 1), half).astype(int)
        low, high = np.maximum(self.kji - half, 0), np.minimum(self.kji + half + 1, self.mask.shape)
        return tuple(map(slice, low.tolist(), high.tolist()))

    def before(self, part: tuple[slice, slice, slice]) -> tuple[int, int, int]:
        """How many voxels of a part of the scan lie before the source's middle along each axis."""
        return tuple(int(at - one.start) for at, one in zip(self.kji, part, strict=True))

    def near(self, kji: Sequence[int]) -> tuple[slice, slice, slice]:
        """What of the box is as near to a voxel of it as places are apart."""
        reach = np.maximum(np.round(_NEAR_MM / self.mm), 1).astype(int)
        return tuple(slice(max(0, at - n), at + n + 1) for at, n in zip(kji, reach, strict=True))

    def peaks(self, sd: np.ndarray, least_sd: float) -> Iterator[tuple[Copy, float]]:
        """Places of the box that stand out, the surest first, with the most that is 3 or 4 voxels from each.

        :param sd: of the box, which is spoiled.
        """
        while True:
            peak = np.unravel_index(int(sd.argmax()), sd.shape)
            most = float(sd[peak])
            if most < least_sd:
                return
            # The most 3 or 4 voxels from there in the slice, where noise has nothing in common any more.
            outer, inner = (tuple(slice(max(0, at - n), at + n + 1) for at in peak[1:]) for n in (4, 2))
            around = sd[peak[0]].copy()
            around[inner] = -np.inf
            beside = float(around[outer].max())
            sd[self.near(peak)] = 0
            kji, source = (tuple(int(i) for i in at) for at in (peak + self.low, self.kji))
            yield Copy(kji, source, most, (0.0,) * 3, by_touch_up=True), beside


class _Correlation:
    """Sums of products of a box's voxels with a template's, with this at every voxel of the box."""

    def __init__(self, values: np.ndarray) -> None:
        from scipy import fft

        self._inside = tuple(map(slice, values.shape))
        self._shape = tuple(fft.next_fast_len(int(size), real=True) for size in values.shape)
        self._spectrum = fft.rfftn(values, self._shape, workers=usable_threads())

    def sums(self, template: np.ndarray, middle: Sequence[int]) -> np.ndarray:
        """
        :param middle: voxel (slice, row, column) of the template that is put on each of the box.
        """
        from scipy import fft

        # As ``rfftn`` of the template in a box of zeros, its middle in the corner; lines of zeros are left out.
        found = template
        for axis, transform in ((2, fft.rfft), (0, fft.fft), (1, fft.fft)):
            wide = np.zeros((*found.shape[:axis], self._shape[axis], *found.shape[axis + 1 :]), found.dtype)
            at = (np.arange(found.shape[axis]) - middle[axis]) % self._shape[axis]
            wide[(*[slice(None)] * axis, at)] = found
            found = transform(wide, axis=axis, overwrite_x=True, workers=usable_threads())
        np.conj(found, out=found)
        found *= self._spectrum
        return fft.irfftn(found, self._shape, workers=usable_threads(), overwrite_x=True)[self._inside]


def _in_all_tissue(source: _Source, fine: np.ndarray, least_sd: float) -> list[Copy] | None:
    """Where whole regions have the source's noise, as removals leave it; None where the source has too little."""
    inside = source.mask[source.box]
    noise = _normalized(fine[source.box])
    noise[~inside] = 0
    usable = noise * (source.blocks.volume.hu[source.box] < _LUNG_HU)
    correlation = _Correlation(noise)
    found: list[Copy] = []
    any_template = False
    for size_mm in _SIZES_MM:
        part = source.box_around(size_mm)
        template = usable[tuple(slice(one.start - a, one.stop - a) for one, a in zip(part, source.low, strict=True))]
        if np.count_nonzero(template) < _FEW_VOXELS:
            continue
        any_template = True
        both = correlation.sums(template, source.before(part))
        both /= np.sqrt(np.sum(template**2))
        both /= max(1.0, 1.48 * float(np.median(np.abs(both[::2, ::3, ::3][inside[::2, ::3, ::3]]))))
        both[~inside] = 0
        both[source.near(source.kji - source.low)] = 0
        for copy, beside in source.peaks(both, least_sd):
            if copy.sd - beside >= _SHARP_SD:
                found.append(dataclasses.replace(copy, size_mm=(size_mm,) * 3))
    return found if any_template else None


def _in_dense_tissue(
    source: _Source, fine: np.ndarray, kernel: np.ndarray, least_sd: float
) -> tuple[list[Copy], list[np.ndarray]]:
    """Where what is denser than lung has the source's noise, as injections leave it; and how much of it, by block.

    In two bands: ``fine``, which tells most as long as nothing was compressed, and one that outlives compression.
    """
    blocks = source.blocks
    hu = np.maximum(blocks.volume.hu[source.box], LOWEST_HU)

    def weigh(k: int) -> np.ndarray:
        dense = (smooth(hu[k].astype(np.float32), _DENSE_VOXELS) - _DENSE_HU) / _DENSE_WIDTH_HU
        return source.mask[source.box][k] / (1 + np.exp(-dense.clip(-30, 30)))

    def coarser(plane: np.ndarray) -> np.ndarray:
        return plane - smooth(plane, _BAND_VOXELS)

    weights = np.stack(map_slices(weigh, len(hu)))
    noise = np.maximum(blocks.volume.hu[source.box_around(2 * _REACH * _SIGMA_MM)], LOWEST_HU).astype(np.float32)
    if not (noise < _LUNG_HU).any():  # lung lies farther from its middle alone
        return [], []
    noise[noise >= _LUNG_HU] = noise[noise < _LUNG_HU].mean()
    bands = [
        (lambda k: fine[source.box][k], lambda plane: correlate(plane, kernel)),
        (lambda k: coarser(hu[k].astype(np.float32)), coarser),
    ]
    found, of_blocks = [], []
    size_mm = (2 * _SIGMA_MM,) * 3
    plane = np.zeros(blocks.volume.shape[1:], np.float32)
    for band, of_source in bands:
        sd = _alike(source, weights, band, np.stack([of_source(one) for one in noise]))
        sd[source.near(source.kji - source.low)] = 0
        _keep_sharp(sd)
        of_band = np.zeros(blocks.shape, np.float32)
        for k, values in enumerate(sd, start=int(source.low[0])):
            plane[source.box[1:]] = values
            of_band[k] = blocks.most(plane)
        of_blocks.append(of_band)
        found += [dataclasses.replace(copy, size_mm=size_mm) for copy, _ in source.peaks(sd, least_sd)]
    return found, of_blocks


def _keep_sharp(sd: np.ndarray) -> None:
    """Lower what is alike over several voxels of a slice, as anatomy is and copied noise is not."""
    at = np.nonzero(sd > _UNSHARP_SD)
    beside = np.zeros(len(at[0]), np.float32)
    for j, i in np.ndindex(9, 9):
        if max(abs(j - 4), abs(i - 4)) > 2:
            rows, columns = (
                np.clip(index + by - 4, 0, size - 1)
                for index, by, size in zip(at[1:], (j, i), sd.shape[1:], strict=True)
            )
            np.maximum(beside, sd[at[0], rows, columns], out=beside)
    blunt = beside > _SHARP * sd[at]
    sd[tuple(index[blunt] for index in at)] = _UNSHARP_SD


def _alike(source: _Source, weights: np.ndarray, band: Callable[[int], np.ndarray], noise: np.ndarray) -> np.ndarray:
    """By how many standard deviations the surroundings of each voxel of the box are like the source, float32.

    :param weights: of each voxel of the box.
    :param band: what is compared of a slice of the box.
    :param noise: the same of what lies within some standard deviations of :data:`_SIGMA_MM` of the source.
    """
    part = source.box_around(2 * _REACH * _SIGMA_MM)
    is_noise = source.blocks.volume.hu[part] < _LUNG_HU
    template = np.clip(noise / (1.25 * float(np.abs(noise[is_noise]).mean()) + 0.1), -_CLIP_SD, _CLIP_SD)
    axes = np.meshgrid(
        *(np.arange(one.start, one.stop) - at for one, at in zip(part, source.kji, strict=True)), indexing="ij"
    )
    away = sum(np.square(axis * mm) for axis, mm in zip(axes, source.mm, strict=True)) / _SIGMA_MM**2
    template = (template * np.exp(-0.5 * away) * (away < _REACH**2)).astype(np.float32)
    values = np.stack(map_slices(lambda k: _normal(band(k)) * weights[k], len(weights)))
    sd = _Correlation(values).sums(template, source.before(part))
    squares = _Correlation(np.square(values, out=values)).sums(np.square(template), source.before(part))
    told = source.mask[source.box] & (squares > _LEAST_SQUARES)
    sd = np.where(told, sd / np.sqrt(np.maximum(squares, _LEAST_SQUARES)), 0)
    if told.any():
        sd /= max(1.0, 1.48 * float(np.median(np.abs(sd[told][::5]))))
    return sd


def _normal(band: np.ndarray) -> np.ndarray:
    """A slice in parts of what is usual within 9 voxels, clipped, so that no edge decides."""
    strength = np.abs(band)
    limit = _CLIP_SD * 1.48 * float(np.median(strength[::2, ::2]))
    usual = 1.25 * box_means(np.minimum(strength, limit), 9)
    return np.clip(band / np.maximum(usual, 1), -_CLIP_SD, _CLIP_SD)


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
