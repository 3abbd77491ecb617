"""Training of a network that removes the mark, to measure how well the mark bears removal. It does not ship.

Whoever has the marking network can mark scans of their own and learn to undo it: that is what is trained here, on pairs
of marked and clean cubes, slice by slice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from MITSGANLib import models
from MITSGANLib.budget import Budget, allowed_change
from MITSGANLib.errors import ModelError
from MITSGANLib.generator import draw_noise, hu_to_network
from MITSGANLib.volume import hu_from_float
from torch import nn

from .configuration import Count, Positive, Share
from .engine import Learner, Loss, Product, Step, Task, Training, cosine
from .inputs import Inputs, fingerprint
from .marking import CubeGrids, CubeSampling, GridDraw
from .team import mean_over_team

_KIND = "remover of marks"


@dataclass(frozen=True)
class UnmarkerConfig:
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


class Unmarker(nn.Module):
    """Convolutions over a folded slice that say what to take off."""

    def __init__(self, config: UnmarkerConfig) -> None:
        super().__init__()
        self.config = config
        f, folded = config.filters, config.fold**2
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.fold), nn.Conv2d(folded, f, 3, padding=1), nn.ReLU()]
        for _ in range(config.layers - 2):
            layers += [nn.Conv2d(f, f, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(f, folded, 3, padding=1), nn.PixelShuffle(config.fold))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        """Marked slices (n, rows, columns) in HU to slices without the mark, as far as the network can tell."""
        rows, columns = hu.shape[-2:]
        x = hu_to_network(hu, self.config.hu_window).unsqueeze(1)
        missing = (-columns % self.config.fold, -rows % self.config.fold)
        x = nn.functional.pad(x, (0, missing[0], 0, missing[1]), mode="replicate")
        mark = torch.tanh(self.layers(x)).squeeze(1)[:, :rows, :columns]
        return hu - self.config.limit_hu * mark


def load_unmarker(path: Path) -> tuple[Unmarker, models.ModelCard]:
    """A trained removal network and its card.

    :raises ModelError: when it is missing, corrupt, or another kind of model.
    """
    tensors, card = models.read_weights(path)
    if card.kind != _KIND:
        raise ModelError(f"{path} holds a {card.kind}, not a {_KIND}; train one with the recipe unmark.")
    return models.fill(Unmarker(models.configuration(UnmarkerConfig, card)), tensors, card), card


def unmarked(hu: np.ndarray, network: Unmarker) -> np.ndarray:
    """Slices (n, rows, columns), int16 HU, as the removal network makes them of marked ones."""
    with torch.inference_mode():
        parts = [network(torch.from_numpy(part.astype(np.float32))) for part in np.array_split(hu, -(-len(hu) // 32))]
        return hu_from_float(torch.cat(parts).numpy())


@dataclass(frozen=True)
class UnmarkingConfig:
    """The removal network and how it is trained.

    :param protector: the marking network, by name (looked up in the folder of models that is written to, then among
        the installed ones) or as a file.
    """

    name: str = "unmark"
    protector: str = "miad-mark"
    network: UnmarkerConfig = field(default_factory=UnmarkerConfig)
    cubes: CubeSampling = field(default_factory=CubeSampling)
    learning_rate: Positive = 2e-3
    last_rate: Share = 0.05
    validation_samples: Count = 48
    held_out: tuple[str, ...] = ("LIDC-IDRI-0001", "RIDER-Pilot-0117")
    sources: str = ""


class UnmarkingTask(Task[UnmarkingConfig]):
    """A network that brings marked slices as near to the clean ones as it can."""

    Configuration = UnmarkingConfig
    watched = "loss"

    def __init__(self, config: UnmarkingConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        local = (inputs.models / "protectors" / f"{config.protector}.safetensors").is_file()
        self._marker, self._card = models.load_protector(
            config.protector, inputs.models if local else models.MODELS_FOLDER
        )
        self._marker.to(inputs.device)
        self._budget = Budget(**self._card.budget)
        self._training, self._validation = (
            CubeGrids(inputs, part, config.cubes, config.held_out) for part in ("training", "validation")
        )
        self.samples_per_epoch = len(self._training.source)
        self.network = Unmarker(config.network)
        optimizer = torch.optim.Adam(self.network.parameters(), config.learning_rate)
        self.learners = {"unmarker": Learner(self.network, optimizer, cosine(config.last_rate))}

    def identity(self) -> Mapping[str, str]:
        return {
            "training_samples": fingerprint(*self._training.source.marks()),
            "validation_samples": fingerprint(*self._validation.source.marks()),
            self._card.name: self._card.sha256,
        }

    def draw(self, step: Step) -> Sequence[GridDraw]:
        return self._training.draw(step.batch_size, step.rng())

    def losses(self, samples: Sequence[GridDraw], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        clean, marked = self._pairs(self._training, samples)
        error = (networks["unmarker"](marked) - clean).abs().mean()
        mark = (marked - clean).abs().mean()
        yield Loss("unmarker", error / self._budget.strength_hu, {"left": mean_over_team(error / mark.clamp_min(1e-3))})

    def validate(self) -> Mapping[str, float]:
        """Mean absolute error, as a share of the mark's strength and (left) of the mark itself."""
        rng = np.random.default_rng((self.training.seed, 1))
        found = []
        for _ in range(-(-self.config.validation_samples // self.training.batch_size)):
            clean, marked = self._pairs(self._validation, self._validation.draw(self.training.batch_size, rng))
            error, mark = (self.network(marked) - clean).abs().mean().item(), (marked - clean).abs().mean().item()
            found.append({"loss": error / self._budget.strength_hu, "left": error / max(mark, 1e-3)})
        return {name: round(float(np.mean([one[name] for one in found])), 4) for name in found[0]}

    def take_over(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.network.load_state_dict(tensors)

    def product(self) -> Product:
        return Product(
            path=f"unmarkers/{self.config.name}.safetensors",
            tensors=models.half_precision(self.network),
            name=self.config.name,
            kind=_KIND,
            description=f"Removes the mark of {self._card.name} as far as it can, to measure how well that bears it.",
            architecture={"class": "Unmarker", "config": dataclasses.asdict(self.config.network)},
            data={
                "training": self._training.source.described(),
                "validation": self._validation.source.described(),
                "sources": self.config.sources or "not stated",
            },
            limits="For measuring only. It does not give back the original; the key does.",
        )

    def _pairs(self, grids: CubeGrids, drawn: Sequence[GridDraw]) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices of the cubes, clean and marked, float32 (n, rows, columns) in whole HU, both of one noise."""
        clean = grids.hu(drawn).flatten(0, 1)
        allowed = torch.from_numpy(
            allowed_change(hu_from_float(clean.numpy()), self._budget, np.ones(clean.shape, bool))
        )
        clean, config = clean.to(self.inputs.device), self._marker.config
        noise = draw_noise(clean.shape[-2:], config.noise, drawn[0].noise_seed).to(clean.device)
        with torch.no_grad():
            share = self._marker(hu_to_network(clean, config.hu_window).unsqueeze(1), noise).squeeze(1)
        return clean, clean + (share * allowed.to(clean.device)).round()


TASK = UnmarkingTask
