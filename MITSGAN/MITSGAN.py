"""The MITSGAN module of 3D Slicer: protect a CT volume, and simulate an attack on it with and without protection.

What happens to voxels and nodes is in ``MITSGANLib``; this file holds the module's panel, its parameters, its logic and
its self test.
"""

import html
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import qt
import slicer
import vtk
from MITSGANLib import atomic, heatmap, models, slicer_bridge
from MITSGANLib.background import BackgroundTask, Job, Pace, run_in_background
from MITSGANLib.errors import CancelledError, DependencyError, InputError, MITSGANError, OutputError
from slicer import (
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

logger = logging.getLogger(__name__)

FLICKER_MILLISECONDS = 500


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
            uris="",
            fileNames="",
            nodeNames="Synthetic thorax",
            customDownloader=lambda _source: [MITSGANLogic().loadPhantom()],
            thumbnailFileName=self.resourcePath("Icons/MITSGAN.png"),
        )


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
    """

    sourceVolume: vtkMRMLScalarVolumeNode
    model: str = models.DEFAULT_PROTECTOR
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


class MITSGANWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._observedTarget = None
        self._job = None
        self._closed = False
        self._inspection = None
        self._inspected = False  # nothing yet; None is an empty selection
        self._deviceTask = None
        self._deviceAsked = None
        self._deviceWords = {}
        self._plotView = None

    def setup(self) -> None:
        """Build the panel when the user opens the module for the first time."""
        ScriptedLoadableModuleWidget.setup(self)

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MITSGAN.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = MITSGANLogic(lambda work, progress: run_in_background(work, progress, self._keepAlive))
        self._fillChoices()
        for button, icon in (
            (self.ui.protectButton, "Protect"),
            (self.ui.placeTargetButton, "Target"),
            (self.ui.simulateAttackButton, "Attack"),
            (self.ui.compareButton, "Compare"),
            (self.ui.exportDicomButton, "Export"),
            (self.ui.reportButton, "Report"),
        ):
            button.setIcon(qt.QIcon(self.resourcePath(f"Icons/{icon}.png")))

        self._deviceTimer = qt.QTimer()
        self._deviceTimer.setInterval(100)
        self._deviceTimer.connect("timeout()", self._pollDevice)
        self._flickerTimer = qt.QTimer()
        self._flickerTimer.setInterval(FLICKER_MILLISECONDS)
        self._flickerTimer.connect("timeout()", self.onFlickerTimeout)
        self._flickerShowsFirst = False

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self._connectWidgets()
        self.initializeParameterNode()

    def _fillChoices(self) -> None:
        for card in models.available_protectors():
            self.ui.modelComboBox.addItem(card.name, card.name)
            self.ui.modelComboBox.setItemData(self.ui.modelComboBox.count - 1, card.description, qt.Qt.ToolTipRole)
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
            "Protection is meant to disturb the CT-GAN attacks that a model was measured against ({attackers}). It is "
            "no guarantee against these or other attacks."
        ).format(attackers=", ".join(attackers))
        for text, first, second in (
            (_("Source / protected"), "source", "protected"),
            (_("Source / attacked"), "source", "source attacked"),
            (_("Protected / attacked"), "protected", "protected attacked"),
            (_("Attacked / protected, attacked"), "source attacked", "protected attacked"),
        ):
            self.ui.flickerComboBox.addItem(text, f"{first}|{second}")

    def _connectWidgets(self) -> None:
        self.ui.modelComboBox.connect("currentIndexChanged(int)", self.onModelChanged)
        self.ui.deviceComboBox.connect("currentIndexChanged(int)", self.onDeviceChanged)
        self.ui.attackerComboBox.connect("currentIndexChanged(int)", self.onAttackerChanged)
        self.ui.injectRadioButton.connect("toggled(bool)", self.onInjectToggled)
        self.ui.flickerComboBox.connect("currentIndexChanged(int)", self.onFlickerPairChanged)
        self.ui.flickerButton.connect("toggled(bool)", self.onFlickerToggled)
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
            (self.ui.reportButton, self.onReportButton),
        ):
            button.connect("clicked()", slot)

    # Life of the panel

    def cleanup(self) -> None:
        """Called when the application closes and the module widget is destroyed."""
        self._closed = True
        self._requestCancel()
        self._stopFlicker()
        self._deviceTimer.stop()
        self._disconnectPlot()
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the user opens a different module."""
        self._endPlacing()
        self._stopFlicker()
        self.setParameterNode(None)

    def onReload(self) -> None:
        """Reload the library together with the module (developer mode)."""
        if self._job:
            self._requestCancel()
            self.ui.statusLabel.text = _("Canceling; reload again when it has stopped.")
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
        self._requestCancel()
        self._stopFlicker()
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
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
            self._observeTarget(None)
        self._parameterNode = inputParameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
            self._onParametersModified()

    # What the panel shows

    def _onParametersModified(self, _caller=None, _event=None) -> None:
        parameters = self._parameterNode
        if not parameters or self._closed:
            return
        # parameterNodeWrapper has no connector for radio buttons, nor for a combo box filled at run time.
        modelIndex = self.ui.modelComboBox.findData(parameters.model)
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
        self.ui.attackedLabel.text = self._attackedText()
        self.ui.attackedLabel.setVisible(bool(self.ui.attackedLabel.text))
        self.ui.summaryLabel.text = parameters.summary
        self.ui.summaryLabel.setVisible(bool(parameters.summary))
        self._observeTarget(parameters.targetPoint)
        self._inspectSource()
        self._updateTarget()
        self._updateDevice()
        self._styleHeatmaps()
        self._checkCanApply()

    def _inspectSource(self) -> None:
        """Say whether the source looks like CT, whenever it is another node or has other voxels."""
        node = self._parameterNode.sourceVolume
        image = node.GetImageData() if node else None
        inspected = (node.GetID(), image.GetMTime() if image else 0) if node else None
        if inspected == self._inspected:
            return
        isOther = bool(node and self._inspected and self._inspected[0] != inspected[0])
        self._inspected = inspected
        self._inspection = slicer_bridge.inspect_node(node) if node else None
        self.ui.inspectionLabel.text = self._inspectionText(node)
        if isOther:
            self._chooseResultsOf(node)

    def _chooseResultsOf(self, node: vtkMRMLScalarVolumeNode) -> None:
        """Results of another source would be compared with the wrong scan."""
        parameters = self._parameterNode
        origin = slicer_bridge.source_of(parameters.protectedVolume) if parameters.protectedVolume else None
        # A protected volume from a file knows no source; the user's choice of it stands.
        if origin is not node and (origin or not parameters.protectedVolume):
            protected = slicer_bridge.results_of(node)
            parameters.protectedVolume = protected[-1] if protected else None
            parameters.sourceAttacked = parameters.protectedAttacked = None
            self._discardComparison(parameters)

    def _inspectionText(self, node: vtkMRMLScalarVolumeNode | None) -> str:
        inspection = self._inspection
        if not inspection:
            return _("Select a CT volume, or load a sample.")
        if not inspection.is_ct:
            return _("<b>Not usable:</b> {reason}").format(reason=html.escape(inspection.problem))
        slices, rows, columns = inspection.shape
        noise = (
            _("noise {sd:.0f} HU").format(sd=inspection.noise_sd_hu)
            if inspection.noise_sd_hu is not None
            else _("noise not measurable (too little soft tissue)")
        )
        lines = [
            _("Looks like CT in HU: {columns} × {rows} × {slices} voxels of {x:.2f} × {y:.2f} × {z:.2f} mm, {noise}.")
            .format(
                columns=columns, rows=rows, slices=slices, x=inspection.spacing[0], y=inspection.spacing[1],
                z=inspection.spacing[2], noise=noise,
            )
        ]  # fmt: skip
        if slicer_bridge.is_simulated_attack(node):
            lines.append(_("<b>This is a simulated attack, not a patient's scan.</b>"))
        elif node.GetAttribute(slicer_bridge.PROTECTED_ATTRIBUTE) == "true":
            lines.append(_("It is protected already; protecting it again adds to the change."))
        return "<br>".join([*lines, *(html.escape(warning) for warning in inspection.warnings)])

    def _attackedText(self) -> str:
        nodes = [node for node in (self._parameterNode.sourceAttacked, self._parameterNode.protectedAttacked) if node]
        color = "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in slicer_bridge.SIMULATED_ATTACK_COLOR))
        names = (f'<span style="color:{color}">■ {html.escape(node.GetName())}</span>' for node in nodes)
        return "<br>".join(names)

    def _updateTarget(self, _caller=None, _event=None) -> None:
        if not self._parameterNode:
            return
        self.ui.targetDescriptionLabel.text = self._targetText()
        self.ui.targetDescriptionLabel.setVisible(bool(self.ui.targetDescriptionLabel.text))
        self._checkCanApply()

    def _targetText(self) -> str:
        parameters = self._parameterNode
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        if interaction and interaction.GetCurrentInteractionMode() == interaction.Place:
            return _("Click the structure to attack in a slice view; Esc stops.")
        if not self._hasTarget() or not parameters.sourceVolume or not self._inspection.is_ct:
            return ""
        try:
            ras = slicer_bridge.target_from_markups(parameters.targetPoint)
            k, j, i = slicer_bridge.voxel_from_ras(parameters.sourceVolume, ras)
        except MITSGANError as error:
            return str(error)
        return _("Slice {k}, row {j}, column {i}: {hu} HU").format(
            k=k, j=j, i=i, hu=slicer.util.arrayFromVolume(parameters.sourceVolume)[k, j, i]
        )

    def _hasTarget(self) -> bool:
        target = self._parameterNode.targetPoint
        return bool(target) and target.GetNumberOfDefinedControlPoints() > 0

    def _observeTarget(self, targetNode: vtkMRMLMarkupsFiducialNode | None) -> None:
        """Placing, moving or deleting a point changes the point list, not the parameter node."""
        if targetNode is self._observedTarget:
            return
        markupsClass = slicer.vtkMRMLMarkupsNode
        for event, method in (
            (markupsClass.PointPositionDefinedEvent, self._onTargetPlaced),
            (markupsClass.PointPositionUndefinedEvent, self._updateTarget),
            (markupsClass.PointEndInteractionEvent, self._updateTarget),
            (markupsClass.PointRemovedEvent, self._updateTarget),
        ):
            if self._observedTarget:
                self.removeObserver(self._observedTarget, event, method)
            if targetNode:
                self.addObserver(targetNode, event, method)
        self._observedTarget = targetNode

    def _onTargetPlaced(self, _caller=None, _event=None) -> None:
        # Not within the event: the view that placed the point still holds on to the list.
        qt.QTimer.singleShot(0, self._keepLastTarget)

    def _keepLastTarget(self) -> None:
        target = self._observedTarget
        if target and not self._closed:
            while target.GetNumberOfDefinedControlPoints() > 1:
                target.RemoveNthControlPoint(0)
            self._updateTarget()

    def _updateDevice(self) -> None:
        """Say in words what networks will run on and how long protection will take, without holding up the panel."""
        parameters = self._parameterNode
        if any(importlib.util.find_spec(name) is None for name in ("torch", "safetensors")):
            self.ui.deviceDescriptionLabel.text = _(
                "PyTorch is not installed yet; it is offered when you press the button."
            )
            return
        usable = bool(self._inspection and self._inspection.is_ct)
        asked = (parameters.device, parameters.model, self._inspected if usable else None)
        if asked in self._deviceWords:
            self.ui.deviceDescriptionLabel.text = self._deviceWords[asked]
        elif self._deviceTask is None:
            self.ui.deviceDescriptionLabel.text = _("Looking at the device…")
            device, model = parameters.device, parameters.model
            volume = slicer_bridge.volume_from_node(parameters.sourceVolume) if usable else None
            self._deviceAsked = asked
            self._deviceTask = BackgroundTask(lambda: self.logic.describeDevice(device, model, volume))
            self._deviceTimer.start()

    def _pollDevice(self) -> None:
        # Python's threads run only while Python waits: Qt's event loop does not let go of its lock.
        if not self._deviceTask.wait(0.05):
            return
        self._deviceTimer.stop()
        task, self._deviceTask = self._deviceTask, None
        try:
            device, seconds = task.result()
            self._deviceWords[self._deviceAsked] = (
                device
                if seconds is None
                else _("{device}, about {seconds:.0f} s for this scan").format(device=device, seconds=max(1.0, seconds))
            )
        except MITSGANError as error:
            self._deviceWords[self._deviceAsked] = str(error)
        if self._parameterNode:
            self._updateDevice()

    def _checkCanApply(self, _caller=None, _event=None) -> None:
        """Enable each button when what it needs is there, and say in its tool tip what is missing."""
        if self._closed:
            return
        for button, ready, missing in self._conditions():
            running = self._job and self._job.button is button
            if self._job and not running:
                missing = _("Wait until the work in progress is finished, or cancel it.")
            button.enabled = bool(running) or not missing
            button.toolTip = _("Stop; nothing is left behind.") if running else (missing or ready)
        parameters = self._parameterNode
        for button in (self.ui.copyTableButton, self.ui.saveTableButton):
            button.enabled = bool(parameters and parameters.metricsTable)
        shown = bool(parameters and slicer_bridge.comparison_is_shown())
        for widget in (self.ui.centerButton, self.ui.restoreLayoutButton, self.ui.flickerButton):
            widget.enabled = shown

    def _conditions(self) -> Iterator[tuple[Any, str, str]]:
        """Each button of heavy work, its tool tip, and what is missing for it."""
        parameters = self._parameterNode
        source = parameters.sourceVolume if parameters else None
        noScan = "" if source else _("Select a CT volume.")
        if source and self._inspection and not self._inspection.is_ct:
            noScan = self._inspection.problem
        noModel = "" if self.ui.modelComboBox.currentIndex >= 0 else _("No protection model is installed.")
        yield self.ui.protectButton, _("Compute a protected copy of the CT volume."), noScan or noModel
        protected = parameters.protectedVolume if parameters else None
        noProtected = noScan
        if not noScan and (not protected or protected is source):
            noProtected = _("Protect the CT volume, or select its protected version.")
        noTarget = noProtected
        if not noProtected and not self._hasTarget():
            noTarget = _("Place a target.")
        yield self.ui.simulateAttackButton, _("Attack both volumes at the target."), noTarget
        yield self.ui.compareButton, _("Measure the change and show all volumes side by side."), noProtected
        noExport = noProtected
        if not noProtected and slicer_bridge.is_simulated_attack(protected):
            noExport = _("A simulated attack is never exported as DICOM, so that it cannot pass for a patient's scan.")
        yield self.ui.exportDicomButton, _("Write the protected volume as a derived DICOM series."), noExport
        yield self.ui.reportButton, _("Protect, attack and measure once more, and write a report as HTML."), noTarget

    # What the user chooses

    def onModelChanged(self, index: int) -> None:
        """Keep the model that the user chose."""
        if self._parameterNode and index >= 0:
            self._parameterNode.model = self.ui.modelComboBox.itemData(index)

    def onDeviceChanged(self, index: int) -> None:
        """Keep the device that the user chose."""
        if self._parameterNode and index >= 0:
            self._parameterNode.device = self.ui.deviceComboBox.itemData(index)

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

            node = SampleData.downloadSample("CTChest")
            slicer_bridge.set_window([node], heatmap.LUNG)
            self._parameterNode.sourceVolume = node

    def onSamplePhantomButton(self) -> None:
        """Make the synthetic thorax."""
        with slicer.util.tryWithErrorDisplay(_("Failed to make the sample."), waitCursor=True):
            self._parameterNode.sourceVolume = self.logic.loadPhantom()

    def onPlaceTargetButton(self) -> None:
        """Wait for one click in a slice view."""
        parameters = self._parameterNode
        if not parameters.targetPoint:
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", _("Attack target"))
            node.CreateDefaultDisplayNodes()
            display = node.GetDisplayNode()
            display.SetSelectedColor(slicer_bridge.SIMULATED_ATTACK_COLOR)
            display.SetGlyphType(display.CrossDot2D)
            display.SetPointLabelsVisibility(False)
            parameters.targetPoint = node
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        markupsLogic = slicer.modules.markups.logic()
        markupsLogic.SetActiveList(parameters.targetPoint)
        if not self.getObserver(interaction, interaction.InteractionModeChangedEvent, self._updateTarget):
            self.addObserver(interaction, interaction.InteractionModeChangedEvent, self._updateTarget)
        markupsLogic.StartPlaceMode(False)

    def _endPlacing(self) -> None:
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        if interaction and interaction.GetCurrentInteractionMode() == interaction.Place:
            interaction.SetCurrentInteractionMode(interaction.ViewTransform)

    # Heavy work

    def onProtectButton(self) -> None:
        """Protect the selected volume and show the result; cancel when that is under way."""
        if self._cancelIfRunning(self.ui.protectButton):
            return
        with (
            slicer.util.tryWithErrorDisplay(_("Failed to protect the volume.")),
            self._heavyJob(self.ui.protectButton, self.ui.protectProgressBar, _("slices")) as progress,
        ):
            parameters = self._parameterNode
            self._ensurePackages()
            protectedNode = self.logic.protect(
                parameters.sourceVolume,
                parameters.model,
                parameters.strengthHU or None,
                device=parameters.device,
                progress=progress,
            )
            parameters.protectedVolume = protectedNode
            parameters.sourceAttacked = parameters.protectedAttacked = None
            self._discardComparison(parameters)
            slicer.util.setSliceViewerLayers(background=protectedNode)
            self.ui.statusLabel.text = _("Created {name}.").format(name=protectedNode.GetName())

    def onSimulateAttackButton(self) -> None:
        """Attack both volumes at the target and show all four side by side; cancel when that is under way."""
        if self._cancelIfRunning(self.ui.simulateAttackButton):
            return
        with (
            slicer.util.tryWithErrorDisplay(_("Failed to simulate the attack.")),
            self._heavyJob(self.ui.simulateAttackButton, self.ui.attackProgressBar, _("volumes")) as progress,
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
            self._discardComparison(parameters)
            self._showComparison(parameters)
            self.ui.statusLabel.text = _("Created {source} and {protected}.").format(
                source=attackedNodes[0].GetName(), protected=attackedNodes[1].GetName()
            )

    def onCompareButton(self) -> None:
        """Measure all volumes and show them side by side; cancel when that is under way."""
        if self._cancelIfRunning(self.ui.compareButton):
            return
        with (
            slicer.util.tryWithErrorDisplay(_("Failed to compare the volumes.")),
            self._heavyJob(self.ui.compareButton, self.ui.compareProgressBar, _("steps")) as progress,
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
            self._discardComparison(parameters)
            parameters.metricsTable, parameters.rmseChart = result.table, result.chart
            parameters.protectionHeatmap = result.heatmaps.get("protected")
            parameters.sourceAttackedHeatmap = result.heatmaps.get("source attacked")
            parameters.protectedAttackedHeatmap = result.heatmaps.get("protected attacked")
            noise = self._inspection.noise_sd_hu if self._inspection else None
            parameters.summary = self._summaryText(result.effect, noise)
            parameters.showHeatmaps = True
            self._showComparison(parameters)
            self.ui.statusLabel.text = _("Click a point of the plot to go to its slice.")

    def onExportDicomButton(self) -> None:
        """Write the protected volume as DICOM into a folder of the user's choice; cancel when that is under way."""
        if self._cancelIfRunning(self.ui.exportDicomButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to export the protected volume.")):
            self.ui.statusLabel.text = ""
            # Before the dialog: a reason not to export should not cost a choice.
            with self._showingError():
                self.logic.checkDicomExport(self._parameterNode.protectedVolume, self._parameterNode.sourceVolume)
            folder = qt.QFileDialog.getExistingDirectory(self.parent, _("Empty folder for the protected series"))
            if not folder:
                return
            with self._heavyJob(self.ui.exportDicomButton, self.ui.exportProgressBar, _("slices")) as progress:
                written = self.logic.exportDicom(
                    self._parameterNode.protectedVolume,
                    folder,
                    self._parameterNode.sourceVolume,
                    progress=progress,
                )
                self.ui.statusLabel.text = _("Wrote a derived DICOM series to {folder}.").format(folder=written)

    def onReportButton(self) -> None:
        """Write the report of the demonstration for this scene; cancel when that is under way."""
        if self._cancelIfRunning(self.ui.reportButton):
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to write the report.")):
            path = qt.QFileDialog.getSaveFileName(self.parent, _("Report"), "report.html", "HTML (*.html)")
            if not path:
                return
            with self._heavyJob(self.ui.reportButton, self.ui.exportProgressBar, _("steps")) as progress:
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
                self.ui.statusLabel.text = _("Wrote {path}.").format(path=path)

    @contextmanager
    def _heavyJob(self, button, progressBar, unit: str) -> Iterator[Callable[..., None]]:
        """While inside, ``button`` cancels and all other heavy work waits. Gives a function that shows progress."""
        text = button.text
        self._job = Job(button)
        button.text = _("Cancel")
        progressBar.setRange(0, 0)
        progressBar.format = ""
        progressBar.setVisible(True)
        self.ui.statusLabel.text = ""
        self.ui.statusLabel.styleSheet = ""
        self._checkCanApply()
        slicer.app.processEvents()
        pace = Pace()
        stages: list[str] = []

        def showProgress(*report: Any) -> None:
            *stage, done, total = report
            if self._closed:
                return
            if stage and stage != stages:
                stages[:] = stage
                pace.restart()
            progressBar.setRange(0, total)
            progressBar.setValue(done)
            progressBar.format = self._progressText(stage, done, total, pace, unit)

        try:
            with self._showingError():
                yield showProgress
        except CancelledError as canceled:
            if not self._closed:
                self.ui.statusLabel.text = str(canceled)
        finally:
            self._job = None
            if not self._closed:
                button.text = text
                progressBar.setVisible(False)
                self._checkCanApply()

    @contextmanager
    def _showingError(self) -> Iterator[None]:
        """Leave what went wrong in the panel, where it can still be read when the message box is closed."""
        try:
            yield
        except CancelledError:
            raise
        except Exception as error:
            if not self._closed:
                self.ui.statusLabel.text = str(error)
                self.ui.statusLabel.styleSheet = "font-weight: bold"
            raise

    def _progressText(self, stage: Sequence[str], done: int, total: int, pace: Pace, unit: str) -> str:
        left = pace.seconds_left(done, total)
        words = f"{stage[0]}: " if stage else ""
        if left is None:
            return words + _("{done} of {total} {unit}").format(done=done, total=total, unit=unit)
        return words + _("{done} of {total} {unit}, {rate:.1f}/s, {left:.0f} s left").format(
            done=done, total=total, unit=unit, rate=pace.rate(done), left=left
        )

    def _cancelIfRunning(self, button) -> bool:
        """Whether a press of ``button`` was meant to cancel, or came while other work runs."""
        if self._job is None:
            return False
        if self._job.button is button:
            self._requestCancel()
        return True

    def _requestCancel(self) -> None:
        if self._job:
            self._job.cancel_requested = True
            if not self._closed:
                self._job.button.text = _("Canceling…")

    def _keepAlive(self) -> None:
        slicer.app.processEvents()
        if self._job and self._job.cancel_requested:
            raise CancelledError(_("Canceled; nothing was changed."))

    def _ensurePackages(self) -> None:
        """Offer to install what Slicer does not ship. Called on first use, because it may download a lot."""
        if any(importlib.util.find_spec(name) is None for name in ("torch", "torchvision")):
            try:
                import PyTorchUtils
            except ModuleNotFoundError as error:
                raise DependencyError(
                    _("Install the PyTorch extension in the Extensions Manager and restart Slicer.")
                ) from error
            if PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True) is None:
                raise DependencyError(_("PyTorch is needed and was not installed."))

        from slicer import packaging

        packaging.pip_ensure(packaging.load_requirements(self.resourcePath("requirements.txt")), requester="MITSGAN")

    # The comparison

    def _volumes(self, parameters: MITSGANParameterNode) -> dict[str, vtkMRMLScalarVolumeNode | None]:
        return {
            "source": parameters.sourceVolume,
            "protected": parameters.protectedVolume,
            "source attacked": parameters.sourceAttacked,
            "protected attacked": parameters.protectedAttacked,
        }

    def _heatmaps(self, parameters: MITSGANParameterNode) -> dict[str, vtkMRMLScalarVolumeNode | None]:
        return {
            "protected": parameters.protectionHeatmap,
            "source attacked": parameters.sourceAttackedHeatmap,
            "protected attacked": parameters.protectedAttackedHeatmap,
        }

    def _showComparison(self, parameters: MITSGANParameterNode) -> None:
        self._stopFlicker()
        try:
            ras = slicer_bridge.target_from_markups(parameters.targetPoint)
        except InputError:
            ras = None
        slicer_bridge.show_comparison(
            self._volumes(parameters),
            heatmaps=self._heatmaps(parameters),
            target_ras=ras,
            window=heatmap.LUNG,
            table=parameters.metricsTable,
            chart=parameters.rmseChart,
        )
        self._connectPlot()
        self._styleHeatmaps()
        self._checkCanApply()

    def _styleHeatmaps(self) -> None:
        parameters = self._parameterNode
        if not parameters:
            return
        heatmaps = self._heatmaps(parameters)
        for node in filter(None, heatmaps.values()):
            slicer_bridge.set_difference_threshold(node, parameters.heatmapThresholdHU)
        slicer_bridge.show_heatmaps(heatmaps, visible=parameters.showHeatmaps, opacity=parameters.heatmapOpacity)

    def _discardComparison(self, parameters: MITSGANParameterNode) -> None:
        """Remove the results of the last comparison: they are not of the volumes that are selected now."""
        self.logic.discardComparison(
            [*self._heatmaps(parameters).values(), parameters.metricsTable, parameters.rmseChart]
        )
        parameters.summary = ""

    def _summaryText(self, effect: Any, noiseHU: float | None) -> str:
        rmse = effect.protection.rmse
        ofNoise = _(" ({ratio:.2f} of its noise)").format(ratio=rmse.value / noiseHU) if noiseHU else ""
        sentences = [
            _("Protection changed the scan by RMSE {rmse:.1f} HU{ofNoise}, most in slice {k} ({worst:.1f} HU).").format(
                rmse=rmse.value, ofNoise=ofNoise, k=rmse.worst_slice.slice, worst=rmse.worst_slice.value
            )
        ]
        if effect.attack_rmse_hu:
            sentences.append(
                _("The attack changed what it forged by RMSE {attack:.0f} HU.").format(attack=effect.attack_rmse_hu)
            )
            sentences.append(
                _("Protection moved the forgery by {share:.0%} of that.").format(share=effect.forgery_share)
            )
            if effect.control_share is not None:
                sentences.append(
                    _("Noise of the same RMSE moved it by {share:.0%}.").format(share=effect.control_share)
                )
        return " ".join(sentences)

    def onWindowButton(self, window: heatmap.Window) -> None:
        """Show all volumes in a window for lung, mediastinum or bone."""
        if self._parameterNode:
            slicer_bridge.set_window(self._volumes(self._parameterNode).values(), window)

    def onCenterButton(self) -> None:
        """Show the comparison as at first, around the target."""
        if self._parameterNode:
            self._showComparison(self._parameterNode)

    def onRestoreLayoutButton(self) -> None:
        """Go back to the views as they were before the comparison."""
        self._stopFlicker()
        slicer_bridge.restore_layout()
        self._checkCanApply()

    def onCopyTableButton(self) -> None:
        """Put the table of metrics on the clipboard."""
        slicer.app.clipboard().setText(slicer_bridge.table_text(self._parameterNode.metricsTable))
        self.ui.statusLabel.text = _("Copied the table.")

    def onSaveTableButton(self) -> None:
        """Write the table of metrics to a file."""
        path = qt.QFileDialog.getSaveFileName(self.parent, _("Table of metrics"), "metrics.csv", "CSV (*.csv)")
        if not path:
            return
        with slicer.util.tryWithErrorDisplay(_("Failed to write the table.")), self._showingError():
            # The dialog has asked whether to replace the file.
            with atomic.atomic_file(Path(path), overwrite=True) as temporary:
                temporary.write_text(slicer_bridge.table_text(self._parameterNode.metricsTable, ","), encoding="utf-8")
            self.ui.statusLabel.text = _("Wrote {path}.").format(path=path)

    def onFlickerToggled(self, on: bool) -> None:
        """Start or stop alternating the two volumes."""
        if on:
            self._flickerShowsFirst = False
            self._flickerTimer.start()
        else:
            self._flickerTimer.stop()
            self._showFlickered(first=False)

    def onFlickerPairChanged(self, _index: int) -> None:
        """Another pair: put back what the last one showed."""
        self._stopFlicker()

    def onFlickerTimeout(self) -> None:
        """Show the other volume."""
        self._flickerShowsFirst = not self._flickerShowsFirst
        self._showFlickered(first=self._flickerShowsFirst)

    def _showFlickered(self, first: bool) -> None:
        if not self._parameterNode:
            return
        volumes = self._volumes(self._parameterNode)
        if first:
            names = self.ui.flickerComboBox.itemData(self.ui.flickerComboBox.currentIndex).split("|")
            slicer_bridge.show_volume(names[1], volumes[names[0]])
        else:
            for view, node in volumes.items():
                slicer_bridge.show_volume(view, node)

    def _stopFlicker(self) -> None:
        self.ui.flickerButton.checked = False

    def _connectPlot(self) -> None:
        """Listen to clicks in the comparison's plot, whose view exists once the layout has been shown."""
        layoutManager = slicer.app.layoutManager()
        if self._plotView or not layoutManager:
            return
        for index in range(layoutManager.plotViewCount):
            plotWidget = layoutManager.plotWidget(index)
            if plotWidget.mrmlPlotViewNode() is slicer_bridge.plot_view_node():
                self._plotView = plotWidget.plotView()
                self._plotView.connect("dataSelected(vtkStringArray*, vtkCollection*)", self.onPlotDataSelected)

    def _disconnectPlot(self) -> None:
        if self._plotView:
            self._plotView.disconnect("dataSelected(vtkStringArray*, vtkCollection*)", self.onPlotDataSelected)
            self._plotView = None

    def onPlotDataSelected(self, seriesIDs: vtk.vtkStringArray, selections: vtk.vtkCollection) -> None:
        """Go to the slice whose point was clicked."""
        if not self._parameterNode or not self._parameterNode.sourceVolume:
            return
        for index in range(seriesIDs.GetNumberOfValues()):
            points = selections.GetItemAsObject(index)
            series = slicer.mrmlScene.GetNodeByID(seriesIDs.GetValue(index))
            if series and points and points.GetNumberOfValues():
                k = slicer_bridge.slice_of_point(series, points.GetValue(0))
                slicer_bridge.jump_to_slice(self._parameterNode.sourceVolume, k)


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

    def __init__(self, compute: Callable[..., Any] | None = None) -> None:
        """:param compute: runs ``work(progress)``, given both; the panel passes one that keeps Slicer responsive."""
        ScriptedLoadableModuleLogic.__init__(self)
        self._compute = compute or (lambda work, progress: work(progress))

    def getParameterNode(self) -> MITSGANParameterNode:
        """The module's parameter node in the scene, created when there is none."""
        return MITSGANParameterNode(super().getParameterNode())

    def loadPhantom(self) -> vtkMRMLScalarVolumeNode:
        """A synthetic thorax with a nodule, made on this computer."""
        from MITSGANLib.phantom import thorax_phantom

        node = slicer_bridge.node_from_volume(thorax_phantom().volume, _("Synthetic thorax"))
        node.SetAttribute(slicer_bridge.SYNTHETIC_ATTRIBUTE, "true")
        slicer_bridge.set_window([node], heatmap.LUNG)
        slicer.util.setSliceViewerLayers(background=node, fit=True)
        return node

    def describeDevice(
        self, device: str = "auto", model: Any = "default", volume: Any = None
    ) -> tuple[str, float | None]:
        """What networks run on, in words, and about how many seconds protecting ``volume`` (a CTVolume) takes there.

        :raises DependencyError: when the device is not there; nothing falls back silently.
        """
        from MITSGANLib import devices

        where = devices.resolve_device(device)
        words = devices.describe_device(where)
        if volume is None:
            return words, None
        from MITSGANLib.duration import seconds_to_protect

        return words, seconds_to_protect(volume, model, where)

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
        volume = slicer_bridge.ct_from_node(volumeNode)

        def work(report: Any) -> Any:
            # Imports torch, which the panel may have installed only now.
            from MITSGANLib import protector

            # Slice by slice, the same voxels as in batches: on a CPU a batch is long enough to be felt.
            return protector.protect(
                volume, model=model, strength_hu=strengthHU, device=device, batch_size=1, progress=report
            )

        protected = self._compute(work, progress)
        self._requireNodes(volumeNode)
        logger.info("MITSGAN protected %s", volumeNode.GetID())
        return slicer_bridge.node_from_volume(
            protected, _("{name} protected").format(name=volumeNode.GetName()), volumeNode
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
        scans = self._pair(volumeNode, protectedNode)
        kji = slicer_bridge.voxel_from_ras(volumeNode, ras)

        def work(report: Any) -> list[Any]:
            from MITSGANLib.ctgan.attacker import Attacker, load_attacker, simulate_attack

            ready = attacker if isinstance(attacker, Attacker) else load_attacker(attacker, action)
            attacked = []
            for scan in scans:
                if report:
                    report(len(attacked), len(scans))
                attacked.append(simulate_attack(scan, kji, action, attacker=ready, device=device))
            return attacked

        results = self._compute(work, progress)
        self._requireNodes(volumeNode, protectedNode)
        logger.info("MITSGAN simulated an attack (%s) on %s and %s", action, volumeNode.GetID(), protectedNode.GetID())
        name = _("{name} nodule injected") if action == "inject" else _("{name} nodule removed")
        return tuple(
            slicer_bridge.node_from_volume(attacked, name.format(name=node.GetName()), node)
            for attacked, node in zip(results, (volumeNode, protectedNode), strict=True)
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
        scans = self._pair(volumeNode, protectedNode)
        attackedNodes = [attackedNode, attackedProtectedNode] if attackedNode and attackedProtectedNode else []
        scans += [slicer_bridge.volume_from_node(node) for node in attackedNodes]

        def work(report: Any) -> Any:
            from MITSGANLib.effect import measure_effect
            from MITSGANLib.perceptual import load_lpips

            return measure_effect(*scans, attacker=attacker, device=device, lpips=load_lpips(), progress=report)

        effect = self._compute(work, progress)
        self._requireNodes(volumeNode, protectedNode, *attackedNodes)
        nodes = dict(zip(slicer_bridge.VIEWS, (volumeNode, protectedNode, *attackedNodes), strict=False))
        return slicer_bridge.comparison_nodes(effect, nodes, thresholdHU)

    def discardComparison(self, nodes: Sequence[slicer.vtkMRMLNode | None]) -> None:
        """Remove nodes that a comparison made, and what belongs to them."""
        for node in filter(None, nodes):
            slicer_bridge.remove_result(node)

    def checkDicomExport(
        self, protectedNode: vtkMRMLScalarVolumeNode, sourceNode: vtkMRMLScalarVolumeNode | None = None
    ) -> tuple[Path, ...]:
        """The original DICOM files that an export takes its headers from.

        :raises OutputError: with the reason, when the volume is not to be exported or did not come from DICOM.
        """
        if slicer_bridge.is_simulated_attack(protectedNode):
            raise OutputError(
                _("A simulated attack is never exported as DICOM, so that it cannot pass for a patient's scan.")
            )
        return slicer_bridge.dicom_files_of(slicer_bridge.source_of(protectedNode) or sourceNode or protectedNode)

    def exportDicom(
        self,
        protectedNode: vtkMRMLScalarVolumeNode,
        folder: str | Path,
        sourceNode: vtkMRMLScalarVolumeNode | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Write a protected volume as a derived DICOM series that keeps the headers of its source.

        :param folder: an empty or new folder; in a folder with other files a new one is made.
        :param sourceNode: where the headers come from, if the protected node does not know its source.
        :return: the folder that holds the series.
        """
        files = self.checkDicomExport(protectedNode, sourceNode)
        volume = slicer_bridge.volume_from_node(protectedNode)
        target = Path(folder)
        if target.is_dir() and any(target.iterdir()):
            names = (f"protected-{number}" for number in range(1, 10000))
            target = next(target / name for name in names if not (target / name).exists())

        def work(report: Any) -> None:
            from MITSGANLib.dicom import write_series

            write_series(slicer_bridge.with_dicom_source(volume, files), target, progress=report)

        self._compute(work, progress)
        logger.info("MITSGAN exported %s as DICOM", protectedNode.GetID())
        return target

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
        volume, protected = self._pair(volumeNode, protectedNode)
        kji = slicer_bridge.voxel_from_ras(volumeNode, ras)
        synthetic = volumeNode.GetAttribute(slicer_bridge.SYNTHETIC_ATTRIBUTE) == "true"

        def work(report: Any) -> None:
            from MITSGANLib import devices
            from MITSGANLib.ctgan.attacker import Attacker, load_attacker
            from MITSGANLib.demonstration import Target, demonstrate
            from MITSGANLib.recorded import protector_of
            from MITSGANLib.report import save_report

            ready = attacker if isinstance(attacker, Attacker) else load_attacker(attacker, action)
            demonstration = demonstrate(
                volume,
                [Target(action, kji, "chosen by the user")],
                model or protector_of(protected),
                [ready],
                device=device,
                device_words=devices.describe_device(devices.resolve_device(device)),
                progress=report,
            )
            # The node's name may be a patient's, so the report has its own.
            save_report(demonstration, Path(path), title="Scan in 3D Slicer", synthetic=synthetic)

        self._compute(work, progress)
        logger.info("MITSGAN wrote a report on %s", volumeNode.GetID())

    def _pair(self, volumeNode: vtkMRMLScalarVolumeNode, protectedNode: vtkMRMLScalarVolumeNode) -> list[Any]:
        """Both as CTVolume; InputError when they do not belong together."""
        volume, protected = slicer_bridge.ct_from_node(volumeNode), slicer_bridge.ct_from_node(protectedNode)
        if (
            not volume.same_geometry(protected)
            or volumeNode.GetParentTransformNode() is not protectedNode.GetParentTransformNode()
        ):
            raise InputError(
                _("The protected volume does not match the CT volume; select the one that was computed from it.")
            )
        return [volume, protected]

    def _requireNodes(self, *nodes: vtkMRMLScalarVolumeNode) -> None:
        """Work in the background leaves the user time to close the scene."""
        if any(node.GetScene() is not slicer.mrmlScene for node in nodes):
            raise CancelledError(_("Canceled: the volume was removed from the scene."))


class MITSGANTest(ScriptedLoadableModuleTest):
    """Self test on a synthetic thorax, run from the developer panel or by CTest."""

    def setUp(self) -> None:
        """Start from an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run all tests."""
        self.setUp()
        self.test_ProtectAndAttackPhantom()

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

        if importlib.util.find_spec("torch") is None:
            self.delayDisplay("PyTorch is not installed: only the geometry was tested")
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
