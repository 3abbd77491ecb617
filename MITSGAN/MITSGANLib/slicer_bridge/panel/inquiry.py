"""What the panel finds out in the background while nobody waits for it, one question at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from ...runtime.background import BackgroundTask

INTERVAL_MILLISECONDS = 100
# Python's threads run only while Python waits: Qt's event loop does not let go of Python's lock.
_WAIT_SECONDS = 0.05

Question = tuple[Hashable, ...]


class Inquiry:
    """Asks each question once, in a thread, and remembers the answer, which may be an exception.

    :param make_timer: makes a stopped timer from milliseconds and what it calls.
    :param on_answer: called in the panel's thread when an answer has come.
    """

    def __init__(self, make_timer: Callable[[int, Callable[[], None]], Any], on_answer: Callable[[], None]) -> None:
        self._timer, self._on_answer = make_timer(INTERVAL_MILLISECONDS, self._poll), on_answer
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
