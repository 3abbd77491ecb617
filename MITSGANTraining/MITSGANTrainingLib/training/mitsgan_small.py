"""Training of the small protector through the attacker's differentiable chain, at random targets in the lungs.

The generator sees a crop of each slice around a target; its bounded change is added; the attackers then work on the
protected and on the clean crop. The loss rewards a large difference between the two forgeries, which is what a reader
sees as a failed attack, and (the paper's term) between a forgery and the protected scan itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker
from MITSGANLib.attack.chain import MASK
from MITSGANLib.attack.installed import DEFAULT_ATTACKER
from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import InputError
from MITSGANLib.protection.generator import Generator, GeneratorConfig, draw_noise, hu_to_network
from MITSGANLib.protection.presets import DEFAULT_PROTECTOR
from MITSGANLib.scan.cubes import CUBE_MM, rescale
from MITSGANLib.weights import half_precision
from torch import nn

from .configuration import Count, CountOrNone, Positive, Share, Weight, require_counts
from .engine import Learner, Loss, Product, Step, Task, Training, cosine
from .inputs import Inputs, fingerprint
from .scans import ScanTargets
from .team import mean_over_team

_WINDOW_HU = (-1350.0, 150.0)  # the lung window, in which a failed attack is seen


@dataclass(frozen=True)
class SmallProtectorConfig:
    """The small protector and how it is trained.

    :param attackers: names of the attackers trained against; ``--attackers`` replaces them.
    :param last_rate: share of the learning rate that is left at the end, after half a cosine.
    :param paper_weight: weight of the paper's term (equation 3) beside the difference of the forgeries.
    :param pattern_weight: weight of the penalty on mean change and on patterns that repeat from tile to tile.
    :param context: voxels around the attacked cube that the generator sees in the plane; its receptive field, so that
        what happens in the cube does not depend on the crop's border.
    :param structure_share: share of the targets that lie at nodule-like structures, shifted by up to 5 mm: that is
        where a remover works, and where random voxels rarely fall.
    :param validation_targets: targets per validation scan.
    :param sources: where the data comes from and its licence, for the model card.
    """

    name: str = DEFAULT_PROTECTOR
    attackers: tuple[str, ...] = (DEFAULT_ATTACKER,)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    budget: Budget = field(default_factory=Budget)
    learning_rate: Positive = 1e-3
    last_rate: Share = 0.05
    betas: tuple[Share, Share] = (0.5, 0.999)
    paper_weight: Weight = 0.1
    pattern_weight: Weight = 10.0
    context: Count = 28
    structure_share: Share = 0.5
    validation_targets: CountOrNone = 8
    sources: str = ""

    def __post_init__(self) -> None:
        if self.generator.output != "residual":
            raise InputError("generator.output must be 'residual': this task trains a change within the budget.")
        require_counts(self, "generator", ("trunk_filters", "residual_blocks", "unshuffle"))
        if self.budget.strength_hu == 0:
            raise InputError("budget.strength_hu must be above 0: with no change there is nothing to train.")


@dataclass(frozen=True)
class DrawnPlace:
    """Where a sample attacks, and the seed of the noise that the generator gets, which a step's samples share."""

    scan: int
    kji: tuple[int, int, int]
    noise_seed: int


