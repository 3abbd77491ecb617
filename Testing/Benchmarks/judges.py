"""How well do the judges judge, on scans that they were not trained on? Prints Markdown; takes minutes a scan.

    python Testing/Benchmarks/judges.py SCAN... --attackers ctgan-small

Nodule judges: nodules planted in healthy lung against lung, and against nodule-like structures of the scan. Forensic
judges: places attacked against the same places untouched; removals at the planted nodules. Decisions flipped, in lung
and at structures: by white noise of 5 HU, and by the default protection. Intervals: bootstrap over scans and places.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker, attack_patch, load_attacker
from MITSGANLib.errors import MITSGANError
from MITSGANLib.files.storage import load_volume
from MITSGANLib.judges.judge import Judge, available_judges, load_judge
from MITSGANLib.protection.protector import protect
from MITSGANLib.scan.cubes import PatchedScan
from MITSGANLib.scan.lungs import lung_positions, nodule_like_positions
from MITSGANLib.scan.volume import CTVolume, hu_from_float
from MITSGANTrainingLib.evaluation.planting import SYNTHETIC, NoduleFile, draw_scenes, planted
from MITSGANTrainingLib.evaluation.statistics import PlaceFigure, area_of_places, estimate_by_place, share_of_places
from subjects import attackable

NOISE_HU = 5.0
SEED = 7

Place = tuple[int, int, int]
Scores = dict[str, list[float]]  # of one judge on one scan: scores by kind of place


def judge_scan(volume: CTVolume, judges: Sequence[Judge], attackers: Sequence[Attacker], count: int) -> list[Scores]:
    """Scores of each judge on one scan.

    :param count: places in the lung; half as many structures and planted nodules.
    """
    found: list[Scores] = [{} for _ in judges]

    def look(kind: str, shown: CTVolume, places: Sequence[Place]) -> None:
        for judge, scores in zip(judges, found, strict=True):
            scores.setdefault(kind, []).extend(judge.score(shown, places).tolist())

    def attack(kind: str, shown: CTVolume, places: Sequence[Place], action: str) -> None:
        scan = torch.from_numpy(np.array(shown.hu))
        for by in (attacker for attacker in attackers if attacker.action == action):
            for kji in places:
                forged = PatchedScan(shown.hu, *attack_patch(scan, kji, shown.spacing_kji, by))
                for judge, scores in zip(judges, found, strict=True):
                    score = judge.score_views([forged_view(judge, forged, shown, kji)])[0]
                    scores.setdefault(f"{kind} {by.name}", []).append(float(score))

    lung = attackable(volume, lung_positions(volume, count, SEED))
    structures = attackable(volume, nodule_like_positions(volume, count // 2))
    noise = np.random.default_rng(SEED).normal(0, NOISE_HU, volume.shape)
    shown = {"": volume, ", noise": _with(volume, volume.hu + noise), ", protected": protect(volume, device="cpu")}
    for words, arm in shown.items():
        look(f"lung{words}", arm, lung)
        look(f"structure{words}", arm, structures)
    attack("injected by", volume, lung, "inject")
    nodules = NoduleFile.of(SYNTHETIC).read()
    for scene in draw_scenes(volume, count // 2, nodules, SEED):
        places = attackable(volume, [plant.kji for plant in scene.plants])
        with_nodules = planted(volume, scene.plants, nodules)
        look("planted", with_nodules, places)
        attack("removed by", with_nodules, places, "remove")
    return found


def lines(judge: Judge, scans: Sequence[Scores]) -> Iterator[str]:
    """Rows of a judge's table."""

    def row(words: str, figure: Callable[[Scores], PlaceFigure]) -> str:
        found = estimate_by_place({number: figure(scan) for number, scan in enumerate(scans)}, SEED)
        return f"| {words} | {found.value:.3f} | {found.low:.3f} to {found.high:.3f} | {found.values} |"

    def area_row(yes: str, no: str) -> str:
        # Injections stand in the very places of the lung, and removals in those with planted nodules.
        paired = (yes.split()[0], no) in {("injected", "lung"), ("removed", "planted")}
        area = area_of_places if paired else area_between
        return row(f"AUC: {yes} against {no}", lambda scan: area(scan[yes], scan[no]))

    def yes_row(kind: str) -> str:
        return row(f"says yes: {kind}", lambda scan: share_of_places([float(s >= judge.threshold) for s in scan[kind]]))

    def flip_row(arm: str) -> str:
        return row(f"decisions flipped{arm}", lambda scan: share_of_places(_flips(judge, scan, arm)))

    if judge.question == "nodule":
        yield from (area_row("planted", other) for other in ("lung", "structure"))
    else:
        yield from (area_row(kind, "lung") for kind in scans[0] if kind.startswith("injected"))
        removed = [kind for kind in scans[0] if kind.startswith("removed")]
        yield from (area_row(kind, "planted") for kind in removed)
        # Removals look like lung, and what is planted does not: against lung, traces alone tell them apart.
        yield from (area_row(kind, "lung") for kind in removed)
    yield from (yes_row(kind) for kind in scans[0])
    yield from (flip_row(arm) for arm in (", noise", ", protected"))


