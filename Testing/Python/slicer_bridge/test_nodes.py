"""The exchange between MRML nodes and CTVolume, on a real MRML scene (slicer-core)."""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import CancelledError, InputError, ModelError, OutputError, TargetError
from MITSGANLib.measure.attack_effect import ComparedPair
from MITSGANLib.scan.volume import PROTECTION, SIMULATED_ATTACK, CTVolume, ProcessingStep, Provenance

slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
vtk = pytest.importorskip("vtk", reason="VTK needs system OpenGL libraries", exc_type=ImportError)

from MITSGANLib.slicer_bridge.differences import (
    Difference,
    difference,
    difference_node,
    difference_range,
    differences,
    set_difference_threshold,
)
from MITSGANLib.slicer_bridge.inspection import inspect_scan
from MITSGANLib.slicer_bridge.layout import COMPARISON_LAYOUT, VIEWS, plot_view_node, register_layout
from MITSGANLib.slicer_bridge.privacy import path_kept_from_log, paths_kept_from_log
from MITSGANLib.slicer_bridge.tables import (
    FIGURE_COLUMNS,
    figures_table,
    metrics_table,
    rmse_chart,
    slice_of_point,
    table_text,
)
from MITSGANLib.slicer_bridge.targets import target_from_markups
from MITSGANLib.slicer_bridge.volumes import (
    PROTECTED_ATTRIBUTE,
    SIMULATED_ATTACK_ATTRIBUTE,
    SIMULATED_ATTACK_COLOR,
    STEPS_ATTRIBUTE,
    first_scan,
    is_simulated_attack,
    node_from_volume,
    ras_from_voxel,
    remove_result,
    results_of,
    scan_from_node,
    source_of,
    volume_from_node,
    voxel_from_ras,
)
from MITSGANLib.watermark.checking import Place

SHAPE = (5, 6, 7)
SPACING = (0.7, 0.8, 2.5)
ORIGIN = (-30.25, 40.5, -120.125)


def rotation(axis, degrees):
    axis = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


OBLIQUE = rotation((1, 2, 3), 37)
DIRECTIONS = {
    "axial": np.eye(3),
    "flipped slices": np.diag((1.0, 1.0, -1.0)),
    "flipped rows and columns": np.diag((-1.0, -1.0, 1.0)),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": OBLIQUE,
    "oblique, left-handed": OBLIQUE @ np.diag((1.0, -1.0, 1.0)),
}


@pytest.fixture(autouse=True)
def scene(monkeypatch):
    scene = slicer.vtkMRMLScene()
    # As the Colors module does in the application.
    scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
    monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
    return scene


@pytest.fixture(params=DIRECTIONS.values(), ids=DIRECTIONS.keys())
def volume(request):
    hu = np.random.default_rng(0).integers(-1024, 3072, SHAPE).astype(np.int16)
    return CTVolume(hu, SPACING, ORIGIN, request.param)


def make_node(array=None, ijk_to_ras=None):
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) if array is None else array
    return slicer.util.addVolumeFromArray(array, ijk_to_ras, name="CT")


def matrix(linear, translation=(0, 0, 0)):
    result = np.eye(4)
    result[:3, :3] = linear
    result[:3, 3] = translation
    return result


@pytest.mark.parametrize("degrees", [5, 15])
def test_a_tilted_stack_is_refused_with_advice(degrees):
    lean = np.tan(np.radians(degrees))
    node = make_node(ijk_to_ras=matrix(np.array([[0.7, 0, 0], [0, 0.7, 2.5 * lean], [0, 0, 2.5]])))
    with pytest.raises(InputError, match="slanted stack"):
        volume_from_node(node)


def put_under_transforms(node, *matrices):
    """Place a node under linear transforms, the innermost first."""
    for to_parent in matrices:
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(to_parent))
        node.SetAndObserveTransformNodeID(transform.GetID())
        node = transform


def step(kind, **parameters):
    return ProcessingStep(kind, f"a {kind}", parameters, "2026-01-01T00:00:00+00:00")


# Geometry and voxels


def test_round_trip_is_identity(volume):
    result = volume_from_node(node_from_volume(volume, "CT"))
    np.testing.assert_array_equal(result.hu, volume.hu)
    assert result.hu.dtype == np.int16
    assert result.spacing == volume.spacing
    assert result.origin == volume.origin
    np.testing.assert_array_equal(result.direction, volume.direction)


