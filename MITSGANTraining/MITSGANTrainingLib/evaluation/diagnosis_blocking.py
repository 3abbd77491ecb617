"""What a protection does to diagnosis networks: how often nodule judges are right, with it and without.

Two questions, one measurement. A blocker (miad-mark) is to mislead these networks; the default protection must not
do so more often than noise of equal RMSE. Places with and without a nodule, as many of each, come from cubes of a
dataset's validation side and from whole scans into which other patients' nodules are planted before protection.
Arrays are (slice, row, column), HU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from MITSGANLib.budget.budget import Surroundings, apply_change
from MITSGANLib.errors import InputError
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.judges.judge import Judge
from MITSGANLib.keys.key_files import generate_key
from MITSGANLib.measure.noise_controls import equal_rmse_noise
from MITSGANLib.protection.diagnosis_blocking import DiagnosisBlocker
from MITSGANLib.protection.proposer import Execution
from MITSGANLib.protection.protector import Protector, protect
from MITSGANLib.runtime.progress import Progress
from MITSGANLib.scan.lungs import lung_mask, lung_positions
from MITSGANLib.scan.volume import PROTECTION, CTVolume, ProcessingStep
from MITSGANLib.seal.sealing import restore, save_sealed
from MITSGANLib.watermark.pattern import ScanSigns

from ..data.nodules import Nodules
from ..training.diagnosis_blocking import blocked_cube
from ..training.samples import Group
from .layout import Cell, Column, ResultSection, Row, Table, cell_of
from .planting import APART_MM, Voxel, apart_mm, draw_scenes, planted
from .statistics import PLACE_RESAMPLES, Estimate, interval

CLEAN, BLOCKED, UNBLOCKED, RESTORED, NOISE = "clean", "blocked", "unblocked", "restored", "noise"
PROTECTED, PROTECTED_NOISE = "default", "default noise"
ARMS = {
    CLEAN: "clean",
    BLOCKED: "blocked",
    NOISE: "noise of the blocker's RMSE instead",
    UNBLOCKED: "blocked, then the removal network",
    RESTORED: "blocked, then restored with the key",
    PROTECTED: "default protection",
    PROTECTED_NOISE: "noise of the default protection's RMSE instead",
}
PAPER = {"white box": 8.57, "black box": 45.83, UNBLOCKED: 38.59}
"""Accuracy in percent that the abstract of MIAD-MARK gives, of other networks on other images."""

_CANDIDATES = 40

Arms = dict[str, list[CTVolume]]


@dataclass(frozen=True, eq=False)
class BlockingCase:
    """Voxels with places that the networks are asked about, as many with a nodule as without.

    :param places: (slice, row, column) of each.
    :param yes: bool (places,), the right answers.
    :param patients: (places,) whose anatomy each place shows: the unit of resampling.
    :param cubes: stacked cubes, all of which counts as body, instead of a whole scan.
    """

    name: str
    volume: CTVolume
    places: tuple[tuple[int, int, int], ...]
    yes: np.ndarray
    patients: np.ndarray
    cubes: bool = False

    def counts(self) -> dict[str, int]:
        """How many places there are with a nodule and without, and of how many patients."""
        nodules, healthy = int(self.yes.sum()), int((~self.yes).sum())
        return {"nodules": nodules, "healthy": healthy, "patients": len(np.unique(self.patients))}


@dataclass(frozen=True, eq=False)
class Answers:
    """What one network says at the places of a case.

    :param said: bool (draws, places); there is more than one draw of noise.
    :param before: bool (places,), what it says of the clean scan.
    """

    judge: str
    arm: str
    case: BlockingCase
    said: np.ndarray
    before: np.ndarray

    def right(self, yes: bool) -> float:
        """Share of right answers at the places with a nodule, or without."""
        return float((self.said == self.case.yes).mean(axis=0)[self.case.yes == yes].mean())

    def accuracy(self) -> Estimate:
        """Mean of the shares of right answers with and without a nodule, 0..1."""
        return _estimated((self.said == self.case.yes).mean(axis=0), self.case)

    def changed(self) -> Estimate:
        """Share of decisions that differ from those on the clean scan, nodules and healthy lung counting the same."""
        return _estimated((self.said != self.before).mean(axis=0), self.case)


def cube_case(groups: Sequence[Group], most: int | None = None) -> BlockingCase:
    """Nodules of some groups of cubes at 1 mm, and as many cubes without, each evenly from the groups that have them.

    :param most: nodules at most; all where None.
    :raises InputError: when one side is missing.
    """
    with_nodule, without = ([group for group in groups if group.yes == yes] for yes in (True, False))
    if not with_nodule or not without:
        raise InputError("The dataset has no cubes with, or none without, a nodule to validate on; prepare more.")
    count = sum(len(group.views) for group in with_nodule)
    chosen = _spread(with_nodule, count if most is None else min(count, most))
    healthy = _spread(without, len(chosen))
    chosen = chosen[: len(healthy)]
    views = np.stack([view for view, _ in (*chosen, *healthy)]).astype(np.int16)
    patients = np.array([patient for _, patient in (*chosen, *healthy)])
    edge = views.shape[1]
    places = tuple((edge * n + edge // 2, edge // 2, edge // 2) for n in range(len(views)))
    yes = np.arange(len(views)) < len(chosen)
    return BlockingCase("cubes", CTVolume(views.reshape(-1, edge, edge)), places, yes, patients, cubes=True)


def scan_case(name: str, volume: CTVolume, nodules: Nodules, count: int, seed: int) -> BlockingCase:
    """A whole scan with other patients' nodules planted into it, and as many places of lung far from them.

    :param count: nodules wanted; as many as find room in one copy of the scan, beside as many places without.
    :raises TargetError: when no lung is found.
    """
    plants = draw_scenes(volume, count, nodules, seed)[0].plants
    lung = list(dict.fromkeys(lung_positions(volume, _CANDIDATES * count, seed, mask=lung_mask(volume))))
    spacing = volume.spacing_kji

    def clear_of(taken: Sequence[Voxel]) -> list[Voxel]:
        """Places of lung far from all that is taken and from one another, at most as many as are taken."""
        clear: list[Voxel] = []
        for kji in lung:
            others = (*taken, *clear)
            if len(clear) < len(taken) and all(apart_mm(kji, one, spacing) >= APART_MM for one in others):
                clear.append(kji)
        return clear

    # In a small scan nodules could take all the room.
    choices = [(plants[:n], clear_of([one.kji for one in plants[:n]])) for n in range(1, len(plants) + 1)]
    plants, clear = max(choices, key=lambda choice: min(map(len, choice)))
    pairs = min(len(plants), len(clear))
    plants, yes = plants[:pairs], np.arange(2 * pairs) < pairs
    places = (*(one.kji for one in plants), *clear[:pairs])
    return BlockingCase(name, planted(volume, plants, nodules), places, yes, np.full(len(yes), name))


def make_arms(
    case: BlockingCase,
    blocker: Protector,
    default: Protector,
    *,
    unblock: Callable[[np.ndarray], np.ndarray] | None = None,
    draws: int = 3,
    device: str = "auto",
    progress: Progress | None = None,
) -> Arms:
    """Every version of a case's voxels, by arm; several draws of noise, one of all else.

    :param unblock: undoes the blocking of int16 slices (n, rows, columns); the arm is left out where None.
    :param progress: called with (done, all) while the blocker searches; may raise ``CancelledError``.
    :raises InputError: when the key does not give the clean scan back, voxel for voxel.
    """
    clean = case.volume
    blocked, protected = protected_voxels(case, blocker, device, progress), protected_voxels(case, default, device)
    return {
        CLEAN: [clean],
        BLOCKED: [blocked],
        NOISE: [equal_rmse_noise(clean, blocked, seed) for seed in range(draws)],
        **({UNBLOCKED: [blocked.with_hu(unblock(blocked.hu))]} if unblock is not None else {}),
        RESTORED: [_restored(clean, blocked)],
        PROTECTED: [protected],
        PROTECTED_NOISE: [equal_rmse_noise(clean, protected, seed) for seed in range(draws)],
    }


def answers(case: BlockingCase, arms: Arms, judges: Sequence[Judge]) -> Iterator[Answers]:
    """What each network says of each arm."""
    for judge in judges:
        said = {
            arm: np.stack([judge.says_yes(judge.score(volume, case.places)) for volume in volumes])
            for arm, volumes in arms.items()
        }
        for arm, values in said.items():
            yield Answers(judge.name, arm, case, values, said[CLEAN][0])


def rmse_hu(arms: Arms, arm: str) -> float:
    """Root mean square change of an arm against the clean voxels, in HU, over all voxels and draws."""
    clean = arms[CLEAN][0].hu
    squares = [np.mean(np.subtract(volume.hu, clean, dtype=np.float32) ** 2, dtype=np.float64) for volume in arms[arm]]
    return float(np.sqrt(np.mean(squares)))


@dataclass(frozen=True)
class BlockingResults:
    """All answers, and what they were measured with. ``to_dict`` and ``sections`` are its reports.

    :param judges: the judges' names, the white boxes first.
    :param black_boxes: those among them that the blocker does not know.
    :param cases: for each case its answers and, by arm, the RMSE in HU.
    :param facts: what else the report holds, JSON-ready.
    """

    blocker: Protector
    default: Protector
    judges: tuple[str, ...]
    black_boxes: tuple[str, ...]
    cases: Mapping[str, tuple[Sequence[Answers], Mapping[str, float]]]
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: shares from 0 to 1, with intervals by patient."""
        cases = {}
        for name, (found, rmse) in self.cases.items():
            networks = [
                {
                    "judge": one.judge,
                    "box": self._box(one.judge),
                    "arm": one.arm,
                    "accuracy": one.accuracy().to_dict(),
                    "right_nodules": one.right(True),
                    "right_healthy": one.right(False),
                    "changed": one.changed().to_dict(),
                }
                for one in found
            ]
            cases[name] = {**found[0].case.counts(), "rmse_hu": dict(rmse), "networks": networks}
        return {
            "blocker": _described(self.blocker),
            "default": _described(self.default),
            "black_boxes": list(self.black_boxes),
            "paper_accuracy_percent": PAPER,
            **self.facts,
            "cases": cases,
        }

    def sections(self) -> tuple[ResultSection, ...]:
        """Tables of accuracy and of changed decisions, for each case, and what they say."""
        what = (
            f"Blocker: {self.blocker.name}, at most {self.blocker.budget.strength_hu:g} HU. Default "
            f"protection: {self.default.name}. Networks decide at their own thresholds whether a place shows a "
            "nodule; accuracy is the mean of the shares that are right with a nodule and without. In brackets: 95 % by "
            "bootstrap over patients (of one patient: over places)."
        )
        published = (
            f"For comparison, MIAD-MARK's own networks and images (abstract): white box {PAPER['white box']} %, black "
            f"box {PAPER['black box']} %, after a removal network {PAPER[UNBLOCKED]} %. Answers by lot get 50 %."
        )
        sections = [ResultSection("common", "What holds for all tables", (what, published), ())]
        for name, (found, rmse) in self.cases.items():
            words = "{nodules} places with a nodule, {healthy} without, of {patients} patient(s)"
            title = f"{name}: {words.format_map(found[0].case.counts())}"
            columns = tuple(Column(self._box(judge), judge) for judge in self.judges)
            accuracy = "Accuracy in percent (right with a nodule / without)"
            changed = "Decisions that change against the clean scan, in percent"
            tables = []
            for caption, cell, arms in (
                (accuracy, _accuracy_cell, (CLEAN, BLOCKED, NOISE, UNBLOCKED, RESTORED)),
                (changed, _changed_cell, (BLOCKED, NOISE, PROTECTED, PROTECTED_NOISE)),
            ):
                cells = {(one.arm, one.judge): cell(one) for one in found}
                rows = (
                    Row((ARMS[arm], f"{rmse[arm]:.1f}"), tuple(cells[arm, judge] for judge in self.judges))
                    for arm in arms
                    if arm in rmse
                )
                tables.append(Table("", caption, ("Scan", "RMSE, HU"), columns, tuple(rows)))
            sections.append(ResultSection(name, title, (), tuple(tables)))
        return tuple(sections)

    def _box(self, judge: str) -> str:
        return "black box" if judge in self.black_boxes else "white box"


