"""What the tests of the rivals' training share: a dataset, attackers as files, a run of train.py, a signal to stop."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from MITSGANLib.attack.attacker import Attacker
from MITSGANLib.scan.volume import CTVolume
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.data.dataset import Dataset
from MITSGANTrainingLib.training.engine import Step, Task
from MITSGANTrainingLib.training.inputs import Inputs
from MITSGANTrainingLib.training.recipes import find_task, load_recipe
from training_data import write_dataset, write_untrained_attackers


@dataclasses.dataclass(frozen=True)
class Bench:
    """A folder with a dataset, the attacker "untrained", and a recipe that names it."""

    folder: Path
    recipe: Path

    @classmethod
    def make(cls, folder: Path, recipe: str, volume: CTVolume, attackers: dict[str, Attacker]) -> Bench:
        shorter = dataclasses.replace(volume, hu=volume.hu[:40])
        write_dataset(folder / "dataset", {"patient-0": volume, "patient-2": shorter})
        write_untrained_attackers(folder / "models", attackers)
        path = folder / "tiny.toml"
        path.write_text(recipe)
        return cls(folder, path)

    def train(self, work: Path, *options: str) -> int:
        """The exit code of train.py; checkpoints go to ``work``, models to ``models`` in it."""
        fixed = ["--data", str(self.folder / "dataset"), "--work", str(work), "--out", str(work / "models")]
        attackers = ["--attackers", str(self.folder / "models" / "attackers" / "untrained")]
        return main(
            ["train", str(self.recipe), *fixed, *attackers, "--device", "cpu", "--threads", "1", "--no-logs", *options]
        )

    def task(self, against: Iterable[Attacker] = (), **changes: object) -> Task:
        """The task of the recipe with some values changed, as train.py builds it.

        :param against: these attackers, in place of those that the recipe names.
        """
        made = load_recipe(self.recipe, changes)
        torch.manual_seed(0)
        given = (Dataset.open(self.folder / "dataset"), torch.device("cpu"))
        inputs = InputsAgainst(*given, models=self.folder / "models", against=tuple(against))
        return find_task(made.task)(made.config, made.training, inputs)


@dataclasses.dataclass(frozen=True)
class InputsAgainst(Inputs):
    """Inputs with attackers that lie in no file."""

    against: tuple[Attacker, ...] = ()

    def load_attackers(self, named_by_recipe: Sequence[str]) -> list[Attacker]:
        return list(self.against) or super().load_attackers(named_by_recipe)


def terminate_in(patch: pytest.MonkeyPatch, task: type[Task], step: int) -> None:
    """Send SIGTERM to this process when a task of this class draws for a step, counted from 0."""
    draw = task.draw

    def draw_and_stop(self: Task, given: Step) -> Sequence:
        if given.number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, given)

    patch.setattr(task, "draw", draw_and_stop)


def assert_resumes(bench: Bench, folder: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run stopped by SIGTERM after some steps and continued ends in the weights of an unbroken one, bit by bit."""
    assert bench.train(folder / "whole") == 0
    with monkeypatch.context() as patch:
        terminate_in(patch, find_task(load_recipe(bench.recipe).task), stop_after - 1)
        assert bench.train(folder / "parts") == 130
    assert not (folder / "parts" / "models").exists(), "a stopped run leaves no model"
    assert bench.train(folder / "parts") == 0
    whole, parts = (torch.load(folder / run / "last.pt", weights_only=True) for run in ("whole", "parts"))
    assert whole["step"] == parts["step"] > stop_after
    for learner, tensors in whole["modules"].items():
        for name, values in tensors.items():
            assert torch.equal(values, parts["modules"][learner][name]), f"{learner} {name}"


def learn(task: Task, steps: int) -> list[dict[str, float]]:
    """Plain descents without the trainer; every loss and scalar of each step."""
    networks = {name: learner.module.train() for name, learner in task.learners.items()}
    seen = []
    for number in range(steps):
        scalars: dict[str, float] = {}
        for loss in task.losses(task.draw(Step(number, 0, task.training.batch_size)), networks):
            learner = task.learners[loss.learner]
            learner.optimizer.zero_grad()
            loss.value.backward()
            learner.optimizer.step()
            scalars |= {loss.learner: loss.value.item(), **{k: v.item() for k, v in loss.scalars.items()}}
        seen.append(scalars)
    return seen
