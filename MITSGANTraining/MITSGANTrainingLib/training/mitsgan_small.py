"""Training of the small protector through the attacker's differentiable chain, at random targets in the lungs.

The generator sees a crop of each slice around a target; its bounded change is added; the attackers then work on the
protected and on the clean crop. The loss rewards a large difference between the two forgeries, which is what a reader
sees as a failed attack, and (the paper's term) between a forgery and the protected scan itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker
from MITSGANLib.attack.chain import MASK
from MITSGANLib.errors import InputError
from MITSGANLib.protection.generator import Generator, GeneratorConfig, draw_noise
from MITSGANLib.protection.inference import hu_to_network
from MITSGANLib.protection.presets import DEFAULT_PROTECTOR
from MITSGANLib.scan.cubes import CUBE_MM, rescale
from torch import nn

from ..data.dataset import PreparedScan
from .configuration import Count, CountOrNone, Positive, Share, Weight, require_counts
from .engine import Learner, Loss, Product, Step, Training, cosine
from .inputs import Inputs
from .protector_task import ProtectorConfig, ProtectorTask
from .scans import ScanTargets
from .slabs import average, shade
from .team import mean_over_team


@dataclass(frozen=True)
class SmallProtectorConfig(ProtectorConfig):
    """The small protector and how it is trained, beside what all protectors have.

    :param last_rate: share of the learning rate that is left at the end, after half a cosine.
    :param paper_weight: weight of the paper's term (equation 3) beside the difference of the forgeries.
    :param pattern_weight: weight of the penalty on mean change and on patterns that repeat from tile to tile.
    :param context: voxels around the attacked cube that the generator sees in the plane; its receptive field, so that
        what happens in the cube does not depend on the crop's border.
    """

    name: str = DEFAULT_PROTECTOR
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    learning_rate: Positive = 1e-3
    last_rate: Share = 0.05
    betas: tuple[Share, Share] = (0.5, 0.999)
    paper_weight: Weight = 0.1
    pattern_weight: Weight = 10.0
    context: Count = 28
    validation_targets: CountOrNone = 8

    def __post_init__(self) -> None:
        if self.generator.output != "residual":
            raise InputError("generator.output must be 'residual': this task trains a change within the budget.")
        require_counts(self, "generator", ("trunk_filters", "residual_blocks", "unshuffle"))
        self.require_change()


@dataclass(frozen=True)
class DrawnPlace:
    """Where a sample attacks, and the seed of the generator's noise, which a step's samples share."""

    scan: int
    kji: tuple[int, int, int]
    noise_seed: int


class SmallProtectorTask(ProtectorTask[SmallProtectorConfig]):
    """A generator whose change, within the budget, moves what frozen attackers forge as far as it can."""

    Configuration = SmallProtectorConfig
    watched = "loss"

    def __init__(self, config: SmallProtectorConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self.samples_per_epoch = sum(len(scan.lung) for scan in self._scans)
        self.generator = Generator(config.generator)
        optimizer = torch.optim.Adam(self.generator.parameters(), config.learning_rate, config.betas)
        self.learners = {"generator": Learner(self.generator, optimizer, cosine(config.last_rate))}

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
        return average(found)

    def images(self) -> Mapping[str, np.ndarray]:
        """Middle slice of a target: scan, change (gray is none), and each attack on the clean and protected cube."""
        scans = self._validation or self._scans
        (sample,) = self._targets(0, scans[0], 1, np.random.default_rng(self.training.seed))
        clean, change, allowed = self._change(scans[0], [sample], self.generator)
        plane, largest = clean.shape[1] // 2, float(allowed.max().clamp_min(1))
        return self._pictures(clean[0, plane], change[0, plane], largest, self._cubes(clean, change))

    def product(self) -> Product:
        return self._protector(
            self.generator,
            self.config.generator,
            description="Small MITS-GAN generator that adds a change bounded in HU, mostly in the lungs.",
            limits=(
                f"Trained against {self._attacker_names} only, on chest CT. It changes what such an attacker forges; "
                "the forgery mostly still succeeds, as the figures of success in docs/research/protection.md say. No "
                "guarantee: an attacker who adapts, or forges without a network, is not stopped."
            ),
        )

    def _opened(self, scan: PreparedScan) -> ScanTargets:
        return ScanTargets.of(scan, self.config.context)

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
        pattern = self._pattern(change, allowed)
        # Logarithms, so that the attacker that yields more does not take all of the gradient.
        loss = self.config.pattern_weight * pattern - sum(gain.log() for gain in gains.values())
        return loss, {**gains, "pattern": pattern}

    def _pattern(self, change: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """:func:`repeated_power` against what is allowed there: noise may allow far less than the strength."""
        share = self._inner(change) / mean_over_team(self._inner(allowed).mean()).clamp_min(1)
        return mean_over_team(repeated_power(share, self.config.generator.unshuffle))

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
    a, b = (shade(x[:, MASK, MASK, MASK]) for x in (a, b))
    return (a - b).square().mean(dim=(1, 2, 3)).add(1e-8).sqrt().mean()
