"""What does it cost a protection not to know the place? Prints Markdown; takes an hour a scan with many places.

    python Testing/Benchmarks/places.py SCAN... --together 1 8 64 512

Signed gradients that know the attacker are searched at one place of the lung, and jointly at several within 12 mm of
it, where every voxel is seen by the attacks at most of them. So one change has to serve them all, as a protection that
does not know where the attack will come has to serve some 25,000 places at every voxel. Known: places that the
gradients knew, up to eight of a region. Near: places of the same region that they did not know. Moved: median of how
far the forgery moves, as a share of the attack's own change. Success: the default judges, as in ``mitsgan evaluate``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker, attack_patch, load_attacker
from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import MITSGANError
from MITSGANLib.files.storage import load_volume
from MITSGANLib.judges.jury import Jury
from MITSGANLib.measure.noise_controls import equal_rmse_noise
from MITSGANLib.scan.cubes import PatchedScan
from MITSGANLib.scan.lungs import lung_mask, lung_positions
from MITSGANLib.scan.regions import regions_at
from MITSGANLib.scan.volume import CTVolume
from MITSGANTrainingLib.evaluation.gradient_search import protect_by_gradient
from subjects import attackable

SEED = 13
REACH_MM = 12.0
LOOKED_AT = 8  # places of each kind that are attacked in a region
NONE, NOISE, KNOWN, NEAR = "none", "noise of equal RMSE", "known places", "places near them"

Place = tuple[int, int, int]


@dataclass
class Row:
    """What attacks come to, place by place.

    :ivar succeeded: None where there was nothing to reach.
    """

    moved: list[float] = field(default_factory=list)
    succeeded: list[bool | None] = field(default_factory=list)

    def cells(self) -> list[str]:
        counted = [won for won in self.succeeded if won is not None]
        moved = f"{100 * np.median(self.moved):.0f} %" if any(self.moved) else "-"
        return [moved, f"{100 * np.mean(counted):.0f} % of {len(counted)}" if counted else "-"]


def region(volume: CTVolume, lung: np.ndarray, middle: Place, count: int, seed: int) -> list[Place]:
    """Seeded voxels of the lung within :data:`REACH_MM` of ``middle`` along each axis, ``middle`` first."""
    reach = np.floor(REACH_MM / np.array(volume.spacing_kji)).astype(int)
    low = [max(0, k - n) for k, n in zip(middle, reach, strict=True)]
    box = tuple(slice(a, k + n + 1) for a, k, n in zip(low, middle, reach, strict=True))
    found = [middle]
    for kji in np.random.default_rng(seed).permutation(np.argwhere(lung[box]) + low):
        place = tuple(int(index) for index in kji)
        if len(found) == count:
            break
        if place != middle and attackable(volume, [place]):
            found.append(place)
    return found


@dataclass(frozen=True)
class Bench:
    """What every region is measured with."""

    attacker: Attacker
    jury: Jury
    budget: Budget
    steps: int
    seed: int = SEED

    def add(self, rows: dict[str, Row], volume: CTVolume, known: Sequence[Place], near: Sequence[Place]) -> None:
        """Protect the known places together, and attack some of them, and some near them."""
        protected = protect_by_gradient(
            volume, known, [self.attacker], budget=self.budget, steps=self.steps, seed=self.seed
        )
        noise = equal_rmse_noise(volume, protected, self.seed)
        for name, shown, places in (
            (NONE, volume, known),
            (NOISE, noise, known),
            (KNOWN, protected, known),
            (NEAR, protected, near),
        ):
            for kji in places[:LOOKED_AT]:
                self._attack(rows.setdefault(name, Row()), volume, shown, kji)

    def _attack(self, row: Row, clean: CTVolume, shown: CTVolume, kji: Place) -> None:
        plain, forged = (
            PatchedScan(scan.hu, *attack_patch(torch.from_numpy(scan.hu.copy()), kji, scan.spacing_kji, self.attacker))
            for scan in (clean, shown)
        )
        middle = regions_at(clean, kji).middle.index
        own, other = (scan[middle].astype(float) for scan in (plain, forged))
        row.moved.append(_rms(other - own) / _rms(own - clean.hu[middle]))
        box = self.jury.box(clean.shape, clean.spacing_kji, kji)
        inside = tuple(index - part.start for index, part in zip(kji, box, strict=True))
        parts = [clean.hu[box], shown.hu[box], forged[box]]
        was, before, after = self.jury.look(parts, clean.spacing_kji, inside)
        row.succeeded.append(self.jury.verdict(self.attacker.action, before, after, clean=was).succeeded)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", metavar="SCAN", nargs="+")
    parser.add_argument("--attacker", default="default")
    parser.add_argument("--action", choices=("inject", "remove"), default="inject")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 8, 64], help="places that share one change")
    parser.add_argument("--regions", type=int, default=4, help="regions of each scan")
    parser.add_argument("--strength-hu", type=float, default=8.0, help="largest change")
    parser.add_argument("--steps", type=int, default=10, help="of signed gradients")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    attacker = load_attacker(options.attacker, options.action)
    bench = Bench(attacker, Jury.load(), Budget(options.strength_hu), options.steps)
    scans = []
    for scan in options.scans:
        try:
            volume = load_volume(scan)
            lung = lung_mask(volume)
            # Twice as many, for one in the lung may yet be too near to what cannot be attacked.
            drawn = lung_positions(volume, 2 * options.regions, SEED, margin_mm=16 + REACH_MM, mask=lung)
        except MITSGANError as error:
            parser.exit(error.exit_code, f"{scan}: {error}\n")
        middles = attackable(volume, drawn)[: options.regions]
        scans.append((volume, lung, middles))
    print("| places that share one change | protection | forgery moved | success |\n| --- | --- | --- | --- |")
    for together in options.together:
        rows: dict[str, Row] = {}
        for volume, lung, middles in scans:
            for number, middle in enumerate(middles):
                places = region(volume, lung, middle, together + LOOKED_AT, SEED + number)
                if together == 1:
                    # One change for each of the places that are looked at, so that all rows count as many.
                    for kji in places[:LOOKED_AT]:
                        bench.add(rows, volume, [kji], [])
                    continue
                bench.add(rows, volume, places[:together], places[together:])
        for name, row in rows.items():
            print(f"| {together} | {name} | {' | '.join(row.cells())} |", flush=True)


if __name__ == "__main__":
    main()
