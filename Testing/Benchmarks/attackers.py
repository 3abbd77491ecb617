"""How well do attackers attack untouched or protected scans? Prints Markdown: a row for each attacker, action and scan.

    python Testing/Benchmarks/attackers.py SCAN... --attackers ctgan-small flow

An injection succeeds when *both* nodule judges see a nodule where neither saw one, and the forensic judge passes the
place; a removal of a planted (synthetic) nodule when neither sees it any more where both did, and the place passes.
Places are seeded. Intervals: Wilson, by place.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from judges import Place, forged_view, load_attackers
from MITSGANLib.attack.attacker import Attacker, attack_patch
from MITSGANLib.files.storage import load_volume
from MITSGANLib.judges.judge import Judge, load_judge
from MITSGANLib.protection.protector import protect
from MITSGANLib.scan.cubes import PatchedScan
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.volume import CTVolume
from MITSGANTrainingLib.evaluation.planting import SYNTHETIC, NoduleFile, draw_scenes, planted
from subjects import attackable

SEED = 7
NODULE_JUDGES = ("nodule-residual", "nodule-planes")


def measure(
    volume: CTVolume, places: Sequence[Place], attacker: Attacker, nodule: Sequence[Judge], forensic: Judge
) -> np.ndarray:
    """What came of each place: bool (places, 2 + judges), possible, unnoticed, and reached for each nodule judge."""
    wanted = attacker.action == "inject"
    scan = torch.from_numpy(np.array(volume.hu))
    before = np.stack([judge.says_yes(judge.score(volume, places)) for judge in nodule], axis=1)
    forged = [PatchedScan(volume.hu, *attack_patch(scan, kji, volume.spacing_kji, attacker)) for kji in places]

    def after(judge: Judge) -> np.ndarray:
        views = [forged_view(judge, one, volume, kji) for one, kji in zip(forged, places, strict=True)]
        return judge.says_yes(judge.score_views(views))

    reached = np.stack([after(judge) == wanted for judge in nodule], axis=1)
    possible = (before != wanted).all(axis=1)
    return np.column_stack([possible, ~after(forensic), reached])


def rows(
    name: str, volume: CTVolume, attackers: Sequence[Attacker], count: int, preset: str
) -> Iterator[dict[str, object]]:
    """Figures of each attacker on one scan. What was possible is judged on the scan as it is attacked.

    :param preset: protection of the scan, after planting; empty for none.
    """

    def guarded(scan: CTVolume) -> CTVolume:
        return protect(scan, model=preset, device="cpu") if preset else scan

    nodule, forensic = [load_judge(one) for one in NODULE_JUDGES], load_judge("forensic")
    lung = attackable(volume, lung_positions(volume, count, SEED))
    nodules = NoduleFile.of(SYNTHETIC).read()
    scenes = []
    if any(attacker.action == "remove" for attacker in attackers):
        for scene in draw_scenes(volume, count // 2, nodules, SEED):
            with_nodules = guarded(planted(volume, scene.plants, nodules))
            scenes.append((with_nodules, attackable(volume, [plant.kji for plant in scene.plants])))
    attacked = guarded(volume)
    for attacker in attackers:
        shown = [(attacked, lung)] if attacker.action == "inject" else scenes
        found = np.concatenate([measure(scan, places, attacker, nodule, forensic) for scan, places in shown])
        found = found[found[:, 0]]
        reached = found[:, 2:]
        yield {
            "attacker": attacker.name,
            "action": attacker.action,
            "scan": name,
            "places": len(found),
            **{judge: float(reached[:, n].mean()) for n, judge in enumerate(NODULE_JUDGES)},
            "both": float(reached.all(axis=1).mean()),
            "unnoticed": float(found[:, 1].mean()),
            "success": int((reached.all(axis=1) & found[:, 1]).sum()),
        }


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, hits / count
    middle, half = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", metavar="SCAN", nargs="+")
    parser.add_argument("--attackers", metavar="NAME_OR_FOLDER", nargs="+", default=["ctgan-small"])
    parser.add_argument("--actions", nargs="+", choices=("inject", "remove"), default=["inject", "remove"])
    parser.add_argument("--places", type=int, default=40, help="in the lung of each scan; half as many nodules")
    parser.add_argument("--preset", default="", metavar="NAME", help="protect each scan with this first")
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    options = parser.parse_args()
    attackers = list(load_attackers(options.attackers, options.actions))
    columns = ("attacker", "action", "scan", "places", *NODULE_JUDGES, "both", "unnoticed")
    print("| " + " | ".join(columns) + " | success | 95 % |\n" + "|---" * (len(columns) + 2) + "|")

    def show(row: dict[str, object]) -> None:
        hits, count = row["success"], row["places"]
        low, high = wilson(hits, count)
        cells = [f"{row[c]:.2f}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        print("| " + " | ".join(cells) + f" | {hits / max(count, 1):.2f} | {low:.2f} to {high:.2f} |", flush=True)

    found = []
    for path in map(Path, options.scans):
        for row in rows(path.stem, load_volume(path), attackers, options.places, options.preset):
            show(row)
            found.append(row)
    for attacker in attackers:
        own = [r for r in found if (r["attacker"], r["action"]) == (attacker.name, attacker.action)]
        count = sum(r["places"] for r in own)
        shares = {c: sum(r[c] * r["places"] for r in own) / count for c in (*NODULE_JUDGES, "both", "unnoticed")}
        hits = sum(r["success"] for r in own)
        show({**own[0], "scan": "all", "places": count, **shares, "success": hits})
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
