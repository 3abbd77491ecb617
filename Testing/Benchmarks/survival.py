"""What can still be read after what copies go through? Measures, keeps records, prints Markdown.

    python Testing/Benchmarks/survival.py RECORDS --scans SCAN...
    python Testing/Benchmarks/survival.py RECORDS

The second prints what was measured. Each scan is protected with the default, then forged by networks in turn: removals
at compact bright structures, injections in the lungs, all 64 mm apart along some axis and in one copy. That copy goes
through each entry of ``Testing/Python/copy_suite.py``'s ``COPIES``, loses all records, and is examined. *Found*,
*listed* and *false* are those of ``reveal.py``; alarms are counted at lung places outside the reach of every forgery.
Injections count a second time where they *succeed*: past the nodule and forensic judges, before the copy was made.
A control was never protected: how often is a watermark recognized in it? ``--quick`` leaves out the search for copied
tissue, CT-GAN's noise source and the forensic judge, which take half of the time and which grids do not concern.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from MITSGANLib.attack.attacker import attack_patch, load_attacker
from MITSGANLib.errors import DependencyError
from MITSGANLib.examination import examiner
from MITSGANLib.examination.touch_up import touch_up_edge
from MITSGANLib.files.storage import load_volume
from MITSGANLib.judges.jury import Jury
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.checking import check_watermark
from reveal import NETWORKS_APART_MM, SEED, bright, ends, holds, read, spread
from subjects import middle_slices

sys.path.append(str(Path(__file__).resolve().parents[1] / "Python"))

from copy_suite import COPIES, Copy, cropped

ACTIONS = ("remove", "inject")
CONTROLS = {"never protected": COPIES["as it is"], "never protected, cropped": cropped}
_ASKED = 60

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class Target:
    """A forgery: by whom, and whether it gets past the judges; None for removals, which are not asked about."""

    action: str
    kji: Voxel
    by: str
    success: bool | None


def forged(volume: CTVolume, attackers: Sequence[str], places: dict[str, int]) -> tuple[CTVolume, list[Target]]:
    """The scan after attacks, and where: so many of each action, as far as there is room for them, in turn."""
    candidates = {"remove": bright(volume, 40), "inject": lung_positions(volume, 400, SEED + 3)}
    chosen: list[tuple[str, Voxel]] = []
    for number in range(max(places.values())):
        for action in ACTIONS:
            if number < places[action]:
                taken = [kji for _, kji in chosen]
                fitting = spread(volume, [*taken, *candidates[action]], NETWORKS_APART_MM, len(taken) + 1)
                chosen += [(action, kji) for kji in fitting[len(taken) :]]
    scan, hu, jury = torch.from_numpy(volume.hu.copy()), volume.hu.copy(), Jury.load()
    by = [attackers[number % len(attackers)] for number in range(len(chosen))]
    for (action, kji), name in zip(chosen, by, strict=True):
        where, values = attack_patch(scan, kji, volume.spacing_kji, load_attacker(name, action))
        hu[where] = values
    after = volume.with_hu(hu)

    def succeeds(action: str, kji: Voxel) -> bool | None:
        if action == "remove":
            return None
        was, is_now = jury.look([volume.hu, after.hu], volume.spacing_kji, kji)
        return jury.verdict(action, was, is_now).succeeded

    targets = [Target(action, kji, name, succeeds(action, kji)) for (action, kji), name in zip(chosen, by, strict=True)]
    return after, targets


def without_copies() -> None:
    """Let no examination of this process search for copied tissue."""
    examiner.find_copies = lambda *_: []
    examiner.find_touch_up = lambda *_, **__: None


def look(scan: CTVolume, copy: Copy, forgeries: Sequence[Target], *, with_judge: bool) -> list[dict[str, Any]]:
    """Examine a copy of a forged scan; a line for the copy, and one for each forgery."""
    half = touch_up_edge(scan.spacing_kji) // 2 + 5
    reach = half + 10 / np.array(scan.spacing_kji)

    def is_near(kji: Voxel) -> bool:
        return any((np.abs(np.subtract(kji, other.kji)) <= reach).all() for other in forgeries)

    began = time.perf_counter()
    examination = examiner.examine(copy.volume, with_judge=with_judge)
    seconds = time.perf_counter() - began
    verdict, mark = examination.verdict, examination.mark
    spacing = copy.volume.spacing_kji
    quiet = [kji for kji in lung_positions(scan, 400, SEED + 2) if not is_near(kji)][:_ASKED]
    asked = [kji for kji in map(copy.place, quiet) if copy.volume.contains(kji) and examination.can_tell(kji)]
    false = [one for one in verdict.places if not any(is_near(copy.origin(end)) for end in ends(one))]
    lines = [
        {
            "kind": "copy",
            "recognized": mark.is_found,
            "sd": mark.sd,
            "gain": mark.gain,
            "grid": mark.regridding,
            "verdict": verdict.outcome.value,
            "listed": len(verdict.places),
            "false": [one.to_dict() for one in false],
            "asked": len(asked),
            "alarms": sum(examination.at(kji).strength >= 1 for kji in asked),
            "seconds": round(seconds, 1),
        }
    ]
    for target in forgeries:
        at = copy.place(target.kji)
        listed = [one for one in verdict.places if holds(one, at, spacing)]
        found = bool(listed) or (copy.volume.contains(at) and examination.at(at).strength >= 1)
        evidence = sorted({one.kind for place in listed for one in place.evidence if one.strength >= 1})
        shown = {"found": found, "listed": bool(listed), "evidence": evidence}
        lines.append({"kind": target.action, "by": target.by, "success": target.success, **shown})
    return lines


def study(records: Path, name: str, volume: CTVolume, options: argparse.Namespace) -> None:
    """Measure a scan, copy after copy, unless it was measured before."""
    wanted = options.copies or (*COPIES, *CONTROLS)
    jobs = [copy for copy in wanted if not _path(records, name, copy).exists()]
    if not jobs:
        return
    places = {"remove": options.places if options.removals is None else options.removals, "inject": options.places}
    marked = protect(volume, model=load_protector("default"), device="cpu")
    attacked, targets = forged(marked, options.attackers, places)
    for copy in jobs:
        try:
            if copy in COPIES:
                lines = look(attacked, COPIES[copy](attacked), targets, with_judge=not options.quick)
            else:
                check = check_watermark(CONTROLS[copy](volume).volume)
                lines = [{"kind": "copy", "recognized": check.is_found, "sd": check.sd, "grid": check.regridding}]
        except DependencyError as error:
            print(f"{name}, {copy}: {error}", flush=True)
            continue
        _path(records, name, copy).write_text(json.dumps([{"scan": name, "copy": copy, **line} for line in lines]))
        print(name, copy, {key: value for key, value in lines[0].items() if key != "false"}, flush=True)


def table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown."""
    yield (
        "| copy | watermark recognized | stands out by, sd | removals: found, listed, % | injections: found, listed, % "
        "| of these succeed: found, listed, % | alarms at untouched lung | false places | verdicts | seconds |"
    )
    yield "|" + " --- |" * 10
    for copy in (*COPIES, *CONTROLS):
        of_copy = [line for line in lines if line["copy"] == copy]
        whole = [line for line in of_copy if line["kind"] == "copy"]
        if not whole:
            continue
        known = f"{sum(line['recognized'] for line in whole)} of {len(whole)}"
        sds = ", ".join(f"{line['sd']:.0f}" for line in whole)
        if copy in CONTROLS:
            yield f"| {copy} | {known} | {sds} | - | - | - | - | - | - | - |"
            continue
        groups = [[line for line in of_copy if line["kind"] == action] for action in ACTIONS]
        shares = [_share(group) for group in (*groups, [line for line in groups[-1] if line.get("success")])]
        alarms = f"{sum(line['alarms'] for line in whole)} of {sum(line['asked'] for line in whole)}"
        false = sum(len(line["false"]) for line in whole)
        verdicts = ", ".join(line["verdict"] for line in whole)
        seconds = ", ".join(f"{line['seconds']:.0f}" for line in whole)
        cells = (copy, known, sds, *shares, alarms, false, verdicts, seconds)
        yield "| " + " | ".join(map(str, cells)) + " |"
    yield ""
    for scan in dict.fromkeys(line["scan"] for line in lines):
        grids = {line["copy"]: line["grid"] for line in lines if line["scan"] == scan and line.get("grid")}
        yield f"- {scan}: " + ("; ".join(f"{copy}: *{words}*" for copy, words in grids.items()) or "no other grid")


