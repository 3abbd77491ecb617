"""Tell where a protected scan was painted over since, by its watermark alone.

"mitsgan examine" weighs this together with all other evidence. Here the watermark is measured by itself, also outside
of the lungs. Without --watermark this looks for the open watermark, which "mitsgan protect" leaves by default. It shows
what was painted by those who do not know of it. A watermark with a key of its own cannot be renewed without the key:
name the key file that the scan was protected with.

The watermark lies in the voxels themselves. So a copy may be in any format, without headers, or in part. Where nothing
is found on its own grid, likely ones are tried: flipped, permuted, cropped, resampled in the plane. Ask about a place
with --voxel: a small nodule may show only there. After lossy compression no place can be listed. "mitsgan verify" is
stricter: it finds every change, but only against what was signed. What this misses: docs/research/watermark.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import InputError
from MITSGANLib.files.volume_files import write_file
from MITSGANLib.keys.key_files import read_key_file
from MITSGANLib.protection.protector import load_protector
from MITSGANLib.watermark.checking import Check, Place, check_watermark
from MITSGANLib.watermark.embedding import recorded_watermark
from MITSGANLib.watermark.pattern import OPEN_KEY, WatermarkKey, watermark_key

from . import shared

ALTERED, NOT_FOUND = 7, 8

EXIT_CODES = """\
Exit code: 0 watermark found and nothing missing, 7 it is missing somewhere or at the place asked
about, 8 no such watermark was found, or so little of it that nothing can be told, 3 not readable.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_options(parser, "input", "--series", "--watermark")
    parser.add_argument(
        "--model",
        help="the protector that it was protected with, as given to mitsgan protect (default: what the file says, as "
        "NRRD and MetaImage do, else default)",
    )
    shared.add_options(parser, "--strength-hu", help="the strength, likewise")
    shared.add_target(parser)
    text = "write a label map: 1 the watermark is there, 2 it is missing, 0 cannot be told; .nrrd, .nii.gz, .mha ..."
    shared.add_options(parser, "--map", help=text)
    shared.add_options(parser, "--overwrite", "--json")


def run(options: argparse.Namespace) -> int:
    shared.check_map(options)
    key = watermark_key(read_key_file(options.watermark)) if options.watermark else OPEN_KEY
    budget = _budget(options, key)
    volume = shared.read_scan(options.input, options.series)
    shared.note_warnings(volume)
    kji = shared.target_voxel(options, volume)
    with shared.progress_bar("Checking", "slice") as progress:
        check = check_watermark(volume, key, budget=budget, progress=progress)
    place = None if kji is None else check.at(kji)
    # Before anything is written: a full disk must not keep the verdict from anyone.
    is_known = budget is not None or recorded_watermark(volume) is not None
    made = "it was made" if is_known else "the default makes it"
    shared.say_result(options, *_lines(check, is_open=options.watermark is None, made=made))
    if place is not None:
        shared.say_result(options, f"Voxel {kji}: {place.words}")
    if options.map:
        write_file(check.class_volume(), options.map, overwrite=options.overwrite)
        shared.say_result(options, f"Wrote {options.map}")
    kind = "keyed" if options.watermark else "open"
    result = {"input": options.input, "watermark": kind, **check.to_dict(), "map": options.map}
    shared.write_json(options.json, result | ({} if place is None else {"place": place.to_dict()}))
    return exit_code(check, place)


def exit_code(check: Check, place: Place | None) -> int:
    """What the command ends with, see its help.

    :param place: what was found at the place asked about, if any was.
    """
    if not check.is_found:
        return NOT_FOUND
    if check.regions or (place is not None and place.is_missing):
        return ALTERED
    # Of a copy that has lost most of it nothing is listed, but one place may still be answered for.
    is_answered = place is not None and place.can_tell
    return NOT_FOUND if check.is_degraded and not is_answered else 0


def _budget(options: argparse.Namespace, key: WatermarkKey) -> Budget | None:
    """The budget of the named protection's watermark; None where none is named."""
    if options.model is None and options.strength_hu is None:
        return None
    own_key = key if options.watermark else None
    ready = load_protector(options.model or "default", strength_hu=options.strength_hu, watermark=own_key)
    if ready.watermark is None:
        raise InputError(
            f"The protector '{options.model}' leaves no watermark that could be checked; leave --model out."
        )
    return ready.watermark.budget


def _lines(check: Check, *, is_open: bool, made: str) -> Iterator[str]:
    if not check.is_found:
        missing = "No open watermark" if is_open else "No watermark of this key"
        advice = "; if it was protected with a key, name it with --watermark" if is_open else ""
        yield f"{missing}: the scan has none, or another key's, or was resampled, cropped or smoothed{advice}."
        return
    strength = f"{check.gain:.0%} as strong as {made}"
    yield f"Watermark found, {check.sd:.0f} standard deviations above chance, {strength}."
    if check.regridding:
        yield f"The copy lies on another grid than the scan that was marked: {check.regridding}."
    if check.is_degraded:
        yield (
            "That is too little to list places: the copy lost it (lossy compression, smoothing), or was protected at "
            "another strength, which --strength-hu can name. Ask about a place with --voxel."
        )
        return
    yield f"{check.telling_share:.0%} of the marked tissue could be checked."
    if not check.regions:
        yield "No place stands out. A small nodule may not: ask about a place with --voxel."
        return
    yield f"MISSING in {shared.counted(len(check.regions), 'place')}, the largest first:"
    yield from shared.place_lines(check.regions, lambda region: f"{max(region.share, 0):.0%} of it left")
