"""NRRD, NIfTI and MetaImage: exact round trips, refusals, and marks that survive in the header."""

from __future__ import annotations

import gzip
import json
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_factory import phantom_hu
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import CancelledError, InputError, OutputError
from MITSGANLib.files import volume_files
from MITSGANLib.files.nifti import check_nifti
from MITSGANLib.files.volume_files import SUFFIXES, read_file, read_file_header, write_file
from MITSGANLib.scan.volume import PROTECTION, SIMULATED_ATTACK, CTVolume, ProcessingStep, Provenance
from scipy.spatial.transform import Rotation

ATTACK = ProcessingStep(SIMULATED_ATTACK, "CT-GAN inject", {"center": [1, 2, 3]}, time="2026-01-01T00:00:00+00:00")
PROTECT = ProcessingStep(
    PROTECTION, "MITS-GAN \u00b5", {"strength": np.float32(0.5), "seed": 7}, time="2026-01-01T00:00:00+00:00"
)


def phantom(**options: object) -> CTVolume:
    return CTVolume(phantom_hu(), **options)


def warning_names(volume: CTVolume) -> set[str]:
    return {warning.name for warning in volume.provenance.warnings}


def save_image(path: Path, array: np.ndarray, **options: object) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, **options), path)
    return path


@settings(deadline=None, max_examples=25)
@given(
    suffix=st.sampled_from(SUFFIXES),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 6)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    rotation=st.tuples(*[st.floats(-180, 180)] * 3),
    left_handed=st.booleans(),
    data=st.data(),
)
def test_round_trip_is_exact(suffix, shape, spacing, origin, rotation, left_handed, data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    hu = np.random.default_rng(seed).integers(-32768, 32767, shape, endpoint=True, dtype=np.int16)
    hu[0, 0, 0] = -1000  # so that the values may be HU
    direction = Rotation.from_euler("xyz", rotation, degrees=True).as_matrix()
    if left_handed:
        direction[:, 0] *= -1
    volume = CTVolume(hu, spacing, origin, direction)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{suffix}"
        write_file(volume, path)
        again = read_file(path)
    np.testing.assert_array_equal(again.hu, hu)
    # NIfTI stores geometry in 32-bit floating point.
    assert again.same_geometry(volume, 2e-3 if ".nii" in suffix else 1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_provenance_names_the_format(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    write_file(phantom(), path)
    provenance = read_file(path).provenance
    assert provenance.format == volume_files.format_of(path).name
    assert provenance.source == str(path)
    assert provenance.warnings == ()


def test_suffix_case_does_not_matter(tmp_path):
    for suffix in SUFFIXES:
        path = tmp_path / f"SCAN{suffix.upper()}"
        write_file(phantom(), path)
        np.testing.assert_array_equal(read_file(path).hu, phantom_hu())


def test_header_gives_shape_and_geometry(tmp_path):
    volume = phantom(spacing=(0.5, 0.6, 7.0), origin=(1.0, 2.0, 3.0))
    write_file(volume, tmp_path / "scan.nrrd")
    header = read_file_header(tmp_path / "scan.nrrd")
    assert (header.shape, header.spacing, header.origin) == (volume.shape, volume.spacing, volume.origin)
    assert [warning.name for warning in header.warnings] == ["thick-slices"]


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_steps_and_padding_survive(tmp_path, suffix):
    provenance = Provenance(padding_hu=-2000, steps=(PROTECT, ATTACK))
    write_file(phantom(provenance=provenance), tmp_path / f"scan{suffix}")
    again = read_file(tmp_path / f"scan{suffix}").provenance
    assert again.padding_hu == -2000
    assert again.steps[1] == ATTACK
    assert again.steps[0].description == PROTECT.description
    assert dict(again.steps[0].parameters) == {"strength": 0.5, "seed": 7}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("steps", [(ATTACK,), (PROTECT, ATTACK), (ATTACK, PROTECT)])
def test_simulated_attack_is_known_for_ever(tmp_path, suffix, steps):
    path = tmp_path / f"scan{suffix}"
    write_file(phantom(provenance=Provenance(steps=steps)), path)
    # Raw bytes, so that a reader other than ITK would see it too.
    content = path.read_bytes()
    assert b"SIMULATED ATTACK" in (gzip.decompress(content) if suffix == ".nii.gz" else content)
    again = read_file(path)
    assert again.provenance.is_simulated_attack
    second = tmp_path / "second.nii"
    write_file(again, second)
    assert read_file(second).provenance.is_simulated_attack


def test_nifti_descrip_field_holds_the_mark(tmp_path):
    long_step = ProcessingStep(PROTECTION, "model " * 40)
    write_file(phantom(provenance=Provenance(steps=(long_step,))), tmp_path / "scan.nii")
    (descrip,) = struct.unpack_from("80s", (tmp_path / "scan.nii").read_bytes(), 148)
    assert descrip.rstrip(b"\0").startswith(b"Protected by MITSGAN")
    assert [step.kind for step in read_file(tmp_path / "scan.nii").provenance.steps] == [PROTECTION]


@pytest.mark.parametrize(
    "steps",
    [
        "[{",
        "[" * 100_000,
        "7",
        '[{"kind": "protection"}]',
        '[{"kind": 1, "description": "", "parameters": {}}]',
        '[{"kind": "protection", "description": 2, "parameters": {}}]',
        '[{"kind": "protection", "description": "", "parameters": [3]}]',
    ],
)
def test_unreadable_history_is_a_warning_but_the_notice_counts(tmp_path, steps):
    image = sitk.GetImageFromArray(phantom_hu())
    image.SetMetaData(volume_files.STEPS_FIELD, steps)
    image.SetMetaData(volume_files.NOTICE_FIELD, "SIMULATED ATTACK by MITSGAN")
    sitk.WriteImage(image, tmp_path / "scan.nrrd")
    volume = read_file(tmp_path / "scan.nrrd")
    assert "unreadable-history" in warning_names(volume)
    assert volume.provenance.is_simulated_attack


@pytest.mark.parametrize("text", ["", "--5", "\u00b2", "9" * 5000, "40000", "soft"])
def test_padding_that_is_no_hu_counts_as_none(tmp_path, text):
    image = sitk.GetImageFromArray(phantom_hu())
    image.SetMetaData(volume_files.PADDING_FIELD, text)
    sitk.WriteImage(image, tmp_path / "scan.nrrd")
    assert read_file(tmp_path / "scan.nrrd").provenance.padding_hu is None


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_headers_that_are_no_utf8(tmp_path, suffix):
    """As Latin-1, which older programs write; entries whose names are none are left out."""
    path = tmp_path / f"scan{suffix}"
    image = sitk.GetImageFromArray(phantom_hu())
    image.SetMetaData("note", "Ruecken")
    image.SetMetaData("noteX", "other")
    sitk.WriteImage(image, path, useCompression=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Ruecken", b"R\xfccken").replace(b"noteX", b"not\xe9X"))
    metadata = volume_files.read_file_header(path).metadata
    assert metadata["note"] == "R\xfccken"
    assert "other" not in metadata.values()
    assert (read_file(path).hu == phantom_hu()).all()


def test_steps_field_is_json(tmp_path):
    write_file(phantom(provenance=Provenance(steps=(ATTACK,))), tmp_path / "scan.nrrd")
    image = sitk.ReadImage(tmp_path / "scan.nrrd")
    assert json.loads(image.GetMetaData("MITSGAN_steps"))[0]["kind"] == "simulated-attack"


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_other_number_types_are_read_exactly(tmp_path, dtype):
    hu = phantom_hu() if dtype != np.uint16 else phantom_hu().clip(0)
    hu = hu.astype(dtype)
    path = save_image(tmp_path / "scan.nrrd", hu)
    if dtype == np.uint16:
        with pytest.raises(InputError, match="not Hounsfield units"):
            read_file(path)
        return
    volume = read_file(path)
    np.testing.assert_array_equal(volume.hu, hu)
    assert "rounded-to-integer" not in warning_names(volume)


def test_fractions_are_rounded_with_a_warning(tmp_path):
    volume = read_file(save_image(tmp_path / "scan.nrrd", phantom_hu() + np.float32(0.3)))
    np.testing.assert_array_equal(volume.hu, phantom_hu())
    assert "rounded-to-integer" in warning_names(volume)


def test_values_beyond_int16_are_clipped_with_a_warning(tmp_path):
    hu = phantom_hu().astype(np.int32)
    hu[0, 0, 0], hu[0, 0, 1] = -100_000, 100_000
    volume = read_file(save_image(tmp_path / "scan.nrrd", hu))
    assert volume.hu[0, 0, :2].tolist() == [-32768, 32767]
    assert "clipped-to-int16" in warning_names(volume)


def test_padding_below_air_is_kept(tmp_path):
    hu = phantom_hu()
    hu[:, 0, :] = -3024
    volume = read_file(save_image(tmp_path / "scan.nrrd", hu))
    np.testing.assert_array_equal(volume.hu, hu)
    assert "values-below-air" in warning_names(volume)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused(tmp_path, suffix, dtype, bad):
    hu = phantom_hu().astype(dtype)
    hu[1, 2, 3] = bad
    # ITK replaces NaN in NIfTI by 0 HU without a word.
    with pytest.raises(InputError, match="NaN or infinite"):
        read_file(save_image(tmp_path / f"scan{suffix}", hu))


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.full((3, 4, 5), 7, np.uint8), {}, "8-bit"),
        (phantom_hu()[0], {}, "2 dimensions"),
        (np.stack([phantom_hu()] * 2), {"isVector": False}, "4 dimensions"),
        (np.stack([phantom_hu()] * 3, axis=-1), {"isVector": True}, "3 values a voxel"),
        (phantom_hu() + 1024, {}, "not Hounsfield units"),
        (phantom_hu() / np.float32(1024), {}, "normalized"),
    ],
    ids=["8-bit", "2-D", "4-D", "vector", "stored-values", "normalized"],
)
def test_files_that_are_no_ct_in_hu_are_refused(tmp_path, array, options, message):
    array = array.astype(np.int16) if array.dtype == np.int64 else array
    with pytest.raises(InputError, match=message):
        read_file(save_image(tmp_path / "scan.nrrd", array, **options))


@pytest.mark.parametrize(
    ("hu", "name"),
    [
        (np.full((5, 12, 10), -1000, np.int16), "no-tissue"),
        (np.clip(phantom_hu(), -100, None), "no-air"),
        (np.where(phantom_hu() > -200, 5000, phantom_hu()).astype(np.int16), "values-above-range"),
        (np.where(phantom_hu() < -980, 40, phantom_hu()).astype(np.int16), "truncated-field-of-view"),
        (phantom_hu()[:1], "single-slice"),
    ],
)
def test_odd_but_usable_files_give_warnings(tmp_path, hu, name):
    assert name in warning_names(read_file(save_image(tmp_path / "scan.nrrd", hu)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compressed", [True, False])
def test_cut_off_files_are_refused_by_name(tmp_path, suffix, compressed):
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(phantom_hu()), path, compressed)
    (voxels,) = {file for file in tmp_path.iterdir() if file != path} or {path}
    voxels.write_bytes(voxels.read_bytes()[:-150])
    # ITK fills the missing end of a NIfTI file with 0 HU without a word.
    with pytest.raises(InputError, match=f"scan{suffix} is damaged"):
        read_file(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_other_content_is_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(b"no image at all")
    with pytest.raises(InputError, match=f"scan{suffix} is damaged"):
        read_file(path)


def test_corrupt_gzip_is_refused(tmp_path):
    path = tmp_path / "scan.nii.gz"
    write_file(phantom(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_file(path)


def test_big_endian_nifti_is_checked(tmp_path):
    hu = phantom_hu().astype(">f4")
    hu[0, 0, 0] = np.nan
    header = bytearray(352)
    struct.pack_into(">i", header, 0, 348)
    struct.pack_into(">8h", header, 40, 3, *hu.shape[::-1], 1, 1, 1, 1)
    struct.pack_into(">2h", header, 70, 16, 32)
    struct.pack_into(">f", header, 108, 352)
    path = tmp_path / "scan.nii"
    path.write_bytes(bytes(header) + hu.tobytes())
    with pytest.raises(InputError, match="NaN or infinite"):
        check_nifti(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        check_nifti(path)


def test_sheared_nifti_is_refused_with_advice(tmp_path):
    path = tmp_path / "scan.nii"
    write_file(phantom(), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<h", content, 252, 0)  # qform_code: unknown, so that the sform counts
    struct.pack_into("<4f", content, 280, -1.0, 0.0, 0.4, 0.0)  # srow_x: the slices lean to the side
    path.write_bytes(content)
    with pytest.raises(InputError, match="slanted axes"):
        read_file(path)


def test_missing_orientation_is_a_warning(tmp_path):
    path = tmp_path / "scan.nii"
    write_file(phantom(), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<hh", content, 252, 0, 0)  # qform_code and sform_code: unknown
    path.write_bytes(content)
    assert "no-orientation" in warning_names(read_file(path))


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_file(tmp_path / "scan.nrrd")


def test_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"\.nrrd"):
        write_file(phantom(), tmp_path / "scan.png")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_existing_files_are_kept(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    write_file(phantom(), path)
    other = CTVolume(phantom_hu(seed=1))
    with pytest.raises(OutputError, match="already exists"):
        write_file(other, path)
    np.testing.assert_array_equal(read_file(path).hu, phantom_hu())
    write_file(other, path, overwrite=True)
    np.testing.assert_array_equal(read_file(path).hu, other.hu)


def test_the_source_is_never_overwritten(tmp_path):
    write_file(phantom(), tmp_path / "scan.nrrd")
    volume = read_file(tmp_path / "scan.nrrd")
    (tmp_path / "link.nrrd").symlink_to(tmp_path / "scan.nrrd")
    for name in ("scan.nrrd", "link.nrrd"):
        with pytest.raises(OutputError, match="source itself"):
            write_file(volume, tmp_path / name, overwrite=True)


def test_progress_reports_and_cancels(tmp_path):
    calls = []
    write_file(phantom(), tmp_path / "scan.nrrd", progress=lambda *call: calls.append(call))
    read_file(tmp_path / "scan.nrrd", progress=lambda *call: calls.append(call))
    assert calls == [(0, 1), (1, 1)] * 2

    def cancel_at_the_end(done: int, total: int) -> None:
        if done == total:
            raise CancelledError("stop")

    with pytest.raises(CancelledError):
        write_file(phantom(), tmp_path / "other.nrrd", progress=cancel_at_the_end)
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nrrd"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="file size limits are POSIX")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_disk_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    write_file(phantom(), path)
    # ITK writes cut-off NIfTI files without an error, so this needs a limit of the operating system, in a process of
    # its own.
    script = (
        "import resource, signal, sys\n"
        "import numpy as np\n"
        "from MITSGANLib.errors import OutputError\n"
        "from MITSGANLib.files.volume_files import write_file\n"
        "from MITSGANLib.scan.volume import CTVolume\n"
        "hu = np.random.default_rng(0).integers(-1000, 1000, (20, 64, 64)).astype(np.int16)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    write_file(CTVolume(hu), sys.argv[1], overwrite=True)\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "free space" in result.stdout
    np.testing.assert_array_equal(read_file(path).hu, phantom_hu())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_real_nrrd_is_read_exactly(real_ct):
    path = real_ct / "nrrd" / "LIDC-IDRI-0293-lungs.nrrd"
    volume = read_file(path)
    image = sitk.ReadImage(path)
    np.testing.assert_array_equal(volume.hu, sitk.GetArrayFromImage(image))
    assert volume.spacing == image.GetSpacing()
    assert volume.origin == image.GetOrigin()
    assert "values-below-air" in warning_names(volume)


def test_real_segmentation_is_refused(real_ct):
    with pytest.raises(InputError, match="8-bit"):
        read_file(real_ct / "nrrd" / "LIDC-IDRI-0002-noduleVotes.seg.nrrd")
