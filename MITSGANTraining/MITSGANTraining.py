"""The MITSGAN Training module of 3D Slicer: measures loaded volumes, and shows the commands that work without Slicer.

Training takes hours and batches run over folders, so they are command lines; this panel gives the commands, with the
paths of this installation, ready to copy. Two volumes that are loaded are measured right here.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
import vtk
from MITSGANLib.slicer_bridge.layout import show_table
from MITSGANLib.slicer_bridge.operations import compute_here, measure_nodes, operation
from MITSGANLib.slicer_bridge.panel.shared import Panel
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class MITSGANTraining(ScriptedLoadableModule):
    """Name, category and help of the module, as Slicer lists them."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MITSGAN Training")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Informatics")]
        self.parent.dependencies = ["MITSGAN"]
        self.parent.contributors = ["MITSGAN contributors"]
        self.parent.helpText = _("""
MITSGAN helps you find out whether generative AI added or removed a tumor in a chest CT: it adds a watermark smaller
than the scan's own noise, signs scans, restores originals bit for bit, and simulates the attack on your own scan, but
it does not stop the attack and misses some forgeries.
This module measures how far two loaded volumes are apart, and shows the commands that train, protect and measure
without a window. See <a href="{url}">{url}</a> for data, options and results.
""").format(url="https://github.com/MITSGAN/SlicerMITSGAN")
        self.parent.acknowledgementText = _("""
The method follows MITS-GAN (Pasqualino et al.); the simulated attack follows CT-GAN (Mirsky et al.).
""")


@parameterNodeWrapper
class MITSGANTrainingParameterNode:
    """What the user chose in the panel, saved with the scene.

    referenceVolume - The volume to compare with.
    comparedVolume - The volume to measure, on the same grid.
    """

    referenceVolume: vtkMRMLScalarVolumeNode
    comparedVolume: vtkMRMLScalarVolumeNode


class MITSGANTrainingWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel: an evaluation of loaded volumes, and a chooser of commands for a terminal."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = self.panel = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None

    def setup(self) -> None:
        """Build the panel when the user opens the module for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MITSGANTraining.ui"))
        self.layout.addWidget(uiWidget)
        ui = self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.panel = Panel(ui, self.parent, self, MITSGANTrainingLogic, self.resourcePath)
        self.logic = self.panel.logic
        self.panel.add_job(
            ui.evaluateButton,
            ui.progressBar,
            self.onEvaluate,
            unit=_("slices"),
            failure=_("Failed to evaluate the volumes."),
            missing=self._missingVolumes,
        )
        ui.commandComboBox.connect("currentIndexChanged(int)", self.onCommandChanged)
        ui.copyButton.connect("clicked()", self.onCopy)
        for name, purpose in self.logic.commands():
            ui.commandComboBox.addItem(name, purpose)

        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        # Quitting waits for work in progress: the application calls cleanup only after it.
        slicer.app.connect("lastWindowClosed()", self.panel.jobs.cancel)
        self.enter()

    def cleanup(self) -> None:
        """Called when the application closes and the module widget is destroyed."""
        if self.panel:
            slicer.app.disconnect("lastWindowClosed()", self.panel.jobs.cancel)
            self.panel.close()
            self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.setParameterNode(self.logic.getParameterNode())

    def exit(self) -> None:
        """Called each time the user opens a different module."""
        self.setParameterNode(None)

    def onSceneStartClose(self, _caller, _event) -> None:
        """Let go of the parameter node, which is about to be reset, and of work on nodes that are about to go."""
        self.panel.jobs.cancel()
        self.setParameterNode(None)

    def onSceneEndClose(self, _caller, _event) -> None:
        """Take a new parameter node if the panel is open."""
        if self.parent.isEntered:
            self.enter()

    def setParameterNode(self, inputParameterNode: MITSGANTrainingParameterNode | None) -> None:
        """Show and observe a parameter node, or none."""
        modified = vtk.vtkCommand.ModifiedEvent
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode.parameterNode, modified, self._onParametersModified)
        self._parameterNode = self.panel.parameters = inputParameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            # With a low priority: the wrapper's values are caches that other observers renew.
            self.addObserver(self._parameterNode.parameterNode, modified, self._onParametersModified, priority=-1.0)
        self.panel.changed()

    def onEvaluate(self, progress: Callable[[int, int], None]) -> None:
        """Measure the two volumes and show the table."""
        table = self.logic.evaluate(
            self._parameterNode.referenceVolume, self._parameterNode.comparedVolume, progress=progress
        )
        show_table(table)
        self.panel.jobs.say(_("The figures are in the table {name}.").format(name=table.GetName()))

    def onCommandChanged(self, index: int) -> None:
        """Show the command's purpose, and the end of its line: what comes before is the same for all."""
        self.ui.purposeLabel.text = self.ui.commandComboBox.itemData(index)
        line = self.logic.commandLine(self.ui.commandComboBox.itemText(index))
        self.ui.commandLineEdit.text = self.ui.commandLineEdit.toolTip = line
        self.ui.commandLineEdit.setCursorPosition(len(line))

    def onCopy(self) -> None:
        """Put the line on the clipboard."""
        slicer.app.clipboard().setText(self.ui.commandLineEdit.text)
        self.panel.jobs.say(_("Copied. Paste it into a terminal: it prints the options of the command."))

    def _missingVolumes(self) -> str:
        parameters = self._parameterNode
        if parameters and parameters.referenceVolume and parameters.comparedVolume:
            return ""
        return _("Select two volumes.")

    def _onParametersModified(self, _caller=None, _event=None) -> None:
        self.panel.changed()


