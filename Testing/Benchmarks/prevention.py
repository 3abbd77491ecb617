"""Does an injection still come out of a protected scan? Prints Markdown: a row for each scan, budget and attacker.

    python Testing/Benchmarks/prevention.py SCAN... --known ctgan-near --held-out unet-near --budgets 0.5 1
    python Testing/Benchmarks/prevention.py SCAN... --protectors default strong --held-out ctgan-small

The first searches a change in one seeded region of lung, with targets in a cube of 32 mm: whole lungs take hours on a
CPU. The second protects whole scans with what is installed or lies in a file, with ``--hu`` at each budget. Judged at
seeded places of that region, or of all lung. An
injection reaches its finding where both nodule judges see a nodule, and succeeds where the forensic judge passes it as
well. Of these three the search asked the first alone. Beside it: the scan as it is, and Gaussian noise of the same root
mean square. "Alarm": at how many of the places the forensic judge takes the protected scan for forged before anything
is. Intervals: Wilson, by place; of all scans, bootstrap over scans and places. ``--adapt``: the attacker's network
looks at a copy from which the protection is to be got off; what it paints goes into the protected scan. Two of these
tell through whom a protection acts: with ``reads-original`` the network sees none of it, with ``into-original`` the
judges see none of it but in the forgery.

    python Testing/Benchmarks/prevention.py SCAN... --action remove --nodules NODULES.npz --known ctgan-small ...

plants nodules, as many as lie apart in one copy of the scan. A removal reaches its finding where both nodule judges
see none any more. The search knows these places: only nodules count that it takes for compact structures by itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from attackers import wilson
from judges import Place, forged_view
from MITSGANLib.attack.attacker import Attacker, load_attacker
from MITSGANLib.attack.chain import forge_cube, touch_up
from MITSGANLib.budget.budget import Budget, allowed_in_slices, apply_change
from MITSGANLib.budget.noise import local_noise
from MITSGANLib.files.storage import load_volume
from MITSGANLib.judges.judge import Judge, load_judge
from MITSGANLib.protection.protector import protect
from MITSGANLib.protection.search import ChangeSearch, SearchConfig
from MITSGANLib.scan.cubes import Patch, PatchedScan
from MITSGANLib.scan.lungs import lung_mask, lung_positions, nodule_like_positions
from MITSGANLib.scan.targets import Target
from MITSGANLib.scan.volume import CTVolume, hu_from_float
from MITSGANTrainingLib.data.nodules import Nodules
from MITSGANTrainingLib.evaluation.planting import NoduleFile, Plant, apart_mm, draw_scenes, planted
from MITSGANTrainingLib.evaluation.sheet import draw_sheet, forge
from MITSGANTrainingLib.evaluation.statistics import Estimate, estimate_by_place, share_of_places
from scipy import ndimage
from subjects import attackable

SEED = 7
ASKED = ("nodule-residual", "nodule-plain")
DECIDE = ("nodule-residual", "nodule-planes")
ARMS = ("unprotected", "equal noise", "protected")
FIGURES = ("RMS in lung", "mean", *DECIDE, "unnoticed", "alarm", *(f"reached: {arm}" for arm in ARMS))
COLUMNS = ("scan", "budget", "attacker", "places", *FIGURES)
READS_ORIGINAL, INTO_ORIGINAL = "reads-original", "into-original"
_EDGE_MM = 32.0  # of the region
_REACH_MM = 40.0
_CUBE_MM = 16.0  # farther than that from its middle no nodule is planted
_STRUCTURES = 24  # of a scan that a search looks at
_NEAR_MM = 5.0  # from such a structure to the nodule that it is
_AROUND_MM = 12.0  # of a planted nodule, where targets of a search may lie
_SHOWN = 8  # places in a picture

Found = dict[str, np.ndarray]
Protection = tuple[str, Callable[[], CTVolume], Budget | None]


def _resampled(hu: np.ndarray, spacing_kji: Sequence[float]) -> np.ndarray:
    """To 1.5 mm and back."""
    small = ndimage.zoom(hu, np.array(spacing_kji) / 1.5, order=3, mode="nearest")
    return ndimage.zoom(small, np.array(hu.shape) / small.shape, order=3, mode="nearest")


def _non_local_means(hu: np.ndarray, spacing_kji: Sequence[float]) -> np.ndarray:
    from skimage.restoration import denoise_nl_means

    noise = float(np.median(local_noise(hu_from_float(hu), spacing_kji).at()))
    return np.stack([denoise_nl_means(plane, 5, 6, h=0.8 * noise, sigma=noise, preserve_range=True) for plane in hu])


ADAPTATIONS: Mapping[str, Callable[[np.ndarray, Sequence[float]], np.ndarray]] = {
    "median": lambda hu, _spacing: ndimage.median_filter(hu, 3),
    "gaussian": lambda hu, _spacing: ndimage.gaussian_filter(hu, (0.5, 1.0, 1.0)),
    "non-local-means": _non_local_means,
    "resample": _resampled,
}


def region_of(volume: CTVolume, edge_mm: float, seed: int) -> np.ndarray:
    """Bool of the scan's shape: a cube of ``edge_mm`` around a seeded voxel in the middle of the lungs."""
    (middle,) = lung_positions(volume, 1, seed, margin_mm=16.0 + edge_mm / 2)
    region = np.zeros(volume.shape, bool)
    reach = [round(edge_mm / 2 / mm) for mm in volume.spacing_kji]
    region[tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(middle, reach, strict=True))] = True
    return region


