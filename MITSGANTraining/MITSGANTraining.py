"""The MITSGAN Training module of 3D Slicer: measures loaded volumes, and shows the commands that work without Slicer.

Training takes hours and batches run over folders, so they are command lines; this panel gives the commands, with the
paths of this installation, ready to copy. Two volumes that are loaded are measured right here.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from MITSGANLib.slicer_bridge.layout import show_table
from MITSGANLib.slicer_bridge.operations import compute_here, measure_nodes, operation
from MITSGANLib.slicer_bridge.panel.module_widget import ModuleWidget
from MITSGANLib.slicer_bridge.panel.shared import Panel
from MITSGANLib.slicer_bridge.privacy import path_kept_from_log
from MITSGANLib.slicer_bridge.reports import last_report, show_report
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)


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
    """What the user chose in the panel, saved with the scene: the volume to measure is on the grid of the reference."""

    referenceVolume: slicer.vtkMRMLScalarVolumeNode
    comparedVolume: slicer.vtkMRMLScalarVolumeNode


class TrainingPanel(Panel):
    """The module's panel: measures two loaded volumes, offers commands for a terminal, and opens their reports."""

    def __init__(self, *arguments: Any) -> None:
        """Connect the widgets; the arguments are those of :class:`Panel`."""
        super().__init__(*arguments)
        ui = self.ui
        self.add_job(
            ui.evaluateButton,
            ui.progressBar,
            self.evaluate,
            unit=_("slices"),
            failure=_("Failed to evaluate the volumes."),
            missing=self._missing_volumes,
        )
        ui.commandComboBox.connect("currentIndexChanged(int)", self.show_command)
        ui.commandLineEdit.connect("textChanged(QString)", self.show_line)
        ui.copyButton.connect("clicked()", self.copy)
        for name, purpose in self.logic.commands():
            ui.commandComboBox.addItem(name, purpose)
        ui.openReportButton.connect("clicked()", self.open_report)
        ui.lastReportButton.connect("clicked()", lambda: self._show_report(last_report()))
        self.add_control(ui.lastReportButton, missing=self._missing_report)

    def evaluate(self, progress: Callable[[int, int], None]) -> None:
        """Measure the two volumes and show the table."""
        parameters = self.parameters
        table = self.logic.evaluate(parameters.referenceVolume, parameters.comparedVolume, progress=progress)
        show_table(table)
        self.jobs.say(_("The figures are in the table {name}.").format(name=table.GetName()))

    def show_command(self, index: int) -> None:
        """Show the command's purpose, and the part of its line that is not the same for all."""
        self.ui.purposeLabel.text = self.ui.commandComboBox.itemData(index)
        self.ui.commandLineEdit.text = f"{self.ui.commandComboBox.itemText(index)} --help"

    def show_line(self, arguments: str) -> None:
        """Show the whole line in the tool tip."""
        self.ui.commandLineEdit.toolTip = self.logic.commandLine(arguments)

    def copy(self) -> None:
        """Put the whole line on the clipboard."""
        slicer.app.clipboard().setText(self.logic.commandLine(self.ui.commandLineEdit.text))
        self.jobs.say(_("Copied the whole line. Paste it into a terminal."))

    def open_report(self) -> None:
        """Let the user choose a report, of a command or of the MITSGAN module, and show it."""
        self._show_report(self.ask_for_file(_("Report"), _("Reports") + " (*.html *.md)"))

    def _show_report(self, path: Path | None) -> None:
        if path is not None:
            with self.trying(_("Failed to open the report.")), path_kept_from_log(path):
                show_report(path)
        self.changed()

    def _missing_volumes(self) -> str:
        has_both = self.parameters and self.parameters.referenceVolume and self.parameters.comparedVolume
        return "" if has_both else _("Select two volumes.")

    def _missing_report(self) -> str:
        return "" if last_report() else _("There is no report of this session yet; open one.")


class MITSGANTrainingWidget(ModuleWidget):
    """The module's panel: an evaluation of loaded volumes, a chooser of commands for a terminal, and reports."""

    def setup(self) -> None:
        """Build the panel when the user opens the module for the first time."""
        self.setUpPanel("UI/MITSGANTraining.ui", TrainingPanel, MITSGANTrainingLogic)


class MITSGANTrainingLogic(ScriptedLoadableModuleLogic):
    """Measures volumes, and knows the commands that are installed with the module."""

    def __init__(self, compute: Callable[..., Any] = compute_here) -> None:
        """:param compute: runs ``work(progress)``, given both; the panel passes one that keeps Slicer responsive."""
        ScriptedLoadableModuleLogic.__init__(self)
        self.compute = compute

    def getParameterNode(self) -> MITSGANTrainingParameterNode:
        """The module's parameter node in the scene, created when there is none."""
        return MITSGANTrainingParameterNode(super().getParameterNode())

    evaluate = operation(measure_nodes)

    def commands(self) -> list[tuple[str, str]]:
        """Name and purpose of each command."""
        from MITSGANTrainingLib.commandline import COMMANDS

        return [(name, command.__doc__.strip().splitlines()[0]) for name, command in COMMANDS.items()]

    def commandLine(self, arguments: str) -> str:
        """The line for a terminal that runs a command, named first among its arguments, of this installation."""
        # Slicer puts its own Python on the PATH of the application; the bare name is what its documentation uses.
        interpreter = shutil.which("PythonSlicer") or "PythonSlicer"
        return f'"{interpreter}" "{Path(__file__).resolve().with_name("run_mitsgan.py")}" {arguments}'


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
