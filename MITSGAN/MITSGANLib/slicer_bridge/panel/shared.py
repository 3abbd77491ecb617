"""What the sections of the panel share: widgets, buttons and what they wait for, dialogs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from ..inspection import Inspection
from ..packages import FIGURES, KEYS, NETWORKS, TORCH, declined, install, missing
from ..targets import has_target, target_problem
from ..volumes import is_protected
from .inquiry import Inquiry
from .install import InstallChoice, ask_to_install
from .jobs import JobRunner

# After which a text has its width: on a slow computer, Slicer shows the panel's scroll bar late.
_SETTLED_MILLISECONDS = (0, 300, 1000)


@dataclass(frozen=True)
class _Control:
    """A widget that is enabled while nothing is missing.

    :param tool_tip: of the widget while it is enabled.
    :param missing: what the user has to do first; empty when nothing.
    :param waits: whether it is disabled while a job runs.
    """

    widget: Any
    tool_tip: str
    missing: Callable[[], str]
    waits: bool


def nothing() -> str:
    """What is missing for a control that is always usable."""
    return ""


class Section:
    """One section of the panel; what it has no need of, it leaves as it is here."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel

    def refresh(self) -> None:
        """Show what the parameter node says."""

    def update(self) -> None:
        """Show what depends on more than the parameter node; called after every change."""

    def enter(self) -> None:
        """Choose what the user has not chosen, when the module is opened or another scene is there."""

    def leave(self) -> None:
        """End what must not go on when the user leaves the module or closes the scene."""

    def scene_closes(self) -> None:
        """Forget what is about the scene that is about to go."""

    def scene_closed(self) -> None:
        """Forget what was about the scene that has gone."""

    def close(self) -> None:
        """Let go of what outlives the panel."""