def places_in(volume: CTVolume, lung: np.ndarray, count: int, seed: int) -> list[Place]:
    """Seeded voxels of lung where attacks are judged."""
    return attackable(volume, sorted(set(lung_positions(volume, count, seed, mask=lung))))


def nodules_at(places: Sequence[Place], nodules: Nodules, seed: int) -> list[Plant]:
    """A seeded nodule for each place, flipped and turned; none twice before each was taken."""
    rng = np.random.default_rng(seed)
    numbers = itertools.chain.from_iterable(rng.permutation(len(nodules.hu)) for _ in places)
    return [
        Plant(kji, int(number), tuple(bool(flip) for flip in rng.random(3) < 0.5), int(rng.integers(4)))
        for kji, number in zip(places, numbers, strict=False)
    ]


def with_nodules(
    volume: CTVolume, file: Path | None, count: int, seed: int
) -> tuple[CTVolume, np.ndarray, list[Place]]:
    """The scan with nodules planted, the lung around these, and those where both nodule judges see one.

    Of these only what a search would look at by itself.
    """
    nodules = NoduleFile.of(file).read()
    scene = draw_scenes(volume, count, nodules, seed)[0]
    volume = planted(volume, scene.plants, nodules)
    structures = nodule_like_positions(volume, _STRUCTURES)
    near = [
        plant.kji
        for plant in scene.plants
        if min(apart_mm(plant.kji, other, volume.spacing_kji) for other in structures) <= _NEAR_MM
    ]
    places = attackable(volume, near)
    for judge in map(load_judge, DECIDE):
        seen = judge.says_yes(judge.score(volume, places))
        places = [kji for kji, yes in zip(places, seen, strict=True) if yes]
    around = np.zeros(volume.shape, bool)
    reach = [round(_AROUND_MM / mm) for mm in volume.spacing_kji]
    for kji in places:
        around[tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(kji, reach, strict=True))] = True
    return volume, around, places


def covered(volume: CTVolume, shown: CTVolume, plant: Plant, nodules: Nodules, budget: Budget) -> PatchedScan:
    """The changed scan as it is where a nodule lay before, with as much of the change as the budget allows there."""
    spacing = volume.spacing_kji
    box = tuple(
        slice(max(0, k - round(_CUBE_MM / mm)), min(k + round(_CUBE_MM / mm) + 1, size))
        for k, mm, size in zip(plant.kji, spacing, volume.shape, strict=True)
    )
    slices = box[0], slice(None), slice(None)
    moved = np.subtract(shown.hu[slices], volume.hu[slices])
    before = planted(volume, [plant], nodules).hu[slices]
    allowed = allowed_in_slices(before, budget, spacing, volume.provenance.padding_hu)
    return PatchedScan(shown.hu, box, apply_change(before, moved, allowed)[:, box[1], box[2]])