def test_every_voxel_keeps_its_place_in_the_patient(volume):
    node = node_from_volume(volume, "CT")
    ijk_to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(ijk_to_ras)
    for k, j, i in np.ndindex(SHAPE):
        ras = ijk_to_ras.MultiplyPoint((i, j, k, 1))[:3]
        np.testing.assert_allclose(volume.voxel_to_lps((k, j, i)), (-ras[0], -ras[1], ras[2]), atol=1e-9)
        assert slicer.util.arrayFromVolume(node)[k, j, i] == volume.hu[k, j, i]


def test_geometry_comes_from_the_ijk_to_ras_matrix():
    ijk_to_ras = matrix(OBLIQUE @ np.diag(SPACING), (10, 20, 30))
    volume = volume_from_node(make_node(ijk_to_ras=ijk_to_ras))
    np.testing.assert_allclose(volume.voxel_to_lps_matrix, np.diag((-1, -1, 1, 1)) @ ijk_to_ras, atol=1e-12)


def test_voxels_are_copies():
    node = make_node()
    volume = volume_from_node(node)
    result = node_from_volume(volume, "result")
    before = volume.hu.copy()
    slicer.util.arrayFromVolume(node)[:] = -7
    slicer.util.arrayFromVolume(result)[:] = -8
    np.testing.assert_array_equal(volume.hu, before)


def test_parent_transform_is_noted_and_not_applied():
    node = make_node(ijk_to_ras=matrix(np.diag(SPACING)))
    plain = volume_from_node(node)
    put_under_transforms(node, matrix(rotation((0, 0, 1), 90), (5, 6, 7)))
    transformed = volume_from_node(node)
    assert transformed.same_geometry(plain)
    assert [warning.name for warning in transformed.provenance.warnings] == ["parent-transform"]
    assert plain.provenance.warnings == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_converted_exactly(dtype):
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 100
    volume = volume_from_node(make_node(values.astype(dtype)))
    assert volume.hu.dtype == np.int16
    np.testing.assert_array_equal(volume.hu, values)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(0.5, np.float32), (np.nan, np.float64), (np.inf, np.float64), (40000, np.uint16), (-32769, np.int32)],
)
def test_values_that_are_not_int16_hu_are_refused(value, dtype):
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 3] = value
    with pytest.raises(InputError, match="whole HU"):
        volume_from_node(make_node(array))


