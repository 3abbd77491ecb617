"""A whole scan: ``mitsgan protect`` as a user starts it, and the same work split by stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from MITSGANLib.budget.budget import Surroundings, apply_change
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.protection.inference import SliceInference
from MITSGANLib.protection.proposer import Execution
from MITSGANLib.protection.protector import load_protector
from MITSGANLib.watermark.pattern import ScanSigns
from timing import Stages

_COMMAND = "import sys; from MITSGANTrainingLib.commandline import main; sys.exit(main())"

# A process starts with the peak of the one that started it, so a small one stands between this and the command.
_LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
seconds = time.perf_counter() - started
print(json.dumps([process.returncode, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


@dataclass(frozen=True)
class Finished:
    """A process that ended: its time by the clock, over all cores, and its largest resident memory."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def run_command(arguments: list[str], threads: int, allowed: Collection[int] = (0,)) -> Finished:
    """Run ``mitsgan`` in a process of its own and wait for it; see :func:`run_code`."""
    return run_code(_COMMAND, arguments, threads, allowed)


def run_code(code: str, arguments: list[str], threads: int, allowed: Collection[int] = (0,)) -> Finished:
    """Run Python code in a process of its own and wait for it.

    :param allowed: exit codes that are no failure.
    :raises RuntimeError: it failed; the text is the end of what it said.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's second run compiles nothing
    launched = subprocess.run(
        [sys.executable, "-c", _LAUNCHER, code, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    if launched.returncode:
        raise RuntimeError(f"No process could be started: {launched.stderr[-500:]}")
    exit_code, wall_s, cpu_s, peak = json.loads(launched.stdout)
    if exit_code not in allowed:
        raise RuntimeError(f"The measured process failed with {exit_code}: {launched.stderr[-500:]}")
    # Linux counts in KiB, macOS in bytes.
    return Finished(wall_s, cpu_s, peak * (1 if sys.platform == "darwin" else 1024))


def measure_command(scan: Path, threads: int, model: str = "default") -> dict[str, object]:
    """``mitsgan protect SCAN FOLDER`` (or a file for a file), reading and writing included."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / ("protected" if scan.is_dir() else "protected.nrrd")
        done = run_command(["protect", str(scan), str(output), "--model", model], threads)
    return {
        "wall_s": done.wall_s,
        "cpu_s": done.cpu_s,
        "peak_bytes": done.peak_bytes,
        "start_wall_s": run_command(["--help"], threads).wall_s,
        "torch_wall_s": run_code("import torch", [], threads).wall_s,
    }


def measure_stages(scan: Path, model: str = "default") -> dict[str, object]:
    """The stages of a protection, summed over the scan, in this process (so without start and imports)."""
    stages = Stages()
    with stages.stage("model"):
        protector = load_protector(model)
    with stages.stage("read"):
        volume = load_volume(scan)
    with stages.stage("network"):
        network = SliceInference(protector.proposer, volume.shape[1:], Execution(device="cpu"))
    protected = np.empty_like(volume.hu)
    signs = ScanSigns.of(volume, protector.watermark.key) if protector.watermark else None
    for start in range(0, volume.shape[0], network.batch_size):
        slab = slice(start, start + network.batch_size)
        hu = volume.hu[slab]
        with stages.stage("body and budget"):
            around = Surroundings.of(hu, volume.spacing_kji, volume.provenance.padding_hu)
            allowed = around.allowed(hu, protector.budget)
        with stages.stage("network"):
            change = network.change(hu, allowed)
        with stages.stage("whole HU"):
            protected[slab] = apply_change(hu, change, allowed)
        if signs:
            with stages.stage("watermark"):
                protected[slab] = protector.watermark.marked(protected[slab], around, signs, start)
    with tempfile.TemporaryDirectory() as folder, stages.stage("write"):
        output = Path(folder) / ("protected" if volume.provenance.dicom_files else "protected.nrrd")
        save_volume(volume.with_hu(protected), output)
    return {
        "slices": volume.shape[0],
        "stages": {name: {"wall_s": wall, "cpu_s": cpu} for name, (wall, cpu) in stages.seconds.items()},
    }
