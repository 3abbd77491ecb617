"""Places of whole scans, and the slabs of voxels around them, for the training of protectors.

Arrays are (slice, row, column); a place is a voxel (k, j, i). Voxels stay on disk. All slabs of a step come from one
scan, since slices of different scans need not have the same size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker
from MITSGANLib.attack.chain import MASK
from MITSGANLib.budget.body import body_mask
from MITSGANLib.budget.budget import Budget, allowed_change
from MITSGANLib.budget.noise import LocalNoise, local_noise
from MITSGANLib.errors import InputError
from MITSGANLib.scan.cubes import CUBE_MM, Box, Voxel, box_at, cube_shape, cube_start, rescale
from MITSGANLib.scan.windows import LUNG

from ..data.dataset import PreparedScan

_JITTER_MM = 5.0
_STRIDE = (4, 16, 16)  # voxels by which one scan is told from another


@dataclass(frozen=True)
class Slab:
    """One slab of a scan.

    :param scan: number of the scan in its list.
    :param start: its first voxel; ``shape``: its (slices, rows, columns).
    :param target: the attacked voxel, in the slab's own voxels.
    :param seed: for what else a step draws at random; the same for all slabs of a step.
    """

    scan: int
    start: Voxel
    shape: Voxel
    target: Voxel
    seed: int

    @property
    def box(self) -> Box:
        """Index of the slab in its scan."""
        return box_at(self.start, self.shape)


class ScanTargets:
    """A scan's targets, and the attacked cubes around them with their context, as slabs.

    :param structure_share: share of the places at nodule-like structures, shifted by up to 5 mm, where a remover works;
        the others are lung voxels drawn at random.
    :param context: voxels around the cube in the plane.
    :ivar lung: (n, 3) lung voxels whose slabs lie inside the scan.
    :raises InputError: when no target has room for its slab.
    """

    def __init__(self, scan: PreparedScan, structure_share: float, context: int = 0) -> None:
        self.scan, self._structure_share = scan, structure_share
        self._cube = cube_shape(scan.spacing_kji)
        self._margin = np.array((0, context, context))
        room, jitter = np.array(self._cube) / 2 + self._margin, _JITTER_MM / np.array(scan.spacing_kji)
        self.lung = self._fitting(scan.lung_positions, room)
        if not len(self.lung):
            raise InputError(
                f"The prepared scan {scan.id} of {scan.hu.shape} voxels has no lung position with {context} voxels of "
                "context around the attacked cube; take less context, or prepare the data without this scan."
            )
        self._structures = self._fitting(scan.nodule_like_positions, room + jitter)
        self._packed_mask = np.packbits(body_mask(scan.hu, scan.padding_hu, scan.spacing_kji), axis=-1)

    def marks(self) -> Iterator[np.ndarray]:
        """Some voxels and all places, for :func:`~.inputs.fingerprint`."""
        yield self.scan.hu[tuple(slice(None, None, n) for n in _STRIDE)]
        yield self.lung
        yield self._structures

    def draw(self, number: int, count: int, rng: np.random.Generator) -> list[Slab]:
        """Slabs around random targets.

        :param number: of this scan in its list.
        """
        seed = int(rng.integers(2**31))
        return [self._slab(number, self._place(rng), seed, rng) for _ in range(count)]

    def hu(self, slab: Slab) -> np.ndarray:
        """The slab's voxels, int16."""
        return np.array(self.scan.hu[slab.box])

    def allowed(self, slab: Slab, budget: Budget) -> np.ndarray:
        """The largest change in whole HU in a slab, as it is in the whole scan; int16."""
        mask = np.unpackbits(self._packed_mask[slab.box[:2]], axis=-1, count=self.scan.hu.shape[-1])
        noise = None if budget.noise_share is None else self._noise.at(slab.box)
        body = mask[..., slab.box[2]].astype(bool)
        return allowed_change(self.hu(slab), budget, body, self.scan.padding_hu, noise)

    @cached_property
    def _noise(self) -> LocalNoise:
        return local_noise(self.scan.hu, self.scan.spacing_kji, self.scan.padding_hu)

    def _fitting(self, positions: np.ndarray, margin: np.ndarray) -> np.ndarray:
        inside = (positions >= margin) & (positions < np.array(self.scan.hu.shape) - margin)
        return positions[inside.all(axis=1)]

    def _place(self, rng: np.random.Generator) -> np.ndarray:
        if len(self._structures) and rng.random() < self._structure_share:
            shift = rng.uniform(-_JITTER_MM, _JITTER_MM, 3) / np.array(self.scan.spacing_kji)
            return np.rint(self._structures[rng.integers(len(self._structures))] + shift).astype(int)
        return self.lung[rng.integers(len(self.lung))]

    def _slab(self, number: int, kji: np.ndarray, seed: int, _rng: np.random.Generator) -> Slab:
        start = np.subtract(cube_start(kji, self._cube), self._margin)
        return _slab(number, start, self._cube + 2 * self._margin, kji, seed)