def test_what_is_no_scalar_volume_is_refused():
    labels = slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.int16), nodeClassName="vtkMRMLLabelMapVolumeNode")
    vectors = slicer.util.addVolumeFromArray(np.zeros((*SHAPE, 3), np.int16), nodeClassName="vtkMRMLVectorVolumeNode")
    for node in (None, labels, vectors):
        with pytest.raises(InputError, match="Select a scalar volume"):
            volume_from_node(node)
    with pytest.raises(InputError, match="holds no voxels"):
        volume_from_node(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode"))


# Points


INNER = matrix(rotation((0, 1, 1), 25), (12, -8, 3))
OUTER = matrix(rotation((1, 0, 0), -60) @ np.diag((-1, 1, 1)), (-100, 50, 25))


@pytest.mark.parametrize("transforms", [(), (INNER,), (INNER, OUTER)], ids=["none", "one", "chain"])
def test_a_ras_point_hits_the_intended_voxel(volume, transforms):
    node = node_from_volume(volume, "CT")
    put_under_transforms(node, *transforms)
    to_world = np.diag((-1, -1, 1, 1)) @ volume.voxel_to_lps_matrix
    for transform in transforms:
        to_world = transform @ to_world
    for k, j, i in np.ndindex(SHAPE):
        center = (to_world @ (i, j, k, 1))[:3]
        assert voxel_from_ras(node, center) == (k, j, i)
        np.testing.assert_allclose(ras_from_voxel(node, (k, j, i)), center, atol=1e-4)


def test_the_nearest_voxel_is_taken():
    node = make_node(ijk_to_ras=matrix(OBLIQUE @ np.diag(SPACING), (10, 20, 30)))
    put_under_transforms(node, INNER)
    for offset, expected in ((0.4, (2, 3, 4)), (0.6, (3, 4, 5)), (-0.4, (2, 3, 4)), (-0.6, (1, 2, 3))):
        ras = ras_from_voxel(node, (2 + offset, 3 + offset, 4 + offset))
        assert voxel_from_ras(node, ras) == expected


def test_a_point_passes_through_a_warp():
    node = make_node(ijk_to_ras=matrix(np.diag((10, 10, 10))))
    corners = np.array([(x, y, z) for x in (0, 60) for y in (0, 50) for z in (0, 40)], dtype=float)
    moved = corners + np.array((100, 0, 0))
    moved[-1] += (4, 4, 4)
    warp = vtk.vtkThinPlateSplineTransform()
    warp.SetBasisToR()
    for landmarks, setter in ((corners, warp.SetSourceLandmarks), (moved, warp.SetTargetLandmarks)):
        points = vtk.vtkPoints()
        for corner in landmarks:
            points.InsertNextPoint(corner)
        setter(points)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
    transform.SetAndObserveTransformToParent(warp)
    node.SetAndObserveTransformNodeID(transform.GetID())
    for kji in ((0, 0, 0), (2, 3, 4), (4, 5, 6)):
        ras = warp.TransformPoint(10.0 * kji[2], 10.0 * kji[1], 10.0 * kji[0])
        assert voxel_from_ras(node, ras) == kji


@pytest.mark.parametrize("kji", [(-1, 0, 0), (0, 6, 0), (0, 0, 7), (5, 0, 0), (0, -0.6, 0)])
def test_a_point_outside_the_volume_is_refused(kji):
    node = make_node()
    with pytest.raises(TargetError, match="outside"):
        voxel_from_ras(node, ras_from_voxel(node, kji))


def test_target_is_the_last_placed_point_in_world_coordinates():
    markups = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    with pytest.raises(TargetError, match="place one"):
        target_from_markups(markups)
    for position in ((1, 2, 3), (4, 5, 6), (7, 8, 9)):
        markups.AddControlPoint(vtk.vtkVector3d(position))
    markups.UnsetNthControlPointPosition(2)
    put_under_transforms(markups, matrix(np.eye(3), (100, 0, 0)))
    np.testing.assert_allclose(target_from_markups(markups), (104, 5, 6))
    with pytest.raises(TargetError):
        target_from_markups(None)


# The result in the scene


def test_result_takes_display_transform_and_study_of_its_source(volume, scene):
    source = node_from_volume(volume, "CT")
    source.GetDisplayNode().SetAutoWindowLevel(False)
    source.GetDisplayNode().SetWindowLevel(1500, -600)
    source.GetDisplayNode().SetInterpolate(False)
    put_under_transforms(source, INNER)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    source_item = hierarchy.CreateItem(study, source)
    hierarchy.SetItemUID(source_item, "DICOM", "1.2.3")

    result = node_from_volume(volume_from_node(source), "CT", source)

    assert result.GetName() != source.GetName()
    display = result.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel(), display.GetAutoWindowLevel()) == (1500, -600, 0)
    assert display.GetInterpolate() == 0
    assert display.GetColorNodeID() == source.GetDisplayNode().GetColorNodeID()
    assert result.GetParentTransformNode() is source.GetParentTransformNode()
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result)) == study
    assert volume_from_node(source).provenance.series_instance_uid == "1.2.3"
    assert volume_from_node(result).provenance.series_instance_uid is None
    for get in ("GetIJKToRASMatrix", "GetRASToIJKMatrix"):
        expected, actual = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        getattr(source, get)(expected)
        getattr(result, get)(actual)
        np.testing.assert_array_equal(slicer.util.arrayFromVTKMatrix(actual), slicer.util.arrayFromVTKMatrix(expected))


def test_an_item_that_the_application_made_is_moved_beside_the_source(scene):
    source = make_node()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.CreateItem(study, source)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def add_item(_scene, _event, node):
        if node.IsA("vtkMRMLScalarVolumeNode"):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, add_item)
    result = node_from_volume(volume_from_node(source), "result", source)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result)) == study


def test_the_scene_never_holds_a_half_written_volume(scene, monkeypatch):
    volume = volume_from_node(make_node())

    def fail(_volume):
        raise MemoryError

    monkeypatch.setattr("MITSGANLib.slicer_bridge.volumes.image_from_volume", fail)
    nodes = scene.GetNumberOfNodes()
    with pytest.raises(MemoryError):
        node_from_volume(volume, "result")
    assert scene.GetNumberOfNodes() == nodes


