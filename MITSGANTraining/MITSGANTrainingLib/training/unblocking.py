"""Training of a network that undoes diagnosis blocking, to measure how well the blocking bears it. It does not ship.

Whoever has the blocker's file can block scans of their own and learn to undo it: that is what is trained here, slice by
slice, on pairs of blocked and clean cubes. Blocking takes seconds for each cube, so that a number of cubes is blocked
once, and their slices are drawn, flipped and turned again and again.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import InputError, ModelError
from MITSGANLib.protection.diagnosis_blocking import DiagnosisBlocker
from MITSGANLib.protection.inference import hu_to_network
from MITSGANLib.protection.presets import load_proposer
from MITSGANLib.scan.volume import hu_from_float
from MITSGANLib.weights import ModelCard, configuration, fill, half_precision, read_weights
from torch import nn

from .configuration import Count, Positive, Share
from .diagnosis_blocking import CubeGrids, CubeSampling
from .engine import Learner, Loss, Product, Step, Task, Training
from .inputs import Inputs, fingerprint
from .team import mean_over_team

logger = logging.getLogger(__name__)

_KIND = "remover of marks"  # in the cards of such networks since their first version


@dataclass(frozen=True)
class UnblockerConfig:
    """Architecture of the removal network.

    :param fold: slices are folded by this factor into channels.
    :param limit_hu: farthest that a voxel is moved.
    :param hu_window: HU that the network tells apart.
    """

    filters: int = 32
    layers: int = 5
    fold: int = 2
    limit_hu: float = 40.0
    hu_window: tuple[float, float] = (-1024.0, 512.0)


class Unblocker(nn.Module):
    """Convolutions over a folded slice that say what to take off."""

    def __init__(self, config: UnblockerConfig) -> None:
        super().__init__()
        self.config = config
        f, folded = config.filters, config.fold**2
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.fold), nn.Conv2d(folded, f, 3, padding=1), nn.ReLU()]
        for _ in range(config.layers - 2):
            layers += [nn.Conv2d(f, f, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(f, folded, 3, padding=1), nn.PixelShuffle(config.fold))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        """Blocked slices (n, rows, columns) in HU as they were before, as far as the network can tell."""
        rows, columns = hu.shape[-2:]
        x = hu_to_network(hu, self.config.hu_window).unsqueeze(1)
        missing = (-columns % self.config.fold, -rows % self.config.fold)
        x = nn.functional.pad(x, (0, missing[0], 0, missing[1]), mode="replicate")
        change = torch.tanh(self.layers(x)).squeeze(1)[:, :rows, :columns]
        return hu - self.config.limit_hu * change


def load_unblocker(path: Path) -> tuple[Unblocker, ModelCard]:
    """A trained removal network and its card.

    :raises ModelError: when it is missing, corrupt, or another kind of model.
    """
    tensors, card = read_weights(path)
    if card.kind != _KIND:
        raise ModelError(f"{path} holds a {card.kind}, not a {_KIND}; train one with the recipe unmark.")
    config = configuration(UnblockerConfig, card)
    return fill(lambda: Unblocker(config), tensors, card), card


def unblocked(hu: np.ndarray, network: Unblocker) -> np.ndarray:
    """Slices (n, rows, columns), int16 HU, as the removal network makes them of blocked ones."""
    with torch.inference_mode():
        parts = [network(torch.from_numpy(part.astype(np.float32))) for part in np.array_split(hu, -(-len(hu) // 32))]
        return hu_from_float(torch.cat(parts).numpy())


@dataclass(frozen=True)
class UnblockingConfig:
    """The removal network and how it is trained.

    :param protector: the blocker, by name (looked up in the folder of models that is written to, then among the
        installed ones) or as a file.
    :param pairs: cubes that are blocked to learn from, half of them with a nodule; those that validate come on top.
    :param slices: slices of each cube in a step.
    """

    name: str = "unmark"
    protector: str = "miad-mark"
    network: UnblockerConfig = field(default_factory=UnblockerConfig)
    cubes: CubeSampling = field(default_factory=CubeSampling)
    pairs: Count = 48
    slices: Count = 8
    learning_rate: Positive = 2e-3
    last_rate: Share = 0.05
    validation_samples: Count = 8
    held_out: tuple[str, ...] = ("LIDC-IDRI-0001", "RIDER-Pilot-0117")
    sources: str = ""


@dataclass(frozen=True)
class PairDraw:
    """Slices of a pair: of which cube, which of them, whether flipped, and by how many quarters turned."""

    pair: int
    slices: tuple[int, ...]
    flipped: bool
    quarter_turns: int


class UnblockingTask(Task[UnblockingConfig]):
    """A network that brings blocked slices as near to the clean ones as it can."""

    Configuration = UnblockingConfig
    watched = "loss"

    def __init__(self, config: UnblockingConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        folder = inputs.models_with(f"protectors/{config.protector}.safetensors")
        self._blocker, self._card = load_proposer(config.protector, folder)
        if not isinstance(self._blocker, DiagnosisBlocker):
            raise InputError(f"The protector {self._card.name} blocks no diagnosis; name another.")
        self._budget = Budget(**self._card.budget)
        self._training, self._validation = (
            CubeGrids(inputs, part, config.cubes, config.held_out) for part in ("training", "validation")
        )
        self.samples_per_epoch = config.pairs
        self.network = Unblocker(config.network)
        optimizer = torch.optim.Adam(self.network.parameters(), config.learning_rate)
        self.learners = {"unmarker": Learner(self.network, optimizer, config.last_rate)}

    def identity(self) -> Mapping[str, str]:
        return {
            "training_samples": fingerprint(*self._training.source.marks()),
            "validation_samples": fingerprint(*self._validation.source.marks()),
            self._card.name: self._card.sha256,
        }

    def draw(self, step: Step) -> Sequence[PairDraw]:
        rng = step.rng()
        depths = [len(clean) for clean, _blocked in self._pairs]
        return [
            PairDraw(
                pair,
                tuple(rng.integers(depths[pair], size=self.config.slices).tolist()),
                bool(rng.random() < 0.5),
                int(rng.integers(4)),
            )
            for pair in step.indices(len(depths))
        ]

    def losses(self, samples: Sequence[PairDraw], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        errors, changes = [], []
        for one in samples:  # one by one: cubes on different grids have different sizes
            clean, blocked = (self._slices(cube, one) for cube in self._pairs[one.pair])
            errors.append((networks["unmarker"](blocked) - clean).square().mean())
            changes.append((blocked - clean).square().mean())
        error, change = torch.stack(errors).mean(), torch.stack(changes).mean()
        left = (error.detach() / change.clamp_min(1e-3)).sqrt()
        # Not the absolute error, of which a network has least that leaves all as it is: the likeliest change is none.
        yield Loss("unmarker", error / self._budget.strength_hu**2, {"left": mean_over_team(left)})

    def validate(self) -> Mapping[str, float]:
        """Mean square error as a share of the squared strength, and the RMSE (left) as a share of the blocker's own."""
        errors, changes = [], []
        for pair in self._validation_pairs:
            clean, blocked = (torch.from_numpy(cube).float().to(self.inputs.device) for cube in pair)
            errors.append((self.network(blocked) - clean).square().mean().item())
            changes.append((blocked - clean).square().mean().item())
        error, change = float(np.mean(errors)), float(np.mean(changes))
        found = {"loss": error / self._budget.strength_hu**2, "left": (error / max(change, 1e-3)) ** 0.5}
        return {name: round(value, 4) for name, value in found.items()}

    def product(self) -> Product:
        return Product(
            path=f"unmarkers/{self.config.name}.safetensors",
            tensors=half_precision(self.network),
            name=self.config.name,
            kind=_KIND,
            description=f"Undoes what {self._card.name} does, as far as it can, to measure how well that bears it.",
            architecture={"class": "Unblocker", "config": dataclasses.asdict(self.config.network)},
            data=self.described(self._training.source.described(), self._validation.source.described()),
            limits="For measuring only. It does not give back the original; the key does.",
        )

    @functools.cached_property
    def _pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return self._blocked(self._training, self.config.pairs, 0)

    @functools.cached_property
    def _validation_pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return self._blocked(self._validation, self.config.validation_samples, 1)

    def _blocked(self, grids: CubeGrids, count: int, stream: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Cubes, clean and blocked, int16 (slices, rows, columns)."""
        rng = np.random.default_rng((self.training.seed, stream))
        pairs = []
        for _drawn, clean, blocked in grids.blocked(count, rng, self._blocker, self._budget):
            pairs.append((clean, blocked))
            logger.info("Blocked %d of %d cubes", len(pairs), count)
        return pairs

    def _slices(self, cube: np.ndarray, drawn: PairDraw) -> torch.Tensor:
        """float32 (n, rows, columns) on the device."""
        slices = cube[list(drawn.slices)]
        slices = np.rot90(slices[:, ::-1] if drawn.flipped else slices, drawn.quarter_turns, axes=(1, 2))
        return torch.from_numpy(slices.astype(np.float32)).to(self.inputs.device)


TASK = UnblockingTask
