"""Random changes of what a judge is shown, so that noise, protection and a scanner's offset do not decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from MITSGANLib.scan.lungs import LUNG_BELOW_HU
from torch.nn import functional as F

from .configuration import Share, Weight


@dataclass(frozen=True)
class Disturbances:
    """How far samples are changed at random, so that noise and protection do not decide.

    :param noise_hu: largest standard deviation of added Gaussian noise. It is white to coarse, and as strong everywhere
        or weaker outside the lungs, where protection spends less.
    :param offset_hu: largest shift of all HU.
    :param gain: largest share by which distances from -1000 HU are stretched.
    :param blur: largest weight of each voxel's 3x3x3 mean in its place.
    """

    noise_hu: Weight = 20.0
    offset_hu: Weight = 20.0
    gain: Share = 0.05
    blur: Share = 0.8

    def draw(self, rng: np.random.Generator) -> Disturbance:
        return Disturbance(
            noise_hu=float(rng.uniform(0, self.noise_hu)),
            coarse=float(rng.uniform(0, 1)),
            elsewhere=float(rng.uniform(0, 1)),
            offset_hu=float(rng.uniform(-self.offset_hu, self.offset_hu)),
            gain=float(rng.uniform(-self.gain, self.gain)),
            blur=float(rng.uniform(0, self.blur)),
            seed=int(rng.integers(2**62)),
        )


@dataclass(frozen=True)
class Disturbance:
    """One drawing of :class:`Disturbances`.

    :param coarse: weight of a 3x3 mean in the noise.
    :param elsewhere: the noise's strength outside the lungs as a share of that inside.
    :param seed: of the noise.
    """

    noise_hu: float = 0.0
    coarse: float = 0.0
    elsewhere: float = 1.0
    offset_hu: float = 0.0
    gain: float = 0.0
    blur: float = 0.0
    seed: int = 0


def disturb(views: torch.Tensor, drawn: Sequence[Disturbance]) -> torch.Tensor:
    """Views (n, slices, rows, columns) in HU as their disturbances have them, float32."""

    def of(name: str) -> torch.Tensor:
        return torch.tensor([getattr(one, name) for one in drawn], dtype=torch.float32).view(-1, 1, 1, 1)

    views = views.float()
    blurred = F.avg_pool3d(F.pad(views.unsqueeze(1), (1,) * 6, mode="replicate"), 3, stride=1).squeeze(1)
    mixed = torch.lerp(views, blurred, of("blur").expand_as(views))
    white = torch.stack([torch.randn(views.shape[1:], generator=torch.Generator().manual_seed(d.seed)) for d in drawn])
    # The mean of nine has a third of the deviation; the two together, of any weights, are scaled back to 1.
    coarse = of("coarse")
    noise = (1 - coarse) * white + coarse * 3 * F.avg_pool2d(white, 3, stride=1, padding=1)
    noise = noise / noise.std(dim=(1, 2, 3), keepdim=True)
    strength = of("noise_hu") * torch.where(views < LUNG_BELOW_HU, torch.ones(()), of("elsewhere"))
    return (mixed + 1000) * (1 + of("gain")) - 1000 + of("offset_hu") + noise * strength