# Provenance


def with_steps(*steps, **fields):
    hu = np.zeros(SHAPE, np.int16)
    return CTVolume(hu, SPACING, ORIGIN, OBLIQUE, Provenance(steps=steps, **fields))


def test_steps_and_padding_survive_the_node():
    steps = (step(PROTECTION, model="m", strength_hu=20.0), step("crop", region=[1, 2], note="Größe"))
    result = volume_from_node(node_from_volume(with_steps(*steps, padding_hu=-2000), "CT"))
    assert result.provenance.steps == steps
    assert result.provenance.padding_hu == -2000


def test_numpy_parameters_are_written_as_numbers():
    node = node_from_volume(with_steps(step("crop", a=np.int64(3), b=np.array([1.5, 2]))), "CT")
    assert volume_from_node(node).provenance.steps[0].parameters == {"a": 3, "b": [1.5, 2.0]}


def test_protection_is_an_attribute_and_no_attack():
    node = node_from_volume(with_steps(step(PROTECTION)), "CT protected")
    assert node.GetAttribute(PROTECTED_ATTRIBUTE) == "true"
    assert node.GetAttribute(SIMULATED_ATTACK_ATTRIBUTE) is None
    assert node.GetName() == "CT protected"


def test_a_simulated_attack_stays_marked(tmp_path, scene):
    attacked = with_steps(step(PROTECTION), step(SIMULATED_ATTACK, target=(1, 2, 3)))
    node = node_from_volume(attacked, "CT")
    assert node.GetName() == "CT (simulated attack)"
    assert node.GetAttribute(SIMULATED_ATTACK_ATTRIBUTE) == "true"

    restored = volume_from_node(node)
    assert restored.provenance.is_simulated_attack
    further = node_from_volume(restored, "later result")
    assert further.GetAttribute(SIMULATED_ATTACK_ATTRIBUTE) == "true"
    assert further.GetName() == "later result (simulated attack)"

    path = tmp_path / "attacked.nrrd"
    node.GetStorageNode().SetFileName(str(path))
    assert node.GetStorageNode().WriteData(node)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    assert reader.GetMetaData(SIMULATED_ATTACK_ATTRIBUTE) == "true"
    reloaded = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert node.GetStorageNode().ReadData(reloaded)
    assert volume_from_node(reloaded).provenance.is_simulated_attack
    assert volume_from_node(reloaded).same_geometry(attacked)


def test_nothing_that_may_name_a_patient_is_written_to_the_node():
    volume = with_steps(
        step(PROTECTION),
        source="/data/Doe^Jane/ct",
        series_instance_uid="1.2.840.99",
        dicom_files=("/data/Doe^Jane/ct/1.dcm",),
    )
    node = node_from_volume(volume, "CT")
    text = " ".join(node.GetAttribute(name) for name in node.GetAttributeNames())
    assert PROTECTION in text
    assert "Doe" not in text
    assert "1.2.840.99" not in text


@pytest.mark.parametrize("damaged", ["{", "3", '[{"kind": "protection"}]', '[{"who": "?"}]', '["protection"]'])
def test_damaged_provenance_is_an_error_not_a_clean_scan(damaged):
    node = make_node()
    node.SetAttribute(STEPS_ATTRIBUTE, damaged)
    with pytest.raises(InputError, match="start again from the original"):
        volume_from_node(node)


def test_a_volume_without_history_has_no_attributes():
    node = node_from_volume(with_steps(), "CT")
    assert node.GetAttributeNames() == ()


# Inspection


def test_inspection_tells_ct_from_other_volumes():
    body = np.full((6, 120, 120), -1000, np.int16)
    body[:, 5:115, 5:115] = 40 + np.random.default_rng(0).normal(0, 12, (6, 110, 110)).astype(np.int16)
    inspection = inspect_scan(scan_from_node(make_node(body)))
    assert inspection.problem == ""
    assert inspection.shape == body.shape
    assert inspection.noise_sd_hu == pytest.approx(12, abs=2)
    for values in (np.abs(body), np.zeros_like(body)):
        assert inspect_scan(scan_from_node(make_node(values))).problem


# Differences


