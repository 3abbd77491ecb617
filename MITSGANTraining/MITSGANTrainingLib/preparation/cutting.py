"""Samples out of one scan: cubes at 1 mm around findings and in healthy lung, and positions for protectors.

Nothing is augmented here. CT-GAN stores 67 variants of each cube (itself, 3 flips, 4 shifts by 4 mm, 59 rotations); the
same variants, and all those in between, are drawn in training from the one cube stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from MITSGANLib.errors import InputError, TargetError
from MITSGANLib.scan.cubes import CUBE_MM
from MITSGANLib.scan.lungs import distance_to_border_mm, lung_mask, lung_positions, nodule_like_positions
from MITSGANLib.scan.volume import HIGHEST_HU, LOWEST_HU, CTVolume, hu_from_float
from scipy import ndimage

from ..data.dataset import Finding, Role

# Edge of the stored cubes in voxels of 1 mm. A cube of 32 turned by any angle in its plane reaches 32 * sqrt(2) / 2 =
# 22.6 mm from its middle, and 0.5 more for interpolation; shifted by 4 mm it reaches 20 mm. CT-GAN turns or shifts,
# never both, so 47 would do. 51 leaves room for a turned cube shifted by 2 mm, has a middle voxel as every odd edge
# has, and is what the public LIDC nodule cubes come with.
EDGE = 51
_SPLINE_REACH = 12  # voxels after which a cubic spline's coefficients have forgotten the border


@dataclass(frozen=True)
class PreparationOptions:
    """What is taken from each scan; sizes in mm as CT-GAN has them.

    :param positions: healthy places per scan for the remover, besides findings under ``remover_below_mm``.
    :param readers: a nodule is used when at least so many readers marked it, and a voxel of a segmentation when its
        value is at least this (a map of votes); what fewer marked is kept clear of all the same.
    :param injector_from_mm: smallest diameter of a nodule for the injector; of unmeasured ones all are taken.
    :param injector_to_mm: largest; the middle slice of a cube around a larger one than 32 * sqrt(2) mm would show
        nothing else. CT-GAN has no such limit, and LIDC hardly such nodules.
    :param lung_targets: lung positions per scan for protectors; ``structures`` as many nodule-like ones.
    :raises InputError: for numbers that make no sense.
    """

    positions: int = 100
    readers: int = 1
    injector_from_mm: float = 10.0
    injector_to_mm: float = 45.0
    remover_below_mm: float = 3.0
    lung_targets: int = 2000
    structures: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.positions < 0:
            raise InputError(f"The number of positions cannot be {self.positions}; give 0 or more.")
        if self.readers < 1:
            raise InputError(f"The number of readers cannot be {self.readers}; give 1 or more.")
        if self.seed < 0:
            raise InputError(f"The seed cannot be {self.seed}; give 0 or more.")


@dataclass(frozen=True)
class Samples:
    """Cubes for one model: ``hu`` int16 (n, edge, edge, edge) at 1 mm along the scan's own axes, NaN diameters where
    unknown or healthy, and centers (n, 3) as (slice, row, column) of the scan."""

    hu: np.ndarray
    diameter_mm: np.ndarray
    kji: np.ndarray


@dataclass(frozen=True)
class Cutting:
    """All that one scan gives, and (what, reason) for findings that give no cube."""

    samples: dict[Role, Samples]
    lung_positions: list[tuple[int, int, int]]
    nodule_like_positions: list[tuple[int, int, int]]
    left_out: tuple[tuple[str, str], ...]


def role_of(finding: Finding, options: PreparationOptions) -> Role | None:
    """Which model a finding's cube trains, or None for one that is only kept clear of."""
    if finding.kind in ("small nodule", "healthy"):
        return "remover"
    if finding.kind != "nodule" or (finding.readers is not None and finding.readers < options.readers):
        return None
    if finding.diameter_mm is None or options.injector_from_mm <= finding.diameter_mm <= options.injector_to_mm:
        return "injector"
    return "remover" if finding.diameter_mm < options.remover_below_mm else None


