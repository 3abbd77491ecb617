"""Tell whether a chest CT is genuine, from all evidence there is: changed where, nothing found, or cannot be told.

Looks at the signature or manifest where there is one; the watermark, if it was protected; noise that is missing or of
another color; tissue copied from elsewhere in the scan, with its source; CT-GAN's own noise source; the headers; and
asks the forensic judge at suspicious places. It works on scans that were never protected, too, with what is left of
that, and says so. Places are sought in the lungs. "Nothing found" is never "genuine": it says what it does not exclude.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from MITSGANLib.errors import InputError, OutputError, TargetError
from MITSGANLib.examination.examiner import Examination
from MITSGANLib.examination.signed import examine_contents
from MITSGANLib.examination.verdict import ChangedPlace, Outcome, Verdict
from MITSGANLib.files.atomic import refuse_existing_file
from MITSGANLib.files.storage import is_dicom_output
from MITSGANLib.files.volume_files import check_file_output, refuse_source, write_file
from MITSGANLib.keys.key_files import read_key_file
from MITSGANLib.keys.signing_keys import fingerprint, load_public_key, raw_public_key
from MITSGANLib.report.examination_page import save_examination
from MITSGANLib.signature.contents import read_contents_to_verify
from MITSGANLib.signature.dicom.digital_signature import load_certificates, verify_images
from MITSGANLib.signature.manifest import read_manifest_file
from MITSGANLib.signature.verification import find_manifest, verify_scan
from MITSGANLib.watermark.pattern import OPEN_KEY, watermark_key

from ..archives.verdicts import EXAMINED, ExaminationReport, VerdictConfig, examine_collection
from . import tree_options
from .options import (
    add_input,
    add_json,
    add_overwrite,
    add_series,
    add_target,
    note_warnings,
    progress_bar,
    say,
    target_voxel,
    write_json,
)

_MOST_PLACES = 12

_COLLECTIONS = """\
With --collection, INPUT is a tree of folders of any depth, and every CT scan in it is examined.
RESULTS is a folder for what is found: mitsgan-collection.json is the summary, and .mitsgan
records what is finished. Nothing in INPUT is changed. To continue after a stop, or to examine
what is new, run the same command again. It examines a scan anew only if its content, a key or a
certificate changed, or with --overwrite. Exit code: the worst of all scans, in the order 7, 3, 8,
0.
"""

_EXIT_CODES = """\
Exit code: 0 intact (signed) or nothing found, 7 changed, somewhere or at the place asked about, 8
cannot tell, or not at the place asked about, 3 not readable.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Paragraphs stay paragraphs.
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXIT_CODES
    add_input(parser)
    parser.add_argument("output", metavar="RESULTS", nargs="?", help="with --collection: a folder for the results")
    add_series(parser)
    parser.add_argument(
        "--watermark",
        metavar="KEYFILE",
        type=Path,
        help="the key file that the scan was protected with (default: the open watermark)",
    )
    parser.add_argument("--manifest", metavar="FILE", type=Path, help="the manifest, where it lies elsewhere")
    parser.add_argument(
        "--public-key", metavar="FILE", type=Path, action="append", help="public key of a signer you trust; repeatable"
    )
    parser.add_argument(
        "--certificate",
        metavar="FILE",
        type=Path,
        action="append",
        help="X.509 certificates (PEM) of signers or authorities that you trust for DICOM's own signatures; repeatable",
    )
    parser.add_argument(
        "--deidentified", action="store_true", help="identifying headers were changed on purpose: do not compare them"
    )
    add_target(parser, required=False)
    parser.add_argument(
        "--map",
        metavar="FILE",
        help="write a label map: 1 nothing found, 2 changed, 0 not in the lungs or cannot be told; .nrrd, .nii.gz ...",
    )
    parser.add_argument("--page", metavar="FILE", type=Path, help="write a page (HTML) with pictures of each place")
    add_overwrite(parser)
    add_json(parser)
    tree_options.add_collection(parser, _COLLECTIONS, makes_tree=False)