def test_difference_is_signed_cut_to_the_change_and_stays_in_place(volume):
    node = node_from_volume(volume, "CT")
    put_under_transforms(node, INNER)
    changed = volume.hu.copy()
    changed[1:3, 2:4, 3:6] += 50
    changed[1, 2, 3] -= 90
    shown = difference_node(difference(volume, volume.with_hu(changed)), "difference", node)
    array = slicer.util.arrayFromVolume(shown)
    assert array.shape == (2, 2, 3)
    assert array[0, 0, 0] == -40
    assert array[1, 1, 2] == 50
    np.testing.assert_allclose(ras_from_voxel(shown, (0, 0, 0)), ras_from_voxel(node, (1, 2, 3)))
    with pytest.raises(InputError, match="difference map"):
        scan_from_node(shown)


def difference_of(hu, limit_hu):
    return Difference(CTVolume(hu, SPACING, ORIGIN, np.eye(3)), limit_hu)


def test_a_difference_has_a_window_and_colors_of_its_own():
    hu = np.linspace(-100, 100, np.prod(SHAPE)).round().astype(np.int16).reshape(SHAPE)
    shown = difference_node(difference_of(hu, 100.0), "difference", make_node(), threshold=0.2)
    display = shown.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (-100, 100)
    colors = display.GetColorNode().GetLookupTable()
    red, _green, blue, _alpha = colors.GetTableValue(0)
    assert blue > red, "lower is blue"
    red, _green, blue, _alpha = colors.GetTableValue(254)
    assert red > blue, "higher is red"
    changes = []
    display.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: changes.append(1))
    set_difference_threshold(shown, 0.2)
    assert changes == [], "255 colors set anew are 255 renderings"


@pytest.mark.parametrize(
    ("limit", "share"), [(5.0, 0.2), (3.0, 1 / 3), (20.0, 0.1), (100.0, 0.2), (500.0, 0.2), (5.0, 0.0)]
)
def test_only_what_changed_by_more_than_the_caption_says_is_colored(limit, share):
    row = np.arange(-limit - 2, limit + 3, dtype=np.int16)
    shown = difference_node(difference_of(row.reshape(1, 1, -1), limit), "difference", make_node(), threshold=share)
    threshold, _full = difference_range(shown)
    port = shown.GetDisplayNode().GetImageDataConnection()
    port.GetProducer().Update()
    scalars = port.GetProducer().GetOutputDataObject(port.GetIndex()).GetPointData().GetScalars()
    colored = np.array([scalars.GetComponent(index, 3) > 0 for index in range(len(row))])
    assert not colored[np.abs(row) <= threshold].any()
    # Of 255 colors one holds up to 0.8 % of the range.
    assert colored[np.abs(row) > threshold + 2 * limit / 255].all()


@pytest.mark.parametrize(("limit", "share", "expected"), [(8.0, 0.2, 1.6), (500.0, 0.2, 100.0), (5.0, 0.0, 0.0)])
def test_each_difference_has_a_threshold_of_its_own(limit, share, expected):
    shown = difference_node(difference_of(np.full(SHAPE, 3, np.int16), limit), "difference", make_node())
    set_difference_threshold(shown, share)
    assert difference_range(shown) == (pytest.approx(expected), limit)


def test_both_attacks_are_shown_in_the_same_colors():
    source = CTVolume(np.zeros(SHAPE, np.int16), SPACING, ORIGIN, np.eye(3))
    protected, attacked, attacked_protected = (source.with_hu(source.hu + np.int16(change)) for change in (3, 40, 803))
    volumes = {"source": source, "protected": protected, "source attacked": attacked}
    found = differences({**volumes, "protected attacked": attacked_protected})
    assert {view: shown.limit_hu for view, shown in found.items()} == {
        "protected": 3.0,
        "source attacked": 1000.0,
        "protected attacked": 1000.0,
    }
    assert found["protected attacked"].volume.hu.max() == 800, "against the protected volume"
    assert list(differences({"source": source, "protected": protected})) == ["protected"]


def test_identical_volumes_have_an_empty_difference(volume):
    assert not difference(volume, volume).volume.hu.any()


