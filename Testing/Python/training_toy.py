"""The smallest task that uses all of the engine: two learners, batch norm, dropout, a schedule, validation, images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from MITSGANTrainingLib.training.configuration import Positive, Share, plain
from MITSGANTrainingLib.training.engine import Learner, Loss, Product, Step, Task, Trainer, Training
from MITSGANTrainingLib.training.inputs import Inputs
from MITSGANTrainingLib.training.team import Team, frozen
from torch import nn

SAMPLES = 12


@dataclass(frozen=True)
class ToyConfig:
    """From ``poisoned_step`` on the loss is spoiled, or with ``poisoned_gradient`` its gradient alone; 0 is never."""

    learning_rate: Positive = 0.01
    dropout: Share = 0.3
    poisoned_step: int = 0
    poisoned_gradient: bool = False
    worse_after: int = 1000


class Toy(Task[ToyConfig]):
    """A network that learns a function of four numbers, and a critic that learns how far off it is."""

    Configuration = ToyConfig
    watched = "error"
    samples_per_epoch = SAMPLES

    def __init__(self, config: ToyConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self.x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(5)).to(inputs.device)
        self.y = self.x.prod(dim=1, keepdim=True)
        self.generator = nn.Sequential(
            nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(config.dropout), nn.Linear(8, 1)
        )
        self.critic = nn.Linear(1, 1)
        optimizer = torch.optim.Adam(self.generator.parameters(), config.learning_rate)
        self.learners = {
            "generator": Learner(self.generator, optimizer, 0.1),
            "critic": Learner(self.critic, torch.optim.SGD(self.critic.parameters(), config.learning_rate)),
        }
        self.step = 0
        self.validations = 0

    def identity(self) -> Mapping[str, str]:
        return {"data": "toy"}

    def draw(self, step: Step) -> Sequence[int]:
        self.step = step.number + 1
        return step.indices(SAMPLES)

    def losses(self, samples: Sequence[int], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        x, y = self.x[samples], self.y[samples]
        answer = networks["generator"](x)
        error = (answer - y).square()
        yield Loss("critic", (networks["critic"](answer.detach()) - error.detach()).square().mean())
        with frozen(self.critic) as critic:
            judged = critic(answer).mean()
        loss = error.mean() + 0.01 * judged
        if 0 < self.config.poisoned_step <= self.step:
            # The square root of nothing: 0 forward, infinite times 0 backward.
            loss = loss + (answer - answer).sum().sqrt() if self.config.poisoned_gradient else loss * torch.nan
        yield Loss("generator", loss, {"judged": judged})

    def validate(self) -> Mapping[str, float]:
        self.validations += 1
        if self.validations > self.config.worse_after:
            return {"error": 1e6}
        return {"error": (self.generator(self.x) - self.y).square().mean().item()}

    def images(self) -> Mapping[str, np.ndarray]:
        return {"weights": self.generator[0].weight.sigmoid().cpu().numpy()}

    def product(self) -> Product:
        return Product("toy/toy.safetensors", self.generator.state_dict(), "toy", "toy", "", {"class": "Toy"}, {}, "")


def trainer(folder: Path, config: ToyConfig | None = None, *, team: Team | None = None, **options) -> Trainer:
    """A trainer of the toy in a folder; ``options`` are the training's, and ``stop`` and ``monitor`` the trainer's."""
    config = config or ToyConfig()
    more = {name: options.pop(name) for name in ("stop", "monitor") if name in options}
    training = Training(**{"batch_size": 4, "steps": 8, "save_every": 3, "report_every": 2, **options})
    torch.manual_seed(training.seed)
    task = Toy(config, training, Inputs(data=None, device=team.device if team else torch.device("cpu")))
    configuration = {"task": "toy", **plain(config), "inputs": dict(task.identity())}
    return Trainer(task, configuration, folder, team=team, **more)
