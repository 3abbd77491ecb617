"""The panel, clicked through as a user would: the real ``.ui``, module file and MRML scene, Qt by PySide6 offscreen."""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from __future__ import annotations

import csv
import dataclasses
import os
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from MITSGANLib.protection import protector
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import Provenance

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
vtk = pytest.importorskip("vtk", reason="VTK needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from MITSGANLib.slicer_bridge.change_map import change_map_node, examination_legend
from MITSGANLib.slicer_bridge.differences import difference_range
from MITSGANLib.slicer_bridge.inspection import inspect_scan
from MITSGANLib.slicer_bridge.layout import COMPARISON_LAYOUT, VIEWS, comparison_is_shown, show_in_ordinary_views
from MITSGANLib.slicer_bridge.targets import is_placing, start_placing, target_from_markups
from MITSGANLib.slicer_bridge.volumes import (
    PROTECTED_ATTRIBUTE,
    SIMULATED_ATTACK_ATTRIBUTE,
    SIMULATED_ATTACK_COLOR,
    SYNTHETIC_ATTRIBUTE,
    is_simulated_attack,
    node_from_volume,
    ras_from_voxel,
    source_of,
    volume_from_node,
    voxel_from_ras,
)
from panel_data import (
    PATIENCE_SECONDS,
    ROOT,
    Pictures,
    add_scan,
    attack,
    caption,
    click_failing,
    composed,
    composites,
    hu,
    node_names,
    ordinary_composites,
    place_target,
    snapshot,
    wait_until,
)
from PySide6 import QtCore
from vtk.util.numpy_support import vtk_to_numpy

ATTACK = "simulated attack"


@pytest.mark.slow
def test_a_result_is_inspected_only_once_it_changes(panel, scan, monkeypatch):
    source = add_scan(panel, scan.volume)
    inspected = []

    def inspect(volume):
        inspected.append(volume.provenance.source)
        return inspect_scan(volume)

    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.volume.inspect_scan", inspect)
    result = node_from_volume(scan.volume, "CT protected", source)
    said = panel.ui.inspectionLabel.text
    panel._parameterNode.volume = result
    assert inspected == []
    assert panel.ui.inspectionLabel.text == said
    slicer.util.updateVolumeFromArray(result, np.zeros(scan.volume.shape, np.int16))
    panel._parameterNode.volume = source
    panel._parameterNode.volume = result
    wait_until(lambda: panel.panel.inspection is not None)
    assert inspected == ["CT protected"]
    assert panel.ui.inspectionLabel.text != said


@pytest.mark.slow
def test_the_story(panel, scan, pictures, standin):
    ui = panel.ui
    assert "a sample" in ui.inspectionLabel.text
    for button in (ui.protectButton, ui.simulateAttackButton, ui.compareButton, ui.exportDicomButton, ui.reportButton):
        assert not button.enabled
        assert "Select a CT volume" in button.toolTip
    for control in (ui.heatmapCheckBox, ui.opacitySlider, ui.thresholdSlider, ui.lungButton, ui.flickerButton):
        assert not control.enabled, "there is nothing to show yet"
    pictures.take("empty")

    source = add_scan(panel, scan.volume)
    assert "CT: 128×128×16, 2.5 mm, noise" in ui.inspectionLabel.text
    ui.advancedCollapsibleButton.collapsed = False
    wait_until(lambda: "about" in ui.deviceDescriptionLabel.text)
    assert "s for this scan" in ui.deviceDescriptionLabel.text

    seen = []

    def while_protecting(done):
        if not seen and done >= 6:
            seen.append((ui.protectButton.text, ui.protectProgressBar.format, ui.compareButton.enabled))
            pictures.take("protecting")

    ui.protectProgressBar.valueChanged.connect(while_protecting)
    ui.protectButton.click()
    assert standin.errors == []
    assert standin.message_box.asked == [], "all packages are there"
    text, words, others_enabled = seen[0]
    assert text == "Cancel"
    assert "of 16 slices" in words
    assert "/s" in words
    assert "s left" in words
    assert not others_enabled
    assert ui.protectButton.text == "Protect"
    parameters = panel._parameterNode
    protected = parameters.protectedVolume
    assert protected.GetName() == "CT protected"
    assert protected.GetAttribute(PROTECTED_ATTRIBUTE) == "true"
    assert source_of(protected) is source
    assert 0 < np.abs(hu(protected).astype(int) - hu(source)).max() <= 12

    place_target(panel, scan.nodule_kji)
    k, j, i = scan.nodule_kji
    assert ui.targetDescriptionLabel.text == f"Slice {k}, row {j}, column {i}: {hu(source)[k, j, i]} HU"
    assert parameters.volume is protected
    ui.removeRadioButton.checked = True
    assert parameters.action == "remove"
    ui.simulateAttackButton.click()
    assert standin.errors == []
    for node, origin in ((parameters.sourceAttacked, source), (parameters.protectedAttacked, protected)):
        assert node.GetName() == f"{origin.GetName()} nodule removed by untrained ({ATTACK})"
        assert node.GetAttribute(SIMULATED_ATTACK_ATTRIBUTE) == "true"
        assert node.GetDisplayNode().GetColor() == SIMULATED_ATTACK_COLOR
        assert node.GetName() in ui.attackedLabel.toolTip
        assert not (hu(node) == hu(origin)).all()
        step = volume_from_node(node).provenance.steps[-1]
        assert step.parameters["target_kji"] == list(scan.nodule_kji)
    pictures.take("attacked")

    ui.compareButton.click()
    assert standin.errors == []
    assert "Protection changed the scan by RMSE" in ui.summaryLabel.text
    assert "Noise of the same RMSE" in ui.summaryLabel.text
    assert parameters.metricsTable.GetNumberOfRows() > 20
    assert ui.heatmapCheckBox.checked
    pictures.take("compared")


@pytest.mark.slow
def test_comparison_shows_four_linked_views_at_the_target(loaded, scan):
    layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    before = layout.GetViewArrangement()
    parameters = attack(loaded, scan)
    assert layout.GetViewArrangement() == COMPARISON_LAYOUT
    shown = composites()
    expected = {
        "source": parameters.sourceVolume,
        "protected": parameters.protectedVolume,
        "source attacked": parameters.sourceAttacked,
        "protected attacked": parameters.protectedAttacked,
    }
    ras = target_from_markups(parameters.targetPoint)
    for name, node in expected.items():
        assert shown[name].GetBackgroundVolumeID() == node.GetID()
        assert shown[name].GetLinkedControl()
        display = node.GetDisplayNode()
        assert (display.GetLevel(), display.GetWindow()) == (-600, 1500)
        tag = VIEWS[name].tag
        slice_node = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLSliceNode")
        to_ras = slice_node.GetSliceToRAS()
        np.testing.assert_allclose([to_ras.GetElement(row, 3) for row in range(3)], ras, atol=1e-3)
    loaded.ui.mediastinumButton.click()
    assert parameters.sourceAttacked.GetDisplayNode().GetLevel() == 40
    loaded.ui.boneButton.click()
    assert parameters.sourceVolume.GetDisplayNode().GetWindow() == 1800
    loaded.ui.lungButton.click()
    assert parameters.protectedVolume.GetDisplayNode().GetLevel() == -600
    assert [caption(view)[0] for view in VIEWS] == [
        "Original",
        "Protected",
        "Original, attacked (simulated)",
        "Protected, attacked (simulated)",
    ]
    loaded.ui.restoreLayoutButton.click()
    assert layout.GetViewArrangement() == before


@pytest.mark.slow
def test_side_by_side_is_always_there(loaded, standin):
    assert not loaded.ui.centerButton.enabled, "there is nothing beside the scan yet"
    layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    loaded.ui.protectButton.click()
    assert loaded.ui.centerButton.enabled
    assert not comparison_is_shown()
    loaded.ui.centerButton.click()
    assert comparison_is_shown()
    assert [caption(view)[0] for view in VIEWS] == [
        "Original",
        "Protected",
        "Original, attacked (simulated): none yet",
        "Protected, attacked (simulated): none yet",
    ]
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    standin.app.layoutManager().tabs.currentIndex = 1
    loaded.ui.centerButton.click()
    assert comparison_is_shown()
    assert standin.app.layoutManager().tabs.currentIndex == 0, "the tab of the images"


@pytest.mark.slow
def test_a_volume_that_the_user_puts_into_a_view_is_named(loaded, scan):
    attack(loaded, scan)
    other = node_from_volume(scan.volume, "Other CT")
    composites()["source"].SetBackgroundVolumeID(other.GetID())
    assert caption("source") == ("Other CT", False)


@pytest.mark.slow
def test_without_a_target_whole_slices_are_shown(panel, scan):
    add_scan(panel, dataclasses.replace(scan.volume, origin=(100.0, 200.0, -900.0)))
    panel.ui.protectButton.click()
    panel.ui.compareButton.click()
    source = panel._parameterNode.sourceVolume
    middle = ras_from_voxel(source, (7, 63.5, 63.5))
    for view in VIEWS.values():
        slice_node = slicer.mrmlScene.GetSingletonNode(view.tag, "vtkMRMLSliceNode")
        to_ras = slice_node.GetSliceToRAS()
        np.testing.assert_allclose([to_ras.GetElement(row, 3) for row in range(3)], middle, atol=2)
        assert min(slice_node.GetFieldOfView()[:2]) == pytest.approx(128 * 2.8)
        if view.tag == "MITSGANProtected":
            break  # the views of attacked volumes are empty


@pytest.mark.slow
def test_a_maximized_view_does_not_hide_the_comparison(loaded, scan):
    layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    layout.AddMaximizedViewNode(slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceNode"))
    attack(loaded, scan)
    assert layout.GetNumberOfMaximizedViewNodes() == 0


@pytest.mark.slow
def test_comparison_views_show_what_they_are_labeled_with(loaded, scan, standin, monkeypatch):
    monkeypatch.setattr("MITSGANLib.slicer_bridge.operations.sample_phantom", lambda: scan)
    parameters = attack(loaded, scan)
    first = parameters.sourceAttacked.GetName()
    # As Slicer does when any volume is loaded.
    other = node_from_volume(scan.volume, "Other CT")
    standin.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(other.GetID())
    standin.app.applicationLogic().PropagateVolumeSelection()
    shown = composites()
    assert shown["source attacked"].GetBackgroundVolumeID() == parameters.sourceAttacked.GetID()
    target = parameters.targetPoint.GetDisplayNode()
    for view in VIEWS.values():
        assert not target.IsDisplayableInView(slicer.mrmlScene.GetSingletonNode(view.tag, "vtkMRMLSliceNode").GetID())
    loaded.ui.protectButton.click()
    shown = composites()
    assert shown["protected"].GetBackgroundVolumeID() == parameters.protectedVolume.GetID()
    assert shown["source attacked"].GetBackgroundVolumeID() is None, f"{first} is of the last protection"
    loaded.ui.samplePhantomButton.click()
    assert composites()["source"].GetBackgroundVolumeID() == parameters.sourceVolume.GetID()
    assert composites()["protected"].GetBackgroundVolumeID() is None


def test_the_sentence_follows_a_target_that_is_moved(loaded, scan):
    k, j, i = scan.nodule_kji
    place_target(loaded, scan.nodule_kji)
    parameters, ui = loaded._parameterNode, loaded.ui
    for kji, said in (((k, j - 4, i), f"Slice {k}, row {j - 4}, column {i}"), ((-10, 5, 5), "outside the volume")):
        point = ras_from_voxel(parameters.sourceVolume, kji)
        parameters.targetPoint.SetNthControlPointPositionWorld(0, *point)
        wait_until(lambda said=said: said in ui.targetDescriptionLabel.text)


@pytest.mark.slow
def test_the_next_target_is_placed_in_the_comparison(loaded, scan):
    parameters = attack(loaded, scan)
    assert comparison_is_shown()
    k, j, i = scan.nodule_kji
    place_target(loaded, (k, j - 4, i))
    assert loaded.ui.targetDescriptionLabel.text.startswith(f"Slice {k}, row {j - 4}, column {i}")
    loaded.ui.simulateAttackButton.click()
    target = parameters.targetPoint.GetDisplayNode()
    for view in VIEWS.values():
        slice_node = slicer.mrmlScene.GetSingletonNode(view.tag, "vtkMRMLSliceNode")
        assert not target.IsDisplayableInView(slice_node.GetID()), "it covers what is compared"


@pytest.mark.slow
def test_heatmaps_follow_the_controls(loaded, scan, pictures):
    parameters = attack(loaded, scan)
    assert caption("protected") == ("Protected", False), "there is no heatmap yet"
    loaded.ui.compareButton.click()
    shown = composites()
    heatmaps = {
        "protected": parameters.protectionHeatmap,
        "source attacked": parameters.sourceAttackedHeatmap,
        "protected attacked": parameters.protectedAttackedHeatmap,
    }
    for view, node in heatmaps.items():
        assert shown[view].GetForegroundVolumeID() == node.GetID()
        assert shown[view].GetForegroundOpacity() == pytest.approx(0.5)
        assert shown[view].GetCompositing() == shown[view].Alpha
        text, has_key = caption(view)
        assert has_key
        threshold, limit = difference_range(node)
        assert f"more than {threshold:g} HU" in text
        assert threshold == 0.2 * limit
    assert difference_range(heatmaps["source attacked"]) == difference_range(heatmaps["protected attacked"])
    assert difference_range(heatmaps["source attacked"])[1] > difference_range(heatmaps["protected"])[1]
    assert caption("source") == ("Original", False)
    pictures.take_comparison("comparison")
    loaded.ui.flickerButton.checked = True
    loaded.panel.views.flicker_timer.timeout.emit()
    assert shown["protected"].GetForegroundOpacity() == 0, "colors would hide what flickers"
    assert caption("protected") == ("Original", False)
    loaded.ui.flickerButton.checked = False
    assert shown["protected"].GetForegroundOpacity() == pytest.approx(0.5)
    loaded.ui.opacitySlider.value = 0.4
    assert shown["protected"].GetForegroundOpacity() == pytest.approx(0.4)
    loaded.ui.thresholdSlider.value = 100
    assert difference_range(heatmaps["protected"])[0] == difference_range(heatmaps["protected"])[1]
    loaded.ui.heatmapCheckBox.checked = False
    assert shown["protected"].GetForegroundOpacity() == 0
    assert caption("protected") == ("Protected", False)


def picture_of(view):
    """The pixels (RGBA) that Slicer's pipeline composes for a view of the comparison."""
    return vtk_to_numpy(composed(view).GetPointData().GetScalars()).astype(int)


@pytest.mark.slow
def test_an_overlay_leaves_the_scan_beyond_it_as_it_is(loaded, scan):
    """The heatmap of an attack is a box of a few centimeters: nothing around it may become dark or transparent."""
    attack(loaded, scan)
    loaded.ui.compareButton.click()
    with_overlay = picture_of("source attacked")
    loaded.ui.heatmapCheckBox.checked = False
    without = picture_of("source attacked")
    assert (with_overlay[:, 3] == without[:, 3]).all()
    is_gray = with_overlay.max(axis=1, where=[True, True, True, False], initial=0) == with_overlay[:, :3].min(axis=1)
    assert (with_overlay == without)[is_gray].all()
    assert 0 < (~is_gray).mean() < 0.5, "of the box, only what changed by more than the threshold"


@pytest.mark.slow
def test_a_second_comparison_replaces_the_first(loaded, scan):
    attack(loaded, scan)
    loaded.ui.compareButton.click()
    wait_until(lambda: not loaded.panel.inquiry.is_asking)
    before = snapshot()
    loaded.ui.compareButton.click()
    assert len(snapshot()) == len(before)


def select_points(points_by_series):
    """Tell of the selected points of each line, as Slicer's plot does."""
    ids, selections = vtk.vtkStringArray(), vtk.vtkCollection()
    for series, selected in points_by_series.items():
        ids.InsertNextValue(series.GetID())
        points = vtk.vtkIdTypeArray()
        for point in selected:
            points.InsertNextValue(point)
        selections.AddItem(points)
    manager = slicer.app.layoutManager()
    views = [manager.plotWidget(number).plotView() for number in range(manager.plotViewCount)]
    (slot,) = filter(None, (view.slot for view in views))
    slot(ids, selections)


def slices_shown(panel):
    """The slice of the source that each view of the comparison shows."""
    shown = set()
    for view in VIEWS.values():
        to_ras = slicer.mrmlScene.GetSingletonNode(view.tag, "vtkMRMLSliceNode").GetSliceToRAS()
        ras = [to_ras.GetElement(row, 3) for row in range(3)]
        shown.add(voxel_from_ras(panel._parameterNode.sourceVolume, ras)[0])
    return shown


@pytest.mark.slow
def test_a_clicked_point_of_the_plot_goes_to_its_slice(loaded, scan):
    parameters = attack(loaded, scan)
    loaded.ui.compareButton.click()
    first, second = (parameters.rmseChart.GetNthPlotSeriesNode(index) for index in range(2))
    select_points({first: [7]})
    assert slices_shown(loaded) == {7}
    # Each click comes with the points that were selected before it, then with the new one among those of other lines.
    select_points({first: [7]})
    select_points({first: [7], second: [11]})
    assert slices_shown(loaded) == {11}
    select_points({first: [7], second: [11]})
    select_points({first: [3], second: [11]})
    assert slices_shown(loaded) == {3}
    loaded.panel.views.show()
    select_points({first: [3], second: [11]})
    assert slices_shown(loaded) == {3}, "the same point again"
    select_points({})
    slicer.mrmlScene.RemoveNode(first)
    select_points({})
    assert slices_shown(loaded) == {3}


@pytest.mark.slow
def test_flicker_alternates_and_restores(loaded, scan):
    parameters = attack(loaded, scan)
    view = composites()["protected"]
    assert caption("protected") == ("Protected", False)
    loaded.ui.flickerButton.checked = True
    loaded.panel.views.flicker_timer.timeout.emit()
    assert view.GetBackgroundVolumeID() == parameters.sourceVolume.GetID()
    assert caption("protected") == ("Original", False), "it says what is seen at the moment"
    loaded.panel.views.flicker_timer.timeout.emit()
    assert view.GetBackgroundVolumeID() == parameters.protectedVolume.GetID()
    assert caption("protected") == ("Protected", False)
    loaded.panel.views.flicker_timer.timeout.emit()
    loaded.ui.flickerButton.checked = False
    assert view.GetBackgroundVolumeID() == parameters.protectedVolume.GetID()
    assert not loaded.panel.views.flicker_timer.active


@pytest.mark.slow
def test_the_table_is_copied_and_saved(loaded, scan, standin, tmp_path):
    attack(loaded, scan)
    loaded.ui.compareButton.click()
    loaded.ui.copyTableButton.click()
    lines = slicer.app.clipboard().text().splitlines()
    assert lines[0].split("\t")[:4] == ["Compared", "Region", "Metric", "Value"]
    standin.dialog.answer = str(tmp_path / "metrics.csv")
    loaded.ui.saveTableButton.click()
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == len(lines)
    assert {row[2] for row in rows[1:]} >= {"rmse", "psnr", "ssim", "max_abs_difference", "mean_bias"}


@pytest.mark.slow
@pytest.mark.parametrize("step", ["protect", "attack", "compare"])
def test_cancel_leaves_the_scene_as_it_was(loaded, scan, standin, step):
    ui = loaded.ui
    button, bar = {
        "protect": (ui.protectButton, ui.protectProgressBar),
        "attack": (ui.simulateAttackButton, ui.attackProgressBar),
        "compare": (ui.compareButton, ui.compareProgressBar),
    }[step]
    if step != "protect":
        ui.protectButton.click()
        place_target(loaded, scan.nodule_kji)
    before = snapshot()
    bar.valueChanged.connect(lambda _done: button.text == "Cancel" and button.click())
    button.click()
    assert snapshot() == before
    assert "Canceled" in ui.statusLabel.text
    assert standin.status == ui.statusLabel.text
    assert standin.errors == []
    assert button.enabled
    assert button.text != "Cancel"
    assert not bar.isVisible()


@pytest.mark.slow
def test_a_double_click_does_not_cancel(loaded, monkeypatch):
    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.jobs.DOUBLE_CLICK_SECONDS", PATIENCE_SECONDS)
    ui = loaded.ui
    ui.protectProgressBar.valueChanged.connect(
        lambda _done: ui.protectButton.text == "Cancel" and ui.protectButton.click()
    )
    ui.protectButton.click()
    assert loaded._parameterNode.protectedVolume is not None


@pytest.mark.slow
@pytest.mark.parametrize("step", ["attack", "compare"])
def test_another_frame_of_the_scan_is_neither_attacked_nor_compared(loaded, scan, step):
    ui = loaded.ui
    ui.protectButton.click()
    place_target(loaded, scan.nodule_kji)
    source = loaded._parameterNode.sourceVolume
    hu(source)[0, 0, 0] += 7
    source.GetImageData().Modified()
    before = node_names()
    click_failing(ui.simulateAttackButton if step == "attack" else ui.compareButton, "another frame of a sequence")
    assert node_names() == before
    hu(source)[0, 0, 0] -= 7
    ui.simulateAttackButton.click()
    assert loaded._parameterNode.sourceAttacked is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["source", "protected"])
def test_deleting_its_volume_ends_the_work(loaded, name):
    ui = loaded.ui
    button, bar, left = ui.protectButton, ui.protectProgressBar, 0
    if name == "protected":
        button.click()
        button, bar, left = ui.compareButton, ui.compareProgressBar, 1
    node, steps = getattr(loaded._parameterNode, f"{name}Volume"), []

    def meanwhile(done):
        steps.append(done)
        if node.GetScene():
            slicer.mrmlScene.RemoveNode(node)

    bar.valueChanged.connect(meanwhile)
    button.click()
    assert ui.statusLabel.text == "Canceled: the volume was removed from the scene."
    assert len(steps) < 4, "not to its end"
    assert len(node_names()) == left


def test_quitting_cancels(loaded, standin):
    ui = loaded.ui
    before = node_names()
    ui.protectProgressBar.valueChanged.connect(lambda done: done and standin.app.emit("lastWindowClosed()"))
    ui.protectButton.click()
    assert node_names() == before


@pytest.mark.slow
@pytest.mark.parametrize("step", ["protect", "attack", "compare"])
def test_work_goes_on_while_another_module_is_open(loaded, scan, standin, step):
    ui = loaded.ui
    button, bar, result = {
        "protect": (ui.protectButton, ui.protectProgressBar, "protectedVolume"),
        "attack": (ui.simulateAttackButton, ui.attackProgressBar, "sourceAttacked"),
        "compare": (ui.compareButton, ui.compareProgressBar, "metricsTable"),
    }[step]
    if step != "protect":
        ui.protectButton.click()
        place_target(loaded, scan.nodule_kji)
    left = []
    bar.valueChanged.connect(lambda _done: button.text == "Cancel" and not left and left.append(standin.leave(loaded)))
    button.click()
    assert left
    assert standin.errors == []
    standin.enter(loaded)
    assert getattr(loaded._parameterNode, result) is not None
    assert button.enabled


@pytest.mark.slow
def test_choices_wait_for_the_work_on_them(loaded, scan):
    ui = loaded.ui
    other = node_from_volume(scan.volume, "Other CT")
    enabled = []

    def meanwhile(done):
        if done and not enabled:  # the first batch, however many slices that is
            enabled.extend([ui.volumeSelector.enabled, ui.strengthSpinBox.enabled, ui.placeTargetButton.enabled])
            loaded._parameterNode.volume = other  # a script may

    ui.protectProgressBar.valueChanged.connect(meanwhile)
    ui.protectButton.click()
    assert enabled == [False] * 3
    assert "CT protected" in node_names()
    assert loaded._parameterNode.protectedVolume is None, "it belongs to the other source"
    assert ui.volumeSelector.enabled


def test_entering_again_and_again_leaves_nothing_behind(loaded, standin):
    observed = len(loaded.Observations)
    for _ in range(5):
        standin.leave(loaded)
        standin.enter(loaded)
    assert len(loaded.Observations) == observed


@pytest.mark.slow
def test_a_path_does_not_reach_the_log(loaded, scan, standin, tmp_path):
    attack(loaded, scan)
    loaded.ui.compareButton.click()
    standin.dialog.answer = str(tmp_path / "DOE^JANE" / "metrics.csv")
    (tmp_path / "DOE^JANE").write_text("a file where the folder should be")
    click_failing(loaded.ui.saveTableButton)
    assert standin.errors
    assert "JANE" not in "".join(standin.errors)


@pytest.mark.slow
def test_only_one_job_at_a_time(loaded):
    ui = loaded.ui
    ui.protectButton.click()
    before = node_names()
    ui.compareProgressBar.valueChanged.connect(lambda _done: ui.protectButton.clicked.emit())
    ui.compareButton.click()
    names = set(node_names()) - set(before)
    assert names == {"CT protected difference"}


@pytest.mark.slow
def test_closing_the_scene_stops_the_work(loaded, standin):
    ui = loaded.ui
    ui.protectProgressBar.valueChanged.connect(lambda done: done and slicer.mrmlScene.Clear(False))
    ui.protectButton.click()
    assert node_names() == []
    assert standin.errors == []
    assert "a sample" in ui.inspectionLabel.text
    assert loaded._parameterNode.volume is loaded._parameterNode.sourceVolume is None


@pytest.mark.slow
def test_closing_the_scene_leaves_no_empty_views(loaded, scan):
    layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    attack(loaded, scan)
    assert layout.GetViewArrangement() == COMPARISON_LAYOUT
    slicer.mrmlScene.Clear(False)
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView


@pytest.mark.slow
def test_placing_points_of_another_list_is_not_ours(loaded, scan, standin):
    loaded.ui.protectButton.click()
    place_target(loaded, scan.nodule_kji)
    said = loaded.ui.targetDescriptionLabel.text
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    start_placing(other)
    assert loaded.ui.targetDescriptionLabel.text == said
    standin.leave(loaded)
    assert is_placing(other), "the user may want to place it elsewhere"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.arange(4096, dtype=np.int16).reshape(16, 16, 16), "none lies below 0"),
        (np.linspace(-1, 1, 4096, dtype=np.float32).reshape(16, 16, 16), "not whole HU"),
    ],
    ids=["not HU", "normalized"],
)
def test_what_is_no_ct_is_explained_and_not_processed(panel, pictures, values, reason):
    node = slicer.util.addVolumeFromArray(values, name="MR")
    panel.ui.volumeSelector.setCurrentNode(node)
    wait_until(lambda: "Not usable" in panel.ui.inspectionLabel.text)
    assert reason in panel.ui.inspectionLabel.text
    assert not panel.ui.protectButton.enabled
    assert reason in panel.ui.protectButton.toolTip
    with pytest.raises(Exception, match=reason):
        panel.logic.protect(node)
    pictures.take("error")


