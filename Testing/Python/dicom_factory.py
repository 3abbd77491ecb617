"""Synthetic CT for tests: DICOM series of any stored form and geometry, written with pydicom alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PATIENT_NAME = "Secret^Patient"


def phantom_hu(shape: tuple[int, int, int] = (5, 12, 10), seed: int = 0) -> np.ndarray:
    """A body of 40 HU with lungs of -850 HU in air of -1000 HU, with 20 HU of noise: int16 (slices, rows, columns)."""
    slices, rows, columns = shape
    y, x = np.mgrid[:rows, :columns]
    radius = np.hypot((y - (rows - 1) / 2) / (rows * 0.45), (x - (columns - 1) / 2) / (columns * 0.45))
    plane = np.where(radius < 0.4, -850, np.where(radius < 0.95, 40, -1000))
    noise = np.random.default_rng(seed).normal(0, 20, (slices, rows, columns))
    return np.clip(np.rint(plane + noise), -1024, 3071).astype(np.int16)


@dataclass
class CTSeries:
    """How to write a single-frame CT series. ``stored`` are the integers (slices, rows, columns) as they go to disk.

    ``slope`` and ``intercept`` are one value or one for each slice. ``edit`` may change each data set (and gets the
    slice number) before it is written. ``order`` gives the file number of each slice, to shuffle names.
    """

    stored: np.ndarray
    spacing: tuple[float, float, float] = (0.7, 0.8, 2.5)
    origin: tuple[float, float, float] = (-100.0, -120.0, 30.0)
    orientation: Sequence[float] = AXIAL
    slope: float | Sequence[float] = 1
    intercept: float | Sequence[float] = -1024
    bits: int = 16
    signed: bool = True
    syntax: str = ExplicitVRLittleEndian
    edit: Callable[[Dataset, int], None] = lambda _dataset, _k: None
    order: Sequence[int] | None = None
    uid: str = field(default_factory=lambda: generate_uid(prefix=None))
    study_uid: str = field(default_factory=lambda: generate_uid(prefix=None))
    frame_of_reference_uid: str = field(default_factory=lambda: generate_uid(prefix=None))
    description: str = "Chest 2.5"
    prefix: str = "slice"

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])

    def position(self, k: int) -> list[float]:
        """LPS mm of the first voxel of slice k."""
        return [float(value) for value in np.array(self.origin) + k * self.spacing[2] * self.normal]

    def hu(self) -> np.ndarray:
        """The HU that a reader should find, as int16 in slice order."""
        slopes, intercepts = self._rescale()
        exact = self.stored * slopes[:, None, None] + intercepts[:, None, None]
        return np.clip(np.rint(exact), -32768, 32767).astype(np.int16)

    def write(self, folder: Path) -> list[Path]:
        """Write one file for each slice; returns their paths in slice order."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for k in range(len(self.stored)):
            dataset = self.dataset(k)
            number = k if self.order is None else self.order[k]
            # No suffix: readers must recognize DICOM by content.
            paths.append(folder / f"{self.prefix}-{number:03d}")
            self.edit(dataset, k)
            save(dataset, paths[-1], self.syntax)
        return paths

    def dataset(self, k: int) -> Dataset:
        slopes, intercepts = self._rescale()
        dataset = common_dataset(CTImageStorage, self)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"]
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = [ds(value) for value in self.position(k)]
        dataset.ImageOrientationPatient = [ds(value) for value in self.orientation]
        dataset.PixelSpacing = [ds(self.spacing[1]), ds(self.spacing[0])]
        dataset.SliceThickness = ds(self.spacing[2])
        dataset.RescaleSlope = ds(slopes[k])
        dataset.RescaleIntercept = ds(intercepts[k])
        add_pixels(dataset, self.stored[k], self)
        return dataset

    def _rescale(self) -> tuple[np.ndarray, np.ndarray]:
        slices = len(self.stored)
        return np.broadcast_to(self.slope, slices).astype(float), np.broadcast_to(self.intercept, slices).astype(float)


def ct_series(hu: np.ndarray | None = None, **options: object) -> CTSeries:
    """A series that shows ``hu`` (default: the phantom) with slope 1 and intercept -1024."""
    hu = phantom_hu() if hu is None else hu
    return CTSeries(stored=hu.astype(np.int32) + 1024, **options)


def write_enhanced(
    path: Path, series: CTSeries, *, order: Sequence[int], edit: Callable[[Dataset], None] = lambda _dataset: None
) -> Path:
    """Write a series as one Enhanced CT object whose frame f is slice ``order[f]``.

    Orientation and spacing are shared functional groups; position and rescale stand with each frame.
    """
    dataset = common_dataset(EnhancedCTImageStorage, series)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames = len(order)
    add_pixels(dataset, series.stored[list(order)], series)
    plain = [series.dataset(k) for k in order]
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=plain[0].ImageOrientationPatient)]
    shared.PixelMeasuresSequence = [
        _item(PixelSpacing=plain[0].PixelSpacing, SliceThickness=plain[0].SliceThickness),
    ]
    shared.CTImageFrameTypeSequence = [_item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=one.ImagePositionPatient)],
            PixelValueTransformationSequence=[
                _item(RescaleSlope=one.RescaleSlope, RescaleIntercept=one.RescaleIntercept, RescaleType="HU")
            ],
        )
        for one in plain
    ]
    edit(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(dataset, path, series.syntax)
    return path


def write_structure_set(path: Path, study_uid: str) -> Path:
    """An RTSTRUCT object without pixels, as lies beside many planning CTs."""
    dataset = Dataset()
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.StudyInstanceUID = study_uid
    dataset.SeriesInstanceUID = generate_uid(prefix=None)
    dataset.Modality = "RTSTRUCT"
    dataset.PatientName = PATIENT_NAME
    save(dataset, path, ExplicitVRLittleEndian)
    return path


def common_dataset(sop_class: str, series: CTSeries) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.StudyInstanceUID = series.study_uid
    dataset.SeriesInstanceUID = series.uid
    dataset.FrameOfReferenceUID = series.frame_of_reference_uid
    dataset.Modality = "CT"
    dataset.PatientName = PATIENT_NAME
    dataset.PatientID = "42"
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = "20010203"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "101112"
    dataset.Manufacturer = "Scanner Works"
    dataset.ConvolutionKernel = "B30f"
    dataset.SeriesDescription = series.description
    dataset.SeriesNumber = 3
    return dataset


def add_pixels(dataset: Dataset, stored: np.ndarray, series: CTSeries) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = 16
    dataset.BitsStored = series.bits
    dataset.HighBit = series.bits - 1
    dataset.PixelRepresentation = int(series.signed)
    words = stored.astype(np.int16 if series.signed else np.uint16)
    byte_order = ">" if series.syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = words.astype(words.dtype.newbyteorder(byte_order)).tobytes()
    dataset["PixelData"].VR = "OW"


def save(dataset: Dataset, path: Path, syntax: str) -> None:
    dataset.file_meta = FileMetaDataset()
    if syntax.is_encapsulated:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)


def ds(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return next(text for digits in range(12, 0, -1) if len(text := f"{value:.{digits}g}") <= 16)


def _item(**elements: object) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item
