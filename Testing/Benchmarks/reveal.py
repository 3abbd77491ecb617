"""Does ``mitsgan examine`` tell forged scans from untouched ones? Measures, keeps records, prints Markdown.

    python Testing/Benchmarks/reveal.py RECORDS --set SCAN... --report SCAN... --nodules NODULES.npz
    python Testing/Benchmarks/reveal.py RECORDS

The second prints what was measured. ``--set`` names scans that thresholds were set on, ``--report`` all others; a scan
is a path, or PATH@UID for one series of several in a folder. Each is taken as it is and protected with the default.
Places are seeded, in the lungs, as many of a kind as ``--places`` says, as far as the scan has room for them: 40 mm
apart along some axis, attacks by networks 64 mm. Removals, blur, median and shrinking are aimed at the brightest
compact structures. All kinds of a line of ``COPIES`` are put into one copy, which is examined as a whole.

*Found*: the examination, asked about the place, raises an alarm. *Listed*: a listed place holds it (within 5 mm of its
extent), or lies within 15 mm. *False*: listed places outside the reach of every forgery in the copy: 30 mm, and for
networks half of the touch-up's edge in voxels along every axis, 5 more, and 10 mm. Either end of a copy counts
as its place, as the examination says of both that one is a copy. Nodules are what ``--readings`` says that readers
marked: ``{scan: {"nodules": [{"slice": ..., "row": ..., "column": ...}]}}``. *Succeed*: of networks, past the
nodule and forensic judges; so many, and of these so many are not found.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from MITSGANLib.attack.attacker import attack_patch, load_attacker
from MITSGANLib.examination.examiner import Examination, examine
from MITSGANLib.examination.touch_up import touch_up_edge
from MITSGANLib.examination.verdict import ChangedPlace
from MITSGANLib.files.storage import load_volume
from MITSGANLib.judges.jury import Jury
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANLib.scan.lungs import lung_positions, nodule_like_positions
from MITSGANLib.scan.volume import CTVolume
from MITSGANTrainingLib.data.nodules import Nodules
from MITSGANTrainingLib.evaluation.planting import SYNTHETIC, NoduleFile
from subjects import attackable

sys.path.append(str(Path(__file__).resolve().parents[1] / "Python"))

import forgeries

SEED = 17
APART_MM, NETWORKS_APART_MM = 40.0, 64.0
ASKED = 200
BRIGHT = 30
NOISE_HU = (0, 2, 5, 10, 20)

Voxel = tuple[int, int, int]
Forge = Callable[[CTVolume, Voxel], forgeries.Forged]

COPIES: dict[str, tuple[str, ...]] = {
    "paint": tuple(f"paint, {hu} HU of noise" for hu in NOISE_HU),
    "tissue": ("clone", "copied noise", "nodule of another patient", "smooth edit, noise kept"),
    "nodules": ("blur", "median", "shrunk"),
    "prior": ("deep image prior",),
}


@dataclass(frozen=True)
class Subject:
    """A scan in one state, and the places to forge in it."""

    name: str
    role: str
    volume: CTVolume
    is_protected: bool

    def record(self, **values: Any) -> dict[str, Any]:
        """A line of the records."""
        spacing = [round(mm, 3) for mm in self.volume.spacing_kji]
        return {"scan": self.name, "role": self.role, "protected": self.is_protected, "spacing_kji": spacing, **values}


def spread(volume: CTVolume, candidates: Sequence[Voxel], apart_mm: float, count: int) -> list[Voxel]:
    """Up to ``count`` candidates that an attack can be aimed at, apart from each other along some axis."""
    kept: list[Voxel] = []
    for kji in attackable(volume, candidates):
        if all(np.abs(np.subtract(kji, other) * volume.spacing_kji).max() >= apart_mm for other in kept):
            kept.append(kji)
    return kept[:count]


def bright(volume: CTVolume, count: int) -> list[Voxel]:
    return nodule_like_positions(volume, count)


def forgers(volume: CTVolume, nodules: Nodules) -> dict[str, Forge]:
    """Every kind of forgery that needs no network."""
    rng = np.random.default_rng(SEED)
    sources = iter(lung_positions(volume, 200, SEED + 1))

    def another(kji: Voxel) -> Voxel:
        return next(s for s in sources if np.abs(np.subtract(kji, s) * volume.spacing_kji).max() >= APART_MM)

    def painted(hu: float) -> Forge:
        return lambda scan, kji: forgeries.paint(scan, kji, hu, rng)

    found: dict[str, Forge] = {f"paint, {hu} HU of noise": painted(hu) for hu in NOISE_HU}
    return found | {
        "clone": lambda scan, kji: forgeries.clone(scan, kji, another(kji)),
        "copied noise": lambda scan, kji: forgeries.copied_noise(scan, kji, another(kji)),
        "nodule of another patient": lambda scan, kji: forgeries.paste(
            scan, kji, nodules, int(rng.integers(len(nodules.hu)))
        ),
        "smooth edit, noise kept": forgeries.smooth_edit,
        "blur": forgeries.blur,
        "median": forgeries.median,
        "shrunk": forgeries.shrink,
        "deep image prior": forgeries.deep_prior,
    }


def holds(place: ChangedPlace, kji: Voxel, spacing_kji: Sequence[float]) -> bool:
    """Whether a listed place names this voxel."""
    for end in ends(place):
        away = np.abs(np.subtract(end, kji) * spacing_kji)
        if (away <= np.array(place.size_mm) / 2 + 5).all() or np.linalg.norm(away) <= 15:
            return True
    return False


def ends(place: ChangedPlace) -> list[Voxel]:
    """The place, and where it was copied from: which of both is the copy may not be known."""
    return [place.kji] if place.source_kji is None else [place.kji, place.source_kji]


class Bench:
    """What every scan is measured with, and where records go."""

    def __init__(
        self,
        records: Path,
        nodules: Nodules,
        attackers: Sequence[str],
        places: int,
        readings: dict[str, list[Voxel]] | None = None,
    ) -> None:
        self.records, self.nodules, self.attackers, self.places = records, nodules, attackers, places
        self.readings = readings or {}
        self.jury = Jury.load()
        self.protector = load_protector("default")
        records.mkdir(parents=True, exist_ok=True)

    def study(self, name: str, role: str, volume: CTVolume, states: Sequence[bool]) -> None:
        """Measure a scan, unless it was measured before."""
        for is_protected in states:
            shown = protect(volume, model=self.protector, device="cpu") if is_protected else volume
            subject = Subject(name, role, shown, is_protected)
            copies: dict[str, Callable[[Subject], list[dict[str, Any]]]] = {"untouched": self._untouched}
            copies |= {copy: self._copy_of(copy) for copy in COPIES}
            copies |= {
                f"{by}-{action}": self._attacks_of(by, action)
                for by in self.attackers
                for action in ("inject", "remove")
            }
            for copy, measure in copies.items():
                path = self.records / f"{name}.{'protected' if is_protected else 'plain'}.{copy}.json"
                if path.exists():
                    continue
                found = measure(subject)
                path.write_text(json.dumps(found))
                print(path.stem, *(line for line in found if line["kind"] == "copy"), flush=True)

    def _untouched(self, subject: Subject) -> list[dict[str, Any]]:
        examination, line = _examined(subject, "untouched", subject.volume, [], 0)
        lung = lung_positions(subject.volume, ASKED, SEED + 2)
        found = [line]
        read_by_readers = self.readings.get(subject.name, [])
        for kind, places in (("lung", lung), ("bright", bright(subject.volume, BRIGHT)), ("nodules", read_by_readers)):
            told = [kji for kji in places if examination.can_tell(kji)]
            alarms = sum(examination.at(kji).strength >= 1 for kji in told)
            found.append(subject.record(kind="asked", copy=kind, places=len(places), told=len(told), alarms=alarms))
        return found

    def _copy_of(self, copy: str) -> Callable[[Subject], list[dict[str, Any]]]:
        def measure(subject: Subject) -> list[dict[str, Any]]:
            volume, kinds = subject.volume, COPIES[copy]
            drawn = lung_positions(volume, 400, SEED) if copy != "nodules" else bright(volume, 60)
            places = spread(volume, drawn, APART_MM, self.places * len(kinds))
            by_kind = forgers(volume, self.nodules)
            hu = volume.hu.copy()
            forged = []
            for number, kji in enumerate(places):
                kind = kinds[number % len(kinds)]
                box, values = by_kind[kind](volume, kji)
                hu[box] = values
                forged.append((kind, kji))
            reach = 30 / np.array(volume.spacing_kji)
            examination, line = _examined(subject, copy, volume.with_hu(hu), [kji for _, kji in forged], reach)
            return [line, *(_seen(subject, kind, kji, examination) for kind, kji in forged)]

        return measure

    def _attacks_of(self, by: str, action: str) -> Callable[[Subject], list[dict[str, Any]]]:
        def measure(subject: Subject) -> list[dict[str, Any]]:
            volume = subject.volume
            attacker = load_attacker(by, action)
            drawn = lung_positions(volume, 100, SEED + 3) if action == "inject" else bright(volume, 40)
            places = spread(volume, drawn, NETWORKS_APART_MM, max(6, 2 * self.places))
            scan = torch.from_numpy(volume.hu.copy())
            hu = volume.hu.copy()
            for kji in places:
                where, values = attack_patch(scan, kji, volume.spacing_kji, attacker)
                hu[where] = values
            forged = volume.with_hu(hu)
            half = touch_up_edge(volume.spacing_kji) // 2 + 5
            reach = half + 10 / np.array(volume.spacing_kji)
            examination, line = _examined(subject, f"{by} {action}", forged, places, reach)
            found = [line]
            for kji in places:
                seen = _seen(subject, f"`{by}`, {action}", kji, examination)
                found.append(seen | {"success": self._succeeds(volume, forged, attacker.action, kji)})
            return found

        return measure

    def _succeeds(self, before: CTVolume, after: CTVolume, action: str, kji: Voxel) -> bool | None:
        was, is_now = self.jury.look([before.hu, after.hu], before.spacing_kji, kji)
        return self.jury.verdict(action, was, is_now).succeeded


def _examined(
    subject: Subject, copy: str, volume: CTVolume, forged: Sequence[Voxel], reach: np.ndarray | float
) -> tuple[Examination, dict[str, Any]]:
    began = time.perf_counter()
    examination = examine(volume)
    seconds = time.perf_counter() - began
    verdict = examination.verdict
    false = [
        place
        for place in verdict.places
        if not any((np.abs(np.subtract(end, kji)) <= reach).all() for kji in forged for end in ends(place))
    ]
    line = subject.record(
        kind="copy",
        copy=copy,
        verdict=verdict.outcome.value,
        told=dict(verdict.told),
        listed=len(verdict.places),
        false=[place.to_dict() for place in false],
        seconds=round(seconds, 1),
    )
    return examination, line


def _seen(subject: Subject, kind: str, kji: Voxel, examination: Examination) -> dict[str, Any]:
    spacing = subject.volume.spacing_kji
    listed = [place for place in examination.verdict.places if holds(place, kji, spacing)]
    evidence = sorted({one.kind for place in listed for one in place.evidence if one.strength >= 1})
    return subject.record(
        kind=kind,
        kji=[int(index) for index in kji],
        found=bool(listed) or examination.at(kji).strength >= 1,
        listed=bool(listed),
        evidence=evidence,
    )


def read(records: Path) -> list[dict[str, Any]]:
    return [line for path in sorted(records.glob("*.json")) for line in json.loads(path.read_text())]


def tables(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    for is_protected in (True, False):
        for role in ("report", "set"):
            some = [line for line in lines if line["protected"] == is_protected and line["role"] == role]
            if some:
                state = "protected with the default" if is_protected else "never protected"
                yield f"\n### {'Reported' if role == 'report' else 'Thresholds set on'}: scans {state}\n"
                yield from _forged_table(some)
                yield ""
                yield from _by_scan_table(some)
                yield ""
                yield from _scan_table(some)


def _forged_table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| forgery | places, scans | found, % | listed, % | succeed, and are not found | by what |"
    yield "| --- | --- | --- | --- | --- | --- |"
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["kind"] not in ("copy", "asked"):
            kinds[line["kind"]].append(line)
    for kind, seen in kinds.items():
        reached = [line for line in seen if line.get("success") is not None]
        success = "-"
        if reached:
            past = sum(line["success"] and not line["found"] for line in reached)
            success = f"{sum(line['success'] for line in reached)}, {past} of {len(reached)}"
        counts: dict[str, int] = defaultdict(int)
        for line in seen:
            for one in line["evidence"]:
                counts[one] += 1
        by = ", ".join(f"{one} {count}" for one, count in sorted(counts.items(), key=lambda pair: -pair[1]))
        scans = len({line["scan"] for line in seen})
        shares = f"{_share(seen, 'found')} | {_share(seen, 'listed')}"
        yield f"| {kind} | {len(seen)}, {scans} | {shares} | {success} | {by} |"


def _by_scan_table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Found and listed of each group of kinds in each scan: by kernel and thickness, as far as scans differ in them."""
    seen = [line for line in lines if line["kind"] not in ("copy", "asked")]
    groups = list(dict.fromkeys(_group(line["kind"]) for line in seen))
    yield f"| scan | {' | '.join(f'{group}: found, listed' for group in groups)} |"
    yield "| --- |" + " --- |" * len(groups)
    for scan in dict.fromkeys(line["scan"] for line in lines):
        cells = []
        for group in groups:
            own = [line for line in seen if line["scan"] == scan and _group(line["kind"]) == group]
            found, listed = (sum(line[what] for line in own) for what in ("found", "listed"))
            cells.append(f"{found}, {listed} of {len(own)}" if own else "-")
        yield f"| {scan} | {' | '.join(cells)} |"