class Jury:
    """The places of a scan and the judges that decide there."""

    def __init__(self, volume: CTVolume, places: Sequence[Place]) -> None:
        self._volume, self.places = volume, places
        self._nodule, self._forensic = [load_judge(name) for name in DECIDE], load_judge("forensic")
        self._unprotected: dict[str, Found] = {}
        self._painted: tuple[tuple[CTVolume, str, str] | None, list[Patch]] = None, []

    def of(self, shown: CTVolume, attacker: Attacker, adaptation: str = "") -> Found:
        """Bool (places,): whether each injection succeeds, what each judge says, and alarms before it."""
        if shown is self._volume and adaptation not in ADAPTATIONS:
            if attacker.name not in self._unprotected:
                self._unprotected[attacker.name] = self._found(shown, attacker, self._paint(shown, attacker))
            return self._unprotected[attacker.name]
        read = self._volume if adaptation == READS_ORIGINAL else shown
        into = self._volume if adaptation == INTO_ORIGINAL else shown
        return self._found(into, attacker, self._paint(read, attacker, adaptation if adaptation in ADAPTATIONS else ""))

    def _paint(self, read: CTVolume, attacker: Attacker, adaptation: str = "") -> list[Patch]:
        """What the network paints at each place; the last is kept, since judging takes less than painting."""
        asked = (read, attacker.name, adaptation)
        if self._painted[0] != asked:
            seen = torch.from_numpy(self._cleaned(read, adaptation) if adaptation else np.array(read.hu))
            with torch.no_grad():
                cubes = [forge_cube(seen, kji, read.spacing_kji, attacker.inpainter) for kji in self.places]
            self._painted = asked, cubes
        return self._painted[1]

    def _found(self, shown: CTVolume, attacker: Attacker, painted: Sequence[Patch]) -> Found:
        scan = torch.from_numpy(np.array(shown.hu))
        forged = []
        for kji, cube in zip(self.places, painted, strict=True):
            patch = touch_up(scan, kji, cube, attacker.action)
            forged.append(PatchedScan(shown.hu, patch.slices, hu_from_float(patch.values.numpy())))
        return self._said(shown, forged, attacker.action == "inject")

    def real(self, shown: CTVolume, plants: Sequence[Plant], nodules: Nodules, budget: Budget) -> Found:
        """As :meth:`of`, for a nodule at each place that lay there before the change of the scan came over it."""
        return self._said(shown, [covered(self._volume, shown, plant, nodules, budget) for plant in plants], True)

    def _said(self, shown: CTVolume, forged: Sequence[PatchedScan], wants_nodule: bool) -> Found:
        untouched = [PatchedScan(shown.hu, (slice(0, 0),) * 3, np.zeros((0, 0, 0), np.int16))] * len(forged)

        def said(judge: Judge, scans: Sequence[PatchedScan]) -> np.ndarray:
            views = [forged_view(judge, one, shown, kji) for one, kji in zip(scans, self.places, strict=True)]
            return judge.says_yes(judge.score_views(views))

        found = {judge.name: said(judge, forged) == wants_nodule for judge in self._nodule}
        found["reached"] = np.logical_and.reduce(list(found.values()))
        found["unnoticed"] = ~said(self._forensic, forged)
        found["success"] = found["reached"] & found["unnoticed"]
        return found | {"alarm": said(self._forensic, untouched)}

    def _cleaned(self, shown: CTVolume, adaptation: str) -> np.ndarray:
        reach = [int(np.ceil(_REACH_MM / mm)) for mm in shown.spacing_kji]
        low = np.maximum(np.min(self.places, axis=0) - reach, 0)
        high = np.minimum(np.max(self.places, axis=0) + reach + 1, shown.shape)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        cleaned = shown.hu.astype(np.float32)
        cleaned[box] = ADAPTATIONS[adaptation](cleaned[box], shown.spacing_kji)
        return cleaned


def installed(volume: CTVolume, names: Sequence[str], strengths: Sequence[float | None]) -> Iterator[Protection]:
    """The whole scan protected by what has a name or lies in a file, at each strength in HU; None is its own."""
    for name, strength in itertools.product(names, strengths):
        words = Path(name).stem + (f", {strength:g} HU" if strength else "")
        yield words, functools.partial(protect, volume, model=name, strength_hu=strength, device="cpu"), None


