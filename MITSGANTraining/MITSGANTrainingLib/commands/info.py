"""List what a folder or file holds: series, geometry, HU range, noise, and what a careful reader should know of it.

All series are listed from their headers. Where there is one usable CT, or --series names it, its voxels are read too.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from MITSGANLib.budget.noise import estimate_noise
from MITSGANLib.errors import InputError
from MITSGANLib.files.storage import SeriesSummary, describe, load_volume
from MITSGANLib.scan.volume import CTVolume

from .options import add_input, add_json, add_series, progress_bar, say, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_input(parser)
    add_series(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    with progress_bar("Scanning", "file") as progress:
        summaries = describe(options.input, progress)
    usable = [summary for summary in summaries if summary.problem is None]
    wanted = [summary for summary in usable if options.series in (None, summary.series_instance_uid)]
    if options.series and not wanted:
        raise InputError(f"There is no usable series {options.series} in {options.input}; run info without --series.")
    result: dict[str, Any] = {"input": options.input, "series": [_series(summary) for summary in summaries]}
    loaded = None
    if len(wanted) == 1:
        with progress_bar("Reading", "slice") as progress:
            loaded = load_volume(options.input, series=wanted[0].series_instance_uid, progress=progress)
        result["volume"] = _volume(loaded)
    write_json(options.json, result)
    if options.json != "-":
        _say(summaries, wanted, result, loaded)


def _series(summary: SeriesSummary) -> dict[str, Any]:
    return {**dataclasses.asdict(summary), "warnings": [dataclasses.asdict(warning) for warning in summary.warnings]}


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
        "warnings": [dataclasses.asdict(warning) for warning in volume.provenance.warnings],
    }


def _say(
    summaries: tuple[SeriesSummary, ...], wanted: list[SeriesSummary], result: dict[str, Any], loaded: CTVolume | None
) -> None:
    for number, summary in enumerate(summaries, start=1):
        kernel = f", kernel {summary.kernel}" if summary.kernel else ""
        say(
            f"{number}. {summary.description or '(no description)'} [{summary.modality or summary.format}]{kernel}, "
            f"{summary.image_count} images"
        )
        if summary.series_instance_uid:
            say(f"   series   {summary.series_instance_uid}")
        if summary.shape:
            say("   voxels   {} slices, {} rows, {} columns".format(*summary.shape))
            say("   spacing  {:.4g} x {:.4g} x {:.4g} mm (column, row, slice)".format(*summary.spacing))
        if summary.problem:
            say(f"   not usable: {summary.problem}")
        # The loaded volume repeats its headers' warnings and adds those about its voxels.
        if not (loaded and summary in wanted):
            for warning in summary.warnings:
                say(f"   warning  {warning}")
    if loaded is None:
        if len(wanted) > 1:
            say("Several usable series: name one with --series for its HU range and noise.")
        return
    volume = result["volume"]
    say("   origin   {:.2f}, {:.2f}, {:.2f} mm (LPS)".format(*loaded.origin))
    padding = "" if volume["padding_hu"] is None else f", padding {volume['padding_hu']}"
    say(f"   HU       {volume['hu_minimum']} to {volume['hu_maximum']}{padding}")
    noise = volume["noise"]
    words = "not measured: too little soft tissue" if noise["sd_hu"] is None else f"{noise['sd_hu']:.1f} HU"
    say(f"   noise    {words} ({noise['definition']})")
    for step in volume["steps"]:
        say(f"   step     {step['description']}")
    for warning in loaded.provenance.warnings:
        say(f"   warning  {warning}")
