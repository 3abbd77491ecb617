"""Training of judges: is there a nodule in the middle of this cube; was this place forged.

Cross-entropy on balanced samples; the threshold is then set on validation patients, at a share of false alarms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from MITSGANLib.errors import InputError
from MITSGANLib.judges.judge import THRESHOLD, Judge, Question, Sight, kind_of
from MITSGANLib.judges.networks import NETWORKS, PlainConfig, PlanesConfig, ResidualConfig, SquaresConfig
from MITSGANLib.scan.windows import LUNG
from MITSGANLib.weights import half_precision
from scipy import stats
from torch import nn
from torch.nn import functional as F

from .configuration import Positive, Share, Weight
from .engine import Learner, Loss, Product, Step, Task, Training
from .forgery_samples import ForgerySampling, ForgerySource
from .inputs import Inputs, fingerprint
from .nodule_samples import NoduleSampling, NoduleSource
from .samples import Disturbance, Group, Source, disturb

_NOISE_HU = 10.0  # that a judge must bear; validated with it
_SHOWN = 6  # validation samples of each answer in a sample image
_ARCHITECTURES = ("plain", "residual", "planes", "squares")


@dataclass(frozen=True)
class JudgeConfig:
    """One judge and how it is trained. Exactly one of the tables of architectures and one of the questions is given.

    :param false_alarms: share of the validation samples whose answer is no that may reach the threshold.
    :param held_out: patients that are never used, not even for the threshold: results are reported on them.
    :param sources: where the data comes from and its licence, for the model card.
    """

    name: str
    view: Sight = field(default_factory=Sight)
    plain: PlainConfig | None = None
    residual: ResidualConfig | None = None
    planes: PlanesConfig | None = None
    squares: SquaresConfig | None = None
    nodule: NoduleSampling | None = None
    forgery: ForgerySampling | None = None
    learning_rate: Positive = 1e-3
    last_rate: Share = 0.02
    weight_decay: Weight = 1e-2
    false_alarms: Share = 0.05
    held_out: tuple[str, ...] = ("LIDC-IDRI-0001", "RIDER-Pilot-0117")
    sources: str = ""

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in _ARCHITECTURES) != 1:
            raise InputError(
                f"give exactly one of the tables [{'], ['.join(_ARCHITECTURES)}]: the judge's architecture."
            )
        if (self.nodule is None) == (self.forgery is None):
            raise InputError("give either the table [nodule] or the table [forgery]: what the judge is asked.")
        if self.nodule and self.view.kind != "cube":
            raise InputError("view.kind must be 'cube' for a judge of nodules: its samples are cubes at 1 mm.")
        if (self.squares is None) != (self.view.kind == "cube"):
            raise InputError("the architecture [squares] goes with view.kind = 'squares', and the others with 'cube'.")

    @property
    def network(self) -> Any:
        """The configuration of the network."""
        return self.plain or self.residual or self.planes or self.squares

    @property
    def question(self) -> Question:
        """What the judge is asked."""
        return "nodule" if self.nodule else "forgery"


class JudgeTask(Task[JudgeConfig]):
    """A classifier on samples of one :class:`~.samples.Source`."""

    Configuration = JudgeConfig
    watched = "loss"

    def __init__(self, config: JudgeConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self._attackers = inputs.load_attackers(config.forgery.attackers) if config.forgery else []
        self._training, self._validation = (self._source(part) for part in ("training", "validation"))
        self._groups = self._validation.groups()
        self.samples_per_epoch = len(self._training)
        network = next(one for one, kind in NETWORKS.values() if isinstance(config.network, kind))
        self._class, self.network = network.__name__, network(config.network)
        optimizer = torch.optim.AdamW(self.network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        self.learners = {"judge": Learner(self.network, optimizer, config.last_rate)}

    def identity(self) -> Mapping[str, str]:
        return {
            "training_samples": fingerprint(*self._training.marks()),
            "validation_samples": fingerprint(*self._validation.marks()),
            **{f"{attacker.name}-{attacker.action}": attacker.digest for attacker in self._attackers},
        }

    def draw(self, step: Step) -> Sequence[Any]:
        return self._training.draw(step.batch_size, step.rng())

    def losses(self, samples: Sequence[Any], networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        device = self.inputs.device
        logits = networks["judge"](self._training.views(samples).to(device))
        answers = torch.tensor([float(sample.yes) for sample in samples], device=device)
        right = ((logits > 0) == (answers > 0.5)).float().mean()
        yield Loss("judge", F.binary_cross_entropy_with_logits(logits, answers), {"right": right})

    def validate(self) -> Mapping[str, float]:
        """Loss, area under the curve (also with noise), the threshold, and what share of each group reaches it.

        Each group counts the same in the loss and in the threshold, however many samples it has.
        """
        judge = self.judge(threshold=1.0)
        scores = {group.name: judge.score_views(group.views) for group in self._groups}
        noisy = {group.name: judge.score_views(_with_noise(group.views)) for group in self._groups}
        threshold = self._threshold(scores)
        loss = np.mean([_loss(scores[g.name], g.yes) for yes in (True, False) for g in self._of(yes)])
        figures = {
            "loss": round(float(loss), 5),
            "area_under_curve": round(self._area(scores), 4),
            f"area_under_curve_noise_{_NOISE_HU:g}_hu": round(self._area(noisy), 4),
            THRESHOLD: threshold,
        }
        for group in self._groups:
            what = f"{'found' if group.yes else 'false_alarms'} {group.name}"
            for label, of in ((what, scores), (f"{what} noise_{_NOISE_HU:g}_hu", noisy)):
                figures[label] = round(float(np.mean(of[group.name] >= threshold)), 4)
        return figures

    def images(self) -> Mapping[str, np.ndarray]:
        """Middle slices of validation samples with the answer yes, above those with no."""
        rows = []
        for yes in (True, False):
            views = np.concatenate([group.views[: _SHOWN // len(self._of(yes)) + 1] for group in self._of(yes)])
            planes = views[:_SHOWN, views.shape[1] // 2].astype(np.float32)
            planes = np.pad(planes, ((0, _SHOWN - len(planes)), (0, 0), (0, 0)), constant_values=LUNG.low)
            rows.append(np.concatenate(planes, axis=1))
        return {"yes above, no below": LUNG.scaled(np.concatenate(rows))}

    def judge(self, threshold: float) -> Judge:
        """The network as it is now as a judge."""
        return Judge(self.config.name, self.config.question, self.config.view, self.network, threshold)

    def product(self) -> Product:
        config = self.config
        says = "whether a 32 mm cube shows a nodule in its middle" if config.nodule else "whether a place was forged"
        return Product(
            path=f"judges/{config.name}.safetensors",
            tensors=half_precision(self.network),
            name=config.name,
            kind=kind_of(config.question),
            description=f"Classifier ({self._class}) that says {says}.",
            architecture={
                "class": self._class,
                "config": dataclasses.asdict(config.network),
                "view": dataclasses.asdict(config.view),
            },
            data=self.described(self._training.described(), self._validation.described()),
            limits="For measuring attacks and protection only. No diagnostic use: it was trained on few public scans.",
        )

    def _source(self, part: str) -> Source:
        config = self.config
        if config.nodule:
            return NoduleSource.of(self.inputs.data, part, config.view.edge, config.nodule, config.held_out)
        return ForgerySource.of(
            self.inputs.data, part, config.view, config.forgery, self._attackers, config.held_out, self.training.seed
        )

    def _of(self, yes: bool) -> list[Group]:
        return [group for group in self._groups if group.yes == yes]

    def _threshold(self, scores: Mapping[str, np.ndarray]) -> float:
        """The lowest that at most the allowed share of the no samples reach, on average over their groups."""
        values = np.concatenate([scores[group.name] for group in self._of(False)])
        weights = np.concatenate([np.full(len(scores[g.name]), 1 / len(scores[g.name])) for g in self._of(False)])
        order = np.argsort(values)[::-1]
        share = np.cumsum(weights[order]) / weights.sum()
        # Sums of shares are not exact.
        beyond = values[order][share > self.config.false_alarms + 1e-9]
        # Just above the first score that would be one too many.
        return float(np.nextafter(beyond[0], 2.0)) if len(beyond) else 0.0

    def _area(self, scores: Mapping[str, np.ndarray]) -> float:
        yes, no = (np.concatenate([scores[group.name] for group in self._of(answer)]) for answer in (True, False))
        return area_under_curve(yes, no)


TASK = JudgeTask


def _loss(scores: np.ndarray, yes: bool) -> float:
    likely = np.clip(scores if yes else 1 - scores, 1e-7, 1)
    return float(-np.log(likely).mean())


def _with_noise(views: np.ndarray) -> np.ndarray:
    drawn = [Disturbance(noise_hu=_NOISE_HU, seed=seed) for seed in range(len(views))]
    return disturb(torch.from_numpy(views), drawn).numpy()


def area_under_curve(yes: np.ndarray, no: np.ndarray) -> float:
    """Area under the ROC curve: how likely a score of ``yes`` lies above one of ``no``, ties counting half."""
    # Only the statistic is wanted; the exact p-value would cost more than all else.
    return float(stats.mannwhitneyu(yes, no, method="asymptotic").statistic / (len(yes) * len(no)))
