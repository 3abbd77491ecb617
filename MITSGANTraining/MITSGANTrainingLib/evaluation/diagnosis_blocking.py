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
from .statistics import CONFIDENCE, PLACE_RESAMPLES, Estimate

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


@dataclass(frozen=True, eq=False)
class Answers:
    """What one network says at the places of a case.

    :param said: bool (draws, places); there is more than one draw of noise.
    """

    judge: str
    arm: str
    yes: np.ndarray
    patients: np.ndarray
    said: np.ndarray
    before: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Share of right answers at each place."""
        return (self.said == self.yes).mean(axis=0)

    @property
    def changed(self) -> np.ndarray:
        """Share of answers at each place that differ from the one on the clean scan."""
        return (self.said != self.before).mean(axis=0)


def cube_case(groups: Sequence[Group], most: int | None = None) -> BlockingCase:
    """Nodules of some groups of cubes at 1 mm, and as many cubes without, each evenly from the groups that have them.

    :param most: nodules at most; all where None.
    :raises InputError: when one side is missing.
    """
    sides = []
    for yes in (True, False):
        of = [group for group in groups if group.yes == yes]
        if not of:
            raise InputError("The dataset has no cubes with, or none without, a nodule to validate on; prepare more.")
        sides.append(of)
    count = sum(len(group.views) for group in sides[0])
    with_nodule = _spread(sides[0], count if most is None else min(count, most))
    without = _spread(sides[1], len(with_nodule))
    with_nodule = with_nodule[: len(without)]
    views = np.concatenate([[view for view, _ in side] for side in (with_nodule, without)]).astype(np.int16)
    patients = np.array([patient for side in (with_nodule, without) for _, patient in side])
    edge = views.shape[1]
    places = tuple((edge * n + edge // 2, edge // 2, edge // 2) for n in range(len(views)))
    yes = np.arange(len(views)) < len(with_nodule)
    return BlockingCase("cubes", CTVolume(views.reshape(-1, edge, edge)), places, yes, patients, cubes=True)


def scan_case(name: str, volume: CTVolume, nodules: Nodules, count: int, seed: int) -> BlockingCase:
    """A whole scan with other patients' nodules planted into it, and as many places of lung far from them.

    :param count: nodules wanted; as many as find room in one copy of the scan, beside as many places without.
    :raises TargetError: when no lung is found.
    """
    plants = draw_scenes(volume, count, nodules, seed)[0].plants
    lung = list(dict.fromkeys(lung_positions(volume, _CANDIDATES * count, seed, mask=lung_mask(volume))))
    spacing = volume.spacing_kji
    # In a small scan nodules could take all the room.
    choices = [(plants[:n], _clear([one.kji for one in plants[:n]], lung, spacing)) for n in range(1, len(plants) + 1)]
    plants, clear = max(choices, key=lambda choice: min(map(len, choice)))
    pairs = min(len(plants), len(clear))
    plants, clear = plants[:pairs], clear[:pairs]
    yes = np.arange(2 * pairs) < pairs
    places = (*(one.kji for one in plants), *clear)
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
    arms = {CLEAN: [clean], BLOCKED: [blocked]}
    arms[NOISE] = [equal_rmse_noise(clean, blocked, seed) for seed in range(draws)]
    if unblock is not None:
        arms[UNBLOCKED] = [blocked.with_hu(unblock(blocked.hu))]
    arms[RESTORED] = [_restored(clean, blocked)]
    arms[PROTECTED] = [protected]
    arms[PROTECTED_NOISE] = [equal_rmse_noise(clean, protected, seed) for seed in range(draws)]
    return arms


def answers(case: BlockingCase, arms: Arms, judges: Sequence[Judge]) -> Iterator[Answers]:
    """What each network says of each arm."""
    for judge in judges:
        said = {
            arm: np.stack([judge.says_yes(judge.score(volume, case.places)) for volume in volumes])
            for arm, volumes in arms.items()
        }
        for arm, values in said.items():
            yield Answers(judge.name, arm, case.yes, case.patients, values, said[CLEAN][0])


def balanced_accuracy(found: Answers) -> Estimate:
    """Mean of the shares of right answers with and without a nodule, 0..1; interval by a bootstrap over patients."""
    return _estimated(found.right, found.yes, found.patients)


def changed_decisions(found: Answers) -> Estimate:
    """Share of decisions that differ from those on the clean scan, nodules and healthy lung counting the same."""
    return _estimated(found.changed, found.yes, found.patients)


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

    blocker: Mapping[str, Any]
    default: Mapping[str, Any]
    judges: tuple[str, ...]
    black_boxes: tuple[str, ...]
    cases: Mapping[str, tuple[Sequence[Answers], Mapping[str, float]]]
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form: shares from 0 to 1, with intervals by patient."""
        return {
            "blocker": dict(self.blocker),
            "default": dict(self.default),
            "black_boxes": list(self.black_boxes),
            "paper_accuracy_percent": PAPER,
            **self.facts,
            "cases": {
                name: {
                    "nodules": int(found[0].yes.sum()),
                    "healthy": int((~found[0].yes).sum()),
                    "patients": len(np.unique(found[0].patients)),
                    "rmse_hu": dict(rmse),
                    "networks": [
                        {
                            "judge": one.judge,
                            "box": self._box(one.judge),
                            "arm": one.arm,
                            "accuracy": balanced_accuracy(one).to_dict(),
                            "right_nodules": float(one.right[one.yes].mean()),
                            "right_healthy": float(one.right[~one.yes].mean()),
                            "changed": changed_decisions(one).to_dict(),
                        }
                        for one in found
                    ],
                }
                for name, (found, rmse) in self.cases.items()
            },
        }

    def sections(self) -> tuple[ResultSection, ...]:
        """Tables of accuracy and of changed decisions, for each case, and what they say."""
        what = (
            f"Blocker: {self.blocker['model']}, at most {self.blocker['budget']['strength_hu']:g} HU. Default "
            f"protection: {self.default['model']}. Networks decide at their own thresholds whether a place shows a "
            "nodule; accuracy is the mean of the shares that are right with a nodule and without. In brackets: 95 % by "
            "bootstrap over patients (of one patient: over places)."
        )
        published = (
            f"For comparison, MIAD-MARK's own networks and images (abstract): white box {PAPER['white box']} %, black "
            f"box {PAPER['black box']} %, after a removal network {PAPER[UNBLOCKED]} %. Answers by lot get 50 %."
        )
        sections = [ResultSection("common", "What holds for all tables", (what, published), ())]
        for name, (found, rmse) in self.cases.items():
            yes, patients = found[0].yes, len(np.unique(found[0].patients))
            counts = f"{int(yes.sum())} places with a nodule, {int((~yes).sum())} without, of {patients} patient(s)"
            accuracy = self._table("Accuracy in percent (right with a nodule / without)", found, rmse, _accuracy_cell)
            arms = (BLOCKED, NOISE, PROTECTED, PROTECTED_NOISE)
            changed = self._table(
                "Decisions that change against the clean scan, in percent", found, rmse, _changed_cell, arms
            )
            sections.append(ResultSection(name, f"{name}: {counts}", (), (accuracy, changed)))
        return tuple(sections)

    def _table(
        self,
        caption: str,
        found: Sequence[Answers],
        rmse: Mapping[str, float],
        cell: Callable[[Answers], Cell],
        arms: Sequence[str] = (CLEAN, BLOCKED, NOISE, UNBLOCKED, RESTORED),
    ) -> Table:
        cells = {(one.arm, one.judge): cell(one) for one in found}
        rows = (
            Row((ARMS[arm], f"{rmse[arm]:.1f}"), tuple(cells[arm, judge] for judge in self.judges))
            for arm in arms
            if arm in rmse
        )
        columns = tuple(Column(self._box(judge), judge) for judge in self.judges)
        return Table("", caption, ("Scan", "RMSE, HU"), columns, tuple(rows))

    def _box(self, judge: str) -> str:
        return "black box" if judge in self.black_boxes else "white box"


