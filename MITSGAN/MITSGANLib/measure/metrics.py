"""How far two CT volumes are apart: RMSE, PSNR, SSIM, LPIPS, largest difference, bias; whole, in a region, per slice.

Every figure carries its definition: data range, region, slices, window, averaging, and its worst slice. Where there is
no figure there is None and the reason, never a stand-in. Arrays are (slice, row, column) in HU.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from ..runtime.threads import each_slice
from ..scan.filters import weigh
from ..scan.regions import Region
from ..scan.volume import CTVolume
from ..scan.windows import LUNG, Window
from .lpips_distance import Lpips, LpipsUnavailable

DATA_RANGE_HU = 4096.0

# The SSIM of Wang et al. 2004 in the parameters of scikit-image, whose window ends at 3.5 sigma: 11x11 voxels.
_SSIM_SIGMA, _SSIM_K1, _SSIM_K2 = 1.5, 0.01, 0.03
_SSIM_RADIUS = 5
_SSIM_WINDOW = 2 * _SSIM_RADIUS + 1
# From the middle outwards.
_SSIM_WEIGHTS = np.exp(-0.5 * (np.arange(_SSIM_RADIUS + 1) / _SSIM_SIGMA) ** 2)
_SSIM_WEIGHTS = (_SSIM_WEIGHTS / (2 * _SSIM_WEIGHTS.sum() - 1)).astype(np.float32)
TILE_VOXELS = 32
# SqueezeNet halves a picture four times; below this its last maps are empty.
_LPIPS_MINIMUM_VOXELS = 24


@dataclass(frozen=True)
class WorstSlice:
    """The slice (0-based index in the volume) where a metric is worst, and its value there."""

    slice: int
    value: float


@dataclass(frozen=True)
class WorstTile:
    """The tile of a slice with the lowest mean of the local SSIM, and that mean."""

    region: Region
    value: float


_OfSlice = tuple[float, WorstTile | None]  # mean SSIM of a slice, and its worst tile where something differs


@dataclass(frozen=True)
class Metric:
    """One figure with its definition.

    :param value: over the whole region, or None with ``reason``.
    :param per_slice: one value per entry of ``slices``, None where a slice has none; empty when not asked for.
    :param worst_slice: None when no slice has a value.
    """

    name: str
    unit: str
    definition: str
    value: float | None
    slices: tuple[int, ...] = ()
    per_slice: tuple[float | None, ...] = ()
    worst_slice: WorstSlice | None = None
    worst_tile: WorstTile | None = None
    window: Window | None = None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; no NaN or infinity."""
        return {**asdict(self), "slices": list(self.slices), "per_slice": list(self.per_slice)}


