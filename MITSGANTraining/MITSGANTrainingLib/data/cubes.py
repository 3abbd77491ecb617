"""Training cubes of the attacker: nodules for the injector, healthy lung for the remover, at 1 mm, in HU.

Cubes are int16 (slices, rows, columns); training cuts 32 mm out of a larger one so that rotation and shift have room.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from MITSGANLib.errors import InputError
from MITSGANLib.scan.cubes import CUBE_MM
from MITSGANLib.scan.volume import hu_from_float
from scipy import ndimage

MARGIN_MM = 8  # as CT-GAN: the cube is cut 8 mm larger than needed and trimmed after augmentation


@dataclass(frozen=True)
class CubeSet:
    """Cubes (n, edge, edge, edge) int16 HU at 1 mm and the patient each came from, for splits without overlap."""

    hu: np.ndarray
    patients: np.ndarray

    def centers(self) -> np.ndarray:
        """The middle 32 mm of every cube, int16 (n, 32, 32, 32)."""
        return np.stack([_crop(cube, _middle(cube)) for cube in self.hu])


def augment(cubes: CubeSet, per_cube: int, seed: int, shifted_share: float = 1.0) -> np.ndarray:
    """In-plane rotations by any angle, flips and shifts of up to 4 mm, as CT-GAN's augmentation, drawn with a seed.

    :param shifted_share: share of the variants that are shifted; CT-GAN shifts 4 of 67.
    :return: int16 (cubes x per_cube, 32, 32, 32) HU; the first of each cube is the cube as it is.
    """
    rng = np.random.default_rng(seed)
    return np.stack([sample for cube in cubes.hu for sample in _variants(cube, per_cube, rng, shifted_share)])


def published_variants(cube: np.ndarray) -> np.ndarray:
    """CT-GAN's own list of variants of a cube of at least 40 mm, int16 (67, 32, 32, 32), the cube itself first.

    Three flips in the plane, four diagonal shifts by 4 mm, and 59 rotations in the plane by 6 to 354 degrees; so the
    paper's 169 nodules became 11,323 samples.

    :raises InputError: when the cube is too small to be shifted.
    """
    low = _middle(cube)
    if low.min() < MARGIN_MM // 2:
        raise InputError(
            f"A cube of {min(cube.shape)} mm leaves no room for CT-GAN's shifts by 4 mm; prepare cubes of at least "
            f"{CUBE_MM + MARGIN_MM} mm, or set augmentation.kind to random."
        )
    flips = [cube, cube[:, ::-1], cube[:, :, ::-1], cube[:, ::-1, ::-1]]
    shifts = [np.add(low, (0, row, column)) for row in (-4, 4) for column in (-4, 4)]
    # Each slice turns by itself, so only the middle ones do, and their splines serve all angles.
    slices = cube[low[0] : low[0] + CUBE_MM].astype(np.float64)
    for axis in (1, 2):
        slices = ndimage.spline_filter1d(slices, order=3, axis=axis, mode="reflect")
    variants = [_crop(variant, low) for variant in flips]
    variants += [hu_from_float(_turned_middle(slices, angle, low[1:])) for angle in range(6, 360, 6)]
    variants += [_crop(cube, shifted) for shifted in shifts]
    return np.stack(variants)


def _turned_middle(splines: np.ndarray, degrees: float, low: np.ndarray) -> np.ndarray:
    """The middle (n, 32, 32) of slices turned about their center, from their spline coefficients (n, rows, columns).

    What ``ndimage.rotate`` gives, without working out what is cropped: 3 times as fast on cubes of 51 mm.
    """
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    center = (np.array(splines.shape[1:]) - 1) / 2
    offset = center + matrix @ (low - center)
    options = {"offset": offset, "output_shape": (CUBE_MM, CUBE_MM), "mode": "reflect", "prefilter": False}
    return np.stack([ndimage.affine_transform(plane, matrix, **options) for plane in splines])


def _variants(cube: np.ndarray, count: int, rng: np.random.Generator, shifted_share: float) -> Iterator[np.ndarray]:
    low = _middle(cube)
    yield _crop(cube, low)
    room = np.minimum(4, low)
    for _ in range(count - 1):
        angle = float(rng.uniform(0, 360))
        flips = rng.random(3) < 0.5
        shift = rng.integers(-room, room + 1)
        if shifted_share < 1 and rng.random() >= shifted_share:
            shift[:] = 0
        turned = ndimage.rotate(cube.astype(np.float32), angle, axes=(1, 2), reshape=False, order=1, mode="reflect")
        for axis in np.flatnonzero(flips):
            turned = np.flip(turned, axis)
        yield hu_from_float(_crop(turned, low + shift))


def _crop(cube: np.ndarray, start: np.ndarray) -> np.ndarray:
    return cube[tuple(slice(a, a + CUBE_MM) for a in start)]


def _middle(cube: np.ndarray) -> np.ndarray:
    return (np.array(cube.shape) - CUBE_MM) // 2
