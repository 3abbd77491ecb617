"""Training cubes of the attacker: nodules for the injector, healthy lung for the remover, at 1 mm, in HU.

Cubes are int16 (slices, rows, columns); training cuts 32 mm out of a larger one so that rotation and shift have room.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from MITSGANLib.errors import InputError
from MITSGANLib.scan.cubes import CUBE_MM
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.volume import CTVolume, hu_from_float

MARGIN_MM = 8  # as CT-GAN: the cube is cut 8 mm larger than needed and trimmed after augmentation


@dataclass(frozen=True)
class CubeSet:
    """Cubes (n, edge, edge, edge) int16 HU at 1 mm and the patient each came from, for splits without overlap."""

    hu: np.ndarray
    patients: np.ndarray

    def centers(self) -> np.ndarray:
        """The middle 32 mm of every cube, int16 (n, 32, 32, 32)."""
        return np.stack([_crop(cube, _middle(cube)) for cube in self.hu])

    def split(self, validation_share: float, seed: int) -> tuple[CubeSet, CubeSet]:
        """Seeded split by patient into training and validation; each patient is on one side only.

        :raises InputError: when one side would be empty.
        """
        names = np.unique(self.patients)
        shuffled = np.random.default_rng(seed).permutation(names)
        return self.hold_out(tuple(shuffled[: round(len(names) * validation_share)]))

    def hold_out(self, patients: tuple[str, ...]) -> tuple[CubeSet, CubeSet]:
        """The cubes of all other patients for training, those of ``patients`` for validation.

        :raises InputError: when one side would be empty.
        """
        validation = np.isin(self.patients, patients)
        if not validation.any() or validation.all():
            raise InputError(
                f"Holding out {len(patients)} of {len(np.unique(self.patients))} patients leaves training or "
                "validation without cubes; add patients or hold out others."
            )
        training, held_out = (CubeSet(self.hu[side], self.patients[side]) for side in (~validation, validation))
        return training, held_out


def load_nodule_cubes(path: Path, minimum_mm: float = 10.0) -> CubeSet:
    """Cubes around nodules of at least ``minimum_mm`` from an ``.npz`` with hu, patient and diameter_mm.

    :raises InputError: when the file is missing, lacks one of these, or no nodule is large enough.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; --data must name the folder that holds nodule_cubes.npz.")
    with np.load(path, allow_pickle=False) as data:
        missing = {"hu", "patient", "diameter_mm"} - set(data.files)
        if missing:
            raise InputError(f"{path} lacks {', '.join(sorted(missing))}; expected nodule cubes with these arrays.")
        large = data["diameter_mm"] >= minimum_mm
        if not large.any():
            raise InputError(f"{path} has no nodule of at least {minimum_mm} mm.")
        return CubeSet(data["hu"][large].astype(np.int16), data["patient"][large])


def cut_lung_cubes(volume: CTVolume, patient: str, count: int, seed: int, avoid: np.ndarray | None = None) -> CubeSet:
    """Cubes of ``CUBE_MM + MARGIN_MM`` at 1 mm around seeded lung voxels.

    :param avoid: bool (slices, rows, columns); a cube whose box touches it is left out (known nodules).
    :raises InputError: when none is left.
    """
    import torch
    from MITSGANLib.scan.cubes import cube_start, cut, rescale

    edge = CUBE_MM + MARGIN_MM
    scan = torch.from_numpy(volume.hu.copy())
    shape = tuple(int(n) for n in np.round(edge / np.asarray(volume.spacing_kji)))
    cubes = []
    for center in lung_positions(volume, count, seed, margin_mm=edge / 2):
        start = cube_start(center, shape)
        box = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        if avoid is None or not avoid[box].any():
            cubes.append(hu_from_float(rescale(cut(scan, start, shape), (edge,) * 3).numpy()))
    if not cubes:
        raise InputError(f"No cube of {patient} keeps clear of what must be avoided; check the segmentation.")
    return CubeSet(np.stack(cubes), np.full(len(cubes), patient))


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
    from scipy import ndimage

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
    return np.stack(
        [
            *(_crop(variant, low) for variant in flips),
            *(hu_from_float(_turned_middle(slices, angle, low[1:])) for angle in range(6, 360, 6)),
            *(_crop(cube, shifted) for shifted in shifts),
        ]
    )


def _turned_middle(splines: np.ndarray, degrees: float, low: np.ndarray) -> np.ndarray:
    """The middle (n, 32, 32) of slices turned about their center, from their spline coefficients (n, rows, columns).

    What ``ndimage.rotate`` gives, without working out what is cropped: 3 times as fast on cubes of 51 mm.
    """
    from scipy import ndimage

    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    center = (np.array(splines.shape[1:]) - 1) / 2
    offset = center + matrix @ (low - center)
    options = {"offset": offset, "output_shape": (CUBE_MM, CUBE_MM), "mode": "reflect", "prefilter": False}
    return np.stack([ndimage.affine_transform(plane, matrix, **options) for plane in splines])


def _variants(cube: np.ndarray, count: int, rng: np.random.Generator, shifted_share: float) -> Iterator[np.ndarray]:
    from scipy import ndimage

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
