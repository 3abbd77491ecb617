"""A collection of many studies: python Testing/Benchmarks/archive.py FOLDER [--studies 2000]

Writes small synthetic studies to FOLDER/tree, protects them into FOLDER/out, kills a run in the middle with SIGKILL,
and runs again to the end and once more, when nothing is left to do. Prints seconds, studies that were lost, and the
peak memory. Takes an hour on a busy machine; what an earlier run of this left in FOLDER is continued.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pydicom
from memory import write_scan
from whole_scan import run_command

GOAL_S = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--edge", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--model", default="none", help="none is the quickest, so that the rest shows")
    options = parser.parse_args()
    tree, out = options.folder / "tree", options.folder / "out"
    if not tree.exists():
        write_studies(tree, options.studies, options.slices, options.edge)
    arguments = ["protect", str(tree), str(out), "--collection", "--model", options.model]
    arguments += ["--processes", str(options.processes)]
    kept = _kill(arguments, out, len(_records(out)) + max(1, options.studies // 10))
    first = run_command(arguments, 1)
    earlier = json.loads((out / "mitsgan-collection.json").read_text())["counts"]["protected_by_an_earlier_run"]
    again = run_command(arguments, 1)
    counts = json.loads((out / "mitsgan-collection.json").read_text())["counts"]
    result = {
        "studies": options.studies,
        "slices": options.slices,
        "finished_when_killed": kept,
        "of_these_done_again": kept - earlier,
        "rest": {"wall_s": first.wall_s, "cpu_s": first.cpu_s, "peak_bytes": first.peak_bytes},
        "nothing_to_do": {"wall_s": again.wall_s, "cpu_s": again.cpu_s, "peak_bytes": again.peak_bytes},
        "goal_s": GOAL_S,
        "counts": counts,
    }
    print(json.dumps(result, indent=1))
    return 0


def write_studies(tree: Path, studies: int, slices: int, edge: int) -> None:
    """Studies of one series, alike but for their UIDs, which are put into the bytes of one that pydicom wrote."""
    digits = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(write_scan(Path(folder) / "study", slices, edge).iterdir())
        templates = [(file.name, file.read_bytes(), _uids(file)) for file in files]
    for number in range(studies):
        new: dict[str, bytes] = {}
        study = tree / f"{number:06d}"
        study.mkdir(parents=True)
        for name, data, uids in templates:
            for uid in uids:
                if uid not in new:
                    new[uid] = b"2.25." + bytes(digits.choices(b"123456789", k=len(uid) - 5))
                data = data.replace(uid.encode(), new[uid])
            (study / name).write_bytes(data)


def _uids(file: Path) -> list[str]:
    dataset = pydicom.dcmread(file, stop_before_pixels=True)
    names = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
    return [str(dataset[name].value) for name in names]


def _kill(arguments: list[str], out: Path, finished: int) -> int:
    """Start a run, kill it once so many scans are finished, and give how many were."""
    command = [sys.executable, "-m", "MITSGANTrainingLib.commandline", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(_records(out)) < finished:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(_records(out))


def _records(out: Path) -> list[Path]:
    return list((out / ".mitsgan").glob("*.json"))


if __name__ == "__main__":
    sys.exit(main())
