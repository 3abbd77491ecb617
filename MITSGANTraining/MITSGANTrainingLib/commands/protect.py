"""Protect a scan: a bounded, seeded change that makes generative tampering fail more visibly.

The output is a new scan of the same geometry: a folder becomes a derived DICOM series, a file gets the format of its
suffix. It is no guarantee: the model's card names the attackers it was measured against.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from MITSGANLib.devices import describe_device, resolve_device
from MITSGANLib.models import available_protectors
from MITSGANLib.protector import load_protector, protect
from MITSGANLib.storage import check_output, load_volume, save_volume

from .. import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_input(parser)
    parser.add_argument("output", metavar="OUTPUT", help="a folder (DICOM) or a file named by its format's suffix")
    shared.add_series(parser)
    names = ", ".join(card.name for card in available_protectors()) or "none installed"
    parser.add_argument("--model", default="default", help=f"protector to use: {names} (default: the first)")
    parser.add_argument(
        "--strength-hu", type=float, metavar="HU", help="largest change anywhere (default: the model's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise that the generator shapes (default: 0)")
    shared.add_device(parser)
    shared.add_overwrite(parser)
    shared.add_json(parser)


def run(options: argparse.Namespace) -> None:
    protector = load_protector(options.model, strength_hu=options.strength_hu, seed=options.seed)
    device = resolve_device(options.device)
    with shared.progress_bar("Reading", "slice") as progress:
        volume = load_volume(options.input, series=options.series, progress=progress)
    shared.note_warnings(volume)
    check_output(volume, options.output, overwrite=options.overwrite)
    shared.note(f"Protecting {volume.shape[0]} slices with {protector.name} on {describe_device(device)}")
    started = time.monotonic()
    with shared.progress_bar("Protecting", "slice") as progress:
        protected = protect(volume, model=protector, device=options.device, progress=progress)
    seconds = time.monotonic() - started
    with shared.progress_bar("Writing", "slice") as progress:
        save_volume(protected, options.output, overwrite=options.overwrite, progress=progress)
    change = np.subtract(protected.hu, volume.hu, dtype=np.int32)
    result = {
        "output": options.output,
        "model": protector.name,
        "model_sha256": protector.digest,
        "seed": protector.seed,
        "budget": protector.budget.to_dict(),
        "device": describe_device(device),
        "seconds": round(seconds, 2),
        "warnings": [{"name": w.name, "text": w.text} for w in volume.provenance.warnings],
        "change": {
            "rmse_hu": round(float(np.sqrt(np.mean(np.square(change, dtype=np.float64)))), 3),
            "maximum_hu": int(np.abs(change).max()),
            "changed_voxels": int(np.count_nonzero(change)),
            "region": "whole volume",
        },
    }
    shared.write_json(options.json, result)
    if options.json != "-":
        shared.say(
            f"Protected {volume.shape[0]} slices in {seconds:.1f} s: RMSE {result['change']['rmse_hu']:.2f} HU, "
            f"largest change {result['change']['maximum_hu']} HU (whole volume). Wrote {options.output}"
        )
