"""Scanner noise in HU: one number for each slice, and a map of it from place to place.

Arrays are (slice, row, column). Everything here depends on each slice alone, so a part of a series gives what the whole
gives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..runtime.threads import map_slices
from ..scan.cubes import Box, box_around, within
from ..scan.volume import HIGHEST_HU, LOWEST_HU, as_volume, is_padding
from ..scan.windows import LUNG, MEDIASTINUM, Window
from .body import lung_share

# Soft tissue in which noise is measured: fat is left out (its strands look like noise), and so are bone and contrast.
_NOISE_TISSUE_HU = (-50.0, 150.0)
_NOISE_WINDOW_MM = 7.0
_NOISE_BIN_HU = 0.5
# Less soft tissue than this in a slice and the mode wanders: drawing compact patches of a slice of LIDC-IDRI-0028, its
# standard deviation was 6 % of its mean at 1800 mm2, 34 % at 900 mm2, 60 % at 200 mm2.
_NOISE_MINIMUM_MM2 = 1800.0
_NOISE_MINIMUM_WINDOWS = 200
_USUAL_SPACING_MM = 0.7
_SCAN_SLICES = 12

# The map: windows small enough to fit between vessels of the lung, averaged over the distance within which the noise of
# a patient hardly changes. The sixth power counts a window at twice the noise for a 64th.
_MAP_WINDOW_MM = 5.0
_MAP_REACH_MM = 10.0
_MAP_POWER = 6
# Air at or below it is mostly cut off at -1024 HU, and its noise is not that of the tissue around it.
_MAP_AIR_HU = -960.0
# A change whose root mean square is c lowers local SSIM, around a voxel with a standard deviation s, by about
# c^2 / (2 s^2 + (0.03 W)^2), W being the width of the lung window. The default's two parts together are 0.18 of the
# noise. Below 35 HU of noise this binds nowhere.
_HIDDEN_SSIM, _WHOLE_SHARE, _QUIET_NOISE_HU = 0.013, 0.18, 35.0
# The Gaussian that local SSIM weighs with (Wang et al. 2004), and how far it counts.
_SSIM_SIGMA, _SSIM_TRUNCATE, _SSIM_REACH = 1.5, 3.5, 5
_SSIM_CONSTANT = (0.03 * (LUNG.high - LUNG.low)) ** 2
_HIDDEN_EVERYWHERE_HU = 0.999 * math.sqrt(_HIDDEN_SSIM * _SSIM_CONSTANT) / _WHOLE_SHARE
# Within a voxel, two and three of a straight border this Gaussian has all, a 10th and a 40th on its other side.
_AT_BORDERS = (1.0, 10.0, 40.0)
# Of noise below it 0.15 are at most 2 HU, which no window of the two shows anywhere.
_LEAST_VISIBLE_HU = 16.0
# Below rounding to whole HU there is nothing to measure.
_MAP_SMALLEST_HU = 0.3


@dataclass(frozen=True)
class NoiseEstimate:
    """Scanner noise as the standard deviation in HU within soft tissue.

    :param sd_hu: the median of the slices' values, or None where no slice holds enough soft tissue.
    :param per_slice_hu: one value per slice; None where that slice holds too little soft tissue.
    :param window_voxels: side of the square window in which a standard deviation is taken, in voxels of the slice.
    :param definition: how it was measured, for reports.
    """

    sd_hu: float | None
    per_slice_hu: tuple[float | None, ...]
    window_voxels: int
    definition: str

    def to_dict(self) -> dict:
        """JSON-ready form."""
        return {**asdict(self), "per_slice_hu": list(self.per_slice_hu)}


def estimate_noise(hu: np.ndarray, spacing_kji: Sequence[float] | None = None) -> NoiseEstimate:
    """Robust scanner-noise standard deviation in HU, per slice and for the volume.

    Per slice: the standard deviation in every 7 mm square that lies wholly in soft tissue (-50..150 HU after smoothing
    with sigma 1.5 voxels, so that noise itself does not select the voxels), and the mode of their histogram. Anatomy
    only ever adds to a local standard deviation, so it fills the histogram's upper tail and leaves the mode alone
    (Christianson et al., AJR 2015;205:W93, call this the global noise level).

    Why not a high-pass residual or the difference of neighboring slices, which need no windows: CT noise is colored by
    the reconstruction kernel and by overlap of slices. On the development scans the median absolute deviation of a
    Laplacian residual gave 2.2, 3.0, 4.0, 4.9 and 31 HU where this gives 8.1, 8.8, 15.8, 16.3 and 49.5 HU (GE STANDARD,
    Philips B, RIDER, LIDC-IDRI-0002, Philips L); slice differences gave 12.6 for 15.8 HU at 0.8 mm between slices, and
    13.6 for 8.8 HU at 5 mm, where anatomy moves. Very smooth noise is wider than the window: of noise smoothed with a
    sigma of 1 voxel this reports 91 %, an error on the safe side.

    :param hu: (slices, rows, columns) in HU, or one slice (rows, columns).
    :param spacing_kji: mm along (slice, row, column); without it 0.7 mm in plane, usual for chest CT, is assumed.
    """
    from scipy import ndimage

    hu = as_volume(hu)
    spacing = float(np.mean(spacing_kji[1:])) if spacing_kji is not None else _USUAL_SPACING_MM
    window = max(5, round(_NOISE_WINDOW_MM / spacing) | 1)
    low, high = _NOISE_TISSUE_HU
    # What the window loses of the variance of white noise by taking the mean from the same voxels.
    correction = window / math.sqrt(window**2 - 1)

    def look(k: int) -> float | None:
        values = np.maximum(hu[k], LOWEST_HU).astype(np.float32)
        smooth = ndimage.gaussian_filter(values, 1.5, mode="nearest", truncate=2.0)
        tissue = (smooth > low) & (smooth < high)
        # A window that leaves the slice would repeat its border, which is not tissue, so those centers drop out.
        inside = ndimage.uniform_filter(tissue.astype(np.float32), window, mode="constant") > 1 - 0.5 / window**2
        if np.count_nonzero(inside) < max(_NOISE_MINIMUM_WINDOWS, _NOISE_MINIMUM_MM2 / spacing**2):
            return None
        mean = ndimage.uniform_filter(values, window, mode="nearest")
        square = ndimage.uniform_filter(values * values, window, mode="nearest")
        return _mode(np.sqrt(np.maximum(square - mean * mean, 0)[inside]) * correction)

    per_slice = map_slices(look, len(hu))
    known = [value for value in per_slice if value is not None]
    return NoiseEstimate(
        sd_hu=float(np.median(known)) if known else None,
        per_slice_hu=tuple(per_slice),
        window_voxels=window,
        definition=(
            f"mode of the standard deviation in HU within {window}x{window}-voxel squares of soft tissue "
            f"({low:g}..{high:g} HU), per slice; volume: median over slices"
        ),
    )


def scan_noise(hu: np.ndarray, spacing_kji: Sequence[float]) -> NoiseEstimate:
    """:func:`estimate_noise` of at most 12 evenly spaced slices, the one figure of a scan that people read.

    Every slice of a long scan would take seconds and change the median little.

    :param hu: (slices, rows, columns) in HU.
    """
    slices = np.unique(np.linspace(0, len(hu) - 1, _SCAN_SLICES + 2).round().astype(int)[1:-1])
    estimate = estimate_noise(hu[slices], spacing_kji)
    return replace(estimate, definition=f"{estimate.definition} ({len(slices)} evenly spaced ones)")


def _mode(values: np.ndarray) -> float:
    """Mode of positive values from a smoothed histogram with bins of 0.5 HU (or finer for small values)."""
    from scipy import ndimage

    median = float(np.median(values))
    if median == 0:
        return 0.0
    # A synthetic, nearly noise-free scan needs finer bins than a real one; an upper end of four medians holds the mode.
    width = min(_NOISE_BIN_HU, median / 20)
    counts, edges = np.histogram(values, bins=np.arange(0, 4 * median + width, width))
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), sigma=max(1.0, 0.05 * median / width))
    peak = int(np.argmax(smooth))
    return float((edges[peak] + edges[peak + 1]) / 2)


@dataclass(frozen=True, eq=False)
class LocalNoise:
    """Scanner noise from place to place, as a standard deviation in HU on a grid in every slice.

    :param grid_hu: float32 (slices, grid rows, grid columns); 0 where nothing could be measured.
    :param first: row and column of the first grid point.
    :param step: voxels between grid points.
    :param shape: (slices, rows, columns) of the scan.
    """

    grid_hu: np.ndarray
    first: int
    step: int
    shape: tuple[int, int, int]

    def at(self, box: tuple[slice, ...] = ()) -> np.ndarray:
        """Standard deviation in HU of the voxels of a box, float32, linear between grid points.

        A voxel's value does not depend on the box it is asked for in.

        :param box: index (slices, rows, columns) into the scan; what is left out is taken whole.
        """
        slices, rows, columns = (*box, *(slice(None),) * (3 - len(box)))
        plane = self._between(self.grid_hu[slices], range(self.shape[1])[rows], axis=1)
        return self._between(plane, range(self.shape[2])[columns], axis=2)

    def _between(self, grid: np.ndarray, voxels: range, axis: int) -> np.ndarray:
        last = grid.shape[axis] - 1
        place = np.clip((np.arange(voxels.start, voxels.stop) - self.first) / self.step, 0, last)
        low = np.minimum(place.astype(int), max(last - 1, 0))
        share = (place - low).astype(np.float32).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
        below, above = np.take(grid, low, axis=axis), np.take(grid, np.minimum(low + 1, last), axis=axis)
        return below + share * (above - below)


def local_noise(
    hu: np.ndarray, spacing_kji: Sequence[float] | None = None, padding_hu: int | None = None
) -> LocalNoise:
    """Scanner-noise standard deviation in HU from place to place: lung, soft tissue and bone each have their own.

    In windows of 5 mm, about 2 mm apart, the standard deviation around the best plane; then, around every window,
    the generalized mean with exponent -6 over a Gaussian neighborhood with a sigma of 10 mm. Vessels, edges and texture
    only ever add to a window's standard deviation, and this mean hardly counts what is far above its neighbors: with
    windows of nine in ten spoiled it is at most 47 % too high. Texture that fills centimeters (a lung with fibrosis)
    counts as noise, which it hides as well as noise does. Windows with padding, saturated voxels or air are left out.

    Median of the map in soft tissue beside the slice's :func:`estimate_noise`, in HU: 14.9 and 14.8 (LIDC-IDRI-0001),
    17.0 and 17.3 (RIDER-Pilot-0117), 12.6 and 14.3 (LIDC-IDRI-0002), 8.6 and 8.1 (GE STANDARD, LIDC-IDRI-0028), 45 and
    38, 9.0 and 6.8 (Philips L and B). Noise that is smooth over the window comes out too low, on the safe side: 0.65
    times for a sigma of 1 voxel. 133 slices of 512 x 512 take 2 s on one core.

    :param hu: (slices, rows, columns) in HU, or one slice (rows, columns): whole slices, not crops.
    :param spacing_kji: mm along (slice, row, column); without it 0.7 mm in plane is assumed.
    :param padding_hu: HU of DICOM Pixel Padding, where the file declares one.
    """
    hu = as_volume(hu)
    spacing = float(np.mean(spacing_kji[1:])) if spacing_kji is not None else _USUAL_SPACING_MM
    # At least five voxels, but no more than a slice has; always an odd number.
    window = min(max(5, round(_MAP_WINDOW_MM / spacing) | 1), (min(hu.shape[1:]) - 1) | 1)
    step = max(1, window // 2)
    if window < 3:
        return LocalNoise(np.zeros((len(hu), 1, 1), np.float32), 0, 1, hu.shape)
    sigma = _MAP_REACH_MM / (step * spacing)
    grid = [_lower_mean(*_deviations(plane, window, step, padding_hu), sigma) for plane in hu]
    return LocalNoise(np.stack(grid), window // 2, step, hu.shape)


def hiding_noise(plane: np.ndarray, noise_hu: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """The scan's noise as far as it hides a change: less than there is where a noisy slice happens to be quiet.

    On sharp kernels a share of the noise of the place is seen at the few voxels whose own surroundings are smooth: on
    CPTAC-C3N-00247 (B70f) the default's local SSIM in the lung window was 0.952 there, with a limit of 0.98.

    :param plane: int16 HU (rows, columns).
    :param noise_hu: standard deviation in HU of the same shape, of :class:`LocalNoise`.
    :param where: bool of the same shape, the voxels that are asked for; the others keep their noise. None for all.
    :return: float32 of the same shape, at most ``noise_hu``.
    """
    if not noise_hu.size or noise_hu.max() <= _QUIET_NOISE_HU:
        return noise_hu
    # Less than this is hidden everywhere, so nothing has to be measured around it.
    noisy = noise_hu > _HIDDEN_EVERYWHERE_HU
    box = box_around(noisy if where is None else noisy & where)
    if box is None:
        return noise_hu
    wide, inner = _with_reach(box, _SSIM_REACH)
    quietest = _seen_variance(plane[wide], LUNG)
    for _ in range(_SSIM_REACH // 2):
        quietest = _least_of_neighbors(quietest)
    quietest = quietest[inner]
    hidden = np.sqrt(_HIDDEN_SSIM * (2 * quietest + np.float32(_SSIM_CONSTANT)))
    hiding = noise_hu.copy()
    np.minimum(noise_hu[box], hidden / np.float32(_WHOLE_SHARE), out=hiding[box])
    return hiding


def hiding_noise_in_lungs(
    plane: np.ndarray, noise_hu: np.ndarray, mask: np.ndarray, spacing_kji: Sequence[float]
) -> np.ndarray:
    """The same for vessels and nodules, which the mediastinal window shows as well; 0 where no lung is around.

    In that window lung is black and hides nothing: at its border a change is seen, two voxels on it is less.

    :param noise_hu: of :func:`hiding_noise`.
    :param mask: of :func:`~.body.body_mask`.
    :return: float32 (rows, columns), at most ``noise_hu``; less where the lungs end.
    """
    within = lung_share(plane, mask, spacing_kji)
    hiding = within * noise_hu
    box = box_around(hiding > 0)
    if box is None or not hiding[box].max() > _LEAST_VISIBLE_HU:
        return hiding
    wide, inner = _with_reach(box, len(_AT_BORDERS))
    hidden = _seen_variance(plane[wide], MEDIASTINUM)
    hidden *= np.float32(2)
    hidden += np.float32((0.03 * (MEDIASTINUM.high - MEDIASTINUM.low)) ** 2)
    hidden *= np.float32(_HIDDEN_SSIM / _WHOLE_SHARE**2)
    least = np.full_like(hidden, np.inf)
    for more in _AT_BORDERS:
        hidden = _least_of_neighbors(hidden)
        np.minimum(least, np.float32(more) * hidden, out=least)
    hiding[box] = within[box] * np.minimum(noise_hu[box], np.sqrt(least[inner]))
    return hiding


def _least_of_neighbors(values: np.ndarray) -> np.ndarray:
    """The least of each 3x3 values; again of the result, that of 5x5. A 14th of the time of ``minimum_filter``."""
    for axis in (0, 1):
        values = values.swapaxes(0, axis)
        least = values.copy()
        np.minimum(least[1:], values[:-1], out=least[1:])
        np.minimum(least[:-1], values[1:], out=least[:-1])
        values = least.swapaxes(0, axis)
    return values


def _seen_variance(plane: np.ndarray, window: Window) -> np.ndarray:
    """Variance around each voxel in the picture that a window shows, weighted as local SSIM does, float32."""
    from scipy import ndimage

    def around(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, _SSIM_SIGMA, mode="nearest", truncate=_SSIM_TRUNCATE)

    # Around the middle of the window, where float32 loses least in the difference of squares.
    values = np.clip(plane, window.low, window.high).astype(np.float32) - np.float32((window.low + window.high) / 2)
    return np.maximum(around(values * values) - around(values) ** 2, 0)


def _with_reach(box: Box, reach: int) -> tuple[Box, Box]:
    """A rectangle with all that :func:`_seen_variance` and a filter of this reach look at, and where it lies in it."""
    reach += round(_SSIM_SIGMA * _SSIM_TRUNCATE)
    wide = tuple(slice(max(0, part.start - reach), part.stop + reach) for part in box)
    return wide, within(box, wide)


def _deviations(plane: np.ndarray, window: int, step: int, padding_hu: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviation in HU around the best plane in each window of a grid, and which windows count."""
    # Whole numbers around the middle of lung and soft tissue, where float32 loses least in the difference of squares.
    values = np.maximum(plane, LOWEST_HU).astype(np.int32) + np.int32(400)
    useless = (plane <= LOWEST_HU) | (plane >= HIGHEST_HU) | is_padding(plane, padding_hu)
    half = window // 2
    flat = np.full(window, 1 / window, np.float32)
    ramp = np.arange(-half, half + 1, dtype=np.float32)
    ramp /= window * np.sqrt(np.mean(ramp**2))

    # Down the rows first; then across, where the columns come first in a transposed copy.
    means = in_windows(values, flat, step).T.astype(np.float64, order="C")
    level = in_windows(means, flat, step).T
    explained = level**2 + in_windows(in_windows(values, ramp, step).T.copy(), flat, step).T ** 2
    explained += in_windows(means, ramp, step).T ** 2
    squares = in_windows(in_windows(values * values, flat, step).T.copy(), flat, step).T
    variance = (squares - explained) * (window**2 / (window**2 - 3))
    spoiled = _any_in_windows(_any_in_windows(useless, window, step).T.copy(), window, step).T
    counts = ~spoiled & (level - 400 > _MAP_AIR_HU)
    return np.sqrt(np.maximum(variance, _MAP_SMALLEST_HU**2)), counts


