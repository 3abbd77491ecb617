"""The DICOM files that a volume node was loaded from, through Slicer's DICOM database."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from ..errors import MITSGANError, OutputError
from ..files.dicom.derive import recorded_steps
from ..files.dicom.frames import slices_by_file
from ..files.dicom.headers import read_header
from ..files.dicom.read import declared_padding_hu as declared
from ..files.dicom.read import stack_series
from ..files.dicom.series import DicomSeries
from ..scan.volume import CTVolume

# Slicer's DICOM module writes this attribute to every volume that it loads.
INSTANCES_ATTRIBUTE = "DICOM.instanceUIDs"


def dicom_files_of(node: slicer.vtkMRMLScalarVolumeNode) -> tuple[Path, ...]:
    """The files of a node's instances, as the DICOM database knows them.

    :raises OutputError: when the node was not loaded from DICOM, or its files are gone, with what to do.
    """
    uids = (node.GetAttribute(INSTANCES_ATTRIBUTE) or "").split()
    if not uids:
        raise OutputError(
            _(
                "The CT volume was not loaded through Slicer's DICOM module, so there are no original headers to keep. "
                "Import the series into the DICOM database and load it from there, or save the protected volume as "
                "NRRD."
            )
        )
    # Absent when Slicer runs without its DICOM module.
    database = getattr(slicer, "dicomDatabase", None)
    files = [database.fileForInstance(uid) if database and database.isOpen else "" for uid in uids]
    missing = sum(not (file and Path(file).is_file()) for file in files)
    if missing:
        raise OutputError(
            _(
                "{missing} of the {count} original DICOM files are no longer in the DICOM database; import the series "
                "again."
            ).format(missing=missing, count=len(files))
        )
    return tuple(Path(file) for file in files)


def first_dicom_file(node: slicer.vtkMRMLScalarVolumeNode) -> Path | None:
    """The file of a node's first instance, whose headers mostly speak for the series; None where there is none."""
    uid, _, _ = (node.GetAttribute(INSTANCES_ATTRIBUTE) or "").partition(" ")
    database = getattr(slicer, "dicomDatabase", None)
    file = database.fileForInstance(uid) if uid and database and database.isOpen else ""
    return Path(file) if file and Path(file).is_file() else None


def declared_padding_hu(node: slicer.vtkMRMLScalarVolumeNode) -> int | None:
    """The HU that a node's original DICOM files declare as padding; None where they declare none or are gone.

    Slicer's reader does not hand this on, and without it the protection would differ from that of the files.
    """
    try:
        return _padding_of_files(dicom_files_of(node))
    except MITSGANError:
        return None


@functools.lru_cache(maxsize=8)
def _padding_of_files(files: tuple[Path, ...]) -> int | None:
    return declared(stack_series(_series(files)).frames)


def _series(files: Sequence[Path]) -> DicomSeries:
    headers = tuple(header for file in files if (header := read_header(file)))
    if not headers:
        raise OutputError(_("The original files are no DICOM images any more; import the series again."))
    return DicomSeries(headers[0].text("SeriesInstanceUID"), headers)


def with_dicom_source(volume: CTVolume, files: Sequence[Path]) -> CTVolume:
    """``volume`` as the DICOM writer wants it: slices in the order of the series, and the files in its provenance.

    :raises OutputError: when the files do not form the series that the volume shows.
    """
    original = _series(files)
    stack = stack_series(original)
    # Slicer may count slices from the other end than DICOM's normal does.
    for candidate in (volume, reversed_slices(volume)):
        series = CTVolume(candidate.hu, stack.spacing, stack.origin, stack.direction)
        if stack.shape == candidate.shape and candidate.same_geometry(series, tolerance_mm=0.05):
            # The headers of the source say already what was done before.
            known, steps = recorded_steps(original.images[0]), volume.provenance.steps
            provenance = dataclasses.replace(
                volume.provenance,
                steps=steps[len(known) :] if steps[: len(known)] == known else steps,
                format="dicom",
                series_instance_uid=original.uid,
                dicom_files=tuple(str(path) for path in slices_by_file(stack.frames)),
                dicom_problem=original.writing_problem,
            )
            return dataclasses.replace(series, provenance=provenance)
    raise OutputError(
        _(
            "The volume's size or position differs from its DICOM series, so the original headers do not fit; it was "
            "cropped, resampled or hardened. Save it as NRRD."
        )
    )


def reversed_slices(volume: CTVolume) -> CTVolume:
    """The same scan with its slices counted from the other end."""
    direction = volume.direction.copy()
    direction[:, 2] *= -1
    return dataclasses.replace(
        volume,
        hu=volume.hu[::-1],
        origin=tuple(volume.voxel_to_lps((volume.shape[0] - 1, 0, 0))),
        direction=direction,
    )
