"""Noise that is missing, or does not belong: paint has another noise than the tissue around it.

Every CT has noise everywhere, of a color that its reconstruction kernel gives. Whatever is painted, smoothed or made up
by a network has less of it, or noise of another color. Two bands of each slice are looked at: what neighboring voxels
do not tell (*fine*), and what is of 1 to 3 voxels (*coarse*). Anatomy only ever adds to either, so too little says
more than too much; the logarithm keeps vessels from deciding. No watermark and no original is needed.

Arrays of blocks are those of :mod:`.blocks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..runtime.threads import map_slices
from ..scan.filters import correlate
from ..scan.volume import LOWEST_HU, CTVolume
from ..watermark.whitening import whitening_kernel
from .blocks import Blocks

FINE, COARSE = range(2)
WINDOWS_MM = (9.0, 14.0)
"""Edges of the windows in which noise is measured."""

_SURROUNDING_MM = 70.0
_LEAST_HU = 0.3  # rounding alone is as much
_LUNG_HU, _SOFT_HU = (-970.0, -600.0), (-150.0, 200.0)
# Sharp kernels have noise that reaches the end of the range everywhere in the lung; air is beyond it in most voxels.
_MOST_CLIPPED = 0.25
_FEW = 40.0  # blocks of a tissue around, below which it says nothing


@dataclass(frozen=True, eq=False)
class NoiseMap:
    """Logarithm of the noise of each block beside that of the same tissue around, in its windows.

    :param differences: float32 (windows, bands, slices, block rows, block columns); 0 is what is expected, -0.7 half of
        it.
    :param known: bool (windows, slices, block rows, block columns), where there is something to compare with.
    """

    differences: np.ndarray
    known: np.ndarray


def fine_kernel(volume: CTVolume) -> np.ndarray:
    """A voxel minus what its neighbors in the slice tell of it: weights (5, 5), learned from the scan."""
    some = np.unique(np.linspace(0, volume.shape[0] - 1, 12).astype(int))
    part = volume.hu[some]
    return whitening_kernel(part, (part > -970) & (part < 300))


def residual(volume: CTVolume, kernel: np.ndarray) -> np.ndarray:
    """What neighboring voxels do not tell of each voxel, float32 (slices, rows, columns) in HU.

    :param kernel: of :func:`fine_kernel`.
    """
    found = np.empty(volume.shape, np.float32)

    def whiten(k: int) -> None:
        found[k] = correlate(np.maximum(volume.hu[k], LOWEST_HU), kernel)

    map_slices(whiten, volume.shape[0])
    return found


def noise_map(blocks: Blocks, fine: np.ndarray, marks: Callable[[int], np.ndarray] | None = None) -> NoiseMap:
    """Measure the noise of every block.

    :param fine: of :func:`residual`.
    :param marks: what a watermark should have added to a slice of it, so that tissue that was never marked lacks no
        noise; None without one.
    """
    hu = blocks.volume.hu

    def look(k: int) -> tuple[np.ndarray, ...]:
        parts = [fine[k]] if marks is None else [fine[k], fine[k] - marks(k)]
        finest = [blocks.means(np.log(np.abs(values) + _LEAST_HU)) for values in parts]
        return np.min(finest, axis=0), blocks.means(hu[k] <= LOWEST_HU + 2) <= _MOST_CLIPPED

    finest, usable = (np.stack(values) for values in zip(*map_slices(look, len(hu)), strict=True))
    bands, level = (finest, blocks.texture.coarse), blocks.texture.level
    differences, known = [], []
    tissues = [(level > low) & (level < high) & usable for low, high in (_LUNG_HU, _SOFT_HU)]
    counts = [blocks.in_boxes(tissue.astype(np.float32), _SURROUNDING_MM) for tissue in tissues]
    means = [
        [blocks.in_boxes(values * tissue, _SURROUNDING_MM) / np.maximum(count, _FEW) for values in bands]
        for tissue, count in zip(tissues, counts, strict=True)
    ]
    enough = [count > _FEW for count in counts]
    for edge_mm in WINDOWS_MM:
        number = blocks.in_boxes(usable.astype(np.float32), edge_mm)
        here = [blocks.in_boxes(values * usable, edge_mm) / np.maximum(number, 1) for values in bands]
        share = number / blocks.in_boxes(np.ones_like(number), edge_mm)
        soft = blocks.in_boxes((level > _LUNG_HU[1]) & usable, edge_mm) / np.maximum(number, 1)
        expected = [_expected(lung, soft_mean, enough, soft) for lung, soft_mean in zip(*means, strict=True)]
        differences.append(np.stack([h - e for h, e in zip(here, expected, strict=True)]).astype(np.float32))
        known.append((share > 0.7) & (enough[0] | enough[1]))
    return NoiseMap(np.stack(differences), np.stack(known))


def _expected(lung: np.ndarray, soft: np.ndarray, enough: list[np.ndarray], share: np.ndarray) -> np.ndarray:
    """Take the lung's value in a window that is lung; elsewhere the lesser of both, as anatomy only ever adds."""
    less = np.where(enough[0] & enough[1], np.minimum(lung, soft), np.where(enough[0], lung, soft))
    return np.where(enough[0], lung + share * (less - lung), less)