def run(options: argparse.Namespace) -> int:
    if tree_options.is_for_results(options, "series", "manifest", "map", "page", "voxel", "lps", "ras"):
        config = VerdictConfig(**tree_options.tree_values(options), **tree_options.trust_values(options))
        return tree_options.run_collection(options, lambda *to: examine_collection(config, *to), _words)
    if options.map and is_dicom_output(options.map):
        raise OutputError(f"The map is a label map, not DICOM; name a file such as map.nrrd instead of {options.map}.")
    if options.page:
        refuse_source(options.page, options.input)
        refuse_existing_file(options.page, options.overwrite)
    key = watermark_key(read_key_file(options.watermark)) if options.watermark else OPEN_KEY
    trusted = {fingerprint(raw_public_key(load_public_key(file))) for file in options.public_key or []}
    certificates = [one for file in options.certificate or [] for one in load_certificates(file)]
    with progress_bar("Reading", "slice") as progress:
        scan = read_contents_to_verify(options.input, options.series, progress)
    signed = read_manifest_file(options.manifest) if options.manifest else find_manifest(scan)
    signatures = verify_images(scan.files, certificates)
    verification = signed and verify_scan(scan, signed, headers=not options.deidentified)
    volume, kji = scan.volume, None
    if volume is not None:
        note_warnings(volume)
        if options.map:
            check_file_output(volume.provenance.source, options.map, overwrite=options.overwrite)
        kji = target_voxel(options, volume)
        if kji is not None and not volume.contains(kji):
            raise TargetError(f"Voxel {kji} lies outside the scan of {volume.shape} voxels; choose another.")
    with progress_bar("Examining", "%") as progress:
        verdict, examination = examine_contents(
            scan, verification, signatures, key=key, trusted=trusted, progress=progress
        )
    place = examination.at(kji) if examination and kji is not None else None
    can_tell = place is None or examination.can_tell(kji)
    code = exit_code(verdict, place, can_tell)
    if options.json != "-":
        # Before anything is written: a full disk must not keep the verdict from anyone.
        _say(verdict)
        if place is not None:
            say(f"Voxel {kji}: {_place_words(place, can_tell)}")
    _write(options, examination, verdict)
    asked = {} if place is None else {"place": {**place.to_dict(), "can_tell": can_tell}}
    kind = "keyed" if options.watermark else "open"
    write_json(options.json, {"input": options.input, "watermark": kind, **verdict.to_dict(), **asked})
    return code


def exit_code(verdict: Verdict, place: ChangedPlace | None, can_tell: bool) -> int:
    """What the command ends with, see its help.

    :param place: what was found at the place asked about, if any was.
    :param can_tell: whether a forgery at that place would show.
    """
    if place is not None and place.strength >= 1:
        return EXAMINED[Outcome.CHANGED]
    if verdict.outcome is Outcome.NOTHING_FOUND and not can_tell:
        return EXAMINED[Outcome.CANNOT_TELL]
    return EXAMINED[verdict.outcome]


def _write(options: argparse.Namespace, examination: Examination | None, verdict: Verdict) -> None:
    if (options.map or options.page) and examination is None:
        raise InputError("The slices form no volume, which a map and a page need; leave --map and --page out.")
    if options.map:
        write_file(examination.class_volume(), options.map, overwrite=options.overwrite)
    if options.page:
        name = Path(options.input).name.split(".")[0]
        save_examination(examination.volume, verdict, options.page, title=name)
    for written in filter(None, (options.map, options.page)):
        if options.json != "-":
            say(f"Wrote {written}")


def _words(report: ExaminationReport) -> tuple[str, list[str]]:
    """Counts of verdicts, and a line for each scan that is not as it should be."""
    lines = [tree_options.verdict_line(record, len(record.result["places"]), "place") for record in report.worst()]
    return tree_options.verdict_counts(report), lines


def _say(verdict: Verdict) -> None:
    say(f"Verdict: {verdict.outcome.value}.")
    for reason in verdict.reasons:
        say(f"  {reason}")
    if verdict.places:
        say(f"{len(verdict.places)} place{'s' if len(verdict.places) > 1 else ''}, the surest first:")
    for place in verdict.places[:_MOST_PLACES]:
        size = " x ".join(f"{mm:.0f}" for mm in place.size_mm)
        lps = ", ".join(f"{mm:.1f}" for mm in place.lps_mm)
        say(f"  voxel {place.kji}, LPS ({lps}) mm, about {size} mm, {place.words}")
    if len(verdict.places) > _MOST_PLACES:
        say(f"  and {len(verdict.places) - _MOST_PLACES} more; see --json, --map or --page")
    for one in verdict.evidence:
        say(f"{one.kind}: {one.text}.")
    if verdict.told:
        say("Can be told about, of the lungs: " + ", ".join(f"{kind} {share:.0%}" for kind, share in verdict.told))
    for kind in verdict.excluded:
        say(f"  would mostly have been listed there: {kind}")
    for kind in verdict.not_excluded:
        say(f"  not excluded: {kind}")


def _place_words(place: ChangedPlace, can_tell: bool) -> str:
    return place.words + "." if can_tell or place.strength >= 1 else "cannot be told."
