"""The section that writes the protected volume, and a report, to the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from ..origin import INSTANCES_ATTRIBUTE
from ..packages import FIGURES, KEYS, NETWORKS, PAGE
from ..reports import remember_report
from ..targets import target_from_markups
from ..volumes import is_simulated_attack, is_watermarked_alone
from .shared import Section


class ExportSection(Section):
    """Writes DICOM, files and the report."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        ui, failure = panel.ui, _("Failed to export the protected volume.")
        panel.add_job(
            ui.exportDicomButton,
            ui.protectProgressBar,
            lambda *arguments: self.export(panel.logic.exportDicom, *arguments),
            unit=_("slices"),
            failure=failure,
            icon="Export",
            missing=self._missing_for_dicom,
            ask=self._ask_for_folder,
        )
        panel.add_job(
            ui.exportFileButton,
            ui.protectProgressBar,
            lambda *arguments: self.export(panel.logic.exportFile, *arguments),
            unit=_("steps"),
            failure=failure,
            icon="Export",
            missing=self._missing_for_file,
            ask=lambda: panel.ask_for_new_file(_("Protected volume"), "protected.nrrd", panel.volume_files),
        )
        panel.add_job(
            ui.reportButton,
            ui.reportProgressBar,
            self.save_report,
            unit=_("steps"),
            failure=_("Failed to write the report."),
            icon="Report",
            missing=self._missing_for_report,
            ask=lambda: panel.ask_for_new_file(_("Report"), "report.html", "HTML (*.html)"),
        )

    def export(self, write: Callable[..., Path | None], progress: Callable[..., None], path: Path) -> None:
        """Write the protected volume, as DICOM into a folder or as a file."""
        parameters = self._panel.parameters
        written = write(
            parameters.protectedVolume,
            path,
            parameters.sourceVolume,
            proofs=self._panel.keys.open_proofs(),
            progress=progress,
        )
        self._panel.jobs.say(_("Wrote {path}.").format(path=written or path))

    def save_report(self, progress: Callable[..., None], path: Path) -> None:
        """Write the report of the demonstration for this scene."""
        panel, parameters = self._panel, self._panel.parameters
        panel.ensure_packages(*KEYS, *NETWORKS, *FIGURES, *PAGE)
        panel.logic.saveReport(
            parameters.sourceVolume,
            parameters.protectedVolume,
            target_from_markups(parameters.targetPoint),
            path,
            parameters.action,
            parameters.attacker,
            attacked_nodes=[node for node in (parameters.sourceAttacked, parameters.protectedAttacked) if node],
            effect=panel.compare.effect,
            device=parameters.device,
            progress=progress,
        )
        remember_report(path)
        panel.jobs.say(_("Wrote {path}.").format(path=path))

    def _ask_for_folder(self) -> Path | None:
        # Before the dialog: a reason not to export should not cost a choice.
        parameters = self._panel.parameters
        self._panel.logic.checkDicomExport(parameters.protectedVolume, parameters.sourceVolume)
        return self._panel.ask_for_folder(_("Empty folder for the protected series"))

    def _missing_for_dicom(self) -> str:
        missing = self._panel.missing_protected()
        if not missing and is_simulated_attack(self._panel.parameters.protectedVolume):
            return _("A simulated attack is never exported as DICOM, so that it cannot pass for a patient's scan.")
        if not missing and not self._panel.parameters.sourceVolume.GetAttribute(INSTANCES_ATTRIBUTE):
            return _("This CT was not loaded through Slicer's DICOM module, so it has no headers: export it as a file.")
        return missing

    def _missing_for_file(self) -> str:
        missing = self._panel.missing_protected()
        if not missing and is_simulated_attack(self._panel.parameters.protectedVolume):
            return _("A simulated attack is no protected volume; Slicer's own Save writes it, marked as what it is.")
        return missing

    def _missing_for_report(self) -> str:
        missing = self._panel.missing_target()
        if not missing and is_watermarked_alone(self._panel.parameters.protectedVolume):
            return _("The report shows what a model's protection does to an attack. A watermark does nothing to it.")
        return missing
