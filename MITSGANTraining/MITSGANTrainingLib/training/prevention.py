"""Training of a protector for one thing: that an attack does not achieve its finding.

The small protector's network, places and bounds (:mod:`.mitsgan_small`), with the objective of a search on the scan
(:mod:`MITSGANLib.protection.search`): nodule judges look at what an attacker who reads the protected scan paints. After
an injection they shall see no nodule, after a removal one. How far a forgery moves plays no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker
from MITSGANLib.judges.judge import load_judge
from MITSGANLib.protection.search import JUDGES, outcomes, without_slow
from MITSGANLib.scan.cubes import PatchedScan
from MITSGANLib.scan.targets import ACTIONS, Action
from torch import nn

from .configuration import Weight
from .engine import Loss, Product, Training
from .inputs import Inputs
from .mitsgan_small import SmallProtectorConfig, SmallProtectorTask
from .slabs import ScanTargets, Slab, rounded
from .team import mean_over_team


@dataclass(frozen=True)
class PreventionConfig(SmallProtectorConfig):
    """A protector that prevents and how it is trained; ``paper_weight`` plays no part.

    :param judges: nodule judges of cubes that are asked; others decide.
    :param actions: what is prevented.
    :param noise_hu: largest standard deviation of noise that is added to what attackers see, drawn for each place.
    :param half: attackers and judges compute in bfloat16.
    """

    judges: tuple[str, ...] = JUDGES
    actions: tuple[Action, ...] = ACTIONS
    noise_hu: Weight = 4.0
    half: bool = True


class PreventionTask(SmallProtectorTask):
    """A generator whose change, within the budget, leaves attackers without their finding."""

    Configuration = PreventionConfig

    def __init__(self, config: PreventionConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self._attackers = [attacker for attacker in self._attackers if attacker.action in config.actions]
        self._judges = [load_judge(name).to(inputs.device) for name in config.judges]
        # A CPU computes faster in this layout; no value depends on it.
        for network in (*(one.inpainter.generator for one in self._attackers), *(one.network for one in self._judges)):
            network.to(memory_format=torch.channels_last_3d)
        self._voxels: dict[str, torch.Tensor] = {}

    def identity(self) -> Mapping[str, str]:
        return {**super().identity(), **{judge.name: judge.digest for judge in self._judges}}

    def product(self) -> Product:
        return self._protector(
            description="Small MITS-GAN generator, trained so that attacks leave no nodule for judges to see.",
            limits=(
                f"Trained against {self._attacker_names} only, on chest CT. docs/research/protection.md says how many "
                "attacks still succeed. No guarantee: who adapts, or forges without reading the scan, is not stopped."
            ),
        )

    def _loss(self, scan: ScanTargets, slabs: Sequence[Slab], generator: nn.Module) -> Loss:
        clean, change, allowed = self._change(scan, slabs, generator)
        rng = np.random.default_rng(slabs[0].seed)
        # One attacker a step: three cost three times as much and tell one step little more.
        attackers = [self._attackers[rng.integers(len(self._attackers))]] if generator.training else self._attackers
        sure = {
            f"{attacker.name} {attacker.action}": mean_over_team(
                self._sureness(scan, slabs, clean + change, attacker, rng)
            )
            for attacker in attackers
        }
        pattern = self._pattern(change, allowed)
        size = mean_over_team(self._inner(change).square().mean()).sqrt()
        loss = sum(sure.values()) / len(sure) + self.config.pattern_weight * pattern
        return Loss("generator", loss, {**sure, "pattern": pattern, "change_hu": size})

    def _change(
        self, scan: ScanTargets, slabs: Sequence[Slab], network: nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        clean, change, allowed = super()._change(scan, slabs, network)
        slower_mm = self.config.generator.slower_mm
        if slower_mm:
            change = rounded(without_slow(change, allowed, scan.scan.spacing_kji[1:], slower_mm))
        return clean, change, allowed

    def _sureness(
        self,
        scan: ScanTargets,
        slabs: Sequence[Slab],
        protected: torch.Tensor,
        attacker: Attacker,
        rng: np.random.Generator,
    ) -> torch.Tensor:
        """How sure the judges are of what the attacker wants, as a mean logit."""
        if scan.scan.id not in self._voxels:  # all of it in memory: an attack also reads where it copies noise from
            self._voxels[scan.scan.id] = torch.from_numpy(np.array(scan.scan.hu)).to(self.inputs.device)
        voxels = self._voxels[scan.scan.id]
        scans = [PatchedScan(voxels, slab.box, hu) for slab, hu in zip(slabs, protected, strict=True)]
        places = [tuple(map(sum, zip(slab.start, slab.target, strict=True))) for slab in slabs]
        with torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=self.config.half):
            cubes = outcomes(
                scans, [voxels] * len(places), places, scan.scan.spacing_kji, attacker, self.config.noise_hu, rng
            )
            logit = torch.stack([judge.network(cubes) for judge in self._judges]).float().mean()
        return logit if attacker.action == "inject" else -logit


TASK = PreventionTask
