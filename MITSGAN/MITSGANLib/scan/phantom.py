"""A synthetic thorax, for tests and demonstrations that must not depend on patients' data.

Positions are in LPS mm around the volume's center: x to the patient's left, y to posterior, z to superior. Arrays are
(slice, row, column). Proportions are those of an adult; nothing is fitted to any scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .volume import CTVolume, Provenance

SOURCE = "synthetic thorax phantom (no patient)"
PADDING_HU = -2000

_EXTENT_MM = (240.0, 360.0, 360.0)
_AIR, _FAT, _MUSCLE, _SOFT, _LUNG, _VESSEL, _NODULE = -1000, -100, 50, 40, -860, 40, 30
_DIAPHRAGM_MM = -70.0
_APEX_MM = 112.0
_HILA = {"right": (-30.0, 8.0, 5.0), "left": (32.0, 8.0, 10.0)}

_Grid = tuple[np.ndarray, np.ndarray, np.ndarray]  # z, y, x in mm of voxel centers, to be broadcast


@dataclass(frozen=True)
class Phantom:
    """A synthetic scan and where its nodule is.

    :param nodule_kji: (slice, row, column) of the nodule's center voxel; None when it has none.
    """

    volume: CTVolume
    nodule_kji: tuple[int, int, int] | None
    nodule_diameter_mm: float | None


@dataclass(frozen=True)
class _Segment:
    """A piece of a vessel: a cone from one LPS point to another, radii in mm."""

    start: np.ndarray
    end: np.ndarray
    start_radius: float
    end_radius: float


def thorax_phantom(
    shape: Sequence[int] = (96, 256, 256),
    spacing_kji: Sequence[float] | None = None,
    seed: int = 0,
    noise_hu: float = 12.0,
    nodule: bool = True,
    nodule_diameter_mm: float = 14.0,
    padding: bool = False,
) -> Phantom:
    """A thorax with skin, fat, muscle, ribs, spine, sternum, heart, aorta, airways, lungs with vessels, and a table.

    The same arguments give the same voxels. With another ``nodule``, ``noise_hu`` or ``padding``, all else is the same.

    :param shape: (slices, rows, columns).
    :param spacing_kji: mm along (slice, row, column); None spreads 240 x 360 x 360 mm over ``shape``.
    :param noise_hu: standard deviation of the noise, which has the correlation of a soft kernel.
    :param nodule: put a solid nodule into a lung.
    :param padding: set what lies outside the inscribed circle to -2000 HU, as GE scanners do, and declare it.
    :raises InputError: when the shape or spacing cannot hold a thorax.
    """
    from scipy import ndimage

    if len(shape) != 3 or min(shape) < 8:
        raise InputError(f"A phantom needs at least 8 slices, rows and columns, not {tuple(shape)}.")
    shape = tuple(int(size) for size in shape)
    spacing = tuple(float(mm) for mm in spacing_kji or (mm / size for mm, size in zip(_EXTENT_MM, shape, strict=True)))
    if len(spacing) != 3 or min(spacing) <= 0 or noise_hu < 0:
        raise InputError(
            f"Spacing must be three positive numbers in mm and noise not negative, not {spacing}, {noise_hu}."
        )
    # A stream for each purpose, so that leaving one part out changes no other.
    vessel_random, texture_random, nodule_random, noise_random = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
    )
    positions = (((np.arange(n) - (n - 1) / 2) * mm).astype(np.float32) for n, mm in zip(shape, spacing, strict=True))
    z, y, x = np.ix_(*positions)
    hu, lung = _anatomy(z, y, x)
    texture = _band_noise(texture_random, shape, 1.6)
    hu[lung] += 22 * texture[lung] + (0.25 * np.broadcast_to(y, shape))[lung]
    hu[~lung] += np.where(hu[~lung] > -300, 4 * texture[~lung], 0)
    vessels = np.zeros(shape, np.float32)
    for segment in _draw_vessels(vessel_random):
        _paint_segment(vessels, segment, (z, y, x), spacing)
    vessels[~lung] = 0
    hu += vessels * (_VESSEL - hu)
    center = _choose_nodule_voxel(nodule_random, lung, vessels, nodule_diameter_mm, spacing)
    if nodule:
        _paint_nodule(hu, center, nodule_diameter_mm, spacing)
    # As a scanner does: blurred, with noise, and within the 12 bits of CT.
    hu = ndimage.gaussian_filter(hu, (0.3, 0.6, 0.6), truncate=3.0)
    hu += noise_hu * _band_noise(noise_random, shape, 0.7)
    values = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    provenance = Provenance(source=SOURCE, format="synthetic", padding_hu=PADDING_HU if padding else None)
    if padding:
        outside = y**2 + x**2 > (min(shape[1] * spacing[1], shape[2] * spacing[2]) / 2) ** 2
        values[np.broadcast_to(outside, shape)] = PADDING_HU
    origin = (float(x.min()), float(y.min()), float(z.min()))
    volume = CTVolume(values, spacing[::-1], origin, provenance=provenance)
    return Phantom(volume, center if nodule else None, float(nodule_diameter_mm) if nodule else None)


def sample_phantom() -> Phantom:
    """The sample of the panel: voxels and noise of a clinical scan, since of larger voxels an examination tells little.

    Protected with the default, it is found to be untouched in all of the lungs, and its nodule's removal is found.
    """
    return thorax_phantom((48, 320, 400), (2.5, 0.9, 0.9), noise_hu=20.0)


def _anatomy(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HU without vessels, texture and noise as float32, and the lungs as bool."""
    shape = np.broadcast_shapes(z.shape, y.shape, x.shape)
    hu = np.full(shape, _AIR, np.float32)
    _paint_table(hu, y, x)

    # Depth under the skin, in mm where the body is thinnest; shoulders widen the upper body.
    half_width = 158 + 12 / (1 + np.exp(-(z - 70) / 12))
    depth = (1 - _superellipse(x / half_width, (y + 8) / 112, 2.5)) * 112
    hu[depth > 0] = 0
    hu[depth > 2] = _FAT
    hu[depth > 16 + 4 * np.sin(6 * np.arctan2(y + 8, x))] = _MUSCLE

    # The rib cage narrows to the top; lungs fill it but for the mediastinum and what lies under the diaphragm.
    height = np.clip((z - 20) / (_APEX_MM - 20), 0, 0.999)
    narrowing = np.sqrt(1 - height**3.2)
    cage = _superellipse(x / (130 * narrowing), (y + 6) / (86 * narrowing), 2.3)
    hu[(cage < 1.0) & (depth > 0)] = _SOFT
    dome = _DIAPHRAGM_MM + 42 * np.exp(-(((np.abs(x) - 62) / 46) ** 2)) * np.exp(-(((y + 15) / 62) ** 2))
    dome = dome + np.where(x < 0, 8, 0)
    middle = _superellipse(x / (26 + 10 * np.exp(-(((z - 5) / 30) ** 2))), (y - 2) / 92, 2.0)
    heart = ((x - 26) / 56) ** 2 + ((y + 34) / 42) ** 2 + ((z + 36) / 52) ** 2
    # Paravertebral tissue: lungs reach back beside the spine, not through it.
    spine_tissue = (x / 32) ** 2 + ((y - 62) / 30) ** 2
    lung = (cage < 0.97) & (z > dome) & (z < _APEX_MM - 3) & (middle > 1) & (heart > 1) & (spine_tissue > 1)
    abdomen = (cage < 0.97) & (z <= dome)
    hu[abdomen] = np.where(np.broadcast_to(x, shape)[abdomen] < 12, 58, 46)
    hu[(cage < 1.0) & (middle <= 1) & (z > dome) & (heart > 1.12) & (y < 25)] = -60
    hu[(heart < 1) & (cage < 0.97) & (z > dome)] = 45
    hu[lung] = _LUNG

    _paint_great_vessels_and_airways(hu, (z, y, x), dome)
    _paint_bones(hu, (z, y, x), cage, narrowing, depth)
    return hu, lung & (hu == _LUNG)


