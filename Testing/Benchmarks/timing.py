"""Times that can be compared on a machine that is not ours alone: alternating runs, medians, and the load named."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from MITSGANLib.runtime.threads import usable_cores


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats, in seconds for one unit of work.

    :param wall_s: by the clock; on a busy machine it holds the others' turns, too.
    :param cpu_s: of this process over all its threads; threads that wait for one another spend it as well.
    """

    wall_s: float
    cpu_s: float
    repeats: int


@dataclass(frozen=True)
class Case:
    """Something to be timed: ``run`` does ``units`` of work."""

    run: Callable[[], object]
    units: int = 1


def alternate(cases: Mapping[str, Case], repeats: int, warm_up: bool = True) -> dict[str, Timing]:
    """Each case once, then each again in the reverse order, and so on, so that drift and neighbors meet all alike."""
    order = list(cases)
    if warm_up:
        for name in order:
            cases[name].run()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in order}
    for repeat in range(repeats):
        for name in order if repeat % 2 == 0 else reversed(order):
            case = cases[name]
            wall, cpu = time.perf_counter(), time.process_time()
            case.run()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            seen[name].append((spent[0] / case.units, spent[1] / case.units))
    return {
        name: Timing(statistics.median(w for w, _ in runs), statistics.median(c for _, c in runs), repeats)
        for name, runs in seen.items()
    }


@dataclass
class Stages:
    """Seconds by the clock and of the process, summed over the calls of each stage."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            spent = self.seconds.setdefault(name, [0.0, 0.0])
            spent[0] += time.perf_counter() - wall
            spent[1] += time.process_time() - cpu


def machine() -> dict[str, object]:
    """What the figures were measured on, and how busy it was at that moment."""
    load = os.getloadavg()[0]
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "load_average": round(load, 1),
        "busy": load > 0.5,
    }


def matrix_multiplication(size: int = 512, times: int = 16) -> tuple[Case, int]:
    """Float32 products of two square matrices that fit into a cache, and the FLOP of one.

    A convolution loads less for the same arithmetic, so the best ones reach a little more than this rate.
    """
    a = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    return Case(lambda: [a @ a for _ in range(times)], times), 2 * size**3


def memory_copy(size: int = 64 << 20) -> tuple[Case, int]:
    """A copy within memory, larger than caches, and the bytes that it reads and writes."""
    source = torch.zeros(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Case(lambda: target.copy_(source)), 2 * size


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - no file of the project
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
