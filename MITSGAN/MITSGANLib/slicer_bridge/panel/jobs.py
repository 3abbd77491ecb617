"""Work in the background: one heavy job at a time, and questions for whose answers nobody waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import slicer
from slicer.i18n import tr as _

from ...errors import CancelledError
from ...runtime.background import BackgroundTask, Pace, Throttle, run_in_background
from ..volumes import require_in_scene

DOUBLE_CLICK_SECONDS = 0.6
STATUS_MILLISECONDS = 10_000
PROGRESS_SECONDS = 0.5
"""Between two changes of the progress bar: each draws the whole window anew, which slows down what it is about."""


INQUIRY_MILLISECONDS = 100
# Python's threads run only while Python waits: Qt's event loop does not let go of Python's lock.
_WAIT_SECONDS = 0.05

Question = tuple[Hashable, ...]


class JobRunner:
    """Runs the heavy work of a panel while the application stays responsive.

    The button of a job cancels it, its bar shows progress, and the status line says how it ended.

    :param status_label: where results and errors are left to be read.
    """

    def __init__(self, status_label: Any, on_change: Callable[[], None]) -> None:
        self._status_label, self._on_change = status_label, on_change
        self.button: Any = None
        """The button of the job that is running; None when there is none."""
        self._cancel_words = ""
        self._started = 0.0
        self._closed = False

    def press(self, button: Any) -> bool:
        """Whether a press of ``button`` was meant to cancel, or came while other work runs; cancels its own job."""
        if self.button is None:
            return False
        # The second half of a double-click is no wish to cancel.
        if self.button is button and time.monotonic() - self._started > DOUBLE_CLICK_SECONDS:
            self.cancel()
        return True

    def cancel(self, words: str = "") -> None:
        """Ask the running job, if any, to stop at its next step.

        :param words: said then; empty for that the user canceled.
        """
        if self.button is not None:
            self._cancel_words = words or _("Canceled; nothing was changed.")
            if not self._closed:
                self.button.text = _("Canceling…")

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
        self.button, self._cancel_words, self._started = button, "", time.monotonic()
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
            self.button = None
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


class Inquiry:
    """Asks one question at a time, each once, in a thread, and remembers the answer, which may be an exception.

    :param make_timer: makes a stopped timer from milliseconds and what it calls.
    :param on_answer: called in the panel's thread when an answer has come.
    """

    def __init__(self, make_timer: Callable[[int, Callable[[], None]], Any], on_answer: Callable[[], None]) -> None:
        self._timer, self._on_answer = make_timer(INQUIRY_MILLISECONDS, self._poll), on_answer
        self._task: BackgroundTask | None = None
        self._asked: Question = ()
        self._wanted: dict[Hashable, tuple[Question, Callable[[], Any]]] = {}
        self._answers: dict[Question, Any] = {}

    @property
    def is_asking(self) -> bool:
        """Whether a question is under way."""
        return self._task is not None

    def answer(self, question: Question) -> Any:
        """What is known by now; None for nothing."""
        return self._answers.get(question)

    def remember(self, question: Question, answer: Any) -> None:
        """Take an answer that need not be looked for."""
        self._answers[question] = answer

    def ask(self, question: Question, find_out: Callable[[], Any]) -> Any:
        """The answer if it is known; else None, and ``find_out`` runs in a thread once its turn has come.

        :param question: its first part is the topic. Of a topic's questions that wait, the last alone is asked.
        """
        if question not in self._answers and not (self._task and question == self._asked):
            self._wanted[question[0]] = (question, find_out)
            self._next()
        return self.answer(question)

    def forget(self) -> None:
        """Ask nothing until :meth:`ask` is called again; what the questions are about may be about to go."""
        self._wanted.clear()

    def clear(self) -> None:
        """Forget the answers, too."""
        self.forget()
        self._answers.clear()

    def stop(self) -> None:
        """Ask no more at all; a question under way runs to its end unheard."""
        self._timer.stop()
        self.forget()
        if self._task is not None:
            self._task.abandon()

    def _next(self) -> None:
        if self._task is None and self._wanted:
            self._asked, find_out = self._wanted.pop(next(iter(self._wanted)))
            self._task = BackgroundTask(find_out)
            self._timer.start()

    def _poll(self) -> None:
        """Give the thread time to work, and take its answer when there is one."""
        if self._task is None or not self._task.wait(_WAIT_SECONDS):
            return
        self._timer.stop()
        task, self._task = self._task, None
        try:
            self._answers[self._asked] = task.result()
        except Exception as error:  # noqa: BLE001 - a broken torch or driver raises whatever it likes
            self._answers[self._asked] = error
        self._next()
        self._on_answer()