def described(protector: Protector) -> dict[str, Any]:
    """A protector for reports."""
    return {
        "model": protector.name,
        "sha256": protector.digest,
        "seed": protector.seed,
        "budget": protector.budget.to_dict(),
    }


def _clear(taken: Sequence[Voxel], candidates: Sequence[Voxel], spacing_kji: Sequence[float]) -> list[Voxel]:
    """Candidates far from all that is taken and from one another, at most as many as are taken."""
    clear: list[Voxel] = []
    for kji in candidates:
        others = (*taken, *clear)
        if len(clear) < len(taken) and all(apart_mm(kji, one, spacing_kji) >= APART_MM for one in others):
            clear.append(kji)
    return clear


def _spread(groups: Sequence[Group], count: int) -> list[tuple[np.ndarray, str]]:
    """Up to ``count`` cubes with their patients, the groups taking turns, each one's own spread over all it has."""
    shares = [0] * len(groups)
    while sum(shares) < count and any(n < len(g.views) for n, g in zip(shares, groups, strict=True)):
        for number, group in enumerate(groups):
            if shares[number] < len(group.views) and sum(shares) < count:
                shares[number] += 1
    return [
        (group.views[n], str(group.patients[n]))
        for group, share in zip(groups, shares, strict=True)
        for n in np.unique(np.linspace(0, len(group.views) - 1, share).astype(int))
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
            found = (volume.hu[cube], volume.spacing_kji, protector.proposer, protector.budget, seed, device)
            hu[cube] = blocked_cube(*found)
            if progress:
                progress(cube.stop, len(hu))
        return volume.with_hu(hu, step)

    def around(hu: np.ndarray) -> Surroundings:
        return Surroundings.of(hu, volume.spacing_kji, all_body=True)

    def allowed_in(slab: slice) -> np.ndarray:
        return around(volume.hu[slab]).allowed(volume.hu[slab], protector.budget)

    signs = ScanSigns.of(volume, protector.watermark.key) if protector.watermark else None
    execution = Execution(protector.seed, protector.budget.strength_hu, device)
    for slab, allowed, change in protector.proposer.propose(volume, allowed_in, execution):
        hu[slab] = apply_change(volume.hu[slab], change, allowed)
        if protector.watermark:
            hu[slab] = protector.watermark.marked(hu[slab], around(volume.hu[slab]), signs, slab.start)
    return volume.with_hu(hu, step)


def _restored(clean: CTVolume, blocked: CTVolume) -> CTVolume:
    """The clean voxels back from the sealed, blocked file, by way of the disk.

    :raises InputError: when they are not what they were.
    """
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


def _estimated(values: np.ndarray, yes: np.ndarray, patients: np.ndarray) -> Estimate:
    """Mean of the two sides' means; patients are resampled with all their places, places where there is one patient."""
    names, owner = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        owner = np.arange(len(values))
    units = int(owner.max()) + 1
    value = float((values[yes].mean() + values[~yes].mean()) / 2)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(units, np.full(units, 1 / units), size=PLACE_RESAMPLES)[:, owner].astype(np.float64)
    # A draw without any place of one side says nothing about it.
    usable = weights[(weights[:, yes].sum(axis=1) > 0) & (weights[:, ~yes].sum(axis=1) > 0)]
    sides = [usable[:, side] @ values[side] / usable[:, side].sum(axis=1) for side in (yes, ~yes)]
    low, high = np.quantile(np.mean(sides, axis=0), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high), len(names), len(values))


def _accuracy_cell(found: Answers) -> Cell:
    sides = (100 * found.right[found.yes].mean(), 100 * found.right[~found.yes].mean())
    cell = cell_of(balanced_accuracy(found).times(100), 1)
    return dataclasses.replace(cell, text=f"{cell.text} ({sides[0]:.0f} / {sides[1]:.0f})")


def _changed_cell(found: Answers) -> Cell:
    return cell_of(changed_decisions(found).times(100), 1)