def _group(kind: str) -> str:
    if kind.startswith("`"):
        return "networks, " + kind.rpartition(", ")[2]
    if kind.startswith("paint"):
        return "paint"
    if kind in COPIES["nodules"]:
        return "nodules"
    return {"clone": "copies", "copied noise": "copies", "nodule of another patient": "pasted"}.get(kind, "edits")


def _share(seen: Sequence[dict[str, Any]], what: str) -> str:
    """Share in percent with its 95 % bootstrap interval over scans and their places."""
    by_scan: dict[str, list[bool]] = defaultdict(list)
    for line in seen:
        by_scan[line["scan"]].append(line[what])
    groups = [np.array(values, float) for values in by_scan.values()]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(1000):
        chosen = [groups[n] for n in rng.integers(len(groups), size=len(groups))]
        drawn.append(np.mean(np.concatenate([rng.choice(values, len(values)) for values in chosen])))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return f"{100 * np.mean(np.concatenate(groups)):.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def _scan_table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| scan | mm between slices, in the plane | lungs told about: noise, watermark, % | untouched: verdict, listed "
        "| alarms: lung, bright structures, nodules | false places in forged copies | seconds a copy |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for scan in dict.fromkeys(line["scan"] for line in lines):
        own = [line for line in lines if line["scan"] == scan]
        copies = [line for line in own if line["kind"] == "copy"]
        untouched = next((line for line in copies if line["copy"] == "untouched"), None)
        if untouched is None:
            continue
        asked = {line["copy"]: f"{line['alarms']} of {line['told']}" for line in own if line["kind"] == "asked"}
        told = untouched["told"]
        forged = [line for line in copies if line is not untouched]
        false = f"{sum(len(line['false']) for line in forged)} in {len(forged)}"
        spacing = own[0]["spacing_kji"]
        yield (
            f"| {scan} | {spacing[0]:g}, {spacing[1]:g} | {100 * told['noise missing']:.0f}, "
            f"{100 * told.get('watermark', 0):.0f} | {untouched['verdict']}, {untouched['listed']} "
            f"| {asked.get('lung')}, {asked.get('bright')}, {asked.get('nodules', '-')} | {false} "
            f"| {np.median([line['seconds'] for line in copies]):.0f} |"
        )