def searched(
    volume: CTVolume,
    region: np.ndarray | None,
    known: Sequence[Attacker],
    options: argparse.Namespace,
    name: str,
) -> Iterator[Protection]:
    """A search for each budget; it runs when it is asked for, and its state is kept where one may be."""
    for share in options.budgets:
        strength, of_noise = (share, None) if options.hu else (200.0, share)
        budget = Budget(strength_hu=strength, soft_tissue=0.3, bone=0.0, noise_share=of_noise)

        def run(budget: Budget = budget, share: float = share) -> CTVolume:
            allowed = allowed_in_slices(volume.hu, budget, volume.spacing_kji, volume.provenance.padding_hu)
            config, judges = (
                SearchConfig(steps=options.steps, into_original=not options.blind, half=options.half),
                [load_judge(judge) for judge in ASKED],
            )
            search = ChangeSearch(
                volume, allowed, known, judges, config, seed=options.seed, device="cpu", within=region
            )
            search.run(state=options.state / f"{name}-{share:g}-{options.steps}.npz" if options.state else None)
            print(f"<!-- {name}, {share:g}: {search.steps_done} steps -->", flush=True)
            return volume.with_hu(apply_change(volume.hu, search.change(), allowed))

        yield f"{share:g}{' HU' if options.hu else ' of the noise'}", run, budget


def equal_noise(volume: CTVolume, protected: CTVolume, lung: np.ndarray, seed: int) -> CTVolume:
    """The scan with Gaussian noise where the protection changed it, of the same root mean square in ``lung``."""
    moved = np.subtract(protected.hu, volume.hu, dtype=np.float32)
    size = float(np.sqrt(np.mean(moved[lung] ** 2)))
    white = np.random.default_rng(seed).standard_normal(volume.shape, dtype=np.float32) * size
    return volume.with_hu(
        apply_change(volume.hu, np.where(moved != 0, white, 0), np.full(volume.shape, 4095, np.int16))
    )


