"""Spread independent work over the cores of this machine, or over machines through a Dask scheduler.

The work is a function of the top level of a module and items that can be pickled. What fails is reported with its item
and does not stop the rest; Ctrl-C stops all.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from MITSGANLib.errors import CancelledError, DependencyError, InputError, MITSGANError, defect_text
from MITSGANLib.files.dicom.headers import silence_pydicom
from MITSGANLib.runtime.threads import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_CONNECT_SECONDS = 15


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a result, or the reason why there is none."""

    item: Item
    result: Result | None = None
    error: str = ""


def run_all(
    function: Callable[[Item], Result], items: Iterable[Item], *, processes: int = 1, scheduler: str | None = None
) -> Iterator[Outcome[Item, Result]]:
    """Outcomes of ``function(item)`` for all items, in the order in which they get ready.

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


def _attempt(function: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    silence_pydicom()  # in a process of its own the command line has not
    try:
        return Outcome(item, function(item))
    except CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - one unreadable scan must not cost the others
        return Outcome(item, error=_reason(error))


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, MITSGANError) else defect_text(error)


def _over_processes(function: Callable, items: list, processes: int) -> Iterator[Outcome]:
    left = items
    try:
        for outcome in _over_one_pool(function, items, processes):
            left = [item for item in left if item is not outcome.item]
            yield outcome
    except BrokenProcessPool:
        # A process was killed, as a rule for memory. Which item did it is unknown, so the rest goes one at a time.
        for item in left:
            try:
                yield from _over_one_pool(function, [item], 1)
            except BrokenProcessPool:
                yield Outcome(item, error="The process was killed, probably for want of memory; use fewer processes.")


def _over_one_pool(function: Callable, items: list, processes: int) -> Iterator[Outcome]:
    # Not by fork: a fork of a process whose torch has started threads hangs.
    context = multiprocessing.get_context("spawn")
    threads = max(1, usable_cores() // processes)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin_process, initargs=(threads,))
    try:
        futures = {pool.submit(_attempt, function, item): item for item in items}
        for future in _as_ready(futures):
            # Of the caller's own item: the one that comes back is a copy.
            outcome = future.result()
            yield Outcome(futures[future], outcome.result, outcome.error)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _as_ready(futures: Iterable[Future]) -> Iterator[Future]:
    pending = set(futures)
    while pending:
        ready, pending = wait(pending, return_when=FIRST_COMPLETED)
        yield from ready


def _begin_process(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _over_dask(function: Callable, items: list, scheduler: str) -> Iterator[Outcome]:
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        raise DependencyError("A scheduler needs the package dask.distributed; install 'distributed'.") from error
    try:
        client = Client(scheduler, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The Dask scheduler {scheduler} does not answer; start it, and check the address (tcp://HOST:PORT)."
        ) from error
    with client:
        # Not pure: the same call may be asked for again after its folder was emptied.
        futures = {client.submit(_attempt, function, item, pure=False): item for item in items}
        ready: Any = as_completed(futures)
        try:
            for future in ready:
                item = futures[future]
                try:
                    outcome = future.result()
                    yield Outcome(item, outcome.result, outcome.error)
                except Exception as error:  # noqa: BLE001 - a lost worker
                    yield Outcome(item, error=_reason(error))
        finally:
            client.cancel(list(futures))
