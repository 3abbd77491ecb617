"""The line that says in words what networks run on and how long protection takes, found out in the background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

from ...runtime.background import BackgroundTask
from ...scan.volume import CTVolume
from ..packages import KEYS, NETWORKS, are_installed

# Python's threads run only while Python waits: Qt's event loop does not let go of Python's lock.
_WAIT_SECONDS = 0.05


class DeviceLine:
    """Asks once for each device, model and volume, one question at a time, and remembers the answers.

    :param label: shows the words.
    :param timer: a stopped timer of about a tenth of a second, whose time-out calls :meth:`poll`.
    :param describe: (device, model, volume or None) -> (device in words, seconds or None); runs in a thread.
    """

    def __init__(
        self, label: Any, timer: Any, describe: Callable[[str, str, CTVolume | None], tuple[str, float | None]]
    ) -> None:
        self._label, self._timer, self._describe = label, timer, describe
        self._task: BackgroundTask | None = None
        self._asked: tuple = ()
        self._wanted: tuple[tuple, Callable[[], CTVolume | None]] | None = None
        self._words: dict[tuple, str] = {}

    @property
    def is_asking(self) -> bool:
        """Whether a question is under way."""
        return self._task is not None

    def show(self, device: str, model: str, volume_key: Any, get_volume: Callable[[], CTVolume | None]) -> None:
        """Show the words for this choice, as soon as they are known.

        :param volume_key: changes when the volume does; None stands for no usable volume.
        """
        if not are_installed(*NETWORKS, *KEYS):
            self._wanted = None
            self._label.text = _("Networks need packages that are not installed yet. The button asks first.")
            return
        self._wanted = ((device, model, volume_key), get_volume)
        self._ask()

    def poll(self) -> None:
        """Give the thread time to work, and take its answer when there is one."""
        if self._task is None or not self._task.wait(_WAIT_SECONDS):
            return
        self._timer.stop()
        task, self._task = self._task, None
        try:
            device, seconds = task.result()
            self._words[self._asked] = (
                device
                if seconds is None
                else _("{device}, about {seconds:.0f} s for this scan").format(device=device, seconds=max(1.0, seconds))
            )
        except Exception as error:  # noqa: BLE001 - a broken torch or driver raises whatever it likes
            self._words[self._asked] = str(error)
        self._ask()

    def forget(self) -> None:
        """Ask nothing until :meth:`show` is called again; the volume asked about may be about to go."""
        self._wanted = None

    def stop(self) -> None:
        """Ask no more at all; a question under way runs to its end unheard."""
        self._timer.stop()
        self.forget()
        if self._task is not None:
            self._task.abandon()

    def _ask(self) -> None:
        if self._wanted is None:
            return
        question, get_volume = self._wanted
        if question in self._words:
            self._label.text = self._words[question]
        elif self._task is None:
            self._label.text = _("Looking at the device…")
            device, model, _key = question
            volume = get_volume()
            self._asked = question
            self._task = BackgroundTask(lambda: self._describe(device, model, volume))
            self._timer.start()