@pytest.mark.slow
def test_bad_targets_are_explained_before_anything_is_pressed(loaded, scan):
    ui = loaded.ui
    ui.protectButton.click()
    place_target(loaded, (scan.nodule_kji[0], 1, 1))
    assert "border" in ui.targetDescriptionLabel.text
    assert not ui.simulateAttackButton.enabled
    assert "border" in ui.simulateAttackButton.toolTip
    place_target(loaded, (-10, 5, 5))
    assert "outside the volume" in ui.targetDescriptionLabel.text
    assert not ui.simulateAttackButton.enabled
    place_target(loaded, scan.nodule_kji)
    assert ui.simulateAttackButton.enabled


@pytest.mark.slow
def test_a_target_in_air_is_explained_before_anything_is_pressed(loaded, scan):
    node = loaded._parameterNode.sourceVolume
    hu(node)[:, 40:] = -1000
    node.GetImageData().Modified()
    loaded.ui.protectButton.click()
    place_target(loaded, (scan.nodule_kji[0], 100, 64))
    assert "lies in air" in loaded.ui.targetDescriptionLabel.text
    assert not loaded.ui.simulateAttackButton.enabled
    with pytest.raises(Exception, match="lies in air"):
        loaded.logic.simulateAttack(
            node, loaded._parameterNode.protectedVolume, ras_from_voxel(node, (scan.nodule_kji[0], 100, 64))
        )


