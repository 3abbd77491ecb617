"""Diagnosis blocking as a model's file: the judges that the blocker misleads, and how it searches its change.

There is nothing to train: the change is found on each scan itself (:mod:`MITSGANLib.protection.diagnosis_blocking`).
This task puts judges into one file, measures the blocker on cubes with and without a nodule that are not trained on,
and says so in the card. The cubes lie on grids as scans have them; :mod:`.unblocking` learns from such cubes to undo
the change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from MITSGANLib.budget.budget import Budget, allowed_change, apply_change
from MITSGANLib.errors import InputError
from MITSGANLib.judges.judge import Sight, load_judge
from MITSGANLib.protection.diagnosis_blocking import BlockingConfig, DiagnosisBlocker, places_inside
from MITSGANLib.protection.proposer import BLOCKER_KIND
from MITSGANLib.scan.cubes import CUBE_MM
from MITSGANLib.scan.volume import hu_from_float
from torch import nn
from torch.nn import functional as F

from ..data.dataset import Part
from .configuration import Count, Positive
from .engine import Learner, Loss, Product, Step, Task, Training
from .inputs import Inputs, fingerprint
from .nodule_samples import CubeDraw, NoduleSampling, NoduleSource


@dataclass(frozen=True)
class CubeSampling:
    """Cubes on the grids of scans.

    :param context_mm: around the judges' 32 mm, so that they may look elsewhere; at most 9, since cubes have 51 mm.
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
        """Edge of the cubes that are changed, in mm."""
        return CUBE_MM + 2 * self.context_mm


@dataclass(frozen=True)
class GridDraw:
    """A cube, its grid (the same for all cubes drawn together), and the seed of its search."""

    cube: CubeDraw
    spacing_kji: tuple[float, float, float]
    search_seed: int


class CubeGrids:
    """Cubes of one side of a dataset on the grids of scans.

    :raises InputError: as :meth:`~.nodule_samples.NoduleSource.of`.
    """

    def __init__(self, inputs: Inputs, part: Part, sampling: CubeSampling, held_out: Sequence[str]) -> None:
        self.source = NoduleSource.of(inputs.data, part, sampling.edge, sampling.nodule, held_out)
        self._sampling, self._device = sampling, inputs.device.type

    def draw(self, count: int, rng: np.random.Generator) -> list[GridDraw]:
        """Drawings on one grid, half of them nodules."""
        slice_mm, pixel_mm = rng.choice(self._sampling.slice_mm), rng.uniform(*self._sampling.pixel_mm)
        spacing = (float(slice_mm), float(pixel_mm), float(pixel_mm))
        return [GridDraw(cube, spacing, int(rng.integers(2**31))) for cube in self.source.draw(count, rng)]

    def hu(self, drawn: Sequence[GridDraw]) -> torch.Tensor:
        """Drawings on their grid, float32 (n, slices, rows, columns) in whole HU."""
        cubes = self.source.views([one.cube for one in drawn])
        shape = [max(1, round(self._sampling.edge / mm)) for mm in drawn[0].spacing_kji]
        # Slices are as thick as they are apart: what lies between two is in both of them.
        thick = F.adaptive_avg_pool3d(cubes, (shape[0], *cubes.shape[2:])).unsqueeze(1)
        return F.interpolate(thick, shape, mode="trilinear").squeeze(1).round().clamp(-1024, 3071)

    def blocked(
        self, count: int, rng: np.random.Generator, blocker: DiagnosisBlocker, budget: Budget
    ) -> Iterator[tuple[GridDraw, np.ndarray, np.ndarray]]:
        """Drawings and their cubes, clean and blocked, int16 HU; two at a time lie on one grid."""
        while count > 0:
            drawn = self.draw(2, rng)
            for one, cube in zip(drawn[:count], self.hu(drawn), strict=False):
                clean = hu_from_float(cube.numpy())
                yield one, clean, blocked_cube(clean, one.spacing_kji, blocker, budget, one.search_seed, self._device)
            count -= 2


def blocked_cube(
    hu: np.ndarray,
    spacing_kji: Sequence[float],
    blocker: DiagnosisBlocker,
    budget: Budget,
    seed: int,
    device: str = "auto",
) -> np.ndarray:
    """A cube, all of it body, changed by a blocker. It does not know the 32 mm of a judge.

    :param hu: int16 (slices, rows, columns), at least 32 mm along each axis.
    """
    allowed = allowed_change(hu, budget, np.ones(hu.shape, bool))
    places = places_inside(hu.shape, spacing_kji)
    change = blocker.change(hu, allowed, places, spacing_kji, seed=seed, device=device)
    return apply_change(hu, change, allowed)