def _paint_table(hu: np.ndarray, y: np.ndarray, x: np.ndarray) -> None:
    surface = 112 - 26 * (x / 200) ** 2
    foam = (y > surface) & (y < surface + 26) & (np.abs(x) < 172)
    shell = foam & ((y < surface + 3) | (y > surface + 23))
    for part, value in ((foam, -930), (shell, 150)):
        hu[np.broadcast_to(part, hu.shape)] = value


def _paint_great_vessels_and_airways(hu: np.ndarray, grid: _Grid, dome: np.ndarray) -> None:
    z, y, x = grid
    descending = ((x - 20) ** 2 + (y - 36) ** 2 < 12**2) & (z < 45)
    arch = ((z - 45) ** 2 + (y - 6) ** 2 > 18**2) & ((z - 45) ** 2 + (y - 6) ** 2 < 42**2) & (z > 45)
    ascending = ((x + 12) ** 2 + (y + 24) ** 2 < 15**2) & (z > -5) & (z < 45)
    cava = ((x + 30) ** 2 + (y + 14) ** 2 < 9**2) & (z > 0)
    for part in (descending, arch & (np.abs(x - 4) < 12), ascending, cava):
        hu[np.broadcast_to(part, hu.shape)] = 48
    carina = 20.0
    trachea = ((x / 9) ** 2 + ((y - 10) / 8) ** 2) < 1
    wall = ((x / 11) ** 2 + ((y - 10) / 10) ** 2) < 1
    hu[wall & (z > carina) & (hu > -500)] = 30
    hu[np.broadcast_to(trachea & (z > carina), hu.shape)] = _AIR
    # Main bronchi run down and outwards from the carina to the hila.
    fall = carina - z
    for side in (-1, 1):
        tube = ((x - side * 1.5 * fall) / 9) ** 2 + ((y - 10) / 6) ** 2
        within = (fall >= -2) & (fall < 17)
        hu[(tube < 1.9) & within & (hu > -500)] = 30
        hu[np.broadcast_to((tube < 1) & within, hu.shape)] = _AIR
    stomach_gas = ((x - 58) / 26) ** 2 + ((y + 38) / 20) ** 2 + ((z + 92) / 16) ** 2
    hu[(stomach_gas < 1) & (z < dome - 8)] = _AIR


