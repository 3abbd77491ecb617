"""Does the watermark show what was forged, and only that? Prints Markdown; takes minutes a scan.

    python Testing/Benchmarks/watermark.py SCAN... --attackers ctgan-small inpainter-l1 unet-attention

Each scan is protected, with a watermark whose key is made from the seed (``--model none`` for that alone). Injections
come at seeded places of the lung, removals at nodules that were planted before marking (``--nodules``, as of ``mitsgan
evaluate``), several in a copy, 64 mm from each other. A forgery is found where ``mitsgan check --voxel`` says so of
its place, and listed where a region of ``mitsgan check`` lies within 15 mm. Success: the default nodule judge sees the
finding and the forensic judge passes the place; "with check": and it was not found. False alarms are counted at
untouched places of the same copies, and as regions of the untouched copy. Copies: as they are; after 5:1 JPEG 2000;
"adaptive" ones, where the attacker keeps every voxel's noise and adds only what his forgery changes at 3 mm and above,
in the hope to keep the watermark; these two for the first attacker alone. AUC: of the shortfall at forged and at
untouched places.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker, attack_patch, load_attacker
from MITSGANLib.errors import MITSGANError
from MITSGANLib.files.storage import load_volume
from MITSGANLib.judges.jury import Jury
from MITSGANLib.keys.key_files import Key
from MITSGANLib.protection.protector import Protector, load_protector, protect
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.checking import Check, check_watermark
from MITSGANLib.watermark.pattern import WatermarkKey, watermark_key
from MITSGANTrainingLib.evaluation.fidelity import jpeg2000
from MITSGANTrainingLib.evaluation.measure import CHECKED_APART_MM
from MITSGANTrainingLib.evaluation.planting import SYNTHETIC, NoduleFile, apart, draw_scenes, planted
from MITSGANTrainingLib.training.judge import area_under_curve
from scipy import ndimage
from subjects import attackable

SEED = 11
NEAR_MM = 15.0
SMOOTH_MM = 3.0
QUIET = 10  # untouched places looked at in each copy

Place = tuple[int, int, int]


@dataclass
class Row:
    """What is seen of one kind of forgery on one scan, place by place.

    :ivar succeeded: None where there was nothing to reach.
    """

    found: list[bool] = field(default_factory=list)
    listed: list[bool] = field(default_factory=list)
    missing: list[float] = field(default_factory=list)
    succeeded: list[bool | None] = field(default_factory=list)
    untouched: list[float] = field(default_factory=list)
    alarms: list[bool] = field(default_factory=list)

    def look(self, check: Check, forged: Sequence[Place], untouched: Sequence[Place]) -> None:
        """Add what a check says of forged places and of untouched ones of the same copy."""
        spacing = np.array(check.volume.spacing_kji)
        for kji in forged:
            place = check.at(kji)
            self.found.append(place.is_missing)
            self.missing.append(place.missing_sd)
            away = [np.linalg.norm(np.subtract(region.kji, kji) * spacing) for region in check.regions]
            self.listed.append(bool(away) and min(away) < NEAR_MM)
        for kji in untouched:
            place = check.at(kji)
            self.alarms.append(place.is_missing)
            self.untouched.append(place.missing_sd)

    def cells(self) -> list[str]:
        area = area_under_curve(np.array(self.missing), np.array(self.untouched))
        reached = [(won, found) for won, found in zip(self.succeeded, self.found, strict=True) if won is not None]
        alone = np.mean([won for won, _ in reached]) if reached else np.nan
        checked = np.mean([won and not found for won, found in reached]) if reached else np.nan
        return [
            str(len(self.found)),
            f"{100 * np.mean(self.found):.0f}",
            f"{100 * np.mean(self.listed):.0f}",
            f"{np.median(self.missing):.1f} [{np.percentile(self.missing, 5):.1f}]",
            f"{area:.3f}",
            f"{100 * np.mean(self.alarms):.1f} of {len(self.alarms)}",
            f"{100 * alone:.0f}, {100 * checked:.0f} of {len(reached)}",
        ]


def forged(volume: CTVolume, places: Sequence[Place], attacker: Attacker) -> CTVolume:
    """The scan after attacks at all places."""
    hu, scan = volume.hu.copy(), torch.from_numpy(volume.hu.copy())
    for kji in places:
        where, values = attack_patch(scan, kji, volume.spacing_kji, attacker)
        hu[where] = values
    return volume.with_hu(hu)


def adaptive(volume: CTVolume, attacked: CTVolume) -> CTVolume:
    """What is smooth of a forgery, on top of every voxel's own noise."""
    sigma = [SMOOTH_MM / 2.355 / mm for mm in volume.spacing_kji]
    change = ndimage.gaussian_filter(attacked.hu.astype(np.float32) - volume.hu, sigma)
    return volume.with_hu(np.clip(np.rint(volume.hu + change), -1024, 3071).astype(np.int16))