class SlabScan(ScanTargets):
    """Whole slices around a scan's targets, or crops of them; the attacked cubes lie anywhere within the crops.

    :param slices: slabs have at least this many; more where the 32 mm cube has more.
    :param crop: rows and columns around the cube; 0 takes whole slices.
    :raises InputError: when no target fits, or the crop is smaller than the cube.
    """

    def __init__(self, scan: PreparedScan, slices: int, crop: int, structure_share: float) -> None:
        super().__init__(scan, structure_share)
        depth, rows, columns = scan.hu.shape
        plane = (min(crop or rows, rows), min(crop or columns, columns))
        if min(plane) < max(self._cube[1:]):
            raise InputError(
                f"A crop of {crop} is smaller than the attacked cube, which has {max(self._cube[1:])} voxels in "
                f"the prepared scan {scan.id} of {scan.hu.shape} voxels; raise 'crop', or prepare without this scan."
            )
        self.slab_shape = (min(max(slices, self._cube[0]), depth), *plane)

    def _slab(self, number: int, kji: np.ndarray, seed: int, rng: np.random.Generator) -> Slab:
        """The slab in which the cube lies in the middle of the slices and anywhere in the plane."""
        room = np.array(self.slab_shape) - self._cube
        before = np.floor(np.array([0.5, *rng.random(2)]) * np.add(room, (0, 1, 1))).astype(int)
        start = np.clip(cube_start(kji, self._cube) - before, 0, np.array(self.scan.hu.shape) - self.slab_shape)
        return _slab(number, start, self.slab_shape, kji, seed)


def _slab(number: int, start: np.ndarray, shape: Sequence[int], kji: np.ndarray, seed: int) -> Slab:
    return Slab(number, *(tuple(int(n) for n in values) for values in (start, shape, kji - start)), seed)


def draw_slabs(scans: Sequence[SlabScan], count: int, rng: np.random.Generator) -> list[Slab]:
    """Slabs of one scan, which is drawn by its number of slices."""
    sizes = np.array([len(scan.scan.hu) for scan in scans], dtype=float)
    number = int(rng.choice(len(scans), p=sizes / sizes.sum()))
    return scans[number].draw(number, count, rng)


def attacked_cubes(hu: torch.Tensor, slabs: Sequence[Slab], spacing_kji: Sequence[float]) -> torch.Tensor:
    """What an attacker's network gets of each slab: (slabs, 32, 32, 32) HU at 1 mm, float64.

    :param hu: (slabs, slices, rows, columns) HU.
    """
    shape = cube_shape(spacing_kji)
    boxes = (box_at(cube_start(slab.target, shape), shape) for slab in slabs)
    return rescale(torch.stack([one[box] for one, box in zip(hu, boxes, strict=True)]), (CUBE_MM,) * 3)


def moved_hu(clean: torch.Tensor, protected: torch.Tensor, attacker: Attacker) -> torch.Tensor:
    """How far the protection moves what an attacker's network makes up: root mean square in HU, mean over the cubes.

    The touch-up that follows in an attack is left out: it copies noise from a place of the whole scan. By signed
    gradients through the attack with and without it, the final image moved equally far (588 and 561 HU for removal, 188
    and 186 HU for injection, means over four places of LIDC-IDRI-0001 at 20 HU).

    :param clean: cubes as :func:`attacked_cubes` gives them; ``protected`` alike.
    """
    difference = (attacker.inpainter(protected) - attacker.inpainter(clean))[:, MASK, MASK, MASK]
    return difference.square().mean(dim=(1, 2, 3)).sqrt().mean()


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Whole numbers, as files hold HU; gradients pass as if it had not rounded, which has no useful one."""
    return x + (x.round() - x).detach()


def mean_square(difference_hu: torch.Tensor, window_hu: tuple[float, float]) -> torch.Tensor:
    """Mean square of a difference in HU in a network's units, in which the window spans 2."""
    low, high = window_hu
    return (difference_hu * (2 / (high - low))).square().mean().float()


def shade(hu: torch.Tensor) -> torch.Tensor:
    """The lung window's shade, 0 to 1, in which a failed attack is seen; differentiable within it."""
    return (hu.clamp(LUNG.low, LUNG.high) - LUNG.low) / LUNG.width


def gray(hu: torch.Tensor, window_hu: tuple[float, float] = (LUNG.low, LUNG.high)) -> np.ndarray:
    """HU as shown: 0 to 1 over the window."""
    low, high = window_hu
    return ((hu.float() - low) / (high - low)).clamp(0, 1).cpu().numpy()
