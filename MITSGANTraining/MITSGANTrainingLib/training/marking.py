"""Training of the mark against diagnosis networks: a bounded change after which nodule judges decide wrongly.

After MIAD-MARK (an adversarial watermark that misleads diagnosis networks and that key holders remove). The generator
sees slices of cubes with and without a nodule, on grids as scans have them; its change is added, the cube is cut and
rescaled as a judge would have it, and the judges' logits are pushed beyond their thresholds, to the wrong side: nodules
are to be called healthy, healthy lung nodules. Key holders get the original back through the seal, not a network.
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
from MITSGANLib.ctgan.chain import CUBE_MM, rescale
from MITSGANLib.errors import InputError
from MITSGANLib.generator import Generator, GeneratorConfig, draw_noise, hu_to_network
from MITSGANLib.judges import Judge, load_judge
from MITSGANLib.volume import hu_from_float
from torch import nn
from torch.nn import functional as F

from ..samples import Part
from .configuration import Count, Positive, Share, Weight
from .disturbance import Disturbance, Disturbances, disturb
from .engine import Learner, Loss, Product, Step, Task, Training, cosine
from .inputs import Inputs, fingerprint
from .nodule_samples import CubeDraw, NoduleSampling, NoduleSource
from .team import mean_over_team

_WINDOW_HU = (-1350.0, 150.0)
_SURE = 1e-4  # a threshold nearer to 0 or 1 has no useful logit


@dataclass(frozen=True)
class CubeSampling:
    """Cubes on the grids of scans.

    :param context_mm: around the judges' 32 mm, for the generator to see; at most 9, since cubes have 51 mm.
    :param slice_mm: distances of slices, one of which is drawn for each step.
    :param pixel_mm: smallest and largest size of voxels in the plane, between which each step's lies.
    :param nodule: what lies in the middle; see :class:`~.nodule_samples.NoduleSampling`.
    """

    context_mm: Count = 8
    slice_mm: tuple[Positive, ...] = (1.0, 1.25, 2.5)
    pixel_mm: tuple[Positive, Positive] = (0.6, 1.0)
    nodule: NoduleSampling = field(default_factory=NoduleSampling)

    def __post_init__(self) -> None:
        if self.context_mm > 9:
            raise InputError(f"context_mm must be at most 9, not {self.context_mm}: cubes have 51 mm.")
        if not self.slice_mm or self.pixel_mm[0] > self.pixel_mm[1]:
            raise InputError("slice_mm needs at least one distance, and pixel_mm the smaller size first.")
        if max(*self.slice_mm, *self.pixel_mm) > CUBE_MM / 4:
            raise InputError(f"slice_mm and pixel_mm must be at most {CUBE_MM / 4:g} mm: cubes have {CUBE_MM} mm.")

    @property
    def edge(self) -> int:
        """Of the cubes that the generator sees, in mm."""
        return CUBE_MM + 2 * self.context_mm


@dataclass(frozen=True)
class GridDraw:
    """A cube, the grid that it lies on, and the seed of the generator's noise; grid and seed are one for each step."""

    cube: CubeDraw
    spacing_kji: tuple[float, float, float]
    noise_seed: int


class CubeGrids:
    """Cubes of one side of a dataset on the grids of scans.

    :raises InputError: as :meth:`~.nodule_samples.NoduleSource.of`.
    """

    def __init__(self, inputs: Inputs, part: Part, sampling: CubeSampling, held_out: Sequence[str]) -> None:
        self.source = NoduleSource.of(inputs.data, part, sampling.edge, sampling.nodule, held_out)
        self._sampling = sampling

    def draw(self, count: int, rng: np.random.Generator) -> list[GridDraw]:
        """Drawings on one grid, half of them nodules."""
        slice_mm, pixel_mm = rng.choice(self._sampling.slice_mm), rng.uniform(*self._sampling.pixel_mm)
        spacing = (float(slice_mm), float(pixel_mm), float(pixel_mm))
        seed = int(rng.integers(2**31))
        return [GridDraw(cube, spacing, seed) for cube in self.source.draw(count, rng)]

    def hu(self, drawn: Sequence[GridDraw]) -> torch.Tensor:
        """Drawings on their grid, float32 (n, slices, rows, columns) in whole HU."""
        cubes = self.source.views([one.cube for one in drawn])
        shape = [max(1, round(self._sampling.edge / mm)) for mm in drawn[0].spacing_kji]
        # Slices are as thick as they are apart: what lies between two is in both of them.
        thick = F.adaptive_avg_pool3d(cubes, (shape[0], *cubes.shape[2:])).unsqueeze(1)
        return F.interpolate(thick, shape, mode="trilinear").squeeze(1).round().clamp(-1024, 3071)


