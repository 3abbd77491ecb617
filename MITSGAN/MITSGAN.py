"""The MITSGAN module of 3D Slicer: protect a CT volume, and simulate an attack on it with and without protection.

This file connects them. What happens to voxels is in ``MITSGANLib``, what happens to nodes in
``MITSGANLib.slicer_bridge``, and the sections of the panel are in ``MITSGANLib.slicer_bridge.panel``.
"""

from collections.abc import Callable
from typing import Annotated, Any

import slicer
from MITSGANLib.slicer_bridge import export, operations, self_test
from MITSGANLib.slicer_bridge.examine import examine_node, show_examined
from MITSGANLib.slicer_bridge.layout import register_layout
from MITSGANLib.slicer_bridge.operations import compute_here, operation
from MITSGANLib.slicer_bridge.panel.module_widget import ModuleWidget
from MITSGANLib.slicer_bridge.panel.panel import MITSGANPanel
from MITSGANLib.slicer_bridge.tables import table_text
from MITSGANLib.slicer_bridge.volumes import ras_from_voxel
from MITSGANLib.weights import DEFAULT_ATTACKER
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)


class MITSGAN(ScriptedLoadableModule):
    """Name, category and help of the module, as Slicer lists them."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MITSGAN")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Informatics")]
        self.parent.dependencies = ["Markups", "Volumes", "Colors", "Tables", "Plots"]
        self.parent.contributors = ["MITSGAN contributors"]
        self.parent.helpText = _("""
MITSGAN helps you find out whether generative AI added or removed a tumor in a chest CT: it adds a watermark smaller
than the scan's own noise, signs scans, restores originals bit for bit, and simulates the attack on your own scan, but
it does not stop the attack and misses some forgeries.
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
        register_layout()
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

    def onSampleRequested(self, _source) -> list[slicer.vtkMRMLScalarVolumeNode]:
        """Make the synthetic thorax for Sample Data."""
        with slicer.util.tryWithErrorDisplay(_("Failed to make the sample."), waitCursor=True):
            return [MITSGANLogic().loadPhantom()]


@parameterNodeWrapper
class MITSGANParameterNode:
    """What the user chose in the panel and what was computed, saved with the scene."""

    # What the views show, and what it is or was made from, which is protected and attacked.
    volume: slicer.vtkMRMLScalarVolumeNode
    sourceVolume: slicer.vtkMRMLScalarVolumeNode
    # Name of a protection model or "watermark"; largest change of a voxel, 0 for what the model was made for.
    model: str = "default"
    strengthHU: Annotated[float, WithinRange(0, 30)] = 0.0
    device: Annotated[str, Choice(["auto", "cpu", "cuda", "mps"])] = "auto"
    protectedVolume: slicer.vtkMRMLScalarVolumeNode
    # The target is the last point.
    targetPoint: slicer.vtkMRMLMarkupsFiducialNode
    action: Annotated[str, Choice(["inject", "remove"])] = "inject"
    # Name of an installed attacker, or a folder of attacker files.
    attacker: str = DEFAULT_ATTACKER
    sourceAttacked: slicer.vtkMRMLScalarVolumeNode
    protectedAttacked: slicer.vtkMRMLScalarVolumeNode
    # Results of the last comparison, and how its differences are shown.
    protectionHeatmap: slicer.vtkMRMLScalarVolumeNode
    sourceAttackedHeatmap: slicer.vtkMRMLScalarVolumeNode
    protectedAttackedHeatmap: slicer.vtkMRMLScalarVolumeNode
    metricsTable: slicer.vtkMRMLTableNode
    figuresTable: slicer.vtkMRMLTableNode
    rmseChart: slicer.vtkMRMLPlotChartNode
    summary: str = ""
    showHeatmaps: bool = False
    heatmapOpacity: Annotated[float, WithinRange(0, 1)] = 0.5
    heatmapThresholdPercent: Annotated[float, WithinRange(0, 100)] = 20.0
    # Where the last examination found changes.
    changeMap: slicer.vtkMRMLLabelMapVolumeNode
    showChanges: bool = True


class MITSGANWidget(ModuleWidget):
    """The module's panel: the sections of ``MITSGANLib.slicer_bridge.panel``, with the parameter node of the scene."""

    def setup(self) -> None:
        """Build the panel when the user opens the module for the first time."""
        self.setUpPanel("UI/MITSGAN.ui", MITSGANPanel, MITSGANLogic)


class MITSGANLogic(ScriptedLoadableModuleLogic):
    """Protection, simulated attacks, comparison and proof for volume nodes, usable without the panel.

    ::

        logic = MITSGANLogic()
        protectedNode = logic.protect(volumeNode)
        ras = logic.pointAt(volumeNode, (26, 146, 314))
        attackedNodes = logic.simulateAttack(volumeNode, protectedNode, ras, "inject")
        comparison = logic.compare(volumeNode, protectedNode, attackedNodes, attacker="default")

    ``help(logic.protect)`` gives parameters and results; the functions are in ``MITSGANLib.slicer_bridge``. PyTorch and
    the packages in ``Resources/requirements.txt`` must be installed. Where they say ``run``, say ``progress``: it is
    called with steps done and in all, and may raise CancelledError to stop; then the scene is as it was.
    """

    def __init__(self, compute: Callable[..., Any] = compute_here) -> None:
        """:param compute: runs ``work(progress)``, given both; the panel passes one that keeps Slicer responsive."""
        ScriptedLoadableModuleLogic.__init__(self)
        self.compute = compute

    def getParameterNode(self) -> MITSGANParameterNode:
        """The module's parameter node in the scene, created when there is none."""
        return MITSGANParameterNode(super().getParameterNode())

    loadPhantom = operation(operations.load_phantom)
    describeDevice = staticmethod(operations.describe_device)
    protect = operation(operations.protect_node)
    simulateAttack = operation(operations.attack_nodes)
    compare = operation(operations.compare_nodes)
    saveReport = operation(operations.save_report)
    pointAt = staticmethod(ras_from_voxel)
    tableText = staticmethod(table_text)

    checkDicomExport = staticmethod(export.exportable_files)
    exportDicom = operation(export.export_dicom)
    exportFile = operation(export.export_file)
    restoreOriginal = operation(export.restore_scan)
    watermark = operation(operations.watermark_node)
    examine = operation(examine_node)
    showExamined = staticmethod(show_examined)
    loadScan = operation(operations.load_scan)


class MITSGANTest(ScriptedLoadableModuleTest):
    """Self test on a synthetic thorax, run from the developer panel or by CTest."""

    def runTest(self) -> None:
        """Run all tests, each in an empty scene."""
        for test in (self_test.protect_and_attack, self_test.seal_and_sign, self_test.watermark_and_check):
            slicer.mrmlScene.Clear()
            test(self, MITSGANLogic())
