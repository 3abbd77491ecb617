"""Tell whether a chest CT is genuine, from all evidence there is: changed where, nothing found, or cannot be told.

Looks at the signature or manifest where there is one; the watermark, if it was protected; noise that is missing or of
another color; tissue copied from elsewhere in the scan, with its source; CT-GAN's own noise source; the headers; and
asks the forensic judge at suspicious places. It works on scans that were never protected, too, with what is left of
that, and says so. Places are sought in the lungs. "Nothing found" is never "genuine": it says what it does not exclude.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from MITSGANLib.errors import InputError
from MITSGANLib.examination.examiner import Examination
from MITSGANLib.examination.signed import examine_contents
from MITSGANLib.examination.verdict import ChangedPlace, Outcome, Verdict
from MITSGANLib.files.atomic import refuse_existing_file
from MITSGANLib.files.volume_files import refuse_source, write_file
from MITSGANLib.report.examination_page import save_examination
from MITSGANLib.signature.contents import read_contents_to_verify
from MITSGANLib.signature.dicom.digital_signature import verify_images
from MITSGANLib.signature.manifest import read_manifest_file
from MITSGANLib.signature.verification import find_manifest, verify_scan

from ..archives.verdicts import EXAMINED, examine_collection
from . import shared, tree_options

_COLLECTIONS = """\
With --collection, INPUT is a tree of folders of any depth, and every CT scan in it is examined.
RESULTS is a folder for what is found: mitsgan-collection.json is the summary, and .mitsgan
records what is finished. Nothing in INPUT is changed. To continue after a stop, or to examine
what is new, run the same command again. It examines a scan anew only if its content, a key or a
certificate changed, or with --overwrite. Exit code: the worst of all scans, in the order 7, 3, 8,
0.
"""

EXIT_CODES = """\
Exit code: 0 intact (signed) or nothing found, 7 changed, somewhere or at the place asked about, 8
cannot tell, or not at the place asked about, 3 not readable.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_options(parser, "input")
    tree_options.add_results(parser)
    shared.add_options(parser, "--series", "--watermark")
    parser.add_argument("--manifest", metavar="FILE", type=Path, help="the manifest, where it lies elsewhere")
    tree_options.add_trust(parser)
    shared.add_target(parser)
    text = "write a label map: 1 nothing found, 2 changed, 0 not in the lungs or cannot be told; .nrrd, .nii.gz ..."
    shared.add_options(parser, "--map", help=text)
    parser.add_argument("--page", metavar="FILE", type=Path, help="write a page (HTML) with pictures of each place")
    shared.add_options(parser, "--overwrite", "--json")
    tree_options.add_collection(parser, _COLLECTIONS, makes_tree=False)


def run(options: argparse.Namespace) -> int:
    if tree_options.judges_collection(options, "series", "manifest", "map", "page", "voxel", "lps", "ras"):
        return tree_options.judge_collection(options, examine_collection, "places", "place")
    shared.check_map(options)
    if options.page:
        refuse_source(options.page, options.input)
        refuse_existing_file(options.page, options.overwrite)
    trust = tree_options.trust(options)
    with shared.progress_bar("Reading", "slice") as progress:
        scan = read_contents_to_verify(options.input, options.series, progress)
    signed = read_manifest_file(options.manifest) if options.manifest else find_manifest(scan)
    signatures = verify_images(scan.files, trust.certificates)
    verification = signed and verify_scan(scan, signed, headers=not options.deidentified)
    volume, kji = scan.volume, None
    if volume is not None:
        shared.note_warnings(volume)
        kji = shared.target_voxel(options, volume)
    with shared.progress_bar("Examining", "%") as progress:
        verdict, examination = examine_contents(
            scan, verification, signatures, key=trust.key, trusted=trust.signers, progress=progress
        )
    place = examination.at(kji) if examination and kji is not None else None
    can_tell = place is None or examination.can_tell(kji)
    code = exit_code(verdict, place, can_tell)
    # Before anything is written: a full disk must not keep the verdict from anyone.
    shared.say_result(options, *_lines(verdict))
    if place is not None:
        words = f"{place.words}." if can_tell or place.strength >= 1 else "cannot be told."
        shared.say_result(options, f"Voxel {kji}: {words}")
    _write(options, examination, verdict)
    asked = {} if place is None else {"place": {**place.to_dict(), "can_tell": can_tell}}
    kind = "keyed" if options.watermark else "open"
    shared.write_json(options.json, {"input": options.input, "watermark": kind, **verdict.to_dict(), **asked})
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
        shared.say_result(options, f"Wrote {written}")


def _lines(verdict: Verdict) -> Iterator[str]:
    yield f"Verdict: {verdict.outcome.value}."
    for reason in verdict.reasons:
        yield f"  {reason}"
    if verdict.places:
        yield f"{shared.counted(len(verdict.places), 'place')}, the surest first:"
    yield from shared.place_lines(verdict.places, lambda place: place.words, "--json, --map or --page")
    for one in verdict.evidence:
        yield f"{one.kind}: {one.text}."
    if verdict.told:
        yield "Can be told about, of the lungs: " + ", ".join(f"{kind} {share:.0%}" for kind, share in verdict.told)
    for kind in verdict.excluded:
        yield f"  would mostly have been listed there: {kind}"
    for kind in verdict.not_excluded:
        yield f"  not excluded: {kind}"
