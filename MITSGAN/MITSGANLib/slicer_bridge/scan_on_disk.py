"""The file or the DICOM series that a volume node was loaded from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from ..errors import InputError
from ..files.dicom.headers import read_header
from ..files.volume_files import format_of
from .dicom_source import INSTANCES_ATTRIBUTE, dicom_files_of
from .privacy import paths_kept_from_log


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
