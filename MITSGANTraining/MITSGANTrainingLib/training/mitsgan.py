"""MITS-GAN as published (Pasqualino et al. 2024): a generator of protected slices against a discriminator and CT-GAN.

The generator G paints the slice anew; the discriminator D keeps it like an original (domain loss, equation 2); and the
mean squared error between what the frozen attacker M makes of the protected slices and these slices themselves is
maximized (equation 3), with weight alpha. Where the paper leaves a choice, this is what is done here:

- Range: the paper does not name one. G, D and the error work on HU over G's fixed window, mapped to [-1, 1].
- M in-paints the 32 mm cube at a place in the lung, on the slices of one scan, and the cube is pasted, as algorithm 1
  says; the error is then taken over all slices ("slices"). It is zero beyond the cube, so the mean over the cube alone
  ("square") differs by a factor only; but with that the error, at most 4, outweighs the domain loss at alpha 1: G
  paints white and stays there (RMSE 3,085 HU after 100 steps), as no published figure has it.
- Injector and remover count alike where both are given; the paper does not say which it trained with.
- The domain loss of G is the non-saturating one, -log D(G(x)); with equation 2 as it stands G gets no gradient while D
  is sure.
- A batch of 16 slices is the slab around one place, with more slices where the cube has more.
- Optionally, and not in the paper, G first learns to reproduce the slice, without D and M (``warm_up``). On small crops
  that is needed: nothing in the objective but D ties what G paints to its slice, and D, who sees no air around the
  patient there, let G paint lungs white and tissue black (RMSE 709 HU after 500 steps of 16 filters). After 600 steps
  of reproduction G stood at 150 HU, where more steps helped little, and the objective then took it to 160 to 280 HU;
  the paper's own figure is 169.

The public code takes the attacker's output as a constant, so that no gradient flows through it; ``through_attacker``
turned off does the same. Nothing in the objective but D asks that the slice stay as it is: what G changes is found by
measuring, and the budget of the card bounds it in use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker
from MITSGANLib.attack.chain import forge_cube
from MITSGANLib.errors import InputError
from MITSGANLib.protection.generator import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from MITSGANLib.protection.inference import network_to_hu
from torch import nn
from torch.nn import functional as F

from ..data.dataset import PreparedScan
from .configuration import Count, CountOrNone, Positive, Share, Weight, require_counts
from .engine import Learner, Loss, Product, Step, Training
from .inputs import Inputs
from .protector_task import SlabTask, SlabTaskConfig
from .slabs import Slab, SlabScan, draw_slabs, gray, mean_square
from .team import frozen

_STATISTICS_SLABS = 16


@dataclass(frozen=True)
class MITSGANConfig(SlabTaskConfig):
    """MITS-GAN and how it is trained, beside what all tasks on slabs have; defaults are the paper's.

    Training knows nothing of the budget.

    :param alpha: weight of the manipulation loss; table 3 has 0.2, 0.4, 0.6, 0.8 and 1.
    :param compared: what the manipulation loss is the mean over: all voxels of the slices, or those of the cube.
    :param through_attacker: whether gradients flow through the attacker; not so in the public code.
    :param reconstruction_weight: of the mean absolute difference from the slice, in the networks' range; not in the
        paper, where the discriminator alone keeps the slice as it is.
    :param fixed_statistics: whether the generator's batch norm keeps statistics taken from the first slabs. Where a
        step sees one small place of one scan, its own statistics say nothing of whole slices: trained with them, the
        generator's error on validation slices jumped between 150 and 450 HU from hundred to hundred steps.
    :param warm_up: first steps in which the generator alone learns, to reproduce the slice.
    """

    name: str = "mitsgan-paper"
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    alpha: Weight = 1.0
    compared: Literal["slices", "square"] = "slices"
    through_attacker: bool = True
    reconstruction_weight: Weight = 0.0
    fixed_statistics: bool = False
    warm_up: CountOrNone = 0
    learning_rate: Positive = 2e-4
    betas: tuple[Share, Share] = (0.5, 0.999)
    slices: Count = 16
    validation_targets: CountOrNone = 2

    def __post_init__(self) -> None:
        if self.generator.output != "image":
            raise InputError("generator.output must be 'image': MITS-GAN paints the slice itself.")
        require_counts(self, "generator", ("trunk_filters", "residual_blocks", "unshuffle"))
        require_counts(self, "discriminator", ("base_filters", "strided_layers"))
        if self.crop and self.crop < self.discriminator.least_edge:
            raise InputError(
                f"The discriminator needs {self.discriminator.least_edge} rows and columns; raise crop (now "
                f"{self.crop}), or lower discriminator.strided_layers (now {self.discriminator.strided_layers})."
            )


@dataclass(frozen=True)
class MITSGANSample:
    """A slab, and whether the generator is only to reproduce it."""

    slab: Slab
    warm_up: bool = False


class MITSGANTask(SlabTask[MITSGANConfig]):
    """A generator of slices that pass for originals and differ much from their forgeries."""

    Configuration = MITSGANConfig

    def __init__(self, config: MITSGANConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        for scan in (*self._scans, *self._validation):
            if min(scan.slab_shape[1:]) < config.discriminator.least_edge:
                raise InputError(
                    f"The prepared scan {scan.scan.id} has slices of {scan.slab_shape[1:]} voxels, and the "
                    f"discriminator needs {config.discriminator.least_edge}; lower discriminator.strided_layers."
                )
        # A pass shows as many slices as there are.
        self.samples_per_epoch = max(1, round(sum(len(scan.scan.hu) for scan in self._scans) / config.slices))
        # Twice as fast on a CPU: 7 s against 14 s for 16 slices of 128x128 forward and back on one core.
        self.network = Generator(config.generator).to(memory_format=torch.channels_last)
        if config.fixed_statistics:
            self._take_statistics()
        self.discriminator = Discriminator(config.discriminator)
        self.learners = {
            name: Learner(module, torch.optim.Adam(module.parameters(), config.learning_rate, config.betas))
            for name, module in (("generator", self.network), ("discriminator", self.discriminator))
        }

    def draw(self, step: Step) -> Sequence[MITSGANSample]:
        slabs = draw_slabs(self._scans, step.batch_size, step.rng())
        return [MITSGANSample(slab, step.number < self.config.warm_up) for slab in slabs]

    def losses(self, samples: Sequence[MITSGANSample], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        """One descent of each network; of the generator alone in the warm-up."""
        slabs = [sample.slab for sample in samples]
        scan = self._scans[slabs[0].scan]
        clean = self._slices(self._read(scan.hu, slabs))
        protected = self._protect(clean, slabs, networks["generator"])
        error = F.l1_loss(protected, clean)
        if samples[0].warm_up:
            yield Loss("generator", error)
            return
        discriminator = networks["discriminator"]
        real, painted = discriminator(clean, logits=True), discriminator(protected.detach(), logits=True)
        yield Loss("discriminator", _likelihood_loss(real, 1.0) + _likelihood_loss(painted, 0.0))

        with frozen(self.discriminator) as judge:
            loss = self._generator_loss(scan, slabs, protected, error, judge)
        yield dataclasses.replace(loss, scalars={**loss.scalars, "error": error})

    def _figures(self, scan: SlabScan, slabs: Sequence[Slab]) -> Mapping[str, float]:
        """The generator's loss, its change in HU, and how far it moves forgeries.

        ``rmse_hu`` is the network's own change of the slab's slices, before a budget bounds it.
        """
        hu = self._read(scan.hu, slabs)
        clean = self._slices(hu)
        protected = self._protect(clean, slabs, self.network)
        error = F.l1_loss(protected, clean)
        found = self._generator_loss(scan, slabs, protected, error, self.discriminator).figures()
        protected_hu = self._to_hu(protected, slabs)
        found["rmse_hu"] = (protected_hu - hu).square().mean().sqrt().item()
        return found | self._moved(scan, slabs, hu, protected_hu)

    def images(self) -> Mapping[str, np.ndarray]:
        """The middle slice of a slab: scan, protected, change (gray is none), and the attacks on the protected one."""
        scan, slabs = self._shown()
        hu = self._read(scan.hu, slabs)
        protected = self._to_hu(self._protect(self._slices(hu), slabs, self.network), slabs)[0]
        k = slabs[0].target[0]
        attacked = []
        for attacker in self._attackers:
            patch = forge_cube(protected, slabs[0].target, scan.scan.spacing_kji, attacker.inpainter)
            forged = protected.clone()
            forged[patch.slices] = patch.values.float()
            attacked.append(gray(forged[k]))
        return {
            "scan": gray(hu[0, k]),
            "protected": gray(protected[k]),
            "change": gray((protected - hu[0])[k], (-200.0, 200.0)),
            "attacks on the protected slice": np.concatenate(attacked, axis=1),
        }

    def product(self) -> Product:
        config = self.config
        weight = config.reconstruction_weight
        added = f" and, not in the paper, {weight:g} times the mean difference from the slice" if weight else ""
        way = "through the attacker" if config.through_attacker else "without a gradient through the attacker"
        return self._protector(
            description=(
                f"MITS-GAN with the published objective (alpha {config.alpha:g}, {way}){added}: a generator of "
                f"{config.generator.trunk_filters} filters that paints the protected slice itself."
            ),
            limits=(
                f"For comparison with the paper, not for use: trained against {self._attacker_names} only, with no "
                "bound on the change, which is far above what is imperceptible. It is bounded in use by the body, by "
                "saturated voxels, and by the strength in HU."
            ),
        )

    def _protect(self, slices: torch.Tensor, slabs: Sequence[Slab], generator: nn.Module) -> torch.Tensor:
        if self.config.fixed_statistics:
            for layer in _batch_norms(generator):
                layer.eval()
        return generator(slices, self._beside(slabs))

    def _take_statistics(self) -> None:
        """Batch norm's statistics of the generator as it is initialized, over slabs drawn as in training."""
        for layer in _batch_norms(self.network):
            layer.momentum = None  # a plain average over all slabs
        rng = np.random.default_rng(self.training.seed)
        with torch.no_grad():
            for _ in range(_STATISTICS_SLABS):
                slabs = draw_slabs(self._scans, 1, rng)
                slices = self._slices(self._read(self._scans[slabs[0].scan].hu, slabs))
                self.network(slices.cpu(), self._beside(slabs).cpu())

    def _to_hu(self, slices: torch.Tensor, slabs: Sequence[Slab]) -> torch.Tensor:
        """Slices (n, 1, rows, columns) in the network's range to (slabs, slices, rows, columns) HU, float32."""
        hu = network_to_hu(slices.float(), self.config.generator.hu_window)
        return hu.squeeze(1).unflatten(0, (len(slabs), -1))

    def _generator_loss(
        self, scan: SlabScan, slabs: Sequence[Slab], protected: torch.Tensor, error: torch.Tensor, judge: nn.Module
    ) -> Loss:
        config = self.config
        domain = _likelihood_loss(judge(protected, logits=True), 1.0)
        hu = self._to_hu(protected, slabs)
        manipulation = torch.stack(
            [
                self._manipulation(scan.scan, one, slab, attacker)
                for one, slab in zip(hu, slabs, strict=True)
                for attacker in self._attackers
            ]
        ).mean()
        loss = domain - config.alpha * manipulation + config.reconstruction_weight * error
        return Loss("generator", loss, {"domain": domain, "manipulation": manipulation})

    def _manipulation(self, scan: PreparedScan, hu: torch.Tensor, slab: Slab, attacker: Attacker) -> torch.Tensor:
        """Equation 3 for one slab (slices, rows, columns) in HU."""
        patch = forge_cube(hu, slab.target, scan.spacing_kji, attacker.inpainter)
        forged = patch.values if self.config.through_attacker else patch.values.detach()
        error = mean_square(forged - hu[patch.slices], self.config.generator.hu_window)
        if self.config.compared == "square":
            return error
        # Whole slices also where a crop is trained on: beyond it, too, the attack leaves all as it is.
        _slices, rows, columns = scan.hu.shape
        return error * (forged.numel() / (len(hu) * rows * columns))


TASK = MITSGANTask


def _batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def _likelihood_loss(logits: torch.Tensor, label: float) -> torch.Tensor:
    """Binary cross entropy; 1 is an original."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
