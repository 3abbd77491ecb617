"""Protect a scan, or a whole collection: a bounded, seeded change that makes generative tampering fail more visibly.

The output is a new scan of the same geometry: a folder becomes a derived DICOM series, a file gets the format of its
suffix. With --collection, a tree of folders becomes the same tree with every CT in it protected. It is no guarantee:
the model's card names the attackers it was measured against.

With a key or a passphrase the output is sealed: "mitsgan restore" gives back the original, bit for bit, to whoever has
the key. In DICOM the seal is in a private block of the files, beside other files it is OUTPUT.seal. It holds the
original's headers, too, encrypted. Who loses the key loses the way back.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from MITSGANLib.devices import describe_device, resolve_device
from MITSGANLib.errors import InputError
from MITSGANLib.integrity import Signers, load_signing_key, signed_output
from MITSGANLib.models import available_protectors
from MITSGANLib.protector import load_protector, protect
from MITSGANLib.seal import Key, check_sealed_output, save_sealed
from MITSGANLib.storage import check_output, load_volume, save_volume
from MITSGANLib.volume import CTVolume

from .. import key_options
from .. import options as shared
from ..collection import CollectionConfig, Report, measure_change, protect_collection
from ..inventory import SUMMARY

_LISTED = 50

_COLLECTIONS = """\
With --collection, INPUT is a tree of folders of any depth, and OUTPUT becomes the same tree:
every protected DICOM image, NRRD, NIfTI or MetaImage file has the path and name of its original.

DICOM: each CT series becomes one new derived series in the same study, each image with a
reference to its original. Images of one Series Instance UID are one series even where they lie
in several folders. Other objects are not rewritten: a report, segmentation, plan or PET that
refers to the original images still refers to them.

Skipped, and listed with the reason: DICOM that is no CT, localizers, screen captures, label
maps, scans that are protected already, simulated attacks, links to folders, unrelated files.
With --others copy they are copied unchanged, whatever is in them (a .zip is not opened), but
never a simulated attack, a DICOMDIR, or CT that could not be protected.

The same command continues what was stopped, and brings OUTPUT up to date: a scan is done again
only where its content, the model's weights, the strength, the seed or the key changed, its
output is missing, or --overwrite is given (another passphrase alone changes nothing). OUTPUT
must be new, empty, or from an earlier run. Its file mitsgan-collection.json is the summary; the
folder .mitsgan says what was finished.

Each process holds one scan: about 0.5 GB and 11 bytes a voxel (3 GB for 1000 slices of
512 x 512), twice as much with a key. Processes share the cores out among them. They share one
GPU, too, each with a copy of the network, so that some read and write while others compute;
where its memory is too small for all, scans are listed as failed. Dask workers must see both
folders, and the key file, under the same paths, and should have one thread each.

Exit code: 0 where all CT is protected, 3 where some CT could not be (each is listed with its
reason), 4 where OUTPUT cannot be used or the disk is too small for all of it, 130 stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(refuse=parser.error)
    # Paragraphs stay paragraphs.
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    shared.add_input(parser)
    parser.add_argument("output", metavar="OUTPUT", help="a folder (DICOM) or a file named by its format's suffix")
    shared.add_series(parser)
    names = ", ".join(card.name for card in available_protectors()) or "none installed"
    parser.add_argument(
        "--model", default="default", help=f"protector: {names} (default: the first), or a .safetensors file"
    )
    parser.add_argument(
        "--strength-hu", type=float, metavar="HU", help="largest change anywhere (default: the model's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise that the generator shapes (default: 0)")
    key_options.add_key(parser, "seal the output, so that it can be restored, with")
    parser.add_argument("--sign", metavar="FILE", type=Path, help="sign the output with this key (see mitsgan sign)")
    parser.add_argument("--sign-passphrase-env", metavar="NAME", help="environment variable with its passphrase")
    shared.add_device(parser)
    shared.add_overwrite(parser)
    shared.add_json(parser)
    group = parser.add_argument_group("collections", _COLLECTIONS)
    group.add_argument("--collection", action="store_true", help="INPUT is a tree of folders; OUTPUT is the same tree")
    group.add_argument("--others", choices=("skip", "copy"), help="what becomes of what is no CT (default: skip)")
    workers = group.add_mutually_exclusive_group()
    workers.add_argument("--processes", type=_count, metavar="N", help="scans at a time (default: 1)")
    workers.add_argument(
        "--scheduler", metavar="ADDRESS", help="spread over the workers of this Dask scheduler, tcp://HOST:PORT"
    )


def run(options: argparse.Namespace) -> int:
    if options.collection:
        return _protect_collection(options)
    for name in ("others", "processes", "scheduler"):
        if getattr(options, name) is not None:
            options.refuse(f"--{name} is for collections; add --collection, or leave it out")
    _protect_scan(options)
    return 0


