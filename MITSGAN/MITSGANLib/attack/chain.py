"""CT-GAN's attack step by step on torch tensors: cut, rescale, equalize, mask, in-paint, de-equalize, paste, touch up.

Every step is differentiable with respect to the scan's HU, so a protector can be trained through the whole attack.
Arrays are (slice, row, column); ``center`` is a voxel (k, j, i), ``spacing_kji`` in mm in the same order. Values are HU
in float64. The steps reproduce the public NumPy pipeline, including its quirks, which the comments name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..scan.cubes import CUBE_MM, Box, Patch, box_at, cube_shape, cube_start, cut, intersection, rescale, whole, within
from ..scan.regions import MASK, NOISE_SOURCE, TOUCH_UP_FACTOR
from ..scan.targets import Action
from .equalization import Equalization


@dataclass(frozen=True)
class Inpainter:
    """One trained model of the attacker: its generator in evaluation mode and its own equalization."""

    generator: Callable[[torch.Tensor], torch.Tensor]
    equalization: Equalization

    def __call__(self, cube_hu: torch.Tensor) -> torch.Tensor:
        """In-paint the middle of cubes (batch, 32, 32, 32) in HU at 1 mm; gives the same shape in HU."""
        x = mask_center(self.equalization.to_network(cube_hu)).float().unsqueeze(1)
        return limit_hu(self.equalization.to_hu(self.generator(x).squeeze(1)))


def mask_center(cube: torch.Tensor) -> torch.Tensor:
    """The cube with its middle 20x20x20 set to 0; last three axes of length 32."""
    masked = cube.clone()
    masked[..., MASK, MASK, MASK] = 0
    return masked


def limit_hu(cube: torch.Tensor) -> torch.Tensor:
    """Repair of range: voxels above 2000 HU become the mean of their 5x5x5 neighborhood, none lies below -1000 HU.

    Voxels are repaired in index order and each sees the repairs before it, as in the public code; beyond the cube the
    neighborhood holds -1000 HU. Batch (n, z, y, x).
    """
    high = torch.nonzero(cube.detach() > 2000).tolist()
    if high:
        padded = torch.nn.functional.pad(cube, (2,) * 6, value=-1000.0).clone()
        for n, z, y, x in high:
            padded[n, z + 2, y + 2, x + 2] = padded[n, z : z + 5, y : y + 5, x : x + 5].mean()
        cube = padded[:, 2:-2, 2:-2, 2:-2]
    return cube.clamp_min(-1000)


def forge_cube(
    volume: torch.Tensor, center: Sequence[int], spacing_kji: Sequence[float], inpainter: Inpainter
) -> Patch:
    """The attacked 32 mm cube before the touch-up, on the scan's own voxel grid; may reach beyond the scan.

    Where the public code's rescaling misses 32 voxels (it fails there, for example at 3 or 5 mm), the cube is
    rescaled to exactly 32; elsewhere both agree.
    """
    shape = cube_shape(spacing_kji)
    start = cube_start(center, shape)
    clean = rescale(cut(volume, start, shape), (CUBE_MM,) * 3)
    return Patch(start, rescale(inpainter(clean.unsqueeze(0)).squeeze(0), shape))


def boxes_read(shape: Sequence[int], center: Sequence[int], spacing_kji: Sequence[float]) -> tuple[Box, Box]:
    """What an attack at voxel ``center`` reads of a scan: the place that noise is copied from, the target's."""
    edge = _edge(cube_shape(spacing_kji))
    starts = (cube_start(middle, (edge,) * 3) for middle in (_noise_center(shape), center))
    return tuple(intersection(box_at(start, (edge,) * 3), whole(shape)) for start in starts)


def tamper(
    volume: torch.Tensor, center: Sequence[int], spacing_kji: Sequence[float], inpainter: Inpainter, action: Action
) -> Patch:
    """The whole attack at voxel ``center``: forged cube, noise touch-up and blending, cropped to the scan.

    :param volume: (slices, rows, columns) HU of any real dtype.
    :param action: "inject" or "remove"; must fit the in-painter.
    """
    return touch_up(volume, center, forge_cube(volume, center, spacing_kji, inpainter), action)


