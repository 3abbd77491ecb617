"""Protect a scan, or a whole collection: add a small change that is meant to disturb generative AI, and a watermark.

The output is a new scan of the same geometry. A folder becomes a derived DICOM series. A file gets the format of its
suffix. With --collection, a tree of folders becomes the same tree with every CT in it protected. Protection is no
guarantee: the model's card names the attackers that it was measured against.

The presets default and strong leave an open watermark within the scan's noise. "mitsgan check" then shows places that
were painted since, in any file format. Everybody can check it, and whoever knows of it can forge it. With --watermark
the watermark has a key of your own.

Other objects of a DICOM folder stay behind. Structure sets, doses, segmentations and reports still refer to the
original images. --others copy takes them along unchanged.

With a key or a passphrase the output is sealed: whoever has the key gets the original back with "mitsgan restore", bit
for bit. DICOM files carry the seal in a private block; beside other files it is OUTPUT.seal. The seal holds the
original's headers, encrypted. Lose the key, and nobody can restore the original.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from MITSGANLib.errors import InputError
from MITSGANLib.files.atomic import atomic_folder
from MITSGANLib.files.dicom.references import LeftBehind, left_behind
from MITSGANLib.files.storage import is_dicom_output, load_with_surroundings
from MITSGANLib.keys.signing_keys import load_signing_key
from MITSGANLib.protection.presets import NO_MODEL, is_blocker
from MITSGANLib.protection.protector import Protector, protect
from MITSGANLib.runtime.devices import load_torch
from MITSGANLib.runtime.memory import give_freed_memory_back
from MITSGANLib.save_protected import Proofs, check_protected_output, save_protected
from MITSGANLib.signature.signing import Signers

from ..archives.collection import CollectionConfig, ProtectionReport, load_settings, measure_change, protect_collection
from ..archives.inventory import take_stock
from . import key_options, shared, tree_options

_COLLECTIONS = """\
With --collection, INPUT is a tree of folders of any depth, and OUTPUT becomes the same tree:
every protected DICOM image, NRRD, NIfTI or MetaImage file has the path and name of its original.

DICOM: each CT series becomes one new derived series in the same study. Each image refers to its
original. Images with the same Series Instance UID are one series, even in several folders. Other
objects are not rewritten: a report, segmentation, plan or PET still refers to the original images.

Skipped, and listed with the reason: DICOM other than CT, localizers, screen captures, label
maps, protected scans, simulated attacks, links to folders, unrelated files. With --others copy
they are copied unchanged, whatever is in them (a .zip is not opened). A simulated attack, a
DICOMDIR, and CT that could not be protected are never copied.

To continue after a stop, or to bring OUTPUT up to date, run the same command again. It redoes a
scan only if its content, the model's weights, the strength, the seed or a key changed, if its
output is missing, or with --overwrite. Another passphrase alone changes nothing. OUTPUT must be
new, empty, or from an earlier run. Its file mitsgan-collection.json is the summary; its folder
.mitsgan records what is finished. With --key each scan is sealed, and mitsgan restore
--collection gives back the tree. With --sign each scan is signed.

Each process holds one scan: about 0.5 GB and 6 bytes a voxel (2 GB for 1000 slices of
512 x 512), with a key too. Processes divide the cores among them. They also share one GPU, each
with a copy of the network: some read and write while others compute. If its memory is too small
for all of them, scans are listed as failed. Dask workers must see both folders and the key files
under the same paths, and should have one thread each.

Exit code: 0 all CT is protected, 3 some CT could not be (each is listed with its reason), 4
OUTPUT cannot be used or the disk is too small, 130 stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_options(parser, "input")
    parser.add_argument("output", metavar="OUTPUT", help="a folder (DICOM) or a file named by its format's suffix")
    shared.add_options(parser, "--series")
    shared.add_protector(parser)
    key_options.add_key(parser, "seal the output, so that it can be restored, with")
    key_options.add_signing_key(parser)
    shared.add_options(parser, "--minutes", "--keep-search", "--device", "--overwrite", "--json")
    tree_options.add_collection(parser, _COLLECTIONS)


def run(options: argparse.Namespace) -> int:
    signing = key_options.signing_values(options)
    shared.check_search(options)
    if tree_options.is_collection(options, "series", others=True):
        return _protect_collection(options, signing)
    if options.others == "copy" and not (Path(options.input).is_dir() and is_dicom_output(options.output)):
        options.refuse("--others copy takes along what lies in a DICOM folder; INPUT and OUTPUT must be folders")
    _protect_scan(options, signing)
    return 0


def _warn_of_blocking(options: argparse.Namespace, has_key: bool) -> None:
    """One line where the model is no protection but misleads software on purpose."""
    if is_blocker(options.model):
        advice = "" if has_key else "; use --key, so that the original can be restored"
        shared.note(f"warning: {options.model} is made to mislead diagnosis software, authorized or not{advice}")


def _load_protector(options: argparse.Namespace) -> tuple[Protector, dict[str, Any], str]:
    """The protector, its settings, and where it runs, in words."""
    is_blocker(options.model)  # which refuses a name that is unknown, at once
    if options.model != NO_MODEL:
        load_torch()
    protector, settings = load_settings(options.model, options.strength_hu, options.seed, options.watermark)
    protector = shared.searching(options, protector)
    return protector, settings, protector.place(options.device)


