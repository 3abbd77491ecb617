"""What can one do to the watermark who knows how it works? Prints Markdown; takes minutes a scan.

    python Testing/Benchmarks/security.py SCAN... [--slices 32]

**Forgers.** The middle slices of each scan are marked with the watermark alone. Balls of 20 mm are cloned from
elsewhere in the scan to places in the lungs, and each forger then tries to hide that. Found: ``check`` misses the
watermark at the place. Untouched: the same at places 30 mm and more from all forgeries.

**Estimates.** Who does not have the key can try to see the signs through the noise: each voxel's residual (what its
neighbors do not tell) added up over the 2x2 voxels that share a sign, and averaged over what else does. Layers: over
slices of one copy, nearer than a number of mm. Copies: over scans at *exactly* one grid and depth, marked with one key;
slices of the scan, 5 mm and more apart, stand for them, each marked as if it lay at the first one's depth. A tile has
other signs at each level of its mean, so that a sign is seen in a part of the copies alone; shares are of signs seen so
often, up to half as often again. Where scans lie on grids of their own, as they do, there is nothing to average: the
control. A share of 50 % is chance.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from MITSGANLib.budget.budget import WATERMARK_BUDGET, Surroundings
from MITSGANLib.errors import TargetError
from MITSGANLib.examination.noise import fine_kernel, residual
from MITSGANLib.files.storage import load_volume
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.lungs import lung_mask, lung_positions
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.checking import check_watermark
from MITSGANLib.watermark.embedding import Watermark
from MITSGANLib.watermark.pattern import LAYER_MM, Grid, ScanSigns, WatermarkKey, tile_levels
from subjects import middle_slices

sys.path.append(str(Path(__file__).resolve().parents[1] / "Python"))

import forgeries

SEED = 29
APART_MM = 45.0
PLACES, ASKED = 6, 40
KEY = WatermarkKey(hashlib.sha256(b"benchmark of security").digest())
OTHER_KEY = WatermarkKey(hashlib.sha256(b"somebody else's").digest())
COPIES = (1, 2, 4, 8, 16, 32)

Voxel = tuple[int, int, int]
Hide = Callable[["Scene"], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A scan before and after marking, and what was forged in the marked one."""

    original: CTVolume
    marked: CTVolume
    forged: CTVolume
    key: WatermarkKey

    @property
    def painted(self) -> np.ndarray:
        """Where the forgery changed anything."""
        return self.forged.hu != self.marked.hu

    def remarked(self, key: WatermarkKey, where: np.ndarray) -> np.ndarray:
        """The forged scan with signs of a key in a part of it."""
        signs = ScanSigns.of(self.forged, key)
        around = Surroundings.of(self.forged.hu, self.forged.spacing_kji, self.forged.provenance.padding_hu)
        marked = Watermark(key, WATERMARK_BUDGET).marked(self.forged.hu, around, signs, 0)
        return np.where(where, marked, self.forged.hu)


def with_estimate(scene: Scene) -> np.ndarray:
    """Signs estimated from the marked copy's own layers, put into what was forged."""
    reach = max(1, round(LAYER_MM / 2 / scene.marked.spacing_kji[0]))
    estimate = np.sign(
        shared(averaged(residual(scene.marked, fine_kernel(scene.marked)), reach), Grid.of(scene.marked))
    )
    around = Surroundings.of(scene.forged.hu, scene.forged.spacing_kji, scene.forged.provenance.padding_hu)
    added = scene.forged.hu + estimate * around.allowed(scene.forged.hu, WATERMARK_BUDGET)
    return np.where(scene.painted, added, scene.forged.hu)


def with_difference(scene: Scene) -> np.ndarray:
    """What marking changed in the original, which the forger has, on top of what was forged."""
    change = scene.marked.hu.astype(int) - scene.original.hu
    return np.where(scene.painted, scene.forged.hu + change, scene.forged.hu)


