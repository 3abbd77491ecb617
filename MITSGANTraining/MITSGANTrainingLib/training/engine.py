"""The training engine. It knows learners, losses and figures, and nothing of what a task makes of them.

A :class:`Task` names its learners, says what a step draws at random, yields losses, and measures itself; the
:class:`Trainer` does all else: descent, mixed precision, clipping, checkpoints, resume, early stop, reports, many
processes. Everything random follows from the seed and the number of the step, so a resumed run equals an unbroken one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal

import numpy as np
import torch
from MITSGANLib.errors import CancelledError, InputError, MITSGANError
from torch import nn

from .checkpoints import read_checkpoint, require_same, save_checkpoint
from .configuration import Config, Count, CountOrNone, Weight, plain
from .inputs import Inputs
from .monitor import Monitor
from .team import Team, mean_over_team

LAST, BEST = "last.pt", "best.pt"
_SMALLEST_SCALE = 2.0**-10


class DivergedError(MITSGANError):
    """A loss or a gradient is no longer a finite number."""


@dataclass(frozen=True)
class Training:
    """How long and how carefully to train; the table ``[training]`` of every recipe.

    :param steps: number of steps; 0 takes it from ``epochs``.
    :param epochs: passes over the training samples, where ``steps`` is 0.
    :param batch_size: samples per step over all processes together.
    :param clip_norm: largest norm of a learner's gradient; 0 does not clip.
    :param mixed_precision: float16 where it is safe, with a scaled loss; on CUDA only.
    :param validate_every: steps between validations; 0 validates at the end only.
    :param patience: validations without a better watched figure after which training ends; 0 never ends it early.
    :param keep: which weights become the model: of the last step, or of the best validation.
    :param save_every: steps between checkpoints; one is also written at each validation, at the end and at a stop.
    :param images_every: steps between sample images in the TensorBoard log; 0 logs none.
    """

    batch_size: Count
    steps: CountOrNone = 0
    epochs: CountOrNone = 0
    seed: CountOrNone = 0
    clip_norm: Weight = 0.0
    mixed_precision: bool = True
    validate_every: CountOrNone = 0
    patience: CountOrNone = 0
    keep: Literal["last", "best"] = "last"
    save_every: Count = 50
    report_every: Count = 10
    images_every: CountOrNone = 0

    # What does not change the weights of a step, so it may change when a run goes on.
    FREE: ClassVar[tuple[str, ...]] = (
        "steps", "epochs", "validate_every", "patience", "keep", "save_every", "report_every", "images_every",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if bool(self.steps) == bool(self.epochs):
            raise InputError("give either steps or epochs, and leave the other 0.")
        if not self.validate_every and (self.patience or self.keep == "best"):
            raise InputError("patience and keep = 'best' need validate_every above 0.")


@dataclass(frozen=True)
class Step:
    """What the random draws of one step follow from."""

    number: int
    seed: int
    batch_size: int

    def rng(self) -> np.random.Generator:
        """This step's own generator."""
        return np.random.default_rng((self.seed, self.number))

    def indices(self, count: int) -> list[int]:
        """This step's samples among ``count``, so that each pass takes every sample once, in an order of its own."""
        positions = np.arange(self.number * self.batch_size, (self.number + 1) * self.batch_size)
        passes, places = np.divmod(positions, count)
        orders = {n: np.random.default_rng((self.seed, n, count)).permutation(count) for n in np.unique(passes)}
        return [int(orders[n][place]) for n, place in zip(passes, places, strict=True)]


@dataclass(frozen=True)
class Learner:
    """A network with its optimizer, whose learning rate falls along half a cosine to the share ``last_rate``."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    last_rate: float = 1.0

    def rate(self, progress: float) -> float:
        """Factor on the learning rate, by the share of the steps that are done, from 0 to 1."""
        return self.last_rate + (1 - self.last_rate) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Loss:
    """One descent of one learner: a scalar, the average over this process's samples, and figures for the log."""

    learner: str
    value: torch.Tensor
    scalars: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """The loss and its figures as numbers."""
        return {"loss": self.value.item(), **{name: scalar.item() for name, scalar in self.scalars.items()}}


@dataclass(frozen=True)
class Product:
    """A trained model as it leaves the task: where its weights go below the models folder, and its part of the card."""

    path: str
    tensors: Mapping[str, torch.Tensor]
    name: str
    kind: str
    description: str
    architecture: Mapping[str, Any]
    data: Mapping[str, Any]
    limits: str
    budget: Mapping[str, float] = field(default_factory=dict)