def _protect_scan(options: argparse.Namespace) -> None:
    protector = load_protector(options.model, strength_hu=options.strength_hu, seed=options.seed)
    device = resolve_device(options.device)
    with shared.progress_bar("Reading", "slice") as progress:
        volume = load_volume(options.input, series=options.series, progress=progress)
    shared.note_warnings(volume)
    key = key_options.key(options, is_new=True)
    signers = _signers(options)
    (check_sealed_output if key else check_output)(volume, options.output, overwrite=options.overwrite)
    shared.note(f"Protecting {volume.shape[0]} slices with {protector.name} on {describe_device(device)}")
    started = time.monotonic()
    with shared.progress_bar("Protecting", "slice") as progress:
        protected = protect(volume, model=protector, device=options.device, progress=progress)
    seconds = time.monotonic() - started
    if signers is None:
        _save(protected, volume, options.output, key, overwrite=options.overwrite)
    else:
        with signed_output(options.output, signers, overwrite=options.overwrite) as unsigned:
            _save(protected, volume, unsigned, key)
    change = measure_change(volume, protected)
    result = {
        "output": options.output,
        "model": protector.name,
        "model_sha256": protector.digest,
        "seed": protector.seed,
        "budget": protector.budget.to_dict(),
        "device": describe_device(device),
        "seconds": round(seconds, 2),
        "warnings": [{"name": w.name, "text": w.text} for w in volume.provenance.warnings],
        "change": change.to_dict(),
        "sealed": key is not None,
        "signed": signers is not None,
    }
    shared.write_json(options.json, result)
    if options.json != "-":
        shared.say(
            f"Protected {volume.shape[0]} slices in {seconds:.1f} s: RMSE {change.rmse_hu:.2f} HU, "
            f"largest change {change.maximum_hu} HU (whole volume). "
            f"Wrote {options.output}{', sealed' if key else ''}{', signed' if signers else ''}"
        )


def _signers(options: argparse.Namespace) -> Signers | None:
    if options.sign is None:
        return None
    return Signers(load_signing_key(options.sign, key_options.passphrase_from(options.sign_passphrase_env)))


def _save(
    protected: CTVolume, original: CTVolume, path: str | Path, key: Key | None, *, overwrite: bool = False
) -> None:
    with shared.progress_bar("Writing", "slice") as progress:
        if key is None:
            save_volume(protected, path, overwrite=overwrite, progress=progress)
        else:
            save_sealed(protected, original, path, key, overwrite=overwrite, progress=progress)


def _protect_collection(options: argparse.Namespace) -> int:
    if options.series is not None:
        options.refuse("--series chooses one scan and --collection takes all; leave one of them out")
    if options.sign is not None:
        options.refuse("--sign signs one scan; leave it out, and run mitsgan sign on the scans of the protected tree")
    key = key_options.key(options, is_new=True)
    config = CollectionConfig(
        tree=Path(options.input),
        out=Path(options.output),
        model=options.model,
        strength_hu=options.strength_hu,
        seed=options.seed,
        device=options.device,
        others=options.others or "skip",
        redo=options.overwrite,
        processes=options.processes or 1,
        scheduler=options.scheduler,
        key=Path(options.key) if options.key else key,
    )
    try:
        report = protect_collection(config, stage=shared.progress_bar)
    except KeyboardInterrupt:
        shared.note("Finished scans are kept; the same command continues with the rest.")
        raise
    shared.write_json(options.json, {"input": options.input, "output": options.output, **report.to_dict()})
    if options.json != "-":
        _say(report, options.output)
    return InputError.exit_code if report.failed else 0


def _say(report: Report, output: str) -> None:
    earlier = sum(earlier for _, earlier in report.protected)
    by_earlier_run = f", {earlier} of them by an earlier run" if earlier else ""
    shared.say(
        f"Protected {_counted(len(report.protected), 'scan')} ({_counted(report.slices, 'slice')}){by_earlier_run}"
    )
    if report.protected:
        rmse, largest = report.change.rmse_hu, report.change.maximum_hu
        shared.say(f"   change   RMSE {rmse:.2f} HU, largest {largest} HU (all voxels of all scans)")
    for reason, files in report.skipped_by_reason.most_common():
        shared.say(f"   skipped  {_counted(files, 'file')}: {_printable(reason)}")
    copied = sum(len(other.files) for other, was_copied in report.skipped if was_copied)
    if copied:
        shared.say(f"   copied   {copied} of the skipped files, unchanged")
    for source in report.left_over[:_LISTED]:
        shared.say(f"   left     {_printable(source)}: protected earlier, now not in the tree or not usable")
    for failure in sorted(report.failed, key=lambda one: one.source)[:_LISTED]:
        shared.say(f"   FAILED   {_printable(failure.source)}: {_printable(failure.reason)}")
    if len(report.failed) > _LISTED:
        shared.say(f"   FAILED   {len(report.failed) - _LISTED} more; see the summary")
    shared.say(f"   time     {report.seconds:.1f} s")
    shared.say(f"Wrote {output}; the summary is {Path(output) / SUMMARY}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _printable(text: str) -> str:
    """File names are foreign: those that are no text, or that would steer a terminal, show question marks."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)
