"""The section that protects the selected volume: model or watermark, strength, device, and the button."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from ...protection import presets
from ..layout import show_in_ordinary_views
from ..volumes import is_watermarked, volume_from_node
from . import sentences
from .device_line import DeviceLine
from .shared import Panel, Section, select

if TYPE_CHECKING:
    from .compare import CompareSection
    from .keys import KeysSection
    from .restore_verify import RestoreVerifySection
    from .volume import VolumeSection

WATERMARK = "watermark"
"""The watermark among the names of models, as the parameter node has it."""

_DEVICE_MILLISECONDS = 100


class ProtectSection(Section):
    """Chooses model and device, says how long it takes, and protects.

    :param volume: knows when the source is another.
    :param compare: shows results, which are of the last protection.
    :param keys: has the key of a watermark.
    :param restore_verify: shows what was changed, which is of the last protection, too.
    """

    def __init__(
        self,
        panel: Panel,
        volume: VolumeSection,
        compare: CompareSection,
        keys: KeysSection,
        restore_verify: RestoreVerifySection,
    ) -> None:
        super().__init__(panel)
        self._volume, self._compare, self._keys = volume, compare, keys
        self._restore_verify = restore_verify
        ui = panel.ui
        choices = {name: sentences.model(name, card) for name, card in presets.choices().items()}
        for name, (title, words) in {**choices, WATERMARK: sentences.watermark()}.items():
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
        ui.modelComboBox.connect("currentIndexChanged(int)", self._on_model_changed)
        ui.deviceComboBox.connect("currentIndexChanged(int)", self._on_device_changed)
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
        select(ui.modelComboBox, presets.choice(parameters.model))
        index = ui.modelComboBox.currentIndex
        words = ui.modelComboBox.itemData(index, qt.Qt.ToolTipRole) if index >= 0 else ""
        self._panel.show_text(ui.modelDescriptionLabel, words)
        select(ui.deviceComboBox, parameters.device)
        if parameters.model == WATERMARK:
            self.device.forget()
            ui.deviceDescriptionLabel.text = self._missing_network()
            return
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

    def protect(self, progress: Callable[..., None]) -> None:
        """Protect the selected volume and show the result."""
        parameters, source = self._panel.parameters, self._panel.parameters.sourceVolume
        protected = self._protected(parameters, progress)
        self._panel.jobs.say(_("Created {name}.").format(name=protected.GetName()))
        # Another source may have been selected by a script or another module meanwhile.
        if parameters.sourceVolume is source:
            parameters.protectedVolume = protected
            if is_watermarked(protected):
                parameters.checkedVolume = protected
            parameters.sourceAttacked = parameters.protectedAttacked = None
            self._compare.discard(parameters)
            self._restore_verify.discard(parameters)
            show_in_ordinary_views(protected)
            self._compare.refill()

    def _missing(self) -> str:
        missing = self._panel.missing_source()
        if not missing and self._missing_network() and not self._keys.has_key:
            return _("A watermark needs a key file: choose or make one in the section “Keys and signatures”.")
        has_model = self._panel.ui.modelComboBox.currentIndex >= 0
        return missing or ("" if has_model else _("No protection model is installed."))

    def _missing_network(self) -> str:
        """Why there is nothing to choose about strength and device; empty when there is."""
        is_watermark = self._panel.parameters and self._panel.parameters.model == WATERMARK
        return _("The watermark has one strength, and needs no network.") if is_watermark else ""

    def _protected(self, parameters: Any, progress: Callable[..., None]) -> slicer.vtkMRMLScalarVolumeNode:
        panel = self._panel
        if parameters.model == WATERMARK:
            panel.ensure_key_packages()
            key = self._keys.open_key_file()
            return panel.logic.watermark(parameters.sourceVolume, key, progress=progress)
        panel.ensure_packages()
        return panel.logic.protect(
            parameters.sourceVolume,
            parameters.model,
            parameters.strengthHU or None,
            device=parameters.device,
            progress=progress,
        )

    def _on_model_changed(self, index: int) -> None:
        if self._panel.parameters and index >= 0:
            self._panel.parameters.model = self._panel.ui.modelComboBox.itemData(index)

    def _on_device_changed(self, index: int) -> None:
        if self._panel.parameters and index >= 0:
            self._panel.parameters.device = self._panel.ui.deviceComboBox.itemData(index)

    def _on_timeout(self) -> None:
        self.device.poll()
