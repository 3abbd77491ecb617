"""The section that protects the selected volume: model, strength, device, and the button."""

from __future__ import annotations

from typing import TYPE_CHECKING

import qt
import slicer
from slicer.i18n import tr as _

from ... import models
from ..layout import show_in_ordinary_views
from ..volumes import volume_from_node
from . import sentences
from .device_line import DeviceLine
from .shared import Panel, select

if TYPE_CHECKING:
    from .compare import CompareSection
    from .volume import VolumeSection

_DEVICE_MILLISECONDS = 100


class ProtectSection:
    """Chooses model and device, says how long it takes, and protects.

    :param volume: knows when the source is another.
    :param compare: shows results, which are of the last protection.
    """

    def __init__(self, panel: Panel, volume: VolumeSection, compare: CompareSection) -> None:
        self._panel, self._volume, self._compare = panel, volume, compare
        ui = panel.ui
        for name, card in models.choices().items():
            title, words = sentences.model(name, card)
            ui.modelComboBox.addItem(title, name)
            ui.modelComboBox.setItemData(ui.modelComboBox.count - 1, words, qt.Qt.ToolTipRole)
        for text, device in (
            (_("Automatic (GPU where there is one)"), "auto"),
            (_("CPU"), "cpu"),
            (_("NVIDIA GPU"), "cuda"),
        ):
            ui.deviceComboBox.addItem(text, device)
        self._timer = panel.timer(_DEVICE_MILLISECONDS, self._on_timeout)
        self.device = DeviceLine(ui.deviceDescriptionLabel, self._timer, panel.logic.describeDevice)
        panel.set_icon(ui.protectButton, "Protect")
        ui.modelComboBox.connect("currentIndexChanged(int)", self._on_model_changed)
        ui.deviceComboBox.connect("currentIndexChanged(int)", self._on_device_changed)
        ui.protectButton.connect("clicked()", self.protect)

    def refresh(self) -> None:
        """Show what the parameter node says, and what networks would run on."""
        parameters, ui = self._panel.parameters, self._panel.ui
        # parameterNodeWrapper has no connector for a combo box filled at run time.
        select(ui.modelComboBox, models.choice(parameters.model))
        index = ui.modelComboBox.currentIndex
        ui.modelDescriptionLabel.text = ui.modelComboBox.itemData(index, qt.Qt.ToolTipRole) if index >= 0 else ""
        select(ui.deviceComboBox, parameters.device)
        node = parameters.sourceVolume if self._panel.is_usable else None
        self.device.show(
            parameters.device,
            parameters.model,
            self._volume.key,
            lambda: volume_from_node(node) if node else None,
        )

    def leave(self) -> None:
        """Ask no more what networks run on: the volume may be about to go."""
        self.device.forget()

    def close(self) -> None:
        """Ask no more at all."""
        self.device.stop()

    def protect(self) -> None:
        """Protect the selected volume and show the result; cancel when that is under way."""
        panel, ui = self._panel, self._panel.ui
        if panel.jobs.press(ui.protectButton):
            return
        with (
            slicer.util.tryWithErrorDisplay(_("Failed to protect the volume.")),
            panel.jobs.running(ui.protectButton, ui.protectProgressBar, _("slices")) as progress,
        ):
            parameters, source = panel.parameters, panel.parameters.sourceVolume
            panel.ensure_packages()
            protected = panel.logic.protect(
                source,
                parameters.model,
                parameters.strengthHU or None,
                device=parameters.device,
                progress=progress,
            )
            panel.jobs.say(_("Created {name}.").format(name=protected.GetName()))
            # Another source may have been selected by a script or another module meanwhile.
            if parameters.sourceVolume is source:
                parameters.protectedVolume = protected
                parameters.sourceAttacked = parameters.protectedAttacked = None
                self._compare.discard(parameters)
                show_in_ordinary_views(protected)
                self._compare.refill()

    def _on_model_changed(self, index: int) -> None:
        if self._panel.parameters and index >= 0:
            self._panel.parameters.model = self._panel.ui.modelComboBox.itemData(index)

    def _on_device_changed(self, index: int) -> None:
        if self._panel.parameters and index >= 0:
            self._panel.parameters.device = self._panel.ui.deviceComboBox.itemData(index)

    def _on_timeout(self) -> None:
        self.device.poll()
