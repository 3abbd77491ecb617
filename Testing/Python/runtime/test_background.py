"""Work in a thread while another keeps an interface alive: results, errors, reports, cancellation, pace."""

from __future__ import annotations

import gc
import threading

import pytest
from MITSGANLib.errors import CancelledError, InputError
from MITSGANLib.runtime.background import BackgroundTask, Pace, Throttle, run_in_background


def test_the_result_comes_back_and_work_ran_in_another_thread():
    assert run_in_background(lambda _report: threading.get_ident(), None, lambda: None) != threading.get_ident()


def test_reports_arrive_in_the_callers_thread_and_the_last_is_never_lost():
    seen = []

    def work(report):
        for done in range(100):
            report("stage", done + 1, 100)

    run_in_background(work, lambda *report: seen.append((threading.get_ident(), report)), lambda: None)
    assert seen[-1] == (threading.get_ident(), ("stage", 100, 100))


def test_the_interface_is_kept_alive_meanwhile():
    release = threading.Event()
    calls = []

    def keep_alive():
        calls.append(1)
        if len(calls) == 3:
            release.set()

    assert run_in_background(lambda _report: release.wait(30), None, keep_alive)
    assert len(calls) >= 3


def test_an_error_of_the_work_is_raised():
    def work(_report):
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        run_in_background(work, None, lambda: None)


@pytest.mark.parametrize("by", ["progress", "keep_alive"])
def test_cancel_stops_the_work_at_its_next_report(by):
    started, stopped = threading.Event(), []

    def work(report):
        try:
            while True:
                report(1, 2)
                started.set()
        except CancelledError:
            stopped.append(True)
            raise

    def cancel(*_report):
        started.wait(30)
        raise CancelledError("enough")

    with pytest.raises(CancelledError, match="enough"):
        run_in_background(work, cancel if by == "progress" else None, cancel if by == "keep_alive" else lambda: None)
    assert stopped == [True]


def test_no_garbage_is_collected_while_a_thread_works():
    """It would be collected in that thread, and with it objects of the interface."""
    assert gc.isenabled()
    release = threading.Event()
    first = BackgroundTask(lambda: release.wait(30) and gc.isenabled())
    assert run_in_background(lambda _report: gc.isenabled(), None, lambda: None) is False
    assert not first.wait(0)
    assert not gc.isenabled(), "the other thread still works"
    release.set()
    assert first.wait(30)
    assert first.result() is False
    assert gc.isenabled()
    abandoned = BackgroundTask(lambda: release.wait(30))
    abandoned.abandon()
    assert gc.isenabled()
    abandoned.wait(30)
    assert gc.isenabled()


def test_garbage_is_collected_where_no_thread_can_begin(monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        BackgroundTask(lambda: None)
    assert gc.isenabled()


def test_garbage_is_collected_again_after_an_interruption():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_background(lambda _report: None, None, interrupt)
    assert gc.isenabled()


def test_pace_by_a_given_clock():
    now = [10.0]
    pace = Pace(lambda: now[0])
    assert pace.seconds_left(0, 10) is None
    now[0] = 14.0
    assert pace.rate(8) == pytest.approx(2.0)
    assert pace.seconds_left(8, 10) == pytest.approx(1.0)
    pace.restart()
    now[0] = 15.0
    assert pace.rate(1) == pytest.approx(1.0)


def test_throttle_by_a_given_clock():
    now = [10.0]
    often = Throttle(0.2, lambda: now[0])
    asked = [(now.__setitem__(0, 10 + tick / 100), often.is_due())[1] for tick in range(100)]
    assert sum(asked) == 5, "a hundred reports in a second are shown five times"
    assert asked[0]
