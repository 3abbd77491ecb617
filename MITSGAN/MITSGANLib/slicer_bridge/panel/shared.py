"""What the sections of the panel share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from ..inspection import Inspection
from ..packages import ensure_key_packages, ensure_packages
from .jobs import JobRunner

VOLUME_FILES = "{} (*.nrrd *.nii.gz *.nii *.mha *.mhd)"


class Panel:
    """Widgets, logic, the job that runs, the parameter node that is shown, and whether its source looks like CT.

    :param ui: the widgets of the ``.ui`` by name.
    :param window: parent of timers and dialogs.
    :param observer: has ``addObserver`` and ``removeObserver`` of Slicer's VTKObservationMixin, and removes all in the
        end.
    :param make_logic: makes the module's logic from what runs its work, see :meth:`JobRunner.compute`.
    :param resource_path: gives the path of a file of the module's resources.
    """

    def __init__(
        self,
        ui: Any,
        window: Any,
        observer: Any,
        make_logic: Callable[[Callable[..., Any]], Any],
        resource_path: Callable[[str], str],
    ) -> None:
        self.ui, self.window, self.observer, self._resource_path = ui, window, observer, resource_path
        self.jobs = JobRunner(ui.statusLabel, self.changed)
        self.logic = make_logic(self.jobs.compute)
        self.parameters: Any = None
        self.inspection: Inspection | None = None
        self.is_closed = False
        self.on_change: Callable[[], None] | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the source volume looks like CT in HU."""
        return self.inspection is not None and self.inspection.is_ct

    def changed(self) -> None:
        """Let the buttons follow what has changed."""
        if self.on_change and not self.is_closed:
            self.on_change()

    def close(self) -> None:
        """Cancel, and touch no widget any more: they are about to be destroyed."""
        self.is_closed = True
        self.jobs.close()

    def timer(self, milliseconds: int, slot: Callable[[], None]) -> Any:
        """A stopped timer."""
        timer = qt.QTimer(self.window)
        timer.setInterval(milliseconds)
        timer.connect("timeout()", slot)
        return timer

    def set_icon(self, button: Any, name: str) -> None:
        """Give a button one of the module's icons."""
        button.setIcon(qt.QIcon(self._resource_path(f"Icons/{name}.png")))

    def show_text(self, label: Any, text: str) -> None:
        """Show a text, or no label where there is none."""
        label.text = text
        label.setVisible(bool(text))

    def ensure_packages(self) -> None:
        """Offer to install what networks and figures need."""
        ensure_packages(self._resource_path("requirements.txt"), self.jobs.say)

    def ensure_key_packages(self) -> None:
        """Offer to install what keys and signatures need."""
        ensure_key_packages(self._resource_path("requirements.txt"))

    def ask_for_file(self, title: str, kinds: str) -> Path | None:
        """A file that exists; None when the user closes the dialog."""
        return _path(qt.QFileDialog.getOpenFileName(self.window, title, "", kinds))

    def ask_for_new_file(self, title: str, suggestion: str, kinds: str) -> Path | None:
        """A file to write; the dialog asks before one is replaced. None when the user closes the dialog."""
        return _path(qt.QFileDialog.getSaveFileName(self.window, title, suggestion, kinds))

    def ask_for_folder(self, title: str, start: str = "") -> Path | None:
        """A folder; None when the user closes the dialog."""
        return _path(qt.QFileDialog.getExistingDirectory(self.window, title, start))

    @property
    def volume_files(self) -> str:
        """The kinds of volume files, as file dialogs want them."""
        return VOLUME_FILES.format(_("Volumes"))


def select(combo_box: Any, data: Any) -> None:
    """Select the item of a combo box that was filled at run time by its data."""
    combo_box.setCurrentIndex(combo_box.findData(data))


def _path(text: str) -> Path | None:
    return Path(text) if text else None
