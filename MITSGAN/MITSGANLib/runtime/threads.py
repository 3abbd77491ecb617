"""Slices of a scan side by side on the cores: NumPy and SciPy release Python's lock while they compute."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_AT_ONCE = 16


class _Paused:
    """Something of the whole process that stands still while anybody needs that.

    :param pause: makes it so, and gives what it was before.
    :param resume: takes that, and puts it back.
    """

    def __init__(self, pause: Callable[[], int], resume: Callable[[int], None]) -> None:
        self._pause, self._resume = pause, resume
        self._lock, self._holders, self._before = threading.Lock(), 0, 0

    def pause(self) -> None:
        with self._lock:
            if not self._holders:
                self._before = self._pause()
            self._holders += 1

    def resume(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._resume(self._before)


def _collect_no_garbage() -> bool:
    was_enabled = gc.isenabled()
    gc.disable()
    return was_enabled


garbage = _Paused(_collect_no_garbage, lambda was_enabled: was_enabled and gc.enable())
"""Collecting it: a thread might collect an object of the interface, which must not end there."""


def usable_threads() -> int:
    """Number of threads: as many as torch uses, or would use where it is not loaded, so that one limit holds for both.

    That is ``OMP_NUM_THREADS`` where it is set, else all cores.
    """
    # While another thread imports torch, not all of it is there yet.
    of_torch = getattr(sys.modules.get("torch"), "get_num_threads", None)
    if of_torch is not None:
        return int(of_torch())
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(limit), usable_cores()) if limit.isdigit() and int(limit) else usable_cores()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _give_torch(threads: int) -> None:
    """Let torch, where it is loaded, use so many threads in this thread and in those that begin later."""
    if hasattr(sys.modules.get("torch"), "set_num_threads"):
        sys.modules["torch"].set_num_threads(threads)


# Each thread that works on slices gives it one as it begins: torch's own would wait for each other.
_torch = _Paused(usable_threads, _give_torch)


def map_slices(function: Callable[[int], T], slices: int) -> list[T]:
    """``function(k)`` for each slice ``k`` of ``slices``, in their order, several at a time, torch in one thread each.

    What a function raises is raised here, and the slices that nobody has begun are left.
    """
    return list(side_by_side(function, slices))


def side_by_side(function: Callable[[int], T], count: int) -> Iterator[T]:
    """Results of :func:`map_slices` one after the other, each as soon as it is there."""
    threads = min(usable_threads(), count)
    if threads <= 1:
        yield from map(function, range(count))
        return
    garbage.pause()
    _torch.pause()
    try:
        with ThreadPoolExecutor(threads, "MITSGAN slices", _give_torch, (1,)) as pool:
            yield from pool.map(function, range(count))
    finally:
        _torch.resume()
        garbage.resume()


def each_slice(function: Callable[[int], T], slices: int) -> Iterator[T]:
    """Results of :func:`map_slices` one after the other; no more than 16 of them wait to be taken."""
    for slab in slabs(slices):
        yield from map_slices(lambda k, first=slab.start: function(first + k), slab.stop - slab.start)


def slabs(slices: int, size: int = _AT_ONCE) -> list[slice]:
    """A scan in parts of at most ``size`` slices, 16 unless said, so that work on them needs little memory."""
    return [slice(first, min(first + size, slices)) for first in range(0, slices, size)]
