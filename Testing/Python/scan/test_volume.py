"""``CTVolume``: checks at construction, and the map between voxels and LPS mm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from MITSGANLib.errors import InputError
from MITSGANLib.scan.volume import (
    PROTECTION,
    SIMULATED_ATTACK,
    CTVolume,
    ProcessingStep,
    Provenance,
    hu_from_float,
    lps_from_ras,
)
from scipy.spatial.transform import Rotation


def volume(**options: object) -> CTVolume:
    return CTVolume(np.zeros((3, 4, 5), dtype=np.int16), **options)


@pytest.mark.parametrize(
    "hu",
    [
        np.zeros((3, 4), dtype=np.int16),
        np.zeros((3, 4, 5), dtype=np.float32),
        np.zeros((3, 0, 5), dtype=np.int16),
    ],
    ids=["two-dimensional", "float", "empty"],
)
def test_arrays_that_are_no_volume_are_refused(hu):
    with pytest.raises(InputError, match="3-D int16"):
        CTVolume(hu)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing"),
        ({"spacing": (1.0, np.nan, 1.0)}, "spacing"),
        ({"origin": (0.0, np.inf, 0.0)}, "origin"),
        ({"direction": np.zeros((3, 3))}, "direction"),
        ({"direction": np.full((3, 3), np.nan)}, "direction"),
    ],
)
def test_geometry_that_cannot_be_true_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        volume(**options)


def test_voxels_and_direction_are_read_only():
    scan = volume()
    with pytest.raises(ValueError, match="read-only"):
        scan.hu[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        scan.direction[0, 0] = 1


@given(
    rotation=st.tuples(*[st.floats(-180, 180)] * 3),
    mirrored=st.booleans(),
    spacing=st.tuples(*[st.floats(0.2, 6)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    kji=st.tuples(*[st.floats(-10, 500)] * 3),
)
def test_voxel_to_lps_and_back(rotation, mirrored, spacing, origin, kji):
    direction = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix()
    if mirrored:
        direction[:, 2] *= -1
    scan = volume(spacing=spacing, origin=origin, direction=direction)
    np.testing.assert_allclose(scan.lps_to_voxel(scan.voxel_to_lps(kji)), kji, atol=1e-6)


def test_axes_of_voxel_to_lps():
    scan = volume(spacing=(0.5, 2.0, 3.0), origin=(10.0, 20.0, 30.0))
    np.testing.assert_allclose(scan.voxel_to_lps((1, 0, 0)), (10, 20, 33))
    np.testing.assert_allclose(scan.voxel_to_lps((0, 1, 0)), (10, 22, 30))
    np.testing.assert_allclose(scan.voxel_to_lps((0, 0, 1)), (10.5, 20, 30))
    assert scan.spacing_kji == (3.0, 2.0, 0.5)


def test_nearest_voxel_and_contains():
    scan = volume(spacing=(0.5, 2.0, 3.0))
    assert scan.nearest_voxel((0.3, 2.9, 4.6)) == (2, 1, 1)
    assert scan.contains((2, 3, 4))
    assert not scan.contains((3, 0, 0))
    assert not scan.contains((0, -1, 0))


def test_with_hu_keeps_geometry_and_adds_the_step():
    scan = volume(spacing=(0.5, 2.0, 3.0))
    step = ProcessingStep(SIMULATED_ATTACK, "inject")
    attacked = scan.with_hu(scan.hu + np.int16(1), step)
    assert attacked.same_geometry(scan)
    assert attacked.provenance.steps == (step,)
    assert attacked.provenance.is_simulated_attack
    assert not scan.provenance.is_simulated_attack
    with pytest.raises(InputError, match="shape"):
        scan.with_hu(scan.hu[:2])


def test_the_last_step_of_a_kind_is_found():
    provenance = Provenance()
    for kind, words in ((PROTECTION, "first"), (PROTECTION, "second"), ("noise-control", "third")):
        provenance = provenance.with_step(ProcessingStep(kind, words))
    assert provenance.last(PROTECTION).description == "second"
    assert provenance.last(SIMULATED_ATTACK) is None


def test_protection_after_an_attack_is_still_an_attack():
    provenance = Provenance().with_step(ProcessingStep(SIMULATED_ATTACK, "inject"))
    assert provenance.with_step(ProcessingStep(PROTECTION, "protect")).is_simulated_attack


def test_same_geometry_looks_at_every_corner():
    scan = volume()
    assert scan.same_geometry(volume(origin=(0.0, 0.0, 1e-4)))
    assert not scan.same_geometry(volume(origin=(0.0, 0.0, 0.1)))
    assert not scan.same_geometry(volume(spacing=(1.0, 1.0, 1.01)))
    assert not scan.same_geometry(CTVolume(np.zeros((3, 4, 6), dtype=np.int16)))


def test_lps_from_ras_is_its_own_inverse():
    np.testing.assert_array_equal(lps_from_ras((1, 2, 3)), (-1, -2, 3))
    np.testing.assert_array_equal(lps_from_ras(lps_from_ras((1, 2, 3))), (1, 2, 3))


def test_hu_from_float_rounds_clips_and_refuses_nan():
    np.testing.assert_array_equal(hu_from_float(np.array([-1.6, 2.4, 1e6])), [-2, 2, 32767])
    with pytest.raises(InputError, match="NaN"):
        hu_from_float(np.array([0.0, np.nan]))
