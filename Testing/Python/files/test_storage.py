"""The one door: dispatch by folder and suffix, and listings."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from dicom_factory import ct_series, phantom_hu, write_structure_set
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.files.storage import check_output, describe, is_dicom_output, load_volume, save_volume
from MITSGANLib.files.volume_files import SUFFIXES
from MITSGANLib.scan.volume import PROTECTION, SIMULATED_ATTACK, CTVolume, ProcessingStep


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_dicom_to_file_and_back(tmp_path, suffix):
    ct_series().write(tmp_path / "source")
    volume = load_volume(tmp_path / "source").with_hu(phantom_hu(seed=1), ProcessingStep(PROTECTION, "protect"))
    assert save_volume(volume, tmp_path / f"scan{suffix}") == ()
    again = load_volume(tmp_path / f"scan{suffix}")
    np.testing.assert_array_equal(again.hu, volume.hu)
    assert again.same_geometry(volume)
    assert [step.kind for step in again.provenance.steps] == [PROTECTION]


def test_attack_stays_refused_as_dicom_after_a_file(tmp_path):
    ct_series().write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    save_volume(volume.with_hu(volume.hu, ProcessingStep(SIMULATED_ATTACK, "inject")), tmp_path / "attack.nii.gz")
    with pytest.raises(OutputError, match="simulated attack"):
        save_volume(load_volume(tmp_path / "attack.nii.gz"), tmp_path / "out")


def test_series_is_for_folders(tmp_path):
    save_volume(CTVolume(phantom_hu()), tmp_path / "scan.nrrd")
    with pytest.raises(InputError, match="no series to choose"):
        load_volume(tmp_path / "scan.nrrd", series="1.2.3")


@pytest.mark.slow
def test_a_folder_may_have_any_name(tmp_path):
    ct_series().write(tmp_path / "source.nrrd")
    volume = load_volume(tmp_path / "source.nrrd")
    names = ("1.2.840.113619.2.55", "scan.protected", "Smith.J", "study.v2", "2024.03a", "chest.CT", "plain", "a.b.c")
    for name in names:
        save_volume(volume, tmp_path / name)
        assert load_volume(tmp_path / name).shape == volume.shape
    for name in ("scan.png", "scan.dcm"):
        with pytest.raises(OutputError, match="no supported format"):
            save_volume(volume, tmp_path / name)


def test_what_counts_as_a_dicom_destination(tmp_path):
    (tmp_path / "folder.nrrd").mkdir()
    assert is_dicom_output(tmp_path / "series")
    assert is_dicom_output(tmp_path / "folder.nrrd")
    assert not any(is_dicom_output(tmp_path / f"scan{suffix}") for suffix in SUFFIXES)


@pytest.mark.parametrize("name", ["scan.nrrd", "series", "scan.png"])
def test_outputs_are_refused_before_the_work_as_they_would_be_after(tmp_path, name):
    ct_series().write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    if name != "scan.png":
        check_output(volume, tmp_path / name)
        save_volume(volume, tmp_path / name)
        check_output(volume, tmp_path / name, overwrite=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError) as early:
        check_output(volume, tmp_path / name)
    with pytest.raises(OutputError) as late:
        save_volume(volume, tmp_path / name)
    assert str(early.value) == str(late.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["nowhere", "nowhere.nrrd"])
def test_missing_inputs_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="does not exist"):
        load_volume(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        describe(tmp_path / name)


def test_listing_of_a_folder(tmp_path):
    good, bad = ct_series(description="Good"), ct_series(description="Bad", prefix="bad")
    good.write(tmp_path)
    bad.write(tmp_path)[2].unlink()
    write_structure_set(tmp_path / "plan", good.study_uid)
    (tmp_path / "cut").write_bytes((tmp_path / "slice-000").read_bytes()[:200])
    by_description = {summary.description: summary for summary in describe(tmp_path)}
    summary = by_description["Good"]
    assert (summary.series_instance_uid, summary.modality, summary.image_count) == (good.uid, "CT", 5)
    assert (summary.shape, summary.spacing, summary.kernel) == ((5, 12, 10), good.spacing, "B30f")
    assert (summary.origin, summary.direction) == (good.origin, (1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert summary.problem is None
    assert "1 slice is missing" in by_description["Bad"].problem
    assert by_description["Bad"].shape is None
    assert "RT Structure Set, not CT" in by_description[""].problem
    assert "damaged" in by_description["cut"].problem


def test_listing_of_a_file(tmp_path):
    save_volume(CTVolume(phantom_hu(), spacing=(0.7, 0.8, 6.0)), tmp_path / "scan.mha")
    (summary,) = describe(tmp_path / "scan.mha")
    assert (summary.format, summary.shape, summary.image_count) == ("metaimage", (5, 12, 10), 5)
    assert [warning.name for warning in summary.warnings] == ["thick-slices"]
    (tmp_path / "bad.nrrd").write_text("nothing")
    assert "damaged" in describe(tmp_path / "bad.nrrd")[0].problem


def test_listing_of_nothing(tmp_path):
    with pytest.raises(InputError, match="holds no DICOM"):
        describe(tmp_path)


def test_pydicom_is_not_imported_with_the_library():
    script = "import sys, MITSGANLib.files.storage; print('pydicom' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.slow
def test_real_folders_are_listed(real_ct):
    folder = real_ct / "dicom"
    summaries = describe(folder)
    assert sorted((summary.kernel, summary.image_count) for summary in summaries) == [
        ("B", 64),
        ("L", 64),
        ("STANDARD", 141),
    ]
    assert all(summary.problem is None for summary in summaries)


def test_one_dicom_file_is_a_series_of_one_slice(tmp_path):
    path = ct_series().write(tmp_path / "source")[2]
    one = path.rename(tmp_path / "IM3.dcm")
    volume = load_volume(one)
    assert volume.shape == (1, 12, 10)
    save_volume(volume, tmp_path / "out")
    assert load_volume(tmp_path / "out").shape == (1, 12, 10)
    for name in ("out.dcm", "OUT.DCM", "out.ima"):
        with pytest.raises(OutputError, match="DICOM is written as a folder of files") as caught:
            check_output(volume, tmp_path / name)
        assert caught.value.hint == "give the name of a folder"


@pytest.mark.parametrize("name", ["scan.nrrd", "series"])
def test_a_disk_that_is_too_small_is_found_before(tmp_path, monkeypatch, name):
    ct_series().write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: free)
    with pytest.raises(OutputError, match=r"needs [1-9].* (bytes|kB), and only 100 bytes are free"):
        check_output(volume, tmp_path / name)


def test_the_voxels_beside_a_header_are_not_replaced_unasked(tmp_path):
    ct_series().write(tmp_path / "source")
    volume = load_volume(tmp_path / "source")
    for name, companion in {"scan.mhd": "scan.zraw", "other.nhdr": "other.raw.gz"}.items():
        (tmp_path / companion).write_text("years of work")
        with pytest.raises(OutputError, match="already exists"):
            check_output(volume, tmp_path / name)
