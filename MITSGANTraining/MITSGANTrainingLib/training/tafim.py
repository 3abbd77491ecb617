"""TAFIM (Aneja, Markhasin, Nießner, ECCV 2022) against CT-GAN, the rival of MITS-GAN's paper.

The U-Net and the global perturbation are learned together: what the attack makes of a protected slice shall be one
fixed picture (manipulation loss), and the slice shall stay as it is (reconstruction loss). Before the attack the slice
is compressed at random, so that the protection outlives that. Built from what the papers say, not from TAFIM's code:

- Target: TAFIM's is an image of one color. Here it is a cube of one HU in the middle that the attacker's network makes
  up; 150 HU is white in the lung window, and a white cube is what neither an injection nor a removal should leave.
- Losses are mean squares of HU over the model's window, mapped to [-1, 1]: the manipulation loss over the middle that
  is made up, the reconstruction loss over all slices. Injector and remover count alike.
- TAFIM clips to the range of images. Here the budget bounds the change, voxel by voxel, in training as in use.
- Learning rate and weights are not in the texts at hand; the recipe says what was tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from MITSGANLib.attack.chain import MASK
from MITSGANLib.protection.tafim import TAFIM, TAFIMConfig
from torch import nn

from .compression import Compression, compress, draw_quality
from .configuration import Positive, Share, Weight, require_counts
from .engine import Learner, Loss, Product, Step, Training
from .inputs import Inputs
from .protector_task import SlabTask, SlabTaskConfig
from .slabs import Slab, SlabScan, attacked_cubes, draw_slabs, gray, mean_square


@dataclass(frozen=True)
class TAFIMTrainingConfig(SlabTaskConfig):
    """TAFIM and how it is trained, beside what all tasks on slabs have. The budget bounds the change in training, too.

    :param target_hu: what the attack shall make of the middle of the cube.
    :param reconstruction_weight: weight of the reconstruction loss; the manipulation loss has 1.
    :param last_rate: share of the learning rate that is left at the end, after half a cosine.
    """

    name: str = "tafim"
    model: TAFIMConfig = field(default_factory=TAFIMConfig)
    compression: Compression = field(default_factory=Compression)
    target_hu: float = 150.0
    reconstruction_weight: Weight = 1.0
    learning_rate: Positive = 1e-3
    last_rate: Share = 0.05
    betas: tuple[Share, Share] = (0.9, 0.999)

    def __post_init__(self) -> None:
        require_counts(self, "model", ("base_filters", "levels", "tile"))
        self.require_change()


@dataclass(frozen=True)
class TAFIMSample:
    """A slab, and the quality at which it is compressed before the attack; None is not at all."""

    slab: Slab
    quality: int | None


class TAFIMTask(SlabTask[TAFIMTrainingConfig]):
    """A bounded change after which frozen attackers forge one fixed picture."""

    Configuration = TAFIMTrainingConfig

    def __init__(self, config: TAFIMTrainingConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self.samples_per_epoch = sum(len(scan.lung) for scan in self._scans)
        self.network = TAFIM(config.model)
        self.network.unet.to(memory_format=torch.channels_last)  # faster on a CPU
        optimizer = torch.optim.Adam(self.network.parameters(), config.learning_rate, config.betas)
        self.learners = {"generator": Learner(self.network, optimizer, config.last_rate)}

    def draw(self, step: Step) -> Sequence[TAFIMSample]:
        rng = step.rng()
        slabs = draw_slabs(self._scans, step.batch_size, rng)
        return [TAFIMSample(slab, draw_quality(self.config.compression, rng)) for slab in slabs]

    def losses(self, samples: Sequence[TAFIMSample], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        scan = self._scans[samples[0].slab.scan]
        clean, change, _allowed = self._change(scan, [sample.slab for sample in samples], networks["generator"])
        yield self._loss(scan, samples, clean, change)

    def _figures(self, scan: SlabScan, slabs: Sequence[Slab]) -> Mapping[str, float]:
        """The loss and its parts without compression, and how far forgeries move.

        ``rmse_hu`` is the change of the slabs' slices; ``moved_hu`` is with and without compression at the lowest
        quality that training draws.
        """
        clean, change, _allowed = self._change(scan, slabs, self.network)
        figures = self._loss(scan, [TAFIMSample(slab, None) for slab in slabs], clean, change).figures()
        figures["rmse_hu"] = change.square().mean().sqrt().item()
        for words, quality in (("", None), ("compressed ", self.config.compression.quality[0])):
            copies = [compress(hu, quality, self.config.compression) for hu in (clean, clean + change)]
            figures |= self._moved(scan, slabs, *copies, words)
        return figures

    def images(self) -> Mapping[str, np.ndarray]:
        """Those of every protector, and the global perturbation."""
        return {**super().images(), "global perturbation": gray(self.network.perturbation[0, 0], (-3.0, 3.0))}

    def product(self) -> Product:
        return self._protector(
            description=(
                "TAFIM, a rival for comparison: a U-Net fits one learned perturbation to each slice, so that attacks "
                f"forge {self.config.target_hu:g} HU; the change is bounded in HU."
            ),
            limits=(
                f"For comparison, not for use: trained against {self._attacker_names} only, on chest CT. No guarantee: "
                "an attacker who adapts, or forges without a network, is not stopped."
            ),
        )

    def _beside(self, slabs: Sequence[Slab]) -> list[tuple[int, ...]]:
        """Where each slice lies in the plane."""
        return [slab.start[1:] for slab in slabs for _ in range(slab.shape[0])]

    def _loss(self, scan: SlabScan, samples: Sequence[TAFIMSample], clean: torch.Tensor, change: torch.Tensor) -> Loss:
        window = self.config.model.hu_window
        protected = torch.stack(
            [
                compress(one, sample.quality, self.config.compression)
                for one, sample in zip(clean + change, samples, strict=True)
            ]
        )
        cubes = attacked_cubes(protected, [sample.slab for sample in samples], scan.scan.spacing_kji)
        # How far each attacker's forgeries in the middle are from the target.
        distances = [
            mean_square(attacker.inpainter(cubes)[:, MASK, MASK, MASK] - self.config.target_hu, window)
            for attacker in self._attackers
        ]
        manipulation, reconstruction = torch.stack(distances).mean(), mean_square(change, window)
        loss = manipulation + self.config.reconstruction_weight * reconstruction
        return Loss("generator", loss, {"manipulation": manipulation, "reconstruction": reconstruction})


TASK = TAFIMTask
