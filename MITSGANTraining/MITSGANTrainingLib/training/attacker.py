"""Training of CT-GAN's injector and remover: a 3-D pix2pix that completes a cube with a masked middle.

Source: Mirsky et al., USENIX Security 2019, section 5; what the paper leaves open is as in the public code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from MITSGANLib.attack.attacker import own_tensors
from MITSGANLib.attack.chain import MASK, Inpainter, mask_center
from MITSGANLib.attack.equalization import Equalization
from MITSGANLib.attack.networks import CTGANConfig, CTGANDiscriminator, CTGANGenerator
from MITSGANLib.scan.cubes import CUBE_MM
from MITSGANLib.weights import DEFAULT_ATTACKER
from torch import nn
from torch.nn import functional as F

from ..data.cubes import CubeSet, augment, published_variants
from .configuration import Config, Count, Positive, Share, Weight
from .engine import Learner, Loss, Product, Step, Task, Training
from .inputs import Inputs, fingerprint
from .slabs import gray
from .team import frozen

_TABLE = ("bins", "cdf", "normalization")
_PART = 256  # cubes that are equalized or in-painted at once
_SHOWN = 4  # validation cubes in a sample image


@dataclass(frozen=True)
class Augmentation:
    """How training cubes are varied.

    :param kind: "random" draws rotations by any angle, flips and shifts; "published" takes CT-GAN's fixed list: the
        cube itself, 3 flips, 4 diagonal shifts by 4 mm and 59 rotations by multiples of 6 degrees, 67 in all.
    :param variants: variants per cube where they are random, the first being the cube itself.
    :param shifted_share: share of the random variants that are shifted by up to 4 mm.
    """

    kind: Literal["random", "published"] = "random"
    variants: Count = 40
    shifted_share: Share = 4 / 67

    def apply(self, cubes: CubeSet, seed: int) -> np.ndarray:
        """All variants of all cubes, int16 HU (n, 32, 32, 32)."""
        if self.kind == "published":
            return np.concatenate([published_variants(cube) for cube in cubes.hu])
        return augment(cubes, self.variants, seed, self.shifted_share)


@dataclass(frozen=True)
class AttackerConfig:
    """One attacker model and how it is trained. Learning rate, betas and L1 weight default to the paper's.

    :param name: of the attacker, whose folder holds the injector and the remover.
    :param batch_norm: as CT-GAN has it; ``skips`` likewise. Without one or the other, another in-painter.
    :param adversarial: train against a discriminator, as CT-GAN does; else by L1 alone, which is no GAN.
    :param sources: where the data comes from and its licence, for the model card.
    """

    role: Literal["injector", "remover"]
    name: str = DEFAULT_ATTACKER
    base_filters: Count = 100
    dropout: Share = 0.5
    batch_norm: bool = True
    skips: bool = True
    adversarial: bool = True
    learning_rate: Positive = 2e-4
    discriminator_learning_rate: Positive = 2e-4
    betas: tuple[Share, Share] = (0.5, 0.999)
    l1_weight: Weight = 100.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    sources: str = ""


class CompletingTask(Task[Config]):
    """Common parts of the tasks that train an attacker: learners, losses of a GAN, sample images, the product.

    A subclass sets ``generator``, ``_equalization`` and ``_shown``, int16 cubes (n, 32, 32, 32) for sample images.
    """

    generator: nn.Module
    discriminator: CTGANDiscriminator | None
    _equalization: Equalization
    _shown: np.ndarray

    def _learn(self, discriminator_filters: int, last_rate: float = 1.0) -> None:
        """Make the discriminator, unless it has no filters, and the learners."""
        config = self.config
        self.discriminator = CTGANDiscriminator(discriminator_filters) if discriminator_filters else None
        modules = {"generator": (self.generator, config.learning_rate)}
        if self.discriminator is not None:
            modules["discriminator"] = (self.discriminator, config.discriminator_learning_rate)
        self.learners = {
            name: Learner(module, torch.optim.Adam(module.parameters(), rate, config.betas), last_rate)
            for name, (module, rate) in modules.items()
        }

    def _adversarial(
        self, forged: torch.Tensor, real: torch.Tensor, masked: torch.Tensor, l1: torch.Tensor, judge: nn.Module | None
    ) -> Iterator[Loss]:
        """One descent of each network by least squares, plus L1; 0 is real and 1 is forged, as in the public code.

        :param judge: the discriminator as the trainer gives it; L1 alone without one.
        """
        weight = self.config.l1_weight
        if judge is None:
            yield Loss("generator", weight * l1, {"l1": l1})
            return
        with self._precision():
            real_score, forged_score = (judge(cube, masked).float() for cube in (real, forged.detach()))
        yield Loss("discriminator", 0.5 * (real_score.square().mean() + (forged_score - 1).square().mean()))
        with frozen(self.discriminator) as held, self._precision():
            adversarial = held(forged, masked).float().square().mean()
        yield Loss("generator", adversarial + weight * l1, {"adversarial": adversarial, "l1": l1})

    def _precision(self) -> AbstractContextManager:
        """Around calls of networks."""
        return nullcontext()

    def _painted(self, cubes: torch.Tensor) -> torch.Tensor:
        """Cubes (n, 32, 32, 32) in HU as the model completes them."""
        return Inpainter(self.generator, self._equalization)(cubes)

    def _attacked(self, cubes: torch.Tensor) -> torch.Tensor:
        """The same as they are shown."""
        return self._painted(cubes)

    def take_over(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The look-up table comes along: the network has learned with it."""
        rest = dict(tensors)
        bins, cdf, normalization = (rest.pop(f"equalization.{name}").double().numpy() for name in _TABLE)
        self._equalization = Equalization(bins, cdf, *normalization.tolist())
        self.generator.load_state_dict({name.removeprefix("generator."): value for name, value in rest.items()})

    def images(self) -> Mapping[str, np.ndarray]:
        """Middle slices of validation cubes above what the model makes of them, in the lung window."""
        clean = torch.from_numpy(self._shown).to(self.inputs.device)
        rows = [torch.cat(list(cubes[:, CUBE_MM // 2].float()), dim=1) for cubes in (clean, self._attacked(clean))]
        return {"cube above, completed below": gray(torch.cat(rows))}

    def _model(self, **words: Any) -> Product:
        """The trained model; ``words`` are its description, data and limits."""
        name, role, network = self.config.name, self.config.role, self.generator
        return Product(
            path=f"attackers/{name}/{role}.safetensors",
            tensors=own_tensors(network, self._equalization),
            name=f"{name}-{role}",
            kind=role,
            architecture={"class": type(network).__name__, "config": dataclasses.asdict(network.config)},
            **words,
        )


class AttackerTask(CompletingTask[AttackerConfig]):
    """A generator that completes cubes against a discriminator that scores pieces of them (least squares, plus L1)."""

    Configuration = AttackerConfig
    watched = "mean_absolute_error_hu"

    def __init__(self, config: AttackerConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self._training_cubes, self._validation_cubes = (
            inputs.data.cubes(config.role, part) for part in ("training", "validation")
        )
        self._shown = self._validation_cubes.centers()[:_SHOWN]
        self._samples = config.augmentation.apply(self._training_cubes, training.seed)
        self.samples_per_epoch = len(self._samples)
        self._equalization = Equalization.from_cubes(self._samples)
        self.generator = CTGANGenerator(
            CTGANConfig(config.base_filters, config.dropout, config.batch_norm, config.skips)
        )
        self._learn(config.base_filters if config.adversarial else 0)

    def identity(self) -> Mapping[str, str]:
        return {
            "training_cubes": fingerprint(self._training_cubes.hu),
            "validation_cubes": fingerprint(self._validation_cubes.hu),
        }

    def draw(self, step: Step) -> Sequence[int]:
        return step.indices(len(self._samples))

    def losses(self, samples: Sequence[int], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        hu = torch.from_numpy(self._samples[samples]).to(self.inputs.device)
        cube = self._equalization.to_network(hu).float().unsqueeze(1)
        masked = mask_center(cube)
        forged = networks["generator"](masked)
        yield from self._adversarial(forged, cube, masked, F.l1_loss(forged, cube), networks.get("discriminator"))

    def validate(self) -> Mapping[str, float]:
        """Mean absolute error in the masked middle, in HU and in input units, on other patients' cubes."""
        hu = torch.from_numpy(self._validation_cubes.centers()).to(self.inputs.device)
        middle = (slice(None), MASK, MASK, MASK)
        errors = []
        for part in hu.split(_PART):
            cube = self._equalization.to_network(part).float()
            forged = self.generator(mask_center(cube).unsqueeze(1)).squeeze(1)
            both = ((forged - cube).double(), self._equalization.to_hu(forged) - part)
            errors.append(torch.stack([error[middle].abs().mean(dim=(1, 2, 3)) for error in both]))
        units, error_hu = torch.cat(errors, dim=1).mean(dim=1).tolist()
        return {
            "validation_cubes": len(hu),
            "l1_input_units": round(units, 4),
            "mean_absolute_error_hu": round(error_hu, 1),
        }

    def product(self) -> Product:
        return self._model(
            description=_description(self.config),
            data=self.described(_described(self._training_cubes), _described(self._validation_cubes)),
            limits=(
                "For measuring protection only. Trained on far fewer scans than the published attacker, and its "
                "forgeries are plainer."
            ),
        )


TASK = AttackerTask


def _description(config: AttackerConfig) -> str:
    words = [f"CT-GAN {config.role} with {config.base_filters} base filters (the published one has 100)"]
    words += ["without batch norm"] * (not config.batch_norm)
    words += ["without skip connections"] * (not config.skips)
    words += ["trained by L1 alone"] * (not config.adversarial)
    return ", ".join(words) + "."


def _described(cubes: CubeSet) -> str:
    return f"{len(cubes.hu)} cubes of {len(np.unique(cubes.patients))} patients"
