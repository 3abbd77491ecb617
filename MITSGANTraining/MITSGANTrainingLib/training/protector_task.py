"""What tasks share that train a protector against frozen attackers: settings, data, fixed places, the card."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from MITSGANLib.attack.installed import DEFAULT_ATTACKER
from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import InputError
from MITSGANLib.scan.cubes import CUBE_MM
from MITSGANLib.weights import half_precision
from torch import nn

from ..data.dataset import PreparedScan
from .configuration import Count, CountOrNone, Share
from .engine import Product, Task, Training
from .inputs import Inputs, fingerprint
from .slabs import Slab, SlabScan, gray


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
    """A protector's training on whole scans.

    :raises InputError: the data set has no whole scans.
    """

    def __init__(self, config: Config, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self._attackers = inputs.load_attackers(config.attackers)
        self._scans, self._validation = (
            [self._opened(scan) for scan in inputs.data.scans(part)] for part in ("training", "validation")
        )
        if not self._scans:
            raise InputError("The data set has no whole scans to train a protector on; prepare scans, not cubes alone.")

    @abstractmethod
    def _opened(self, scan: PreparedScan) -> Any:
        """A scan as the task draws from it; it has ``marks``, as :class:`~.scans.ScanTargets`."""

    def identity(self) -> Mapping[str, str]:
        return {
            "training_scans": fingerprint(*(mark for scan in self._scans for mark in scan.marks())),
            "validation_scans": fingerprint(*(mark for scan in self._validation for mark in scan.marks())),
            **{f"{attacker.name}-{attacker.action}": attacker.digest for attacker in self._attackers},
        }

    @property
    def _attacker_names(self) -> str:
        return ", ".join(sorted({attacker.name for attacker in self._attackers}))

    def _pictures(
        self, clean: torch.Tensor, change: torch.Tensor, largest_hu: float, cubes: Sequence[torch.Tensor]
    ) -> dict[str, np.ndarray]:
        """A slice, its change (gray is none), and what each attack forges on the clean and on the protected cubes."""
        forged = [
            torch.cat([attacker.inpainter(cube)[0, CUBE_MM // 2] for cube in cubes], dim=1)
            for attacker in self._attackers
        ]
        return {
            "scan": gray(clean),
            "change": gray(change, (-largest_hu, largest_hu)),
            "forged on clean, forged on protected": gray(torch.cat(forged)),
        }

    def _protector(self, network: nn.Module, architecture: Any, *, description: str, limits: str) -> Product:
        """The trained network as a protector.

        :param architecture: its configuration, a dataclass.
        """
        config = self.config
        return Product(
            path=f"protectors/{config.name}.safetensors",
            tensors=half_precision(network),
            name=config.name,
            kind="protector",
            description=description,
            architecture={"class": type(network).__name__, "config": dataclasses.asdict(architecture)},
            data=self.described(f"{len(self._scans)} scans", f"{len(self._validation)} scans"),
            limits=limits,
            budget=config.budget.to_dict(),
        )


@dataclass(frozen=True)
class SlabTaskConfig(ProtectorConfig):
    """Settings of every task on slabs, beside those of all protectors.

    :param slices: at least this many around a place.
    :param crop: rows and columns of the slices; 0 takes whole slices.
    """

    slices: Count = 1
    crop: CountOrNone = 0


class SlabTask(ProtectorTask[Config]):
    """A protector's training on slabs; its configuration is a :class:`SlabTaskConfig`."""

    def _opened(self, scan: PreparedScan) -> SlabScan:
        return SlabScan(scan, self.config.slices, self.config.crop, self.config.structure_share)

    def _fixed(self) -> Iterator[tuple[SlabScan, list[Slab]]]:
        """The validation scans with their places, always the same."""
        for number, scan in enumerate(self._validation):
            rng = np.random.default_rng((self.training.seed, number))
            if slabs := scan.draw(number, self.config.validation_targets, rng):
                yield scan, slabs

    def _shown(self) -> tuple[SlabScan, list[Slab]]:
        """The scan and places of sample images."""
        return next(self._fixed(), (self._scans[0], self._scans[0].draw(0, 1, np.random.default_rng(0))))
