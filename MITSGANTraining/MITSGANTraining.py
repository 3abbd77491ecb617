"""The MITSGAN Training module of 3D Slicer: says how to train models and compute metrics without the application.

Training takes hours and batches run over folders, so they are command lines; this panel gives the commands, with the
paths of this installation, ready to copy.
"""

import shutil
from pathlib import Path

import ctk
import qt
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
        self.parent.dependencies = []
        self.parent.contributors = ["MITSGAN contributors"]
        self.parent.helpText = _("""
Shows the commands that train MITSGAN models, protect and attack files, and compute metrics over many scans without the
application.
See <a href="{url}">{url}</a> for data, options and results.
""").format(url="https://github.com/MITSGAN/SlicerMITSGAN")
        self.parent.acknowledgementText = _("""
The method follows MITS-GAN (Pasqualino et al.); the simulated attack follows CT-GAN (Mirsky et al.).
""")


class MITSGANTrainingWidget(ScriptedLoadableModuleWidget):
    """The module's panel: one command per task, to copy into a terminal."""

    def setup(self) -> None:
        """Build the panel when the user opens the module for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        commandsButton = ctk.ctkCollapsibleButton()
        commandsButton.text = _("Commands")
        self.layout.addWidget(commandsButton)
        formLayout = qt.QFormLayout(commandsButton)

        introduction = qt.QLabel(
            _(
                "Run these in a terminal. They use Slicer's own Python and need no window; --help prints the options. "
                "Protect a volume once in the MITSGAN module first: that installs the Python packages."
            )
        )
        introduction.wordWrap = True
        formLayout.addRow(introduction)
        for purpose, command in MITSGANTrainingLogic().commands():
            commandEdit = qt.QLineEdit(command)
            commandEdit.readOnly = True
            commandEdit.setCursorPosition(0)
            commandEdit.toolTip = command
            formLayout.addRow(purpose, commandEdit)
        self.layout.addStretch(1)


class MITSGANTrainingLogic(ScriptedLoadableModuleLogic):
    """Knows the command lines that are installed with the module."""

    def commands(self) -> list[tuple[str, str]]:
        """(purpose, command) of each script beside this file, with the paths of this installation."""
        purposes = {
            "train.py": _("Train a model:"),
            "compare.py": _("Compute metrics:"),
            "protect.py": _("Protect files:"),
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

    def test_CommandsExist(self) -> None:
        """Training and metrics, the two that the module is for, are installed."""
        commands = " ".join(command for _purpose, command in MITSGANTrainingLogic().commands())
        self.assertIn("train.py", commands)
        self.assertIn("compare.py", commands)
        self.delayDisplay("Test passed")
