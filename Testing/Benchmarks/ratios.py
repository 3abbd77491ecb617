"""``mitsgan protect`` and ``examine`` over a floor measured beside them: python Testing/Benchmarks/ratios.py SCAN

The floor of protecting a DICOM series is the sum of ``import torch``, a plain read and write of the same files by
pydicom, and the network's arithmetic at the rate that this machine multiplies matrices at, over its cores. Each is
measured by the clock, and as the seconds of all cores that it took, which other programs disturb less. Then a
collection of eight copies of the series is protected in two processes, and one after the other.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from floor import counted
from MITSGANLib.files.storage import load_volume
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANLib.runtime.threads import usable_cores
from timing import alternate, machine, matrix_multiplication
from whole_scan import Finished, run_code, run_command

_COPY = """
import sys
from pathlib import Path
import pydicom
for path in Path(sys.argv[1]).iterdir():
    pydicom.dcmread(path).save_as(Path(sys.argv[2]) / path.name)
"""
GOALS = {"protect": 1.3, "examine": 2.0, "two_processes": 1.8}
_SERIES = 8


@dataclass(frozen=True)
class _Times:
    wall_s: float
    cpu_s: float

    def __add__(self, other: _Times) -> _Times:
        return _Times(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def over(self, other: _Times) -> dict[str, float]:
        return {"by_the_clock": self.wall_s / other.wall_s, "by_cpu": self.cpu_s / other.cpu_s}


def measure_ratios(scan: Path, threads: int, repeats: int = 3, model: str = "default") -> dict[str, object]:
    """The ratios for a DICOM folder; of each process the quickest of ``repeats`` runs, taken in turn."""
    quickest: dict[str, _Times] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for repeat in range(repeats):
            copy, protected = folder / f"copy{repeat}", folder / f"protected{repeat}"
            copy.mkdir()
            done = {
                "import torch": run_code("import torch", [], threads),
                "pydicom": run_code(_COPY, [str(scan), str(copy)], threads),
                "protect": run_command(["protect", str(scan), str(protected), "--model", model], threads),
                "examine": run_command(["examine", str(protected)], threads, allowed=(0, 7, 8)),
            }
            for name, times in done.items():
                quickest[name] = _quicker(quickest.get(name), times)
    network, flop = _network(scan, repeats, model)
    floor = quickest["import torch"] + quickest["pydicom"] + network
    return {
        "definition": "floor: import torch, pydicom's read and write of the files, the network's arithmetic",
        "threads": threads,
        "repeats": repeats,
        "network_gflop": flop / 1e9,
        "times": {name: asdict(times) for name, times in {**quickest, "network": network, "floor": floor}.items()},
        "protect_over_floor": quickest["protect"].over(floor),
        "examine_over_protect": quickest["examine"].over(quickest["protect"]),
        "goals": GOALS,
    }


def measure_processes(series: Path, threads: int, model: str = "default") -> dict[str, object]:
    """A collection of eight copies of a DICOM series: two at a time with a thread each, and one after the other.

    The goal is against one process with one thread. One process as users get it has a thread on each core.
    """
    runs = {"one_process_one_thread": (1, 1), "one_process": (1, threads), "two_processes": (2, threads)}
    times = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = folder / "tree"
        for number in range(_SERIES):  # without links, which would be one series in eight places
            shutil.copytree(series, tree / str(number))
        for run, (processes, threads_of_first) in runs.items():
            arguments = ["protect", str(tree), str(folder / run), "--collection", "--model", model]
            times[run] = run_command([*arguments, "--processes", str(processes)], threads_of_first)
            shutil.rmtree(folder / run)
    two = times["two_processes"].wall_s
    return {
        "series": _SERIES,
        "wall_s": {run: done.wall_s for run, done in times.items()},
        "cpu_s": {run: done.cpu_s for run, done in times.items()},
        "series_a_minute": {run: 60 * _SERIES / done.wall_s for run, done in times.items()},
        "two_processes_over_one_thread": times["one_process_one_thread"].wall_s / two,
        "two_processes_over_one_process": times["one_process"].wall_s / two,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="folder of a DICOM series")
    parser.add_argument("--repeats", type=int, default=3, help="of each process, of which the quickest counts")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads (default: one for each core)")
    parser.add_argument("--model", default="default")
    parser.add_argument("--without-processes", action="store_true", help="leave the collection out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {"machine": machine(), **measure_ratios(options.scan, options.threads, options.repeats, options.model)}
    if not options.without_processes:
        results["collection"] = measure_processes(options.scan, options.threads, options.model)
    print(json.dumps(results, indent=1))
    return 0


def _quicker(one: _Times | None, other: Finished) -> _Times:
    if one is None:
        return _Times(other.wall_s, other.cpu_s)
    return _Times(min(one.wall_s, other.wall_s), min(one.cpu_s, other.cpu_s))


def _network(scan: Path, repeats: int, model: str) -> tuple[_Times, int]:
    """The least time for the arithmetic of the network over the scan, and the FLOP."""
    volume, protector = load_volume(scan), load_protector(model)
    with counted() as cost:
        protect(volume, model=protector, device="cpu")
    multiplication, flop = matrix_multiplication()
    times = alternate({"multiply": multiplication}, 5 * repeats)["multiply"]
    return _Times(cost.flop / flop * times.wall_s, cost.flop / flop * times.cpu_s), cost.flop


if __name__ == "__main__":
    sys.exit(main())
