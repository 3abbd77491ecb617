"""Enables each button when what it needs is there, and says in its tool tip what is missing."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from ..layout import comparison_is_shown
from .conditions import missing_for, missing_for_watermark, missing_on_disk
from .keys import KeysSection
from .protect import WATERMARK
from .shared import Panel


class Buttons:
    """All buttons of the panel, and the choices that wait while a job works on them."""

    def __init__(self, panel: Panel, keys: KeysSection) -> None:
        self._panel, self._keys = panel, keys
        ui = panel.ui
        self._choices = (
            ui.sourceVolumeSelector,
            ui.protectedVolumeSelector,
            ui.sampleChestButton,
            ui.modelComboBox,
            ui.placeTargetButton,
            ui.injectRadioButton,
            ui.removeRadioButton,
            ui.attackerComboBox,
            ui.attackerFolderButton,
            ui.keyFileButton,
            ui.newKeyButton,
            ui.signingKeyButton,
            ui.newSigningKeyButton,
            ui.publicKeyButton,
            ui.passphraseLineEdit,
            ui.scanFolderButton,
            ui.scanFileButton,
            ui.loadRestoredCheckBox,
            ui.checkedVolumeSelector,
        )

    def refresh(self) -> None:
        """Follow the parameter node, the chosen keys, the layout, and the job."""
        ui, is_idle = self._panel.ui, self._panel.jobs.button is None
        self._refresh_jobs()
        self._refresh_results()
        self._keys.choices.refresh(self._panel.parameters, is_idle=is_idle)
        for widget in self._choices:
            widget.enabled = is_idle
        for widget in (ui.strengthSpinBox, ui.deviceComboBox):
            widget.enabled = is_idle and not self._is_watermark

    @property
    def _is_watermark(self) -> bool:
        """Whether the choice is a watermark, which has one strength and runs on no device."""
        return bool(self._panel.parameters) and self._panel.parameters.model == WATERMARK

    def _refresh_jobs(self) -> None:
        ui, running = self._panel.ui, self._panel.jobs.button
        missing = self._missing()
        for name, button, tool_tip in (
            ("protect", ui.protectButton, _("Compute a protected copy of the CT volume.")),
            ("attack", ui.simulateAttackButton, _("Attack both volumes at the target.")),
            ("compare", ui.compareButton, _("Measure the change and show all volumes side by side.")),
            ("export", ui.exportDicomButton, _("Write the protected volume as a derived DICOM series.")),
            ("export file", ui.exportFileButton, _("Write the protected volume as NRRD, NIfTI or MetaImage.")),
            ("report", ui.reportButton, _("Protect, attack and measure once more, and write a report as HTML.")),
            ("sample", ui.samplePhantomButton, _("Make a synthetic thorax with a nodule on this computer.")),
            ("restore", ui.restoreButton, _("Give back the original of a sealed scan, bit for bit.")),
            ("verify", ui.verifyButton, _("Tell whether, and where, a signed scan was changed.")),
            ("check watermark", ui.checkWatermarkButton, _("Tell where the watermark is missing in the volume.")),
        ):
            if running is button:
                _enable(button, "", _("Stop; nothing is left behind."))
            elif running:
                _enable(button, _("Wait until the work in progress is finished, or cancel it."))
            else:
                _enable(button, missing.get(name, ""), tool_tip)

    def _missing(self) -> dict[str, str]:
        parameters = self._panel.parameters
        has_key = self._keys.choices.key.path is not None
        missing = missing_for(
            parameters.sourceVolume if parameters else None,
            parameters.protectedVolume if parameters else None,
            parameters.targetPoint if parameters else None,
            self._panel.inspection,
            has_model=self._panel.ui.modelComboBox.currentIndex >= 0,
            lacks_key=self._is_watermark and not has_key,
        )
        missing |= missing_on_disk(has_scan=self._keys.has_scan, can_open=self._keys.choices.can_open)
        return missing | missing_for_watermark(parameters.checkedVolume if parameters else None, has_key=has_key)

    def _refresh_results(self) -> None:
        ui, parameters = self._panel.ui, self._panel.parameters
        no_table = "" if parameters and parameters.metricsTable else _("Measure first.")
        _enable(ui.copyTableButton, no_table, _("Copy the table, for a spreadsheet."))
        _enable(ui.saveTableButton, no_table, _("Save the table to a file."))
        is_shown = parameters and comparison_is_shown()
        no_views = "" if is_shown else _("Simulate an attack or measure first: that shows the volumes side by side.")
        _enable(ui.centerButton, no_views, _("Show all views around the target, as at first."))
        _enable(ui.restoreLayoutButton, no_views, _("Go back to the views as they were before."))
        _enable(ui.flickerButton, no_views, _("Alternate the two volumes in one view."))
        no_volume = "" if parameters and parameters.sourceVolume else _("Select a CT volume.")
        _enable(ui.lungButton, no_volume, _("Show all volumes at -600/1500 HU (level/width)."))
        _enable(ui.mediastinumButton, no_volume, _("Show all volumes at 40/400 HU (level/width)."))
        _enable(ui.boneButton, no_volume, _("Show all volumes at 400/1800 HU (level/width)."))
        no_heatmap = "" if parameters and parameters.protectionHeatmap else _("Measure first.")
        _enable(
            ui.heatmapCheckBox,
            no_heatmap,
            _("Color where a volume differs from the one that it was made from: orange higher, blue lower, in HU."),
        )
        _enable(ui.opacitySlider, no_heatmap, _("Opacity of the heatmap over the scan."))
        _enable(ui.thresholdSlider, no_heatmap, _("Smaller differences are not colored."))
        has_map = parameters and parameters.changeMap
        no_map = "" if has_map else _("Verify a scan first that was changed, or check its watermark.")
        _enable(
            ui.showChangesCheckBox,
            no_map,
            _(
                "Color what was changed since the scan was signed: tiles of 32 × 32 pixels in magenta, slices of "
                "another place or scan in yellow, missing ones in gray. Or where its watermark is missing, in magenta; "
                "where that cannot be told, in faint gray."
            ),
        )


def _enable(button: Any, reason: str, tool_tip: str = "") -> None:
    button.enabled = not reason
    button.toolTip = reason or tool_tip
