"""The two ways in which a NIfTI file says where it lies: read only where they agree, and kept in a copy."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_factory import phantom_hu
from hypothesis import given
from hypothesis import strategies as st
from MITSGANLib.errors import InputError
from MITSGANLib.files.nifti import NiftiForms, holds_voxels, read_forms
from MITSGANLib.files.volume_files import read_file, read_file_header, write_file
from MITSGANLib.keys.key_files import generate_key
from MITSGANLib.scan.volume import PROTECTION, CTVolume, ProcessingStep
from MITSGANLib.seal.sealing import restore, save_sealed
from scipy.spatial.transform import Rotation

SPACING = (0.7, 0.8, 2.5)
OFFSET = (40.0, 35.0, -100.0)
STRAIGHT = np.column_stack([np.diag([-0.7, -0.8, 2.5]), OFFSET])
TURN = (0.0, 0.0, 1.0)  # half a turn about z: x and y of the patient's right and front


def write_nifti(
    path: Path,
    *,
    sform: np.ndarray = STRAIGHT,
    quaternion: tuple[float, ...] = TURN,
    offset: tuple[float, ...] = OFFSET,
    pixdim: tuple[float, ...] = SPACING,
    qfac: float = 1.0,
    codes: tuple[int, int] = (1, 1),
    unit: int = 2,
    order: str = "<",
) -> Path:
    """NIfTI byte by byte."""
    hu = phantom_hu()
    shape = (3, *hu.shape[::-1], 1, 1, 1, 1)
    head = bytearray(352)
    struct.pack_into(f"{order}i", head, 0, 348)
    struct.pack_into(f"{order}8h", head, 40, *shape)
    struct.pack_into(f"{order}2h", head, 70, 4, 16)
    struct.pack_into(f"{order}8f", head, 76, qfac, *pixdim, 1, 0, 0, 0)
    struct.pack_into(f"{order}3f", head, 108, 352, 1.0, 0.0)
    head[123] = unit
    struct.pack_into(f"{order}2h6f12f", head, 252, *codes, *quaternion, *offset, *sform.ravel())
    head[344:348] = b"n+1\0"
    content = bytes(head) + hu.astype(f"{order}i2").tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def sheared(lean: float) -> np.ndarray:
    """The straight sform with slices that lean by ``lean`` mm from one to the next."""
    matrix = STRAIGHT.copy()
    matrix[1, 2] = lean
    return matrix


def moved(millimetres: float) -> np.ndarray:
    matrix = STRAIGHT.copy()
    matrix[0, 3] += millimetres
    return matrix


def slanted(lean: float) -> tuple[float, float, float]:
    return (0.7, 0.8, math.hypot(2.5, lean))


REFUSED = {
    "sheared sform beside a straight qform": ({"sform": sheared(0.8), "pixdim": slanted(0.8)}, "slanted axes"),
    "sheared sform alone": ({"sform": sheared(0.8), "pixdim": slanted(0.8), "codes": (0, 1)}, "slanted axes"),
    "slightly sheared sform": ({"sform": sheared(0.05), "pixdim": slanted(0.05)}, "slanted axes"),
    "another place": ({"sform": moved(0.5)}, "two ways"),
    "another turn": ({"quaternion": (0.0, 0.0, 0.0)}, "two ways"),
    "the other hand": ({"qfac": -1.0}, "two ways"),
    "another spacing": ({"pixdim": (0.7, 0.8, 3.0)}, "two ways"),
    "another spacing, sform alone": ({"pixdim": (0.7, 0.8, 3.0), "codes": (0, 1)}, "its sform and its voxel size"),
    "an sform of nothing": ({"sform": np.zeros((3, 4))}, "slanted axes|two ways"),
    "an sform that is no number": ({"sform": STRAIGHT * math.nan}, "slanted axes|two ways|damaged"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_files_that_contradict_themselves_are_refused(tmp_path, name, options, message):
    path = write_nifti(tmp_path / name, **options)
    for read in (read_file_header, read_file):
        with pytest.raises(InputError, match=message):
            read(path)


TAKEN = {
    "both": {},
    "both with other codes": {"codes": (1, 4)},
    "qform alone": {"codes": (1, 0), "sform": np.zeros((3, 4))},
    "sform alone": {"codes": (0, 2), "quaternion": (0.5, 0.1, 0.2), "offset": (1.0, 2.0, 3.0)},
    "neither": {"codes": (0, 0)},
    "rounded": {"sform": moved(0.01)},
    "big-endian": {"order": ">"},
}


@pytest.mark.parametrize("options", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("name", ["copy.nii", "COPY.NII.GZ"])
def test_a_copy_says_what_its_source_says(tmp_path, name, options):
    path = write_nifti(tmp_path / "scan.nii", **options)
    volume = read_file(path)
    write_file(volume.with_hu(volume.hu, ProcessingStep(PROTECTION, "protect")), tmp_path / name)
    copy = read_file(tmp_path / name)
    assert read_forms(tmp_path / name) == read_forms(path)
    assert copy.same_geometry(volume)
    assert [warning.name for warning in copy.provenance.warnings] == [
        warning.name for warning in volume.provenance.warnings
    ]
    np.testing.assert_array_equal(copy.hu, volume.hu)


def test_the_second_version_is_named(tmp_path):
    """ITK does not read it."""
    for order in "<>":
        (tmp_path / "scan.nii").write_bytes(struct.pack(f"{order}i", 540) + bytes(2000))
        with pytest.raises(InputError, match="NIfTI of the second version"):
            read_file(tmp_path / "scan.nii")


@pytest.mark.parametrize(("unit", "millimetres"), [(1, 1000.0), (3, 0.001)])
def test_other_units_become_millimetres_in_the_copy(tmp_path, unit, millimetres):
    scale = {"pixdim": np.divide(SPACING, millimetres), "sform": STRAIGHT / millimetres}
    path = write_nifti(tmp_path / "scan.nii", unit=unit, offset=np.divide(OFFSET, millimetres), **scale)
    volume = read_file(path)
    assert volume.spacing == pytest.approx(SPACING, rel=1e-5)
    write_file(volume, tmp_path / "copy.nii")
    assert read_file(tmp_path / "copy.nii").same_geometry(volume, 1e-2)


def test_a_volume_that_lies_elsewhere_than_its_source_says_so(tmp_path):
    volume = read_file(write_nifti(tmp_path / "scan.nii"))
    origin = tuple(volume.voxel_to_lps((1, 0, 0)))
    cropped = CTVolume(volume.hu[1:], volume.spacing, origin, volume.direction, volume.provenance)
    write_file(cropped, tmp_path / "cropped.nii")
    assert read_file(tmp_path / "cropped.nii").same_geometry(cropped, 1e-2)


@pytest.mark.parametrize("options", TAKEN.values(), ids=TAKEN)
def test_a_restored_file_says_what_the_original_said(tmp_path, options):
    path = write_nifti(tmp_path / "scan.nii.gz", **options)
    volume = read_file(path)
    protected = volume.with_hu(volume.hu + np.int16(1), ProcessingStep(PROTECTION, "protect"))
    key = generate_key()
    save_sealed(protected, volume, tmp_path / "sealed.nii.gz", key)
    restore(tmp_path / "sealed.nii.gz", tmp_path / "restored.nii.gz", key)
    assert read_forms(tmp_path / "restored.nii.gz") == read_forms(path)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
@pytest.mark.parametrize("lean", [0.05, 0.8])
def test_sheared_grids_of_other_formats_are_refused(tmp_path, name, lean):
    image = sitk.GetImageFromArray(phantom_hu())
    lengths = math.hypot(1.0, lean)
    image.SetDirection([1, 0, 0, 0, 1, lean / lengths, 0, 0, 1 / lengths])
    sitk.WriteImage(image, tmp_path / name)
    with pytest.raises(InputError, match="slanted axes"):
        read_file_header(tmp_path / name)


@pytest.mark.slow
@given(rotation=st.tuples(*[st.floats(-180, 180)] * 3), left_handed=st.booleans())
def test_quaternions_are_understood_as_itk_does(tmp_path_factory, rotation, left_handed):
    direction = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix()
    if left_handed:
        direction[:, 2] *= -1
    image = sitk.GetImageFromArray(phantom_hu())
    image.SetSpacing(SPACING)
    image.SetDirection(direction.ravel().tolist())
    path = tmp_path_factory.mktemp("quaternion") / "scan.nii"
    sitk.WriteImage(image, path)
    found = read_forms(path).matrices()
    assert found["qform"] == pytest.approx(found["sform"], abs=2e-3)
    assert read_file_header(path).spacing == pytest.approx(SPACING)


def test_forms_as_text_are_exact():
    forms = NiftiForms(1, 2, (1.0, 0.1, 0.2, 0.3), (math.nan, 0, 0, 1, 2, 3), tuple(range(12)))
    again = NiftiForms.from_text(forms.to_text())
    assert (again.qform_code, again.scale, again.srow) == (1, forms.scale, tuple(map(float, range(12))))
    assert math.isnan(again.quaternion[0])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_voxels_are_compared_as_they_are_stored(tmp_path, name, order):
    path = write_nifti(tmp_path / name, order=order)
    hu = phantom_hu()
    assert holds_voxels(path, hu)
    other = hu.copy()
    other[-1, -1, -1] += 1
    assert not holds_voxels(path, other)
    assert not holds_voxels(path, hu[1:])
    assert not holds_voxels(path, hu.astype(np.int32))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert not holds_voxels(path, hu)
    path.write_bytes(whole)
    sitk.WriteImage(sitk.GetImageFromArray(hu.astype(np.float32)), path)
    assert not holds_voxels(path, hu)


def test_scaled_values_are_not_those_stored(tmp_path):
    path = write_nifti(tmp_path / "scan.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, 1.0, -1024.0)
    path.write_bytes(content)
    assert not holds_voxels(path, phantom_hu())