def compressed(volume: CTVolume) -> CTVolume:
    """Every slice after 5:1 JPEG 2000."""
    return volume.with_hu(np.stack([jpeg2000(plane, 5) for plane in volume.hu]))


@dataclass(frozen=True)
class Bench:
    """What every scan is measured with."""

    key: WatermarkKey
    protector: Protector
    jury: Jury
    nodules: NoduleFile
    attackers: tuple[str, ...]
    count: int

    def study(self, name: str, volume: CTVolume) -> None:
        """Print what is found on one scan."""
        marked = protect(volume, model=self.protector, device="cpu")
        change = marked.hu.astype(int) - volume.hu
        plain, intact = check_watermark(volume, self.key), check_watermark(marked, self.key)
        print(
            f"{name}: change {np.sqrt(np.mean(change[change != 0] ** 2)):.1f} HU RMS where there is any, at most "
            f"{np.abs(change).max()} HU; the marked scan stands out by {intact.sd:.0f} standard deviations, the "
            f"unmarked one by {plain.sd:.1f}; {intact.telling_share:.0%} of marked tissue can be checked; regions "
            f"listed in the untouched copy: {len(intact.regions)}",
            flush=True,
        )
        lung = attackable(volume, lung_positions(volume, 2 * self.count, SEED))
        untouched = lung[self.count :]
        nodules = self.nodules.read()
        scenes = {"inject": [(volume, marked, lung[: self.count])], "remove": []}
        for scene in draw_scenes(volume, self.count, nodules, SEED):
            with_nodules = planted(volume, scene.plants, nodules)
            places = attackable(volume, [plant.kji for plant in scene.plants])
            scenes["remove"].append((with_nodules, protect(with_nodules, model=self.protector, device="cpu"), places))
        for by in self.attackers:
            for action, of_action in scenes.items():
                copies = ("as it is", "adaptive", "JPEG 2000") if by == self.attackers[0] else ("as it is",)
                rows = {copy: Row() for copy in copies}
                attacker = load_attacker(by, action)
                for clean, own, places in of_action:
                    for group in apart(places, own.spacing_kji, CHECKED_APART_MM):
                        self._add(rows, clean, own, attacker, group, untouched)
                for copy, row in rows.items():
                    print(f"| {name} | {action}, `{by}` | {copy} | " + " | ".join(row.cells()) + " |", flush=True)

    def _add(
        self,
        rows: dict[str, Row],
        clean: CTVolume,
        marked: CTVolume,
        attacker: Attacker,
        group: Sequence[Place],
        untouched: Sequence[Place],
    ) -> None:
        """Attack a group of places, and look at all copies."""
        attacked = forged(marked, group, attacker)
        spacing = np.array(marked.spacing_kji)
        quiet = [
            kji
            for kji in untouched
            if all(np.abs(np.subtract(kji, other) * spacing).max() >= CHECKED_APART_MM / 2 for other in group)
        ]
        for copy, row in rows.items():
            shown = attacked
            if copy != "as it is":
                shown = adaptive(marked, attacked) if copy == "adaptive" else compressed(attacked)
            row.look(check_watermark(shown, self.key), group, quiet[:QUIET])
            row.succeeded += [self._succeeds(clean, marked, shown, attacker, kji) for kji in group]

    def _succeeds(
        self, clean: CTVolume, marked: CTVolume, attacked: CTVolume, attacker: Attacker, kji: Place
    ) -> bool | None:
        was, before, after = self.jury.look([clean.hu, marked.hu, attacked.hu], marked.spacing_kji, kji)
        return self.jury.verdict(attacker.action, before, after, clean=was).succeeded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", metavar="SCAN", nargs="+")
    parser.add_argument("--attackers", nargs="+", default=["default"])
    parser.add_argument("--model", default="default", help="protector that the watermark comes with, or none")
    parser.add_argument("--targets", type=int, default=40, help="places of each action")
    parser.add_argument("--nodules", metavar="FILE", help="nodules to plant for removals (default: synthetic ones)")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    key = watermark_key(Key(hashlib.sha256(f"benchmark {SEED}".encode()).digest()))
    nodules = NoduleFile.of(Path(options.nodules) if options.nodules else SYNTHETIC)
    ready = load_protector(options.model, watermark=key)
    bench = Bench(key, ready, Jury.load(), nodules, tuple(options.attackers), options.targets)
    head = ["scan", "forgery", "copy", "places", "found, %", "listed, %", "shortfall, sd: median [5th percentile]"]
    head += ["AUC", "alarms at untouched places, %", "success alone, with check, %"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    for scan in options.scans:
        try:
            volume = load_volume(scan)
        except MITSGANError as error:
            parser.exit(error.exit_code, f"{scan}: {error}\n")
        bench.study(Path(scan).name.split(".")[0], volume)


if __name__ == "__main__":
    main()