def _protect_scan(options: argparse.Namespace, signing: dict[str, Any]) -> None:
    with ThreadPoolExecutor(1, "MITSGAN protector") as pool:
        loading = pool.submit(_load_protector, options)
        with shared.progress_bar("Reading", "slice") as progress:

            def report(done: int, total: int) -> None:
                if loading.done():
                    loading.result()  # of a protector that cannot be had the user hears at once
                progress(done, total)

            volume, found = load_with_surroundings(options.input, series=options.series, progress=report)
        protector, settings, device = loading.result()
    shared.note_warnings(volume, protecting=True)
    beside = left_behind(found, volume.provenance.series_instance_uid) if found else ()
    del found
    key = key_options.key(options, is_new=True)
    _warn_of_blocking(options, key is not None)
    signers = None
    if options.sign:
        signers = Signers(load_signing_key(signing["signing_key"], signing["signing_passphrase"]))
        key_options.warn_of_readers(options.sign)
    proofs = Proofs(key, signers)
    check_protected_output(volume, options.output, proofs, overwrite=options.overwrite)
    shared.note(f"Protecting {volume.shape[0]} slices with {protector.title} on {device}")
    started = time.monotonic()
    with shared.progress_bar("Protecting", "slice") as progress:
        protected = protect(volume, model=protector, device=options.device, progress=progress)
    seconds = time.monotonic() - started
    change, warnings = measure_change(volume, protected), volume.provenance.warnings
    # Writing needs the original for the seal of a file alone; of a long scan, its memory is better used otherwise.
    original = volume if key and not is_dicom_output(options.output) else None
    del volume
    give_freed_memory_back()
    watermark = protector.watermark and protector.watermark.key
    with ExitStack() as stack:
        saving = {"watermark": watermark, "progress": stack.enter_context(shared.progress_bar("Writing", "slice"))}
        if options.others == "copy":
            folder = stack.enter_context(atomic_folder(options.output, overwrite=options.overwrite))
            save_protected(protected, folder / "series", proofs, original, **saving)
            copied = _copy_others(Path(options.input), folder)
        else:
            save_protected(protected, options.output, proofs, original, overwrite=options.overwrite, **saving)
            copied = 0
    result = {
        "output": options.output,
        "model": protector.name,
        **settings,
        "device": device,
        "seconds": round(seconds, 2),
        "warnings": [{"name": w.name, "text": w.text} for w in warnings],
        "change": change.to_dict(),
        "sealed": key is not None,
        "signed": proofs.signers is not None,
        "left_behind": [{"modality": one.modality, "files": len(one.files), "refers": one.refers} for one in beside],
        "copied_files": copied,
    }
    shared.answer(
        options,
        result,
        f"Protected {protected.shape[0]} slices in {seconds:.1f} s: RMSE {change.rmse_hu:.2f} HU, "
        f"largest change {change.maximum_hu} HU (whole volume). "
        f"Wrote {options.output}{', sealed' if key else ''}{', signed' if proofs.signers else ''}",
        *_lines_beside(beside, copied),
    )


def _copy_others(tree: Path, folder: Path) -> int:
    """Move a series from its own folder into ``folder``, and copy what lies beside its original there; how many files.

    :raises InputError: a file cannot be read.
    """
    series = folder / "series"
    for file in sorted(series.iterdir()):
        file.rename(folder / file.name)
    series.rmdir()
    with shared.progress_bar("Scanning", "file") as progress:
        others = [file for other in take_stock(tree, progress).others if other.may_copy for file in other.files]
    for name in others:
        target = folder / name
        while target.exists():  # the series has names of its own
            target = target.with_name(f"other-{target.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy2(tree / name, target)
        except PermissionError as error:
            raise InputError(f"cannot be read ({error.strerror})", path=tree / name) from error
    return len(others)


def _lines_beside(beside: Sequence[LeftBehind], copied: int) -> Iterator[str]:
    """Lines about the rest of the folder, and what of it still refers to the original."""
    kinds = {
        "refer to the original images, not to the protected ones": [one for one in beside if one.refers],
        "of other series, not protected; --collection takes all series": [
            one for one in beside if one.modality == "CT"
        ],
        "not rewritten": [one for one in beside if not one.refers and one.modality != "CT"],
    }
    for what, found in kinds.items():
        if found:
            yield f"   beside   {', '.join(f'{len(one.files)} {one.modality}' for one in found)}: {what}"
    if copied:
        yield f"   copied   {shared.counted(copied, 'other file')}, unchanged"
    elif any(one.modality != "CT" for one in beside):
        yield "   left behind; --others copy takes along what is no CT"


def _protect_collection(options: argparse.Namespace, signing: dict[str, Any]) -> int:
    key = key_options.key(options, is_new=True)
    _warn_of_blocking(options, key is not None)
    config = CollectionConfig(
        **shared.given(options, CollectionConfig) | tree_options.tree_values(options, key) | signing
    )

    def words(report: ProtectionReport) -> tuple[str, list[str]]:
        rmse, largest = report.change.rmse_hu, report.change.maximum_hu
        change = f"change   RMSE {rmse or 0:.2f} HU, largest {largest} HU (all voxels of all scans)"
        return shared.counted(report.amount, "slice"), [change] if report.finished else []

    return tree_options.run_collection(options, partial(protect_collection, config), words)
