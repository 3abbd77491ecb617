"""Training of attackers of any family: CT-GAN's networks, a U-Net with attention, a flow.

Unlike :mod:`.attacker`, which keeps to CT-GAN's own way, this draws its samples anew each step and plants nodules into
healthy lung, so that the injector meets lung as attacks do, without a nodule's traces around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from MITSGANLib.attack.attacker import build_generator, load_attacker
from MITSGANLib.attack.chain import MASK, blended_injection, mask_center
from MITSGANLib.attack.equalization import Equalization
from MITSGANLib.attack.inpainters import FlowConfig, UNetConfig
from MITSGANLib.attack.networks import CTGANConfig
from MITSGANLib.errors import InputError
from MITSGANLib.judges.judge import load_judge
from MITSGANLib.scan.cubes import CUBE_MM
from MITSGANLib.scan.volume import hu_from_float
from torch import nn
from torch.nn import functional as F

from ..data.dataset import Role
from .attacker import CompletingTask
from .configuration import CountOrNone, Positive, Share, Weight
from .engine import Loss, Product, Step, Training
from .inputs import Inputs, fingerprint
from .nodule_samples import CubeDraw, NoduleSampling, NoduleSource

_FAMILIES = ("ctgan", "unet", "flow")
TABLE_SAMPLES = 300  # that the look-up table is made from
PLACES = 40  # validation cubes
_SHOWN = 8  # of them in a sample image
_JUDGES = ("nodule-residual", "nodule-planes")
_INNER = (..., MASK, MASK, MASK)


@dataclass(frozen=True)
class InpainterConfig:
    """One attacker model and how it is trained. Exactly one of the tables of families is given.

    :param name: of the attacker, whose folder holds the injector and the remover.
    :param start: an attacker, installed or a folder, whose weights training starts from, in place of random ones. Its
        look-up table stays.
    :param samples: what is drawn: nodules for an injector, healthy lung for a remover.
    :param nodules_mm: smallest and largest diameter of nodules.
    :param solid_hu: a nodule's middle has at least this mean; fainter ones are left out.
    :param discriminator_filters: width of CT-GAN's discriminator; 0 trains without one. A flow has none.
    :param half: convolutions in bfloat16.
    :param held_out: patients that are never used: results are reported on them.
    :param sources: where the data comes from and its licence, for the model card.
    """

    role: Role
    name: str
    ctgan: CTGANConfig | None = None
    unet: UNetConfig | None = None
    flow: FlowConfig | None = None
    start: str = ""
    samples: NoduleSampling = field(default_factory=NoduleSampling)
    nodules_mm: tuple[Positive, Positive] = (8.0, 24.0)
    solid_hu: float = -300.0
    discriminator_filters: CountOrNone = 8
    learning_rate: Positive = 5e-4
    discriminator_learning_rate: Positive = 2e-4
    last_rate: Share = 0.02
    betas: tuple[Share, Share] = (0.5, 0.999)
    l1_weight: Weight = 100.0
    half: bool = True
    held_out: tuple[str, ...] = ("LIDC-IDRI-0001", "RIDER-Pilot-0117", "LIDC-IDRI-0293", "CPTAC-C3N-00247")
    sources: str = ""

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in _FAMILIES) != 1:
            raise InputError(f"give exactly one of the tables [{'], ['.join(_FAMILIES)}]: the in-painter's family.")

    @property
    def network(self) -> Any:
        """The configuration of the network."""
        return self.ctgan or self.unet or self.flow


class InpainterTask(CompletingTask[InpainterConfig]):
    """A generator that completes cubes: by L1 and against a discriminator, or as a flow."""

    Configuration = InpainterConfig
    watched = "missed"

    def __init__(self, config: InpainterConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self._source, self._other = (
            NoduleSource.of(inputs.data, part, CUBE_MM, config.samples, config.held_out)
            for part in ("training", "validation")
        )
        if config.role == "injector":
            self._source = self._source.solid(config.nodules_mm, config.solid_hu)
        self.samples_per_epoch = len(self._source)
        self.generator = build_generator(config.network)[1]
        self._equalization = self._started() if config.start else self._table()
        # On a CPU this layout trains half again as fast; it changes no weight.
        self.generator.to(memory_format=torch.channels_last_3d)
        self._learn(0 if config.flow else config.discriminator_filters, config.last_rate)
        self._places = self._other.healthy(PLACES)
        self._shown = self._places[:_SHOWN]

    def _table(self) -> Equalization:
        """The histogram of what is painted, not of whole cubes as CT-GAN's: soft tissue gets more of the range."""
        cubes = hu_from_float(
            self._source.views(self._draw(TABLE_SAMPLES, np.random.default_rng(self.training.seed))).numpy()
        )
        return Equalization.from_cubes(cubes[_INNER])

    def _started(self) -> Equalization:
        """Take over the weights of the attacker that training starts from; gives its look-up table."""
        attacker = load_attacker(self.config.start, "inject" if self.config.role == "injector" else "remove")
        if attacker.inpainter.generator.config != self.generator.config:
            raise InputError(f"The attacker '{self.config.start}' is of another architecture than the recipe's.")
        self.generator.load_state_dict(attacker.inpainter.generator.state_dict())
        return attacker.inpainter.equalization

    def identity(self) -> Mapping[str, str]:
        return {
            "training_samples": fingerprint(*self._source.marks()),
            "validation_samples": fingerprint(*self._other.marks()),
        }

    def draw(self, step: Step) -> Sequence[CubeDraw]:
        return self._draw(step.batch_size, step.rng())

    def losses(self, samples: Sequence[CubeDraw], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        device = self.inputs.device
        seen, wanted = (
            self._equalization.to_network(cubes.to(device)).float().unsqueeze(1)
            for cubes in self._source.views_with_quiet(samples)
        )
        masked = mask_center(seen)
        if self.config.flow:
            yield self._flow(masked, wanted, samples, networks["generator"])
        else:
            yield from self._gan(masked, wanted, networks)

    def _precision(self) -> torch.autocast:
        """Around calls of networks only: the look-up table needs double precision."""
        return torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=self.config.half)

    def _gan(self, masked: torch.Tensor, wanted: torch.Tensor, networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        with self._precision():
            forged = networks["generator"](masked).float()
        l1 = F.l1_loss(forged[_INNER], wanted[_INNER])
        # CT-GAN paints the shell as well; the others hand it on.
        l1 = l1 + 0.5 * F.l1_loss(mask_center(forged), masked)
        yield from self._adversarial(forged, wanted, masked, l1, networks.get("discriminator"))

    def _flow(
        self, masked: torch.Tensor, wanted: torch.Tensor, samples: Sequence[CubeDraw], network: nn.Module
    ) -> Loss:
        """The end of each way, expected at a random point of it."""
        noise = torch.Generator().manual_seed(samples[0].disturbance.seed)
        start = self.config.flow.noise * torch.randn(wanted.shape, generator=noise).to(wanted)
        time = torch.rand(len(wanted), generator=noise).to(wanted)
        state = torch.lerp(start, wanted, time.view(-1, 1, 1, 1, 1))
        with self._precision():
            end = network(masked, state, time).float()
        squares = (end - wanted)[_INNER].square().mean()
        return Loss("generator", squares, {"squares": squares})

    def validate(self) -> Mapping[str, float]:
        """What the attack on healthy lung comes to, on other patients' cubes at 1 mm, without noise on top.

        For an injector, ``missed`` is what the less sure of two nodule judges lacks to certainty, on average; for a
        remover, the mean absolute error in units of 100 HU.
        """
        clean = torch.from_numpy(self._places).to(self.inputs.device)
        forged = torch.cat([self._painted(part) for part in clean.split(8)])
        error = float((forged - clean)[_INNER].abs().mean())
        if self.config.role == "remover":
            return {"missed": round(error / 100, 4), "mean_absolute_error_hu": round(error, 1)}
        attacked = blended_injection(forged, clean).float().cpu().numpy()
        judges = [load_judge(name) for name in _JUDGES]
        scores = np.stack([judge.score_views(attacked) for judge in judges])
        seen = np.stack([judge.says_yes(score) for judge, score in zip(judges, scores, strict=True)])
        return {
            "missed": round(float(1 - scores.min(axis=0).mean()), 4),
            **{f"seen {judge.name}": round(float(yes.mean()), 3) for judge, yes in zip(judges, seen, strict=True)},
            "seen both": round(float(seen.all(axis=0).mean()), 3),
            "changed_hu": round(error, 1),
        }

    def _attacked(self, cubes: torch.Tensor) -> torch.Tensor:
        forged = self._painted(cubes)
        return blended_injection(forged, cubes) if self.config.role == "injector" else forged

    def product(self) -> Product:
        return self._model(
            description=f"In-painter of the family {type(self.generator).__name__}, trained as {self.config.role}.",
            data=self.described(self._source.described(), self._other.described()),
            limits="For measuring protection only. Trained on few scans; published attackers forge better.",
        )

    def _draw(self, count: int, rng: np.random.Generator) -> list[CubeDraw]:
        return self._source.draw_kind(self.config.role == "injector", count, rng)


TASK = InpainterTask
