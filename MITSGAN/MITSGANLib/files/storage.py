"""The one door to volumes on disk: DICOM folders, NRRD, NIfTI and MetaImage."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LEAVE_SERIES_OUT, InputError, OutputError
from ..runtime.progress import Progress
from ..scan.volume import CTVolume, VolumeWarning
from . import volume_files
from .atomic import require_space
from .dicom.geometry import Stack
from .dicom.read import read_series, stack_series
from .dicom.series import DicomScan, DicomSeries, choose_series, scan_dicom
from .dicom.write import check_series_output, write_series
from .volume_files import FileHeader

# A dot may be part of a folder's name (a UID, a version, initials), so only what is a type of file is refused as one.
DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".ima"))
OTHER_SUFFIXES = frozenset(
    """
    .7z .avi .bmp .bz2 .csv .doc .docx .gif .gipl .gz .h5 .hdf5 .hdr .htm .html .img .iso .jp2 .jpeg .jpg .json .log
    .mat .md .mgh .mgz .mnc .mov .mp4 .npy .npz .obj .onnx .pdf .pkl .ply .png .ppt .pptx .pt .pth .py .rar
    .safetensors .seal .stl .svg .tar .tgz .tif .tiff .toml .tsv .txt .vti .vtk .webp .xls .xlsx .xml .xz .yaml .yml
    .zip
    """.split()  # noqa: SIM905 - as literals they would fill a page
)

# No CT has so little noise that it would be packed more tightly than this.
LEAST_COMPRESSION = 8


@dataclass(frozen=True)
class SeriesSummary:
    """One series or file as a listing shows it, from headers alone.

    ``problem`` says why it cannot be loaded, or is None. ``shape`` is (slices, rows, columns), ``spacing`` mm along
    (column, row, slice), ``origin`` LPS mm and ``direction`` nine numbers row by row, as in ``CTVolume``; all None
    where the images form no volume. ``warnings`` are those that headers give; loading may add some about the voxels.
    """

    path: str
    format: str
    modality: str
    description: str
    image_count: int
    series_instance_uid: str | None = None
    kernel: str = ""
    shape: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    origin: tuple[float, float, float] | None = None
    direction: tuple[float, ...] | None = None
    problem: str | None = None
    warnings: tuple[VolumeWarning, ...] = ()


def load_volume(path: str | os.PathLike[str], series: str | None = None, progress: Progress | None = None) -> CTVolume:
    """Load a CT volume in HU from a DICOM folder (or one DICOM file), or a NRRD, NIfTI or MetaImage file.

    Arguments and errors are those of :func:`load_with_surroundings`.
    """
    return load_with_surroundings(path, series, progress)[0]


def load_with_surroundings(
    path: str | os.PathLike[str], series: str | None = None, progress: Progress | None = None
) -> tuple[CTVolume, DicomScan | None]:
    """Load a CT volume, and for DICOM all that was found in the folder.

    :param series: Series Instance UID, needed only where a folder holds several CT series.
    :param progress: called as ``progress(done, total)``; ``total`` may shrink once the slices are known, ``done /
        total`` never goes back. May raise ``CancelledError``.
    :raises InputError: not found, not a CT in HU, damaged, several series and none chosen, or no regular stack.
    :raises DependencyError: a package that this file needs is not installed.
    """
    path = Path(path)
    if path.is_file() and volume_files.format_of(path):
        if series is not None:
            raise InputError("is one volume and has no series to choose", path=path, hint=LEAVE_SERIES_OUT)
        return volume_files.read_file(path, progress), None
    scanned = 0

    def while_scanning(done: int, total: int) -> None:
        nonlocal scanned
        scanned = total
        if progress:
            progress(done, 2 * total)

    def while_reading(done: int, total: int) -> None:
        if progress:
            progress(scanned + done, scanned + total)

    scan = scan_dicom(path, while_scanning)
    return read_series(choose_series(scan, series), while_reading, source=str(path)), scan


def save_volume(
    volume: CTVolume, path: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress | None = None
) -> tuple[VolumeWarning, ...]:
    """Save a volume: by suffix as NRRD, NIfTI or MetaImage, or into a folder as a derived DICOM series.

    The result is complete at ``path`` or not there at all; what was there before survives a failure.

    :param path: a file name with one of ``files.SUFFIXES``, or a folder name (no suffix, or an existing folder).
    :param overwrite: replace an existing file or folder of DICOM; the source itself is never replaced.
    :returns: what the output does not show exactly as the volume (DICOM only, see ``dicom.write_series``).
    :raises OutputError: refused format, existing destination, no space, no permission, or DICOM of a volume that has no
        DICOM originals or is a simulated attack.
    """
    path = Path(path)
    if not is_dicom_output(path):
        volume_files.write_file(volume, path, overwrite=overwrite, progress=progress)
        return ()
    return write_series(volume, path, overwrite=overwrite, progress=progress)


def is_dicom_output(path: str | os.PathLike[str]) -> bool:
    """Whether :func:`save_volume` would write a folder of DICOM at ``path`` rather than a file.

    :raises OutputError: for a suffix that looks like a file type and is none of ``files.SUFFIXES``.
    """
    path = Path(path)
    if path.is_dir():
        return True
    if volume_files.format_of(path):
        return False
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        raise OutputError(
            f"{suffix} is no supported format of an output: DICOM is written as a folder of files, one for each slice",
            hint="give the name of a folder",
        )
    if suffix in OTHER_SUFFIXES:
        raise OutputError(
            f"{suffix} is no supported format",
            hint=f"use one of {', '.join(volume_files.SUFFIXES)}, or a folder name for DICOM",
        )
    return True


def check_output(volume: CTVolume, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse at once, before long work, what :func:`save_volume` would refuse for this volume and this destination."""
    if is_dicom_output(path):
        check_series_output(volume, path, overwrite=overwrite)
        needed = volume.hu.nbytes
    else:
        volume_files.check_file_output(volume.provenance.source, path, overwrite=overwrite)
        needed = volume.hu.nbytes // LEAST_COMPRESSION
    require_space(Path(path), needed)