def draw(
    shown: Mapping[str, CTVolume], places: Sequence[Place], attacker: Attacker, found: Mapping[str, Found]
) -> bytes:
    """A PNG of attacks on each arm at places evenly taken from all, with what the judges say of them."""
    some = range(0, len(places), max(1, len(places) // _SHOWN))[:_SHOWN]
    targets = [Target("inject", places[n], "seeded") for n in some]
    rows = []
    for arm, scan in shown.items():
        says = ["succeeds" if found[arm]["success"][n] else "fails" for n in some]
        forged = forge(scan, "", targets, [attacker], device="cpu")
        rows.append((arm, [dataclasses.replace(one, caption=word) for one, word in zip(forged, says, strict=True)]))
    counts = ", ".join(f"{arm} {int(one['success'].sum())} of {len(places)}" for arm, one in found.items())
    return draw_sheet(rows, f"Nodules injected by {attacker.name}: {counts} succeed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", metavar="SCAN", nargs="+")
    parser.add_argument("--known", metavar="ATTACKER", nargs="*", default=[], help="whom the search sees")
    parser.add_argument("--held-out", metavar="ATTACKER", nargs="*", default=[])
    parser.add_argument("--protectors", metavar="NAME", nargs="*", default=[], help="in place of a search")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0], help="shares of the scan's own noise")
    parser.add_argument("--hu", action="store_true", help="budgets are HU, the same for every voxel of lung")
    parser.add_argument("--adapt", choices=[*ADAPTATIONS, READS_ORIGINAL, INTO_ORIGINAL], nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=400, help="for each of the region's blocks of 32 mm")
    parser.add_argument("--blind", action="store_true", help="ask judges about the changed scan, as protect does")
    parser.add_argument("--half", action="store_true", help="search in bfloat16, where the processor has it")
    parser.add_argument("--action", choices=["inject", "remove"], default="inject")
    parser.add_argument("--nodules", type=Path, help="nodules to plant for removals; made-up ones where missing")
    parser.add_argument("--places", type=int, default=40)
    parser.add_argument("--edge-mm", type=float, help=f"of the region; {_EDGE_MM:g} for a search, else all lung")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--state", type=Path, help="folder in which searches are kept and continued")
    parser.add_argument(
        "--picture", type=Path, help="draw the first attacker's attacks there (PNG); the last budget stays"
    )
    parser.add_argument("--json", type=Path, help="write all figures there as well")
    options = parser.parse_args()
    if not options.known and not options.protectors:
        parser.error("name --known attackers to search against, or --protectors")
    known, held_out = (
        [load_attacker(one, options.action) for one in names] for names in (options.known, options.held_out)
    )
    asked = ("", *options.adapt)
    header = [*COLUMNS, *(f"success: {arm}, 95 %" for arm in ARMS)]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|", flush=True)
    rows: list[dict] = []
    for path in map(Path, options.scans):
        volume, region = load_volume(path), None
        if options.action == "remove":
            volume, region, places = with_nodules(volume, options.nodules, options.places, options.seed)
        elif options.edge_mm or not options.protectors:
            region = region_of(volume, options.edge_mm or _EDGE_MM, options.seed)
        lung = lung_mask(volume) if region is None else lung_mask(volume) & region
        if options.action == "inject":
            places = places_in(volume, lung, options.places, options.seed + 1)
        jury = Jury(volume, places)
        protections = (
            installed(volume, options.protectors, options.budgets if options.hu else [None])
            if options.protectors
            else searched(volume, region, known, options, path.stem)
        )
        noise = local_noise(volume.hu, volume.spacing_kji, volume.provenance.padding_hu).at()
        print(f"<!-- {path.stem}: noise {np.sqrt(np.mean(noise[lung] ** 2)):.1f} HU in this lung -->", flush=True)
        nodules = NoduleFile.of(options.nodules).read() if options.nodules else None
        for name, made, budget in protections:
            started, protected = time.perf_counter(), made()
            seconds = time.perf_counter() - started
            shown = dict(
                zip(ARMS, (volume, equal_noise(volume, protected, lung, options.seed), protected), strict=True)
            )
            moved = np.subtract(protected.hu, volume.hu, dtype=np.float32)[lung]
            sizes = {"RMS in lung": float(np.sqrt(np.mean(moved**2))), "mean": float(moved.mean())}
            if nodules and budget and options.action == "inject":
                plants = nodules_at(jury.places, nodules, options.seed)
                found = {arm: jury.real(scan, plants, nodules, budget) for arm, scan in shown.items()}
                rows.append(_row(path.stem, name, "a patient's own nodules", jury, sizes, found))
                print(_line(rows[-1]), flush=True)
            for attacker in (*known, *held_out):
                role = "held out" if attacker in held_out else "known"
                # Arm by arm, so that what a network paints is judged wherever it is pasted.
                judged = {arm: {one: jury.of(scan, attacker, one) for one in asked} for arm, scan in shown.items()}
                for adaptation in asked:
                    found = {arm: one[adaptation] for arm, one in judged.items()}
                    words = f"{attacker.name} ({role}{', ' + adaptation if adaptation else ''})"
                    rows.append(_row(path.stem, name, words, jury, sizes, found) | {"seconds": seconds})
                    print(_line(rows[-1]), flush=True)
                    if options.picture and not adaptation and attacker is (*known, *held_out)[0]:
                        options.picture.write_bytes(draw(shown, places, attacker, found))
    for name, attacker in dict.fromkeys((row["budget"], row["attacker"]) for row in rows):
        same = [row for row in rows if (row["budget"], row["attacker"]) == (name, attacker)]
        if len(same) > 1:
            weights = [row["places"] for row in same]
            figures = {key: float(np.average([row[key] for row in same], weights=weights)) for key in FIGURES}
            totals = {key: sum(row[key] for row in same) for key in ("places", *ARMS)}
            shares = ({n: share_of_places(row["succeeds"][arm]) for n, row in enumerate(same)} for arm in ARMS)
            found = dict(zip(ARMS, (estimate_by_place(one, SEED) for one in shares), strict=True))
            print(_line({"scan": "all", "budget": name, "attacker": attacker, **totals, **figures}, found))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _row(
    scan: str, budget: str, attacker: str, jury: Jury, sizes: Mapping[str, float], found: Mapping[str, Found]
) -> dict[str, object]:
    row = {"scan": scan, "budget": budget, "attacker": attacker, "places": len(jury.places), **sizes}
    row |= {key: float(found["protected"][key].mean()) for key in (*DECIDE, "unnoticed", "alarm")}
    row |= {arm: int(one["success"].sum()) for arm, one in found.items()}
    row |= {f"reached: {arm}": float(one["reached"].mean()) for arm, one in found.items()}
    return row | {"succeeds": {arm: one["success"].tolist() for arm, one in found.items()}}


def _line(row: Mapping[str, object], by_scan: Mapping[str, Estimate] | None = None) -> str:
    cells = [f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in COLUMNS]
    for arm in ARMS:
        share, bounds = row[arm] / row["places"], wilson(row[arm], row["places"])
        if by_scan:
            share, bounds = by_scan[arm].value, (by_scan[arm].low, by_scan[arm].high)
        cells.append("{:.2f} ({:.2f} to {:.2f})".format(share, *bounds))
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
