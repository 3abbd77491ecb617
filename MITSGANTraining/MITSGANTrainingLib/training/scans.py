"""Whole scans as protectors train on them: targets with room for their crops, and the crops themselves.

Arrays are (slice, row, column); the voxels stay on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from MITSGANLib.budget.body import body_mask
from MITSGANLib.budget.budget import Budget, allowed_change
from MITSGANLib.budget.noise import LocalNoise, local_noise
from MITSGANLib.errors import InputError
from MITSGANLib.scan.cubes import Box, cube_shape, cube_start

from ..data.dataset import PreparedScan

_JITTER_MM = 5.0
_STRIDE = (4, 16, 16)  # voxels by which one scan is told from another


@dataclass(frozen=True, eq=False)
class ScanTargets:
    """A scan, its body mask as bits along the columns, and the targets whose crops lie inside it.

    :param lung: (n, 3) lung voxels.
    :param structures: (m, 3) nodule-like structures, with room for a shift.
    """

    scan: PreparedScan
    packed_mask: np.ndarray
    lung: np.ndarray
    structures: np.ndarray

    @classmethod
    def of(cls, scan: PreparedScan, context: int) -> ScanTargets:
        """Targets with ``context`` voxels around the attacked cube in the plane.

        :raises InputError: when no target of the scan has room for its crop.
        """
        room = np.array(cube_shape(scan.spacing_kji)) / 2 + (0, context, context)
        jitter = _JITTER_MM / np.array(scan.spacing_kji)

        def fitting(positions: np.ndarray, margin: np.ndarray) -> np.ndarray:
            inside = (positions >= margin) & (positions < np.array(scan.hu.shape) - margin)
            return positions[inside.all(axis=1)]

        lung = fitting(scan.lung_positions, room)
        if not len(lung):
            raise InputError(
                f"The prepared scan {scan.id} of {scan.hu.shape} voxels has no lung position with {context} voxels of "
                "context around the attacked cube; take less context, or prepare the data without this scan."
            )
        mask = np.packbits(body_mask(scan.hu, scan.padding_hu, scan.spacing_kji), axis=-1)
        return cls(scan, mask, lung, fitting(scan.nodule_like_positions, room + jitter))

    def marks(self) -> Iterator[np.ndarray]:
        """What tells this scan from another, without reading all of it; for :func:`~.inputs.fingerprint`."""
        yield self.scan.hu[tuple(slice(None, None, n) for n in _STRIDE)]
        yield self.lung
        yield self.structures

    def draw(self, structure_share: float, rng: np.random.Generator) -> tuple[int, int, int]:
        """A target: a lung voxel, or (in that share of the draws) one within 5 mm of a nodule-like structure."""
        if len(self.structures) and rng.random() < structure_share:
            shift = rng.uniform(-_JITTER_MM, _JITTER_MM, 3) / np.array(self.scan.spacing_kji)
            position = np.rint(self.structures[rng.integers(len(self.structures))] + shift)
        else:
            position = self.lung[rng.integers(len(self.lung))]
        return tuple(int(index) for index in position)

    def box(self, kji: Sequence[int], context: int) -> Box:
        """The attacked cube around a target, with its context in the plane."""
        shape = cube_shape(self.scan.spacing_kji)
        start = np.subtract(cube_start(kji, shape), (0, context, context))
        stop = start + shape + (0, 2 * context, 2 * context)
        return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))

    def crop(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """HU (int16) and body mask (bool) in a box inside the scan."""
        mask = np.unpackbits(self.packed_mask[box[:2]], axis=-1, count=self.scan.hu.shape[-1])
        return np.array(self.scan.hu[box]), mask[..., box[2]].astype(bool)

    def allowed(self, box: Box, budget: Budget) -> np.ndarray:
        """The largest change in whole HU in a box inside the scan, as it is in the whole scan; int16."""
        hu, mask = self.crop(box)
        noise = None if budget.noise_share is None else self.noise.at(box)
        return allowed_change(hu, budget, mask, self.scan.padding_hu, noise)

    @cached_property
    def noise(self) -> LocalNoise:
        """The scan's noise from place to place."""
        return local_noise(self.scan.hu, self.scan.spacing_kji, self.scan.padding_hu)