def test_a_finding_that_is_too_large_is_said_before_the_attack(loaded, scan):
    node, (k, j, i) = loaded._parameterNode.sourceVolume, scan.nodule_kji
    place_target(loaded, scan.nodule_kji)
    loaded.ui.removeRadioButton.checked = True
    assert "leave a patch" not in loaded.ui.targetDescriptionLabel.text, "14 mm"
    hu(node)[k - 7 : k + 7, j - 6 : j + 7, i - 6 : i + 7] = 40
    node.GetImageData().Modified()
    loaded.onParametersModified()
    assert "larger than the 20 mm" in loaded.ui.targetDescriptionLabel.text
    loaded.ui.injectRadioButton.checked = True
    assert "leave a patch" not in loaded.ui.targetDescriptionLabel.text


@pytest.mark.slow
def test_a_repeated_attack_leaves_one_pair(loaded, scan):
    parameters = attack(loaded, scan)
    before = node_names()
    loaded.ui.simulateAttackButton.click()
    assert node_names() == before
    assert parameters.protectedAttacked.GetName() == "CT protected nodule removed by untrained (simulated attack)"
    assert parameters.volume is parameters.protectedAttacked


def test_a_folder_of_attacker_files_can_be_chosen(loaded, standin, tmp_path):
    standin.dialog.answer = ""
    loaded.ui.attackerFolderButton.click()
    assert loaded._parameterNode.attacker == "ctgan-small", "the user closed the dialog"
    folder = tmp_path / "published"
    standin.dialog.answer = str(folder)
    loaded.ui.attackerFolderButton.click()
    assert loaded._parameterNode.attacker == str(folder)
    assert loaded.ui.attackerComboBox.currentText == "published"
    loaded.ui.attackerComboBox.setCurrentIndex(0)
    assert loaded._parameterNode.attacker == "ctgan-small"


