"""The panel of the training module: an evaluation of loaded volumes, and commands to copy."""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from __future__ import annotations

import sys

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from MITSGANTrainingLib.commandline import COMMANDS
from panel_data import ROOT, click_failing
from slicer_standin import run_in_lockstep


@pytest.fixture
def module(standin):
    return standin.load(ROOT / "MITSGANTraining" / "MITSGANTraining.py")


@pytest.fixture
def panel(standin, module):
    widget = standin.open_panel(module)
    yield widget
    widget.cleanup()
    widget.parent.close()


@pytest.fixture
def volumes(panel):
    hu = np.full((4, 20, 20), -1000, np.int16)
    hu[:, 5:15, 5:15] = 40
    nodes = [slicer.util.addVolumeFromArray(hu + change, name=f"CT {change}") for change in (0, 2)]
    panel.ui.referenceVolumeSelector.setCurrentNode(nodes[0])
    panel.ui.comparedVolumeSelector.setCurrentNode(nodes[1])
    return nodes


@pytest.mark.usefixtures("volumes")
def test_loaded_volumes_are_evaluated_into_a_table(panel):
    panel.ui.evaluateButton.click()
    (table,) = slicer.util.getNodesByClass("vtkMRMLTableNode")
    assert table.GetName() in panel.ui.statusLabel.text
    values = {table.GetCellText(row, 2): table.GetCellText(row, 3) for row in range(table.GetNumberOfRows())}
    assert values["rmse"] == "2"
    assert values["max_abs_difference"] == "2"
    assert panel.ui.evaluateButton.text == "Evaluate"


@pytest.mark.usefixtures("volumes")
def test_cancel_leaves_no_table(panel, monkeypatch):
    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.jobs.DOUBLE_CLICK_SECONDS", 0)
    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.jobs.run_in_background", run_in_lockstep)
    panel.ui.progressBar.valueChanged.connect(lambda _done: panel.ui.evaluateButton.click())
    panel.ui.evaluateButton.click()
    assert slicer.util.getNodesByClass("vtkMRMLTableNode") == []
    assert "Canceled" in panel.ui.statusLabel.text


def test_two_volumes_are_needed(panel, volumes):
    ui = panel.ui
    assert ui.evaluateButton.enabled
    assert "SSIM" in ui.evaluateButton.toolTip
    ui.comparedVolumeSelector.setCurrentNode(None)
    assert not ui.evaluateButton.enabled
    assert ui.evaluateButton.toolTip == "Select two volumes."
    ui.comparedVolumeSelector.setCurrentNode(volumes[1])
    slicer.mrmlScene.Clear(False)
    assert not ui.evaluateButton.enabled


def test_what_cannot_be_measured_is_explained(panel, standin, volumes):
    other = slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(volumes[0])[:2], name="Shorter")
    panel.ui.comparedVolumeSelector.setCurrentNode(other)
    message = click_failing(panel.ui.evaluateButton)
    assert message in standin.errors[0]
    assert panel.ui.evaluateButton.text == "Evaluate"


def test_choices_survive_leaving_the_module(panel, standin, volumes):
    standin.leave(panel)
    standin.enter(panel)
    assert panel.ui.comparedVolumeSelector.currentNode() is volumes[1]


def test_every_command_has_a_purpose_and_a_line_to_copy(panel):
    ui = panel.ui
    names = [ui.commandComboBox.itemText(index) for index in range(ui.commandComboBox.count)]
    assert names == list(COMMANDS)
    for index, name in enumerate(names):
        ui.commandComboBox.setCurrentIndex(index)
        assert ui.purposeLabel.text == COMMANDS[name].__doc__.splitlines()[0]
        assert ui.commandLineEdit.text == f"{name} --help", "what is the same for all is out of sight"
        ui.copyButton.click()
        line = slicer.app.clipboard().text()
        assert line.endswith(f'run_mitsgan.py" {name} --help')
        assert ui.commandLineEdit.toolTip == line


def test_arguments_can_be_typed(panel):
    panel.ui.commandLineEdit.text = "compare scan.nrrd protected.nrrd"
    panel.ui.copyButton.click()
    assert slicer.app.clipboard().text().endswith('run_mitsgan.py" compare scan.nrrd protected.nrrd')


@pytest.mark.parametrize("name", ["report.html", "tables.md"])
@pytest.mark.parametrize("has_web", [True, False])
def test_reports_are_shown_and_the_last_one_is_remembered(panel, module, standin, tmp_path, monkeypatch, name, has_web):
    from MITSGANLib.slicer_bridge.reports import remember_report, show_report

    urls, windows = [], []

    class Web(sys.modules["qt"].QTextBrowser):
        def _set(self, value):
            urls.append(value)

        url = property(None, _set)

    if has_web:
        monkeypatch.setattr(slicer, "qSlicerWebWidget", Web, raising=False)
    monkeypatch.setattr(slicer.util, "mainWindow", lambda: None, raising=False)
    monkeypatch.setattr(module, "show_report", lambda path: windows.append(show_report(path)))
    path = tmp_path / name
    remember_report(path)
    panel.panel.changed()
    assert not panel.ui.lastReportButton.enabled, "it is not there"
    assert "open one" in panel.ui.lastReportButton.toolTip
    standin.dialog.answer = ""
    panel.ui.openReportButton.click()
    assert windows == [], "the user closed the dialog"
    path.write_text("**bold** <b>words</b>", encoding="utf-8")
    standin.dialog.answer = str(path)
    panel.ui.openReportButton.click()
    assert standin.errors == []
    assert windows[0].isVisible()
    if has_web and name.endswith("html"):
        assert urls == [path.as_uri()]
    else:
        assert "words" in windows[0].toPlainText()
    assert panel.ui.lastReportButton.enabled
    panel.ui.lastReportButton.click()
    assert len(windows) == 2


def test_self_test_passes(module):
    module.MITSGANTrainingTest().runTest()
