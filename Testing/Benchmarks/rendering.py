"""The figures as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from MITSGANLib.files.atomic import atomic_file

Figures = Mapping[str, Any]


def write_reports(folder: Path, name: str, results: Figures, text: str) -> None:
    """``NAME.json`` and ``NAME.md`` in a folder, in place of earlier ones; each whole or not at all."""
    for file, content in ((f"{name}.json", json.dumps(results, indent=1) + "\n"), (f"{name}.md", text)):
        with atomic_file(folder / file, overwrite=True) as temporary:
            temporary.write_text(content, encoding="utf-8")


def to_markdown(results: Figures) -> str:
    """One section for each part that was measured, machine first."""
    parts = ["# Speed and memory", _machine(results["machine"])]
    for name, render in (("speed", _speed), ("scan", _scan), ("measure", _measure), ("memory", _memory)):
        if name in results:
            parts.append(render(results[name]))
    return "\n\n".join(parts) + "\n"


def _machine(machine: Figures) -> str:
    text = (
        f"{machine['cpu']}, {machine['cores']} cores ({machine['threads']} threads used), {machine['kernels']}, "
        f"PyTorch {machine['torch']}, {machine['system']}. Load average at the start: {machine['load_average']}."
    )
    if machine["busy"]:
        text += (
            " Others used this machine at the same time: ratios were measured alternately and hold, seconds by the "
            "clock do not."
        )
    return text


def _speed(speed: Figures) -> str:
    rows = [
        (
            name,
            f"{way['wall_s']:.3f}",
            f"{way['cpu_s']:.3f}",
            f"{way['times_as_fast_as_naive']:.2f}",
            f"{way['gflop_per_slice']:.1f}",
            f"{way['floor_arithmetic_s']:.3f}",
            f"{way['gigabytes_per_slice']:.2f}",
            f"{way['floor_bytes_s']:.3f}",
            _identity(way),
        )
        for name, way in speed["ways"].items()
    ]
    against = speed["default_against_paper"]
    head = (
        "way", "s by the clock", "CPU s", "naive / this", "GFLOP", "floor, arithmetic s", "GB", "floor, bytes s",
        "against naive",
    )  # fmt: skip
    rates = (
        f"{_sentence(speed['definition'])} Matrix multiplication: "
        f"{speed['matrix_multiplication_gflop_per_cpu_s']:.0f} GFLOP per CPU second; memory copy: "
        f"{speed['memory_copy_gigabytes_per_cpu_s']:.1f} GB per CPU second."
    )
    ratios = (
        f"The default model against the paper's generator: {against['both_as_mitsgan_runs_them']:.0f} times as fast "
        f"where MITSGAN runs both, {against['both_naive']:.0f} times where both run naively, "
        f"{against['ours_against_naive_paper']:.0f} times against the naive paper; {against['gflop']:.0f} times fewer "
        "operations in a whole slice."
    )
    if speed["watermark_cpu_s"]:
        ratios += (
            f" The watermark takes {speed['watermark_cpu_s']:.3f} CPU s more; with it the default is "
            f"{against['ours_with_watermark_against_naive_paper']:.0f} times as fast as the naive paper's."
        )
    return "\n\n".join(["## One slice", rates, table(head, rows), ratios])


def _identity(way: Figures) -> str:
    if way["difference_before_rounding_hu"] == 0:
        return "bit for bit"
    return (
        f"{way['difference_before_rounding_hu']:.1e} HU before rounding; "
        f"{way['voxels_that_differ']} voxels by {way['difference_in_whole_hu']} HU after"
    )


def _scan(scan: Figures) -> str:
    command, stages = scan["command"], scan["stages"]
    rows = [(name, f"{one['wall_s']:.2f}", f"{one['cpu_s']:.2f}") for name, one in stages["stages"].items()]
    rows.append(("all of these", *(f"{sum(float(row[i]) for row in rows):.2f}" for i in (1, 2))))
    whole = (
        f"`mitsgan protect`, a process of its own, reading and writing included: {command['wall_s']:.1f} s by the "
        f"clock, {command['cpu_s']:.1f} CPU s, peak {_mb(command['peak_bytes'])}. `mitsgan --help` alone takes "
        f"{command['start_wall_s']:.1f} s, and PyTorch's import {command['torch_wall_s']:.1f} s. The same work "
        "within one process:"
    )
    rows_table = table(("stage", "s by the clock", "CPU s"), rows)
    return "\n\n".join([f"## A whole scan: {stages['slices']} slices", whole, rows_table])


def _measure(measure: Figures) -> str:
    ssim = measure["ssim_cpu_s"]
    ratio = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in ssim.items())
    words = (
        f"Local SSIM of one slice, in turn: {ratio} of CPU, {measure['ssim_ratio']:.1f} times as fast. What one attack "
        f"did is measured with {measure['noise_draws']} draws of noise, "
        f"{'with' if measure['has_lpips'] else 'without'} LPIPS:"
    )
    rows = [(name, f"{one['wall_s']:.1f}", f"{one['cpu_s']:.1f}") for name, one in measure["stages"].items()]
    rows_table = table(("step", "s by the clock", "CPU s"), rows)
    return "\n\n".join([f"## Measuring and reporting: {measure['slices']} slices", words, rows_table])


def _memory(memory: Figures) -> str:
    rows = [
        (
            name,
            _mb(one["peak_bytes"]),
            f"{one['volumes_beyond_start']:.2f}",
            _mb(memory["limit_bytes"]),
            "yes" if one["within_limit"] else "**no**",
            f"{one['wall_s']:.0f}",
        )
        for name, one in memory["formats"].items()
    ]
    sizes = (
        f"{_sentence(memory['definition'])} The volume takes {_mb(memory['volume_bytes'])}; a process that "
        f"protects a few slices, {_mb(memory['start_bytes'])}."
    )
    rows_table = table(("format", "peak", "volumes beyond a few slices", "limit", "within", "s by the clock"), rows)
    return "\n\n".join(
        [f"## Memory: {memory['slices']} slices of {memory['edge']}x{memory['edge']}", sizes, rows_table]
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _mb(count: float) -> str:
    return f"{count / 1e6:.0f} MB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """A table in Markdown; all but its first column hold numbers, to the right, or words."""
    lines = [head, ["---", *("---:" if numbers else "---" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
