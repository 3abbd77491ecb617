"""What the sections of the panel share: widgets, buttons and what they wait for, dialogs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from ...errors import CancelledError
from .. import packages
from ..inspection import Inspection
from ..packages import FIGURES, KEYS, NETWORKS, TORCH
from ..targets import has_target, target_problem
from ..volumes import is_protected
from .jobs import Inquiry, JobRunner

# After which a text has its width: on a slow computer, Slicer shows the panel's scroll bar late.
_SETTLED_MILLISECONDS = (0, 300, 1000)


def nothing() -> str:
    """What is missing for a control that is always usable."""
    return ""


class Section:
    """One section of the panel; what it has no need of, it leaves as it is here.

    Sections find each other by their names in the panel, as in ``self._panel.keys``.
    """

    def __init__(self, panel: Any) -> None:
        self._panel = panel
        panel.sections.append(self)

    def refresh(self) -> None:
        """Show what the parameter node says."""

    def update(self) -> None:
        """Show what depends on more than the parameter node; called after every change."""

    def enter(self) -> None:
        """Choose what the user has not chosen, when the module is opened or another scene is there."""

    def leave(self) -> None:
        """End what must not go on when the user leaves the module or closes the scene."""

    def scene_closes(self) -> None:
        """Forget what is about the scene that is about to go; IDs of nodes are used again in another."""

    def scene_closed(self) -> None:
        """Do what has to wait until that scene has gone."""

    def close(self) -> None:
        """Let go of what outlives the panel."""


class Panel:
    """Widgets, logic, the running job, the parameter node, and what is known of the displayed volume.

    :param module_widget: has the widgets of the ``.ui`` by name, the window, the module's resources and Slicer's
        VTKObservationMixin, which removes all observers in the end.
    :param make_logic: makes the module's logic from what runs its work, see :meth:`JobRunner.compute`.

    ``inspection`` of the displayed volume is None while its voxels are being looked at; ``has_open_watermark`` says
    whether one of which nothing is recorded carries it, None for not known.
    """

    def __init__(self, module_widget: Any, make_logic: Callable[[Callable[..., Any]], Any]) -> None:
        self.ui, self.window, self.module_widget = module_widget.ui, module_widget.parent, module_widget
        self.jobs = JobRunner(self.ui.statusLabel, self.changed)
        self.logic = make_logic(self.jobs.compute)
        self.parameters: Any = None
        self.inspection: Inspection | None = None
        self.has_open_watermark: bool | None = None
        self.inquiry = Inquiry(self.timer, self._refresh_if_open)
        self.is_closed = self._is_changing = False
        self.sections: list[Section] = []
        self._controls: list[tuple[Any, str, Callable[[], str], bool]] = []
        # Qt's tables do not keep them.
        self._items: dict[tuple[str, int, int], Any] = {}

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
        for widget, tool_tip, missing, waits in self._controls:
            if widget is running:
                reason, tool_tip = "", _("Stop; nothing is left behind.")
            elif running is not None and waits:
                reason = _("Wait until the work in progress is finished, or cancel it.")
            else:
                reason = missing()
            widget.enabled = not reason
            widget.toolTip = reason or tool_tip

    def leave(self) -> None:
        """End what must not go on when the user leaves the module or closes the scene."""
        self.inquiry.forget()
        for section in self.sections:
            section.leave()

    def scene_closes(self) -> None:
        """Forget what is about the scene that is about to go."""
        self.inquiry.clear()
        if self.jobs.button is None:
            # It may name a patient's volume; a job that runs says itself how it ended.
            self.jobs.say("")
        for section in self.sections:
            section.scene_closes()

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
        self._controls += [(widget, widget.toolTip, missing, waits) for widget in widgets]

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
                answers = []
                if ask:
                    with self.jobs.showing_error():
                        answers.append(ask())
                    if answers in ([], [None]):
                        return
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
        return self.inspection is not None and not self.inspection.problem

    def missing_volume(self) -> str:
        """What the user has to do before there is a CT volume; empty when nothing."""
        if not self.parameters or not self.parameters.volume:
            return _("Select a CT volume.")
        return self.inspection.problem if self.inspection else ""

    def missing_source(self) -> str:
        """What the user has to do before there is the scan that the volume is or was made from; empty when nothing."""
        missing = self.missing_volume()
        if missing or self.parameters.sourceVolume:
            return missing
        return _("The original of this volume is no longer in the scene; load it again.")

    def missing_protected(self) -> str:
        """What the user has to do before there is a CT volume and its protected version; empty when nothing."""
        missing = self.missing_source()
        if missing or self.parameters.protectedVolume not in (None, self.parameters.sourceVolume):
            return missing
        if is_protected(self.parameters.sourceVolume):
            return _("The original of this protected volume is not in the scene; load it.")
        return _("Protect the scan first.")

    def missing_target(self) -> str:
        """What the user has to do before both volumes can be attacked; empty when nothing."""
        missing = self.missing_protected()
        if missing:
            return missing
        if not has_target(self.parameters.targetPoint):
            return _("Place a target.")
        return target_problem(self.parameters.targetPoint, self.parameters.sourceVolume)

    # Widgets, packages and dialogs

    def timer(self, milliseconds: int, slot: Callable[[], None]) -> Any:
        """A stopped timer."""
        timer = qt.QTimer(self.window)
        timer.setInterval(milliseconds)
        timer.connect("timeout()", slot)
        return timer

    def observe(self, node: Any, event: int, method: Callable[..., None]) -> None:
        """Call a method of events of a node, once for each, however often it is asked for."""
        if not self.module_widget.hasObserver(node, event, method):
            self.module_widget.addObserver(node, event, method)

    def later(self, do: Callable[[], object], milliseconds: int = 0) -> None:
        """Do something once the present event is over, unless the panel is closed by then."""

        def fire() -> None:
            # Slicer's own singleShot keeps each timer until it ends, and so all that is called, a removed scan as well.
            timer.deleteLater()
            if not self.is_closed:
                do()

        timer = self.timer(milliseconds, fire)
        timer.setSingleShot(True)
        timer.start()

    def set_icon(self, button: Any, name: str) -> None:
        """Give a button one of the module's icons."""
        button.setIcon(qt.QIcon(self.module_widget.resourcePath(f"Icons/{name}.png")))

    def show_text(self, label: Any, text: str) -> None:
        """Show a text, all of it, or no label where there is none."""
        label.text = text
        label.setVisible(bool(text))
        label.setMinimumHeight(0)
        # Or Qt keeps the height that a shorter text had. Not now: a label has its width once it is shown, and another
        # once the panel needs a scroll bar.
        for milliseconds in _SETTLED_MILLISECONDS:
            self.later(lambda: _fit(label), milliseconds)

    def set_row(self, table: Any, row: int, texts: Sequence[str], tool_tip: str = "") -> None:
        """Fill a row of a table, which has it already; the tool tip of a cell is its text where there is no other."""
        for column, text in enumerate(texts):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(tool_tip or text)
            table.setItem(row, column, item)
            self._items[table.name, row, column] = item

    def bring_into_sight(self, widget: Any) -> None:
        """Scroll Slicer's module panel to a widget, once its text has its height."""

        def scroll() -> None:
            area = widget.parent()
            while area is not None and not area.inherits("QScrollArea"):
                area = area.parent()
            if area is not None:
                area.ensureWidgetVisible(widget)

        self.later(scroll, _SETTLED_MILLISECONDS[-1])

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
        lacking = packages.missing(names or (*KEYS, *NETWORKS, *FIGURES))
        if not lacking or slicer.app.testingEnabled():
            return True
        chosen = self._ask_to_install(lacking, has_other_way=has_other_way and TORCH in lacking)
        if chosen is None:
            raise CancelledError(_("Canceled: the packages are needed for this, and nothing was installed."))
        cpu_only = bool(self.parameters) and self.parameters.device == "cpu"
        packages.install(chosen, self.module_widget.resourcePath("requirements.txt"), self.jobs.say, cpu_only=cpu_only)
        return chosen == lacking

    def _ask_to_install(self, names: Sequence[str], *, has_other_way: bool) -> Sequence[str] | None:
        """Which of these packages may be installed; None where the user wants nothing of it."""
        known = packages.known_packages()
        lines = [
            _("• {name}, about {size} MB: {purpose}").format(name=one.name, size=one.megabytes, purpose=one.purpose)
            for one in (known[name] for name in names)
        ]
        if TORCH in names:
            words = _(
                "PyTorch for an NVIDIA GPU takes up to 3,000 MB. Choose the device CPU under Advanced for the small "
                "one."
            )
            lines.append(words)
        box = qt.QMessageBox(self.window)
        box.setWindowTitle(_("Install Python packages?"))
        box.setText(_("MITSGAN needs packages that Slicer does not ship. They are loaded from the internet once."))
        box.setInformativeText("\n".join(lines))
        install = box.addButton(_("Install"), qt.QMessageBox.AcceptRole)
        other = None
        if has_other_way:
            other = box.addButton(_("Only watermark and signatures (no PyTorch)"), qt.QMessageBox.AcceptRole)
        box.addButton(_("Cancel"), qt.QMessageBox.RejectRole)
        # Qt 5 in Python knows the one name, Qt 6 the other.
        (box.exec_ if hasattr(box, "exec_") else box.exec)()
        pressed = box.clickedButton()
        if pressed == install:
            return names
        return [name for name in names if name in KEYS] if other is not None and pressed == other else None

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


def _fit(label: Any) -> None:
    if label.visible:
        label.setMinimumHeight(max(0, label.heightForWidth(label.width)))
        # Or the row below may stay where it was, over the last line.
        layout = label.parent().layout()
        if layout is not None:
            layout.invalidate()
            layout.activate()


def _path(text: str) -> Path | None:
    return Path(text) if text else None