@dataclass(frozen=True)
class MarkingConfig:
    """The mark and how it is trained.

    :param judges: names of the nodule judges to mislead, or files of theirs; all others stay black boxes.
    :param bearing: noise and smoothing of marked cubes that the mark has to survive.
    :param change_weight: weight of the mean square of the change, as a share of what is allowed. Without it a generator
        soon spends all that is allowed everywhere, before it knows which way.
    :param margin: by which logits are to lie beyond the threshold, on the wrong side.
    :param last_rate: share of the learning rate that is left at the end, after half a cosine.
    :param validation_samples: cubes that validate, half of them nodules.
    :param held_out: patients that are never used; results are reported on them.
    :param sources: where the data comes from and its licence, for the model card.
    """

    name: str = "miad-mark"
    judges: tuple[str, ...] = ("nodule-plain", "nodule-residual")
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    budget: Budget = field(default_factory=Budget)
    cubes: CubeSampling = field(default_factory=CubeSampling)
    bearing: Disturbances = field(default_factory=lambda: Disturbances(10.0, 0.0, 0.0, 0.5))
    learning_rate: Positive = 1e-3
    last_rate: Share = 0.05
    betas: tuple[Share, Share] = (0.5, 0.999)
    change_weight: Weight = 1.0
    margin: Weight = 2.0
    validation_samples: Count = 48
    held_out: tuple[str, ...] = ("LIDC-IDRI-0001", "RIDER-Pilot-0117")
    sources: str = ""

    def __post_init__(self) -> None:
        if not self.judges:
            raise InputError("judges must name at least one nodule judge to mislead.")
        if self.generator.output != "residual":
            raise InputError("generator.output must be 'residual': this task trains a change within the budget.")
        if self.budget.strength_hu == 0:
            raise InputError("budget.strength_hu must be above 0: with no change there is nothing to train.")
        if self.budget.noise_share is not None:
            raise InputError("budget.noise_share must be left out: cubes at 1 mm no longer have the scan's noise.")


