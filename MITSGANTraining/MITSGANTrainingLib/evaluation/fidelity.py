"""The fidelity verdict: does a protected scan stay within the limits of what a reader may be asked to accept?

Figures are of the worst slice; each carries its definition and its limit. Arrays are (slice, row, column) in HU. Where
a definition is open it is read strictly: RMSE over the patient alone, which the air around does not dilute; the local
SSIM at its lowest voxel, in the picture that the window shows, beside the lowest 32x32 tile that
:mod:`~MITSGANLib.measure.metrics` reports; JPEG 2000 of 12 stored bits, the range of CT.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from MITSGANLib.budget.body import body_mask
from MITSGANLib.budget.budget import apply_change
from MITSGANLib.budget.noise import local_noise
from MITSGANLib.errors import DependencyError, InputError
from MITSGANLib.measure.metrics import DATA_RANGE_HU, TILE_VOXELS, ssim_map, tile_means
from MITSGANLib.runtime.progress import Progress
from MITSGANLib.runtime.threads import each_slice
from MITSGANLib.scan.volume import HIGHEST_HU, LOWEST_HU, CTVolume
from MITSGANLib.scan.windows import LUNG, MEDIASTINUM, Window
from PIL import Image, features

from .ct_noise import measure_texture

WINDOWS = (LUNG, MEDIASTINUM)
# Half-open ranges of HU within the body. Air in the trachea and the bowel is left out, as the budget leaves it alone.
REGIONS_HU = {"lung": (-960, -500), "soft tissue": (-300, 200), "bone": (300, HIGHEST_HU)}
# Of less than this the mean of a change that is fair noise need not be near 0.
_SMALLEST_REGION_MM2 = 400.0
_SSIM_MINIMUM_VOXELS = 11
_STORED_BITS = 12
_INDEPENDENT = 2.0
_JPEG2000_RATIO = 5.0
_FLICKER_LIMIT = 1.1  # of the energy between neighboring slices of the change, over that of the scan's own noise
_HIGHEST_SCALE = 4.0


@dataclass(frozen=True)
class FidelityFigure:
    """One figure of the verdict.

    :param value: of the worst slice (of flicker: of the whole scan); None with ``reason`` where there is none.
    :param worst_slice: 0-based; of flicker the first of the two slices that differ most.
    :param per_slice: by slice, None where a slice has no value.
    """

    name: str
    unit: str
    definition: str
    sense: Literal["at most", "at least"]
    limit: float
    value: float | None
    worst_slice: int | None = None
    per_slice: tuple[float | None, ...] = ()
    reason: str | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the limit is kept; None where there is no value."""
        return None if self.value is None else self.keeps(self.value)

    def keeps(self, value: float) -> bool:
        """Whether a value keeps the limit."""
        return value <= self.limit if self.sense == "at most" else value >= self.limit

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; no NaN or infinity."""
        return {**dataclasses.asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class Flicker:
    """Energy of the difference of neighboring slices over the mean energy of a slice: 2 where they are independent.

    :param change: of the change, over voxels of the body in both slices; None where nothing changed.
    :param noise: of the scan's own noise, 2 (1 - correlation) in uniform soft tissue; None where there is too little.
    """

    change: float | None
    noise: float | None
    independent: float = _INDEPENDENT


@dataclass(frozen=True)
class Fidelity:
    """All figures of one protected scan."""

    figures: tuple[FidelityFigure, ...]
    flicker: Flicker

    @property
    def passed(self) -> bool:
        """Whether every limit is kept that could be measured."""
        return all(figure.passed is not False for figure in self.figures)

    def __getitem__(self, name: str) -> FidelityFigure:
        """The figure of this name."""
        return next(figure for figure in self.figures if figure.name == name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; no NaN or infinity."""
        figures = {figure.name: figure.to_dict() for figure in self.figures}
        return {"passed": self.passed, "figures": figures, "flicker": dataclasses.asdict(self.flicker)}


@dataclass(frozen=True)
class LargestScale:
    """The largest factor of a change that keeps all limits.

    :param scale: 0 where none does, 4 where none forbids it.
    :param figure: name of the figure that forbids more, and the slice; None where none does.
    """

    scale: float
    figure: str | None
    slice: int | None


