"""Seconds per slice: the default model and the paper's generator, each as MITSGAN runs it and naively."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from floor import counted
from MITSGANLib.budget.budget import Surroundings, allowed_in_slices, apply_change
from MITSGANLib.protection.inference import SliceInference
from MITSGANLib.protection.proposer import Execution
from MITSGANLib.protection.protector import Protector, load_protector
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.embedding import Watermark
from MITSGANLib.watermark.pattern import ScanSigns
from subjects import naive_change, papers_protector
from timing import Case, alternate, matrix_multiplication, memory_copy

Change = Callable[[np.ndarray, np.ndarray], np.ndarray]


def measure_speed(volume: CTVolume, repeats: int, model: str = "default") -> dict[str, object]:
    """Times, ratios, costs and floors of one slice, and whether the results are those of the naive evaluation.

    Slices are the middle ones of the scan: one for the paper's generator, up to four for the default model.
    """
    paper, small = papers_protector(volume), load_protector(model)
    ways: dict[str, tuple[Protector, Change, int]] = {}
    middle = volume.shape[0] // 2
    few = min(4, volume.shape[0] - middle)
    for name, protector, slices in (("paper", paper, 1), (small.name, small, few)):
        ways[f"{name}, naive"] = (protector, _naive(protector), slices)
        ways[f"{name}, whole slices"] = (protector, _whole(protector, volume), slices)
        ways[f"{name}, as mitsgan runs it"] = (protector, _ours(protector, volume), slices)
        ways[f"{name}, batch norm fused, channels last"] = (protector, _ours(protector, volume, fused=True), slices)
    cases, rows = {}, {}
    for name, (protector, change, slices) in ways.items():
        hu = volume.hu[middle : middle + slices]
        allowed = allowed_in_slices(hu, protector.budget, volume.spacing_kji, volume.provenance.padding_hu)
        with counted() as cost:
            result = change(hu, allowed)
        reference = rows[f"{_subject(name)}, naive"]["change"] if "naive" not in name else result
        rows[name] = {
            "change": result,
            "gflop_per_slice": cost.flop / slices / 1e9,
            "gigabytes_per_slice": cost.bytes / slices / 1e9,
            **_difference(hu, result, reference, allowed),
        }
        cases[name] = Case(lambda change=change, hu=hu, allowed=allowed: change(hu, allowed), slices)
    multiplication, flop = matrix_multiplication()
    copying, moved = memory_copy()
    cases |= {"matrix multiplication": multiplication, "memory copy": copying}
    if small.watermark:
        cases["watermark"] = _marking(small.watermark, volume, slice(middle, middle + few))
    times = alternate(cases, repeats, warm_up=False)  # the counted run was the first
    flop_rate, copy_rate = flop / times["matrix multiplication"].cpu_s, moved / times["memory copy"].cpu_s
    for name, row in rows.items():
        del row["change"]
        row |= asdict(times[name])
        row["times_as_fast_as_naive"] = times[f"{_subject(name)}, naive"].cpu_s / times[name].cpu_s
        row["floor_arithmetic_s"] = row["gflop_per_slice"] * 1e9 / flop_rate
        row["floor_bytes_s"] = row["gigabytes_per_slice"] * 1e9 / copy_rate
    ours, naive = f"{small.name}, as mitsgan runs it", f"{small.name}, naive"
    mark_s = times["watermark"].cpu_s if small.watermark else 0.0
    return {
        "definition": (
            f"seconds of one {volume.shape[1]}x{volume.shape[2]} slice, float32; ratios and floors from CPU seconds of "
            "the process, which other programs disturb least; floors at the rates below, measured in turn with them"
        ),
        "slice_shape": list(volume.shape[1:]),
        "threads": torch.get_num_threads(),
        "matrix_multiplication_gflop_per_cpu_s": flop_rate / 1e9,
        "memory_copy_gigabytes_per_cpu_s": copy_rate / 1e9,
        "default_against_paper": {
            "both_as_mitsgan_runs_them": times["paper, as mitsgan runs it"].cpu_s / times[ours].cpu_s,
            "both_naive": times["paper, naive"].cpu_s / times[naive].cpu_s,
            "ours_against_naive_paper": times["paper, naive"].cpu_s / times[ours].cpu_s,
            "ours_with_watermark_against_naive_paper": times["paper, naive"].cpu_s / (times[ours].cpu_s + mark_s),
            "gflop": rows["paper, naive"]["gflop_per_slice"] / rows[naive]["gflop_per_slice"],
        },
        "watermark_cpu_s": mark_s,
        "ways": rows,
    }


def _subject(name: str) -> str:
    return name.partition(",")[0]


def _naive(protector: Protector) -> Change:
    return lambda hu, allowed: naive_change(protector, hu, allowed)


def _ours(protector: Protector, volume: CTVolume, *, fused: bool | None = None) -> Change:
    execution = Execution(protector.seed, protector.budget.strength_hu, device="cpu")
    return SliceInference(protector.proposer, volume.shape[1:], execution, fused=fused).change


def _marking(watermark: Watermark, volume: CTVolume, slab: slice) -> Case:
    hu = volume.hu[slab]
    around = Surroundings.of(hu, volume.spacing_kji, volume.provenance.padding_hu)
    signs = ScanSigns.of(volume, watermark.key)
    return Case(lambda: watermark.marked(hu, around, signs, slab.start), len(hu))


def _whole(protector: Protector, volume: CTVolume) -> Change:
    """As MITSGAN runs it, but without leaving out what lies outside of the body."""
    run = _ours(protector, volume)

    def change(hu: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        everywhere = np.ones_like(allowed)
        share = run(hu, everywhere)
        return share if protector.proposer.config.output == "image" else share * allowed

    return change


def _difference(
    hu: np.ndarray, change: np.ndarray, reference: np.ndarray, allowed: np.ndarray
) -> dict[str, float | int]:
    """Against the naive evaluation, where change is allowed: before rounding, and in whole HU as it is written."""
    where = allowed > 0
    before = np.abs(change - reference)[where].max(initial=0.0)
    after = np.abs(apply_change(hu, change, allowed).astype(int) - apply_change(hu, reference, allowed))
    return {
        "difference_before_rounding_hu": float(before),
        "difference_in_whole_hu": int(after.max()),
        "voxels_that_differ": int(np.count_nonzero(after)),
    }
