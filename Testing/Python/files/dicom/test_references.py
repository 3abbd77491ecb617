"""What lies beside a series and refers to it."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from dicom_factory import CTSeries, ct_series, save
from MITSGANLib.files.dicom.references import LeftBehind, left_behind
from MITSGANLib.files.dicom.series import scan_dicom
from pydicom import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)


def write_object(path: Path, modality: str, *, frame: str = "", refers: str = "", syntax: str = ExplicitVRLittleEndian):
    """An object without pixels, with ``refers`` deep in a sequence."""
    dataset = Dataset()
    dataset.SOPClassUID = MRImageStorage if modality == "MR" else ComprehensiveSRStorage
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(prefix=None), generate_uid(prefix=None)
    dataset.Modality = modality
    if frame:
        dataset.FrameOfReferenceUID = frame
    if refers:
        inner, outer = Dataset(), Dataset()
        inner.ReferencedSOPInstanceUID = refers
        outer.ReferencedSOPSequence = [inner]
        dataset.CurrentRequestedProcedureEvidenceSequence = [outer]
    path.parent.mkdir(exist_ok=True)
    save(dataset, path, syntax)


def found(folder: Path, series: CTSeries) -> dict[str, LeftBehind]:
    return {one.modality: one for one in left_behind(scan_dicom(folder), series.uid)}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_what_names_the_series_an_image_or_its_frame_refers_to_it(tmp_path, syntax):
    series = ct_series()
    image = pydicom.dcmread(series.write(tmp_path)[3])
    write_object(tmp_path / "seg", "SEG", refers=series.uid, syntax=syntax)
    write_object(tmp_path / "plan" / "rs", "RTSTRUCT", refers=image.SOPInstanceUID, syntax=syntax)
    write_object(tmp_path / "plan" / "rd", "RTDOSE", frame=series.frame_of_reference_uid, syntax=syntax)
    write_object(tmp_path / "sr", "SR", refers=generate_uid(prefix=None), syntax=syntax)
    beside = found(tmp_path, series)
    assert {modality: one.refers for modality, one in beside.items()} == {
        "SEG": True,
        "RTSTRUCT": True,
        "RTDOSE": True,
        "SR": False,
    }
    assert beside["RTDOSE"].files == (tmp_path / "plan" / "rd",)


def test_a_longer_uid_is_another_one(tmp_path):
    series = ct_series(uid="1.2.3.4.5", frame_of_reference_uid="1.2.3.4.6")
    series.write(tmp_path)
    write_object(tmp_path / "seg", "SEG", refers="1.2.3.4.5.1")
    write_object(tmp_path / "sr", "SR", refers="11.2.3.4.5")
    assert not any(one.refers for one in found(tmp_path, series).values())


def test_images_of_other_series_are_counted_but_not_searched(tmp_path):
    series = ct_series()
    series.write(tmp_path)
    ct_series(prefix="other").write(tmp_path)
    write_object(tmp_path / "mr", "MR", refers=series.uid)
    beside = found(tmp_path, series)
    assert {modality: (len(one.files), one.refers) for modality, one in beside.items()} == {
        "CT": (5, False),
        "MR": (1, False),
    }


def test_a_series_alone_leaves_nothing_behind(tmp_path):
    series = ct_series()
    series.write(tmp_path)
    assert found(tmp_path, series) == {}