def measure_fidelity(original: CTVolume, protected: CTVolume, progress: Progress | None = None) -> Fidelity:
    """Every figure of the verdict, with its limit and its worst slice.

    A slice of 512 x 512 takes 0.6 s on one core.

    :param progress: called with (slices done, slices in all); what it raises ends the work.
    :raises InputError: when the scans do not share their geometry.
    :raises DependencyError: when Pillow comes without JPEG 2000.
    """
    if not original.same_geometry(protected):
        raise InputError(
            "The two volumes differ in shape, spacing, position or orientation; compare a scan with its own protection."
        )
    found: list[dict[str, float]] = []
    for values in each_slice(lambda k: _Slice(original, k).measure(protected.hu[k]), len(original.hu)):
        found.append(values)
        if progress:
            progress(len(found), len(original.hu))
    figures = [_of_worst_slice(figure, [values.get(figure.name) for values in found]) for figure in _figures()]
    flicker, figure = _flicker(original, protected)
    return Fidelity((*figures, figure), flicker)


def largest_scale(original: CTVolume, change: np.ndarray, progress: Progress | None = None) -> LargestScale:
    """By how much a change may be multiplied, up to 4, so that every slice keeps every limit but flicker's, within 1 %.

    Flicker does not depend on the scale. What is measured is the scaled change in whole HU.

    :param change: in HU, of the scan's shape.
    :param progress: called with (slices done, slices in all) in the first round; what it raises ends the work.
    :raises InputError: when the change has another shape or is not finite.
    :raises DependencyError: when Pillow comes without JPEG 2000.
    """
    change = np.asarray(change)
    if change.shape != original.shape or not np.all(np.isfinite(change)):
        raise InputError(f"The change must be finite and have the scan's shape {original.shape}, not {change.shape}.")
    slices, found, kept = len(original.hu), LargestScale(_HIGHEST_SCALE, None, None), 0
    # A slice that kept all limits at a larger scale nearly always does at a smaller one, but rounding to whole HU may
    # spoil that: go round until all slices in a row keep them at the same scale.
    for done, k in enumerate(itertools.cycle(range(slices))):
        if kept == slices:
            break
        one = _Slice(original, k)
        broken = one.broken(change[k], found.scale)
        kept += 1
        if broken:
            scale, broken = _bisected(one, change[k], found.scale, broken)
            found, kept = LargestScale(scale, broken, k), 1
        if progress:
            progress(min(done + 1, slices), slices)
    return found


def _bisected(one: _Slice, change: np.ndarray, high: float, broken: str) -> tuple[float, str]:
    """The largest scale below ``high`` that keeps all limits of a slice, and what forbids more."""
    low = 0.0
    while high - low > 0.01 * high and high > 1e-4:
        middle = (low + high) / 2
        found = one.broken(change, middle)
        if found:
            high, broken = middle, found
        else:
            low = middle
    return low, broken


def jpeg2000(plane: np.ndarray, ratio: float) -> np.ndarray:
    """A slice (rows, columns) after irreversible JPEG 2000 (9/7 wavelet, OpenJPEG), int16 HU.

    :param plane: int16 HU; values beyond -1024..3071 HU are cut to that range first.
    :param ratio: size before, at the 12 bits that this range takes, over size after.
    :raises DependencyError: when Pillow comes without JPEG 2000.
    """
    if not features.check("jpg_2000"):
        raise DependencyError("The installed Pillow cannot write JPEG 2000; install one from PyPI.")
    stored = (np.clip(plane, LOWEST_HU, HIGHEST_HU) - LOWEST_HU).astype(np.uint16)
    file = io.BytesIO()
    layers = [ratio * 16 / _STORED_BITS]  # Pillow counts 16 bits a voxel
    resolutions = min(6, int(math.log2(min(plane.shape))) + 1)
    options = {"irreversible": True, "quality_mode": "rates", "quality_layers": layers, "num_resolutions": resolutions}
    Image.fromarray(stored).save(file, "JPEG2000", **options)
    return np.asarray(Image.open(file)).astype(np.int16) + np.int16(LOWEST_HU)