@dataclass(frozen=True)
class Comparison:
    """All metrics of ``other`` against ``reference`` in one region."""

    shape: tuple[int, int, int]
    region: Region
    data_range_hu: float
    rmse: Metric
    psnr: Metric
    ssim: Metric
    lpips: Metric
    max_abs_difference: Metric
    mean_bias: Metric
    windowed_ssim: tuple[Metric, ...] = ()

    @property
    def metrics(self) -> dict[str, Metric]:
        """Every metric by its name, windowed SSIM last."""
        fixed = (self.rmse, self.psnr, self.ssim, self.lpips, self.max_abs_difference, self.mean_bias)
        return {metric.name: metric for metric in (*fixed, *self.windowed_ssim)}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; no NaN or infinity."""
        return {
            "shape": list(self.shape),
            "axis_order": "slice, row, column",
            "region": self.region.to_dict(),
            "data_range_hu": self.data_range_hu,
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
        }


def compare(
    reference: np.ndarray | CTVolume,
    other: np.ndarray | CTVolume,
    *,
    region: Region | None = None,
    data_range: float = DATA_RANGE_HU,
    windows: Sequence[Window] = (),
    lpips: Lpips | LpipsUnavailable | None = None,
    lpips_slices: Literal["all"] | Sequence[int] = "all",
    lpips_window: Window = LUNG,
    per_slice: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Measure how far ``other`` is from ``reference``.

    Of 133 x 512 x 512 voxels, each SSIM takes about 1 s on one core, and LPIPS 0.3 s for each slice; slices run side by
    side on the cores.

    :param reference, other: CT volumes, or arrays (slices, rows, columns) or (rows, columns), in HU.
    :param region: where to measure; the whole volume when None. Outside it nothing is looked at.
    :param data_range: HU range of PSNR and SSIM.
    :param windows: also measure SSIM of the pictures that these windows show, with their width as data range.
    :param lpips: from :func:`MITSGANLib.measure.lpips_distance.load_lpips`; None leaves LPIPS out and says so.
    :param lpips_slices: slice indices of the volume to measure LPIPS on, as it is slow; recorded in the result.
    :param per_slice: whether to keep the values of all slices, or just the worst one.
    :param progress: called with (slices done, slices in all); what it raises ends the work.
    :raises InputError: when shapes or geometry differ, values are not finite, or the region leaves the volume.
    """
    first, second = _hu_of(reference), _hu_of(other)
    if isinstance(reference, CTVolume) and isinstance(other, CTVolume) and not reference.same_geometry(other):
        raise InputError(
            "The two volumes differ in shape, spacing, position or orientation; compare a scan with its own result."
        )
    if first.shape != second.shape:
        raise InputError(
            f"The two volumes differ in shape: {first.shape} and {second.shape} voxels; they must be equal."
        )
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(f"The data range must be a positive number of HU, not {data_range}.")
    region = region or Region.whole(first.shape)
    if any(stop > size for stop, size in zip((region.k1, region.j1, region.i1), first.shape, strict=True)):
        raise InputError(f"The {region.name} leaves the volume of {first.shape} voxels; choose it within the scan.")

    slices, in_plane = tuple(range(region.k0, region.k1)), region.index[1:]
    chosen = slices if isinstance(lpips_slices, str) else tuple(sorted({int(k) for k in lpips_slices}))
    if not set(chosen) <= set(slices):
        raise InputError(
            f"LPIPS was asked for slices outside {region.k0}..{region.k1 - 1}, where the {region.name} lies; "
            "leave them out."
        )
    no_lpips = _lacks_for_lpips(lpips, region) or (None if chosen else "no slice was asked for")
    measured = () if no_lpips else chosen
    ssim_series = [_Ssim(region, window, window.width if window else data_range) for window in (None, *windows)]

    def look(index: int) -> tuple[float, float, float, float | None, list[_OfSlice | None]]:
        k = slices[index]
        a, b = (hu[k, *in_plane].astype(np.float64) for hu in (first, second))
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise InputError("A volume holds NaN or infinite values; repair it before comparing.")
        difference, distance = b - a, None
        if k in measured:
            distance = lpips.distance(lpips_window.scaled(a) * 2 - 1, lpips_window.scaled(b) * 2 - 1)
        sums = (np.sum(difference * difference), difference.sum(), np.abs(difference).max())
        return *map(float, sums), distance, [series.of_slice(k, a, b) for series in ssim_series]

    seen = []
    for found in each_slice(look, len(slices)):
        seen.append(found)
        if progress:
            progress(len(seen), len(slices))
    square_sum, difference_sum, largest, distances, local = zip(*seen, strict=True)

    voxels = region.shape[1] * region.shape[2]
    rmse = [math.sqrt(total / voxels) for total in square_sum]
    volume_rmse = math.sqrt(sum(square_sum) / (voxels * len(slices)))
    psnr = [_psnr(value, data_range) for value in rmse]
    bias = [total / voxels for total in difference_sum]
    where = f"{region.name}, {len(slices)} slice{'s' if len(slices) > 1 else ''}"
    every = f"over all voxels of {where}"
    root = f"root of the mean squared difference {every}"
    ratio = f"20 log10({data_range:g} HU / RMSE) with the RMSE {every}; null where there is no difference"
    mean = f"mean of other minus reference {every}; worst slice: largest absolute value"
    volume_bias = sum(difference_sum) / (voxels * len(slices))
    identical = "identical" if volume_rmse == 0 else None
    known = [distance for distance in distances if distance is not None]
    distance = float(np.mean(known)) if known else None
    network = f" ({lpips.description})" if measured else ""
    perceived = (
        f"mean over the listed slices of {where} of LPIPS{network} of the picture clipped to {lpips_window} and mapped "
        "to -1..1, the same in all three color channels"
    )

    metric = partial(_metric, keep=per_slice)
    of_all = partial(metric, slices)
    ssim = [
        series.metric([of_slice[n] for of_slice in local], slices, where, metric)
        for n, series in enumerate(ssim_series)
    ]
    return Comparison(
        shape=first.shape,
        region=region,
        data_range_hu=float(data_range),
        rmse=of_all(rmse, abs, "rmse", "HU", root, volume_rmse),
        psnr=of_all(psnr, operator.neg, "psnr", "dB", ratio, _psnr(volume_rmse, data_range), reason=identical),
        ssim=ssim[0],
        lpips=metric(measured, known, abs, "lpips", "1", perceived, distance, window=lpips_window, reason=no_lpips),
        max_abs_difference=of_all(
            largest, abs, "max_abs_difference", "HU", f"largest absolute difference of a voxel in {where}", max(largest)
        ),
        mean_bias=of_all(bias, abs, "mean_bias", "HU", mean, volume_bias),
        windowed_ssim=tuple(ssim[1:]),
    )