def area_between(yes: Sequence[float], no: Sequence[float]) -> PlaceFigure:
    """Area under the ROC curve between the scores of two sets of places, ties counting half."""
    scores, others = np.asarray(yes)[:, None], np.asarray(no)[None, :]
    above = (scores > others) + 0.5 * (scores == others)

    def area(weights: np.ndarray) -> np.ndarray:
        first, second = weights[:, : len(yes)], weights[:, len(yes) :]
        pairs = first.sum(axis=1) * second.sum(axis=1)
        # A draw of one side alone, as of very few places, tells nothing.
        return np.divide(((first @ above) * second).sum(axis=1), pairs, out=np.full(len(pairs), 0.5), where=pairs > 0)

    return PlaceFigure(len(yes) + len(no), area)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", metavar="SCAN", nargs="+")
    parser.add_argument("--attackers", metavar="NAME_OR_FOLDER", nargs="+", default=["ctgan-small"])
    parser.add_argument("--judges", metavar="NAME_OR_FILE", nargs="+", default=[], help="default: all installed")
    parser.add_argument("--places", type=int, default=100, help="in the lung of each scan (default: 100)")
    options = parser.parse_args()
    judges = [load_judge(name) for name in options.judges or available_judges()]
    attackers = list(load_attackers(options.attackers))
    scans = [judge_scan(load_volume(Path(scan)), judges, attackers, options.places) for scan in options.scans]
    for number, judge in enumerate(judges):
        print(f"\n**{judge.name}** (threshold {judge.threshold:.3f})\n")
        print("| figure | value | 95 % interval | places |\n| --- | ---: | ---: | ---: |")
        print("\n".join(lines(judge, [scan[number] for scan in scans])), flush=True)


def load_attackers(names: Sequence[str], actions: Sequence[str] = ("inject", "remove")) -> Iterator[Attacker]:
    """Every attacker with the actions that it can do; what one cannot do is said."""
    for name in names:
        for action in actions:
            try:
                yield load_attacker(name, action)
            except MITSGANError as error:
                print(f"{name} cannot {action}: {error}")


def forged_view(judge: Judge, forged: PatchedScan, volume: CTVolume, kji: Place) -> np.ndarray:
    """What a judge sees of an attacked place."""
    box = judge.view.box(volume.shape, volume.spacing_kji, kji)
    inside = tuple(k - part.start for k, part in zip(kji, box, strict=True))
    return judge.view.cut(forged[box], volume.spacing_kji, inside)


def _with(volume: CTVolume, values: np.ndarray) -> CTVolume:
    return CTVolume(hu_from_float(values), volume.spacing, volume.origin, volume.direction)


def _flips(judge: Judge, scan: Scores, arm: str) -> list[float]:
    pairs = [pair for kind in ("lung", "structure") for pair in zip(scan[kind], scan[kind + arm], strict=True)]
    return [float((a >= judge.threshold) != (b >= judge.threshold)) for a, b in pairs]


if __name__ == "__main__":
    main()
