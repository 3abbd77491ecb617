"""The task of protecting the scan: with what, how strongly, on which device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from ...protection import presets
from ...weights import ModelCard
from ..layout import show_in_ordinary_views
from ..packages import KEYS, NETWORKS, are_installed
from ..volumes import is_protected, scan_from_node
from . import sentences
from .shared import Section, select

WATERMARK = "watermark"
"""The watermark among the names of models, as the parameter node has it."""


class ProtectSection(Section):
    """Chooses model and device, says how long it takes, and protects."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        ui = panel.ui
        for name, card in presets.choices().items():
            if name in presets.FOR_READERS or panel.module_widget.developerMode:
                self._add_model(name, card)
        self._add_model(WATERMARK)
        devices = [(_("Automatic (NVIDIA GPU where there is one)"), "auto"), (_("CPU"), "cpu")]
        devices.append((_("Apple GPU"), "mps") if sys.platform == "darwin" else (_("NVIDIA GPU"), "cuda"))
        for text, device in devices:
            ui.deviceComboBox.addItem(text, device)
        panel.bind(ui.modelComboBox, "model")
        panel.bind(ui.deviceComboBox, "device")
        ui.advancedCollapsibleButton.connect("contentsCollapsed(bool)", self._on_advanced_folded)
        panel.add_control(ui.modelComboBox, waits=True)
        panel.add_control(ui.strengthSpinBox, ui.deviceComboBox, missing=self._missing_network, waits=True)
        panel.add_job(
            ui.protectButton,
            ui.protectProgressBar,
            self.protect,
            unit=_("slices"),
            failure=_("Failed to protect the volume."),
            icon="Protect",
            missing=self._missing,
        )

    def refresh(self) -> None:
        """Show what the parameter node says, and what networks would run on."""
        parameters, ui = self._panel.parameters, self._panel.ui
        # parameterNodeWrapper has no connector for a combo box filled at run time.
        name = presets.choice(parameters.model)
        if ui.modelComboBox.findData(name) < 0 and (card := presets.choices().get(name)):
            # Of a scene that was saved in developer mode.
            self._add_model(name, card)
        select(ui.modelComboBox, name)
        index = ui.modelComboBox.currentIndex
        words = ui.modelComboBox.itemData(index, qt.Qt.ToolTipRole) if index >= 0 else ""
        self._panel.show_text(ui.modelDescriptionLabel, sentences.about_protecting(words, parameters))
        ui.modelDescriptionLabel.toolTip = words
        select(ui.deviceComboBox, parameters.device)
        ui.deviceDescriptionLabel.text = self._missing_network() or self._about_device(parameters)

    def protect(self, progress: Callable[..., None]) -> None:
        """Protect the scan and show the result."""
        panel, parameters, source = self._panel, self._panel.parameters, self._panel.parameters.sourceVolume
        protected = self._protected(parameters, progress)
        panel.jobs.say(_("Created {name}.").format(name=protected.GetName()))
        # Another source may have been selected by a script or another module meanwhile.
        if parameters.sourceVolume is source:
            with panel.changing():
                panel.examine.discard(parameters)
                panel.compare.discard(parameters)
                parameters.sourceAttacked = parameters.protectedAttacked = None
                parameters.protectedVolume = protected
                show_in_ordinary_views(protected)
                parameters.volume = protected
            panel.views.refill()

    def _add_model(self, name: str, card: ModelCard | None = None) -> None:
        combo_box = self._panel.ui.modelComboBox
        title, description = sentences.model(name, card)
        combo_box.addItem(title, name)
        combo_box.setItemData(combo_box.count - 1, description, qt.Qt.ToolTipRole)

    def _missing(self) -> str:
        missing = self._panel.missing_source()
        source = self._panel.parameters and self._panel.parameters.sourceVolume
        is_marked = self._panel.has_open_watermark and source is self._panel.parameters.volume
        if not missing and (is_marked or is_protected(source)):
            return _("This scan is protected already, and its original is not here: protect the original.")
        has_model = self._panel.ui.modelComboBox.currentIndex >= 0
        return missing or ("" if has_model else _("No protection model is installed."))

    def _missing_network(self) -> str:
        """Why there is nothing to choose about strength and device; empty when there is."""
        is_watermark = self._panel.parameters and self._panel.parameters.model == WATERMARK
        return _("The watermark has one strength, and needs no network.") if is_watermark else ""

    def _protected(self, parameters: Any, progress: Callable[..., None]) -> slicer.vtkMRMLScalarVolumeNode:
        panel, source = self._panel, parameters.sourceVolume
        needs_network = parameters.model != WATERMARK
        if needs_network and not panel.ensure_packages(*KEYS, *NETWORKS, has_other_way=True):
            parameters.model, needs_network = WATERMARK, False
        if not needs_network:
            panel.ensure_packages(*KEYS)
            return panel.logic.watermark(source, panel.keys.open_key_file(), progress=progress)
        return panel.logic.protect(
            source, parameters.model, parameters.strengthHU or None, device=parameters.device, progress=progress
        )

    def _on_advanced_folded(self, _folded: bool) -> None:
        if self._panel.parameters and not self._panel.is_closed:
            self.refresh()

    def _about_device(self, parameters: Any) -> str:
        """What networks run on; and how long protection takes, which is measured, so only where it can be read."""
        panel = self._panel
        if not are_installed(*NETWORKS, *KEYS):
            return _("Networks need packages that are not installed yet. The button asks first.")
        device, model, node = parameters.device, parameters.model, None
        if panel.is_usable and not panel.ui.advancedCollapsibleButton.collapsed and panel.jobs.button is None:
            node = parameters.sourceVolume
        question = ("device", device, node and model, node and panel.volume.key)
        answer = panel.inquiry.answer(question)
        if answer is None:
            scan = node and scan_from_node(node)
            # This also imports PyTorch long before it is needed.
            answer = panel.inquiry.ask(question, lambda: panel.logic.describeDevice(device, model, scan))
        if answer is None:
            return _("Looking at the device…")
        if isinstance(answer, Exception):
            return str(answer)
        words, seconds = answer
        if seconds is None:
            return words
        return _("{device}, about {seconds:.0f} s for this scan").format(device=words, seconds=max(1.0, seconds))
