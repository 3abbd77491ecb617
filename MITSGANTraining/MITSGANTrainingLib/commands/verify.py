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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.files.atomic import refuse_existing_file
from MITSGANLib.files.dicom.headers import has_dicom_preamble
from MITSGANLib.files.storage import is_dicom_output
from MITSGANLib.files.volume_files import refuse_source, write_file
from MITSGANLib.keys.signing_keys import fingerprint, load_public_key, raw_public_key
from MITSGANLib.signature.contents import is_deidentified, read_contents_to_verify
from MITSGANLib.signature.dicom.digital_signature import ImageSignatures, load_certificates, verify_images
from MITSGANLib.signature.dicom.exam import ExamVerification, find_exam_document, verify_exam
from MITSGANLib.signature.manifest import SignedManifest, read_manifest_file
from MITSGANLib.signature.study import StudyManifest, find_study_manifest, verify_study
from MITSGANLib.signature.verification import Verification, find_manifest, manifest_within, verify_scan

from ..archives.verdicts import (
    CHANGED,
    VERDICTS,
    VerdictConfig,
    VerificationReport,
    exam_code,
    study_code,
    verification_code,
    verify_collection,
)
from . import tree_options
from .options import add_input, add_json, add_overwrite, add_series, progress_bar, say, write_json

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

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