class _Slice:
    """What the figures of one slice need of the original.

    :ivar regions: which voxels belong to each region that is large enough to speak of.
    :ivar noise: standard deviation in HU at each voxel.
    """

    def __init__(self, original: CTVolume, k: int) -> None:
        hu, padding, spacing = original.hu[k : k + 1], original.provenance.padding_hu, original.spacing_kji
        self.hu, self.body = hu[0], body_mask(hu, padding, spacing)[0]
        smallest = _SMALLEST_REGION_MM2 / (spacing[1] * spacing[2])
        regions = {name: self.body & (hu[0] >= low) & (hu[0] < high) for name, (low, high) in REGIONS_HU.items()}
        self.regions = {name: region for name, region in regions.items() if np.count_nonzero(region) >= smallest}
        self.noise = local_noise(hu, spacing, padding).at()[0]

    def measure(self, protected: np.ndarray) -> dict[str, float]:
        """Every figure that the slice has, by name."""
        change = np.subtract(protected, self.hu, dtype=np.float64)
        found = {"max_change": float(np.abs(change).max())}
        changed = found["max_change"] > 0
        if self.body.any():
            found["rmse"] = _rms(change[self.body])
            if changed:
                found["psnr"] = 20 * math.log10(DATA_RANGE_HU / found["rmse"]) if found["rmse"] else math.inf
        for name, region in self.regions.items():
            key = name.replace(" ", "_")
            found[f"mean_change_{key}"] = abs(float(change[region].mean()))
            known = region & (self.noise > 0)
            if known.any():
                found[f"noise_ratio_{key}"] = _rms(change[known] / self.noise[known])
        if changed and self.body.any() and self._reference["rmse"]:
            found["jpeg2000_rmse"] = found["rmse"] / self._reference["rmse"]
        if min(self.hu.shape) >= _SSIM_MINIMUM_VOXELS:
            for window in WINDOWS:
                local = _ssim(self.hu, protected, window) if changed else np.ones((1, 1))
                found[f"ssim_{window.name}"] = float(local.min())
                found[f"ssim_tile_{window.name}"] = float(tile_means(local)[0].min())
                if changed and self._reference[window.name]:
                    found[f"jpeg2000_ssim_{window.name}"] = float(1 - local.mean()) / self._reference[window.name]
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def broken(self, change: np.ndarray, scale: float) -> str | None:
        """The first figure whose limit the scaled change breaks."""
        anything = np.full(self.hu.shape, HIGHEST_HU - LOWEST_HU, np.int16)
        values = self.measure(apply_change(self.hu, scale * change, anything))
        return next((one.name for one in _figures() if one.name in values and not one.keeps(values[one.name])), None)

    @functools.cached_property
    def _reference(self) -> dict[str, float]:
        """RMSE over the body, and the loss of mean SSIM in each window, of the slice after JPEG 2000."""
        # Padding lies below the range that is compressed.
        shown = np.clip(self.hu, LOWEST_HU, HIGHEST_HU)
        compressed = jpeg2000(self.hu, _JPEG2000_RATIO)
        lost = {"rmse": _rms(np.subtract(compressed, shown, dtype=np.float64)[self.body])} if self.body.any() else {}
        if min(self.hu.shape) >= _SSIM_MINIMUM_VOXELS:
            lost |= {window.name: float(1 - _ssim(shown, compressed, window).mean()) for window in WINDOWS}
        return lost


