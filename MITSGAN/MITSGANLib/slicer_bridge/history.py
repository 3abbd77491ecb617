"""What was done to a volume before: told by its node, else by the file or the DICOM series that it was loaded from."""

from __future__ import annotations

import functools
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from ..errors import InputError, MITSGANError
from ..files.dicom import derive
from ..files.dicom.headers import read_dataset, read_header
from ..files.dicom.private_block import get_entry
from ..files.volume_files import SLICER_STEPS_FIELD, read_file_header, recorded_steps, steps_from_text
from ..scan.volume import ProcessingStep
from ..signature.manifest import manifest_path
from .dicom_source import first_dicom_file
from .scan_on_disk import file_behind

STEPS_ATTRIBUTE = SLICER_STEPS_FIELD


def steps_of(node: slicer.vtkMRMLScalarVolumeNode) -> tuple[ProcessingStep, ...]:
    """All processing steps, oldest first; none where nothing tells of any.

    :raises InputError: what the node says of them cannot be read.
    """
    text = node.GetAttribute(STEPS_ATTRIBUTE)
    if text:
        return _steps_of_text(text)
    path, is_dicom = _on_disk(node)
    return _steps_on_disk(path, path.stat().st_mtime_ns, is_dicom) if path else ()


def place_of_attack(step: ProcessingStep) -> tuple[int, int, int] | None:
    """The voxel (slice, row, column) that a simulated attack aimed at; None where the step does not tell."""
    place = step.parameters.get("target_kji")
    is_place = isinstance(place, list) and len(place) == 3 and all(isinstance(index, int) for index in place)
    return tuple(place) if is_place else None


def carries_signature(node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether the file or the DICOM series behind a node is signed, or says so: nothing is verified."""
    path, is_dicom = _on_disk(node)
    if path is None:
        return False
    return _is_signed_dicom(path, path.stat().st_mtime_ns) if is_dicom else manifest_path(path).exists()


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


def _on_disk(node: slicer.vtkMRMLScalarVolumeNode) -> tuple[Path | None, bool]:
    """The file behind a node, or one of its DICOM files, and whether that is DICOM."""
    path = file_behind(node)
    if path is not None:
        return path, False
    path = first_dicom_file(node)
    return path, path is not None


@functools.lru_cache(maxsize=32)
def _steps_on_disk(path: Path, _modified: int, is_dicom: bool) -> tuple[ProcessingStep, ...]:
    try:
        if not is_dicom:
            return recorded_steps(read_file_header(path).metadata)[0]
        header = read_header(path)
        return derive.recorded_steps(header) if header else ()
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