_EXIT_CODES = """\
Exit code: 0 intact and signed by a key or certificate that you gave, 7 changed, 8 intact but
signed by an unknown key, 3 not signed, not readable, or the signature cannot be checked.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXIT_CODES
    # Paragraphs stay paragraphs.
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_input(parser)
    parser.add_argument("output", metavar="RESULTS", nargs="?", help="with --collection: a folder for the results")
    add_series(parser)
    parser.add_argument(
        "--manifest",
        metavar="PATH",
        type=Path,
        help="the manifest, if it lies elsewhere, or a signed DICOM folder that carries it, or the document of an exam",
    )
    parser.add_argument(
        "--public-key", metavar="FILE", type=Path, action="append", help="public key of a signer you trust; repeatable"
    )
    parser.add_argument(
        "--certificate",
        metavar="FILE",
        type=Path,
        action="append",
        help="X.509 certificates (PEM) of signers or authorities you trust, for DICOM's own signatures; repeatable",
    )
    parser.add_argument(
        "--deidentified", action="store_true", help="do not compare identifying headers: they were changed on purpose"
    )
    parser.add_argument("--map", metavar="FILE", help="write a label map of what was changed: .nrrd, .nii.gz, .mha ...")
    add_overwrite(parser)
    add_json(parser)
    tree_options.add_collection(parser, _COLLECTIONS, makes_tree=False)


def run(options: argparse.Namespace) -> int:
    if tree_options.is_for_results(options, "series", "manifest", "map"):
        config = VerdictConfig(**tree_options.tree_values(options), **tree_options.trust_values(options))
        return tree_options.run_collection(options, lambda *to: verify_collection(config, *to), _words)
    if options.map:
        if is_dicom_output(options.map):
            raise OutputError(f"The map is a label map, not DICOM; name a file such as map.nrrd, not {options.map}.")
        refuse_source(Path(options.map), options.input)
        refuse_existing_file(Path(options.map), options.overwrite)
    known = {fingerprint(raw_public_key(load_public_key(file))): file for file in options.public_key or []}
    trusted = [one for file in options.certificate or [] for one in load_certificates(file)]
    if study := _study_manifest(options):
        if options.map or options.deidentified:
            options.refuse(
                "this study is signed as a whole, so --map and --deidentified say nothing of it; for de-identified "
                "copies a manifest is made by mitsgan sign --pixels-only"
            )
        return _verify_study(options, study, known)
    if document := _exam_document(options):
        if options.map or options.public_key or options.deidentified:
            options.refuse(
                "this exam is signed as a whole, so --map, --public-key and --deidentified say nothing of it; give "
                "--certificate, or --series to verify the manifest of one series"
            )
        return _verify_exam(options, document, trusted)
    with progress_bar("Reading", "slice") as progress:
        scan = read_contents_to_verify(options.input, options.series, progress)
    signatures = verify_images(scan.files, trusted)
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
    code = verification_code(verification, signatures, known)
    if options.json != "-":
        # Before anything is written: a full disk must not keep the verdict from anyone.
        _say(verification, signatures, known)
    if options.map:
        write_file(verification.map_volume(), options.map, overwrite=options.overwrite)
        if options.json != "-":
            say(f"Wrote {options.map}")
    write_json(options.json, _result(options, code, verification, signatures, known))
    return code


def _words(report: VerificationReport) -> tuple[str, list[str]]:
    lines = [
        tree_options.verdict_line(record, len(record.result.get("findings", ())), "difference")
        for record in report.worst()
    ]
    return tree_options.verdict_counts(report), lines


def _exam_document(options: argparse.Namespace) -> Path | None:
    """The document that signs the whole study, where that is what is to be verified."""
    if options.series or not Path(options.input).is_dir():
        return None
    if options.manifest is None:
        return find_exam_document(options.input)
    is_dicom = options.manifest.is_file() and has_dicom_preamble(options.manifest)
    return find_exam_document(options.manifest) if is_dicom else None


def _study_manifest(options: argparse.Namespace) -> StudyManifest | None:
    """The manifest of the whole study, where that is what is to be verified."""
    path = Path(options.input)
    if options.series or not path.is_dir() or (options.manifest and not options.manifest.is_file()):
        return None
    return find_study_manifest(options.manifest or path)


def _verify_study(options: argparse.Namespace, manifest: StudyManifest, known: dict[str, Path]) -> int:
    with progress_bar("Reading", "instance") as progress:
        verification = verify_study(options.input, manifest, progress)
    code, is_known = study_code(verification, known), manifest.fingerprint in known
    if options.json != "-":
        signer = str(known[manifest.fingerprint]) if is_known else f"an unknown key {manifest.fingerprint}"
        verdict = "Intact" if verification.is_intact else "CHANGED since it was signed"
        say(f"{verdict}. The study was signed by {signer} on {manifest.created}")
        for line in verification.summary():
            say(f"  {line}")
    result = {**verification.to_dict(), "known_signer": is_known}
    write_json(options.json, {"input": options.input, "verdict": VERDICTS[code], "study": result})
    return code


def _verify_exam(options: argparse.Namespace, document: Path, trusted: list[Certificate]) -> int:
    with progress_bar("Reading", "instance") as progress:
        verification = verify_exam(options.input, document, trusted, progress)
    code = exam_code(verification)
    if options.json != "-":
        _say_exam(verification, code)
    result = {"input": options.input, "verdict": VERDICTS[code], "exam": verification.to_dict()}
    write_json(options.json, result)
    return code


def _say_exam(verification: ExamVerification, code: int) -> None:
    verdict = "CHANGED since it was signed" if code == CHANGED else VERDICTS[code].capitalize()
    say(f"{verdict}. The exam's document is {verification.document}")
    for line in verification.summary():
        say(f"  {line}")


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


def _result(
    options: argparse.Namespace,
    code: int,
    verification: Verification | None,
    signatures: ImageSignatures,
    known: dict[str, Path],
) -> dict[str, Any]:
    return {
        "input": options.input,
        "verdict": VERDICTS[code],
        "manifest": verification
        and {**verification.to_dict(), "known_signer": verification.manifest.fingerprint in known},
        "dicom_signatures": signatures.to_dict(),
        "map": options.map,
    }


def _say(verification: Verification | None, signatures: ImageSignatures, known: dict[str, Path]) -> None:
    if verification:
        manifest = verification.manifest
        if manifest.fingerprint in known:
            signer = f"signed by {known[manifest.fingerprint]} on {manifest.created}"
        else:
            signer = f"signed by an unknown key {manifest.fingerprint} on {manifest.created}"
        if verification.is_intact:
            say(f"Intact{', ' if manifest.fingerprint in known else ', but '}{signer}.")
        else:
            say(f"CHANGED since it was {signer} (slices count from 0):")
        for finding in verification.findings:
            say(f"  {finding.kind:<17} {finding.text}")
        _say_tiles(verification)
        for note in verification.notes:
            say(f"  note              {note}")
    else:
        say("No manifest: each image was checked by itself, so missing images were not noticed.")
    for line in signatures.summary():
        say(f"DICOM signatures: {line}")


def _say_tiles(verification: Verification) -> None:
    """Where in the slices: pixels from 0, both ends included."""
    boxes = list(verification.changed_boxes())
    for k, rows, columns in boxes[:_MOST_TILES]:
        place = f"rows {rows.start}-{rows.stop - 1}, columns {columns.start}-{columns.stop - 1}"
        say(f"  tile              slice {k}, {place}")
    if len(boxes) > _MOST_TILES:
        say(f"  tile              and {len(boxes) - _MOST_TILES} more; --json lists all, --map draws them")
