"""What the samples of all judges have in common: drawn with a seed first, made from the drawing in a second step.

They are disturbed at random, so that noise, protection and a scanner's offset do not decide.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from MITSGANLib.scan.lungs import LUNG_BELOW_HU
from torch.nn import functional as F

from ..data.dataset import PreparedScan
from .configuration import Share, Weight

CLEAR_MM = 6  # a nodule that keeps so far from the middle is beside it


@dataclass(frozen=True)
class Disturbances:
    """How far samples are changed at random.

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
        """One of them."""
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


@dataclass(frozen=True, eq=False)
class Group:
    """Views of one kind that are not trained on.

    :param views: (n, slices, rows, columns) int16 HU.
    :param patients: (n,) whom each came from.
    """

    name: str
    yes: bool
    views: np.ndarray
    patients: np.ndarray


class Source(ABC):
    """Where a judge's samples come from. Drawings have the right answer, ``yes``, and a ``disturbance``."""

    @abstractmethod
    def __len__(self) -> int:
        """Samples of one pass."""

    @abstractmethod
    def marks(self) -> Iterator[np.ndarray]:
        """What tells these samples from others, for :func:`~.inputs.fingerprint`."""

    @abstractmethod
    def described(self) -> str:
        """What they are, for the model card."""

    @abstractmethod
    def groups(self) -> list[Group]:
        """All samples by kind, none disturbed, for validation."""

    @abstractmethod
    def _draw_one(self, yes: bool, rng: np.random.Generator) -> Any:
        """A drawing with this answer."""

    @abstractmethod
    def _still(self, drawn: Sequence[Any]) -> torch.Tensor:
        """Drawings as :meth:`views` has them, but not disturbed."""

    def draw(self, count: int, rng: np.random.Generator) -> list[Any]:
        """Drawings, half of them with the answer yes."""
        return [self._draw_one(n % 2 == 0, rng) for n in range(count)]

    def views(self, drawn: Sequence[Any]) -> torch.Tensor:
        """Drawings as the judge sees them, float32 (n, slices, rows, columns) in HU."""
        return disturb(self._still(drawn), [one.disturbance for one in drawn])


def clear_structures(scan: PreparedScan) -> np.ndarray:
    """Nodule-like structures (n, 3) whose middle 20 mm no finding reaches, best first."""
    clear = [
        kji
        for kji in scan.nodule_like_positions
        if all(
            np.linalg.norm((np.array(finding.kji) - kji) * scan.spacing_kji) > finding.reach_mm + 2 * CLEAR_MM
            for finding in scan.findings
            if finding.kind in ("nodule", "non-nodule")
        )
    ]
    return np.array(clear, dtype=np.int64).reshape(-1, 3)