def _readings(path: Path | None) -> dict[str, list[Voxel]]:
    """The middles of the nodules that readers marked in each scan."""
    if path is None:
        return {}
    return {
        scan: [tuple(round(one[axis]) for axis in ("slice", "row", "column")) for one in said["nodules"]]
        for scan, said in json.loads(path.read_text()).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", metavar="RECORDS", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="SCAN")
    parser.add_argument("--report", nargs="*", default=[], metavar="SCAN")
    parser.add_argument("--nodules", metavar="FILE", help="nodules of other patients (default: synthetic ones)")
    parser.add_argument(
        "--readings",
        metavar="FILE",
        type=Path,
        help="JSON of the nodules that readers marked: {scan: {nodules: [...]}}",
    )
    parser.add_argument("--attackers", nargs="*", default=["ctgan-small"])
    parser.add_argument("--places", type=int, default=2, help="of a kind in each scan")
    parser.add_argument("--states", nargs="+", choices=("protected", "plain"), default=["protected", "plain"])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    scans = [("set", scan) for scan in options.set] + [("report", scan) for scan in options.report]
    if scans:
        nodules = NoduleFile.of(Path(options.nodules) if options.nodules else SYNTHETIC).read()
        bench = Bench(options.records, nodules, options.attackers, options.places, _readings(options.readings))
        for role, scan in scans:
            path, _, uid = scan.partition("@")
            name = Path(path).name.split(".")[0] + (f"-{uid[-4:]}" if uid else "")
            states = [state == "protected" for state in options.states]
            bench.study(name, role, load_volume(path, uid or None), states)
    print(*tables(read(options.records)), sep="\n")


if __name__ == "__main__":
    main()
