"""Simulate a CT-GAN attack: add or erase a nodule at one place.

The result is marked as a simulated attack in its header and is never written as DICOM.
"""

from __future__ import annotations

import argparse

import numpy as np
from MITSGANLib.attack.installed import available_attackers
from MITSGANLib.errors import OutputError
from MITSGANLib.files.storage import check_output, is_dicom_output, load_volume, save_volume
from MITSGANLib.runtime.devices import describe_device, resolve_device
from MITSGANLib.scan.targets import ACTIONS

from .options import (
    add_device,
    add_input,
    add_json,
    add_overwrite,
    add_series,
    add_target,
    note,
    note_warnings,
    progress_bar,
    say,
    target_voxel,
    write_json,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input(parser)
    parser.add_argument("output", metavar="OUTPUT", help="a .nrrd, .nii, .nii.gz, .mha or .mhd file; DICOM is refused")
    add_series(parser)
    parser.add_argument("--action", choices=ACTIONS, required=True, help="add or erase a nodule")
    add_target(parser, required=True)
    names = ", ".join(available_attackers()) or "none installed"
    parser.add_argument(
        "--attacker",
        default="default",
        metavar="NAME_OR_FOLDER",
        help=f"installed attacker ({names}) or a folder of one",
    )
    add_device(parser)
    add_overwrite(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    # Imports torch, which takes seconds that --help and wrong usage need not wait for.
    from MITSGANLib.attack.attacker import check_target, load_attacker, simulate_attack, tampered_box

    if is_dicom_output(options.output):
        raise OutputError("A simulated attack is never written as DICOM; name a file such as attacked.nrrd instead.")
    attacker = load_attacker(options.attacker, options.action)
    device = resolve_device(options.device)
    with progress_bar("Reading", "slice") as progress:
        volume = load_volume(options.input, series=options.series, progress=progress)
    note_warnings(volume)
    target = target_voxel(options, volume)
    check_target(volume, target)
    check_output(volume, options.output, overwrite=options.overwrite)
    note(f"Attacking with {attacker.name} ({options.action}) on {describe_device(device)}")
    attacked = simulate_attack(volume, target, options.action, attacker=attacker, device=options.device)
    save_volume(attacked, options.output, overwrite=options.overwrite)
    box = tampered_box(volume, target)
    change = np.subtract(attacked.hu[box], volume.hu[box], dtype=np.float64)
    result = {
        "output": options.output,
        "action": options.action,
        "attacker": attacker.name,
        "attacker_sha256": attacker.digest,
        "target_kji": list(target),
        "target_lps_mm": [round(float(x), 3) for x in volume.voxel_to_lps(target)],
        "device": describe_device(device),
        "change": {
            "rmse_hu": round(float(np.sqrt(np.mean(change**2))), 3),
            "maximum_hu": round(float(np.abs(change).max()), 1),
            "region": "32 mm cube around the target",
        },
    }
    write_json(options.json, result)
    if options.json != "-":
        say(
            f"SIMULATED ATTACK ({options.action}) at slice {target[0]}, row {target[1]}, column {target[2]}: RMSE "
            f"{result['change']['rmse_hu']:.1f} HU in the 32 mm cube. Wrote {options.output}"
        )