def test_the_chest_ct_button_loads_the_sample(panel, scan, standin, monkeypatch):
    sample_data = types.ModuleType("SampleData")
    asked = []

    def download(name):
        asked.append(name)
        return [node_from_volume(scan.volume, name)]

    sample_data.downloadSamples = download
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    panel.ui.sampleChestButton.click()
    assert asked == ["CTChest"]
    source = panel._parameterNode.sourceVolume
    assert source.GetName() == "CTChest"
    assert source.GetDisplayNode().GetLevel() == -600

    sample_data.downloadSamples = lambda _name: []
    click_failing(panel.ui.sampleChestButton, "check the connection")
    assert "Failed to load the sample" in standin.errors[-1]


def test_leaving_during_the_download_keeps_the_sample(panel, scan, standin, monkeypatch):
    def download(name):
        standin.leave(panel)
        return [node_from_volume(scan.volume, name)]

    sample_data = types.ModuleType("SampleData")
    sample_data.downloadSamples = download
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    panel.ui.sampleChestButton.click()
    assert standin.errors == []
    standin.enter(panel)
    assert panel._parameterNode.sourceVolume.GetName() == "CTChest"


def test_no_events_are_processed_while_the_parameter_node_is_shown(panel, scan, standin, monkeypatch):
    """They may be those of a user who closes the scene or leaves the module."""
    before = []
    monkeypatch.setattr(standin.app, "processEvents", lambda: before.append(panel.ui.inspectionLabel.text))
    panel.ui.volumeSelector.setCurrentNode(node_from_volume(scan.volume, "CT"))
    assert "Looking" in panel.ui.inspectionLabel.text
    assert before == []


