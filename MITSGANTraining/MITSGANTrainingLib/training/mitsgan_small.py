"""Training of the small protector through the attacker's differentiable chain, at random targets in the lungs.

The generator sees a crop of each slice around a target; its bounded change is added; the attackers then work on the
protected and on the clean crop. The loss rewards a large difference between the two forgeries, which is what a reader
sees as a failed attack, and (the paper's term) between a forgery and the protected scan itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from MITSGANLib.attack.attacker import Attacker
from MITSGANLib.attack.chain import MASK
from MITSGANLib.errors import InputError
from MITSGANLib.protection.generator import Generator, GeneratorConfig
from MITSGANLib.protection.presets import DEFAULT_PROTECTOR
from torch import nn

from ..data.dataset import PreparedScan
from .configuration import Count, CountOrNone, Positive, Share, Weight, require_counts
from .engine import Learner, Loss, Product, Step, Training
from .inputs import Inputs
from .protector_task import ProtectorConfig, ProtectorTask
from .slabs import ScanTargets, Slab, attacked_cubes, shade
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


class SmallProtectorTask(ProtectorTask[SmallProtectorConfig]):
    """A generator of a bounded change that moves frozen attackers' forgeries far."""

    Configuration = SmallProtectorConfig

    def __init__(self, config: SmallProtectorConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self.samples_per_epoch = sum(len(scan.lung) for scan in self._scans)
        self.network = Generator(config.generator)
        optimizer = torch.optim.Adam(self.network.parameters(), config.learning_rate, config.betas)
        self.learners = {"generator": Learner(self.network, optimizer, config.last_rate)}

    def draw(self, step: Step) -> Sequence[Slab]:
        """Targets in one scan, drawn at random: slices of different scans need not have the same size."""
        rng = step.rng()
        number = int(rng.integers(len(self._scans)))
        return self._scans[number].draw(number, step.batch_size, rng)

    def losses(self, samples: Sequence[Slab], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        yield self._loss(self._scans[samples[0].scan], samples, networks["generator"])

    def product(self) -> Product:
        return self._protector(
            description="Small MITS-GAN generator that adds a change bounded in HU, mostly in the lungs.",
            limits=(
                f"Trained against {self._attacker_names} only, on chest CT. It changes what such an attacker forges; "
                "the forgery mostly still succeeds, as the figures of success in docs/research/protection.md say. No "
                "guarantee: an attacker who adapts, or forges without a network, is not stopped."
            ),
        )

    def _opened(self, scan: PreparedScan) -> ScanTargets:
        return ScanTargets(scan, self.config.structure_share, self.config.context)

    def _figures(self, scan: ScanTargets, slabs: Sequence[Slab]) -> Mapping[str, float]:
        return self._loss(scan, slabs, self.network).figures()

    def _loss(self, scan: ScanTargets, slabs: Sequence[Slab], generator: nn.Module) -> Loss:
        clean, change, allowed = self._change(scan, slabs, generator)
        cubes = [attacked_cubes(hu, slabs, scan.scan.spacing_kji) for hu in (clean, clean + change)]
        gains = {
            f"{attacker.name} {attacker.action}": mean_over_team(self._gain(attacker, *cubes))
            for attacker in self._attackers
        }
        pattern = self._pattern(change, allowed)
        # Logarithms, so that the attacker that yields more does not take all of the gradient.
        loss = self.config.pattern_weight * pattern - sum(gain.log() for gain in gains.values())
        return Loss("generator", loss, {**gains, "pattern": pattern})

    def _pattern(self, change: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """:func:`repeated_power` against what is allowed there: noise may allow far less than the strength."""
        share = self._inner(change) / mean_over_team(self._inner(allowed).mean()).clamp_min(1)
        return mean_over_team(repeated_power(share, self.config.generator.unshuffle))

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
