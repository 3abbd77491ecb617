"""Which files are DICOM, which series they form, and which of them is meant."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import PATIENT_NAME, ct_series, phantom_hu, write_structure_set
from MITSGANLib.errors import CHOOSE_SERIES, CancelledError, InputError, OutputError
from MITSGANLib.files.dicom.series import choose_series, scan_dicom
from MITSGANLib.files.storage import check_output, describe, load_volume, save_volume
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage


def test_dicom_is_found_by_content_in_subfolders_among_stray_files(tmp_path):
    series = ct_series()
    series.write(tmp_path / "deep" / "er")
    write_structure_set(tmp_path / "plan.dcm", series.study_uid)
    (tmp_path / "notes.dcm").write_text("not DICOM although the suffix says so")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "._IM0001").write_bytes(b"\x00\x05\x16\x07" + bytes(200))
    (tmp_path / "binary").write_bytes(b"\x08\x00\x05\x00" + bytes(range(256)) * 3)
    scan = scan_dicom(tmp_path)
    assert {one.text("Modality") for one in scan.series} == {"CT", "RTSTRUCT"}
    assert not scan.damaged
    chosen = choose_series(scan)
    assert (chosen.uid, chosen.image_count, chosen.text("ConvolutionKernel")) == (series.uid, 5, "B30f")


def test_files_without_preamble_are_dicom_too(tmp_path):
    for path in ct_series().write(tmp_path):
        path.write_bytes(path.read_bytes()[132:])
    assert choose_series(scan_dicom(tmp_path)).image_count == 5


def test_several_series_are_listed(tmp_path):
    lung, soft = ct_series(description="Lung"), ct_series(description="Soft", prefix="other")
    lung.write(tmp_path)
    soft.write(tmp_path)
    scan = scan_dicom(tmp_path)
    with pytest.raises(InputError) as caught:
        choose_series(scan)
    text = str(caught.value)
    assert caught.value.hint == CHOOSE_SERIES
    for series in (lung, soft):
        assert f"{series.uid} (5 slices)" in text
        assert series.description not in text
    assert choose_series(scan, soft.uid).text("SeriesDescription") == "Soft"
    with pytest.raises(InputError, match=r"holds no series 1\.2\.3"):
        choose_series(scan, "1.2.3")


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="holds no DICOM"):
        choose_series(scan_dicom(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        scan_dicom(tmp_path / "nowhere")


def as_mr(dataset: Dataset, _k: int) -> None:
    dataset.SOPClassUID, dataset.Modality = MRImageStorage, "MR"


def as_pt(dataset: Dataset, _k: int) -> None:
    dataset.Modality = "PT"


def as_localizer(dataset: Dataset, _k: int) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def as_screen_capture(dataset: Dataset, _k: int) -> None:
    dataset.SOPClassUID = SecondaryCaptureImageStorage


def as_8_bit(dataset: Dataset, _k: int) -> None:
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7


def as_color(dataset: Dataset, _k: int) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"


def as_shifted_bits(dataset: Dataset, _k: int) -> None:
    dataset.BitsStored, dataset.HighBit = 12, 15


def without_rescale(dataset: Dataset, _k: int) -> None:
    del dataset.RescaleIntercept


def as_electron_density(dataset: Dataset, _k: int) -> None:
    dataset.RescaleType = "ED"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (as_mr, "holds MR Image, not CT"),
        (as_pt, "modality PT, not CT"),
        (as_localizer, "only localizer"),
        (as_screen_capture, "Secondary Capture Image, not CT"),
        (as_8_bit, "8 bits a pixel"),
        (as_color, "color pictures"),
        (as_shifted_bits, "packs its pixels unusually"),
        (without_rescale, "lacks Rescale Slope or Rescale Intercept"),
        (as_electron_density, "Rescale Type ED, not HU"),
    ],
)
def test_series_that_are_no_ct_in_hu_are_refused_with_the_reason(tmp_path, edit, message):
    series = ct_series(edit=edit)
    series.write(tmp_path / "odd")
    with pytest.raises(InputError, match=message):
        choose_series(scan_dicom(tmp_path))
    with pytest.raises(InputError, match=message):
        choose_series(scan_dicom(tmp_path), series.uid)
    # Beside a usable series, it needs no choice.
    usable = ct_series()
    usable.write(tmp_path / "usable")
    assert choose_series(scan_dicom(tmp_path)).uid == usable.uid


def cut_to(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("size", [140, 200, 420])
def test_a_file_cut_off_in_its_header_is_named(tmp_path, size):
    paths = ct_series().write(tmp_path)
    cut_to(paths[2], size)
    with pytest.raises(InputError, match=paths[2].name):
        choose_series(scan_dicom(tmp_path))


def test_texts_never_show_the_patient(tmp_path, recwarn):
    series = ct_series()
    series.write(tmp_path)
    ct_series(prefix="other", edit=as_localizer).write(tmp_path)
    ct_series(prefix="third").write(tmp_path)
    with pytest.raises(InputError) as caught:
        choose_series(scan_dicom(tmp_path))
    shown = str(caught.value) + "".join(str(warning.message) for warning in recwarn)
    assert PATIENT_NAME.split("^")[0] not in shown


def test_control_characters_of_a_description_are_not_printed(tmp_path):
    ct_series(description="a\x1b[31mb").write(tmp_path)
    assert scan_dicom(tmp_path).series[0].text("SeriesDescription") == "a[31mb"


def test_progress_counts_files_and_may_cancel(tmp_path):
    ct_series().write(tmp_path)
    calls = []
    scan_dicom(tmp_path, lambda *call: calls.append(call))
    assert calls == [(k, 5) for k in range(6)]

    def cancel(_done: int, _total: int) -> None:
        raise CancelledError("stop")

    with pytest.raises(CancelledError):
        scan_dicom(tmp_path, cancel)


def test_a_single_file_is_a_series_of_its_own(tmp_path):
    paths = ct_series(phantom_hu()).write(tmp_path)
    assert choose_series(scan_dicom(paths[0])).image_count == 1


@pytest.mark.slow
def test_real_folder_of_two_series(real_ct):
    folder = real_ct / "dicom" / "Lung_Dx-A0001"
    scan = scan_dicom(folder)
    assert [series.image_count for series in scan.usable] == [64, 64]
    assert {series.text("ConvolutionKernel") for series in scan.usable} == {"B", "L"}
    with pytest.raises(InputError, match="2 CT series") as caught:
        choose_series(scan)
    assert np.all([series.uid in str(caught.value) for series in scan.series])


def as_picture(dataset: Dataset, _k: int) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = bytes(dataset.Rows * dataset.Columns * 3 + 4)
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.RescaleSlope


def as_gray_picture(dataset: Dataset, _k: int) -> None:
    as_picture(dataset, _k)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    del dataset.PlanarConfiguration


@pytest.mark.parametrize("edit", [as_picture, as_gray_picture])
def test_a_picture_among_slices_is_named_and_left_out(tmp_path, edit):
    series = ct_series()
    series.write(tmp_path)
    ct_series(phantom_hu((1, 12, 10)), uid=series.uid, study_uid=series.study_uid, prefix="page", edit=edit).write(
        tmp_path
    )
    volume = load_volume(tmp_path)
    assert volume.shape == (5, 12, 10)
    (warning,) = volume.provenance.warnings
    assert warning.name == "pictures-left-out"
    assert "page-000" in warning.text


def test_one_image_that_cannot_be_used_is_named(tmp_path):
    def odd(dataset: Dataset, k: int) -> None:
        if k == 3:
            as_electron_density(dataset, k)

    ct_series(edit=odd).write(tmp_path)
    with pytest.raises(InputError, match=r"has an image, slice-003, that has values of Rescale Type ED"):
        choose_series(scan_dicom(tmp_path))


def unread(folder: Path) -> list[str]:
    return [warning.text for warning in load_volume(folder).provenance.warnings if warning.name == "unread-files"]


@pytest.mark.parametrize("content", [b"", bytes(5000), b"<html>404</html>"])
def test_files_named_as_slices_that_hold_none_are_named(tmp_path, content):
    for path in ct_series().write(tmp_path):
        path.rename(path.with_suffix(".dcm"))
    (tmp_path / "slice-005.dcm").write_bytes(content)
    (text,) = unread(tmp_path)
    assert text.startswith("slice-005.dcm ")


def test_of_files_without_suffix_only_those_that_hold_nothing_are_named(tmp_path):
    ct_series().write(tmp_path)
    for name, content in {"slice-005": b"", "VERSION": b"1.0", ".lock": b"", "notes.txt": b""}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "empty").touch()
    (text,) = unread(tmp_path)
    assert text.startswith("slice-005 ")


def test_slices_behind_a_link_are_found_once(tmp_path):
    paths = ct_series().write(tmp_path / "series")
    (tmp_path / "elsewhere").mkdir()
    for path in paths[3:]:
        path.rename(tmp_path / "elsewhere" / path.name)
    (tmp_path / "series" / "rest").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "series" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "series")
    assert choose_series(scan_dicom(tmp_path / "series")).image_count == 5


def test_a_link_to_nothing_is_named(tmp_path):
    ct_series().write(tmp_path)
    (tmp_path / "slice-005").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="slice-005"):
        choose_series(scan_dicom(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    ct_series().write(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    assert load_volume(tmp_path).shape == phantom_hu().shape


def test_copies_of_slices_in_two_folders_are_told_apart(tmp_path):
    ct_series().write(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.raises(InputError, match=r"one/slice-000 and two/slice-000"):
        load_volume(tmp_path)


def test_a_series_without_its_uid_gets_that_reason(tmp_path):
    def without(dataset: Dataset, _k: int) -> None:
        del dataset.SeriesInstanceUID

    ct_series(edit=without).write(tmp_path)
    with pytest.raises(InputError, match=r"slice-000 lacks a Series Instance UID \(4 more too\)"):
        choose_series(scan_dicom(tmp_path))


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", ["", None])
def test_series_without_other_uids_are_read_but_not_written_as_dicom(tmp_path, keyword, value):
    (tmp_path / "source").mkdir()
    series = ct_series()
    for k in range(5):
        dataset = series.dataset(k)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = series.syntax
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        del dataset[keyword]
        if value is not None:
            setattr(dataset, keyword, value)
        dataset.save_as(tmp_path / "source" / f"slice-{k}", enforce_file_format=True)
    volume = load_volume(tmp_path / "source")
    assert [warning.name for warning in volume.provenance.warnings] == ["missing-uids"]
    for write in (check_output, save_volume):
        with pytest.raises(OutputError, match=r"lacks a .* Instance UID, such as slice-0"):
            write(volume, tmp_path / "out")
    save_volume(volume, tmp_path / "out.nrrd")


def test_no_text_of_a_header_is_in_an_error(tmp_path):
    secret = "SECRET9"

    def marked(dataset: Dataset, k: int) -> None:
        for keyword in ("PatientID", "PatientName", "StudyDescription", "SeriesDescription", "ConvolutionKernel"):
            setattr(dataset, keyword, secret)
        dataset.RescaleType = secret if k == 1 else "HU"

    ct_series(edit=marked).write(tmp_path / "unit")
    for name in ("one", "two"):
        ct_series(edit=lambda dataset, _k: marked(dataset, 0)).write(tmp_path / "several" / name)
    other = ct_series(edit=lambda dataset, _k: setattr(dataset, "Modality", secret))
    other.write(tmp_path / "modality")
    class_of_nobody = ct_series(edit=lambda dataset, _k: setattr(dataset, "SOPClassUID", "1.2.3.999"))
    class_of_nobody.write(tmp_path / "class")
    for folder in ("unit", "several", "modality", "class"):
        with pytest.raises(InputError) as caught:
            choose_series(scan_dicom(tmp_path / folder))
        assert secret not in str(caught.value)
        assert "1.2.3.999" not in str(caught.value)


def test_dicom_without_a_series_is_not_called_no_dicom(tmp_path):
    """As pydicom's JPEG-LS samples are: secondary captures with pixels and hardly more."""
    (tmp_path / "in").mkdir()
    path = write_structure_set(tmp_path / "in" / "object", "1.2.3")
    dataset = dcmread(path)
    del dataset.SeriesInstanceUID
    dataset.save_as(path)
    for use in (describe, load_volume):
        with pytest.raises(InputError, match="holds DICOM, but no image that belongs to a series"):
            use(tmp_path / "in")
