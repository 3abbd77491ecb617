"""From a recipe and prepared data to a model with its card, or a rehearsal of that."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from MITSGANLib import weights
from MITSGANLib.errors import InputError, ModelError, OutputError
from MITSGANLib.files.atomic import atomic_file
from MITSGANLib.runtime.devices import describe_device

from .configuration import differences
from .engine import Result, Task, Trainer
from .inputs import Inputs
from .monitor import Monitor
from .recipes import Recipe, find_task
from .team import Team


@dataclass(frozen=True)
class Run:
    """One recipe on its way to a model.

    :param work: folder of the run's checkpoints and logs.
    :param command: how to train this model again, for its card; without paths of this machine.
    :param start_from: weights (.safetensors, card beside them) to begin with instead of random ones.
    :param overwrite: whether a model that is installed may be replaced.
    """

    recipe: Recipe
    inputs: Inputs
    work: Path
    command: str
    start_from: Path | None = None
    overwrite: bool = False

    def train(self, team: Team, monitor: Monitor | None = None, stop: Callable[[], bool] = lambda: False) -> Path:
        """Train to the end and write weights and card, whole or not at all; gives the path of the weights.

        Errors are those of :meth:`Trainer.run`, and ``OutputError`` when the model cannot be written, or would replace
        an installed one.
        """
        team.on_leader(lambda: [_require_writable(folder) for folder in (self.inputs.models, self.work)])
        trainer, start = self._trainer(team, monitor, stop)
        team.on_leader(lambda: self._require_not_installed(trainer.task))
        result = trainer.run()
        return team.on_leader(lambda: self._publish(trainer.task, result, start, team))

    def rehearse(self, team: Team) -> dict[str, Any]:
        """What :meth:`Trainer.rehearse` gives, and the device in words; writes nothing."""
        trainer, _start = self._trainer(team)
        return {"device": describe_device(team.device), **trainer.rehearse()}

    def _trainer(
        self, team: Team, monitor: Monitor | None = None, stop: Callable[[], bool] = lambda: False
    ) -> tuple[Trainer, str]:
        recipe = self.recipe
        torch.manual_seed(recipe.training.seed)
        task = find_task(recipe.task)(recipe.config, recipe.training, self.inputs)
        start = take_over(task, self.start_from) if self.start_from else ""
        configuration = {**recipe.plain(), "inputs": dict(task.identity()), "start_from": start}
        return Trainer(task, configuration, self.work, team=team, monitor=monitor, stop=stop), start

    def _require_not_installed(self, task: Task) -> None:
        """Refuse, before hours of training, to replace a model that published figures rest on."""
        folder, path = self.inputs.models, task.product().path
        if not self.overwrite and folder.resolve() == weights.MODELS_FOLDER.resolve() and (folder / path).exists():
            raise OutputError(
                f"The model {path} is installed already; name a folder for yours with --out, or replace it with "
                "--overwrite."
            )

    def _publish(self, task: Task, result: Result, start: str, team: Team) -> Path:
        product = task.product()
        fields = {field.name for field in dataclasses.fields(product)} - {"path", "tensors"}
        card = weights.ModelCard(
            **{name: getattr(product, name) for name in fields},
            training={
                **self.recipe.plain(),
                "steps_done": result.steps,
                "stopped_early": result.early,
                "inputs": dict(task.identity()),
                "start_from": start,
                "device": describe_device(team.device),
                "processes": team.size,
            },
            figures=dict(result.figures),
            seed=self.recipe.training.seed,
            command=self.command,
            commit=commit(),
        )
        path = self.inputs.models / product.path
        weights.write_weights(path, {name: tensor.cpu() for name, tensor in product.tensors.items()}, card)
        return path


def take_over(task: Task, path: Path) -> str:
    """Begin with the weights of a model of the task's own kind and architecture; gives the file's digest.

    :raises ModelError: when the file is missing, corrupt, or of another kind or architecture, with what differs.
    """
    product = task.product()
    tensors, card = weights.read_weights(path)
    if card.kind != product.kind:
        raise ModelError(f"{path} holds a model of the kind '{card.kind}', not '{product.kind}'; start from another.")
    recipe = json.loads(json.dumps(product.architecture))
    found = differences(dict(card.architecture), recipe, old_name="file", new_name="recipe")
    # These hold no weights, so fine-tuning may have others.
    found = [text for text in found if not text.startswith(("config.dropout ", "config.slower_mm "))]
    if found:
        raise ModelError(
            f"{path} has another architecture: {'; '.join(found)}. Start from another, or change the recipe."
        )
    try:
        task.take_over({k: t.float() if t.dtype == torch.float16 else t for k, t in tensors.items()})
    except (RuntimeError, KeyError) as error:
        raise ModelError(f"{path} does not hold the weights that its card describes ({error}).") from error
    return card.sha256


def record_figures(folder: Path, name: str, reports: Sequence[Path]) -> Path:
    """Write the summaries of ``mitsgan demo`` into the card of the protector that they measured, by scan.

    :param folder: folder of models.
    :raises InputError: when a report was made with other weights, or is none.
    :raises ModelError: when there is no such card.
    """
    path = folder / "protectors" / f"{name}.json"
    card = weights.ModelCard.read(path)
    figures = dict(card.figures)
    for report in reports:
        try:
            record = json.loads(report.read_text(encoding="utf-8"))
            digest, scan, summary = record["protector"]["sha256"], record["scan"], record["summary"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{report} is no report of mitsgan demo; give its report.json.") from error
        if digest != card.sha256:
            raise InputError(f"{report} was made with other weights than {path}; run mitsgan demo again.")
        targets = summary["inject"]["targets"]
        figures[scan] = {"command": f"mitsgan demo SCAN --targets {targets}", "commit": commit(), **summary}
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(dataclasses.replace(card, figures=figures).to_json(), encoding="utf-8")
    return path


def commit() -> str:
    """The checked-out commit, with a mark when files differ from it; "unknown" outside a clone."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + (" with local changes" if changed.stdout.strip() else "")


def _require_writable(folder: Path) -> None:
    """Found out before hours of training, not after.

    :raises OutputError: when nothing can be written there.
    """
    present = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not present.is_dir() or not os.access(present, os.W_OK):
        raise OutputError(f"{folder} cannot be written to; choose another place or change its permissions.")