def _paint_bones(hu: np.ndarray, grid: _Grid, cage: np.ndarray, narrowing: np.ndarray, depth: np.ndarray) -> None:
    z, y, x = grid
    # Ribs fall from the spine to the front, so that a slice cuts them into short obliques.
    along = z - 0.42 * y - 0.06 * np.abs(x)
    phase = np.abs((along % 25.0) - 12.5)
    across = (cage - 1.045) * 86 * narrowing
    rib = (across / 4.4) ** 2 + (phase / 6.5) ** 2
    beside = (np.abs(x) > 20) & (depth > 6)
    hu[(rib < 1) & beside] = 520
    hu[(rib < 0.4) & beside] = 190
    level = np.abs((z % 27.0) - 13.5)
    body = (x / 19) ** 2 + ((y - 62) / 15) ** 2
    hu[(body < 1) & (level < 11)] = 430
    hu[(body < 0.8) & (level < 9.5)] = 190
    hu[(body < 1) & (level >= 11)] = 80
    canal = (x / 10) ** 2 + ((y - 84) / 8) ** 2
    arch = (x / 15) ** 2 + ((y - 84) / 13) ** 2
    process = (np.abs(x) < 3.5 - 0.05 * (y - 84)) & (y > 90) & (y < 99) & (level < 9)
    transverse = (np.abs(y - 80 + 0.1 * np.abs(x)) < 4) & (np.abs(x) < 34) & (level < 6)
    hu[(arch < 1) & (level < 11)] = 420
    hu[np.broadcast_to(process | transverse, hu.shape)] = 380
    hu[np.broadcast_to(canal < 1, hu.shape)] = 30
    sternum = (x / 19) ** 2 + ((y + 98 - 0.10 * (z - 20)) / 6) ** 2
    within = (z > -45) & (z < 95)
    hu[(sternum < 1) & within] = 420
    hu[(sternum < 0.6) & within] = 150


def _superellipse(u: np.ndarray, v: np.ndarray, power: float) -> np.ndarray:
    return (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)


def _draw_vessels(random: np.random.Generator) -> Iterator[_Segment]:
    """Branching, tapering trees from both hila, in LPS mm."""
    for side, hilum in _HILA.items():
        outwards = -1.0 if side == "right" else 1.0
        for tilt in (-1.2, -0.6, 0.0, 0.6, 1.3):
            for turn in (-0.6, 0.6):
                direction = np.array(
                    (outwards, turn + 0.2 * random.standard_normal(), tilt + 0.15 * random.standard_normal())
                )
                yield from _grow(random, np.array(hilum), direction / np.linalg.norm(direction), 4.0, 7)


