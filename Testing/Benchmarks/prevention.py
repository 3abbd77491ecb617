"""Does an injection still come out after a searched change? Prints Markdown: rows for each scan, budget and attacker.

    python Testing/Benchmarks/prevention.py SCAN... --known ctgan-small --held-out flow --budgets 0.5 1

The change is searched in one seeded region of lung, with targets in a cube of 32 mm: whole lungs take hours on a CPU.
It is judged at seeded places of that region. An injection succeeds where both nodule judges see a nodule and the
forensic judge passes the place; of these three the search asked the first alone. Beside it: the scan as it is, and
Gaussian noise of the same root mean square. Intervals: Wilson, by place.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from attackers import wilson
from judges import Place, _usable, _view
from MITSGANLib.attack.attacker import AttackedScan, Attacker, attack_patch, load_attacker
from MITSGANLib.budget.budget import Budget, allowed_in_slices, apply_change
from MITSGANLib.budget.noise import local_noise
from MITSGANLib.files.storage import load_volume
from MITSGANLib.judges.judge import Judge, load_judge
from MITSGANLib.protection.search import ChangeSearch, SearchConfig
from MITSGANLib.scan.lungs import lung_mask, lung_positions
from MITSGANLib.scan.volume import CTVolume

SEED = 7
ASKED = ("nodule-residual", "nodule-plain")
DECIDE = ("nodule-residual", "nodule-planes")


def region_of(volume: CTVolume, edge_mm: float, seed: int) -> np.ndarray:
    """Bool of the scan's shape: a cube of ``edge_mm`` around a seeded voxel in the middle of the lungs."""
    (middle,) = lung_positions(volume, 1, seed, margin_mm=16.0 + edge_mm / 2)
    region = np.zeros(volume.shape, bool)
    reach = [round(edge_mm / 2 / mm) for mm in volume.spacing_kji]
    region[tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(middle, reach, strict=True))] = True
    return region


def places_in(volume: CTVolume, lung: np.ndarray, count: int, seed: int) -> list[Place]:
    """Seeded voxels of lung where attacks are judged."""
    return _usable(volume, sorted(set(lung_positions(volume, count, seed, mask=lung))))


def successes(
    volume: CTVolume, places: Sequence[Place], attacker: Attacker, nodule: Sequence[Judge], forensic: Judge
) -> dict[str, np.ndarray]:
    """Bool (places,): whether each injection succeeds, and what each judge says."""
    scan = torch.from_numpy(np.array(volume.hu))
    forged = [AttackedScan(volume.hu, *attack_patch(scan, kji, volume.spacing_kji, attacker)) for kji in places]

    def said(judge: Judge) -> np.ndarray:
        views = [_view(judge, one, volume, kji) for one, kji in zip(forged, places, strict=True)]
        return judge.says_yes(judge.score_views(views))

    found = {judge.name: said(judge) for judge in nodule} | {"unnoticed": ~said(forensic)}
    found["success"] = np.logical_and.reduce(list(found.values()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", metavar="SCAN", nargs="+")
    parser.add_argument("--known", metavar="ATTACKER", nargs="+", default=["ctgan-small"])
    parser.add_argument("--held-out", metavar="ATTACKER", nargs="*", default=[])
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0], help="shares of the scan's own noise")
    parser.add_argument("--hu", action="store_true", help="budgets are HU, the same for every voxel of lung")
    parser.add_argument("--steps", type=int, default=400, help="for each of the region's blocks of 32 mm")
    parser.add_argument("--places", type=int, default=40)
    parser.add_argument("--edge-mm", type=float, default=32.0, help="of the region")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--state", type=Path, help="folder in which searches are kept and continued")
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    options = parser.parse_args()
    known = [load_attacker(name, "inject") for name in options.known]
    held_out = [load_attacker(name, "inject") for name in options.held_out]
    asked = [load_judge(name) for name in ASKED]
    decide, forensic = [load_judge(name) for name in DECIDE], load_judge("forensic")
    columns = ("scan", "budget", "attacker", "arm", "places", "RMS in lung", "mean in lung", *DECIDE, "unnoticed")
    print("| " + " | ".join(columns) + " | success | 95 % |\n" + "|---" * (len(columns) + 2) + "|", flush=True)
    rows = []
    for path in map(Path, options.scans):
        volume = load_volume(path)
        region = region_of(volume, options.edge_mm, options.seed)
        lung = lung_mask(volume) & region
        places = places_in(volume, lung, options.places, options.seed + 1)
        noise = local_noise(volume.hu, volume.spacing_kji, volume.provenance.padding_hu).at()
        own = float(np.sqrt(np.mean(noise[lung] ** 2)))
        for share in options.budgets:
            strength, of_noise = (share, None) if options.hu else (200.0, share)
            budget = Budget(strength_hu=strength, soft_tissue=0.3, bone=0.0, noise_share=of_noise)
            allowed = allowed_in_slices(volume.hu, budget, volume.spacing_kji, volume.provenance.padding_hu)
            config = SearchConfig(steps=options.steps)
            search = ChangeSearch(volume, allowed, known, asked, config, seed=options.seed, device="cpu", within=region)
            kept = options.state / f"{path.stem}-{share:g}-{options.steps}.npz" if options.state else None
            started = time.perf_counter()
            search.run(state=kept)
            seconds = time.perf_counter() - started
            change = search.change()
            arms = {"clean": volume, "noise": volume, "search": volume}
            arms["search"] = volume.with_hu(apply_change(volume.hu, change, allowed))
            moved = np.subtract(arms["search"].hu, volume.hu, dtype=np.float32)
            size = float(np.sqrt(np.mean(moved[lung] ** 2)))
            white = np.random.default_rng(options.seed).standard_normal(volume.shape, dtype=np.float32) * size
            anything = np.full(volume.shape, 4095, np.int16)
            arms["noise"] = volume.with_hu(apply_change(volume.hu, np.where(moved != 0, white, 0), anything))
            for attacker in (*known, *held_out):
                for arm, shown in arms.items():
                    found = successes(shown, places, attacker, decide, forensic)
                    hits, count = int(found["success"].sum()), len(places)
                    low, high = wilson(hits, count)
                    figures = [float(found[name].mean()) for name in (*DECIDE, "unnoticed")]
                    moved_by_arm = np.subtract(shown.hu, volume.hu, dtype=np.float32)[lung]
                    sizes = (float(np.sqrt(np.mean(moved_by_arm**2))), float(moved_by_arm.mean()))
                    role = "held out" if attacker in held_out else "known"
                    row = [path.stem, f"{share:g}", f"{attacker.name} ({role})", arm, count]
                    cells = [*map(str, row), *(f"{value:.2f}" for value in (*sizes, *figures))]
                    print("| " + " | ".join(cells) + f" | {hits / count:.2f} | {low:.2f} to {high:.2f} |", flush=True)
                    rows.append(dict(zip(columns, [*row, *sizes, *figures], strict=True)) | {"success": hits / count})
            print(f"<!-- {path.stem}: noise {own:.1f} HU, {search.steps_done} steps, {seconds:.0f} s -->")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