FORGERS: dict[str, Hide] = {
    "knows nothing": lambda scene: scene.forged.hu,
    "knows the method, marks with a key of his own": lambda scene: scene.remarked(OTHER_KEY, scene.painted),
    "knows the method, estimates signs from the copy's layers": with_estimate,
    "has the original, adds its difference to what he forged": with_difference,
    "has the key, marks what he forged": lambda scene: scene.remarked(scene.key, scene.painted),
}


def averaged(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean of so many slices on both sides and the slice itself."""
    from scipy import ndimage

    return ndimage.uniform_filter1d(values, 2 * reach + 1, axis=0)


def shared(values: np.ndarray, grid: Grid) -> np.ndarray:
    """What the 2x2 voxels of a sign say of it together, as a checkerboard of that size: (slices, rows, columns)."""
    found = np.zeros_like(values)
    rows, columns = (size // 2 * 2 for size in grid.turned(values[0]).shape)
    board = 1 - 2 * (np.indices((rows, columns)).sum(axis=0) % 2)
    for plane, estimate in zip(values, found, strict=True):
        cells = (grid.turned(plane)[:rows, :columns] * board).reshape(rows // 2, 2, columns // 2, 2).sum(axis=(1, 3))
        grid.turned(estimate)[:rows, :columns] = cells.repeat(2, axis=0).repeat(2, axis=1) * board
    return found


def places_in(volume: CTVolume) -> list[Voxel]:
    found: list[Voxel] = []
    for kji in lung_positions(volume, 400, SEED, margin_mm=12.0):
        if all(np.linalg.norm(np.subtract(kji, other) * volume.spacing_kji) >= APART_MM for other in found):
            found.append(kji)
    return found


def forger_rows(name: str, volume: CTVolume) -> Iterator[str]:
    """Each forger's successes in a scan."""
    places = places_in(volume)
    targets, sources = places[:PLACES], places[PLACES:] or places[::-1]
    key = KEY
    marked = protect(volume, model=watermark_alone(key))
    pairs = dict(zip(targets, np.resize(np.array(sources), (len(targets), 3)).tolist(), strict=True))
    forged = forgeries.forge(marked, targets, lambda scan, kji: forgeries.clone(scan, kji, tuple(pairs[kji])))
    scene = Scene(volume, marked, forged, key)
    quiet = [
        kji
        for kji in lung_positions(volume, 400, SEED + 1)
        if all(np.linalg.norm(np.subtract(kji, other) * volume.spacing_kji) >= 30 for other in targets)
    ][:ASKED]
    for who, hide in FORGERS.items():
        check = check_watermark(marked.with_hu(hide(scene).astype(np.int16)), key)
        found = [check.at(kji) for kji in targets]
        alarms = [check.at(kji).is_missing for kji in quiet]
        left = np.median([place.seen / max(place.expected, 1e-6) for place in found])
        yield (
            f"| {name} | {who} | {sum(place.is_missing for place in found)} of {len(found)} | {100 * left:.0f} | "
            f"{sum(alarms)} of {len(alarms)} |"
        )


def sign_share(estimate: np.ndarray, signs: np.ndarray, where: np.ndarray) -> str:
    told = where & (estimate != 0) & (signs != 0)
    return f"{100 * np.mean(np.sign(estimate[told]) == signs[told]):.1f}"


def layer_row(name: str, volume: CTVolume) -> Iterator[str]:
    """How many signs of the lungs one sees in a copy alone."""
    marked = protect(volume, model=watermark_alone(KEY))
    lungs = lung_mask(volume) & (marked.hu != volume.hu)
    signs = ScanSigns.of(marked, KEY)
    truth = np.stack([signs.of_slice(k, marked.hu[k]) for k in range(marked.shape[0])])
    fine, grid = residual(marked, fine_kernel(marked)), Grid.of(marked)
    shares = [sign_share(fine, truth, lungs)]
    for mm in (0.0, 2.5, 5.0):
        reach = round(mm / 2 / volume.spacing_kji[0])
        shares.append(sign_share(shared(averaged(fine, reach) if reach else fine, grid), truth, lungs))
    yield f"| {name} | {volume.spacing_kji[0]:g} | {' | '.join(shares)} |"


def copies_row(name: str, volume: CTVolume, *, is_one_grid: bool) -> Iterator[str]:
    """How many signs one sees that so many scans showed: a tile shows others at each level of its mean."""
    step = max(1, round(LAYER_MM / volume.spacing_kji[0]))
    around = Surroundings.of(volume.hu, volume.spacing_kji, volume.provenance.padding_hu)
    allowed = around.allowed(volume.hu, WATERMARK_BUDGET)
    lungs = lung_mask(volume)
    grid = Grid.of(volume)
    total: dict[int, np.ndarray] = {}
    count: dict[int, np.ndarray] = {}
    found = {}
    order = np.random.default_rng(SEED).permutation(np.arange(0, volume.shape[0], step))
    signs = ScanSigns.of(volume, KEY)
    for number, k in enumerate(order, start=1):
        own = signs if is_one_grid else ScanSigns.of(_elsewhere(volume, number), KEY)
        hu = volume.hu[k] + own.of_slice(0, volume.hu[k]) * allowed[k]
        marked = dataclasses.replace(volume, hu=hu[None].astype(np.int16))
        fine = shared(np.clip(residual(marked, fine_kernel(marked)), -60, 60), grid)[0] * (allowed[k] > 0) * lungs[k]
        levels = tile_levels(grid.turned(marked.hu[0]))[0].repeat(8, axis=0).repeat(8, axis=1)
        plane = grid.turned(np.pad(levels, [(0, size - n) for size, n in zip(hu.shape, levels.shape, strict=True)]))
        for level in np.unique(plane[fine != 0]):
            here = (plane == level) & (fine != 0)
            total.setdefault(level, np.zeros(hu.shape, np.float32))[here] += fine[here]
            count.setdefault(level, np.zeros(hu.shape, np.int16))[here] += 1
    for seen in COPIES:
        right = told = 0
        for level, sums in total.items():
            truth = signs.of_slice(0, np.full(hu.shape, int(level) * 64 + 32, np.int16))
            where = (count[level] >= seen) & (count[level] < 1.5 * seen) & (sums != 0) & (truth != 0)
            told += int(where.sum())
            right += int((np.sign(sums[where]) == truth[where]).sum())
        found[seen] = f"{100 * right / told:.1f}" if told > 1000 else "-"
    kind = "one grid" if is_one_grid else "a grid each"
    yield f"| {name} | {kind} | {' | '.join(found.get(number, '-') for number in COPIES)} |"


def _elsewhere(volume: CTVolume, number: int) -> CTVolume:
    origin = tuple(np.add(volume.origin, (1.3 * number, -0.7 * number, 0)))
    return dataclasses.replace(volume, origin=origin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", metavar="SCAN", nargs="+")
    parser.add_argument("--slices", type=int, default=32, help="of the middle of each scan, for the forgers")
    options = parser.parse_args()
    scans = {Path(scan).name.split(".")[0]: load_volume(scan) for scan in options.scans}
    tables: Sequence[tuple[str, Callable[[str, CTVolume], Iterator[str]]]] = (
        ("| scan | forger | found | watermark left, % | alarms at untouched places |", forger_rows),
        (
            "| scan | mm between slices | signs right, %: by a voxel | by 2x2 voxels | mean of 2.5 mm | mean of 5 mm |",
            layer_row,
        ),
    )
    for head, rows in tables:
        print(head + "\n|" + " --- |" * (head.count("|") - 1), flush=True)
        for name, volume in scans.items():
            try:
                for row in rows(name, middle_slices(volume, options.slices)):
                    print(row, flush=True)
            except TargetError as error:
                print(f"| {name} | {error} |")
        print()
    print(f"| scan | scans lie on | {' | '.join(f'signs right, %: seen in {n}' for n in COPIES)} |")
    print("|" + " --- |" * (2 + len(COPIES)))
    for name, volume in scans.items():
        for is_one_grid in (True, False):
            print(*copies_row(name, volume, is_one_grid=is_one_grid), sep="\n", flush=True)


if __name__ == "__main__":
    main()