def test_removing_a_result_removes_what_belongs_to_it(scene):
    node = make_node()
    classes = (
        *("vtkMRMLScalarVolumeNode", "vtkMRMLDisplayNode", "vtkMRMLColorTableNode", "vtkMRMLTableNode"),
        *("vtkMRMLPlotSeriesNode", "vtkMRMLPlotChartNode", "vtkMRMLStorageNode"),
    )
    before = [scene.GetNumberOfNodesByClass(name) for name in classes]
    shown = difference_node(difference_of(np.ones(SHAPE, np.int16), 1.0), "difference", node)
    chart = rmse_chart({"a": [1.0, 2.0]}, "chart")
    remove_result(shown)
    remove_result(chart)
    assert [scene.GetNumberOfNodesByClass(name) for name in classes] == before


# Table, plot and layout


def test_table_holds_every_metric_with_its_definition():
    from MITSGANLib.measure.metrics import compare

    first = np.zeros((3, 16, 16), np.int16)
    comparison = compare(first, first + np.int16(2))
    table = metrics_table([ComparedPair("b, then a", comparison)], "metrics")
    rows = [line.split("\t") for line in table_text(table).splitlines()]
    assert len(rows) == 1 + len(comparison.metrics)
    by_metric = {row[2]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert by_metric["rmse"]["Value"] == "2"
    assert by_metric["rmse"]["Unit"] == "HU"
    assert by_metric["rmse"]["Definition"] == comparison.rmse.definition
    assert by_metric["lpips"]["Value"] == ""
    assert "not asked for" in by_metric["lpips"]["Definition"]
    assert '"b, then a"' in table_text(table, ",")


def test_chart_has_a_line_for_each_series_and_knows_its_slices():
    chart = rmse_chart({"protected": [1.0, 2.5, 0.5], "attacked": [0.0, 9.0, 0.0]}, "change")
    assert chart.GetNumberOfPlotSeriesNodes() == 2
    series = chart.GetNthPlotSeriesNode(1)
    table = series.GetTableNode().GetTable()
    column = table.GetColumnByName(series.GetYColumnName())
    assert [column.GetValue(row) for row in range(3)] == [0.0, 9.0, 0.0]
    assert slice_of_point(series, 1) == 1
    _lowest, highest = chart.GetYAxisRange()
    assert not chart.GetYAxisRangeAuto()
    assert highest > 9 * 1.3, "the legend does not hide the peak"


@pytest.mark.parametrize(("has_attack", "is_blinded"), [(False, False), (True, False), (True, True)])
def test_the_figures_shown_are_few_and_plain(has_attack, is_blinded):
    from MITSGANLib.judges.jury import Judgment, Seen
    from MITSGANLib.measure.attack_effect import (
        CLEAN,
        INTO_ORIGINAL,
        NOISE,
        PROTECTED,
        AttackEffect,
        Effect,
        ForgeryEffect,
    )
    from MITSGANLib.measure.metrics import compare
    from MITSGANLib.scan.windows import LUNG

    first = np.full((3, 16, 16), -700, np.int16)
    protection, attack = (compare(first, first + np.int16(change), windows=(LUNG,)) for change in (2, 200))
    forgery = ForgeryEffect(attack, {PROTECTED: protection}, (protection,))
    seen = Seen(0.9, 0.1)
    yes, no = (Judgment("remove", seen, seen, True, achieved, True, False) for achieved in (True, False))
    effect = AttackEffect(
        (1, 8, 8), "remove", None, (), forgery,
        watermark=Place((1, 8, 8), 15.0, 2.0, 10.0, 4.0),
        verdicts={CLEAN: (yes,), PROTECTED: (no,), INTO_ORIGINAL: (yes if is_blinded else no,), NOISE: (yes, no)},
    )  # fmt: skip
    table = figures_table(Effect(protection, {}, 8.0, effect if has_attack else None), "figures")
    rows = [line.split("\t") for line in table_text(table).splitlines()]
    assert rows[0] == list(FIGURE_COLUMNS)
    assert 1 < len(rows) <= 10
    assert rows[1][:2] == ["Protection changed the scan by", "2.0 HU"]
    assert "0.25 of the scan's noise" in rows[1][2]
    assert (["Protection moved the forgery by", "1.0%"] in [row[:2] for row in rows]) == has_attack
    outcome = [row for row in rows if row[:2] == ["On the protected scan the attack", "fails"]]
    assert len(outcome) == has_attack
    assert all("it succeeds, with noise 1 of 2 times" in row[2] for row in outcome)
    misled = [row for row in rows if "misleads the judges" in row[2]]
    assert len(misled) == is_blinded
    assert not any("_" in cell for row in rows for cell in row), "no names of variables"


def test_layout_is_understood_by_the_layout_logic(scene):
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    logic = slicer.vtkMRMLLayoutLogic()
    logic.SetMRMLScene(scene)
    layout = register_layout()
    assert layout.IsLayoutDescription(COMPARISON_LAYOUT)
    layout.SetViewArrangement(COMPARISON_LAYOUT)
    for view in VIEWS.values():
        node = scene.GetSingletonNode(view.tag, "vtkMRMLSliceNode")
        assert node.GetOrientation() == "Axial"
        assert node.GetViewGroup() != 0
    attacked = scene.GetSingletonNode(VIEWS["source attacked"].tag, "vtkMRMLSliceNode")
    assert attacked.GetLayoutLabel() == "OA"
    np.testing.assert_allclose(attacked.GetLayoutColor(), SIMULATED_ATTACK_COLOR, atol=1 / 255)
    assert plot_view_node() is not None
    assert scene.GetSingletonNode("MITSGANTable", "vtkMRMLTableViewNode") is not None


def test_source_and_results_know_each_other():
    source = make_node()
    result = node_from_volume(with_steps(step(PROTECTION)), "CT protected", source)
    assert source_of(result) is source
    assert results_of(source) == [result]
    assert first_scan() is source
    attacked = node_from_volume(with_steps(step(SIMULATED_ATTACK)), "CT", source)
    assert is_simulated_attack(attacked)
    assert not is_simulated_attack(result)
    assert attacked.GetDisplayNode().GetColor() == SIMULATED_ATTACK_COLOR


# Errors without paths


@given(
    st.lists(
        st.sampled_from(["DOE^JANE", "doe", "1.2.3", "CT (1)", "scan[2]", "a b", "x.nrrd"]), min_size=1, max_size=4
    ),
    st.sampled_from(["", "IM1", "sub/IM1.dcm"]),
)
@settings(max_examples=40, deadline=None)
def test_no_part_of_a_chosen_path_is_left_in_errors(parts, inner):
    folder = Path("/data/chosen").joinpath(*parts)
    with pytest.raises(InputError) as raised, paths_kept_from_log({folder: "THE SCAN"}):
        raise InputError("holds no seal", path=folder / inner, hint="get it again")
    said = str(raised.value)
    assert said == ("a file of THE SCAN" if inner else "THE SCAN") + " holds no seal; get it again."
    assert raised.value.__suppress_context__, "nor in the trace"


@pytest.mark.parametrize("error", [InputError, OutputError, ModelError, CancelledError])
def test_errors_keep_their_kind_without_paths(tmp_path, error):
    with pytest.raises(error), paths_kept_from_log({tmp_path: "it"}):
        raise error(f"{tmp_path} is wrong")


def test_errors_of_the_system_become_ours_without_paths(tmp_path):
    with pytest.raises(OutputError, match="the chosen place") as raised, path_kept_from_log(tmp_path / "x"):
        (tmp_path / "x").read_text()
    assert str(tmp_path) not in str(raised.value)


# The map of changes


def test_a_map_of_changes_lies_where_its_scan_does(volume):
    from MITSGANLib.slicer_bridge.change_map import change_map_node, signature_legend

    labels = volume.with_hu((volume.hu % 4).astype(np.int16))
    scan = node_from_volume(volume, "CT")
    put_under_transforms(scan, matrix(rotation((0, 0, 1), 20), (1, 2, 3)))
    node = change_map_node(labels, scan, signature_legend())
    assert node.GetClassName() == "vtkMRMLLabelMapVolumeNode"
    assert node.GetTransformNodeID() == scan.GetTransformNodeID()
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), labels.hu)
    ours, theirs = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(ours)
    scan.GetIJKToRASMatrix(theirs)
    np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(ours), slicer.util.arrayFromVTKMatrix(theirs), atol=1e-9)
    colors = node.GetDisplayNode().GetColorNode().GetLookupTable()
    for value, (_words, rgba) in signature_legend().labels.items():
        np.testing.assert_allclose(colors.GetTableValue(value), rgba, atol=0.01)
    assert first_scan() is scan
