"""Speed and memory of protection, measured side by side in one run: python Testing/Benchmarks/bench.py

Four parts: one slice (the default model against the paper's generator, naive against as MITSGAN runs it, with the
floor beside each time), a whole scan by stage, measuring and reporting an attack, and peak memory on a long synthetic
scan. Ratios are measured
alternately, so they hold on a busy machine, too; seconds by the clock do not. Writes OUT/bench.json and OUT/bench.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import measure_measuring
from memory import FORMATS, measure_memory, write_scan
from MITSGANLib.runtime.threads import usable_cores
from rendering import to_markdown, write_reports
from speed import measure_speed
from subjects import scan_or_phantom
from timing import machine
from whole_scan import measure_command, measure_stages

PARTS = ("speed", "scan", "measure", "memory")
DEFAULT_SCAN = Path.home() / ".cache" / "mitsgan" / "LIDC-IDRI-0001"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = measure(options)
    text = to_markdown(results)
    if options.out:
        write_reports(options.out, "bench", results, text)
    print(text, end="")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The parts that were asked for, in a form fit for JSON."""
    results: dict[str, Any] = {"machine": machine()}
    if "speed" in options.parts:
        results["speed"] = measure_speed(scan_or_phantom(options.scan, options.edge), options.repeats, options.model)
    if "scan" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            scan = options.scan
            if scan is None or not scan.exists():
                scan = write_scan(Path(folder) / "phantom", options.slices, options.edge)
            results["scan"] = {
                "command": measure_command(scan, options.threads, options.model),
                "stages": measure_stages(scan, options.model),
            }
    if "measure" in options.parts:
        volume = scan_or_phantom(options.scan, options.edge)
        results["measure"] = measure_measuring(volume, options.repeats, options.model)
    if "memory" in options.parts:
        results["memory"] = measure_memory(
            options.slices, options.threads, options.edge, options.formats, options.model
        )
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument(
        "--scan",
        type=Path,
        default=DEFAULT_SCAN,
        help="DICOM folder or file (default: LIDC-IDRI-0001, which `make demo` fetches; else a phantom)",
    )
    parser.add_argument("--model", default="default", help="protector to compare with the paper's generator")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each case (default: 3)")
    parser.add_argument(
        "--slices", type=int, default=300, metavar="N", help="of the synthetic scan for memory (default: 300)"
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="of it (default: all)")
    parser.add_argument("--edge", type=int, default=512, metavar="N", help="rows and columns of synthetic scans")
    parser.add_argument(
        "--threads", type=int, default=usable_cores(), metavar="N", help="threads (default: one for each core)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write bench.json and bench.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
