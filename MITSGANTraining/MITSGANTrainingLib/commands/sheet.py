"""Draw a sheet of simulated forgeries on untouched scans, to judge on sight how believable an attacker is.

Places are seeded: random lung voxels to inject at; the most nodule-like structures, or places from a file, to remove.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from MITSGANLib.files.atomic import atomic_file, refuse_existing_file
from MITSGANLib.scan.targets import ACTIONS, choose_targets
from MITSGANLib.weights import DEFAULT_ATTACKER, MODELS_FOLDER, actions_of

from ..evaluation.targets import read_targets
from ..preparation.discovery import file_stem
from . import shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the sheet, a .png file")
    shared.add_options(parser, "scans")
    parser.add_argument("--attackers", nargs="+", metavar="NAME", default=["default"], help="installed, or folders")
    parser.add_argument(
        "--per-action", type=shared.count, default=4, metavar="N", help="places of each scan and action (default: 4)"
    )
    parser.add_argument("--targets", metavar="FILE", help="places to attack, as for mitsgan evaluate")
    parser.add_argument("--seed", type=int, default=0, help="seed of the places (default: 0)")
    shared.add_options(parser, "--device", "--overwrite")


def run(options: argparse.Namespace) -> None:
    from MITSGANLib.attack.attacker import load_attacker

    from ..evaluation.sheet import draw_sheet, forge

    output = Path(options.output)
    refuse_existing_file(output, options.overwrite)
    attackers = []
    for name in options.attackers:
        installed = MODELS_FOLDER / "attackers" / (DEFAULT_ATTACKER if name == "default" else name)
        actions = actions_of(installed if installed.is_dir() else Path(name))
        # One without files is for load_attacker to refuse, which says what is there.
        attackers.append((name, [load_attacker(name, action) for action in actions or ACTIONS]))
    given = read_targets(options.targets, options.scans) if options.targets else {}
    rows: dict[tuple[str, str], list] = {}
    for path in options.scans:
        scan = shared.read_scan(path)
        if path in given:
            targets = [place.resolve(scan) for place in given[path]]
        else:
            targets = choose_targets(scan, options.per_action, options.seed)
        for name, pair in attackers:
            with shared.progress_bar(f"Attacks by {name}", "place") as progress:
                able = [target for target in targets if target.action in {one.action for one in pair}]
                done = forge(scan, file_stem(Path(path).name), able, pair, device=options.device, progress=progress)
            for forgery in done:
                rows.setdefault((pair[0].name, forgery.action), []).append(forgery)
    picture = draw_sheet(
        [(f"{attacker}: {action}", forgeries) for (attacker, action), forgeries in sorted(rows.items())],
        "Forgeries on untouched scans",
    )
    with atomic_file(output, overwrite=options.overwrite) as temporary:
        temporary.write_bytes(picture)
    shared.say(f"wrote {output}")