@pytest.mark.slow
def test_reload_brings_in_the_library_anew(loaded, monkeypatch):
    library = {name: module for name, module in sys.modules.items() if name.partition(".")[0].startswith("MITSGAN")}
    for name, module in library.items():
        # Put back afterwards: the other tests hold on to these.
        monkeypatch.setitem(sys.modules, name, module)
    loaded.ui.strengthSpinBox.value = 4.0
    # A thread that imports while modules are exchanged, here or at the end, would leave some of either kind.
    wait_until(lambda: not loaded.panel.inquiry.is_asking)
    loaded.onReload()
    assert "MITSGANLib.slicer_bridge.panel.jobs" in sys.modules
    assert [name for name in library if sys.modules.get(name) is library[name]] == []
    again = slicer.modules.MITSGANWidget
    assert again is not loaded
    assert again.ui.strengthSpinBox.value == 4.0
    again.ui.strengthSpinBox.value = 5.0
    assert loaded.ui.strengthSpinBox.value == 4.0, "the old panel listens no more"
    wait_until(lambda: not again.panel.inquiry.is_asking)
    again.cleanup()


@pytest.mark.slow
def test_reload_after_a_set_up_that_failed(standin, module, monkeypatch):
    """A reload is what the author of the mistake will press."""
    with monkeypatch.context() as context:
        context.setattr(module, "MITSGANPanel", None)
        widget = module.MITSGANWidget(standin.new_parent())
        slicer.modules.MITSGANWidget = widget
        with pytest.raises(TypeError):
            widget.setup()
    library = {name: one for name, one in sys.modules.items() if name.partition(".")[0].startswith("MITSGAN")}
    for name, one in library.items():
        monkeypatch.setitem(sys.modules, name, one)
    widget.onReload()
    again = slicer.modules.MITSGANWidget
    assert again.panel
    wait_until(lambda: not again.panel.inquiry.is_asking)
    again.cleanup()


def test_reload_waits_for_work_in_progress(loaded):
    ui = loaded.ui
    ui.protectProgressBar.valueChanged.connect(lambda done: done and loaded.onReload())
    before = node_names()
    ui.protectButton.click()
    assert node_names() == before
    assert "Cancel" in ui.statusLabel.text


