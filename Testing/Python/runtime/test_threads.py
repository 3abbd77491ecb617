"""Slices side by side: in order, as many threads as torch has, errors that reach the caller, results that stay."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from MITSGANLib.budget.budget import Surroundings
from MITSGANLib.errors import CancelledError
from MITSGANLib.protection.protector import protect
from MITSGANLib.runtime.threads import each_slice, map_slices, usable_threads


@pytest.fixture
def threads():
    """Sets how many threads torch has, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("slices", [0, 1, 2, 17])
def test_results_come_in_order(threads, count, slices):
    threads(count)
    assert map_slices(lambda k: k * k, slices) == [k * k for k in range(slices)]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("slices", [0, 1, 16, 41])
def test_few_results_wait(threads, count, slices):
    threads(count)
    begun = []

    def work(k: int) -> int:
        begun.append(k)
        return k * k

    for taken, result in enumerate(each_slice(work, slices)):
        assert result == taken * taken
        assert len(begun) <= taken + 16
    assert sorted(begun) == list(range(slices))


def test_slices_run_side_by_side(threads):
    threads(3)
    together = threading.Barrier(3, timeout=60)
    assert map_slices(lambda _: together.wait() in range(3), 3) == [True] * 3


def test_torch_does_not_divide_what_runs_side_by_side(threads):
    threads(3)
    assert map_slices(lambda _: torch.get_num_threads(), 3) == [1] * 3
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3, "in threads that begin later, too"


def test_one_thread_is_the_callers_own(threads):
    threads(1)
    assert map_slices(lambda _: threading.get_ident(), 3) == [threading.get_ident()] * 3


def test_what_a_slice_raises_reaches_the_caller_and_ends_the_rest(threads, monkeypatch):
    threads(2)
    begun, first_left, cancel = [], threading.Event(), Future.cancel

    def cancel_and_tell(future: Future) -> bool:
        is_left = cancel(future)
        if is_left:  # and not done already
            first_left.set()
        return is_left

    def work(k: int) -> None:
        begun.append(k)
        if k == 0:
            raise CancelledError("Canceled.")
        assert first_left.wait(60), "nothing was left"

    # The other thread goes on once one slice, the last, has been left: that is never begun, however slow the machine.
    monkeypatch.setattr(Future, "cancel", cancel_and_tell)
    with pytest.raises(CancelledError):
        map_slices(work, 20)
    assert 0 in begun
    assert 19 not in begun


def test_no_garbage_is_collected_in_a_thread(threads):
    threads(2)
    assert gc.isenabled()
    assert map_slices(lambda _: gc.isenabled(), 3) == [False] * 3
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        map_slices(lambda k: 1 // k, 3)
    assert gc.isenabled()


def test_without_torch_every_usable_core_counts():
    code = "import sys; from MITSGANLib.runtime.threads import usable_threads as u; print(u(), 'torch' in sys.modules)"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for environment, expected in ((free, cores), ({**free, "OMP_NUM_THREADS": "1"}, 1)):
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
        assert done.stdout.split() == [str(expected), "False"]
    assert usable_threads() == torch.get_num_threads()


@pytest.mark.slow
def test_the_number_of_threads_does_not_change_what_is_protected(threads, phantom):
    volume, found = phantom.volume, []
    for count in (1, 3):
        threads(count)
        around = Surroundings.of(volume.hu, volume.spacing_kji, volume.provenance.padding_hu)
        # Without a network, whose own threads may round in another way.
        found.append((around.mask, around.noise_hu, protect(volume, model="none").hu))
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)
