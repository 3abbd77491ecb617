"""List what a folder or file holds: series, geometry, HU range, noise, and what a careful reader should know of it.

All series are listed from their headers. Of 20 series or more a summary comes first, and each has one line. If there is
one usable CT, or --series names one, its voxels are read too. Exit code 3 where nothing could be read.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from MITSGANLib.budget.noise import estimate_noise
from MITSGANLib.errors import InputError
from MITSGANLib.files.storage import SeriesSummary, describe
from MITSGANLib.scan.volume import CTVolume, VolumeWarning

from . import shared
from .shared import counted

# With so many series a summary comes first, and of each kind so many are listed, one line each.
MANY, LISTED = 20, 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_options(parser, "input", "--series", "--json")


def run(options: argparse.Namespace) -> int:
    with shared.progress_bar("Scanning", "file") as progress:
        summaries = describe(options.input, progress)
    usable = [summary for summary in summaries if summary.problem is None]
    wanted = [summary for summary in usable if options.series in (None, summary.series_instance_uid)]
    if options.series and not wanted:
        raise InputError(f"There is no usable series {options.series} in {options.input}; run info without --series.")
    listed = [{**dataclasses.asdict(summary), "warnings": _shown(summary.warnings)} for summary in summaries]
    result: dict[str, Any] = {"input": options.input, "series": listed}
    loaded = None
    if len(wanted) == 1:
        loaded = shared.read_scan(options.input, wanted[0].series_instance_uid)
        result["volume"] = _volume(loaded)
    many = len(summaries) >= MANY
    lines = list(_short(summaries) if many else _long(summaries, wanted, result, loaded))
    if many and loaded:
        lines += [f"Series {wanted[0].series_instance_uid}:", *_block(wanted[0], result["volume"], loaded)]
    if len(wanted) > 1:
        lines.append("Several usable series: name one with --series for its HU range and noise.")
    shared.answer(options, result, *lines)
    # Of what is damaged no image could be counted; an MR, say, is no failure.
    return 0 if any(summary.image_count for summary in summaries) else InputError.exit_code


def _shown(warnings: Iterable[VolumeWarning]) -> list[dict[str, str]]:
    """Warnings JSON-ready, without those that matter only to whoever protects."""
    return [{"name": warning.name, "text": warning.text} for warning in warnings if not warning.of_protecting]


def _volume(volume: CTVolume) -> dict[str, Any]:
    noise = estimate_noise(volume.hu, volume.spacing_kji)
    return {
        "series_instance_uid": volume.provenance.series_instance_uid,
        "shape": list(volume.shape),
        "spacing_mm": list(volume.spacing),
        "origin_lps_mm": list(volume.origin),
        "direction": volume.direction.ravel().tolist(),
        "hu_minimum": int(volume.hu.min()),
        "hu_maximum": int(volume.hu.max()),
        "padding_hu": volume.provenance.padding_hu,
        "noise": noise.to_dict(),
        "steps": [{"kind": step.kind, "description": step.description} for step in volume.provenance.steps],
        "warnings": _shown(volume.provenance.warnings),
    }


def _long(
    summaries: Sequence[SeriesSummary], wanted: Sequence[SeriesSummary], result: dict[str, Any], loaded: CTVolume | None
) -> Iterator[str]:
    """Some lines for each series, and all that is known of the loaded one."""
    for number, summary in enumerate(summaries, start=1):
        kernel = f", kernel {summary.kernel}" if summary.kernel else ""
        yield (
            f"{number}. {summary.description or '(no description)'} [{summary.modality or summary.format}]{kernel}, "
            f"{counted(summary.image_count, 'image')}"
        )
        if summary.series_instance_uid:
            yield f"   series   {summary.series_instance_uid}"
        is_loaded = loaded is not None and summary is wanted[0]
        yield from _block(summary, result["volume"] if is_loaded else None, loaded if is_loaded else None)


def _block(summary: SeriesSummary, volume: dict[str, Any] | None, loaded: CTVolume | None) -> Iterator[str]:
    """What is known of one series, from its headers alone or from its voxels."""
    if summary.shape:
        yield "   voxels   {} slices, {} rows, {} columns".format(*summary.shape)
        yield "   spacing  {:.4g} x {:.4g} x {:.4g} mm (column, row, slice)".format(*summary.spacing)
        yield "   origin   {:.2f}, {:.2f}, {:.2f} mm (LPS)".format(*summary.origin)
    if summary.problem:
        yield f"   not usable: {summary.problem}"
    if volume and loaded:
        padding = "" if volume["padding_hu"] is None else f", padding {volume['padding_hu']}"
        yield f"   HU       {volume['hu_minimum']} to {volume['hu_maximum']}{padding}"
        noise = volume["noise"]
        words = "not measured: too little soft tissue" if noise["sd_hu"] is None else f"{noise['sd_hu']:.1f} HU"
        yield f"   noise    {words} ({noise['definition']})"
        for step in volume["steps"]:
            yield f"   step     {step['description']}"
    # The loaded volume repeats its headers' warnings and adds those about its voxels.
    for warning in volume["warnings"] if volume else _shown(summary.warnings):
        yield f"   warning  {warning['name']}: {warning['text']}"


def _short(summaries: Sequence[SeriesSummary]) -> Iterator[str]:
    """Numbers of many series, and one line for each CT."""
    usable = [summary for summary in summaries if summary.problem is None]
    unusable = [summary for summary in summaries if summary.problem and summary.modality in ("CT", "")]
    others = Counter(summary.modality for summary in summaries if summary.problem and summary not in unusable)
    images = sum(summary.image_count for summary in usable)
    yield f"{counted(len(summaries), 'series')}: {len(usable)} usable CT ({counted(images, 'image')})"
    if unusable:
        yield f"   {len(unusable)} not usable, with the reason below"
    if others:
        yield f"   others: {', '.join(f'{count} {modality}' for modality, count in others.most_common())}"
    for summary in usable[:LISTED]:
        spacing = " x ".join(f"{value:.3g}" for value in summary.spacing)
        warnings = ", ".join(warning["name"] for warning in _shown(summary.warnings))
        yield (
            f"   {summary.series_instance_uid}  {counted(summary.image_count, 'image')}, {spacing} mm, "
            f"{summary.description or '(no description)'}{f' ({warnings})' if warnings else ''}"
        )
    yield from _left(usable)
    for summary in unusable[:LISTED]:
        yield f"   not usable: {summary.series_instance_uid or summary.path}: {summary.problem}"
    yield from _left(unusable)


def _left(summaries: Sequence[SeriesSummary]) -> Iterator[str]:
    if len(summaries) > LISTED:
        yield f"   and {len(summaries) - LISTED} more; --json lists all"