def _described(protector: Protector) -> dict[str, Any]:
    budget = protector.budget.to_dict()
    return {"model": protector.name, "sha256": protector.digest, "seed": protector.seed, "budget": budget}


def _spread(groups: Sequence[Group], count: int) -> list[tuple[np.ndarray, str]]:
    """Up to ``count`` cubes with their patients, the groups taking turns, each one's own spread over all it has."""
    most = max(len(group.views) for group in groups)
    turns = [group for n in range(most) for group in groups if n < len(group.views)][:count]
    return [
        (group.views[n], str(group.patients[n]))
        for group in groups
        for n in np.unique(np.linspace(0, len(group.views) - 1, sum(turn is group for turn in turns)).astype(int))
    ]


def protected_voxels(
    case: BlockingCase, protector: Protector, device: str, progress: Progress | None = None
) -> CTVolume:
    """A scan as ``protect`` gives it; stacked cubes alike, but all of them counts as body.

    A blocker does not know where in a cube judges will be asked, and searches each cube with a seed of its own.
    """
    volume = case.volume
    if not case.cubes:
        return protect(volume, model=protector, device=device, progress=progress)
    step = ProcessingStep(PROTECTION, f"MITSGAN protection with model {protector.name}")
    hu = np.empty_like(volume.hu)
    if isinstance(protector.proposer, DiagnosisBlocker):
        edge = volume.shape[1]
        for number in range(len(hu) // edge):
            cube = slice(number * edge, (number + 1) * edge)
            seed = int(np.random.default_rng((protector.seed, number)).integers(2**31))
            hu[cube] = blocked_cube(
                volume.hu[cube], volume.spacing_kji, protector.proposer, protector.budget, seed, device
            )
            if progress:
                progress(cube.stop, len(hu))
        return volume.with_hu(hu, step)

    def around(slab: slice) -> Surroundings:
        return Surroundings.of(volume.hu[slab], volume.spacing_kji, all_body=True)

    def allowed_in(slab: slice) -> np.ndarray:
        return around(slab).allowed(volume.hu[slab], protector.budget)

    signs = ScanSigns.of(volume, protector.watermark.key) if protector.watermark else None
    execution = Execution(protector.seed, protector.budget.strength_hu, device)
    for slab, allowed, change in protector.proposer.propose(volume, allowed_in, execution):
        hu[slab] = apply_change(volume.hu[slab], change, allowed)
        if protector.watermark:
            hu[slab] = protector.watermark.marked(hu[slab], around(slab), signs, slab.start)
    return volume.with_hu(hu, step)


def _restored(clean: CTVolume, blocked: CTVolume) -> CTVolume:
    """The clean voxels back from the sealed, blocked file, by way of the disk."""
    key = generate_key()
    with TemporaryDirectory() as temporary:
        original, sealed, back = (Path(temporary) / f"{name}.nrrd" for name in ("original", "sealed", "back"))
        save_volume(clean, original)
        loaded = load_volume(original)
        save_sealed(loaded.with_hu(blocked.hu, blocked.provenance.steps[-1]), loaded, sealed, key)
        restore(sealed, back, key)
        restored = load_volume(back)
    if not np.array_equal(restored.hu, clean.hu):
        raise InputError("The key did not give back the clean scan; report this.")
    return clean.with_hu(restored.hu)


def _estimated(values: np.ndarray, case: BlockingCase) -> Estimate:
    """Mean of the two sides' means; patients are resampled with all their places, places where there is one patient."""
    yes, (names, owner) = case.yes, np.unique(case.patients, return_inverse=True)
    if len(names) < 2:
        owner = np.arange(len(values))
    units = int(owner.max()) + 1
    value = float((values[yes].mean() + values[~yes].mean()) / 2)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(units, np.full(units, 1 / units), size=PLACE_RESAMPLES)[:, owner].astype(np.float64)
    # A draw without any place of one side says nothing about it.
    usable = weights[(weights[:, yes].sum(axis=1) > 0) & (weights[:, ~yes].sum(axis=1) > 0)]
    sides = [usable[:, side] @ values[side] / usable[:, side].sum(axis=1) for side in (yes, ~yes)]
    return Estimate(value, *interval(np.mean(sides, axis=0)), len(names), len(values))


def _accuracy_cell(found: Answers) -> Cell:
    cell, sides = cell_of(found.accuracy().times(100), 1), [100 * found.right(yes) for yes in (True, False)]
    return dataclasses.replace(cell, text=f"{cell.text} ({sides[0]:.0f} / {sides[1]:.0f})")


def _changed_cell(found: Answers) -> Cell:
    return cell_of(found.changed().times(100), 1)