class Panel:
    """Widgets, logic, the running job, the parameter node, and whether its source looks like CT.

    :param ui: the widgets of the ``.ui`` by name.
    :param window: parent of timers and dialogs.
    :param observer: has ``addObserver`` and ``removeObserver`` of Slicer's VTKObservationMixin, and removes all in the
        end; and ``developerMode`` of a module's widget.
    :param make_logic: makes the module's logic from what runs its work, see :meth:`JobRunner.compute`.
    :param resource_path: gives the path of a file of the module's resources.

    ``inspection`` of the displayed volume is None while its voxels are being looked at; ``has_open_watermark`` says
    whether one of which nothing is recorded carries it, None for not known.
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
        self.is_developer = bool(observer.developerMode)
        self.parameters: Any = None
        self.inspection: Inspection | None = None
        self.has_open_watermark: bool | None = None
        self.inquiry = Inquiry(self.timer, self._refresh_if_open)
        self.is_closed = self._is_changing = False
        self.sections: Sequence[Section] = ()
        self._controls: list[_Control] = []

    # All sections

    def refresh(self) -> None:
        """Show what the parameter node says."""
        if self._is_changing:
            return
        for section in self.sections:
            section.refresh()
        self.changed()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Show the parameter node once, after several changes of it: each time takes a tenth of a second."""
        self._is_changing = True
        try:
            yield
        finally:
            self._is_changing = False
            self._refresh_if_open()

    def changed(self) -> None:
        """Let texts and buttons follow what has changed."""
        if self.is_closed:
            return
        for section in self.sections:
            section.update()
        running = self.jobs.button
        for control in self._controls:
            if control.widget is running:
                reason, tool_tip = "", _("Stop; nothing is left behind.")
            else:
                waits = running is not None and control.waits
                reason = _("Wait until the work in progress is finished, or cancel it.") if waits else control.missing()
                tool_tip = control.tool_tip
            control.widget.enabled = not reason
            control.widget.toolTip = reason or tool_tip

    def enter(self) -> None:
        """Choose what the user has not chosen, when the module is opened or another scene is there."""
        for section in self.sections:
            section.enter()

    def leave(self) -> None:
        """End what must not go on when the user leaves the module or closes the scene."""
        self.inquiry.forget()
        for section in self.sections:
            section.leave()

    def scene_closes(self) -> None:
        """Forget what is about the scene that is about to go."""
        for section in self.sections:
            section.scene_closes()

    def scene_closed(self) -> None:
        """Forget what was about the scene that has gone."""
        # IDs of nodes are used again in another scene.
        self.inquiry.clear()
        for section in self.sections:
            section.scene_closed()

    def close(self) -> None:
        """Cancel, and touch no widget any more: they are about to be destroyed."""
        self.is_closed = True
        self.jobs.close()
        self.inquiry.stop()
        for section in self.sections:
            section.close()

    def _refresh_if_open(self) -> None:
        if self.parameters and not self.is_closed:
            self.refresh()

    # Buttons

    def add_control(self, *widgets: Any, missing: Callable[[], str] = nothing, waits: bool = False) -> None:
        """Enable widgets while nothing is missing; their tool tips say what is.

        :param missing: what the user has to do first; empty when nothing.
        :param waits: whether they are disabled while a job runs.
        """
        self._controls += [_Control(widget, widget.toolTip, missing, waits) for widget in widgets]

    def add_job(
        self,
        button: Any,
        bar: Any,
        work: Callable[..., None],
        *,
        unit: str,
        failure: str,
        icon: str = "",
        missing: Callable[[], str] = nothing,
        ask: Callable[[], Any] | None = None,
    ) -> None:
        """Let a button start heavy work, and cancel it while it runs.

        :param bar: shows progress, in steps that ``unit`` names.
        :param work: called with what takes ([stage,] done, total), and with the answer of ``ask`` if there is one.
        :param failure: what the message box says when the work fails.
        :param missing: what the user has to do first; empty when nothing.
        :param ask: asks the user before the work; None as its answer leaves it undone.
        """
        if icon:
            self.set_icon(button, icon)

        def press() -> None:
            if self.jobs.press(button):
                return
            with slicer.util.tryWithErrorDisplay(failure):
                answers = ()
                if ask:
                    answer = None
                    with self.jobs.showing_error():
                        answer = ask()
                    if answer is None:
                        return
                    answers = (answer,)
                with self.jobs.running(button, bar, unit) as progress:
                    work(progress, *answers)

        button.connect("clicked()", press)
        self.add_control(button, missing=missing, waits=True)

    @contextmanager
    def trying(self, failure: str) -> Iterator[None]:
        """Do something quick; what goes wrong is shown in a message box and stays in the panel."""
        with slicer.util.tryWithErrorDisplay(failure), self.jobs.showing_error():
            yield

    # What may be missing

    @property
    def is_usable(self) -> bool:
        """Whether the displayed volume looks like CT in HU."""
        return self.inspection is not None and self.inspection.is_ct

    def missing_volume(self) -> str:
        """What the user has to do before there is a CT volume; empty when nothing."""
        if not self.parameters or not self.parameters.volume:
            return _("Select a CT volume.")
        return self.inspection.problem if self.inspection else ""

    def missing_source(self) -> str:
        """What the user has to do before there is the scan that the volume is or was made from; empty when nothing."""
        missing = self.missing_volume()
        if not missing and not self.parameters.sourceVolume:
            missing = _("The original of this volume is no longer in the scene; load it again.")
        return missing

    def missing_protected(self) -> str:
        """What the user has to do before there is a CT volume and its protected version; empty when nothing."""
        missing = self.missing_source()
        if not missing and self.parameters.protectedVolume in (None, self.parameters.sourceVolume):
            is_lonely = is_protected(self.parameters.sourceVolume)
            missing = (
                _("The original of this protected volume is not in the scene; load it.")
                if is_lonely
                else _("Protect the scan first.")
            )
        return missing

    def missing_target(self) -> str:
        """What the user has to do before both volumes can be attacked; empty when nothing."""
        missing = self.missing_protected()
        if not missing and not has_target(self.parameters.targetPoint):
            missing = _("Place a target.")
        return missing or target_problem(self.parameters.targetPoint, self.parameters.sourceVolume)

    # Widgets, packages and dialogs

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
        """Show a text, all of it, or no label where there is none."""
        label.text = text
        label.setVisible(bool(text))
        label.setMinimumHeight(0)
        # Or Qt keeps the height that a shorter text had. Not now: a label has its width once it is shown, and another
        # once the panel needs a scroll bar.
        for milliseconds in _SETTLED_MILLISECONDS:
            qt.QTimer.singleShot(milliseconds, lambda: self._fit(label))

    def _fit(self, label: Any) -> None:
        if not self.is_closed and label.visible:
            label.setMinimumHeight(max(0, label.heightForWidth(label.width)))
            # Or the row below may stay where it was, over the last line.
            layout = label.parent().layout()
            if layout is not None:
                layout.invalidate()
                layout.activate()

    def bring_into_sight(self, widget: Any) -> None:
        """Scroll Slicer's module panel to a widget, once its text has its height."""

        def scroll() -> None:
            area = None if self.is_closed else widget.parent()
            while area is not None and not area.inherits("QScrollArea"):
                area = area.parent()
            if area is not None:
                area.ensureWidgetVisible(widget)

        qt.QTimer.singleShot(_SETTLED_MILLISECONDS[-1], scroll)

    def bind(self, combo_box: Any, parameter: str) -> None:
        """Let the choice in a combo box, the data of its item, be the value of a parameter."""

        def take(index: int) -> None:
            if self.parameters and index >= 0:
                setattr(self.parameters, parameter, combo_box.itemData(index))

        combo_box.connect("currentIndexChanged(int)", take)

    def ensure_packages(self, *names: str, has_other_way: bool = False) -> bool:
        """Offer to install what is missing; whether all is there now.

        :param names: as Python imports them; none stands for all that networks and figures need.
        :param has_other_way: whether the work can be done without PyTorch; then the user may choose that.
        :raises CancelledError: the user does not want the packages.
        :raises DependencyError: they cannot be installed.
        """
        lacking = missing(names or (*KEYS, *NETWORKS, *FIGURES))
        if not lacking or slicer.app.testingEnabled():
            return True
        answer = ask_to_install(self.window, lacking, has_other_way=has_other_way and TORCH in lacking)
        if answer is InstallChoice.NOTHING:
            raise declined()
        if answer is InstallChoice.WITHOUT_NETWORKS:
            lacking = missing(KEYS)
        cpu_only = bool(self.parameters) and self.parameters.device == "cpu"
        install(lacking, self._resource_path("requirements.txt"), self.jobs.say, cpu_only=cpu_only)
        return answer is InstallChoice.ALL

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
        return _("Volumes") + " (*.nrrd *.nii.gz *.nii *.mha *.mhd)"


def select(combo_box: Any, data: Any) -> None:
    """Select the item of a combo box that was filled at run time by its data."""
    combo_box.setCurrentIndex(combo_box.findData(data))


def _path(text: str) -> Path | None:
    return Path(text) if text else None
