"""Tell whether a signed scan is still as it was signed, and if not, which slices, tiles and headers were changed.

The manifest is taken from --manifest, from inside the DICOM files, or from beside INPUT (NAME.manifest.json). DICOM's
own signatures are checked where there are any. A study that was signed as a whole (mitsgan sign --exam, --study or
--pixels-only) is compared with its document or manifest, unless --series asks for one series. "Intact" means that
nothing changed since the scan was signed.
Give the signer's public key or certificate to learn whether it was this signer. Nothing here says that the scan was
genuine when it was signed.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from MITSGANLib.errors import InputError
from MITSGANLib.files.dicom.headers import has_dicom_preamble
from MITSGANLib.files.volume_files import write_file
from MITSGANLib.signature.contents import is_deidentified, read_contents_to_verify
from MITSGANLib.signature.dicom.digital_signature import ImageSignatures, verify_images
from MITSGANLib.signature.dicom.exam import find_exam_document, verify_exam
from MITSGANLib.signature.manifest import SignedManifest, read_manifest_file
from MITSGANLib.signature.study import StudyManifest, find_study_manifest, verify_study
from MITSGANLib.signature.verification import Verification, find_manifest, manifest_within, verify_scan

from ..archives.verdicts import CHANGED, VERDICTS, Trust, exam_code, study_code, verification_code, verify_collection
from . import shared, tree_options

_MOST_TILES = 8

DEIDENTIFIED = (
    "Its headers say that it was de-identified, which takes signatures and manifests away. What is left to verify: "
    "pixels and geometry, with a manifest that the site made by mitsgan sign --pixels-only; and the watermark, with "
    "mitsgan examine. Who it is of, and when it was acquired, nothing here can tell any more."
)
HEADERS_GONE = "The headers say that it was de-identified; --deidentified compares voxels and geometry alone."

_COLLECTIONS = """\
With --collection, INPUT is a tree of folders of any depth, and every CT scan in it is verified
against its own manifest or signatures. RESULTS is a folder for what is found:
mitsgan-collection.json is the summary, and .mitsgan records what is finished. To continue after a
stop, or to verify what is new, run the same command again. It verifies a scan anew only if a file
of it was touched, or with --overwrite, which trusts no record. A scan that is not signed is
listed as failed. A study that is signed as a whole, by an exam's document in it or by a manifest
beside its folder, is verified as a whole, and its scans need no signature of their own; --deidentified
does not apply to it. Exit code: the worst of all scans, in the order 7, 3, 8, 0.
"""

EXIT_CODES = """\
Exit code: 0 intact and signed by a key or certificate that you gave, 7 changed, 8 intact but
signed by an unknown key, 3 not signed, not readable, or the signature cannot be checked.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_options(parser, "input")
    tree_options.add_results(parser)
    shared.add_options(parser, "--series")
    parser.add_argument(
        "--manifest",
        metavar="PATH",
        type=Path,
        help="the manifest, if it lies elsewhere, or a signed DICOM folder that carries it, or the document of an exam",
    )
    tree_options.add_trust(parser)
    shared.add_options(parser, "--map", help="write a label map of what was changed: .nrrd, .nii.gz, .mha ...")
    shared.add_options(parser, "--overwrite", "--json")
    tree_options.add_collection(parser, _COLLECTIONS, makes_tree=False)


def run(options: argparse.Namespace) -> int:
    if tree_options.judges_collection(options, "series", "manifest", "map"):
        return tree_options.judge_collection(options, verify_collection, "findings", "difference")
    shared.check_map(options)
    trust = tree_options.trust(options)
    if study := _study_manifest(options):
        if options.map or options.deidentified:
            options.refuse(
                "this study is signed as a whole, so --map and --deidentified say nothing of it; for de-identified "
                "copies a manifest is made by mitsgan sign --pixels-only"
            )
        return _verify_study(options, study, trust)
    if document := _exam_document(options):
        if options.map or options.public_key or options.deidentified:
            options.refuse(
                "this exam is signed as a whole, so --map, --public-key and --deidentified say nothing of it; give "
                "--certificate, or --series to verify the manifest of one series"
            )
        return _verify_exam(options, document, trust)
    with shared.progress_bar("Reading", "slice") as progress:
        scan = read_contents_to_verify(options.input, options.series, progress)
    signatures = verify_images(scan.files, trust.certificates)
    signed = _manifest(options.manifest) if options.manifest else find_manifest(scan)
    if signed is None and not signatures.signed:
        raise InputError(
            f"{options.input} is not signed: it carries no manifest, and none lies beside it; name one with --manifest."
            + (f" {DEIDENTIFIED}" if is_deidentified(scan) else "")
        )
    if signed is None and options.map:
        raise InputError(f"{options.input} has no manifest, which a map needs; name one with --manifest.")
    verification = signed and verify_scan(scan, signed, headers=not options.deidentified)
    if verification and not options.deidentified and is_deidentified(scan):
        verification = dataclasses.replace(verification, notes=(*verification.notes, HEADERS_GONE))
    code = verification_code(verification, signatures, trust.signers)
    # Before anything is written: a full disk must not keep the verdict from anyone.
    shared.say_result(options, *_lines(verification, signatures, trust))
    if options.map:
        write_file(verification.map_volume(), options.map, overwrite=options.overwrite)
        shared.say_result(options, f"Wrote {options.map}")
    manifest = verification and {
        **verification.to_dict(),
        "known_signer": verification.manifest.fingerprint in trust.signers,
    }
    result = {"input": options.input, "verdict": VERDICTS[code], "manifest": manifest}
    shared.write_json(options.json, {**result, "dicom_signatures": signatures.to_dict(), "map": options.map})
    return code