def _metric(
    slices: tuple[int, ...],
    values: Sequence[float | None],
    badness: Callable[[float], float],
    *definition: Any,
    keep: bool,
    **rest: Any,
) -> Metric:
    """A metric from the values of its slices; the worst slice is the one of greatest ``badness``.

    :param definition: name, unit, definition and value, as of :class:`Metric`.
    """
    known = [(k, value) for k, value in zip(slices, values, strict=True) if value is not None]
    worst = WorstSlice(*max(known, key=lambda item: badness(item[1]))) if known else None
    return Metric(*definition, slices, tuple(values) if keep else (), worst, **rest)


def ssim_map(reference: np.ndarray, other: np.ndarray, data_range: float = DATA_RANGE_HU) -> np.ndarray:
    """Local SSIM of two slices (rows, columns) of at least 11x11 voxels, without the outermost 5 voxels on each side.

    Its mean is what ``skimage.metrics.structural_similarity`` returns with a Gaussian window of sigma 1.5 and
    population covariance, in a quarter of the time. With sum s and difference d of the two, SSIM's products are
    2 xy = (s^2 - d^2) / 2 and x^2 + y^2 = (s^2 + d^2) / 2. The rounding of the large s^2 is then the same above and
    below the fraction, so that 32 bits give each local value to 2e-6, and means to 1e-7.

    :return: float32.
    """
    first, second = (np.asarray(slice_hu, dtype=np.float32) for slice_hu in (reference, other))
    both = []
    for part in (first + second, second - first):
        mean = _smooth(part)
        both.append((mean * mean / 2, (_smooth(part * part) - mean * mean) / 2))
    (mean_s, variance_s), (mean_d, variance_d) = both
    c1, c2 = ((k * data_range) ** 2 for k in (_SSIM_K1, _SSIM_K2))
    return (
        (mean_s - mean_d + c1)
        / (mean_s + mean_d + c1)
        * ((variance_s - variance_d + c2) / (variance_s + variance_d + c2))
    )


def _ssim_where_different(reference: np.ndarray, other: np.ndarray, data_range: float) -> np.ndarray:
    """:func:`ssim_map`, computed only around what differs: it is 1 wherever the two windows hold the same."""
    different = reference != other
    parts, inner = [], []
    for axis in (0, 1):
        found = np.flatnonzero(different.any(axis=1 - axis))
        first = max(int(found[0]) - 2 * _SSIM_RADIUS, 0)
        stop = min(int(found[-1]) + 2 * _SSIM_RADIUS + 1, different.shape[axis])
        parts.append(slice(first, stop))
        inner.append(slice(first, stop - 2 * _SSIM_RADIUS))
    local = np.ones([size - 2 * _SSIM_RADIUS for size in different.shape], np.float32)
    local[tuple(inner)] = ssim_map(reference[tuple(parts)], other[tuple(parts)], data_range)
    return local


def _smooth(plane: np.ndarray) -> np.ndarray:
    """Mean within the Gaussian window of SSIM, where that lies within the slice."""
    return weigh(weigh(plane, _SSIM_WEIGHTS, 1, None), _SSIM_WEIGHTS, 0, None)