class Task(ABC, Generic[Config]):
    """What is trained. A subclass sets ``Configuration`` and the attributes below, and is its module's ``TASK``.

    ``learners`` and everything else are made in ``__init__``, which is called with torch's generator seeded by the
    recipe's seed. The trainer puts the learners' modules on ``inputs.device`` afterwards; the rest is the task's to put
    there. Samples that are drawn are small (indices, positions, seeds): each process draws those of all.
    """

    Configuration: ClassVar[type]
    FREE: ClassVar[tuple[str, ...]] = ("name", "sources")
    """Keys of the configuration that tell the model's card something and its weights nothing."""
    learners: Mapping[str, Learner]
    samples_per_epoch: int
    """Samples of one pass, for recipes that count in epochs."""
    watched: str = ""
    """The validation figure that early stop and the best checkpoint watch; lower is better."""

    def __init__(self, config: Config, training: Training, inputs: Inputs) -> None:
        self.config, self.training, self.inputs = config, training, inputs

    @abstractmethod
    def identity(self) -> Mapping[str, str]:
        """Digests of the data and models a run depends on besides its recipe; a resumed run must find them again."""

    @abstractmethod
    def draw(self, step: Step) -> Sequence[Any]:
        """The samples of a step, ``step.batch_size`` entries, which hold all of the step's random choices."""

    @abstractmethod
    def losses(self, samples: Sequence[Any], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        """A generator of one loss after the other; each is descended before the next is asked for.

        :param samples: this process's share of what :meth:`draw` gave.
        :param networks: the learners' modules by name, each to be called, instead of the module itself, for what its
            own loss descends. What a loss needs of another learner goes through :func:`~.team.frozen`.
        """

    @abstractmethod
    def product(self) -> Product:
        """The model as it is now."""

    def validate(self) -> Mapping[str, float]:
        """Figures on data that is not trained on, repeatable; called in evaluation mode, without gradient."""
        return {}

    def images(self) -> Mapping[str, np.ndarray]:
        """Sample images for the log: float (rows, columns) from 0 to 1; called as :meth:`validate`."""
        return {}

    def take_over(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Start from the tensors (float32) of a model of this kind and architecture, as :meth:`product` gives them."""
        (learner, *_others) = self.learners.values()
        learner.module.load_state_dict(tensors)

    def described(self, training: str, validation: str) -> dict[str, str]:
        """What a card says of the data, for configurations that name its ``sources``."""
        return {"training": training, "validation": validation, "sources": self.config.sources or "not stated"}


@dataclass(frozen=True)
class Result:
    """How a run ended: steps done, the figures of the weights that are kept, and whether it stopped early."""

    steps: int
    figures: Mapping[str, float]
    early: bool = False


@dataclass
class _Record:
    """The best validation so far and how many went by since."""

    best: float = math.inf
    best_step: int = 0
    since: int = 0


class Trainer:
    """Runs one task to its end, or to where it is told to stop, with all its state in one folder.

    :param configuration: the recipe and all else that must be the same when the run goes on, as plain values; what is
        free to change is known here.
    :param stop: asked after each step; when it says yes, the state is saved and ``CancelledError`` raised.
    :ivar mixed: whether it computes in float16 where it is safe, with losses that ``scaler`` scales.
    """

    def __init__(
        self,
        task: Task,
        configuration: Mapping[str, Any],
        folder: Path,
        *,
        team: Team | None = None,
        monitor: Monitor | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.task, self.folder = task, folder
        self.training: Training = task.training
        self.team = team or Team(task.inputs.device)
        self._configuration = {**configuration, "training": plain(self.training)}
        self._monitor = monitor or Monitor(shown=False)
        self._stop = stop
        self.mixed = self.training.mixed_precision and self.team.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.team.device.type, enabled=self.mixed)
        self._record = _Record()
        self._networks: dict[str, nn.Module] = {}
        self.team.check_batch(self.training.batch_size)

    @property
    def steps(self) -> int:
        """All steps of the run."""
        return self.training.steps or max(
            1, math.ceil(self.training.epochs * self.task.samples_per_epoch / self.training.batch_size)
        )

    def run(self) -> Result:
        """Train from the last checkpoint, or from the start, to the end; gives the figures of the weights kept.

        :raises CancelledError: when told to stop; the same command goes on from here.
        :raises DivergedError: when a loss is not finite; the last checkpoint is from before.
        :raises InputError: when the folder's checkpoint belongs to another run.
        :raises OutputError: when a checkpoint cannot be written; the one before stays.
        """
        with self._ready() as done, contextlib.closing(self._monitor):
            self._monitor.start(done, self.steps)
            figures: Mapping[str, float] = {}
            while done < self.steps and not self._out_of_patience():
                scalars = self.take_step(done)
                done += 1
                figures = self._after(done, scalars)
        if self.training.keep == "best" and self._record.best_step:
            self._take_best()
            figures = {}
        figures = figures or self.team.on_leader(lambda: self._measure(self.task.validate))
        return Result(done, figures, self._out_of_patience())

    def rehearse(self) -> dict[str, Any]:
        """One step forward and backward, and what a run takes; nothing is written.

        Memory is reckoned in bytes: weights, gradients and optimizer states of all learners, and what the step keeps
        for its gradients. Seconds include what only a first step does.
        """
        with self._ready() as first:
            weights = [w for learner in self.task.learners.values() for w in learner.module.parameters()]
            activations = _Saved(weights)
            began = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(activations.count, lambda tensor: tensor):
                self.take_step(first)
            if self.team.device.type == "cuda":
                torch.cuda.synchronize()
        states = [
            value
            for learner in self.task.learners.values()
            for state in learner.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ]
        return {
            "steps": self.steps,
            "first_step": first,
            "seconds_per_step": time.perf_counter() - began,
            "parameters": {
                name: sum(w.numel() for w in learner.module.parameters())
                for name, learner in self.task.learners.items()
            },
            "weights_bytes": 2 * _bytes(weights) + _bytes(states),
            "activations_bytes": activations.total,
        }

    @contextlib.contextmanager
    def _ready(self) -> Iterator[int]:
        """Everything in place for the next step; its number."""
        for name, learner in self.task.learners.items():
            module = self.team.prepare(learner.module)
            for group in learner.optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
            module.train()
            self._networks[name] = module
        first = self._restore()
        for name, module in self._networks.items():
            self._networks[name] = self.team.wrap(module)
        try:
            yield first
        finally:
            # The wrapped networks hold their process group; the last one to hold it waits for its threads, and a
            # network that an exception's traceback has kept would do so while holding what these threads wait for.
            # Seen as a process that hangs after a stop.
            self._networks.clear()

    def take_step(self, number: int) -> dict[str, torch.Tensor]:
        """One step, counted from 0: a descent for each loss; gives the scalars to report."""
        # For what draws within a network, such as dropout.
        torch.manual_seed(self.training.seed * 1_000_003 + number)
        samples = self.task.draw(Step(number, self.training.seed, self.training.batch_size))
        scalars: dict[str, torch.Tensor] = {}
        with contextlib.closing(self.task.losses(self.team.share(samples), self._networks)) as losses:
            while True:
                with torch.autocast(self.team.device.type, dtype=torch.float16, enabled=self.mixed):
                    loss = next(losses, None)
                if loss is None:
                    break
                found = {loss.learner: loss.value, **loss.scalars}
                scalars |= {name: value.detach() for name, value in found.items()}
                self._descend(loss, number)
        self.scaler.update()
        return scalars

    def _descend(self, loss: Loss, number: int) -> None:
        learner = self.task.learners[loss.learner]
        optimizer = learner.optimizer
        if self.team.any(not math.isfinite(loss.value.item())):
            raise self._diverged(f"The loss of the {loss.learner}", number)
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss.value).backward()
        self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(learner.module.parameters(), self.training.clip_norm or math.inf)
        # With scaling an infinite gradient now and then is usual: the scaler leaves that descent out and scales less.
        finite = self.scaler.get_scale() > _SMALLEST_SCALE if self.mixed else math.isfinite(norm.item())
        if self.team.any(not finite):
            raise self._diverged(f"The gradient of the {loss.learner}", number)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learner.rate(number / self.steps)
        self.scaler.step(optimizer)

    def _after(self, done: int, scalars: dict[str, torch.Tensor]) -> Mapping[str, float]:
        """Reports, validation and checkpoint where they are due; gives the figures of the validation."""
        training, end = self.training, done == self.steps
        stop = self.team.any(self._stop())
        if done % training.report_every == 0 or end:
            means = {name: mean_over_team(value).item() for name, value in scalars.items()}
            self._monitor.report(done, "training", means)
        is_due = training.validate_every and (done % training.validate_every == 0 or end)
        figures = self._validate(done) if is_due else {}
        if training.images_every and (done % training.images_every == 0 or end):
            self.team.on_leader(lambda: self._monitor.images(done, self._measure(self.task.images)))
        if figures or stop or end or done % training.save_every == 0:
            self.team.on_leader(lambda: self._save(done))
        if stop and not end and not self._out_of_patience():
            raise CancelledError(f"Stopped after step {done} of {self.steps}; run the same command again to go on.")
        return figures

    def _validate(self, done: int) -> Mapping[str, float]:
        figures = self.team.on_leader(lambda: self._measure(self.task.validate))
        if self.task.watched not in figures:
            raise InputError("There is nothing to validate on; prepare validation data, or set validate_every to 0.")
        self._monitor.report(done, "validation", figures)
        value, record = figures[self.task.watched], self._record
        if value < record.best:
            record.best, record.best_step, record.since = value, done, 0
            content = {"step": done, "value": value, "modules": self._weights()}
            self.team.on_leader(lambda: save_checkpoint(self.folder / BEST, content))
        else:
            record.since += 1
        return figures

    def _out_of_patience(self) -> bool:
        return 0 < self.training.patience <= self._record.since

    def _measure(self, work: Callable[[], Any]) -> Any:
        modules = nn.ModuleList(learner.module for learner in self.task.learners.values()).eval()
        with torch.no_grad():
            result = work()
        modules.train()
        return result

    def _diverged(self, what: str, number: int) -> DivergedError:
        kept = f"The checkpoint {self.folder / LAST} is from before. " if (self.folder / LAST).exists() else ""
        rates = ", ".join(f"{n} {o.optimizer.param_groups[0]['initial_lr']:g}" for n, o in self.task.learners.items())
        clip = f"lower clip_norm (now {self.training.clip_norm:g})" if self.training.clip_norm else "set clip_norm to 1"
        mixed = ", or set mixed_precision to false" if self.mixed else ""
        return DivergedError(
            f"{what} is not a finite number at step {number + 1}. {kept}Lower the learning rate (now: {rates}), "
            f"{clip}{mixed}, and start again in another --work folder."
        )

    def _fixed(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration without what may change when a run goes on."""
        fixed = {key: value for key, value in configuration.items() if key not in self.task.FREE}
        fixed["training"] = {k: v for k, v in configuration["training"].items() if k not in Training.FREE}
        return fixed

    def _weights(self) -> dict[str, Any]:
        return {name: learner.module.state_dict() for name, learner in self.task.learners.items()}

    def _save(self, done: int) -> None:
        save_checkpoint(
            self.folder / LAST,
            {
                "step": done,
                "configuration": dict(self._configuration),
                "modules": self._weights(),
                "optimizers": {name: learner.optimizer.state_dict() for name, learner in self.task.learners.items()},
                "scaler": self.scaler.state_dict(),
                "record": dataclasses.asdict(self._record),
            },
        )

    def _restore(self) -> int:
        """Take over the last checkpoint where there is one; the number of finished steps."""
        path = self.folder / LAST
        saved = self.team.on_leader(lambda: read_checkpoint(path))
        if saved is None:
            return 0
        require_same(path, self._fixed(saved["configuration"]), self._fixed(self._configuration))
        if saved["step"] > self.steps:
            raise InputError(
                f"The checkpoint {path} has {saved['step']} steps already, and the run is to have {self.steps}; set "
                "more steps, or choose another --work folder."
            )
        for name, learner in self.task.learners.items():
            learner.module.load_state_dict(saved["modules"][name])
            learner.optimizer.load_state_dict(saved["optimizers"][name])
        # Empty when the run was on a CPU before.
        if saved["scaler"] and self.mixed:
            self.scaler.load_state_dict(saved["scaler"])
        self._record = _Record(**saved["record"])
        return saved["step"]

    def _take_best(self) -> None:
        saved = self.team.on_leader(lambda: read_checkpoint(self.folder / BEST))
        if saved is None or saved["step"] != self._record.best_step:
            raise InputError(
                f"The weights of the best validation (step {self._record.best_step}) are not in {self.folder / BEST}; "
                "set keep to 'last', or start again in another --work folder."
            )
        for name, learner in self.task.learners.items():
            learner.module.load_state_dict(saved["modules"][name])


class _Saved:
    """Counts the bytes that graphs keep for their backward pass, each storage once and no weights."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self._weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self._storages: dict[int, int] = {}

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self._storages.values())


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