def _grow(
    random: np.random.Generator, start: np.ndarray, direction: np.ndarray, radius: float, generations: int
) -> Iterator[_Segment]:
    length = (8.0 + 4.5 * radius) * random.uniform(0.8, 1.2)
    end = start + length * direction
    thinner = radius * random.uniform(0.72, 0.84)
    yield _Segment(start, end, radius, thinner)
    if generations == 1:
        return
    bend = random.standard_normal(3)
    bend -= bend @ direction * direction
    bend /= np.linalg.norm(bend)
    # The thinner branch turns more, as in real trees.
    for sign, angle, scale in ((1, random.uniform(0.25, 0.5), 1.0), (-1, random.uniform(0.5, 0.9), 0.85)):
        turned = np.cos(angle) * direction + sign * np.sin(angle) * bend
        yield from _grow(random, end, turned, thinner * scale, generations - 1)


def _paint_segment(coverage: np.ndarray, segment: _Segment, grid: _Grid, spacing: Sequence[float]) -> None:
    """Raise ``coverage`` (0..1) to the share of each voxel that the segment fills, softly at its surface."""
    start, end = segment.start[::-1], segment.end[::-1]
    blur = float(np.mean(spacing))
    reach = segment.start_radius + blur
    box = []
    for axis, low, high in zip(grid, np.minimum(start, end) - reach, np.maximum(start, end) + reach, strict=True):
        first, last = np.searchsorted(axis.ravel(), (low, high))
        box.append(slice(int(first), int(last)))
    here = coverage[tuple(box)]
    if here.size == 0:
        return
    z, y, x = grid
    offsets = (z[box[0]] - start[0], y[:, box[1]] - start[1], x[:, :, box[2]] - start[2])
    line = end - start
    along = sum(offset * part for offset, part in zip(offsets, line, strict=True)) / (line @ line)
    along = np.clip(along, 0, 1)
    distance = np.sqrt(sum((offset - along * part) ** 2 for offset, part in zip(offsets, line, strict=True)))
    radius = segment.start_radius + along * (segment.end_radius - segment.start_radius)
    # A vessel thinner than a voxel fills only part of it.
    strength = np.minimum(1, (2 * radius / blur) ** 2)
    np.maximum(here, strength * np.clip((radius - distance) / blur + 0.5, 0, 1), out=here)


def _choose_nodule_voxel(
    random: np.random.Generator, lung: np.ndarray, vessels: np.ndarray, diameter_mm: float, spacing: Sequence[float]
) -> tuple[int, int, int]:
    """A voxel of lung around which a nodule is surrounded by lung and few vessels; the best of 200 drawn."""
    candidates = np.argwhere(lung)
    if len(candidates) == 0:
        raise InputError("The phantom's shape and spacing hold no lung; let it span about 240 x 360 x 360 mm.")
    reach = [max(1, round(0.8 * diameter_mm / mm)) for mm in spacing]
    # Near the middle of the scan, so that CT-GAN's 32 mm cube fits around it.
    free = lung.astype(np.float32) - vessels

    def score(center: np.ndarray) -> float:
        box = tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(center, reach, strict=True))
        from_end = np.min(np.minimum(center + 0.5, lung.shape - center - 0.5) * spacing)
        return float(free[box].mean()) - max(0.0, 20 - from_end)

    return tuple(max(candidates[random.integers(len(candidates), size=200)], key=score).tolist())


def _paint_nodule(hu: np.ndarray, center: tuple[int, int, int], diameter_mm: float, spacing: Sequence[float]) -> None:
    blur = float(np.mean(spacing))
    offsets = np.ogrid[tuple(slice(-c, size - c) for c, size in zip(center, hu.shape, strict=True))]
    dz, dy, dx = (offset * mm for offset, mm in zip(offsets, spacing, strict=True))
    distance = np.sqrt(dz**2 + dy**2 + dx**2)
    # Slightly lobulated: the radius swings by 8 %.
    radius = diameter_mm / 2 * (1 + 0.08 * np.sin(3 * np.arctan2(dy, dx) + dz / 3))
    coverage = np.clip((radius - distance) / blur + 0.5, 0, 1).astype(np.float32)
    hu += coverage * (_NODULE - hu)


def _band_noise(random: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Noise of zero mean and unit standard deviation without the lowest and highest in-plane frequencies, float32.

    Reconstruction filters a projection's noise with a ramp and a window; the spectrum rises, then falls.
    """
    from scipy import ndimage

    white = random.standard_normal(shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(white, (0.35, sigma, sigma), truncate=3.0)
    noise -= ndimage.gaussian_filter(noise, (0, 3 * sigma, 3 * sigma), truncate=2.0)
    return (noise - noise.mean()) / noise.std()