def _exam_document(options: argparse.Namespace) -> Path | None:
    """The document of the whole study, if that is to be verified."""
    if options.series or not Path(options.input).is_dir():
        return None
    if options.manifest is None:
        return find_exam_document(options.input)
    is_dicom = options.manifest.is_file() and has_dicom_preamble(options.manifest)
    return find_exam_document(options.manifest) if is_dicom else None


def _study_manifest(options: argparse.Namespace) -> StudyManifest | None:
    """The manifest of the whole study, if that is to be verified."""
    path = Path(options.input)
    if options.series or not path.is_dir() or (options.manifest and not options.manifest.is_file()):
        return None
    return find_study_manifest(options.manifest or path)


def _verify_study(options: argparse.Namespace, manifest: StudyManifest, trust: Trust) -> int:
    with shared.progress_bar("Reading", "instance") as progress:
        verification = verify_study(options.input, manifest, progress)
    code = study_code(verification, trust.signers)
    verdict = "Intact" if verification.is_intact else "CHANGED since it was signed"
    title = f"{verdict}. The study was signed by {_signer(manifest, trust)}"
    study = {**verification.to_dict(), "known_signer": manifest.fingerprint in trust.signers}
    result = {"input": options.input, "verdict": VERDICTS[code], "study": study}
    shared.answer(options, result, title, *_summary(verification.summary()))
    return code


def _verify_exam(options: argparse.Namespace, document: Path, trust: Trust) -> int:
    with shared.progress_bar("Reading", "instance") as progress:
        verification = verify_exam(options.input, document, trust.certificates, progress)
    code = exam_code(verification)
    verdict = "CHANGED since it was signed" if code == CHANGED else VERDICTS[code].capitalize()
    title = f"{verdict}. The exam's document is {verification.document}"
    result = {"input": options.input, "verdict": VERDICTS[code], "exam": verification.to_dict()}
    shared.answer(options, result, title, *_summary(verification.summary()))
    return code


def _summary(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"  {line}" for line in lines)
    if any(line.endswith(" more") for line in lines):
        yield "  --json lists all"


def _manifest(path: Path) -> SignedManifest:
    """The manifest in a file, or within the DICOM files of a folder: what a copy in another format is compared with.

    :raises InputError: there is none.
    """
    if not path.is_dir():
        return read_manifest_file(path)
    signed = manifest_within(read_contents_to_verify(path))
    if signed is None:
        raise InputError(f"The DICOM files in {path} carry no manifest; name the file that mitsgan sign wrote.")
    return signed


def _signer(manifest: SignedManifest | StudyManifest, trust: Trust) -> str:
    """Who signed it, and when."""
    name = trust.signers.get(manifest.fingerprint, f"an unknown key {manifest.fingerprint}")
    return f"{name} on {manifest.created}"


def _lines(verification: Verification | None, signatures: ImageSignatures, trust: Trust) -> Iterator[str]:
    if verification:
        is_known, signer = verification.manifest.fingerprint in trust.signers, _signer(verification.manifest, trust)
        if verification.is_intact:
            yield f"Intact{', ' if is_known else ', but '}signed by {signer}."
        else:
            yield f"CHANGED since it was signed by {signer} (slices count from 0):"
        for one in verification.discrepancies:
            yield f"  {one.kind:<17} {one.text}"
        yield from _tile_lines(verification)
        for note in verification.notes:
            yield f"  note              {note}"
    else:
        yield "No manifest: each image was checked by itself, so missing images were not noticed."
    for line in signatures.summary():
        yield f"DICOM signatures: {line}"


def _tile_lines(verification: Verification) -> Iterator[str]:
    """Where in the slices: pixels from 0, both ends included."""
    boxes = list(verification.changed_boxes())
    for k, rows, columns in boxes[:_MOST_TILES]:
        place = f"rows {rows.start}-{rows.stop - 1}, columns {columns.start}-{columns.stop - 1}"
        yield f"  tile              slice {k}, {place}"
    if len(boxes) > _MOST_TILES:
        yield f"  tile              and {len(boxes) - _MOST_TILES} more; --json lists all, --map draws them"
