"""The MITSGAN module of 3D Slicer: protect a CT volume, and simulate an attack on it with and without protection.

This file holds the module, its parameters, its panel, its logic and its self test, and connects them. What happens to
voxels is in ``MITSGANLib``, what happens to nodes in ``MITSGANLib.slicer_bridge``, and the sections of the panel are in
``MITSGANLib.slicer_bridge.panel``.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import slicer
import vtk
from MITSGANLib import slicer_bridge
from MITSGANLib.attack.installed import DEFAULT_ATTACKER
from MITSGANLib.slicer_bridge import self_test
from MITSGANLib.slicer_bridge.panel import (
    AttackSection,
    Buttons,
    CompareSection,
    ExportSection,
    KeysSection,
    Panel,
    ProtectSection,
    VolumeSection,
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
    model - Name of the protection model, or "watermark".
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
    checkedVolume - The volume in which a watermark is sought.
    changeMap - What was changed in the scan that was verified or checked for its watermark last.
    showChanges - Whether that is shown.
    """

    sourceVolume: vtkMRMLScalarVolumeNode
    model: str = "default"
    strengthHU: Annotated[float, WithinRange(0, 30)] = 0.0
    device: Annotated[str, Choice(["auto", "cpu", "cuda"])] = "auto"
    protectedVolume: vtkMRMLScalarVolumeNode
    targetPoint: vtkMRMLMarkupsFiducialNode
    action: Annotated[str, Choice(["inject", "remove"])] = "inject"
    attacker: str = DEFAULT_ATTACKER
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
    checkedVolume: vtkMRMLScalarVolumeNode
    changeMap: vtkMRMLLabelMapVolumeNode
    showChanges: bool = True


class MITSGANWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel: loads its widgets, makes its sections, and shows them the parameter node of the scene."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = self.panel = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._layoutBefore = None

    def setup(self) -> None:
        """Build the panel when the user opens the module for the first time."""
        ScriptedLoadableModuleWidget.setup(self)

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MITSGAN.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.panel = Panel(self.ui, self.parent, self, MITSGANLogic, self.resourcePath)
        self.logic = self.panel.logic
        self.compare = CompareSection(self.panel)
        self.volume = VolumeSection(self.panel, self.compare)
        self.keys = KeysSection(self.panel, self.compare)
        self.protect = ProtectSection(self.panel, self.volume, self.compare, self.keys)
        self.attack = AttackSection(self.panel, self.compare)
        self.export = ExportSection(self.panel, self.keys)
        self.panel.on_change = Buttons(self.panel, self.keys).refresh

        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(scene, scene.EndBatchProcessEvent, self.onSceneEndBatchProcess)
        # Quitting waits for work in progress: the application calls cleanup only after it.
        slicer.app.connect("lastWindowClosed()", self.panel.jobs.cancel)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Called when the application closes and the module widget is destroyed."""
        if self.panel:
            slicer.app.disconnect("lastWindowClosed()", self.panel.jobs.cancel)
            self.panel.close()
            self.protect.close()
            self.compare.close()
            self._leave()
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the user opens a different module."""
        if self.panel:
            self._leave()

    def onReload(self) -> None:
        """Reload the library together with the module (developer mode)."""
        # None after a set-up that failed, which is what a reload may have been pressed for.
        jobs = self.panel and self.panel.jobs
        if jobs and jobs.button:
            jobs.cancel()
            jobs.say(_("Canceling; reload again when it has stopped."))
            return
        # The module file, which is executed anew, imports them anew.
        for name in [name for name in sys.modules if name.partition(".")[0] == "MITSGANLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, _caller, _event) -> None:
        """Let go of the parameter node, which is about to be reset, and of work on nodes that are about to go."""
        self.panel.jobs.cancel()
        self._leave()
        # It may be about a patient whose scene is gone.
        self.keys.take_scan(None)
        self._layoutBefore = slicer_bridge.layout_before_comparison()

    def onSceneEndClose(self, _caller, _event) -> None:
        """Take a new parameter node if the panel is open."""
        self.volume.forget()
        # Slicer would go back to the comparison, whose views are empty now.
        if self._layoutBefore is not None:
            slicer_bridge.set_layout(self._layoutBefore)
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, _caller, _event) -> None:
        """Show what a scene that was just loaded says, if the panel is open."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndBatchProcess(self, _caller, _event) -> None:
        """Show what was not shown while nodes came and went: a scene opened in place of another ends its import so."""
        self._onParametersModified()

    def initializeParameterNode(self) -> None:
        """Make sure that a parameter node exists, is observed and has a source volume if the scene has one."""
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.sourceVolume:
            self._parameterNode.sourceVolume = slicer_bridge.first_scan()

    def setParameterNode(self, inputParameterNode: MITSGANParameterNode | None) -> None:
        """Show and observe a parameter node, or none."""
        modified = vtk.vtkCommand.ModifiedEvent
        # The node is observed, not its wrapper: the mixin would keep every wrapper that it ever observed alive. With a
        # low priority, because the wrapper's values are caches that other observers renew, in no certain order.
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode.parameterNode, modified, self._onParametersModified)
        self._parameterNode = self.panel.parameters = inputParameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            node = self._parameterNode.parameterNode
            self.addObserver(node, modified, self._onParametersModified, priority=-1.0)
            self._onParametersModified()

    def _leave(self) -> None:
        for section in (self.attack, self.compare, self.protect, self.keys):
            section.leave()
        self.setParameterNode(None)

    def _onParametersModified(self, _caller=None, _event=None) -> None:
        # While a scene is read its nodes are half there; the end of the batch calls again.
        if not self._parameterNode or self.panel.is_closed or slicer.mrmlScene.IsBatchProcessing():
            return
        for section in (self.volume, self.protect, self.attack, self.compare, self.keys):
            section.refresh()
        self.panel.changed()


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

    def watermark(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        key: Any,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> vtkMRMLScalarVolumeNode:
        """Create a copy of a CT volume with a keyed watermark, which shows what is painted over later.

        :param volumeNode: the CT volume; it is not changed.
        :param key: of a key file, see ``slicer_bridge.open_key``.
        :return: the new volume node, under the same transform and study as the source.
        """
        return slicer_bridge.watermark_node(volumeNode, key, progress=progress, compute=self._compute)

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
    ) -> slicer_bridge.SignatureCheck:
        """Tell whether a signed scan on the disk is as it was signed, and if not, what was changed.

        :param publicKey: file with the public key of the expected signer.
        """
        publicKeys = [publicKey] if publicKey else []
        return slicer_bridge.check_scan(scan, publicKeys, progress=progress, compute=self._compute)

    def showChanges(
        self,
        checked: slicer_bridge.SignatureCheck,
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

    def checkWatermark(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        key: Any = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Tell whether a CT volume carries a watermark, and where that is missing.

        :param key: of a key file, see ``slicer_bridge.open_key``; None for the open watermark.
        :return: a ``MITSGANLib.watermark.checking.Check``.
        """
        return slicer_bridge.check_watermark_of_node(volumeNode, key, progress=progress, compute=self._compute)

    def showMissingWatermark(
        self, check: Any, volumeNode: vtkMRMLScalarVolumeNode, *, visible: bool = True
    ) -> vtkMRMLLabelMapVolumeNode | None:
        """Lay a map of where the watermark is missing over the volume, and go to the largest place.

        :param check: of ``checkWatermark`` on this volume.
        :return: the map; None where nothing is missing.
        """
        changeMap = slicer_bridge.missing_watermark_node(check, volumeNode)
        if changeMap:
            slicer_bridge.show_changes(changeMap, volumeNode, visible=visible, kji=check.regions[0].kji)
        return changeMap

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
        self.setUp()
        self.test_WatermarkPaintAndCheck()

    def test_ProtectAndAttackPhantom(self) -> None:
        """Protection and attack keep the geometry, follow the transform and mark their results."""
        self_test.protect_and_attack(self, MITSGANLogic())

    def test_SealRestoreSignAndVerify(self) -> None:
        """A sealed and signed file gives back the original, and shows the one voxel that was changed."""
        self_test.seal_and_sign(self, MITSGANLogic())

    def test_WatermarkPaintAndCheck(self) -> None:
        """A watermark is missing where the scan was painted over, and nowhere else."""
        self_test.watermark_and_check(self, MITSGANLogic())