@dataclass(frozen=True)
class _Ssim:
    """SSIM slice by slice: of HU as they are, or of the picture that a window shows."""

    region: Region
    window: Window | None
    data_range: float

    @property
    def reason(self) -> str | None:
        """Why there is none."""
        rows, columns = self.region.shape[1:]
        if min(rows, columns) >= _SSIM_WINDOW:
            return None
        window = f"{_SSIM_WINDOW}x{_SSIM_WINDOW}"
        return f"the region's slices of {rows}x{columns} voxels are smaller than the {window} window of SSIM"

    def of_slice(self, k: int, reference: np.ndarray, other: np.ndarray) -> _OfSlice | None:
        """Mean SSIM and worst tile of one slice (rows, columns); None where there is none."""
        if self.reason:
            return None
        if self.window:
            # From black, as in a picture: SSIM compares means by their ratio, which makes no sense around 0 HU.
            reference, other = (self.window.clipped(hu) - self.window.low for hu in (reference, other))
        if np.array_equal(reference, other):
            return 1.0, None
        local = _ssim_where_different(reference, other, self.data_range)
        means, rows, columns = tile_means(local)
        j, i = np.unravel_index(np.argmin(means), means.shape)
        j0, i0 = self.region.j0 + _SSIM_RADIUS, self.region.i0 + _SSIM_RADIUS
        bounds = (int(j0 + rows[j]), int(j0 + rows[j + 1]), int(i0 + columns[i]), int(i0 + columns[i + 1]))
        tile = WorstTile(Region(k, k + 1, *bounds, name="tile"), float(means[j, i]))
        return float(np.mean(local, dtype=np.float64)), tile

    def metric(
        self, found: Sequence[_OfSlice | None], slices: tuple[int, ...], where: str, metric: Callable[..., Metric]
    ) -> Metric:
        """The figure from what was found in the slices."""
        values = [one[0] for one in found if one]
        shown = f" of the picture in the {self.window}, black being 0" if self.window else ""
        return metric(
            () if self.reason else slices,
            values,
            operator.neg,
            f"ssim_{self.window.name}" if self.window else "ssim",
            "1",
            f"mean over slices of {where} of the mean local SSIM{shown}: Gaussian window with sigma "
            f"{_SSIM_SIGMA:g} voxels ({_SSIM_WINDOW}x{_SSIM_WINDOW}), K1 {_SSIM_K1:g}, K2 {_SSIM_K2:g}, population "
            f"covariance, data range {self.data_range:g} HU, without the {_SSIM_RADIUS} outermost voxels; worst tile: "
            f"lowest mean over {TILE_VOXELS}x{TILE_VOXELS} voxels or a little more, null where there is no difference",
            float(np.mean(values)) if values else None,
            worst_tile=min((one[1] for one in found if one and one[1]), key=lambda tile: tile.value, default=None),
            window=self.window,
            reason=self.reason,
        )


def tile_means(local: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over tiles of 32 x 32 voxels of a slice or a little more, or one where there are fewer, and tiles' edges.

    :return: means (tiles down, tiles across), and the tiles' bounds along rows and along columns.
    """
    rows, columns = (np.linspace(0, size, max(1, size // TILE_VOXELS) + 1).astype(int) for size in local.shape)
    sums = np.add.reduceat(np.add.reduceat(local, rows[:-1], axis=0, dtype=np.float64), columns[:-1], axis=1)
    return sums / np.outer(np.diff(rows), np.diff(columns)), rows, columns


def _lacks_for_lpips(lpips: Lpips | LpipsUnavailable | None, region: Region) -> str | None:
    """Why LPIPS cannot be measured; None where it can."""
    if lpips is None:
        return "not asked for"
    if isinstance(lpips, LpipsUnavailable):
        return lpips.reason
    rows, columns = region.shape[1:]
    if min(rows, columns) >= _LPIPS_MINIMUM_VOXELS:
        return None
    least = f"{_LPIPS_MINIMUM_VOXELS}x{_LPIPS_MINIMUM_VOXELS}"
    return f"the region's slices of {rows}x{columns} voxels are smaller than the {least} that the network needs"


def _psnr(rmse: float, data_range: float) -> float | None:
    return 20 * math.log10(data_range / rmse) if rmse > 0 else None


def _hu_of(volume: np.ndarray | CTVolume) -> np.ndarray:
    hu = volume.hu if isinstance(volume, CTVolume) else np.asarray(volume)
    hu = hu[None] if hu.ndim == 2 else hu
    if hu.ndim != 3 or 0 in hu.shape or hu.dtype.kind not in "iuf":
        raise InputError(f"A CT must be a non-empty numeric array (slice, row, column), not {hu.dtype} of {hu.shape}.")
    return hu
