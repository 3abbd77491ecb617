"""Spread independent work over the cores of this machine, or over machines through a Dask scheduler.

The work is a function of the top level of a module and items that can be pickled. What fails is reported with its item
and does not stop the rest; Ctrl-C stops all.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from MITSGANLib.errors import CancelledError, DependencyError, InputError, MITSGANError, defect_text
from MITSGANLib.files.dicom.headers import silence_pydicom
from MITSGANLib.runtime.memory import keep_freed_memory
from MITSGANLib.runtime.threads import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 15
_AHEAD = 4  # items that a worker of a scheduler has waiting


@dataclass(frozen=True)
class ItemOutcome(Generic[Item, Result]):
    """What became of one item: a result, or the reason why there is none."""

    item: Item
    result: Result | None = None
    error: str = ""


def run_all(
    function: Callable[[Item], Result], items: Iterable[Item], *, processes: int = 1, scheduler: str | None = None
) -> Iterator[ItemOutcome[Item, Result]]:
    """Outcomes of ``function(item)`` for all items, in the order in which they get ready.

    Few items wait to be begun at a time, so that long lists take no more memory than they have.

    :param processes: processes on this machine, at most one per item; 1 works in this process.
    :param scheduler: address of a Dask scheduler whose workers have this package installed and see the same folders;
        replaces ``processes``.
    :raises InputError: when the scheduler does not answer.
    :raises DependencyError: when a scheduler is named and dask.distributed is not installed.
    """
    todo = list(items)
    if scheduler:
        yield from _over_dask(function, todo, scheduler)
    elif min(processes, len(todo)) <= 1:
        for item in todo:
            yield _attempt(function, item)
    else:
        yield from _over_processes(function, todo, min(processes, len(todo)))


def _attempt(function: Callable[[Item], Result], item: Item) -> ItemOutcome[Item, Result]:
    silence_pydicom()  # in a process of its own the command line has not
    try:
        return ItemOutcome(item, function(item))
    except CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - one unreadable scan must not cost the others
        return ItemOutcome(item, error=reason_of(error))


def reason_of(error: Exception) -> str:
    """What to say of a failure, in a sentence."""
    return str(error) if isinstance(error, MITSGANError) else defect_text(error)


def _over_processes(function: Callable, items: list, processes: int) -> Iterator[ItemOutcome]:
    todo, broken = iter(items), True
    while broken:
        broken = []
        yield from _over_one_pool(function, todo, processes, broken)
        # A process was killed, as a rule for memory. Which item did it is unknown, so those go one at a time.
        for item in broken:
            lost: list = []
            yield from _over_one_pool(function, [item], 1, lost)
            if lost:
                reason = "The process was killed, probably for want of memory; use fewer processes."
                yield ItemOutcome(item, error=reason)


def _over_one_pool(function: Callable, items: Iterable, processes: int, broken: list) -> Iterator[ItemOutcome]:
    """Outcomes until one process is killed; what was begun and has none is then in ``broken``."""
    # Not by fork: a fork of a process whose torch has started threads hangs.
    context = multiprocessing.get_context("spawn")
    threads = max(1, usable_cores() // processes)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_process, initargs=(threads,))
    items, pending = iter(items), {}
    try:
        while not broken:
            for item in itertools.islice(items, 2 * processes - len(pending)):
                try:
                    pending[pool.submit(_attempt, function, item)] = item
                except BrokenProcessPool:
                    broken.append(item)
                    break
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                # Of the caller's own item: the one that comes back is a copy.
                item = pending.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    broken.append(item)
                else:
                    yield ItemOutcome(item, outcome.result, outcome.error)
        broken += pending.values()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_process(threads: int) -> None:
    # Before torch is imported, which not every work needs.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _over_dask(function: Callable, items: list, scheduler: str) -> Iterator[ItemOutcome]:
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        raise DependencyError("A scheduler needs the package dask.distributed; install 'distributed'.") from error
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The Dask scheduler {scheduler} does not answer; start it, and check the address (tcp://HOST:PORT)."
        ) from error
    todo: Iterator = iter(items)
    with client:
        ready: Any = as_completed()
        pending: dict[Any, Any] = {}

        def submit() -> None:
            wanted = _AHEAD * max(1, len(client.scheduler_info()["workers"]))
            for item in itertools.islice(todo, max(0, wanted - len(pending))):
                # Not pure: the same call may be asked for again after its folder was emptied.
                future = client.submit(_attempt, function, item, pure=False)
                pending[future] = item
                ready.add(future)

        try:
            submit()
            for future in ready:
                item = pending.pop(future)
                try:
                    outcome = future.result()
                    outcome = ItemOutcome(item, outcome.result, outcome.error)
                except Exception as error:  # noqa: BLE001 - a lost worker
                    outcome = ItemOutcome(item, error=reason_of(error))
                submit()
                yield outcome
        finally:
            client.cancel(list(pending))
