"""Where a volume node comes from: the files that it was loaded from, and what was done to it before.

The files are a volume file, or a DICOM series through Slicer's database. What was done is told by the node, else by
them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from ..errors import InputError, MITSGANError, OutputError
from ..files.dicom import derive
from ..files.dicom.frames import slices_by_file
from ..files.dicom.headers import read_dataset, read_header
from ..files.dicom.private_block import get_entry
from ..files.dicom.read import declared_padding_hu as declared
from ..files.dicom.read import stack_series
from ..files.dicom.series import DicomSeries
from ..files.volume_files import SLICER_STEPS_FIELD, format_of, read_file_header, recorded_steps, steps_from_text
from ..scan.volume import CTVolume, ProcessingStep
from ..signature.manifest import manifest_path
from .privacy import paths_kept_from_log

STEPS_ATTRIBUTE = SLICER_STEPS_FIELD
# Slicer's DICOM module writes this attribute to every volume that it loads.
INSTANCES_ATTRIBUTE = "DICOM.instanceUIDs"


@dataclass(frozen=True)
class ScanOnDisk:
    """A volume file, or a DICOM folder and which series of it (None: the only one)."""

    path: Path
    series: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a volume file, and no DICOM."""
        return self.path.is_file() and format_of(self.path) is not None


def file_behind(node: slicer.vtkMRMLScalarVolumeNode | None) -> Path | None:
    """The NRRD, NIfTI or MetaImage file that a volume was loaded from or saved to, if it is there."""
    storage = node.GetStorageNode() if node is not None else None
    name = storage.GetFullNameFromFileName() if storage is not None else None
    path = Path(name) if name else None
    return path if path is not None and format_of(path) and path.is_file() else None


def may_be_on_disk(node: slicer.vtkMRMLScalarVolumeNode | None) -> bool:
    """Whether :func:`scan_of_node` may find something; quick."""
    return node is not None and (file_behind(node) is not None or bool(node.GetAttribute(INSTANCES_ATTRIBUTE)))


def scan_of_node(node: slicer.vtkMRMLScalarVolumeNode) -> ScanOnDisk:
    """The file or the DICOM series that a volume was loaded from.

    :raises OutputError: it was loaded from DICOM, and its files are gone.
    :raises InputError: it is not on the disk, or its DICOM files lie in several folders.
    """
    path = file_behind(node)
    if path is not None:
        return ScanOnDisk(path)
    if not node.GetAttribute(INSTANCES_ATTRIBUTE):
        raise InputError(_("The volume is not on the disk; choose the folder or the file of a scan."))
    files = dicom_files_of(node)
    folders = {file.parent for file in files}
    if len(folders) > 1:
        raise InputError(_("The volume's DICOM files lie in several folders; choose the folder that holds them all."))
    return scan_of_file(files[0])


def scan_of_file(path: Path) -> ScanOnDisk:
    """The scan of a file: the file itself, or the DICOM series in its folder that it is part of."""
    if format_of(path):
        return ScanOnDisk(path)
    with paths_kept_from_log({path: _("a file of the scan")}):
        header = read_header(path)
    return ScanOnDisk(path.parent, header.text("SeriesInstanceUID") if header else None)


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
    files = [_instance_file(uid) for uid in uids]
    if None in files:
        raise OutputError(
            _(
                "{missing} of the {count} original DICOM files are no longer in the DICOM database; import the series "
                "again."
            ).format(missing=files.count(None), count=len(files))
        )
    return tuple(files)


def file_or_first_image(node: slicer.vtkMRMLScalarVolumeNode) -> Path | None:
    """The file that a volume was loaded from, or that of its first instance, whose headers mostly speak for the series.

    None where there is neither.
    """
    uid, _, _ = (node.GetAttribute(INSTANCES_ATTRIBUTE) or "").partition(" ")
    return file_behind(node) or _instance_file(uid)


def _instance_file(uid: str) -> Path | None:
    # Absent when Slicer runs without its DICOM module.
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
            known, steps = derive.recorded_steps(original.images[0]), volume.provenance.steps
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


def steps_of(node: slicer.vtkMRMLScalarVolumeNode) -> tuple[ProcessingStep, ...]:
    """All processing steps, oldest first; none where nothing tells of any.

    :raises InputError: what the node says of them cannot be read.
    """
    text = node.GetAttribute(STEPS_ATTRIBUTE)
    if text:
        return _steps_of_text(text)
    path = file_or_first_image(node)
    return _steps_on_disk(path, path.stat().st_mtime_ns) if path else ()


def place_of_attack(step: ProcessingStep) -> tuple[int, int, int] | None:
    """The voxel (slice, row, column) that a simulated attack aimed at; None where the step does not tell."""
    place = step.parameters.get("target_kji")
    is_place = isinstance(place, list) and len(place) == 3 and all(isinstance(index, int) for index in place)
    return tuple(place) if is_place else None


def carries_signature(node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether the file or the DICOM series behind a node is signed, or says so: nothing is verified."""
    path = file_or_first_image(node)
    if path is None:
        return False
    return manifest_path(path).exists() if format_of(path) else _is_signed_dicom(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _steps_of_text(text: str) -> tuple[ProcessingStep, ...]:
    try:
        return steps_from_text(text)
    except (RecursionError, TypeError, ValueError) as error:
        raise unreadable(STEPS_ATTRIBUTE) from error


def unreadable(attribute: str) -> InputError:
    """The error about an attribute of a volume that tells where it comes from, and does not make sense."""
    return InputError(
        _(
            "What the attribute {attribute} of the volume says about its origin cannot be read; start again from the "
            "original scan."
        ).format(attribute=attribute)
    )


def steps_in_header(path: Path) -> tuple[ProcessingStep, ...]:
    """The steps that the header of a DICOM file tells of."""
    header = read_header(path)
    return derive.recorded_steps(header) if header else ()


@functools.lru_cache(maxsize=32)
def _steps_on_disk(path: Path, _modified: int) -> tuple[ProcessingStep, ...]:
    try:
        if format_of(path):
            return recorded_steps(read_file_header(path).metadata)[0]
        return steps_in_header(path)
    except MITSGANError:
        # The application has loaded it; what its header says is of no more use.
        return ()


@functools.lru_cache(maxsize=32)
def _is_signed_dicom(path: Path, _modified: int) -> bool:
    try:
        dataset = read_dataset(path)
        return "DigitalSignaturesSequence" in dataset or get_entry(dataset, "manifest") is not None
    except MITSGANError:
        return False