@pytest.mark.slow
def test_a_missing_device_is_an_error_in_words(loaded, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded.ui.deviceComboBox.setCurrentIndex(loaded.ui.deviceComboBox.findData("cuda"))
    assert loaded._parameterNode.device == "cuda"
    wait_until(lambda: "No usable NVIDIA GPU" in loaded.ui.deviceDescriptionLabel.text)
    before = node_names()
    click_failing(loaded.ui.protectButton, "No usable NVIDIA GPU")
    assert node_names() == before


def save_scene(folder):
    """Save the scene and the data of all its nodes, as Slicer's Save dialog does."""
    scene = slicer.mrmlScene
    scene.SetRootDirectory(str(folder))
    for node in slicer.util.getNodesByClass("vtkMRMLStorableNode"):
        if node.GetSaveWithScene() and node.GetDefaultStorageNodeClassName():
            node.AddDefaultStorageNode()
            storage = node.GetStorageNode()
            name = f"{node.GetID()}.{storage.GetDefaultWriteFileExtension()}"
            storage.SetFileName(str(folder / name))
            assert storage.WriteData(node), node.GetName()
    scene.SetURL(str(folder / "scene.mrml"))
    assert scene.Commit()


@pytest.mark.slow
def test_state_survives_saving_and_loading_the_scene(loaded, scan, tmp_path):
    parameters = attack(loaded, scan)
    loaded.ui.compareButton.click()
    parameters.strengthHU = 7.5
    attacked, summary = parameters.sourceAttacked.GetName(), parameters.summary
    scene = slicer.mrmlScene
    save_scene(tmp_path)
    assert "Jane" not in (tmp_path / "scene.mrml").read_text()

    scene.Clear(False)
    assert loaded._parameterNode.sourceVolume is None
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Import()
    parameters = loaded._parameterNode
    assert (parameters.strengthHU, parameters.action, parameters.summary) == (7.5, "remove", summary)
    assert parameters.sourceAttacked.GetName() == attacked
    assert is_simulated_attack(parameters.sourceAttacked)
    assert source_of(parameters.protectedVolume) is parameters.sourceVolume
    assert voxel_from_ras(parameters.sourceVolume, target_from_markups(parameters.targetPoint)) == tuple(
        scan.nodule_kji
    )
    assert parameters.metricsTable.GetNumberOfRows() > 20
    assert attacked in loaded.ui.attackedLabel.toolTip
    assert loaded.ui.removeRadioButton.checked
    assert loaded.ui.strengthSpinBox.value == 7.5
    loaded.ui.compareButton.click()
    assert parameters.metricsTable.GetNumberOfRows() > 20

    # Into a scene with work on another scan: what is read last is what the panel shows.
    scene.Clear(False)
    add_scan(loaded, scan.volume, "Other CT")
    loaded.ui.protectButton.click()
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Import()
    parameters = loaded._parameterNode
    assert parameters.sourceAttacked.GetName() == attacked
    assert (parameters.summary, parameters.metricsTable.GetNumberOfRows() > 20) == (summary, True)


@pytest.mark.slow
def test_a_scene_opened_in_place_of_another_is_shown(loaded, scan, tmp_path):
    """As a scene bundle is opened: closing and reading are one batch, which ends only after the import."""
    parameters = attack(loaded, scan)
    loaded.ui.compareButton.click()
    summary = parameters.summary
    save_scene(tmp_path)
    scene = slicer.mrmlScene
    scene.Clear(False)
    add_scan(loaded, scan.volume, "Other CT")
    scene.SetURL(str(tmp_path / "scene.mrml"))
    assert scene.Connect()
    assert loaded._parameterNode.sourceVolume.GetName() == "CT"
    shown = loaded.ui.volumeSelector.currentNode().GetName()
    assert shown.startswith("CT"), "a volume of the scene that was opened, not of the one that was closed"
    wait_until(lambda: "CT: " in loaded.ui.inspectionLabel.text)
    assert "Simulated attack by untrained" in loaded.ui.attackedLabel.text
    assert loaded.ui.summaryLabel.text == summary
    assert loaded.ui.removeRadioButton.checked
    assert loaded.ui.simulateAttackButton.enabled
    assert composites()["source attacked"].GetForegroundVolumeID() == (
        loaded._parameterNode.sourceAttackedHeatmap.GetID()
    )


def test_leaving_and_entering_and_reloading_keep_the_choices(loaded, standin, module):
    loaded.ui.strengthSpinBox.value = 4.0
    standin.leave(loaded)
    assert loaded._parameterNode is None
    standin.enter(loaded)
    assert loaded.ui.strengthSpinBox.value == 4.0
    again = standin.open_panel(module)
    assert again.ui.strengthSpinBox.value == 4.0
    assert again.ui.volumeSelector.currentNode().GetName() == "CT"
    again.cleanup()


@pytest.mark.slow
def test_a_scene_that_is_closed_elsewhere_is_gone_when_the_panel_is_opened_again(loaded, standin, scan):
    attack(loaded, scan)
    standin.leave(loaded)
    slicer.mrmlScene.Clear(False)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
    assert loaded._parameterNode is None, "no other module's scene is touched"
    standin.enter(loaded)
    assert loaded.ui.volumeSelector.currentNode() is None
    assert "a sample" in loaded.ui.inspectionLabel.text
    add_scan(loaded, scan.volume, "Next CT")
    assert "CT: " in loaded.ui.inspectionLabel.text
    loaded.ui.protectButton.click()
    assert "Next CT protected" in node_names()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "sourceVolume",
        "protectedVolume",
        "targetPoint",
        "sourceAttacked",
        "protectionHeatmap",
        "metricsTable",
        "rmseChart",
    ],
)
def test_the_user_may_delete_any_node(loaded, scan, name):
    parameters = attack(loaded, scan)
    loaded.ui.compareButton.click()
    slicer.mrmlScene.RemoveNode(getattr(parameters, name))
    # A selector of Slicer's falls back on the volume above.
    assert getattr(parameters, name) is None
    ui = loaded.ui
    assert ui.protectButton.enabled == (name != "sourceVolume")
    assert ui.simulateAttackButton.enabled == (name not in ("sourceVolume", "protectedVolume", "targetPoint"))
    assert ui.copyTableButton.enabled == (name != "metricsTable")
    assert ui.inspectionLabel.text.startswith("CT: "), "the panel follows the volume that Slicer displays"
    if ui.compareButton.enabled:
        ui.compareButton.click()
        assert parameters.metricsTable.GetNumberOfRows() > 0


@pytest.mark.slow
def test_what_looks_at_every_voxel_runs_in_the_background(loaded, scan, standin, tmp_path, monkeypatch, memory):
    """Each takes seconds on a scan of hundreds of slices, during which nobody could press Cancel."""
    memory.forget()
    looked = {}

    def watch(where, name):
        function = getattr(sys.modules[where], name)

        def watched(*arguments, **options):
            looked[name].add(threading.current_thread() is threading.main_thread())
            return function(*arguments, **options)

        looked[name] = set()
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("MITSGANLib") and getattr(module, name, None) is function:
                monkeypatch.setattr(module, name, watched)

    import MITSGANLib.report.page  # noqa: F401 - so that it is watched, too

    for where, name in (
        ("MITSGANLib.slicer_bridge.volumes", "require_ct"),
        ("MITSGANLib.slicer_bridge.differences", "difference"),
        ("MITSGANLib.measure.metrics", "compare"),
        ("MITSGANLib.budget.noise", "estimate_noise"),
        ("MITSGANLib.protection.protector", "protect"),
        ("MITSGANLib.attack.attacker", "simulate_attack"),
        ("MITSGANLib.report.page", "save_report"),
    ):
        watch(where, name)
    attack(loaded, scan)
    loaded.ui.compareButton.click()
    standin.dialog.answer = str(tmp_path / "report.html")
    loaded.ui.reportButton.click()
    assert standin.errors == []
    assert looked == {name: {False} for name in looked}


@pytest.mark.slow
def test_no_window_is_sought_for_the_voxels_of_a_result(loaded):
    """The histogram of a whole scan takes longer than all else that happens to a result."""
    source = loaded._parameterNode.sourceVolume
    source.GetDisplayNode().SetAutoWindowLevel(False)
    source.GetDisplayNode().SetWindowLevel(1500, -600)
    sought = []

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def on_added(_scene, _event, node):
        if node.IsA("vtkMRMLScalarVolumeDisplayNode"):
            sought.append(node.GetAutoWindowLevel())

    tag = slicer.mrmlScene.AddObserver(slicer.mrmlScene.NodeAddedEvent, on_added)
    loaded.ui.protectButton.click()
    slicer.mrmlScene.RemoveObserver(tag)
    assert sought == [0]
    assert loaded._parameterNode.protectedVolume.GetDisplayNode().GetWindow() == 1500


def shown_in_ordinary_views():
    return {slicer.mrmlScene.GetNodeByID(one.GetBackgroundVolumeID() or "") for one in ordinary_composites()}


def test_what_is_displayed_is_selected_and_what_is_selected_is_displayed(standin, module, scan):
    nodes = [node_from_volume(scan.volume, name) for name in ("First CT", "Second CT", "Third CT")]
    show_in_ordinary_views(nodes[1])
    panel = standin.open_panel(module)
    assert panel._parameterNode.sourceVolume is nodes[1], "not the scene's first: a click would land in another patient"
    panel.ui.volumeSelector.setCurrentNode(nodes[2])
    assert shown_in_ordinary_views() == {nodes[2]}
    show_in_ordinary_views(nodes[0])
    wait_until(lambda: panel._parameterNode.volume is nodes[0])
    assert panel._parameterNode.sourceVolume is nodes[0]
    standin.leave(panel)
    show_in_ordinary_views(nodes[1])
    standin.enter(panel)
    assert panel._parameterNode.volume is nodes[1]
    panel.cleanup()