def cut_samples(volume: CTVolume, findings: Sequence[Finding], options: PreparationOptions, seed: int) -> Cutting:
    """Everything that one scan gives for training.

    :param seed: of this scan's draws.
    :raises TargetError: when the scan shows no lung 16 mm from its border, where targets could be.
    """
    lung_seed, healthy_seed = (int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(2))
    lung = lung_mask(volume)
    targets = lung_positions(volume, options.lung_targets, lung_seed, CUBE_MM / 2, lung)
    chosen: dict[Role, list[Finding]] = {"injector": [], "remover": []}
    left_out = []
    for finding in findings:
        role = role_of(finding, options)
        what = "{} at slice {:.0f}, row {:.0f}, column {:.0f}".format(finding.kind, *finding.kji)
        if role and distance_to_border_mm(volume, finding.kji) < CUBE_MM / 2:
            left_out.append((what, f"its {CUBE_MM} mm cube leaves the scan"))
        elif role:
            chosen[role].append(finding)
        elif (finding.diameter_mm or 0) > options.injector_to_mm:
            reason = f"with {finding.diameter_mm:.0f} mm it is larger than what a {CUBE_MM} mm cube shows"
            left_out.append((what, reason))
    healthy = healthy_positions(volume, findings, options.positions, healthy_seed, lung)
    chosen["remover"] += [Finding(tuple(map(float, kji)), None, "healthy", None, 0.0) for kji in healthy]
    samples = {role: _samples(volume, places) for role, places in chosen.items()}
    return Cutting(samples, targets, nodule_like_positions(volume, options.structures), tuple(left_out))


def healthy_positions(
    volume: CTVolume, findings: Sequence[Finding], count: int, seed: int, lung: np.ndarray
) -> list[tuple[int, int, int]]:
    """Seeded lung voxels (slice, row, column) whose whole stored cube lies in the scan and clear of every finding.

    :param lung: as ``lung_mask`` gives it.
    :return: at most ``count`` different positions; fewer where the scan has not as many, none where it has none.
    """
    clear = lung.copy()
    spacing = np.asarray(volume.spacing_kji)
    for finding in findings:
        if finding.kind != "healthy":
            half = (EDGE / 2 + finding.reach_mm) / spacing
            low = np.maximum(np.ceil(np.array(finding.kji) - half), 0).astype(int)
            high = np.maximum(np.floor(np.array(finding.kji) + half) + 1, 0).astype(int)
            clear[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = False
    try:
        return list(dict.fromkeys(lung_positions(volume, count, seed, EDGE / 2, clear)))
    except TargetError:
        return []


def cut_cube(volume: CTVolume, kji: Sequence[float], edge: int = EDGE) -> np.ndarray:
    """A cube at 1 mm along the scan's axes whose middle voxel lies at ``kji`` (slice, row, column; may be fractional).

    Cubic splines on exact positions, unlike CT-GAN's cut and zoom, which at thick slices moves the middle by up to
    3 mm. Padding below -1024 HU is raised to it first, so that it does not ring into the patient. Beyond the scan its
    border repeats.

    :return: int16 (edge, edge, edge) HU within -1024..3071.
    """
    spacing = np.asarray(volume.spacing_kji)
    start = np.asarray(kji) - (edge // 2) / spacing
    stop = start + (edge - 1) / spacing
    low = np.maximum(np.floor(start).astype(int) - _SPLINE_REACH, 0)
    high = np.minimum(np.ceil(stop).astype(int) + _SPLINE_REACH + 1, volume.shape)
    part = volume.hu[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    cube = np.maximum(part, LOWEST_HU).astype(np.float32)
    # Linear and separable, so one small matrix per axis does it, ten times as fast as all axes at once.
    for axis, size in enumerate(cube.shape):
        step, first = 1 / spacing[axis], start[axis] - low[axis]
        weights = ndimage.affine_transform(np.eye(size), (step, 1), (first, 0), (edge, size), order=3, mode="nearest")
        cube = np.moveaxis(np.tensordot(weights.astype(np.float32), cube, (1, axis)), 0, axis)
    return np.clip(hu_from_float(cube), LOWEST_HU, HIGHEST_HU)


def _samples(volume: CTVolume, findings: Sequence[Finding]) -> Samples:
    cubes = [cut_cube(volume, finding.kji) for finding in findings]
    return Samples(
        hu=np.stack(cubes) if cubes else np.empty((0, EDGE, EDGE, EDGE), np.int16),
        diameter_mm=np.array([np.nan if f.diameter_mm is None else f.diameter_mm for f in findings], np.float32),
        kji=np.array([finding.kji for finding in findings], np.float32).reshape(-1, 3),
    )
