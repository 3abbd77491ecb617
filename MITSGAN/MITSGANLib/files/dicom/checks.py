"""What a careful workstation says about the headers of a CT series: refusals, and warnings that stop nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import InputError
from ...scan.volume import VolumeWarning
from .derive import MANUFACTURER
from .frames import Frame
from .headers import Header
from .series import DicomSeries

# Elements that hold one value throughout a series, and what it means when they do not.
_ONE_VALUE = {
    "StudyInstanceUID": "studies",
    "PatientID": "patients",
    "FrameOfReferenceUID": "frames of reference",
}


def require_one_origin(headers: Sequence[Header]) -> None:
    """Raise ``InputError`` where images of one series belong to several studies, patients or frames of reference."""
    for keyword, plural in _ONE_VALUE.items():
        if len({header.text(keyword) for header in headers}) > 1:
            raise InputError(f"One series mixes images of different {plural}; separate them into two folders.")


def header_warnings(series: DicomSeries, frames: Sequence[Frame]) -> Iterator[VolumeWarning]:
    """Everything noteworthy in the headers of a series that can be used."""
    localizers = [header for header in series.left_out if header.is_ct_image and header.is_localizer]
    pictures = [header for header in series.left_out if header.is_ct_image and not header.is_localizer]
    others = len(series.left_out) - len(localizers) - len(pictures)
    if localizers:
        text = f"{len(localizers)} localizer (scout) images of the series are left out."
        yield VolumeWarning("localizer-left-out", text)
    if pictures:
        named = _named([header.path for header in pictures])
        text = f"{named} of the series: pictures in color or of 8 bits, no slices; left out."
        yield VolumeWarning("pictures-left-out", text)
    if others:
        yield VolumeWarning("objects-left-out", f"{others} objects of the series that are no CT images are left out.")
    if series.unread:
        text = f"{_named(series.unread)} beside the slices: no DICOM or empty; slices may be missing."
        yield VolumeWarning("unread-files", text)
    if problem := series.writing_problem:
        yield VolumeWarning("missing-uids", f"The series {problem}; it cannot be written as DICOM, only as a file.")
    images = series.images
    if any("DERIVED" in header.image_type for header in images):
        text = "The images are derived (Image Type DERIVED), not as acquired; their noise may be unlike a scanner's."
        yield VolumeWarning("derived", text, of_protecting=True)
    if any(header.text("LossyImageCompression") == "01" for header in images):
        text = "The images went through lossy compression once; fine detail is altered."
        yield VolumeWarning("lossy-compression", text)
    if any(header.text("BurnedInAnnotation") == "YES" for header in images):
        text = "The images have burned-in annotation, which may identify the patient."
        yield VolumeWarning("burned-in-annotation", text)
    if any(MANUFACTURER in header.contributors for header in images):
        text = "The images were written by MITSGAN before; protecting them again adds to the change."
        yield VolumeWarning("already-processed", text, of_protecting=True)
    tilt = max((abs(header.number("GantryDetectorTilt")) for header in images), default=0.0)
    if tilt > 0.05:
        text = f"The header states a gantry tilt of {tilt:g} degrees, though the slices are stacked straight."
        yield VolumeWarning("gantry-tilt", text)
    kernels = {header.text("ConvolutionKernel") for header in images}
    if len(kernels) > 1:
        yield VolumeWarning("mixed-kernels", f"The series mixes {len(kernels)} reconstruction kernels.")
    if any(header.text("RescaleType") == "US" for header in images):
        text = "Rescale Type is unspecified (US); the values are taken as HU."
        yield VolumeWarning("rescale-type-unspecified", text)
    if any(not frame.slope.is_integer() or not frame.intercept.is_integer() for frame in frames):
        text = "Rescale Slope or Intercept is no whole number; HU are rounded to whole numbers."
        yield VolumeWarning("rescale-rounded", text)


def _named(paths: Sequence[Path]) -> str:
    """The first three names, and how many more there are."""
    names = ", ".join(path.name for path in paths[:3])
    return names if len(paths) <= 3 else f"{names} and {len(paths) - 3} more"
