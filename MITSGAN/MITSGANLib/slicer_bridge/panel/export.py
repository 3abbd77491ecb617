"""The section that writes the protected volume, and a report, to the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import slicer
from slicer.i18n import tr as _

from ..targets import target_from_markups
from .shared import Panel

if TYPE_CHECKING:
    from .keys import KeysSection


class ExportSection:
    """Writes DICOM, files and the report.

    :param keys: seals and signs, and has at hand what was written last.
    """

    def __init__(self, panel: Panel, keys: KeysSection) -> None:
        self._panel, self._keys = panel, keys
        for button, icon, slot in (
            (panel.ui.exportDicomButton, "Export", self.export_dicom),
            (panel.ui.exportFileButton, "Export", self.export_file),
            (panel.ui.reportButton, "Report", self.save_report),
        ):
            panel.set_icon(button, icon)
            button.connect("clicked()", slot)

    def export_dicom(self) -> None:
        """Write the protected volume as DICOM into a folder of the user's choice; cancel when that is under way."""
        panel, ui = self._panel, self._panel.ui
        if panel.jobs.press(ui.exportDicomButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to export the protected volume.")):
            parameters = panel.parameters
            # Before the dialog: a reason not to export should not cost a choice.
            with panel.jobs.showing_error():
                panel.logic.checkDicomExport(parameters.protectedVolume, parameters.sourceVolume)
            folder = panel.ask_for_folder(_("Empty folder for the protected series"))
            if folder is None:
                return
            with panel.jobs.running(ui.exportDicomButton, ui.exportProgressBar, _("slices")) as progress:
                written = panel.logic.exportDicom(
                    parameters.protectedVolume,
                    folder,
                    parameters.sourceVolume,
                    locks=self._keys.open_locks(),
                    progress=progress,
                )
                self._keys.take_scan(written)
                panel.jobs.say(_("Wrote a derived DICOM series to {folder}.").format(folder=written))

    def export_file(self) -> None:
        """Write the protected volume as a file of the user's choice; cancel when that is under way."""
        panel, ui = self._panel, self._panel.ui
        if panel.jobs.press(ui.exportFileButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to export the protected volume.")):
            path = panel.ask_for_new_file(_("Protected volume"), "protected.nrrd", panel.volume_files)
            if path is None:
                return
            with panel.jobs.running(ui.exportFileButton, ui.exportProgressBar, _("steps")) as progress:
                parameters = panel.parameters
                panel.logic.exportFile(
                    parameters.protectedVolume,
                    path,
                    parameters.sourceVolume,
                    locks=self._keys.open_locks(),
                    progress=progress,
                )
                self._keys.take_scan(path)
                panel.jobs.say(_("Wrote {path}.").format(path=path))

    def save_report(self) -> None:
        """Write the report of the demonstration for this scene; cancel when that is under way."""
        panel, ui = self._panel, self._panel.ui
        if panel.jobs.press(ui.reportButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to write the report.")):
            path = panel.ask_for_new_file(_("Report"), "report.html", "HTML (*.html)")
            if path is None:
                return
            with panel.jobs.running(ui.reportButton, ui.exportProgressBar, _("steps")) as progress:
                parameters = panel.parameters
                panel.ensure_packages()
                panel.logic.saveReport(
                    parameters.sourceVolume,
                    parameters.protectedVolume,
                    target_from_markups(parameters.targetPoint),
                    path,
                    parameters.action,
                    parameters.attacker,
                    device=parameters.device,
                    progress=progress,
                )
                panel.jobs.say(_("Wrote {path}.").format(path=path))
