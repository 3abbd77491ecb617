"""Slice order and geometry from positions, and stacks that are no regular grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_factory import AXIAL, CTSeries, ct_series, phantom_hu
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import InputError
from MITSGANLib.files.dicom.frames import Frame
from MITSGANLib.files.dicom.geometry import stack_frames
from MITSGANLib.files.storage import load_volume
from pydicom import Dataset
from scipy.spatial.transform import Rotation


def frame(position: tuple[float, float, float], number: int = 0, **options: object) -> Frame:
    values = {
        "path": Path(f"slice-{number:03d}"),
        "index": 0,
        "rows": 4,
        "columns": 5,
        "position": position,
        "orientation": AXIAL,
        "pixel_spacing": (0.8, 0.7),
        "thickness": 2.5,
        "slope": 1.0,
        "intercept": -1024.0,
        "bits": 16,
        "signed": True,
        "padding": None,
        "padding_value": None,
    }
    return Frame(**{**values, **options})


def frames_at(heights: list[float], **options: object) -> list[Frame]:
    return [frame((0.0, 0.0, height), number, **options) for number, height in enumerate(heights)]


@pytest.mark.slow
@given(
    rotation=st.tuples(*[st.floats(-180, 180)] * 3),
    order=st.permutations(range(6)),
    spacing=st.floats(0.3, 10),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
)
def test_slices_are_ordered_along_the_normal(rotation, order, spacing, origin):
    matrix = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix()
    orientation = tuple(matrix[:, :2].T.ravel().tolist())
    positions = [np.array(origin) + k * spacing * matrix[:, 2] for k in range(6)]
    stack = stack_frames([frame(tuple(positions[k]), k, orientation=orientation, thickness=None) for k in order])
    assert [one.path.name for one in stack.frames] == [f"slice-{k:03d}" for k in range(6)]
    np.testing.assert_allclose(stack.direction, matrix, atol=1e-9)
    assert np.linalg.det(stack.direction) == pytest.approx(1)
    np.testing.assert_allclose(stack.origin, positions[0])
    np.testing.assert_allclose(stack.spacing, (0.7, 0.8, spacing), rtol=1e-9)


def test_spacing_comes_from_positions_and_not_from_thickness():
    stack = stack_frames(frames_at([0, 1.25, 2.5], thickness=2.5))
    assert stack.spacing[2] == 1.25
    assert stack.warnings == ()


@pytest.mark.parametrize("heights", [[0, 2.51, 5.0, 7.49], [0, 0.63, 1.25, 1.88, 2.5]])
def test_rounded_positions_are_even(heights):
    assert stack_frames(frames_at(heights)).spacing[2] == pytest.approx(heights[-1] / (len(heights) - 1))


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ([0, 2.5, 7.5, 10, 12.5], r"1 slice is missing, such as between slice-001 and slice-002"),
        ([0, 2.5, 5, 7.5, 17.5, 20, 25], r"4 slices are missing"),
        ([0, 2.5, 5, 8.7, 11.2], "unevenly spaced"),
        ([0, 2.5, 5, 7.3, 10], "unevenly spaced"),
        ([0, 2.5, 2.5, 5], r"slice-001 and slice-002 lie at the same position"),
        ([0, 0, 2.5, 2.5, 5, 5], "repeated positions"),
    ],
)
def test_irregular_stacks_are_refused(heights, message):
    with pytest.raises(InputError, match=message):
        stack_frames(frames_at(heights))


def test_gantry_tilt_is_refused_with_its_angle_and_advice():
    lean = np.tan(np.radians(12))
    frames = [frame((0.0, 2.5 * k * lean, 2.5 * k), k) for k in range(5)]
    with pytest.raises(InputError, match=r"tilted by 12\.0 degrees.*acquisition geometry regularization"):
        stack_frames(frames)


def test_slices_shifted_sideways_are_refused():
    frames = [frame((5.0 * (k % 2), 0.0, 2.5 * k), k) for k in range(5)]
    with pytest.raises(InputError, match="shifted sideways"):
        stack_frames(frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 8}, r"different sizes \(5x4 and 5x8\)"),
        ({"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}, "different orientations"),
        ({"pixel_spacing": (0.9, 0.9)}, "different pixel spacings"),
    ],
)
def test_mixed_images_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        stack_frames([*frames_at([0, 2.5]), frame((0.0, 0.0, 5.0), 2, **options)])


def test_orientation_that_is_no_rotation_is_refused():
    with pytest.raises(InputError, match="perpendicular unit vectors"):
        stack_frames(frames_at([0, 2.5], orientation=(1.0, 0.0, 0.0, 0.5, 1.0, 0.0)))


@pytest.mark.parametrize(
    ("heights", "thickness", "names"),
    [
        ([0], 3.0, ["single-slice"]),
        ([0, 5, 10], 5.0, ["thick-slices"]),
        ([0, 2.5, 5], 1.25, ["slice-gap"]),
        ([0, 10, 20], 1.0, ["thick-slices", "slice-gap"]),
    ],
)
def test_odd_but_usable_stacks_give_warnings(heights, thickness, names):
    stack = stack_frames(frames_at(heights, thickness=thickness))
    assert [warning.name for warning in stack.warnings] == names
    if len(heights) == 1:
        assert stack.spacing[2] == thickness


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(rotation=st.tuples(*[st.floats(-180, 180)] * 3), order=st.permutations(range(5)))
def test_oblique_series_in_any_file_order(tmp_path_factory, rotation, order):
    matrix = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix()
    series = ct_series(orientation=matrix[:, :2].T.ravel().tolist(), order=order)
    folder = tmp_path_factory.mktemp("oblique")
    series.write(folder)
    volume = load_volume(folder)
    np.testing.assert_array_equal(volume.hu, phantom_hu())
    np.testing.assert_allclose(volume.direction, matrix, atol=1e-9)
    np.testing.assert_allclose(volume.origin, series.position(0), atol=1e-6)


@pytest.mark.parametrize(
    "orientation",
    [
        (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),  # prone
        (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),  # slices grow to the feet
        (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),  # coronal
        (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),  # sagittal
    ],
)
def test_other_patient_orientations_with_files_reversed(tmp_path, orientation):
    def feet_first(dataset: Dataset, _k: int) -> None:
        dataset.PatientPosition = "FFS"

    series = ct_series(orientation=orientation, order=[4, 3, 2, 1, 0], edit=feet_first)
    series.write(tmp_path)
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.hu, series.hu())
    np.testing.assert_allclose(volume.voxel_to_lps((3, 0, 0)), series.position(3))


def leave_out(series: CTSeries, folder: Path, k: int) -> None:
    series.write(folder)[k].unlink()


def test_a_missing_file_is_noticed(tmp_path):
    leave_out(ct_series(), tmp_path, 2)
    with pytest.raises(InputError, match="1 slice is missing"):
        load_volume(tmp_path)


def test_a_copied_file_is_noticed(tmp_path):
    path = ct_series().write(tmp_path)[2]
    (tmp_path / "copy").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="same position"):
        load_volume(tmp_path)
