"""The panel of the training module: an evaluation of loaded volumes, and commands to copy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from slicer_standin import StandIn, run_in_lockstep  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def standin(monkeypatch):
    standin = StandIn(monkeypatch)
    yield standin
    assert standin.raised == []


@pytest.fixture
def panel(standin):
    module = standin.load(ROOT / "MITSGANTraining" / "MITSGANTraining.py")
    widget = module.MITSGANTrainingWidget(standin.new_parent())
    widget.setup()
    yield widget
    widget.cleanup()


@pytest.fixture
def volumes(panel):
    hu = np.full((4, 20, 20), -1000, np.int16)
    hu[:, 5:15, 5:15] = 40
    nodes = [slicer.util.addVolumeFromArray(hu + change, name=f"CT {change}") for change in (0, 2)]
    panel.referenceSelector.setCurrentNode(nodes[0])
    panel.otherSelector.setCurrentNode(nodes[1])
    return nodes


@pytest.mark.usefixtures("volumes")
def test_loaded_volumes_are_evaluated_into_a_table(panel):
    panel.evaluateButton.click()
    (table,) = slicer.util.getNodesByClass("vtkMRMLTableNode")
    assert table.GetName() in panel.resultLabel.text
    values = {table.GetCellText(row, 2): table.GetCellText(row, 3) for row in range(table.GetNumberOfRows())}
    assert values["rmse"] == "2"
    assert values["max_abs_difference"] == "2"
    assert panel.evaluateButton.text == "Evaluate"


@pytest.mark.usefixtures("volumes")
def test_cancel_leaves_no_table(panel, monkeypatch):
    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.jobs.DOUBLE_CLICK_SECONDS", 0)
    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.jobs.run_in_background", run_in_lockstep)
    panel.progressBar.valueChanged.connect(lambda _done: panel.evaluateButton.click())
    panel.evaluateButton.click()
    assert slicer.util.getNodesByClass("vtkMRMLTableNode") == []
    assert "Canceled" in panel.resultLabel.text


def test_nothing_selected_is_explained(panel, standin):
    with pytest.raises(Exception, match="Select a scalar volume"):
        panel.onEvaluateButton()
    assert "Select a scalar volume" in standin.errors[0]
    assert panel.evaluateButton.text == "Evaluate"


def test_self_test_passes(standin):
    standin.load(ROOT / "MITSGANTraining" / "MITSGANTraining.py").MITSGANTrainingTest().runTest()
