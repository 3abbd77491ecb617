"""Noise like a scan's own: its spectrum, correlation between slices and local level, measured in soft tissue.

Controls of an evaluation: what a change of the same size does without a network. Arrays are (slice, row, column) in HU.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from MITSGANLib.budget.body import body_mask
from MITSGANLib.budget.budget import Budget, allowed_change
from MITSGANLib.errors import InputError
from MITSGANLib.measure.noise_controls import NOISE_CONTROL, neighbors
from MITSGANLib.scan.volume import HIGHEST_HU, LOWEST_HU, PROTECTION, CTVolume, ProcessingStep
from scipy import fft, ndimage, optimize

# Squares in which noise is measured: small enough to fit between vessels and fat, large enough for a spectrum.
_SQUARE_MM = 16.0
_SQUARE_MINIMUM_VOXELS = 8
_MINIMUM_SQUARES = 20
_TISSUE_HU = (-50.0, 150.0)
# Anatomy only adds to a square's standard deviation. On four development scans the lowest frequencies held up to 7 %
# more power at 1.25 times the lower quartile than at 1.1 times, and up to 52 % more at twice, by edges of organs.
_UNIFORM_TIMES_QUARTILE = 1.25
_LEVEL_TIMES_QUARTILE = 1.6
_LEVEL_REACH_MM = (15.0, 40.0)  # along slices, within the slice: how far the level of noise is averaged
_LEVEL_PRIOR = 0.05  # weight of the scan's mean level, in squares, where there are none nearby
_LAGS, _TAPS = 3, 4
# Budgets spend most below this value; a control that did not would leave the lungs nearly alone.
_LUNG_BELOW_HU = -500


@dataclass(frozen=True, eq=False)
class NoiseTexture:
    """What a scan's own noise looks like. Made by :func:`measure_texture`.

    :param frequency_per_mm: (n,) spatial frequencies within the slice, from 0.
    :param power: (n,) noise power spectrum there, radially averaged, in HU^2 mm^2.
    :param slice_correlation: correlation of the noise with that 1, 2, 3 slices on.
    :param level_hu: (slices, blocks down, blocks across) float32, standard deviation around each block.
    :param block_voxels: edge of a block, in voxels of the slice.
    """

    frequency_per_mm: np.ndarray
    power: np.ndarray
    slice_correlation: tuple[float, ...]
    level_hu: np.ndarray
    block_voxels: int

    def level(self, k: int, shape: tuple[int, int]) -> np.ndarray:
        """Standard deviation in HU at each voxel (rows, columns) of slice ``k``, float32."""
        positions = [
            np.clip((np.arange(size) + 0.5) / self.block_voxels - 0.5, 0, blocks - 1)
            for size, blocks in zip(shape, self.level_hu.shape[1:], strict=True)
        ]
        return ndimage.map_coordinates(self.level_hu[k], np.meshgrid(*positions, indexing="ij"), order=1)


def measure_texture(volume: CTVolume) -> NoiseTexture:
    """Spectrum, correlation between slices, and local level of the scan's own noise.

    The noise power spectrum is that of ICRU Report 87 (2012), but in the patient: periodograms of squares of soft
    tissue less a quadratic surface; taken are the most uniform quarter of the squares and those nearly as uniform.

    :raises InputError: when the scan holds too little uniform soft tissue.
    """
    position, residual, deviation = _soft_squares(volume)
    if len(deviation) < _MINIMUM_SQUARES:
        raise InputError(
            "The scan's own noise cannot be measured: it holds too little uniform soft tissue; use Gaussian noise, or "
            "a scan that shows more than lung and bone."
        )
    quartile, edge = float(np.quantile(deviation, 0.25)), residual.shape[1]
    uniform, usable = (deviation <= times * quartile for times in (_UNIFORM_TIMES_QUARTILE, _LEVEL_TIMES_QUARTILE))
    return NoiseTexture(
        *_radial_spectrum(residual[uniform], volume.spacing_kji[1:]),
        _slice_correlation(position[uniform], residual[uniform]),
        _local_level(position[usable], deviation[usable], edge, volume),
        edge,
    )


def equal_rmse_ct_noise(clean: CTVolume, protected: CTVolume, seed: int, texture: NoiseTexture) -> CTVolume:
    """``clean`` with noise like its own in place of the protection: same RMSE, within the voxels that may change.

    In every slice the RMSE is equal among voxels below -500 HU and among the others, so the control spends in lung what
    protection spends there. Within each of the two it is as strong as the scan's own noise is from place to place.

    :param texture: of ``clean``.
    :return: int16 HU of the same geometry, its RMSE against ``clean`` within 1 % of the protection's.
    :raises InputError: when the two scans do not share their geometry.
    """
    if not clean.same_geometry(protected):
        raise InputError("The control needs the protected scan of the same geometry; protect this very scan first.")
    noisy = clean.hu.copy()
    for k, draw in enumerate(draw_noise(texture, clean, seed)):
        before = clean.hu[k]
        change = np.subtract(protected.hu[k], before, dtype=np.float32)
        reach = neighbors(change != 0) & _has_signal(before)
        for tissue in (before < _LUNG_BELOW_HU, before >= _LUNG_BELOW_HU):
            where = reach & tissue
            noisy[k][where] = with_power(before[where], draw[where], float(np.sum(change[tissue] ** 2)))
    words = "noise like the scan's own, of the protection's RMSE, a control without a network"
    return clean.with_hu(noisy, ProcessingStep(NOISE_CONTROL, words, {"seed": seed}))


def noise_baseline(volume: CTVolume, rms_hu: float, seed: int = 0, texture: NoiseTexture | None = None) -> CTVolume:
    """Protection without a network: noise of this size in the patient, except in air and padding.

    :param rms_hu: root mean square of the change in every slice, over the voxels where it may lie.
    :param texture: from :func:`measure_texture` for noise like the scan's own; None for white Gaussian noise.
    :raises InputError: when the size is not a positive number of HU.
    """
    if not (np.isfinite(rms_hu) and 0 < rms_hu <= HIGHEST_HU - LOWEST_HU):
        raise InputError(f"Noise must be from 0 to 4095 HU, not {rms_hu}.")
    padding = volume.provenance.padding_hu
    mask = body_mask(volume.hu, padding, volume.spacing_kji)
    noisy = volume.hu.copy()
    # Wherever a budget allows any change at all; how much it allows plays no part.
    budget = Budget(strength_hu=40.0, soft_tissue=1.0, bone=1.0)
    for k, draw in enumerate(draw_noise(texture, volume, seed)):
        before = volume.hu[k]
        where = (allowed_change(before, budget, mask[k], padding) > 0) & _has_signal(before)
        noisy[k][where] = with_power(before[where], draw[where], rms_hu**2 * np.count_nonzero(where))
    kind = "noise like the scan's own" if texture else "white Gaussian noise"
    words = f"{kind} of {rms_hu:g} HU, a baseline without a network"
    return volume.with_hu(noisy, ProcessingStep(PROTECTION, words, {"rms_hu": float(rms_hu), "seed": seed}))


def draw_noise(texture: NoiseTexture | None, volume: CTVolume, seed: int) -> Iterator[np.ndarray]:
    """Noise for each slice (rows, columns), float32: in HU as the scan's own, or white of unit variance for None."""
    slices, *shape = volume.shape
    if texture is None:
        yield from (_white(seed, k, shape) for k in range(slices))
        return
    power = np.interp(_frequencies(shape, volume.spacing_kji[1:]), texture.frequency_per_mm, texture.power)
    power[0, 0] = 0  # noise does not move the mean of a slice
    # White noise gets the texture's spectrum and keeps its variance; of a real transform half is stored.
    gain = np.sqrt(power[:, : shape[1] // 2 + 1] / power.mean()).astype(np.float32)
    taps = _slice_taps(texture.slice_correlation)
    near = deque((_white(seed, k, shape) for k in range(len(taps) - 1)), maxlen=len(taps))
    for k in range(slices):
        near.append(_white(seed, k + len(taps) - 1, shape))
        mixed = sum(tap * white for tap, white in zip(taps, near, strict=True))
        colored = fft.irfft2(fft.rfft2(mixed) * gain, s=shape)
        yield (colored * texture.level(k, tuple(shape))).astype(np.float32)


def _soft_squares(volume: CTVolume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squares of soft tissue, each less its best quadratic surface.

    :return: (n, 3) slice, block down, block across; (n, edge, edge) what is left in HU; (n,) its standard deviation.
    """
    edge = max(_SQUARE_MINIMUM_VOXELS, round(_SQUARE_MM / float(np.mean(volume.spacing_kji[1:]))))
    surface = _quadratic_surfaces(edge)
    positions, residuals = [np.empty((0, 3), int)], [np.empty((0, edge * edge), np.float32)]
    for k, plane in enumerate(volume.hu):
        hu = np.maximum(plane, LOWEST_HU).astype(np.float32)
        smooth = ndimage.gaussian_filter(hu, 1.5, truncate=2.0)
        soft = _blocks((smooth > _TISSUE_HU[0]) & (smooth < _TISSUE_HU[1]), edge).all(axis=2)
        values = _blocks(hu, edge)[soft]
        positions.append(np.column_stack([np.full(len(values), k), *np.nonzero(soft)]))
        residuals.append(values - (values @ surface) @ surface.T)
    residual = np.concatenate(residuals)
    # The surface's six coefficients take six degrees of freedom.
    deviation = np.sqrt(np.sum(residual**2, axis=1) / (edge * edge - surface.shape[1]))
    return np.concatenate(positions), residual.reshape(-1, edge, edge), deviation


def _blocks(plane: np.ndarray, edge: int) -> np.ndarray:
    """(blocks down, blocks across, edge * edge) of a plane; what does not fill a block is left out."""
    down, across = plane.shape[0] // edge, plane.shape[1] // edge
    whole = plane[: down * edge, : across * edge].reshape(down, edge, across, edge)
    return whole.swapaxes(1, 2).reshape(down, across, edge * edge)


def _quadratic_surfaces(edge: int) -> np.ndarray:
    """(edge * edge, 6) orthonormal basis of all quadratic surfaces over a square."""
    j, i = np.mgrid[:edge, :edge] / (edge - 1) - 0.5
    terms = np.stack([np.ones_like(j), j, i, j * i, j**2, i**2]).reshape(6, -1)
    return np.linalg.qr(terms.T)[0].astype(np.float32)


def _radial_spectrum(residual: np.ndarray, spacing: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in 1/mm and the radial mean of the power spectrum in HU^2 mm^2 of squares (n, edge, edge) in HU."""
    edge = residual.shape[1]
    surface = _quadratic_surfaces(edge).T.reshape(-1, edge, edge)
    power = np.mean(np.abs(np.fft.fft2(residual)) ** 2, axis=0)
    # What the surfaces that were taken off left of each coefficient of white noise, which had edge^2 before.
    left = edge**2 - np.sum(np.abs(np.fft.fft2(surface)) ** 2, axis=0)
    step = 1 / (edge * float(np.mean(spacing)))
    ring = np.rint(_frequencies((edge, edge), spacing) / step).astype(int).ravel()
    power_of_ring, left_of_ring = (np.bincount(ring, values.ravel()) for values in (power, left))
    radial = spacing[0] * spacing[1] * power_of_ring / np.maximum(left_of_ring, 1e-6 * edge**2)
    # The surfaces hold the mean of the square, so the spectrum says nothing at frequency 0.
    radial[0] = radial[1]
    return np.arange(len(radial)) * step, radial


def _frequencies(shape: Sequence[int], spacing: tuple[float, float]) -> np.ndarray:
    """Radial frequency in 1/mm of every coefficient of a 2-D transform."""
    down, across = map(np.fft.fftfreq, shape, spacing)
    return np.hypot(down[:, None], across[None, :])


def _slice_correlation(position: np.ndarray, residual: np.ndarray) -> tuple[float, ...]:
    number = {tuple(place): index for index, place in enumerate(position.tolist())}
    correlations = []
    for lag in range(1, _LAGS + 1):
        pairs = [(n, number[k + lag, j, i]) for (k, j, i), n in number.items() if (k + lag, j, i) in number]
        first, second = residual[np.array(pairs, int).reshape(-1, 2).T].astype(np.float64)
        energy = (np.sum(first**2) + np.sum(second**2)) / 2
        correlations.append(float(np.sum(first * second) / energy) if energy else 0.0)
    return tuple(correlations)


def _local_level(position: np.ndarray, deviation: np.ndarray, edge: int, volume: CTVolume) -> np.ndarray:
    slices, rows, columns = volume.shape
    shape = (slices, max(1, rows // edge), max(1, columns // edge))
    weight, total = np.zeros(shape), np.zeros(shape)
    weight[tuple(position.T)] = 1
    total[tuple(position.T)] = deviation
    mean = total.sum() / weight.sum()
    along, within = _LEVEL_REACH_MM
    block_mm = edge * float(np.mean(volume.spacing_kji[1:]))
    sigma = (along / volume.spacing_kji[0], within / block_mm, within / block_mm)
    weight, total = (ndimage.gaussian_filter(values, sigma, mode="constant") for values in (weight, total))
    prior = _LEVEL_PRIOR * weight.max()
    return ((total + prior * mean) / (weight + prior)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _slice_taps(correlation: tuple[float, ...]) -> tuple[float, ...]:
    """Symmetric weights over neighboring slices, of energy 1, that give white noise this correlation."""
    angle = 2 * np.pi * np.fft.fftfreq(64)
    spectrum = 1 + 2 * sum(value * np.cos(lag * angle) for lag, value in enumerate(correlation, start=1))
    taps = np.fft.ifft(np.sqrt(np.maximum(spectrum, 0))).real
    near = np.concatenate([taps[-_TAPS:], taps[: _TAPS + 1]])
    return tuple((near / np.sqrt(np.sum(near**2))).tolist())


def _white(seed: int, k: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng((seed, k)).standard_normal(tuple(shape), dtype=np.float32)


def _has_signal(hu: np.ndarray) -> np.ndarray:
    """Where a change may lie at all: not at the ends of 12-bit CT, which hold saturation and padding."""
    return (hu > LOWEST_HU) & (hu < HIGHEST_HU)


def with_power(before: np.ndarray, draw: np.ndarray, wanted: float) -> np.ndarray:
    """``before`` plus ``draw`` (both (n,)), scaled so that the squares of the whole HU added sum up to ``wanted``."""
    if wanted == 0 or draw.size == 0:
        return before

    def excess(scale: float) -> float:
        return float(np.sum(np.square(np.rint(draw * scale), dtype=np.float64))) - wanted

    # Rounding makes the sum a staircase, flat at 0 for small scales: a bracket is safer than corrections.
    # A float, as brentq's own: NumPy's would make the product float64 here alone, and the bracket miss the root.
    high = math.sqrt(wanted / float(np.sum(np.square(draw, dtype=np.float64))))
    while excess(high) < 0:
        high *= 1.5
    scale = optimize.brentq(excess, 0, high, rtol=1e-5, xtol=1e-9)
    return np.clip(before + np.rint(draw * scale), LOWEST_HU + 1, HIGHEST_HU - 1).astype(np.int16)
