"""Does the keyed watermark show what was forged, and only that? Prints Markdown; takes minutes a scan.

    python Testing/Benchmarks/watermark.py SCAN... --attackers ctgan-small inpainter-l1 ctgan-plain

Each scan is marked with a key made from the seed. Injections come at seeded places of the lung, removals at nodule-like
structures, several in one copy, far enough from each other that none lies in another's surroundings. A forgery is found
at its place where ``mitsgan check --voxel`` would say so, and listed where a region of ``mitsgan check`` lies within
15 mm. False alarms are counted at as many untouched places, and as regions of the untouched copy. Copies: as they are;
after 5:1 JPEG 2000; "adaptive" ones, where the attacker keeps every voxel's noise and adds only what his forgery
changes at 3 mm and above, in the hope to keep the watermark. AUC: of the shortfall at forged and at untouched places.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from MITSGANLib.ctgan.attacker import Attacker, check_target, load_attacker
from MITSGANLib.errors import MITSGANError, TargetError
from MITSGANLib.fidelity import jpeg2000
from MITSGANLib.lungs import lung_positions, nodule_like_positions
from MITSGANLib.seal import Key
from MITSGANLib.storage import load_volume
from MITSGANLib.volume import CTVolume
from MITSGANLib.watermark import Check, check_watermark, embed_watermark, watermark_key
from MITSGANTrainingLib.evaluation.measure import attack_patch
from MITSGANTrainingLib.success import area_under_curve
from scipy import ndimage

SEED = 11
APART_MM = 64.0
NEAR_MM = 15.0
SMOOTH_MM = 3.0

Place = tuple[int, int, int]


@dataclass
class Row:
    """Figures of one kind of forgery on one scan: of each place, whether it was found and listed, and by how much."""

    found: list[bool] = field(default_factory=list)
    listed: list[bool] = field(default_factory=list)
    missing: list[float] = field(default_factory=list)
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
        return [
            str(len(self.found)),
            f"{100 * np.mean(self.found):.0f}",
            f"{100 * np.mean(self.listed):.0f}",
            f"{np.median(self.missing):.1f} [{np.percentile(self.missing, 5):.1f}]",
            f"{area:.3f}",
            f"{100 * np.mean(self.alarms):.1f}",
        ]


def apart(volume: CTVolume, places: Sequence[Place]) -> list[list[Place]]:
    """The places in groups, of which each has them far from each other; greedily, in order."""
    groups: list[list[Place]] = []
    spacing = np.array(volume.spacing_kji)
    for kji in places:
        fits = (g for g in groups if all(np.abs(np.subtract(kji, o) * spacing).max() >= APART_MM for o in g))
        group = next(fits, None)
        if group is None:
            groups.append(group := [])
        group.append(kji)
    return groups


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


def usable(volume: CTVolume, places: Sequence[Place]) -> list[Place]:
    """Places that an attack can be aimed at."""
    found = []
    for kji in places:
        try:
            check_target(volume, kji)
        except TargetError:
            continue
        found.append(kji)
    return found


def study(name: str, volume: CTVolume, attackers: Sequence[str], count: int, say: Callable[[str], None]) -> None:
    """Print the rows of one scan."""
    key = watermark_key(Key(hashlib.sha256(f"benchmark {SEED}".encode()).digest()))
    marked = embed_watermark(volume, key)
    change = marked.hu.astype(int) - volume.hu
    rmse = np.sqrt(np.mean(change[change != 0] ** 2))
    plain, intact = check_watermark(volume, key), check_watermark(marked, key)
    say(
        f"{name}: change {rmse:.1f} HU RMS where there is any, at most {np.abs(change).max()} HU; the marked scan "
        f"stands out by {intact.sd:.0f} standard deviations, the unmarked one by {plain.sd:.1f}; "
        f"{intact.telling_share:.0%} of marked tissue can be checked; "
        f"regions listed in the untouched copy: {len(intact.regions)}"
    )
    lung = usable(volume, lung_positions(volume, 2 * count, SEED))
    untouched, targets = lung[count:], {"inject": lung[:count]}
    targets["remove"] = usable(volume, nodule_like_positions(volume, count))
    copies: dict[str, Callable[[CTVolume], CTVolume]] = {
        "as it is": lambda attacked: attacked,
        "adaptive": lambda attacked: adaptive(marked, attacked),
        "JPEG 2000": compressed,
    }
    for by in attackers:
        for action, places in targets.items():
            attacker = load_attacker(by, action)
            rows = {copy: Row() for copy in copies}
            for number, group in enumerate(apart(marked, places)):
                attacked = forged(marked, group, attacker)
                spacing = np.array(volume.spacing_kji)
                quiet = [
                    kji
                    for kji in untouched
                    if all(np.abs(np.subtract(kji, other) * spacing).max() >= APART_MM / 2 for other in group)
                ]
                for copy, change_of in copies.items():
                    # The other two copies of the first attacker alone: each costs as much as the first.
                    if copy == "as it is" or by == attackers[0]:
                        rows[copy].look(check_watermark(change_of(attacked), key), group, quiet if number == 0 else ())
            for copy, row in rows.items():
                if row.found:
                    say(f"| {name} | {action}, `{by}` | {copy} | " + " | ".join(row.cells()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", metavar="SCAN", nargs="+")
    parser.add_argument("--attackers", nargs="+", default=["default"])
    parser.add_argument("--targets", type=int, default=40, help="places of each action")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    head = ["scan", "forgery", "copy", "places", "found, %", "listed, %", "shortfall, sd: median [5th percentile]"]
    head += ["AUC", "alarms at untouched places, %"]
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    for scan in options.scans:
        try:
            volume = load_volume(scan)
        except MITSGANError as error:
            parser.exit(error.exit_code, f"{scan}: {error}\n")
        study(Path(scan).name.split(".")[0], volume, options.attackers, options.targets, lambda x: print(x, flush=True))


if __name__ == "__main__":
    main()
