"""Simulate a CT-GAN attack: add or erase a nodule at one place.

The result is marked as a simulated attack in its header. It is written as DICOM for a drill alone.

With --drill OUTPUT is a DICOM folder for readers to look for the forgery in. Synthetic Data is YES, the descriptions
say SIMULATED, patient and UIDs are new. What was done, and where, is in OUTPUT.answers, sealed with the key; mitsgan
drill score compares a reader's answers with it. --action none makes a scan of the same looks without a forgery.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.files.atomic import atomic_file, refuse_existing_file
from MITSGANLib.files.dicom.drill import Drill
from MITSGANLib.files.dicom.write import check_series_output, write_series
from MITSGANLib.files.storage import check_output, is_dicom_output, save_volume
from MITSGANLib.keys.key_files import Key
from MITSGANLib.measure.drill import SUFFIX, AnswerSheet, Forgery, seal_sheet
from MITSGANLib.measure.metrics import compare
from MITSGANLib.runtime.devices import describe_device, resolve_device
from MITSGANLib.scan.regions import regions_at
from MITSGANLib.scan.targets import ACTIONS
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.weights import available_attackers

from . import key_options, shared

NO_ACTION = "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_options(parser, "input")
    parser.add_argument(
        "output", metavar="OUTPUT", help="a .nrrd, .nii, .nii.gz, .mha or .mhd file; DICOM with --drill"
    )
    shared.add_options(parser, "--series")
    parser.add_argument(
        "--action", choices=(*ACTIONS, NO_ACTION), required=True, help="add or erase a nodule; none with --drill"
    )
    shared.add_target(parser)
    names = ", ".join(available_attackers()) or "none installed"
    shared.add_options(parser, "--attacker", help=f"installed attacker ({names}) or a folder of one")
    parser.add_argument("--drill", action="store_true", help="write a DICOM series to practice on, and its answers")
    key_options.add_key(parser, "seal the answers of a drill with")
    shared.add_options(parser, "--device", "--overwrite", "--json")


def run(options: argparse.Namespace) -> None:
    # Imports torch, which takes seconds that --help and wrong usage need not wait for.
    from MITSGANLib.attack.attacker import check_target, load_attacker, simulate_attack

    has_target = any(point is not None for point in (options.voxel, options.lps, options.ras))
    if has_target == (options.action == NO_ACTION):
        options.refuse("name the place with --voxel, --lps or --ras; --action none has no place")
    key = key_options.key(options, is_new=True)
    if options.drill and key is None:
        options.refuse("--drill needs --key or a passphrase, which seals the answers")
    if not options.drill and (key is not None or options.action == NO_ACTION):
        options.refuse("--key, passphrases and --action none are for --drill")
    if is_dicom_output(options.output) and not options.drill:
        raise OutputError(
            "A simulated attack is never written as DICOM, save for a drill; name a file such as attacked.nrrd instead."
        )
    if options.drill and not is_dicom_output(options.output):
        raise OutputError("A drill is a DICOM series; name a folder for it.")
    attacker = None if options.action == NO_ACTION else load_attacker(options.attacker, options.action)
    device = resolve_device(options.device)
    volume = shared.read_scan(options.input, options.series)
    shared.note_warnings(volume)
    target = shared.target_voxel(options, volume)
    if target is not None:
        check_target(volume, target)
    if options.drill:
        if volume.provenance.is_simulated_attack:
            raise InputError("is a simulated attack already", path=options.input, hint="start from the original scan")
        check_series_output(volume, options.output, overwrite=options.overwrite, is_drill=True)
        refuse_existing_file(_sheet_path(options), options.overwrite)
    else:
        check_output(volume, options.output, overwrite=options.overwrite)
    attacked, result = volume, {"output": options.output, "action": options.action}
    if attacker is not None:
        shared.note(f"Attacking with {attacker.name} ({options.action}) on {describe_device(device)}")
        attacked = simulate_attack(volume, target, options.action, attacker=attacker, device=options.device)
        change = compare(volume, attacked, region=regions_at(volume, target).middle)
        result |= {
            "attacker": attacker.name,
            "attacker_sha256": attacker.digest,
            "target_kji": list(target),
            "target_lps_mm": [round(float(x), 3) for x in volume.voxel_to_lps(target)],
            "device": describe_device(device),
            "change": {
                "rmse_hu": round(change.rmse.value, 3),
                "maximum_hu": change.max_abs_difference.value,
                "region": "middle 20 mm of the attacked cube, which the network makes up",
            },
        }
    if options.drill:
        _write_drill(attacked, result, options, key)
        return
    save_volume(attacked, options.output, overwrite=options.overwrite)
    shared.answer(
        options,
        result,
        f"SIMULATED ATTACK ({options.action}) at slice {target[0]}, row {target[1]}, column {target[2]}: RMSE "
        f"{result['change']['rmse_hu']:.1f} HU in its middle 20 mm. Wrote {options.output}",
    )


def _sheet_path(options: argparse.Namespace) -> Path:
    output = Path(options.output).absolute()
    return output.with_name(output.name + SUFFIX)


def _write_drill(attacked: CTVolume, result: dict[str, Any], options: argparse.Namespace, key: Key) -> None:
    """Write the series, and the answers beside it. Nothing that is said of it tells where."""
    drill, sheet_path = Drill(), _sheet_path(options)
    forgeries = ()
    if options.action != NO_ACTION:
        place = tuple(result["target_lps_mm"]), tuple(result["target_kji"])
        forgeries = (Forgery(options.action, *place, result["attacker"], result["attacker_sha256"]),)
    geometry = attacked.spacing, attacked.origin, tuple(attacked.direction.ravel().tolist())
    sheet = AnswerSheet(drill.series_uid, sheet_path.name.removesuffix(sheet_path.suffix), *geometry, forgeries)
    with atomic_file(sheet_path, overwrite=options.overwrite) as temporary:
        temporary.write_bytes(seal_sheet(sheet, key))
        for warning in write_series(attacked, options.output, overwrite=options.overwrite, drill=drill):
            shared.note(f"warning: {warning}")
    result = {**result, "answers": str(sheet_path), "series_instance_uid": drill.series_uid}
    shared.answer(
        options, result, f"SIMULATED, for a drill. Wrote {options.output} and its sealed answers {sheet_path}"
    )