def describe(path: str | os.PathLike[str], progress: Progress | None = None) -> tuple[SeriesSummary, ...]:
    """What a file or folder holds, from headers alone: every DICOM series, usable or not, or the one volume of a file.

    :raises InputError: not found, or nothing in it is DICOM or one of ``files.SUFFIXES``.
    """
    path = Path(path)
    if path.is_file() and volume_files.format_of(path):
        return (_describe_file(path),)
    scan = scan_dicom(path, progress)
    if not scan.series and not scan.damaged and not scan.without_series:
        raise InputError(
            scan.nothing,
            path=path,
            hint=f"give a DICOM folder or a file of {', '.join(volume_files.SUFFIXES)}",
        )
    reasons = dict.fromkeys(scan.damaged, "is a damaged, incomplete or unreadable DICOM file")
    reasons |= dict.fromkeys(scan.without_series, "has no Series Instance UID")
    unusable = (
        SeriesSummary(str(file), "dicom", "", file.name, 0, problem=f"{file} {reason}.")
        for file, reason in reasons.items()
    )
    return (*map(_describe_series, scan.series), *unusable)


def _describe_file(path: Path) -> SeriesSummary:
    file_format = volume_files.format_of(path).name
    try:
        header = volume_files.read_file_header(path)
    except InputError as error:
        return SeriesSummary(str(path), file_format, "", path.name, 0, problem=str(error))
    return SeriesSummary(str(path), file_format, "", path.name, header.shape[0], **_place(header))


def _describe_series(series: DicomSeries) -> SeriesSummary:
    stack, problem = None, series.problem and f"The series {series.problem}."
    if problem is None:
        try:
            stack = stack_series(series)
        except InputError as error:
            problem = str(error)
    return SeriesSummary(
        path=str(series.headers[0].path.parent),
        format="dicom",
        modality=series.text("Modality"),
        description=series.text("SeriesDescription"),
        image_count=series.image_count,
        series_instance_uid=series.uid,
        kernel=series.text("ConvolutionKernel"),
        problem=problem,
        **(_place(stack) if stack else {}),
    )


def _place(found: FileHeader | Stack) -> dict[str, Any]:
    """Size, geometry and warnings of what headers describe."""
    values = {name: getattr(found, name) for name in ("shape", "spacing", "origin", "warnings")}
    return {**values, "direction": tuple(found.direction.ravel().tolist())}