@dataclass(frozen=True)
class BlockingTrainingConfig:
    """What the blocker's file holds, and what it is measured on.

    :param judges: names of the nodule judges to mislead, or files of theirs; all others stay black boxes.
    :param validation_samples: cubes that it is measured on, half of them nodules.
    :param held_out: patients that are never used; results are reported on them.
    :param sources: where the judges' data comes from and its licence, for the model card.
    """

    name: str = "miad-mark"
    judges: tuple[str, ...] = ("nodule-plain", "nodule-residual")
    search: BlockingConfig = field(default_factory=BlockingConfig)
    budget: Budget = field(default_factory=Budget)
    cubes: CubeSampling = field(default_factory=CubeSampling)
    validation_samples: Count = 16
    held_out: tuple[str, ...] = ("LIDC-IDRI-0001", "RIDER-Pilot-0117")
    sources: str = ""

    def __post_init__(self) -> None:
        if not self.judges:
            raise InputError("judges must name at least one nodule judge to mislead.")
        if self.budget.strength_hu == 0:
            raise InputError("budget.strength_hu must be above 0: with no change nothing is blocked.")
        if self.budget.noise_share is not None:
            raise InputError("budget.noise_share must be left out: cubes at 1 mm no longer have the scan's noise.")


class BlockingTask(Task[BlockingTrainingConfig]):
    """No learner and no work in a step: the product is what the recipe names, and the figures are measured."""

    Configuration = BlockingTrainingConfig
    learners: Mapping[str, Learner] = {}

    def __init__(self, config: BlockingTrainingConfig, training: Training, inputs: Inputs) -> None:
        super().__init__(config, training, inputs)
        files = {name: f"judges/{name}.safetensors" for name in config.judges}
        judges = (load_judge(name, inputs.models_with(file)) for name, file in files.items())
        self.blocker = DiagnosisBlocker(tuple(judges), config.search)
        self._cubes = CubeGrids(inputs, "validation", config.cubes, config.held_out)
        self.samples_per_epoch = 1

    def identity(self) -> Mapping[str, str]:
        return {
            "validation_samples": fingerprint(*self._cubes.source.marks()),
            **{judge.name: judge.digest for judge in self.blocker.judges},
        }

    def draw(self, step: Step) -> Sequence[int]:
        return range(step.batch_size)

    def losses(self, _samples: Sequence[int], _networks: Mapping[str, nn.Module]) -> Iterator[Loss]:
        yield from ()

    def validate(self) -> Mapping[str, float]:
        """The judges' share of right answers in the middle of cubes that are not trained on, clean and blocked."""
        rng = np.random.default_rng((self.training.seed, 1))
        right: dict[str, list[bool]] = {}
        squares = []
        count = 2 * -(-self.config.validation_samples // 2)
        for one, clean, blocked in self._cubes.blocked(count, rng, self.blocker, self.config.budget):
            squares.append(np.mean(np.subtract(blocked, clean, dtype=np.float32) ** 2))
            for word, voxels in (("clean", clean), ("blocked", blocked)):
                seen = Sight("cube", CUBE_MM).cut(voxels, one.spacing_kji, [size // 2 for size in clean.shape])
                for judge in self.blocker.judges:
                    said = bool(judge.says_yes(judge.score_views([seen]))[0])
                    right.setdefault(f"{judge.name} right {word}", []).append(said == one.cube.yes)
        figures = {name: round(float(np.mean(values)), 4) for name, values in right.items()}
        return figures | {"rmse_hu": round(float(np.sqrt(np.mean(squares))), 2)}

    def take_over(self, _tensors: Mapping[str, torch.Tensor]) -> None:
        raise InputError("A blocker has no weights of its own to begin with; leave --start-from out, and name judges.")

    def product(self) -> Product:
        config = self.config
        names = ", ".join(judge.name for judge in self.blocker.judges)
        return Product(
            path=f"protectors/{config.name}.safetensors",
            tensors=self.blocker.tensors(),
            name=config.name,
            kind=BLOCKER_KIND,
            description=(
                "MADE TO MISLEAD DIAGNOSIS NETWORKS: after MIAD-MARK, a change bounded in HU, searched on the scan "
                "itself so that networks miss nodules. How often they do: "
                "docs/research/diagnosis-blocking.md. Seal with a key. Takes minutes."
            ),
            architecture=self.blocker.architecture(),
            data=self.described("none of its own; the cards of the judges say theirs", self._cubes.source.described()),
            limits=(
                f"Not the default protection and not a part of it: made to mislead software, with {names} as white "
                "boxes. Never give such a scan to software that a clinic relies on; restore the original first. It "
                "was measured with nodule networks trained here alone. It hides nothing from readers, and a network "
                "that is trained to remove it, or on such scans, may see through it."
            ),
            budget=config.budget.to_dict(),
        )


TASK = BlockingTask