class MITSGANTrainingLogic(ScriptedLoadableModuleLogic):
    """Measures volumes, and knows the commands that are installed with the module."""

    def __init__(self, compute: Callable[..., Any] = compute_here) -> None:
        """:param compute: runs ``work(progress)``, given both; the panel passes one that keeps Slicer responsive."""
        ScriptedLoadableModuleLogic.__init__(self)
        self.compute = compute

    def getParameterNode(self) -> MITSGANTrainingParameterNode:
        """The module's parameter node in the scene, created when there is none."""
        return MITSGANTrainingParameterNode(super().getParameterNode())

    # SSIM needs scikit-image, which a first protection in the MITSGAN module installs; without it the table says so.
    evaluate = operation(measure_nodes)

    def commands(self) -> list[tuple[str, str]]:
        """Name and purpose of each command."""
        from MITSGANTrainingLib.commandline import COMMANDS

        return [(name, command.__doc__.strip().splitlines()[0]) for name, command in COMMANDS.items()]

    def commandLine(self, name: str) -> str:
        """The line for a terminal that prints the options of a command, with the paths of this installation."""
        # Slicer puts its own Python on the PATH of the application; the bare name is what its documentation uses.
        interpreter = shutil.which("PythonSlicer") or "PythonSlicer"
        return f'"{interpreter}" "{Path(__file__).resolve().with_name("run_mitsgan.py")}" {name} --help'


class MITSGANTrainingTest(ScriptedLoadableModuleTest):
    """Self test: the panel has something to tell the user to run."""

    def runTest(self) -> None:
        """Run all tests."""
        self.setUp()
        self.test_CommandsExist()
        self.test_EvaluateLoadedVolumes()

    def test_CommandsExist(self) -> None:
        """Training and metrics, the two that the module is for, are installed."""
        logic = MITSGANTrainingLogic()
        self.assertLessEqual({"train", "compare"}, {name for name, _purpose in logic.commands()})
        self.assertTrue(Path(logic.commandLine("train").split('"')[3]).is_file())
        self.delayDisplay("Test passed")

    def test_EvaluateLoadedVolumes(self) -> None:
        """A volume that is a constant away from another has that RMSE and bias."""
        import numpy as np

        slicer.mrmlScene.Clear()
        hu = np.full((3, 16, 16), -1000, np.int16)
        hu[:, 4:12, 4:12] = 40
        nodes = [slicer.util.addVolumeFromArray(hu + change, name=f"CT {change}") for change in (0, 3)]
        table = MITSGANTrainingLogic().evaluate(*nodes)
        values = {table.GetCellText(row, 2): table.GetCellText(row, 3) for row in range(table.GetNumberOfRows())}
        self.assertEqual((values["rmse"], values["mean_bias"]), ("3", "3"))
