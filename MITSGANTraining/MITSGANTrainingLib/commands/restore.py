"""Restore the original of a protected scan, or of a whole collection, bit for bit, with the key that sealed it.

DICOM becomes the original files again, with their own headers and UIDs, named in slice order. Files that were
compressed come back uncompressed. A .nrrd, .nii, .nii.gz, .mha or .mhd file becomes a file of the original values, type
and geometry; its seal is found beside it. With the wrong key, a changed scan, or no seal, nothing is written.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial

from MITSGANLib.seal.sealing import restore

from ..archives.restoration import restore_collection
from ..archives.trees import TreeConfig
from . import key_options, shared, tree_options

_COLLECTIONS = """\
With --collection, INPUT is a tree of folders of any depth, such as mitsgan protect --collection
writes, and OUTPUT becomes the same tree: every original has the path and name of its protected
image. A scan with another key, without a seal, or changed since is listed with the reason; the
others are restored.

Skipped, and listed: scans that are not protected, simulated attacks, unrelated files. With
--others copy they are copied unchanged. A simulated attack, a DICOMDIR, a seal and a manifest are
never copied.

To continue after a stop, run the same command again. It redoes a scan only if its content
changed, if its output is missing, or with --overwrite. OUTPUT must be new, empty, or from an
earlier run. Its file mitsgan-collection.json is the summary; its folder .mitsgan records what is
finished. Each process holds one scan. Dask workers must see both folders and the key file under
the same paths.

Exit code: 0 all protected scans are restored, 3 some could not be, 4 OUTPUT cannot be used or the
disk is too small, 130 stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_options(parser, "input", help=f"the protected scan: {shared.SCAN}")
    parser.add_argument("output", metavar="OUTPUT", help="a folder (DICOM) or a file named by its format's suffix")
    shared.add_options(parser, "--series")
    key_options.add_key(parser, "restore with", required=True)
    parser.add_argument("--seal", metavar="FILE", help="the seal of a file (default: INPUT.seal)")
    shared.add_options(parser, "--overwrite", "--json")
    tree_options.add_collection(parser, _COLLECTIONS)


def run(options: argparse.Namespace) -> int:
    if tree_options.is_collection(options, "series", "seal"):
        config = TreeConfig(**tree_options.tree_values(options, key_options.key(options)))
        return tree_options.run_collection(options, partial(restore_collection, config))
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
    files = shared.counted(restored.files, "file")
    text = f"Restored {files} exactly. SHA-256 {restored.sha256}. Wrote {options.output}"
    shared.answer(options, {"output": options.output, **dataclasses.asdict(restored)}, text)
    return 0
