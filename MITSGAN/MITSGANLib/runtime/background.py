"""Heavy work in a thread of its own, while the thread that started it keeps an interface alive.

Networks and NumPy release Python's lock while they compute, so the interface stays responsive even within one batch.
The work must not touch Qt or MRML, which belong to the interface's thread.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from ..errors import CancelledError
from .threads import garbage

T = TypeVar("T")

INTERVAL_SECONDS = 0.02


class BackgroundTask:
    """A function that runs in a thread from the moment this object is made.

    Whoever makes it calls :meth:`wait` until that says True, or :meth:`abandon`: no garbage is collected before.
    Collecting it in the thread, as an import of a large package would, could destroy objects of the interface there,
    which crashes; nothing here makes much of it.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        garbage.pause()
        self._is_holding = True
        try:
            executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="MITSGAN")
            self._future = executor.submit(work)
        except BaseException:
            self.abandon()
            raise
        executor.shutdown(wait=False)

    def wait(self, seconds: float) -> bool:
        """Let the work go on for at most ``seconds``; True when it has ended."""
        ended = bool(wait([self._future], timeout=seconds).done)
        if ended:
            self.abandon()
        return ended

    def abandon(self) -> None:
        """Collect garbage again, though the function may still run: nobody waits for it."""
        if self._is_holding:
            self._is_holding = False
            garbage.resume()

    def result(self) -> Any:
        """What the function returned; what it raised is raised here."""
        return self._future.result()


def run_in_background(
    work: Callable[[Callable[..., None]], T], progress: Callable[..., None] | None, keep_alive: Callable[[], None]
) -> T:
    """Run ``work(report)`` in a thread and give its result.

    :param work: calls ``report(...)`` now and then, which raises ``CancelledError`` once the work is to stop.
    :param progress: called in this thread with the arguments of the latest report; may raise ``CancelledError``.
    :param keep_alive: called in this thread all the time to process events; may raise ``CancelledError``, too.
    """
    reports: queue.SimpleQueue[tuple] = queue.SimpleQueue()
    stop = threading.Event()

    def report(*arguments: Any) -> None:
        if stop.is_set():
            raise CancelledError("Canceled.")
        reports.put(arguments)

    task = BackgroundTask(lambda: work(report))
    cancelled: CancelledError | None = None
    ended = False
    try:
        while not ended:
            # Asked before the reports are taken, so that none that came before the end is lost.
            ended = task.wait(INTERVAL_SECONDS)
            latest = None
            while not reports.empty():
                latest = reports.get()
            try:
                if latest and progress and cancelled is None:
                    progress(*latest)
                keep_alive()
            except CancelledError as error:
                cancelled = cancelled or error
                stop.set()
    except BaseException:
        stop.set()
        raise
    finally:
        task.abandon()
    if cancelled is not None:
        raise cancelled
    return task.result()


class Pace:
    """How fast work goes, from the moment this object is made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started = clock, clock()

    def restart(self) -> None:
        """Count from now on, as when another stage begins."""
        self._started = self._clock()

    def rate(self, done: int) -> float:
        """Steps in a second; 0 before the first."""
        return done / max(self._clock() - self._started, 1e-6)

    def seconds_left(self, done: int, total: int) -> float | None:
        """None before the first step."""
        return (total - done) / self.rate(done) if done else None


class Throttle:
    """Says whether it is time again, once for each ``seconds``, from the first question on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock, self._next = seconds, clock, -math.inf

    def is_due(self) -> bool:
        """Whether ``seconds`` have gone by since it last was."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True
