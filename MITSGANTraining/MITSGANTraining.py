"""The MITSGAN Training module of 3D Slicer: measures loaded volumes, and says how to train and measure without Slicer.

Training takes hours and batches run over folders, so they are command lines; this panel gives the commands, with the
paths of this installation, ready to copy. Two volumes that are loaded are measured right here.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctk
import qt
import slicer
from MITSGANLib import slicer_bridge
from MITSGANLib.slicer_bridge.panel import JobRunner
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLTableNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
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
Measures how far two loaded volumes are apart, and shows the commands that train MITSGAN models, protect and attack
files, and compute metrics over many scans without the application.
See <a href="{url}">{url}</a> for data, options and results.
""").format(url="https://github.com/MITSGAN/SlicerMITSGAN")
        self.parent.acknowledgementText = _("""
The method follows MITS-GAN (Pasqualino et al.); the simulated attack follows CT-GAN (Mirsky et al.).
""")


class MITSGANTrainingWidget(ScriptedLoadableModuleWidget):
    """The module's panel: an evaluation of loaded volumes, and one command per task to copy into a terminal."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.jobs = None

    def setup(self) -> None:
        """Build the panel when the user opens the module for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        self._addEvaluation()
        self.jobs = JobRunner(self.resultLabel, lambda: None)
        self.logic = MITSGANTrainingLogic(self.jobs.compute)
        # Quitting waits for work in progress: the application calls cleanup only after it.
        slicer.app.connect("lastWindowClosed()", self.jobs.cancel)
        self._addCommands()
        self.layout.addStretch(1)

    def cleanup(self) -> None:
        """Called when the application closes and the module widget is destroyed."""
        if self.jobs:
            slicer.app.disconnect("lastWindowClosed()", self.jobs.cancel)
            self.jobs.close()

    def _addEvaluation(self) -> None:
        section = ctk.ctkCollapsibleButton()
        section.text = _("Evaluate loaded volumes")
        self.layout.addWidget(section)
        formLayout = qt.QFormLayout(section)
        self.referenceSelector = self._volumeSelector()
        self.otherSelector = self._volumeSelector()
        formLayout.addRow(_("Reference:"), self.referenceSelector)
        formLayout.addRow(_("Compared:"), self.otherSelector)
        self.evaluateButton = qt.QPushButton(_("Evaluate"))
        self.evaluateButton.toolTip = _("Measure RMSE, PSNR, SSIM and bias of the whole scan, into a table.")
        self.evaluateButton.connect("clicked()", self.onEvaluateButton)
        formLayout.addRow(self.evaluateButton)
        self.progressBar = qt.QProgressBar()
        self.progressBar.setVisible(False)
        formLayout.addRow(self.progressBar)
        self.resultLabel = qt.QLabel()
        self.resultLabel.wordWrap = True
        formLayout.addRow(self.resultLabel)

    def _volumeSelector(self):
        selector = slicer.qMRMLNodeComboBox()
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.showChildNodeTypes = False
        selector.addEnabled = False
        selector.removeEnabled = False
        selector.noneEnabled = True
        selector.setMRMLScene(slicer.mrmlScene)
        return selector

    def _addCommands(self) -> None:
        section = ctk.ctkCollapsibleButton()
        section.text = _("Commands")
        self.layout.addWidget(section)
        formLayout = qt.QFormLayout(section)
        introduction = qt.QLabel(
            _(
                "Run these in a terminal. They use Slicer's own Python and need no window; --help prints the options. "
                "Protect a volume once in the MITSGAN module first: that installs the Python packages."
            )
        )
        introduction.wordWrap = True
        formLayout.addRow(introduction)
        for purpose, command in self.logic.commands():
            commandEdit = qt.QLineEdit(command)
            commandEdit.readOnly = True
            commandEdit.setCursorPosition(0)
            commandEdit.toolTip = command
            formLayout.addRow(purpose, commandEdit)

    def onEvaluateButton(self) -> None:
        """Measure the two volumes and show the table; cancel when that is under way."""
        if self.jobs.press(self.evaluateButton):
            return
        with (
            slicer.util.tryWithErrorDisplay(_("Failed to evaluate the volumes.")),
            self.jobs.running(self.evaluateButton, self.progressBar, _("slices")) as progress,
        ):
            table = self.logic.evaluate(
                self.referenceSelector.currentNode(), self.otherSelector.currentNode(), progress
            )
            slicer_bridge.show_table(table)
            self.jobs.say(_("The figures are in the table {name}.").format(name=table.GetName()))


class MITSGANTrainingLogic(ScriptedLoadableModuleLogic):
    """Measures volumes, and knows the command lines that are installed with the module."""

    def __init__(self, compute: Callable[..., Any] = slicer_bridge.compute_here) -> None:
        """:param compute: runs ``work(progress)``, given both; the panel passes one that keeps Slicer responsive."""
        ScriptedLoadableModuleLogic.__init__(self)
        self._compute = compute

    def evaluate(
        self,
        referenceNode: vtkMRMLScalarVolumeNode,
        otherNode: vtkMRMLScalarVolumeNode,
        progress: Callable[[int, int], None] | None = None,
    ) -> vtkMRMLTableNode:
        """A new table node of how far a volume is from a reference on the same grid, with definitions.

        SSIM needs scikit-image, which a first protection in the MITSGAN module installs; without it the table says so.
        """
        return slicer_bridge.measure_nodes(referenceNode, otherNode, progress=progress, compute=self._compute)

    def commands(self) -> list[tuple[str, str]]:
        """(purpose, command) of each script beside this file, with the paths of this installation."""
        purposes = {
            "prepare.py": _("Prepare training data:"),
            "train.py": _("Train a model:"),
            "evaluate.py": _("Compute the paper's tables:"),
            "sheet.py": _("See an attacker's forgeries:"),
            "fidelity.py": _("Check how small a protection's change is:"),
            "diagnose.py": _("Measure a mark against diagnosis networks:"),
            "compare.py": _("Compute metrics:"),
            "keygen.py": _("Make a key to restore with:"),
            "protect.py": _("Protect files or archives:"),
            "sign.py": _("Sign files or DICOM folders:"),
            "verify.py": _("Verify signed scans:"),
            "check.py": _("Find what a watermark misses:"),
            "restore.py": _("Restore originals with a key:"),
            "attack.py": _("Simulate an attack on files:"),
            "demo.py": _("Run the demonstration:"),
            "info.py": _("Describe a file or model:"),
        }
        # Slicer puts its own Python on the PATH of the application; the bare name is what its documentation uses.
        interpreter = shutil.which("PythonSlicer") or "PythonSlicer"
        folder = Path(__file__).resolve().parent
        return [
            (purpose, f'"{interpreter}" "{folder / script}" --help')
            for script, purpose in purposes.items()
            if (folder / script).is_file()
        ]


class MITSGANTrainingTest(ScriptedLoadableModuleTest):
    """Self test: the panel has something to tell the user to run."""

    def runTest(self) -> None:
        """Run all tests."""
        self.setUp()
        self.test_CommandsExist()
        self.test_EvaluateLoadedVolumes()

    def test_CommandsExist(self) -> None:
        """Training and metrics, the two that the module is for, are installed."""
        commands = " ".join(command for _purpose, command in MITSGANTrainingLogic().commands())
        self.assertIn("train.py", commands)
        self.assertIn("compare.py", commands)
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