def touch_up(volume: torch.Tensor, center: Sequence[int], forged: Patch, action: Action) -> Patch:
    """The forged cube with copied noise, blended into the scan around voxel ``center``, cropped to the scan.

    :param forged: from :func:`forge_cube`, at the same center.
    """
    edge = _edge(forged.values.shape)
    start = cube_start(center, (edge,) * 3)
    clean_region = cut(volume, start, (edge,) * 3)
    forged_region = _overlay(clean_region, start, forged, volume.shape)
    noise = _copied_noise(volume, forged, edge)
    if action == "inject":
        blended = _blended_injection(forged_region, noise, clean_region)
    else:
        window = _gaussian_window(edge, 0.1).to(volume.device)
        blended = (forged_region + noise) * window + clean_region * (1 - window)
    box = box_at(start, blended.shape)
    inside = intersection(box, whole(volume.shape))
    return Patch(tuple(part.start for part in inside), blended[within(inside, box)])


def blended_injection(forged: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Forged cubes over clean ones as the touch-up blends them, without its noise; (batch, 32, 32, 32) HU at 1 mm."""
    region = [F.pad(cubes, (5, 4) * 3, mode="replicate") for cubes in (forged, clean)]
    return _blended_injection(region[0], torch.zeros(()), region[1])[..., 5:-4, 5:-4, 5:-4]


def _blended_injection(forged: torch.Tensor, noise: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Where the forged region is denser than lung, it replaces the clean one, and nothing becomes darker."""
    window = _gaussian_window(forged.shape[-1], 3.0).to(forged.device)
    weight = torch.sigmoid((forged + 700) / 70) * window
    return torch.maximum((forged + noise) * weight + clean * (1 - weight), clean)


def _copied_noise(volume: torch.Tensor, forged: Patch, edge: int) -> torch.Tensor:
    """Noise of a fixed place of the (already forged) scan: what lies above -800 HU replaced by the mean of the rest.

    Where nothing lies below -800 HU the public code pastes NaN (the mean of nothing); here no noise is added.
    """
    start = cube_start(_noise_center(volume.shape), (edge,) * 3)
    sample = _overlay(cut(volume, start, (edge,) * 3), start, forged, volume.shape)
    lung = sample.detach() < -800
    if not lung.any():
        return torch.zeros_like(sample)
    filled = torch.where(sample.detach() > -800, sample[lung].mean(), sample)
    return filled - filled.mean()


def _edge(cube: Sequence[int]) -> int:
    """The edge in voxels of the region that the touch-up of a forged cube blends, along all three axes."""
    return int(max(cube) * TOUCH_UP_FACTOR)


def _noise_center(shape: Sequence[int]) -> list[int]:
    return [int(size * fraction) for size, fraction in zip(shape, NOISE_SOURCE, strict=True)]


def _overlay(region: torch.Tensor, start: Sequence[int], patch: Patch, scan: Sequence[int]) -> torch.Tensor:
    """``region``, from voxel ``start`` on, with the part of ``patch`` that lies in it and in the scan."""
    result, box = region.clone(), box_at(start, region.shape)
    common = intersection(box, patch.slices, whole(scan))
    if common is not None:
        result[within(common, box)] = patch.values[within(common, patch.slices)]
    return result


@functools.lru_cache(maxsize=32)
def _gaussian_window(size: int, sigmas: float) -> torch.Tensor:
    """CT-GAN's blending window (rows, columns), 0 in the corners and 1 in the middle; the same for every slice."""
    from scipy.special import ndtr

    interval = (2 * sigmas + 1.0) / size
    edges = np.linspace(-sigmas - interval / 2, sigmas + interval / 2, size + 1)
    weights = np.diff(ndtr(edges))
    window = np.sqrt(np.outer(weights, weights))
    window /= window.sum()
    # Kept for later calls: a tensor made in inference mode could not take part in a gradient.
    with torch.inference_mode(False):
        return torch.from_numpy((window - window.min()) / (window.max() - window.min()))
