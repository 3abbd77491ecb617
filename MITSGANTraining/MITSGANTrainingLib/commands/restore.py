"""Restore the original of a protected scan, bit for bit, with the key it was sealed with.

DICOM becomes the original files again, with their own headers and UIDs (uncompressed, if they were compressed), named
in slice order. A .nrrd, .nii, .nii.gz, .mha or .mhd file becomes a file of the original values, type and geometry; its
seal is found beside it. With the wrong key, a scan that was changed, or no seal, nothing is written.
"""

from __future__ import annotations

import argparse
import dataclasses

from MITSGANLib.seal import restore

from .. import key_options
from .. import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_input(parser, text="the protected scan")
    parser.add_argument("output", metavar="OUTPUT", help="a folder (DICOM) or a file named by its format's suffix")
    shared.add_series(parser)
    key_options.add_key(parser, "restore with", required=True)
    parser.add_argument("--seal", metavar="FILE", help="the seal of a file (default: INPUT.seal)")
    shared.add_overwrite(parser)
    shared.add_json(parser)


def run(options: argparse.Namespace) -> None:
    key = key_options.key(options)
    with shared.progress_bar("Reading", "file") as progress:
        restored = restore(
            options.input,
            options.output,
            key,
            series=options.series,
            seal=options.seal,
            overwrite=options.overwrite,
            progress=progress,
        )
    for warning in restored.warnings:
        shared.note(f"warning: {warning}")
    shared.write_json(options.json, {"output": options.output, **dataclasses.asdict(restored)})
    if options.json != "-":
        files = "1 file" if restored.files == 1 else f"{restored.files} files"
        shared.say(f"Restored {files} exactly. SHA-256 {restored.sha256}. Wrote {options.output}")
