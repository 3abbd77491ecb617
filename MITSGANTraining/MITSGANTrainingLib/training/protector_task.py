"""Common parts of the tasks that train a protector: settings, data, fixed places, the card."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import InputError
from MITSGANLib.protection.generator import draw_noise
from MITSGANLib.protection.inference import hu_to_network
from MITSGANLib.scan.cubes import CUBE_MM
from MITSGANLib.weights import DEFAULT_ATTACKER, half_precision
from torch import nn

from ..data.dataset import PreparedScan
from .configuration import Count, CountOrNone, Share
from .engine import Product, Task, Training
from .inputs import Inputs, fingerprint
from .slabs import ScanTargets, Slab, SlabScan, attacked_cubes, gray, moved_hu, rounded


@dataclass(frozen=True)
class ProtectorConfig:
    """Settings of every task that trains a protector; each has defaults of its own.

    :param attackers: names of the attackers trained against; ``--attackers`` replaces them.
    :param budget: bounds the model in use.
    :param structure_share: share of the places at nodule-like structures, shifted by up to 5 mm: that is where a
        remover works, and where random voxels rarely fall.
    :param validation_targets: places per validation scan.
    :param sources: where the data comes from and its licence, for the model card.
    """

    name: str = ""
    attackers: tuple[str, ...] = (DEFAULT_ATTACKER,)
    budget: Budget = field(default_factory=Budget)
    structure_share: Share = 0.5
    validation_targets: CountOrNone = 4
    sources: str = ""

    def require_change(self) -> None:
        """:raises InputError: when the budget leaves nothing to train."""
        if self.budget.strength_hu == 0:
            raise InputError("budget.strength_hu must be above 0: with no change there is nothing to train.")


Config = TypeVar("Config", bound=ProtectorConfig)


class ProtectorTask(Task[Config]):
    """A protector's training on slabs of whole scans. A subclass sets ``network``, which has its ``config``.

    :raises InputError: the data set has no whole scans.
    """

    watched = "loss"
    network: nn.Module

    def __init__(self, config: Config, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self._attackers = inputs.load_attackers(config.attackers)
        self._scans, self._validation = (
            [self._opened(scan) for scan in inputs.data.scans(part)] for part in ("training", "validation")
        )
        if not self._scans:
            raise InputError("The data set has no whole scans to train a protector on; prepare scans, not cubes alone.")

    @abstractmethod
    def _opened(self, scan: PreparedScan) -> ScanTargets:
        """A scan as the task draws from it."""

    @abstractmethod
    def _figures(self, scan: ScanTargets, slabs: Sequence[Slab]) -> Mapping[str, float]:
        """What validation measures at some places of a scan."""

    def identity(self) -> Mapping[str, str]:
        return {
            "training_scans": fingerprint(*(mark for scan in self._scans for mark in scan.marks())),
            "validation_scans": fingerprint(*(mark for scan in self._validation for mark in scan.marks())),
            **{f"{attacker.name}-{attacker.action}": attacker.digest for attacker in self._attackers},
        }

    def validate(self) -> Mapping[str, float]:
        """The loss, its parts and more at fixed places, averaged over the validation scans."""
        found = [self._figures(scan, slabs) for scan, slabs in self._fixed()]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]} if found else {}

    def images(self) -> Mapping[str, np.ndarray]:
        """The middle slice of a slab, its change (gray is none), and each attack on the clean and protected cube."""
        scan, slabs = self._shown()
        clean, change, allowed = self._change(scan, slabs, self.network)
        cubes = [attacked_cubes(hu, slabs, scan.scan.spacing_kji)[:1] for hu in (clean, clean + change)]
        forged = [
            torch.cat([attacker.inpainter(cube)[0, CUBE_MM // 2] for cube in cubes], dim=1)
            for attacker in self._attackers
        ]
        k, largest = slabs[0].target[0], float(allowed.max().clamp_min(1))
        return {
            "scan": gray(clean[0, k]),
            "change": gray(change[0, k], (-largest, largest)),
            "forged on clean, forged on protected": gray(torch.cat(forged)),
        }

    @property
    def _attacker_names(self) -> str:
        return ", ".join(sorted({attacker.name for attacker in self._attackers}))

    def _fixed(self) -> Iterator[tuple[ScanTargets, list[Slab]]]:
        """The validation scans with their places, always the same."""
        for number, scan in enumerate(self._validation):
            rng = np.random.default_rng((self.training.seed, number))
            if slabs := scan.draw(number, self.config.validation_targets, rng):
                yield scan, slabs

    def _shown(self) -> tuple[ScanTargets, list[Slab]]:
        """The scan and places of sample images."""
        return next(self._fixed(), (self._scans[0], self._scans[0].draw(0, 1, np.random.default_rng(0))))

    def _read(self, read: Callable[[Slab], np.ndarray], slabs: Sequence[Slab]) -> torch.Tensor:
        """What ``read`` gives of slabs, (n, slices, rows, columns) in HU, float32 on the device."""
        return torch.from_numpy(np.stack([read(slab) for slab in slabs])).to(self.inputs.device).float()

    def _slices(self, hu: torch.Tensor) -> torch.Tensor:
        """Slabs in HU as the network takes them: (n x slices, 1, rows, columns) in its range."""
        return hu_to_network(hu, self.network.config.hu_window).flatten(0, 1).unsqueeze(1)

    def _beside(self, slabs: Sequence[Slab]) -> object:
        """What the network takes beside the slices of slabs: a generator noise."""
        noise = draw_noise(slabs[0].shape[1:], self.network.config.noise, slabs[0].seed)
        return noise.to(self.inputs.device)

    def _change(
        self, scan: ScanTargets, slabs: Sequence[Slab], network: nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Slabs (n, slices, rows, columns), the network's change of them, and what is allowed, in whole HU."""
        clean = self._read(scan.hu, slabs)
        allowed = self._read(lambda slab: scan.allowed(slab, self.config.budget), slabs)
        share = network(self._slices(clean), self._beside(slabs)).squeeze(1).view_as(clean).float()
        return clean, rounded(share * allowed), allowed

    def _moved(
        self, scan: ScanTargets, slabs: Sequence[Slab], clean: torch.Tensor, protected: torch.Tensor, words: str = ""
    ) -> dict[str, float]:
        """How far the protection of slabs in HU moves what each attack makes up."""
        cubes = [attacked_cubes(hu, slabs, scan.scan.spacing_kji) for hu in (clean, protected)]
        return {f"{a.name} {a.action} {words}moved_hu": moved_hu(*cubes, a).item() for a in self._attackers}

    def _protector(self, *, description: str, limits: str) -> Product:
        """The trained network as a protector."""
        config, network = self.config, self.network
        return Product(
            path=f"protectors/{config.name}.safetensors",
            tensors=half_precision(network),
            name=config.name,
            kind="protector",
            description=description,
            architecture={"class": type(network).__name__, "config": dataclasses.asdict(network.config)},
            data=self.described(f"{len(self._scans)} scans", f"{len(self._validation)} scans"),
            limits=limits,
            budget=config.budget.to_dict(),
        )


@dataclass(frozen=True)
class SlabTaskConfig(ProtectorConfig):
    """Settings of every task on slices, beside those of all protectors.

    :param slices: at least this many around a place.
    :param crop: rows and columns of the slices; 0 takes whole slices.
    """

    slices: Count = 1
    crop: CountOrNone = 0


class SlabTask(ProtectorTask[Config]):
    """A protector's training on slices; its configuration is a :class:`SlabTaskConfig`."""

    def _opened(self, scan: PreparedScan) -> SlabScan:
        return SlabScan(scan, self.config.slices, self.config.crop, self.config.structure_share)
