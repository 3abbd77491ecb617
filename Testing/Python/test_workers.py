"""Work spread over processes or a Dask scheduler: every item is accounted for, failures with their reason."""

from __future__ import annotations

import os

import pytest
from MITSGANLib.errors import InputError
from MITSGANLib.runtime.threads import usable_cores
from MITSGANTrainingLib.workers import run_all


def halve(number):
    if number % 2:
        raise InputError(f"{number} is odd.")
    return number // 2


def die_at_three(number):
    if number == 3:
        os._exit(1)
    return number


EXPECTED = [(0, 0, ""), (1, None, "1 is odd."), (2, 1, ""), (3, None, "3 is odd.")]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_failures_are_reported_with_their_item(processes):
    found = [(o.item, o.result, o.error) for o in run_all(halve, range(4), processes=processes)]
    assert sorted(found, key=lambda row: row[0]) == EXPECTED


@pytest.mark.slow
def test_a_killed_process_costs_its_own_item_only():
    found = {o.item: o for o in run_all(die_at_three, range(5), processes=2)}
    assert sorted(found) == list(range(5))
    assert "killed" in found[3].error
    assert [found[n].result for n in (0, 1, 2, 4)] == [0, 1, 2, 4]


@pytest.mark.slow
def test_a_dask_scheduler_gives_the_same():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        found = [(o.item, o.result, o.error) for o in run_all(halve, range(4), scheduler=cluster.scheduler_address)]
    assert sorted(found, key=lambda row: row[0]) == EXPECTED


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("MITSGANTrainingLib.workers.CONNECT_SECONDS", 1)
    with pytest.raises(InputError, match="does not answer"):
        list(run_all(halve, range(2), scheduler="tcp://127.0.0.1:9"))


def test_there_is_a_core():
    assert usable_cores() >= 1