def _figures() -> Iterator[FidelityFigure]:
    """Every figure of a slice with its limit, without a value yet."""
    at_most = functools.partial(FidelityFigure, sense="at most", value=None)
    at_least = functools.partial(FidelityFigure, sense="at least", value=None)
    ratio = f"{_JPEG2000_RATIO:g}:1 JPEG 2000 (9/7 wavelet, of {_STORED_BITS} stored bits) of the same slice"
    psnr = f"20 log10({DATA_RANGE_HU:g} HU / RMSE), RMSE over the body, where it changed"
    yield at_most("rmse", "HU", "root mean square of the change over the body", limit=8.0)
    yield at_least("psnr", "dB", psnr, limit=54.0)
    yield at_most("max_change", "HU", "largest absolute change of a voxel", limit=30.0)
    for name, (low, high) in REGIONS_HU.items():
        where = f"{name} ({low} to {high - 1} HU within the body, at least {_SMALLEST_REGION_MM2:g} mm2)"
        key = name.replace(" ", "_")
        share = "root mean square of change / local noise (standard deviation around planes of 5 mm) over"
        yield at_most(f"noise_ratio_{key}", "1", f"{share} {where}", limit=0.32)
        yield at_most(f"mean_change_{key}", "HU", f"absolute mean of the change over {where}", limit=1.0)
    for window in WINDOWS:
        picture = (
            f"local SSIM (Gaussian of sigma 1.5 voxels, 11x11; K1 0.01, K2 0.03) of the picture that the {window} "
            "shows, black 0 and white 1"
        )
        tile = f"lowest mean over {TILE_VOXELS}x{TILE_VOXELS} voxels, or a little more, of the {picture}"
        yield at_least(f"ssim_{window.name}", "1", f"lowest voxel of the {picture}", limit=0.98)
        yield at_least(f"ssim_tile_{window.name}", "1", tile, limit=0.98)
    yield at_most("jpeg2000_rmse", "1", f"RMSE over the body / that of {ratio}", limit=1.0)
    for window in WINDOWS:
        loss = f"1 - mean local SSIM in the {window} / that of {ratio}"
        yield at_most(f"jpeg2000_ssim_{window.name}", "1", loss, limit=1.0)


def _of_worst_slice(figure: FidelityFigure, values: Sequence[float | None]) -> FidelityFigure:
    known = [k for k, value in enumerate(values) if value is not None]
    if not known:
        return dataclasses.replace(figure, reason="no slice has a value", per_slice=tuple(values))
    worst = (max if figure.sense == "at most" else min)(known, key=values.__getitem__)
    return dataclasses.replace(figure, value=values[worst], worst_slice=worst, per_slice=tuple(values))


def _flicker(original: CTVolume, protected: CTVolume) -> tuple[Flicker, FidelityFigure]:
    change, by_pair = z_difference_ratio(original, protected)
    try:
        noise, reason = _INDEPENDENT * (1 - measure_texture(original).slice_correlation[0]), None
    except InputError:
        noise, reason = None, "the scan holds too little uniform soft tissue to measure its own noise"
    if change is None:
        reason = "there is no change in two neighboring slices"
    _, worst = max(((value, k) for k, value in enumerate(by_pair) if value is not None), default=(None, None))
    figure = FidelityFigure(
        "flicker",
        "1",
        "mean square of the difference of the change in neighboring slices / mean square of the change, over voxels of "
        "the body in both, divided by the same of the scan's own noise in uniform soft tissue",
        "at most",
        _FLICKER_LIMIT,
        change / noise if change is not None and noise else None,
        worst,
        reason=reason,
    )
    return Flicker(change, noise), figure


def z_difference_ratio(original: CTVolume, protected: CTVolume) -> tuple[float | None, list[float | None]]:
    """How much the change differs from slice to slice: over the scan, and for each slice and its next.

    Mean square of the difference of the change over the mean of the two slices' mean squares, over voxels that are body
    in both: 0 for a change that is the same in all slices, 2 for independent ones, 4 for one that alternates.
    """

    def seen(k: int) -> tuple[np.ndarray, np.ndarray]:
        body = body_mask(original.hu[k : k + 1], original.provenance.padding_hu, original.spacing_kji)[0]
        return np.subtract(protected.hu[k], original.hu[k], dtype=np.float64), body

    differences, energies = [], []
    for (first, body), (second, other) in itertools.pairwise(map(seen, range(len(original.hu)))):
        both = body & other
        differences.append(float(np.sum((second - first)[both] ** 2)))
        energies.append(float(np.sum(second[both] ** 2 + first[both] ** 2)) / 2)
    by_pair = [d / e if e else None for d, e in zip(differences, energies, strict=True)]
    total = sum(energies)
    return (sum(differences) / total if total else None), by_pair


def _ssim(reference: np.ndarray, other: np.ndarray, window: Window) -> np.ndarray:
    """Local SSIM of the pictures that a window shows."""
    return ssim_map(window.scaled(reference), window.scaled(other), 1.0)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