class SmallProtectorTask(Task[SmallProtectorConfig]):
    """A generator whose change, within the budget, moves what frozen attackers forge as far as it can."""

    Configuration = SmallProtectorConfig
    watched = "loss"

    def __init__(self, config: SmallProtectorConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self._attackers = inputs.load_attackers(config.attackers)
        self._scans = [ScanTargets.of(scan, config.context) for scan in inputs.data.scans("training")]
        if not self._scans:
            raise InputError("The data set has no whole scans to train a protector on; prepare scans, not cubes alone.")
        self._validation = [ScanTargets.of(scan, config.context) for scan in inputs.data.scans("validation")]
        self.samples_per_epoch = sum(len(scan.lung) for scan in self._scans)
        self.generator = Generator(config.generator)
        optimizer = torch.optim.Adam(self.generator.parameters(), config.learning_rate, config.betas)
        self.learners = {"generator": Learner(self.generator, optimizer, cosine(config.last_rate))}

    def identity(self) -> Mapping[str, str]:
        return {
            "training_scans": fingerprint(*(mark for scan in self._scans for mark in scan.marks())),
            "validation_scans": fingerprint(*(mark for scan in self._validation for mark in scan.marks())),
            **{f"{attacker.name}-{attacker.action}": attacker.digest for attacker in self._attackers},
        }

    def draw(self, step: Step) -> Sequence[DrawnPlace]:
        """Targets in one scan, drawn at random: slices of different scans need not have the same size."""
        rng = step.rng()
        number = int(rng.integers(len(self._scans)))
        return self._targets(number, self._scans[number], step.batch_size, rng)

    def losses(self, samples: Sequence[DrawnPlace], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        value, scalars = self._loss(self._scans[samples[0].scan], samples, networks["generator"])
        yield Loss("generator", value, scalars)

    def validate(self) -> Mapping[str, float]:
        """The loss and its parts at fixed targets of the validation scans, each scan's average, averaged over scans."""
        found = []
        for number, scan in enumerate(self._validation):
            rng = np.random.default_rng((self.training.seed, number))
            samples = self._targets(number, scan, self.config.validation_targets, rng)
            if samples:
                value, scalars = self._loss(scan, samples, self.generator)
                found.append({"loss": value.item(), **{name: item.item() for name, item in scalars.items()}})
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]} if found else {}

    def images(self) -> Mapping[str, np.ndarray]:
        """Middle slice of a target: scan, change (gray is none), and each attack on the clean and protected cube."""
        scans = self._validation or self._scans
        (sample,) = self._targets(0, scans[0], 1, np.random.default_rng(self.training.seed))
        clean, change, allowed = self._change(scans[0], [sample], self.generator)
        clean_cube, protected_cube = self._cubes(clean, change)
        middle = CUBE_MM // 2
        forged = [
            torch.cat([attacker.inpainter(cube)[0, middle] for cube in (clean_cube, protected_cube)], dim=1)
            for attacker in self._attackers
        ]
        plane = clean.shape[1] // 2
        largest = float(allowed.max().clamp_min(1))
        return {
            "scan": _seen(clean[0, plane]).cpu().numpy(),
            "change": (change[0, plane] / (2 * largest) + 0.5).cpu().numpy(),
            "forged on clean, forged on protected": _seen(torch.cat(forged)).cpu().numpy(),
        }

    def product(self) -> Product:
        config = self.config
        names = ", ".join(sorted({attacker.name for attacker in self._attackers}))
        return Product(
            path=f"protectors/{config.name}.safetensors",
            tensors=half_precision(self.generator),
            name=config.name,
            kind="protector",
            description="Small MITS-GAN generator that adds a change bounded in HU, mostly in the lungs.",
            architecture={"class": "Generator", "config": dataclasses.asdict(config.generator)},
            data={
                "training": f"{len(self._scans)} scans",
                "validation": f"{len(self._validation)} scans",
                "sources": config.sources or "not stated",
            },
            limits=(
                f"Trained against {names} only, on chest CT. It changes what such an attacker forges; the forgery "
                "mostly still succeeds, as the figures of success in docs/research/protection.md say. No guarantee: an "
                "attacker who adapts, or forges without a network, is not stopped."
            ),
            budget=config.budget.to_dict(),
        )

    def _targets(self, number: int, scan: ScanTargets, count: int, rng: np.random.Generator) -> list[DrawnPlace]:
        noise_seed = int(rng.integers(2**31))
        positions = (scan.draw(self.config.structure_share, rng) for _ in range(count))
        return [DrawnPlace(number, position, noise_seed) for position in positions]

    def _loss(
        self, scan: ScanTargets, samples: Sequence[DrawnPlace], generator: nn.Module
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        clean, change, allowed = self._change(scan, samples, generator)
        clean_cube, protected_cube = self._cubes(clean, change)
        gains = {
            f"{attacker.name} {attacker.action}": mean_over_team(self._gain(attacker, clean_cube, protected_cube))
            for attacker in self._attackers
        }
        # Against what is allowed there: noise may allow far less than the strength.
        share = self._inner(change) / mean_over_team(self._inner(allowed).mean()).clamp_min(1)
        pattern = mean_over_team(repeated_power(share, self.config.generator.unshuffle))
        # Logarithms, so that the attacker that yields more does not take all of the gradient.
        loss = self.config.pattern_weight * pattern - sum(gain.log() for gain in gains.values())
        return loss, {**gains, "pattern": pattern}

    def _change(
        self, scan: ScanTargets, samples: Sequence[DrawnPlace], generator: nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Crops around the targets with their context, the generator's change, and what is allowed, in whole HU."""
        config, device = self.config, self.inputs.device
        boxes = [scan.box(sample.kji, config.context) for sample in samples]
        crops = [scan.crop(box) for box in boxes]
        limits = [scan.allowed(box, config.budget) for box in boxes]
        clean = torch.from_numpy(np.stack([hu for hu, _mask in crops])).to(device).float()
        allowed = torch.from_numpy(np.stack(limits)).to(device).float()
        noise = draw_noise(clean.shape[-2:], config.generator.noise, samples[0].noise_seed).to(device)
        slices = hu_to_network(clean, config.generator.hu_window).flatten(0, 1).unsqueeze(1)
        change = generator(slices, noise).squeeze(1).view_as(clean).float() * allowed
        # Whole HU, as the protector will write; gradient as if not.
        return clean, change + (change.round() - change).detach(), allowed

    def _cubes(self, clean: torch.Tensor, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the attackers see of the clean and of the protected crops: (samples, 32, 32, 32) HU at 1 mm."""
        return tuple(rescale(self._inner(crop), (CUBE_MM,) * 3) for crop in (clean, clean + change))

    def _inner(self, crops: torch.Tensor) -> torch.Tensor:
        inner = slice(self.config.context, -self.config.context)
        return crops[..., inner, inner]

    def _gain(self, attacker: Attacker, clean: torch.Tensor, protected: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            forged_clean = attacker.inpainter(clean)
        forged = attacker.inpainter(protected)
        return _middle_rms(forged, forged_clean) + self.config.paper_weight * _middle_rms(forged, protected)


TASK = SmallProtectorTask


def repeated_power(change: torch.Tensor, tile: int) -> torch.Tensor:
    """Mean square of each slice's average ``tile`` x ``tile`` block, of a change (..., rows, columns).

    A generator that folds tiles into channels soon learns to paint the same tile everywhere. Such a pattern shows as
    stripes, shifts the mean HU, and is easy to subtract; without this penalty a pilot run ended in exactly that.
    Averaged over a whole batch and the crops' borders, the penalty let a shift of 12 HU in the lungs pass.
    """
    rows, columns = (size // tile * tile for size in change.shape[-2:])
    blocks = change[..., :rows, :columns].reshape(-1, rows // tile, tile, columns // tile, tile)
    return blocks.mean(dim=(1, 3)).square().mean()


def _middle_rms(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Root mean square difference of the in-painted middles as seen in the lung window, mean over the batch."""
    a, b = (_seen(x[:, MASK, MASK, MASK]) for x in (a, b))
    return (a - b).square().mean(dim=(1, 2, 3)).add(1e-8).sqrt().mean()


def _seen(hu: torch.Tensor) -> torch.Tensor:
    low, high = _WINDOW_HU
    return (hu.clamp(low, high) - low) / (high - low)
