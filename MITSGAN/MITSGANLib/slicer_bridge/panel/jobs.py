"""One heavy job at a time: its button cancels it, its bar shows progress, the status line says how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import slicer
from slicer.i18n import tr as _

from ...errors import CancelledError
from ...runtime.background import Pace, Throttle, run_in_background
from ..volumes import require_in_scene

DOUBLE_CLICK_SECONDS = 0.6
STATUS_MILLISECONDS = 10_000
PROGRESS_SECONDS = 0.5
"""Between two changes of the progress bar: each draws the whole window anew, which slows down what it is about."""


class JobRunner:
    """Runs the heavy work of a panel in the background while the application stays responsive.

    :param status_label: where results and errors are left to be read.
    """

    def __init__(self, status_label: Any, on_change: Callable[[], None]) -> None:
        self._status_label, self._on_change = status_label, on_change
        self._button: Any = None
        self._cancel_words = ""
        self._started = 0.0
        self._closed = False

    @property
    def button(self) -> Any:
        """The button of the job that is running; None when there is none."""
        return self._button

    def press(self, button: Any) -> bool:
        """Whether a press of ``button`` was meant to cancel, or came while other work runs; cancels its own job."""
        if self._button is None:
            return False
        # The second half of a double-click is no wish to cancel.
        if self._button is button and time.monotonic() - self._started > DOUBLE_CLICK_SECONDS:
            self.cancel()
        return True

    def cancel(self, words: str = "") -> None:
        """Ask the running job, if any, to stop at its next step.

        :param words: said then; empty for that the user canceled.
        """
        if self._button is not None:
            self._cancel_words = words or _("Canceled; nothing was changed.")
            if not self._closed:
                self._button.text = _("Canceling…")

    def close(self) -> None:
        """Cancel, and touch no widget any more: they are about to be destroyed."""
        self._closed = True
        self.cancel()

    def compute(self, work: Callable[[Any], Any], progress: Any) -> Any:
        """``work(progress)`` in the background; see :mod:`~MITSGANLib.runtime.background`."""
        return run_in_background(work, progress, self._keep_alive)

    def say(self, text: str) -> None:
        """Show a result in the status line, and for a while in the application's, which is always in sight."""
        if not self._closed:
            self._status_label.styleSheet = ""
            self._status_label.text = text
            self._status_label.setVisible(bool(text))
            slicer.util.showStatusMessage(text, STATUS_MILLISECONDS)

    @contextmanager
    def running(self, button: Any, bar: Any, unit: str) -> Iterator[Callable[..., None]]:
        """While inside, ``button`` cancels. Gives a function ([stage,] done, total) that shows progress."""
        text = button.text
        self._button, self._cancel_words, self._started = button, "", time.monotonic()
        button.text = _("Cancel")
        bar.setRange(0, 0)
        bar.format = ""
        bar.setVisible(True)
        self.say("")
        self._on_change()
        slicer.app.processEvents()
        try:
            with self.showing_error():
                yield self._progress(bar, unit)
        finally:
            self._button = None
            if not self._closed:
                button.text = text
                bar.setVisible(False)
                self._on_change()

    @contextmanager
    def showing_error(self) -> Iterator[None]:
        """Leave what went wrong in the panel, where it can still be read when the message box is closed.

        What the user canceled, or declined, is no error: it is said and goes no further.
        """
        try:
            yield
        except CancelledError as canceled:
            self.say(str(canceled))
        except Exception as error:
            self.say(str(error))
            if not self._closed:
                self._status_label.styleSheet = "font-weight: bold"
            raise

    def _progress(self, bar: Any, unit: str) -> Callable[..., None]:
        pace, often = Pace(), Throttle(PROGRESS_SECONDS)
        stages: list[str] = []

        def show(*report: Any) -> None:
            *stage, done, total = report
            if self._closed or not (often.is_due() or stage != stages or done == total):
                return
            if stage and stage != stages:
                stages[:] = stage
                pace.restart()
            # Without a total nobody knows how long it takes, and the bar only moves.
            bar.format = _progress_text(stage, done, total, pace, unit) if total else ""
            # Qt takes no integers of NumPy's.
            bar.setRange(0, int(total))
            bar.setValue(int(done))

        return show

    def breathe(self, *nodes: slicer.vtkMRMLNode) -> None:
        """Let the application draw and listen between two steps that take it a tenth of a second each.

        :raises CancelledError: one of the nodes is no longer in the scene.
        """
        slicer.app.processEvents()
        require_in_scene(*nodes)

    def _keep_alive(self) -> None:
        slicer.app.processEvents()
        if self._cancel_words:
            raise CancelledError(self._cancel_words)


def _progress_text(stage: Sequence[str], done: int, total: int, pace: Pace, unit: str) -> str:
    left = pace.seconds_left(done, total)
    words = f"{stage[0]}: " if stage else ""
    if left is None:
        return words + _("{done} of {total} {unit}").format(done=done, total=total, unit=unit)
    return words + _("{done} of {total} {unit}, {rate:.1f}/s, {left:.0f} s left").format(
        done=done, total=total, unit=unit, rate=pace.rate(done), left=left
    )