@pytest.mark.slow
def test_results_are_known_by_the_volume_that_is_displayed(loaded, scan):
    parameters = attack(loaded, scan)
    source, first = parameters.sourceVolume, parameters.protectedVolume
    loaded.ui.protectButton.click()
    second = parameters.protectedVolume
    assert second is not first
    assert parameters.volume is second
    loaded.ui.volumeSelector.setCurrentNode(first)
    assert parameters.protectedVolume is first
    assert parameters.sourceVolume is source
    loaded.ui.volumeSelector.setCurrentNode(source)
    assert parameters.protectedVolume is first, "the source is that of both"
    slicer.mrmlScene.RemoveNode(source)
    loaded.ui.volumeSelector.setCurrentNode(first)
    assert "is not in the scene" in loaded.ui.simulateAttackButton.toolTip


@pytest.mark.slow
def test_what_was_made_of_the_selected_volume_stays_displayed(loaded, standin):
    loaded.ui.protectButton.click()
    protected = loaded._parameterNode.protectedVolume
    standin.leave(loaded)
    standin.enter(loaded)
    assert shown_in_ordinary_views() == {protected}


def test_nothing_is_selected_in_place_of_a_deleted_volume(loaded, scan):
    other = node_from_volume(scan.volume, "Other CT")
    parameters = loaded._parameterNode
    slicer.mrmlScene.RemoveNode(parameters.sourceVolume)
    assert parameters.volume is parameters.sourceVolume is None
    wait_until(lambda: "a sample" in loaded.ui.inspectionLabel.text)
    assert slicer.mrmlScene.IsNodePresent(other)


def test_what_was_done_in_a_scene_is_not_said_in_the_next(loaded):
    loaded.panel.jobs.say("Created CT protected.")
    slicer.mrmlScene.Clear(False)
    assert loaded.ui.statusLabel.text == ""
    assert not loaded.ui.statusLabel.visible


def test_a_removed_volume_is_freed_and_no_timer_stays(panel, scan):
    timers = len(panel.parent.findChildren(QtCore.QTimer))
    node, freed = node_from_volume(scan.volume, "CT"), vtk.vtkWeakReference()
    freed.Set(node)
    wait_until(lambda: panel._parameterNode.volume is node and panel.panel.inspection is not None)
    slicer.mrmlScene.RemoveNode(node)
    node = None
    wait_until(lambda: freed.Get() is None)
    wait_until(lambda: len(panel.parent.findChildren(QtCore.QTimer)) <= timers)


@pytest.mark.slow
def test_the_views_of_a_demonstration_are_made_one_after_the_other(loaded, scan):
    tags = {view.tag for view in VIEWS.values()}

    def made():
        return [node.GetLayoutName() for node in slicer.util.getNodesByClass("vtkMRMLSliceNode")]

    loaded.ui.attackCollapsibleButton.collapsed = False
    seen = []
    wait_until(lambda: seen.append(len(tags & set(made()))) or seen[-1] == len(tags))
    assert sorted(set(seen)) == [0, 1, 2, 3, 4]
    attack(loaded, scan)
    assert len(made()) == len(set(made())), "the layout takes those"
    assert all(node.GetBackgroundVolumeID() for node in composites().values())


@pytest.mark.parametrize("kind", ["vtkMRMLVectorVolumeNode", "vtkMRMLLabelMapVolumeNode"])
def test_nothing_is_said_of_a_scan_while_something_else_is_shown(panel, scan, kind):
    node = add_scan(panel, scan.volume)
    shape = (8, 8, 8, 3) if "Vector" in kind else (8, 8, 8)
    other = slicer.util.addVolumeFromArray(np.zeros(shape, np.uint8), name="Other", nodeClassName=kind)
    for composite in ordinary_composites():
        composite.SetBackgroundVolumeID(other.GetID())
    wait_until(lambda: "No CT is shown" in panel.ui.stateLabel.text)
    assert not panel.ui.protectButton.enabled
    for composite in ordinary_composites():
        composite.SetBackgroundVolumeID(node.GetID())
    wait_until(lambda: "No record of protection" in panel.ui.stateLabel.text)


def test_a_volume_that_is_loaded_while_none_is_selected_is_selected(panel, scan):
    assert panel._parameterNode.sourceVolume is None
    node = node_from_volume(scan.volume, "CT")
    wait_until(lambda: "CT: " in panel.ui.inspectionLabel.text)
    assert panel._parameterNode.sourceVolume is node
    node_from_volume(scan.volume, "Other CT")
    slicer.app.processEvents()
    assert panel._parameterNode.sourceVolume is node


@pytest.mark.slow
def test_a_fresh_protection_removes_the_map_of_the_last_check(loaded, scan):
    labels = dataclasses.replace(scan.volume, hu=np.ones_like(scan.volume.hu))
    loaded._parameterNode.changeMap = change_map_node(labels, loaded._parameterNode.volume, examination_legend())
    loaded.ui.protectButton.click()
    assert loaded._parameterNode.changeMap is None
    assert node_names("vtkMRMLLabelMapVolumeNode") == []
    assert loaded.ui.verdictLabel.text == ""


def test_a_long_verdict_is_shown_whole(panel):
    label = panel.ui.keysResultLabel
    panel.ui.keysCollapsibleButton.collapsed = False
    for text in ("short", "<br>".join(["a line of a long verdict"] * 30), "short"):
        panel.panel.show_text(label, text)
        wait_until(lambda: label.minimumHeight == label.heightForWidth(label.width))
        assert label.height >= label.minimumHeight


@pytest.mark.slow
def test_another_source_does_not_keep_the_results_of_the_first(loaded, scan):
    parameters = attack(loaded, scan)
    first, protected = parameters.sourceVolume, parameters.protectedVolume
    add_scan(loaded, scan.volume, "Second CT")
    assert parameters.protectedVolume is None
    assert parameters.sourceAttacked is None
    loaded.ui.volumeSelector.setCurrentNode(first)
    assert parameters.protectedVolume is protected


@pytest.mark.slow
def test_export_explains_why_not(loaded, scan):
    parameters = attack(loaded, scan)
    assert not loaded.ui.exportDicomButton.enabled
    assert "not loaded through Slicer's DICOM module" in loaded.ui.exportDicomButton.toolTip
    assert loaded.ui.exportFileButton.enabled
    loaded.ui.protectedVolumeSelector.setCurrentNode(parameters.sourceAttacked)
    assert not loaded.ui.exportDicomButton.enabled
    assert "never exported as DICOM" in loaded.ui.exportDicomButton.toolTip
    with pytest.raises(Exception, match="never exported as DICOM"):
        loaded.logic.exportDicom(parameters.sourceAttacked, "/nowhere")


