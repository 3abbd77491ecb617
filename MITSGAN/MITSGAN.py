"""The MITSGAN module of 3D Slicer: protect a CT volume, and simulate an attack on it with and without protection.

This file holds the module, its parameters, its panel, its logic and its self test, and connects them. What happens to
voxels is in ``MITSGANLib``, what happens to nodes and the parts of the panel in ``MITSGANLib.slicer_bridge``.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import qt
import slicer
import vtk
from MITSGANLib import atomic, heatmap, models, slicer_bridge
from MITSGANLib.errors import CancelledError, InputError
from MITSGANLib.slicer_bridge.panel import (
    ComparisonView,
    DeviceLine,
    JobRunner,
    KeyChoices,
    missing_for,
    missing_on_disk,
    sentences,
)
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLPlotChartNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLTableNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

DEVICE_MILLISECONDS = 100
FLICKER_MILLISECONDS = 500
VOLUME_FILES = "{} (*.nrrd *.nii.gz *.nii *.mha *.mhd)"


class MITSGAN(ScriptedLoadableModule):
    """Name, category and help of the module, as Slicer lists them."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MITSGAN")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Informatics")]
        self.parent.dependencies = ["Markups", "Volumes", "Colors", "Tables", "Plots"]
        self.parent.contributors = ["MITSGAN contributors"]
        self.parent.helpText = _("""
Protects CT volumes against tampering by generative networks. A protected volume differs from its source by a few
Hounsfield units, meant to disturb a network that inserts or removes a tumor. The module can simulate such an attack on
your own scan, with and without the protection.
See <a href="{url}">{url}</a> for a tutorial and for what was measured.
""").format(url="https://github.com/MITSGAN/SlicerMITSGAN")
        self.parent.acknowledgementText = _("""
Please cite the method, G. Pasqualino et al., "MITS-GAN: Safeguarding medical imaging from tampering with generative
adversarial networks", Computers in Biology and Medicine (2024), and the attack it is measured against,
Y. Mirsky et al., "CT-GAN: Malicious tampering of 3D medical imagery using deep learning", USENIX Security 2019.
""")
        # Not now: other modules, such as Sample Data, may not be loaded yet.
        slicer.app.connect("startupCompleted()", self.onStartupCompleted)

    def onStartupCompleted(self) -> None:
        """Offer the synthetic thorax in Sample Data, and know the layout of scenes that were saved with it."""
        slicer_bridge.register_layout()
        import SampleData

        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="MITSGAN",
            sampleName="MITSGANThorax",
            uris=[],
            fileNames=[],
            nodeNames=[],
            customDownloader=self.onSampleRequested,
            thumbnailFileName=self.resourcePath("Icons/MITSGAN.png"),
        )

    def onSampleRequested(self, _source) -> list[vtkMRMLScalarVolumeNode]:
        """Make the synthetic thorax for Sample Data."""
        with slicer.util.tryWithErrorDisplay(_("Failed to make the sample."), waitCursor=True):
            return [MITSGANLogic().loadPhantom()]


@parameterNodeWrapper
class MITSGANParameterNode:
    """What the user chose in the panel and what was computed, saved with the scene.

    sourceVolume - The CT volume to protect.
    model - Name of the protection model.
    strengthHU - Largest change of a voxel in HU; 0 is the strength that the model was made for.
    device - Where networks run.
    protectedVolume - The protected version of the source volume.
    targetPoint - Point list whose last point is the target of the simulated attack.
    action - Whether the attack injects or removes a nodule.
    attacker - Name of an installed attacker, or a folder of attacker files.
    sourceAttacked, protectedAttacked - Results of the last simulated attack.
    protectionHeatmap, sourceAttackedHeatmap, protectedAttackedHeatmap - Differences that the comparison shows.
    metricsTable, rmseChart, summary - Results of the last comparison.
    showHeatmaps, heatmapOpacity, heatmapThresholdHU - How the differences are shown.
    loadRestored - Whether a restored original is also added to the scene.
    changeMap - What was changed in the scan that was verified last, since it was signed.
    showChanges - Whether that is shown.
    """

    sourceVolume: vtkMRMLScalarVolumeNode
    model: str = "default"
    strengthHU: Annotated[float, WithinRange(0, 30)] = 0.0
    device: Annotated[str, Choice(["auto", "cpu", "cuda"])] = "auto"
    protectedVolume: vtkMRMLScalarVolumeNode
    targetPoint: vtkMRMLMarkupsFiducialNode
    action: Annotated[str, Choice(["inject", "remove"])] = "inject"
    attacker: str = models.DEFAULT_ATTACKER
    sourceAttacked: vtkMRMLScalarVolumeNode
    protectedAttacked: vtkMRMLScalarVolumeNode
    protectionHeatmap: vtkMRMLScalarVolumeNode
    sourceAttackedHeatmap: vtkMRMLScalarVolumeNode
    protectedAttackedHeatmap: vtkMRMLScalarVolumeNode
    metricsTable: vtkMRMLTableNode
    rmseChart: vtkMRMLPlotChartNode
    summary: str = ""
    showHeatmaps: bool = False
    heatmapOpacity: Annotated[float, WithinRange(0, 1)] = 0.7
    heatmapThresholdHU: Annotated[float, WithinRange(0, 100)] = 1.0
    loadRestored: bool = True
    changeMap: vtkMRMLLabelMapVolumeNode
    showChanges: bool = True


class MITSGANWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel: connects its widgets with the parameter node, the logic and the parts of the panel."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._observedTarget = None
        self._inspection = None
        self._inspected = False  # nothing yet; None is an empty selection
        self._observedLayout = None
        self._closed = False
        self.jobs = self.device = self.comparison = self.keys = None

    def setup(self) -> None:
        """Build the panel when the user opens the module for the first time."""
        ScriptedLoadableModuleWidget.setup(self)

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MITSGAN.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.jobs = JobRunner(self.ui.statusLabel, self._checkCanApply)
        self.logic = MITSGANLogic(self.jobs.compute)
        self._deviceTimer = self._timer(DEVICE_MILLISECONDS, self.onDeviceTimeout)
        self.device = DeviceLine(self.ui.deviceDescriptionLabel, self._deviceTimer, self.logic.describeDevice)
        self._flickerTimer = self._timer(FLICKER_MILLISECONDS, self.onFlickerTimeout)
        self.comparison = ComparisonView(lambda: self._parameterNode, self.ui.flickerButton, self._flickerTimer)
        self.keys = KeyChoices(self.ui)
        self._fillChoices()
        self._setIcons()

        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        # Quitting waits for work in progress: the application calls cleanup only after it.
        slicer.app.connect("lastWindowClosed()", self.jobs.cancel)
        self._connectWidgets()
        self.initializeParameterNode()

    def _timer(self, milliseconds: int, slot: Callable[[], None]) -> Any:
        timer = qt.QTimer(self.parent)
        timer.setInterval(milliseconds)
        timer.connect("timeout()", slot)
        return timer

    def _fillChoices(self) -> None:
        for name, card in models.choices().items():
            title, words = sentences.model(name, card)
            self.ui.modelComboBox.addItem(title, name)
            self.ui.modelComboBox.setItemData(self.ui.modelComboBox.count - 1, words, qt.Qt.ToolTipRole)
        for text, device in (
            (_("Automatic (GPU where there is one)"), "auto"),
            (_("CPU"), "cpu"),
            (_("NVIDIA GPU"), "cuda"),
        ):
            self.ui.deviceComboBox.addItem(text, device)
        attackers = models.available_attackers()
        for name in attackers:
            self.ui.attackerComboBox.addItem(name, name)
        self.ui.noticeLabel.text = _(
            "Protection moves what attacks such as {attackers} forge; in our measurements they succeeded as often as "
            "without it. It is no guarantee. To find any change later, sign what you export."
        ).format(attackers=", ".join(attackers))
        for text, first, second in (
            (_("Source / protected"), "source", "protected"),
            (_("Source / attacked"), "source", "source attacked"),
            (_("Protected / attacked"), "protected", "protected attacked"),
            (_("Attacked / protected, attacked"), "source attacked", "protected attacked"),
        ):
            self.ui.flickerComboBox.addItem(text, f"{first}|{second}")

    def _setIcons(self) -> None:
        for button, icon in (
            (self.ui.protectButton, "Protect"),
            (self.ui.placeTargetButton, "Target"),
            (self.ui.simulateAttackButton, "Attack"),
            (self.ui.compareButton, "Compare"),
            (self.ui.exportDicomButton, "Export"),
            (self.ui.exportFileButton, "Export"),
            (self.ui.restoreButton, "Restore"),
            (self.ui.verifyButton, "Verify"),
            (self.ui.reportButton, "Report"),
        ):
            button.setIcon(qt.QIcon(self.resourcePath(f"Icons/{icon}.png")))

    def _connectWidgets(self) -> None:
        self.ui.modelComboBox.connect("currentIndexChanged(int)", self.onModelChanged)
        self.ui.deviceComboBox.connect("currentIndexChanged(int)", self.onDeviceChanged)
        self.ui.attackerComboBox.connect("currentIndexChanged(int)", self.onAttackerChanged)
        self.ui.injectRadioButton.connect("toggled(bool)", self.onInjectToggled)
        self.ui.flickerComboBox.connect("currentIndexChanged(int)", self.onFlickerPairChanged)
        self.ui.flickerButton.connect("toggled(bool)", self.onFlickerToggled)
        self.ui.passphraseLineEdit.connect("textChanged(QString)", self.onPassphraseChanged)
        for button, slot in (
            (self.ui.sampleChestButton, self.onSampleChestButton),
            (self.ui.samplePhantomButton, self.onSamplePhantomButton),
            (self.ui.protectButton, self.onProtectButton),
            (self.ui.placeTargetButton, self.onPlaceTargetButton),
            (self.ui.attackerFolderButton, self.onAttackerFolderButton),
            (self.ui.simulateAttackButton, self.onSimulateAttackButton),
            (self.ui.compareButton, self.onCompareButton),
            (self.ui.lungButton, lambda: self.onWindowButton(heatmap.LUNG)),
            (self.ui.mediastinumButton, lambda: self.onWindowButton(heatmap.MEDIASTINUM)),
            (self.ui.boneButton, lambda: self.onWindowButton(heatmap.BONE)),
            (self.ui.copyTableButton, self.onCopyTableButton),
            (self.ui.saveTableButton, self.onSaveTableButton),
            (self.ui.centerButton, self.onCenterButton),
            (self.ui.restoreLayoutButton, self.onRestoreLayoutButton),
            (self.ui.exportDicomButton, self.onExportDicomButton),
            (self.ui.exportFileButton, self.onExportFileButton),
            (self.ui.reportButton, self.onReportButton),
            (self.ui.keyFileButton, self.onKeyFileButton),
            (self.ui.newKeyButton, self.onNewKeyButton),
            (self.ui.forgetKeyButton, lambda: self._choose(self.keys.key, None)),
            (self.ui.signingKeyButton, self.onSigningKeyButton),
            (self.ui.newSigningKeyButton, self.onNewSigningKeyButton),
            (self.ui.forgetSigningKeyButton, lambda: self._choose(self.keys.signing, None)),
            (self.ui.publicKeyButton, self.onPublicKeyButton),
            (self.ui.forgetPublicKeyButton, lambda: self._choose(self.keys.public, None)),
            (self.ui.scanFolderButton, self.onScanFolderButton),
            (self.ui.scanFileButton, self.onScanFileButton),
            (self.ui.forgetScanButton, lambda: self._choose(self.keys.scan, None)),
            (self.ui.restoreButton, self.onRestoreButton),
            (self.ui.verifyButton, self.onVerifyButton),
        ):
            button.connect("clicked()", slot)

    # Life of the panel

    def cleanup(self) -> None:
        """Called when the application closes and the module widget is destroyed."""
        self._closed = True
        if self.comparison:
            slicer.app.disconnect("lastWindowClosed()", self.jobs.cancel)
            self.jobs.close()
            self.device.stop()
            self.comparison.close()
            self.keys.forget_passphrase()
            self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the user opens a different module."""
        slicer_bridge.stop_placing()
        if self.comparison:
            self.comparison.stop_flicker()
            self.device.forget()
            self.keys.forget_passphrase()
            self.setParameterNode(None)

    def onReload(self) -> None:
        """Reload the library together with the module (developer mode)."""
        if self.jobs.button:
            self.jobs.cancel()
            self.jobs.say(_("Canceling; reload again when it has stopped."))
            return
        names = [name for name in sys.modules if name.partition(".")[0] == "MITSGANLib"]
        # Forgetting all of them first makes the order of import irrelevant: whichever comes first gets new neighbors.
        for name in names:
            del sys.modules[name]
        for name in names:
            importlib.import_module(name)
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, _caller, _event) -> None:
        """Let go of the parameter node, which is about to be reset, and of work on nodes that are about to go."""
        self.jobs.cancel()
        self.comparison.stop_flicker()
        self.device.forget()
        self.keys.forget_passphrase()
        # It may be about a patient whose scene is gone.
        self._choose(self.keys.scan, None)
        self.setParameterNode(None)

    def onSceneEndClose(self, _caller, _event) -> None:
        """Take a new parameter node if the panel is open."""
        self._inspected = False  # nothing yet; None is an empty selection
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, _caller, _event) -> None:
        """Show what a scene that was just loaded says, if the panel is open."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """Make sure that a parameter node exists, is observed and has a source volume if the scene has one."""
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.sourceVolume:
            self._parameterNode.sourceVolume = slicer_bridge.first_scan()

    def setParameterNode(self, inputParameterNode: MITSGANParameterNode | None) -> None:
        """Show and observe a parameter node, or none."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self._observeParameters(self.removeObserver)
            self._observeTarget(None)
        self._parameterNode = inputParameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self._observeParameters(self.addObserver)
            self._onParametersModified()

    def _observeParameters(self, addOrRemove: Callable[..., None]) -> None:
        # The node, not its wrapper: the mixin would keep every wrapper that it ever observed alive, and working.
        addOrRemove(self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)

    # What the panel shows

    def _onParametersModified(self, _caller=None, _event=None) -> None:
        parameters = self._parameterNode
        # While a scene is read its nodes are half there; the end of the import calls again.
        if not parameters or self._closed or slicer.mrmlScene.IsBatchProcessing():
            return
        # parameterNodeWrapper has no connector for radio buttons, nor for a combo box filled at run time.
        modelIndex = self.ui.modelComboBox.findData(models.choice(parameters.model))
        self.ui.modelComboBox.setCurrentIndex(modelIndex)
        self.ui.modelDescriptionLabel.text = (
            self.ui.modelComboBox.itemData(modelIndex, qt.Qt.ToolTipRole) if modelIndex >= 0 else ""
        )
        self.ui.deviceComboBox.setCurrentIndex(self.ui.deviceComboBox.findData(parameters.device))
        if self.ui.attackerComboBox.findData(parameters.attacker) < 0:
            self.ui.attackerComboBox.addItem(Path(parameters.attacker).name, parameters.attacker)
        self.ui.attackerComboBox.setCurrentIndex(self.ui.attackerComboBox.findData(parameters.attacker))
        self.ui.injectRadioButton.checked = parameters.action == "inject"
        self.ui.removeRadioButton.checked = parameters.action == "remove"
        attacked = (parameters.sourceAttacked, parameters.protectedAttacked)
        self._showText(self.ui.attackedLabel, sentences.about_attacked(attacked))
        self._showText(self.ui.summaryLabel, parameters.summary)
        self._observeTarget(parameters.targetPoint)
        self._inspectSource()
        self._updateTarget()
        usable = bool(self._inspection and self._inspection.is_ct)
        self.device.show(
            parameters.device,
            parameters.model,
            self._inspected if usable else None,
            lambda: slicer_bridge.volume_from_node(parameters.sourceVolume) if usable else None,
        )
        self.comparison.refresh()
        if parameters.changeMap:
            slicer_bridge.set_changes_visible(parameters.changeMap, parameters.showChanges)
        self._checkCanApply()

    def _showText(self, label, text: str) -> None:
        label.text = text
        label.setVisible(bool(text))

    def _inspectSource(self) -> None:
        """Say whether the source looks like CT, whenever it is another node or has other voxels."""
        node = self._parameterNode.sourceVolume
        image = node.GetImageData() if node else None
        inspected = (node.GetID(), image.GetMTime() if image else 0) if node else None
        if inspected == self._inspected:
            return
        isOther = bool(node and self._inspected and self._inspected[0] != inspected[0])
        self._inspected = inspected
        with slicer.util.WaitCursor(show=node is not None):
            self._inspection = slicer_bridge.inspect_node(node) if node else None
        self.ui.inspectionLabel.text = sentences.about_volume(node, self._inspection)
        if isOther and self.logic.chooseResultsOf(node, self._parameterNode):
            self._refillComparison()

    def _updateTarget(self, _caller=None, _event=None) -> None:
        parameters = self._parameterNode
        if parameters and not self._closed:
            self._showText(
                self.ui.targetDescriptionLabel,
                sentences.about_target(parameters.targetPoint, parameters.sourceVolume, self._inspection),
            )
            self._checkCanApply()

    def _observeTarget(self, targetNode: vtkMRMLMarkupsFiducialNode | None) -> None:
        """Placing, moving or deleting a point changes the point list, not the parameter node."""
        if targetNode is self._observedTarget:
            return
        placed = slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent
        observations = [(placed, self._onTargetPlaced)]
        observations += [(event, self._updateTarget) for event in slicer_bridge.target_events()]
        for event, method in observations:
            if self._observedTarget:
                self.removeObserver(self._observedTarget, event, method)
            if targetNode:
                self.addObserver(targetNode, event, method)
        self._observedTarget = targetNode

    def _onTargetPlaced(self, _caller=None, _event=None) -> None:
        # Not within the event: the view that placed the point still holds on to the list.
        qt.QTimer.singleShot(0, self._keepLastTarget)

    def _keepLastTarget(self) -> None:
        if self._observedTarget and not self._closed:
            slicer_bridge.keep_last_point(self._observedTarget)
            self._updateTarget()

    def _checkCanApply(self, _caller=None, _event=None) -> None:
        """Enable each button when what it needs is there, and say in its tool tip what is missing."""
        if self._closed:
            return
        parameters = self._parameterNode
        missing = missing_for(
            parameters.sourceVolume if parameters else None,
            parameters.protectedVolume if parameters else None,
            parameters.targetPoint if parameters else None,
            self._inspection,
            has_model=self.ui.modelComboBox.currentIndex >= 0,
        )
        hasScan = self.keys.scan.path is not None or self.keys.node_on_disk(parameters) is not None
        missing |= missing_on_disk(has_scan=hasScan, can_open=self.keys.can_open)
        running = self.jobs.button
        for name, button, toolTip in (
            ("protect", self.ui.protectButton, _("Compute a protected copy of the CT volume.")),
            ("attack", self.ui.simulateAttackButton, _("Attack both volumes at the target.")),
            ("compare", self.ui.compareButton, _("Measure the change and show all volumes side by side.")),
            ("export", self.ui.exportDicomButton, _("Write the protected volume as a derived DICOM series.")),
            ("export file", self.ui.exportFileButton, _("Write the protected volume as NRRD, NIfTI or MetaImage.")),
            ("report", self.ui.reportButton, _("Protect, attack and measure once more, and write a report as HTML.")),
            ("sample", self.ui.samplePhantomButton, _("Make a synthetic thorax with a nodule on this computer.")),
            ("restore", self.ui.restoreButton, _("Give back the original of a sealed scan, bit for bit.")),
            ("verify", self.ui.verifyButton, _("Tell whether, and where, a signed scan was changed.")),
        ):
            if running is button:
                reason, toolTip = "", _("Stop; nothing is left behind.")
            elif running:
                reason = _("Wait until the work in progress is finished, or cancel it.")
            else:
                reason = missing.get(name, "")
            self._enable(button, reason, toolTip)
        noTable = "" if parameters and parameters.metricsTable else _("Measure first.")
        self._enable(self.ui.copyTableButton, noTable, _("Copy the table, for a spreadsheet."))
        self._enable(self.ui.saveTableButton, noTable, _("Save the table to a file."))
        shown = parameters and slicer_bridge.comparison_is_shown()
        noViews = "" if shown else _("Simulate an attack or measure first: that shows the volumes side by side.")
        self._enable(self.ui.centerButton, noViews, _("Show all views around the target, as at first."))
        self._enable(self.ui.restoreLayoutButton, noViews, _("Go back to the views as they were before."))
        self._enable(self.ui.flickerButton, noViews, _("Alternate the two volumes in one view."))
        noMap = "" if parameters and parameters.changeMap else _("Verify a scan first that was changed.")
        self._enable(
            self.ui.showChangesCheckBox,
            noMap,
            _(
                "Color what was changed since the scan was signed: tiles of 32 × 32 pixels in magenta, slices of "
                "another place or scan in yellow, missing ones in gray."
            ),
        )
        self.keys.refresh(parameters, is_idle=running is None)
        # Work in progress is on these choices.
        for widget in (
            self.ui.sourceVolumeSelector,
            self.ui.protectedVolumeSelector,
            self.ui.sampleChestButton,
            self.ui.modelComboBox,
            self.ui.strengthSpinBox,
            self.ui.deviceComboBox,
            self.ui.placeTargetButton,
            self.ui.injectRadioButton,
            self.ui.removeRadioButton,
            self.ui.attackerComboBox,
            self.ui.attackerFolderButton,
            self.ui.keyFileButton,
            self.ui.newKeyButton,
            self.ui.signingKeyButton,
            self.ui.newSigningKeyButton,
            self.ui.publicKeyButton,
            self.ui.passphraseLineEdit,
            self.ui.scanFolderButton,
            self.ui.scanFileButton,
            self.ui.loadRestoredCheckBox,
        ):
            widget.enabled = running is None

    def _enable(self, button, reason: str, toolTip: str) -> None:
        button.enabled = not reason
        button.toolTip = reason or toolTip

    # What the user chooses

    def onModelChanged(self, index: int) -> None:
        """Keep the model that the user chose."""
        if self._parameterNode and index >= 0:
            self._parameterNode.model = self.ui.modelComboBox.itemData(index)

    def onDeviceChanged(self, index: int) -> None:
        """Keep the device that the user chose."""
        if self._parameterNode and index >= 0:
            self._parameterNode.device = self.ui.deviceComboBox.itemData(index)

    def onDeviceTimeout(self) -> None:
        """Look whether it is known by now what networks run on."""
        self.device.poll()

    def onAttackerChanged(self, index: int) -> None:
        """Keep the attacker that the user chose."""
        if self._parameterNode and index >= 0:
            self._parameterNode.attacker = self.ui.attackerComboBox.itemData(index)

    def onAttackerFolderButton(self) -> None:
        """Let the user choose a folder of attacker files."""
        folder = qt.QFileDialog.getExistingDirectory(self.parent, _("Folder with attacker files"))
        if folder and self._parameterNode:
            self._parameterNode.attacker = folder

    def onInjectToggled(self, inject: bool) -> None:
        """Keep the action that the user chose."""
        if self._parameterNode:
            self._parameterNode.action = "inject" if inject else "remove"

    def onSampleChestButton(self) -> None:
        """Load the chest CT of Slicer's Sample Data."""
        with slicer.util.tryWithErrorDisplay(_("Failed to load the sample."), waitCursor=True):
            import SampleData

            nodes = SampleData.downloadSamples("CTChest")
            if not nodes:
                raise InputError(
                    _("The sample could not be downloaded; check the connection, or use the synthetic thorax.")
                )
            slicer_bridge.set_window(nodes, heatmap.LUNG)
            self._parameterNode.sourceVolume = nodes[0]

    def onSamplePhantomButton(self) -> None:
        """Make the synthetic thorax; cancel when that is under way."""
        if self.jobs.press(self.ui.samplePhantomButton):
            return
        with (
            slicer.util.tryWithErrorDisplay(_("Failed to make the sample.")),
            self.jobs.running(self.ui.samplePhantomButton, self.ui.protectProgressBar, "") as progress,
        ):
            self._parameterNode.sourceVolume = self.logic.loadPhantom(progress)

    def onPlaceTargetButton(self) -> None:
        """Wait for one click in a slice view; do so no longer when that is under way."""
        if slicer_bridge.is_placing():
            slicer_bridge.stop_placing()
            return
        if not self._parameterNode.targetPoint:
            self._parameterNode.targetPoint = slicer_bridge.new_target_list()
        interaction = slicer_bridge.interaction_node()
        if not self.hasObserver(interaction, interaction.InteractionModeChangedEvent, self._updateTarget):
            self.addObserver(interaction, interaction.InteractionModeChangedEvent, self._updateTarget)
        slicer_bridge.start_placing(self._parameterNode.targetPoint)

    # Heavy work

    def onProtectButton(self) -> None:
        """Protect the selected volume and show the result; cancel when that is under way."""
        if self.jobs.press(self.ui.protectButton):
            return
        with (
            slicer.util.tryWithErrorDisplay(_("Failed to protect the volume.")),
            self.jobs.running(self.ui.protectButton, self.ui.protectProgressBar, _("slices")) as progress,
        ):
            parameters, sourceNode = self._parameterNode, self._parameterNode.sourceVolume
            self._ensurePackages()
            protectedNode = self.logic.protect(
                sourceNode,
                parameters.model,
                parameters.strengthHU or None,
                device=parameters.device,
                progress=progress,
            )
            self.jobs.say(_("Created {name}.").format(name=protectedNode.GetName()))
            # Another source may have been selected by a script or another module meanwhile.
            if parameters.sourceVolume is sourceNode:
                parameters.protectedVolume = protectedNode
                parameters.sourceAttacked = parameters.protectedAttacked = None
                self.logic.discardComparison(parameters)
                slicer_bridge.show_in_ordinary_views(protectedNode)
                self._refillComparison()

    def onSimulateAttackButton(self) -> None:
        """Attack both volumes at the target and show all four side by side; cancel when that is under way."""
        if self.jobs.press(self.ui.simulateAttackButton):
            return
        with (
            slicer.util.tryWithErrorDisplay(_("Failed to simulate the attack.")),
            self.jobs.running(self.ui.simulateAttackButton, self.ui.attackProgressBar, _("volumes")) as progress,
        ):
            parameters = self._parameterNode
            self._ensurePackages()
            attackedNodes = self.logic.simulateAttack(
                parameters.sourceVolume,
                parameters.protectedVolume,
                slicer_bridge.target_from_markups(parameters.targetPoint),
                parameters.action,
                parameters.attacker,
                device=parameters.device,
                progress=progress,
            )
            parameters.sourceAttacked, parameters.protectedAttacked = attackedNodes
            self.logic.discardComparison(parameters)
            self._showComparison()
            self.jobs.say(
                _("Created {source} and {protected}.").format(
                    source=attackedNodes[0].GetName(), protected=attackedNodes[1].GetName()
                )
            )

    def onCompareButton(self) -> None:
        """Measure all volumes and show them side by side; cancel when that is under way."""
        if self.jobs.press(self.ui.compareButton):
            return
        with (
            slicer.util.tryWithErrorDisplay(_("Failed to compare the volumes.")),
            self.jobs.running(self.ui.compareButton, self.ui.compareProgressBar, _("steps")) as progress,
        ):
            parameters = self._parameterNode
            self._ensurePackages()
            result = self.logic.compare(
                parameters.sourceVolume,
                parameters.protectedVolume,
                parameters.sourceAttacked,
                parameters.protectedAttacked,
                attacker=parameters.attacker,
                device=parameters.device,
                thresholdHU=parameters.heatmapThresholdHU,
                progress=progress,
            )
            self.logic.discardComparison(parameters)
            noise = self._inspection.noise_sd_hu if self._inspection else None
            self.logic.keepComparison(parameters, result, sentences.about_effect(result.effect, noise))
            self._showComparison()
            self.jobs.say(_("Click a point of the plot to go to its slice."))

    def onExportDicomButton(self) -> None:
        """Write the protected volume as DICOM into a folder of the user's choice; cancel when that is under way."""
        if self.jobs.press(self.ui.exportDicomButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to export the protected volume.")):
            parameters = self._parameterNode
            # Before the dialog: a reason not to export should not cost a choice.
            with self.jobs.showing_error():
                self.logic.checkDicomExport(parameters.protectedVolume, parameters.sourceVolume)
            folder = qt.QFileDialog.getExistingDirectory(self.parent, _("Empty folder for the protected series"))
            if not folder:
                return
            with self.jobs.running(self.ui.exportDicomButton, self.ui.exportProgressBar, _("slices")) as progress:
                written = self.logic.exportDicom(
                    parameters.protectedVolume,
                    folder,
                    parameters.sourceVolume,
                    locks=self._openLocks(),
                    progress=progress,
                )
                self._choose(self.keys.scan, written)
                self.jobs.say(_("Wrote a derived DICOM series to {folder}.").format(folder=written))

    def onExportFileButton(self) -> None:
        """Write the protected volume as a file of the user's choice; cancel when that is under way."""
        if self.jobs.press(self.ui.exportFileButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to export the protected volume.")):
            path = qt.QFileDialog.getSaveFileName(
                self.parent, _("Protected volume"), "protected.nrrd", VOLUME_FILES.format(_("Volumes"))
            )
            if not path:
                return
            with self.jobs.running(self.ui.exportFileButton, self.ui.exportProgressBar, _("steps")) as progress:
                parameters = self._parameterNode
                self.logic.exportFile(
                    parameters.protectedVolume,
                    path,
                    parameters.sourceVolume,
                    locks=self._openLocks(),
                    progress=progress,
                )
                self._choose(self.keys.scan, Path(path))
                self.jobs.say(_("Wrote {path}.").format(path=path))

    def onReportButton(self) -> None:
        """Write the report of the demonstration for this scene; cancel when that is under way."""
        if self.jobs.press(self.ui.reportButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to write the report.")):
            path = qt.QFileDialog.getSaveFileName(self.parent, _("Report"), "report.html", "HTML (*.html)")
            if not path:
                return
            with self.jobs.running(self.ui.reportButton, self.ui.exportProgressBar, _("steps")) as progress:
                parameters = self._parameterNode
                self._ensurePackages()
                self.logic.saveReport(
                    parameters.sourceVolume,
                    parameters.protectedVolume,
                    slicer_bridge.target_from_markups(parameters.targetPoint),
                    path,
                    parameters.action,
                    parameters.attacker,
                    device=parameters.device,
                    progress=progress,
                )
                self.jobs.say(_("Wrote {path}.").format(path=path))

    # Keys and signatures

    def _choose(self, chosen, path: Path | None, identity: str | None = None) -> None:
        chosen.choose(path, identity)
        if chosen is self.keys.scan:
            self._showText(self.ui.keysResultLabel, "")
        self._checkCanApply()

    def _chooseKey(self, chosen, path: str, identify: Callable[[Path], str | None], message: str) -> None:
        """Take a key file that holds such a key, and explain any other."""
        if not path:
            return
        with slicer.util.tryWithErrorDisplay(message), self.jobs.showing_error():
            self._ensureKeyPackages()
            self._choose(chosen, Path(path), identify(Path(path)))
            isOpen = chosen is not self.keys.public and not slicer_bridge.is_private(path)
            self.jobs.say(_("Other people on this computer may read this key file.") if isOpen else "")

    def _askForFile(self, title: str, kinds: str) -> str:
        return qt.QFileDialog.getOpenFileName(self.parent, title, "", kinds)

    def _openLocks(self) -> slicer_bridge.Locks | None:
        if not self.keys.has_locks:
            return None
        self._ensureKeyPackages()
        return self.keys.open_locks()

    def _ensureKeyPackages(self) -> None:
        slicer_bridge.ensure_key_packages(self.resourcePath("requirements.txt"))

    def onPassphraseChanged(self, _text: str) -> None:
        """A passphrase can stand for a key file."""
        self._checkCanApply()

    def onKeyFileButton(self) -> None:
        """Let the user choose a key file."""
        path = self._askForFile(_("Key file"), _("Key files") + " (*.key);;" + _("All files") + " (*)")
        self._chooseKey(self.keys.key, path, slicer_bridge.key_identity, _("Failed to read the key file."))

    def onSigningKeyButton(self) -> None:
        """Let the user choose a signing key."""
        path = self._askForFile(_("Signing key"), _("PEM files") + " (*.pem);;" + _("All files") + " (*)")
        identify = slicer_bridge.signing_key_identity
        self._chooseKey(self.keys.signing, path, identify, _("Failed to read the signing key."))

    def onPublicKeyButton(self) -> None:
        """Let the user choose the public key of a signer."""
        path = self._askForFile(_("Public key"), _("PEM files") + " (*.pem);;" + _("All files") + " (*)")
        identify = slicer_bridge.public_key_identity
        self._chooseKey(self.keys.public, path, identify, _("Failed to read the public key."))

    def onNewKeyButton(self) -> None:
        """Make a key file and use it."""
        path = self._newFile(_("New key file"), "clinic.key", ".key")
        if path is None:
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to make the key file.")), self.jobs.showing_error():
            self._ensureKeyPackages()
            self._choose(self.keys.key, path, slicer_bridge.make_key_file(path))
            self.jobs.say(
                _("Made the key file. Keep a copy of it apart from the scans: without it there is no way back.")
            )

    def onNewSigningKeyButton(self) -> None:
        """Make a signing key and its public key, and use both."""
        path = self._newFile(_("New signing key"), "signing.pem", ".pem")
        if path is None:
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to make the signing key.")), self.jobs.showing_error():
            self._ensureKeyPackages()
            identity, public = slicer_bridge.make_signing_key_file(path)
            self._choose(self.keys.signing, path, identity)
            self._choose(self.keys.public, public, identity)
            self.jobs.say(
                _("Made the signing key, which nobody else may have, and {name}, for those who verify.").format(
                    name=public.name
                )
            )

    def _newFile(self, title: str, name: str, suffix: str) -> Path | None:
        text = qt.QFileDialog.getSaveFileName(self.parent, title, name, f"{title} (*{suffix})")
        path = Path(text) if text else None
        # Not every system's dialog adds it.
        return path.with_name(path.name + suffix) if path and not path.suffix else path

    def onScanFolderButton(self) -> None:
        """Let the user choose a DICOM folder to restore or verify."""
        folder = qt.QFileDialog.getExistingDirectory(self.parent, _("Folder of a protected or signed DICOM series"))
        if folder:
            self._choose(self.keys.scan, Path(folder))

    def onScanFileButton(self) -> None:
        """Let the user choose a volume file to restore or verify."""
        path = self._askForFile(_("Protected or signed file"), VOLUME_FILES.format(_("Volumes")))
        if path:
            self._choose(self.keys.scan, Path(path))

    def onRestoreButton(self) -> None:
        """Restore the original of a sealed scan; cancel when that is under way."""
        if self.jobs.press(self.ui.restoreButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to restore the original.")):
            parameters = self._parameterNode
            with self.jobs.showing_error():
                scan = self.keys.scan_on_disk(parameters)
            destination = self._askForDestination(scan)
            if destination is None:
                return
            node = self.keys.node_on_disk(parameters)
            name = _("{name} restored").format(name=node.GetName()) if node else _("Restored scan")
            self._showText(self.ui.keysResultLabel, "")
            with self.jobs.running(self.ui.restoreButton, self.ui.keysProgressBar, _("files")) as progress:
                self._ensureKeyPackages()
                restored, restoredNode = self.logic.restoreOriginal(
                    scan,
                    destination,
                    self.keys.open_key(),
                    name=name if parameters.loadRestored else None,
                    progress=progress,
                )
                self._showText(self.ui.keysResultLabel, sentences.about_restored(scan.path.name, restored))
                if restoredNode:
                    slicer_bridge.show_in_ordinary_views(restoredNode)
                self.jobs.say(_("Wrote {path}.").format(path=destination))

    def _askForDestination(self, scan: slicer_bridge.ScanOnDisk) -> Path | None:
        """Where to put a restored original, by default beside the scan; None when the user closes the dialog."""
        if scan.is_file:
            name, dot, suffixes = scan.path.name.partition(".")
            beside = scan.path.with_name(f"{name}-restored{dot}{suffixes}")
            kinds = VOLUME_FILES.format(_("Volumes"))
            path = qt.QFileDialog.getSaveFileName(self.parent, _("Restored original"), str(beside), kinds)
            return Path(path) if path else None
        parent = str(scan.path.parent)
        folder = qt.QFileDialog.getExistingDirectory(self.parent, _("Folder to put the restored series in"), parent)
        return slicer_bridge.free_folder(Path(folder), f"{scan.path.name}-restored") if folder else None

    def onVerifyButton(self) -> None:
        """Tell whether a signed scan was changed, and show where; cancel when that is under way."""
        if self.jobs.press(self.ui.verifyButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to verify the scan.")):
            parameters = self._parameterNode
            with self.jobs.showing_error():
                scan = self.keys.scan_on_disk(parameters)
            self._showText(self.ui.keysResultLabel, "")
            with self.jobs.running(self.ui.verifyButton, self.ui.keysProgressBar, _("files")) as progress:
                self._ensureKeyPackages()
                checked = self.logic.verify(scan, self.keys.public.path, progress=progress)
                self._showText(self.ui.keysResultLabel, sentences.about_check(scan.path.name, checked))
                self._showChangeMap(checked)

    def _showChangeMap(self, checked: slicer_bridge.Checked) -> None:
        parameters = self._parameterNode
        if parameters.changeMap:
            slicer_bridge.remove_result(parameters.changeMap)
        self.comparison.stop_flicker()
        candidates = (parameters.protectedVolume, parameters.sourceVolume)
        parameters.changeMap = self.logic.showChanges(checked, candidates, visible=parameters.showChanges)[0]

    def _ensurePackages(self) -> None:
        slicer_bridge.ensure_packages(self.resourcePath("requirements.txt"), self.jobs.say)

    # The comparison

    def _showComparison(self) -> None:
        self.comparison.show()
        layout = slicer_bridge.register_layout()
        if layout and layout is not self._observedLayout:
            self.addObserver(layout, vtk.vtkCommand.ModifiedEvent, self._checkCanApply)
            self._observedLayout = layout
        self._checkCanApply()

    def _refillComparison(self) -> None:
        """Views must not be labeled with what they no longer show."""
        if slicer_bridge.comparison_is_shown():
            self._showComparison()

    def onWindowButton(self, window: heatmap.Window) -> None:
        """Show all volumes in a window for lung, mediastinum or bone."""
        parameters = self._parameterNode
        if parameters:
            nodes = (parameters.sourceVolume, parameters.protectedVolume)
            slicer_bridge.set_window([*nodes, parameters.sourceAttacked, parameters.protectedAttacked], window)

    def onCenterButton(self) -> None:
        """Show the comparison as at first, around the target."""
        self._showComparison()

    def onRestoreLayoutButton(self) -> None:
        """Go back to the views as they were before the comparison."""
        self.comparison.stop_flicker()
        slicer_bridge.restore_layout()
        self._checkCanApply()

    def onCopyTableButton(self) -> None:
        """Put the table of metrics on the clipboard."""
        slicer.app.clipboard().setText(slicer_bridge.table_text(self._parameterNode.metricsTable))
        self.jobs.say(_("Copied the table."))

    def onSaveTableButton(self) -> None:
        """Write the table of metrics to a file."""
        path = qt.QFileDialog.getSaveFileName(self.parent, _("Table of metrics"), "metrics.csv", "CSV (*.csv)")
        if not path:
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to write the table.")), self.jobs.showing_error():
            text = slicer_bridge.table_text(self._parameterNode.metricsTable, ",")
            # The dialog has asked whether to replace the file.
            with (
                slicer_bridge.path_kept_from_log(Path(path)),
                atomic.atomic_file(Path(path), overwrite=True) as temporary,
            ):
                temporary.write_text(text, encoding="utf-8")
            self.jobs.say(_("Wrote {path}.").format(path=path))

    def onFlickerToggled(self, on: bool) -> None:
        """Start or stop alternating the two volumes."""
        if on:
            self.comparison.start_flicker()
        else:
            self.comparison.end_flicker()

    def onFlickerPairChanged(self, _index: int) -> None:
        """Another pair: put back what the last one showed."""
        self.comparison.stop_flicker()

    def onFlickerTimeout(self) -> None:
        """Show the other volume."""
        self.comparison.flicker(self.ui.flickerComboBox.itemData(self.ui.flickerComboBox.currentIndex).split("|"))


class MITSGANLogic(ScriptedLoadableModuleLogic):
    """Protection, simulated attacks and comparison of volume nodes, usable without the panel.

    ::

        logic = MITSGANLogic()
        protectedNode = logic.protect(volumeNode)
        attackedNodes = logic.simulateAttack(volumeNode, protectedNode, ras, "inject")
        comparison = logic.compare(volumeNode, protectedNode, *attackedNodes)

    The packages in ``Resources/requirements.txt`` and PyTorch must be installed. Each method that takes ``progress``
    calls it with steps done and in all; it may raise CancelledError to stop, and then the scene is as it was.
    """

    def __init__(self, compute: Callable[..., Any] = slicer_bridge.compute_here) -> None:
        """:param compute: runs ``work(progress)``, given both; the panel passes one that keeps Slicer responsive."""
        ScriptedLoadableModuleLogic.__init__(self)
        self._compute = compute

    def getParameterNode(self) -> MITSGANParameterNode:
        """The module's parameter node in the scene, created when there is none."""
        return MITSGANParameterNode(super().getParameterNode())

    def loadPhantom(self, progress: Callable[..., None] | None = None) -> vtkMRMLScalarVolumeNode:
        """A synthetic thorax with a nodule, made on this computer."""
        return slicer_bridge.load_phantom(progress, self._compute)

    def describeDevice(
        self, device: str = "auto", model: Any = "default", volume: Any = None
    ) -> tuple[str, float | None]:
        """What networks run on, in words, and about how many seconds protecting ``volume`` (a CTVolume) takes there."""
        return slicer_bridge.describe_device(device, model, volume)

    def protect(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        model: Any = "default",
        strengthHU: float | None = None,
        *,
        device: str = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> vtkMRMLScalarVolumeNode:
        """Create a protected copy of a CT volume.

        :param volumeNode: the CT volume; it is not changed.
        :param model: name of a protection model, or a Protector.
        :param strengthHU: largest change of a voxel in HU; None is the strength that the model was made for.
        :param device: "auto", "cpu" or "cuda".
        :return: the new volume node, under the same transform and study as the source.
        """
        return slicer_bridge.protect_node(
            volumeNode, model, strengthHU, device=device, progress=progress, compute=self._compute
        )

    def simulateAttack(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        protectedNode: vtkMRMLScalarVolumeNode,
        ras: Sequence[float],
        action: str = "inject",
        attacker: Any = "default",
        *,
        device: str = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[vtkMRMLScalarVolumeNode, vtkMRMLScalarVolumeNode]:
        """Attack a CT volume and its protected version at the same voxel.

        :param volumeNode: the unprotected CT volume; it is not changed.
        :param protectedNode: its protected version; it is not changed.
        :param ras: target in world coordinates (RAS, mm).
        :param action: "inject" or "remove" a nodule.
        :param attacker: name of an installed attacker, a folder of attacker files, or an Attacker.
        :return: new volume nodes with the attacked source and the attacked protected version.
        """
        return slicer_bridge.attack_nodes(
            volumeNode, protectedNode, ras, action, attacker, device=device, progress=progress, compute=self._compute
        )

    def compare(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        protectedNode: vtkMRMLScalarVolumeNode,
        attackedNode: vtkMRMLScalarVolumeNode | None = None,
        attackedProtectedNode: vtkMRMLScalarVolumeNode | None = None,
        *,
        attacker: Any = None,
        device: str = "auto",
        thresholdHU: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> slicer_bridge.ComparisonNodes:
        """Measure protection and, where both attacked volumes are given, the attack; put the results into the scene.

        :param attacker: who attacked, to attack noise of the same RMSE as a control; None leaves the control out.
        :param thresholdHU: differences that the heatmaps leave clear.
        """
        return slicer_bridge.compare_nodes(
            volumeNode,
            protectedNode,
            [attackedNode, attackedProtectedNode] if attackedNode and attackedProtectedNode else [],
            attacker=attacker,
            device=device,
            threshold_hu=thresholdHU,
            progress=progress,
            compute=self._compute,
        )

    def keepComparison(
        self, parameters: MITSGANParameterNode, comparison: slicer_bridge.ComparisonNodes, summary: str
    ) -> None:
        """Make a comparison the one that the parameter node holds."""
        parameters.metricsTable, parameters.rmseChart = comparison.table, comparison.chart
        parameters.protectionHeatmap = comparison.heatmaps.get("protected")
        parameters.sourceAttackedHeatmap = comparison.heatmaps.get("source attacked")
        parameters.protectedAttackedHeatmap = comparison.heatmaps.get("protected attacked")
        parameters.summary = summary
        parameters.showHeatmaps = True

    def discardComparison(self, parameters: MITSGANParameterNode) -> None:
        """Remove the results of the last comparison: they are not of the volumes that are selected now."""
        for node in (
            parameters.protectionHeatmap,
            parameters.sourceAttackedHeatmap,
            parameters.protectedAttackedHeatmap,
            parameters.metricsTable,
            parameters.rmseChart,
        ):
            if node:
                slicer_bridge.remove_result(node)
        parameters.summary = ""

    def chooseResultsOf(self, volumeNode: vtkMRMLScalarVolumeNode, parameters: MITSGANParameterNode) -> bool:
        """Select results of this source; those of another would be compared with the wrong scan. Whether it had to."""
        protected = parameters.protectedVolume
        origin = slicer_bridge.source_of(protected) if protected else None
        # A protected volume from a file knows no source; the user's choice of it stands.
        if origin is volumeNode or (protected and not origin):
            return False
        results = slicer_bridge.results_of(volumeNode)
        parameters.protectedVolume = results[-1] if results else None
        parameters.sourceAttacked = parameters.protectedAttacked = None
        self.discardComparison(parameters)
        return True

    def checkDicomExport(
        self, protectedNode: vtkMRMLScalarVolumeNode, sourceNode: vtkMRMLScalarVolumeNode | None = None
    ) -> tuple[Path, ...]:
        """The original DICOM files that an export takes its headers from; OutputError when there are none."""
        return slicer_bridge.exportable_files(protectedNode, sourceNode)

    def exportDicom(
        self,
        protectedNode: vtkMRMLScalarVolumeNode,
        folder: str | Path,
        sourceNode: vtkMRMLScalarVolumeNode | None = None,
        *,
        locks: slicer_bridge.Locks | None = None,
        progress: Callable[..., None] | None = None,
    ) -> Path:
        """Write a protected volume as a derived DICOM series that keeps the headers of its source.

        :param folder: an empty or new folder; in a folder with other files a new one is made.
        :param sourceNode: where the headers come from, if the protected node does not know its source.
        :param locks: seals and signs the series, see ``slicer_bridge.open_locks``.
        :return: the folder that holds the series.
        """
        return slicer_bridge.export_dicom(
            protectedNode, Path(folder), sourceNode, locks, progress=progress, compute=self._compute
        )

    def exportFile(
        self,
        protectedNode: vtkMRMLScalarVolumeNode,
        path: str | Path,
        sourceNode: vtkMRMLScalarVolumeNode | None = None,
        *,
        locks: slicer_bridge.Locks | None = None,
        progress: Callable[..., None] | None = None,
    ) -> None:
        """Write a protected volume as NRRD, NIfTI or MetaImage, by suffix; a file that exists is replaced.

        :param sourceNode: what it was protected from, if the protected node does not know its source.
        :param locks: seals and signs the file, see ``slicer_bridge.open_locks``.
        """
        slicer_bridge.export_file(
            protectedNode, Path(path), sourceNode, locks, progress=progress, compute=self._compute
        )

    def restoreOriginal(
        self,
        scan: slicer_bridge.ScanOnDisk,
        destination: str | Path,
        key: Any,
        *,
        name: str | None = None,
        progress: Callable[..., None] | None = None,
    ) -> tuple[Any, vtkMRMLScalarVolumeNode | None]:
        """Restore the original of a sealed scan on the disk, bit for bit.

        :param destination: a new folder for DICOM; a file name for a file, which is replaced if it exists.
        :param key: of ``slicer_bridge.open_key``.
        :param name: of a new volume node with the original; None to load none.
        :return: what was restored, and the node.
        """
        return slicer_bridge.restore_scan(scan, Path(destination), key, name, progress=progress, compute=self._compute)

    def verify(
        self,
        scan: slicer_bridge.ScanOnDisk,
        publicKey: Path | None = None,
        *,
        progress: Callable[..., None] | None = None,
    ) -> slicer_bridge.Checked:
        """Tell whether a signed scan on the disk is as it was signed, and if not, what was changed.

        :param publicKey: file with the public key of the expected signer.
        """
        publicKeys = [publicKey] if publicKey else []
        return slicer_bridge.check_scan(scan, publicKeys, progress=progress, compute=self._compute)

    def showChanges(
        self,
        checked: slicer_bridge.Checked,
        volumeNodes: Sequence[vtkMRMLScalarVolumeNode | None] = (),
        *,
        visible: bool = True,
    ) -> tuple[vtkMRMLLabelMapVolumeNode | None, vtkMRMLScalarVolumeNode | None]:
        """Lay the map of what was changed over the scan.

        :param volumeNodes: volumes that may hold the scan; where none does, it is added to the scene.
        :return: the map and the volume below it; None where nothing was changed.
        """
        changeMap, over = slicer_bridge.change_nodes(checked, volumeNodes)
        if changeMap:
            slicer_bridge.show_changes(changeMap, over, visible=visible)
        return changeMap, over

    def saveReport(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        protectedNode: vtkMRMLScalarVolumeNode,
        ras: Sequence[float],
        path: str | Path,
        action: str = "inject",
        attacker: Any = "default",
        *,
        model: Any = None,
        device: str = "auto",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Write the report of the demonstration for this scan and target; protection and attack are run once more.

        :param protectedNode: says which model, strength and seed to use; the same voxels come out.
        :param model: a Protector to use instead of the installed one that the protected node names.
        :param progress: called with the stage, steps done and in all.
        """
        slicer_bridge.save_report(
            volumeNode,
            protectedNode,
            ras,
            Path(path),
            action,
            attacker,
            model=model,
            device=device,
            progress=progress,
            compute=self._compute,
        )


class MITSGANTest(ScriptedLoadableModuleTest):
    """Self test on a synthetic thorax, run from the developer panel or by CTest."""

    def setUp(self) -> None:
        """Start from an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run all tests."""
        self.setUp()
        self.test_ProtectAndAttackPhantom()
        self.setUp()
        self.test_SealRestoreSignAndVerify()

    def test_ProtectAndAttackPhantom(self) -> None:
        """Protection and attack keep the geometry, follow the transform and mark their results."""
        from MITSGANLib.phantom import thorax_phantom

        self.delayDisplay("Creating the phantom")
        phantom = thorax_phantom()
        volumeNode = slicer_bridge.node_from_volume(phantom.volume, "Phantom")
        transformNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        transform = vtk.vtkTransform()
        transform.Translate(10, -20, 30)
        transform.RotateZ(15)
        transformNode.SetMatrixTransformToParent(transform.GetMatrix())
        volumeNode.SetAndObserveTransformNodeID(transformNode.GetID())
        ras = slicer_bridge.ras_from_voxel(volumeNode, phantom.nodule_kji)
        self.assertEqual(slicer_bridge.voxel_from_ras(volumeNode, ras), tuple(phantom.nodule_kji))

        if not slicer_bridge.are_installed("torch", "safetensors", "skimage", "lpips"):
            self.delayDisplay("PyTorch or another package is not installed: only the geometry was tested")
            return

        self.delayDisplay("Protecting the phantom")
        logic = MITSGANLogic()
        progress = []
        protectedNode = logic.protect(volumeNode, progress=lambda done, total: progress.append((done, total)))
        self.assertEqual(progress[-1][0], progress[-1][1])
        protected = slicer_bridge.volume_from_node(protectedNode)
        self.assertTrue(protected.same_geometry(phantom.volume))
        self.assertFalse((protected.hu == phantom.volume.hu).all())
        self.assertIs(protectedNode.GetParentTransformNode(), transformNode)
        self.assertEqual(protectedNode.GetAttribute(slicer_bridge.PROTECTED_ATTRIBUTE), "true")
        self.assertIsNone(protectedNode.GetAttribute(slicer_bridge.SIMULATED_ATTACK_ATTRIBUTE))

        self.delayDisplay("Simulating an attack")
        attackedNodes = logic.simulateAttack(volumeNode, protectedNode, ras, "remove")
        for sourceNode, attackedNode in zip((volumeNode, protectedNode), attackedNodes, strict=True):
            attacked = slicer_bridge.volume_from_node(attackedNode)
            self.assertTrue(attacked.same_geometry(phantom.volume))
            self.assertTrue(attacked.provenance.is_simulated_attack)
            self.assertFalse((attacked.hu == slicer_bridge.volume_from_node(sourceNode).hu).all())
            self.assertEqual(attackedNode.GetAttribute(slicer_bridge.SIMULATED_ATTACK_ATTRIBUTE), "true")
            self.assertIn(slicer_bridge.SIMULATED_ATTACK_MARK, attackedNode.GetName())

        self.delayDisplay("Comparing the volumes")
        comparison = logic.compare(volumeNode, protectedNode, *attackedNodes, attacker="default")
        self.assertEqual(sorted(comparison.heatmaps), ["protected", "protected attacked", "source attacked"])
        self.assertTrue(comparison.table.GetNumberOfRows() > 0)
        self.assertEqual(comparison.chart.GetNumberOfPlotSeriesNodes(), 2)
        slicer_bridge.show_comparison(
            dict(zip(slicer_bridge.VIEWS, (volumeNode, protectedNode, *attackedNodes), strict=True)),
            heatmaps=comparison.heatmaps,
            target_ras=ras,
            window=heatmap.LUNG,
            table=comparison.table,
            chart=comparison.chart,
        )
        slicer_bridge.restore_layout()

        self.delayDisplay("Canceling")
        nodes = slicer.mrmlScene.GetNumberOfNodes()

        def cancel(_done: int, _total: int) -> None:
            raise CancelledError("enough")

        with suppress(CancelledError):
            logic.protect(volumeNode, progress=cancel)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), nodes)

        self.delayDisplay("Test passed")

    def test_SealRestoreSignAndVerify(self) -> None:
        """A sealed and signed file gives back the original, and shows the one voxel that was changed."""
        from MITSGANLib.files import read_file, write_file
        from MITSGANLib.volume import CTVolume, ProcessingStep

        if not slicer_bridge.are_installed("cryptography"):
            self.delayDisplay("The package cryptography is not installed: keys were not tested")
            return
        self.delayDisplay("Sealing and signing")
        hu = np.random.default_rng(0).integers(-1000, 400, (8, 64, 64)).astype(np.int16)
        original = CTVolume(hu, spacing=(5.0, 5.0, 2.5))
        protected = original.with_hu(hu + np.int16(1), ProcessingStep("protection", "self test"))
        volumeNode = slicer_bridge.node_from_volume(original, "Original")
        protectedNode = slicer_bridge.node_from_volume(protected, "Protected", volumeNode)
        logic = MITSGANLogic()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            slicer_bridge.make_key_file(folder / "self.key")
            slicer_bridge.make_signing_key_file(folder / "self.pem")
            locks = slicer_bridge.open_locks(folder / "self.key", folder / "self.pem", "")
            path = folder / "protected.nrrd"
            logic.exportFile(protectedNode, path, volumeNode, locks=locks)

            self.delayDisplay("Restoring")
            scan = slicer_bridge.ScanOnDisk(path)
            key = slicer_bridge.open_key(folder / "self.key", "")
            _restored, restoredNode = logic.restoreOriginal(scan, folder / "restored.nrrd", key, name="Restored")
            self.assertTrue((slicer.util.arrayFromVolume(restoredNode) == hu).all())

            self.delayDisplay("Verifying")
            checked = logic.verify(scan, folder / "self.pub.pem")
            self.assertTrue(checked.is_intact)
            self.assertTrue(checked.is_signer_known)
            self.assertEqual(logic.showChanges(checked), (None, None))
            forged = read_file(path)
            values = forged.hu.copy()
            values[5, 40, 10] += 1
            write_file(CTVolume(values, forged.spacing, forged.origin, forged.direction), path, overwrite=True)
            checked = logic.verify(scan)
            self.assertFalse(checked.is_intact)
            changeMap, _over = logic.showChanges(checked, (volumeNode, protectedNode))
            labels = slicer.util.arrayFromVolume(changeMap)
            self.assertEqual(np.argwhere(labels)[0].tolist(), [5, 32, 0])
            self.assertEqual(int(np.count_nonzero(labels)), 32 * 32)
        self.delayDisplay("Test passed")
