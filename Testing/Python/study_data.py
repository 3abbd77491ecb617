"""A study of two CT series and a structure set, and what may be done to it."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import dicom_factory
import pydicom
from pydicom import Dataset
from pydicom.uid import generate_uid

STUDY = "2.25.1234567890123456789"
SLICES = 3


def name_series(number: int, dataset: Dataset, _k: int) -> None:
    dataset.SeriesNumber = number


def write_study(folder: Path, structure_number: int | None = None, **options: object) -> Path:
    """Two CT series of three slices, with a structure set.

    :param structure_number: Series Number of the structure set.
    """
    for number, name in enumerate(("lung", "soft"), 1):
        hu = dicom_factory.phantom_hu((SLICES, 12, 10), seed=number)
        numbered = partial(name_series, number)
        dicom_factory.ct_series(hu, study_uid=STUDY, edit=numbered, **options).write(folder / name)
    edit(dicom_factory.write_structure_set(folder / "contours.dcm", STUDY), PatientID="42")
    if structure_number is not None:
        edit(folder / "contours.dcm", SeriesNumber=structure_number)
    return folder


def edit(file: Path, **elements: object) -> None:
    dataset = pydicom.dcmread(file)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file)


def change_voxel(file: Path) -> None:
    dataset = pydicom.dcmread(file)
    stored = dataset.pixel_array.copy()
    stored[6, 5] += 1
    edit(file, PixelData=stored.tobytes())


def add_slice(study: Path) -> None:
    shutil.copy(study / "soft" / "slice-002", study / "soft" / "one-more")
    edit(study / "soft" / "one-more", SOPInstanceUID=generate_uid(prefix=None), ImagePositionPatient=[-100, -120, 37.5])