def in_windows(values: np.ndarray, weights: np.ndarray, step: int) -> np.ndarray:
    """Weighted sums along the first axis in every ``step``-th window that lies wholly in it, float32.

    What ``ndimage.correlate1d`` has there, bit for bit where both round alike; that computes all the windows between as
    well, in four times the time.

    :param weights: of odd length, symmetric or antisymmetric.
    """
    half, is_flat = len(weights) // 2, bool((weights == weights[0]).all())
    # Whole numbers are added up as such: their sums, of squares of HU as well, are far below 2**31.
    exact = values if is_flat and values.dtype == np.int32 else values.astype(np.float64, copy=False)

    def shifted(by: int) -> np.ndarray:
        return exact[half + by : len(exact) - half + by : step]

    if is_flat:
        total = shifted(-half).copy()
        for by in range(1 - half, half + 1):
            total += shifted(by)
        return (total * float(weights[0])).astype(np.float32)
    mirrored = np.add if weights[0] == weights[-1] else np.subtract
    total = shifted(0) * float(weights[half])
    pair = np.empty_like(total)
    for by in range(half, 0, -1):
        mirrored(shifted(-by), shifted(by), out=pair)
        pair *= float(weights[half - by])
        total += pair
    return total.astype(np.float32)


def _any_in_windows(marked: np.ndarray, window: int, step: int) -> np.ndarray:
    """Whether anything is marked in every ``step``-th window along the first axis that lies wholly in it."""
    rows = len(marked) - window + 1
    return functools.reduce(np.logical_or, (marked[by : by + rows : step] for by in range(window)))


def _lower_mean(deviation: np.ndarray, counts: np.ndarray, sigma: float) -> np.ndarray:
    """Generalized mean of what counts around each grid point, float32; 0 where nothing near it counts."""
    from scipy import ndimage

    def near(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values, sigma, mode="constant", truncate=3.0)

    weight = near(counts.astype(np.float64))
    total = near(np.where(counts, deviation.astype(np.float64), 1.0) ** -_MAP_POWER * counts)
    # Less than a hundredth of a neighborhood says nothing about it.
    known = weight > 0.01
    return np.where(known, (total / np.where(known, weight, 1) + ~known) ** (-1 / _MAP_POWER), 0).astype(np.float32)