def _share(seen: Sequence[dict[str, Any]]) -> str:
    if not seen:
        return "-"
    found, listed = (100 * np.mean([line[what] for line in seen]) for what in ("found", "listed"))
    return f"{found:.0f}, {listed:.0f} of {len(seen)}"


def _path(records: Path, name: str, copy: str) -> Path:
    return records / f"{name}.{copy.replace(' ', '-').replace(':', '-')}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", metavar="RECORDS", type=Path)
    parser.add_argument("--scans", nargs="*", default=[], metavar="SCAN")
    parser.add_argument("--attackers", nargs="+", default=["ctgan-small"], help="in turn")
    parser.add_argument("--places", type=int, default=4, help="of each action, as far as there is room")
    parser.add_argument("--removals", type=int, help="where there shall be fewer of them")
    parser.add_argument("--copies", nargs="*", choices=(*COPIES, *CONTROLS), metavar="COPY", help="default: all")
    parser.add_argument("--slices", type=int, help="of the middle of each scan alone, for a quicker look")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        without_copies()
    torch.set_num_threads(options.threads)
    options.records.mkdir(parents=True, exist_ok=True)
    for scan in options.scans:
        path, _, uid = scan.partition("@")
        name = Path(path).name.split(".")[0] + (f"-{uid[-4:]}" if uid else "")
        volume = middle_slices(load_volume(path, uid or None), options.slices)
        study(options.records, name, volume, options)
    print(*table(read(options.records)), sep="\n")


if __name__ == "__main__":
    main()