@pytest.mark.slow
def test_report_is_written(loaded, scan, standin, tmp_path, monkeypatch):
    monkeypatch.setenv("MITSGAN_SQUEEZENET", str(tmp_path / "none"))
    attack(loaded, scan)
    standin.dialog.answer = str(tmp_path / "report.html")
    loaded.ui.reportButton.click()
    assert standin.errors == []
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "untrained" in text
    assert "CT protected" not in text, "the name of a node may be a patient's"


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_the_module_registers_its_sample_and_its_self_test_passes(standin, module, scan, monkeypatch):
    sources = []
    sample_data = types.ModuleType("SampleData")
    sample_data.SampleDataLogic = types.SimpleNamespace(
        registerCustomSampleDataSource=lambda **source: sources.append(source)
    )
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    # The small scan in place of the sample, and of the phantom of the default size alone.
    monkeypatch.setattr("MITSGANLib.slicer_bridge.operations.sample_phantom", lambda: scan)
    monkeypatch.setattr(
        "MITSGANLib.scan.phantom.thorax_phantom", lambda *size, **rest: thorax_phantom(*size, **rest) if size else scan
    )
    parent = types.SimpleNamespace(path=str(ROOT / "MITSGAN" / "MITSGAN.py"))
    module.MITSGAN(parent)
    assert parent.categories == ["Informatics"]
    standin.app.emit("startupCompleted()")
    assert Path(sources[0]["thumbnailFileName"]).is_file()
    (node,) = sources[0]["customDownloader"](None)
    assert node.GetAttribute(SYNTHETIC_ATTRIBUTE) == "true"
    module.MITSGANTest().runTest()


@pytest.mark.slow
def test_a_scan_from_the_dicom_database_is_exported_as_a_derived_series(panel, standin, tmp_path):
    from dicom_factory import ct_series, phantom_hu
    from MITSGANLib.files.dicom.read import read_series
    from MITSGANLib.files.dicom.series import choose_series, scan_dicom

    series = ct_series(phantom_hu((6, 40, 40)))
    series.write(tmp_path / "original")
    original = read_series(choose_series(scan_dicom(tmp_path / "original")))
    files = {path.name: path for path in (tmp_path / "original").iterdir()}
    standin.dicomDatabase.files = files
    # Slicer may hold the slices from the other end; the node must not say whose scan it is.
    reversed_slices = np.diag((1.0, 1.0, -1.0))
    volume = dataclasses.replace(
        original,
        hu=original.hu[::-1],
        origin=tuple(original.voxel_to_lps((original.shape[0] - 1, 0, 0))),
        direction=original.direction @ reversed_slices,
    )
    source = add_scan(panel, volume)
    source.SetAttribute("DICOM.instanceUIDs", " ".join(files))
    panel.ui.protectButton.click()
    protected = panel._parameterNode.protectedVolume

    standin.dialog.answer = str(tmp_path / "export")
    panel.ui.exportDicomButton.click()
    assert standin.errors == []
    written = read_series(choose_series(scan_dicom(tmp_path / "export")))
    assert written.same_geometry(original)
    np.testing.assert_array_equal(written.hu, hu(protected)[::-1])
    panel.ui.exportDicomButton.click()
    assert (tmp_path / "export" / "protected-1").is_dir(), "a folder in use is not written into"

    standin.dicomDatabase.files = {}
    click_failing(panel.ui.exportDicomButton, "no longer in the DICOM database")


def test_a_scan_from_dicom_is_protected_as_its_files_are(panel, standin, tmp_path):
    """Padding within the body's range of HU, which only the headers declare."""
    from dicom_factory import ct_series, phantom_hu
    from MITSGANLib.files.dicom.read import read_series
    from MITSGANLib.files.dicom.series import choose_series, scan_dicom

    values = phantom_hu((6, 40, 40))
    values[:, 20:24, 10:30] = -860
    ct_series(values, edit=lambda dataset, _k: setattr(dataset, "PixelPaddingValue", 1024 - 860)).write(tmp_path)
    original = read_series(choose_series(scan_dicom(tmp_path)))
    assert original.provenance.padding_hu == -860
    files = {path.name: path for path in tmp_path.iterdir()}
    standin.dicomDatabase.files = files
    source = add_scan(panel, dataclasses.replace(original, provenance=Provenance("scan")))
    source.SetAttribute("DICOM.instanceUIDs", " ".join(files))
    panel.ui.protectButton.click()
    expected = protector.protect(original, model=protector.load_protector(), device="cpu")
    np.testing.assert_array_equal(hu(panel._parameterNode.protectedVolume), expected.hu)
    assert (hu(panel._parameterNode.protectedVolume)[:, 20:24, 10:30] == -860).all()


@pytest.mark.slow
@pytest.mark.usefixtures("module", "models")
def test_the_tutorials_python_works(capsys, monkeypatch, phantom):
    """The code block of the README, as it stands there, on a smaller phantom."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    k, j, i = phantom.nodule_kji
    assert "(26, 146, 314)" in code
    monkeypatch.setattr("MITSGANLib.slicer_bridge.operations.sample_phantom", lambda: phantom)
    exec(code.replace("(26, 146, 314)", f"({k}, {j}, {i})"), {})  # noqa: S102
    assert "in-painted middle" in capsys.readouterr().out


@pytest.mark.slow
def test_the_story_on_a_real_scan_with_the_installed_models(standin, module, real_ct, tmp_path):
    """Thirty slices of a real chest CT around a reader's nodule; nothing but the application is a stand-in."""
    import json

    from MITSGANLib.files.volume_files import read_file
    from MITSGANLib.protection.presets import available_protectors
    from MITSGANLib.weights import available_attackers

    if not available_protectors() or not available_attackers():
        pytest.skip("no models are installed")
    findings = json.loads((real_ct / "nodules.json").read_text(encoding="utf-8"))
    nodule = findings["LIDC-IDRI-0002"]["nodules"][0]
    k, j, i = (round(nodule[axis]) for axis in ("slice", "row", "column"))
    whole = read_file(real_ct / "nrrd" / "LIDC-IDRI-0002.nrrd")
    first = k - 15
    volume = dataclasses.replace(
        whole, hu=whole.hu[first : first + 30], origin=tuple(whole.voxel_to_lps((first, 0, 0)))
    )
    panel = standin.open_panel(module)
    pictures = Pictures(panel, Path(os.environ.get("MITSGAN_PANEL_PICTURES") or tmp_path))
    pictures.take("real-empty")
    add_scan(panel, volume, "LIDC-IDRI-0002")
    assert "CT: " in panel.ui.inspectionLabel.text
    panel.ui.advancedCollapsibleButton.collapsed = False
    wait_until(lambda: "s for this scan" in panel.ui.deviceDescriptionLabel.text)
    taken = []

    def while_protecting(done):
        if done >= 16 and not taken:
            taken.append(done)
            pictures.take("real-protecting")

    panel.ui.protectProgressBar.valueChanged.connect(while_protecting)
    panel.ui.protectButton.click()
    assert taken
    panel.ui.attackCollapsibleButton.collapsed = False
    assert panel.ui.protectionCollapsibleButton.collapsed, "a demonstration is in sight alone"
    place_target(panel, (k - first, j, i))
    panel.ui.removeRadioButton.checked = True
    panel.ui.simulateAttackButton.click()
    pictures.take("real-attacked")
    panel.ui.compareButton.click()
    assert standin.errors == []
    assert "Noise of the same RMSE moved it by" in panel.ui.summaryLabel.text
    assert "The forgery shows:" in panel.ui.summaryLabel.text, "what was painted lacks the default's watermark"
    pictures.take("real-compared")
    parameters = panel._parameterNode
    change = hu(parameters.protectedVolume).astype(int) - hu(parameters.sourceVolume)
    assert 0 < np.abs(change).max() <= 30
    assert (hu(parameters.sourceAttacked) != hu(parameters.sourceVolume)).any()
    panel.ui.examineCollapsibleButton.collapsed = False
    panel.ui.examineButton.click()
    assert standin.errors == []
    assert f"The examination found: slice {k - first}" in panel.ui.stateLabel.text
    pictures.take("real-examined")
    panel.cleanup()