class MarkingTask(Task[MarkingConfig]):
    """A generator whose change, within the budget, makes frozen nodule judges decide wrongly, both ways."""

    Configuration = MarkingConfig
    watched = "loss"

    def __init__(self, config: MarkingConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        self._judges = [_nodule_judge(name, inputs) for name in config.judges]
        self._training, self._validation = (
            CubeGrids(inputs, part, config.cubes, config.held_out) for part in ("training", "validation")
        )
        self.samples_per_epoch = len(self._training.source)
        self.generator = Generator(config.generator)
        optimizer = torch.optim.Adam(self.generator.parameters(), config.learning_rate, config.betas)
        self.learners = {"generator": Learner(self.generator, optimizer, cosine(config.last_rate))}

    def identity(self) -> Mapping[str, str]:
        return {
            "training_samples": fingerprint(*self._training.source.marks()),
            "validation_samples": fingerprint(*self._validation.source.marks()),
            **{judge.name: judge.digest for judge in self._judges},
        }

    def draw(self, step: Step) -> Sequence[tuple[GridDraw, Disturbance]]:
        rng = step.rng()
        return [(one, self.config.bearing.draw(rng)) for one in self._training.draw(step.batch_size, rng)]

    def losses(
        self, samples: Sequence[tuple[GridDraw, Disturbance]], networks: Mapping[str, nn.Module]
    ) -> Iterator[Loss]:
        drawn, borne = zip(*samples, strict=True)
        clean, change, share = self._marked(self._training, drawn, networks["generator"])
        seen = disturb(judged_cubes(clean + change, drawn[0].spacing_kji).cpu(), borne).to(self.inputs.device)
        value, scalars = self._loss(seen, drawn)
        spent = share.square().mean()
        scalars["spent"] = mean_over_team(spent)
        yield Loss("generator", value + self.config.change_weight * spent, scalars)

    def validate(self) -> Mapping[str, float]:
        """The loss, and the judges' share of right answers with and without the mark, at fixed cubes not trained on."""
        figures: list[dict[str, float]] = []
        rng = np.random.default_rng((self.training.seed, 1))
        count = self.training.batch_size
        for _ in range(-(-self.config.validation_samples // count)):
            drawn = self._validation.draw(count, rng)
            clean, change, _share = self._marked(self._validation, drawn, self.generator)
            spacing = drawn[0].spacing_kji
            value, marked = self._loss(judged_cubes(clean + change, spacing), drawn)
            _, unmarked = self._loss(judged_cubes(clean, spacing), drawn)
            figures.append(
                {
                    "loss": value.item(),
                    "rmse_hu": change.square().mean().sqrt().item(),
                    **{name: item.item() for name, item in marked.items()},
                    **{f"{name} clean": item.item() for name, item in unmarked.items()},
                }
            )
        return {name: round(float(np.mean([one[name] for one in figures])), 4) for name in figures[0]}

    def images(self) -> Mapping[str, np.ndarray]:
        """Middle slices of a cube with and one without a nodule: clean, marked, and the change (gray is none)."""
        drawn = self._validation.draw(2, np.random.default_rng(self.training.seed))
        clean, change, _share = self._marked(self._validation, drawn, self.generator)
        middle = clean.shape[1] // 2
        low, high = _WINDOW_HU
        planes = [((hu[:, middle] - low) / (high - low)).clamp(0, 1) for hu in (clean, clean + change)]
        planes.append(change[:, middle] / (2 * self.config.budget.strength_hu) + 0.5)
        picture = torch.cat([torch.cat(list(plane), dim=0) for plane in planes], dim=1)
        return {"clean, marked, change": picture.cpu().numpy()}

    def product(self) -> Product:
        config = self.config
        names = ", ".join(judge.name for judge in self._judges)
        return Product(
            path=f"protectors/{config.name}.safetensors",
            tensors=models.half_precision(self.generator),
            name=config.name,
            kind=models.MARK,
            description=(
                "MADE TO MISLEAD DIAGNOSIS NETWORKS: after MIAD-MARK, a change bounded in HU, trained so that networks "
                "miss nodules and see others that are not there. How often they do: docs/miad-mark.md. Seal with a key."
            ),
            architecture={"class": "Generator", "config": dataclasses.asdict(config.generator)},
            data={
                "training": self._training.source.described(),
                "validation": self._validation.source.described(),
                "sources": config.sources or "not stated",
            },
            limits=(
                f"Not the default protection and not a part of it: made to mislead software, with {names} as white "
                "boxes. Never give a marked scan to software that a clinic relies on; restore the original first. It "
                "was measured with nodule networks trained here alone. It hides nothing from readers, and a network "
                "that is trained to remove it, or on marked scans, may see through it."
            ),
            budget=config.budget.to_dict(),
        )

    def _marked(
        self, grids: CubeGrids, drawn: Sequence[GridDraw], generator: nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cubes on their grid, the change in whole HU, and its share of what is allowed: (n, slices, rows, columns)."""
        config, device = self.config, self.inputs.device
        clean = grids.hu(drawn).to(device)
        limits = allowed_change(hu_from_float(clean.cpu().numpy()), config.budget, np.ones(clean.shape, bool))
        allowed = torch.from_numpy(limits).to(device).float()
        noise = draw_noise(clean.shape[-2:], config.generator.noise, drawn[0].noise_seed).to(device)
        slices = hu_to_network(clean, config.generator.hu_window).flatten(0, 1).unsqueeze(1)
        share = generator(slices, noise).squeeze(1).view_as(clean).float()
        change = share * allowed
        # Whole HU, as the protector will write; gradient as if not.
        return clean, change + (change.round() - change).detach(), share

    def _loss(self, seen: torch.Tensor, drawn: Sequence[GridDraw]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """How far the judges are from being wrong by the margin, and the share of each one's right answers."""
        yes = torch.tensor([one.cube.yes for one in drawn], device=self.inputs.device)
        wrong_way = torch.where(yes, -1.0, 1.0)
        parts, right = [], {}
        for judge in self._judges:
            beyond = judge.network(seen) - threshold_logit(judge)
            parts.append(F.softplus(self.config.margin - wrong_way * beyond).mean())
            right[f"{judge.name} right"] = mean_over_team(((beyond >= 0) == yes).float().mean())
        return torch.stack(parts).mean(), right


TASK = MarkingTask


def judged_cubes(hu: torch.Tensor, spacing_kji: Sequence[float]) -> torch.Tensor:
    """What nodule judges see of cubes (n, slices, rows, columns) around their middle: (n, 32, 32, 32) HU at 1 mm.

    As :meth:`MITSGANLib.judges.View.cut` has it of one, and differentiable.
    """
    box = []
    for size, mm in zip(hu.shape[1:], spacing_kji, strict=True):
        length = max(1, round(CUBE_MM / mm))
        start = int(size // 2 - np.round(length / 2))
        box.append(slice(start, start + length))
    return rescale(hu[(slice(None), *box)], (CUBE_MM,) * 3).float()


def threshold_logit(judge: Judge) -> float:
    """The logit from which on a judge says yes."""
    threshold = float(np.clip(judge.threshold, _SURE, 1 - _SURE))
    return float(np.log(threshold / (1 - threshold)))


def _nodule_judge(name: str, inputs: Inputs) -> Judge:
    """A frozen judge of the models folder that is written to, or else an installed one, on the device.

    :raises InputError: when it is no judge of nodules in cubes of 32 mm.
    """
    local = (inputs.models / "judges" / f"{name}.safetensors").is_file()
    judge = load_judge(name, inputs.models if local else models.MODELS_FOLDER)
    if judge.question != "nodule" or judge.view.shape != (CUBE_MM,) * 3:
        raise InputError(f"The judge {Path(name).stem} is not asked about nodules in 32 mm cubes; name another.")
    return judge.to(inputs.device)
