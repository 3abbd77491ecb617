"""NRRD, NIfTI and MetaImage through SimpleITK.

What was done to a volume travels in the header: NRRD and MetaImage carry all processing steps as JSON, NIfTI a short
mark in its 80-character ``descrip`` field. So a simulated attack is known as such when its file is read again.
"""

from __future__ import annotations

import glob
import gzip
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..errors import InputError, OtherKindError, OutputError, reading
from ..runtime.progress import Progress
from ..scan.plausibility import check_hounsfield, grid_warnings, to_hu
from ..scan.volume import PROTECTION, SIMULATED_ATTACK, CTVolume, ProcessingStep, Provenance, VolumeWarning
from . import metaimage, nifti, nrrd
from .atomic import atomic_file, refuse_existing_file

if TYPE_CHECKING:
    import SimpleITK as sitk

NOTICE = "SIMULATED ATTACK"
NOTICE_FIELD, STEPS_FIELD, PADDING_FIELD = "MITSGAN_notice", "MITSGAN_steps", "MITSGAN_padding_hu"
# The same, as 3D Slicer's own Save writes what its volume node says into NRRD.
SLICER_STEPS_FIELD, SLICER_PADDING_FIELD = "MITSGAN.Steps", "MITSGAN.PaddingHU"
# ITK writes this entry to the descrip field of NIfTI, and reads it back from there; it may have 79 characters.
DESCRIP_FIELD, DESCRIP_LENGTH = "ITK_FileNotes", 79
PROTECTED_MARK = "Protected by MITSGAN"


@dataclass(frozen=True)
class FileFormat:
    """A file format: its name in provenance, the SimpleITK class that reads and writes it, and its suffixes."""

    name: str
    image_io: str
    suffixes: tuple[str, ...]


FORMATS = (
    FileFormat("nrrd", "NrrdImageIO", (".nrrd", ".nhdr")),
    FileFormat("nifti", "NiftiImageIO", (".nii", ".nii.gz")),
    FileFormat("metaimage", "MetaImageIO", (".mha", ".mhd")),
)
# Where ITK puts the voxels of a header without them, packed as written here.
DETACHED_SUFFIXES = {".mhd": (".zraw",), ".nhdr": (".raw.gz",)}
SUFFIXES = tuple(suffix for file_format in FORMATS for suffix in file_format.suffixes)
_DATA_FILE = re.compile(r"(?:ElementDataFile\s*=|data ?file:=?)\s*(.*)", re.IGNORECASE | re.DOTALL)
# Deflate packs at most 1032 bytes into one.
MOST_COMPRESSION = 1100
# NIfTI stores the position of voxels in 32-bit floating point.
GEOMETRY_TOLERANCE_MM = 1e-2


@dataclass(frozen=True)
class FileHeader:
    """What a file says without its voxels: (slices, rows, columns), geometry as in ``CTVolume``, and what was seen."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: np.ndarray
    metadata: Mapping[str, str]
    warnings: tuple[VolumeWarning, ...]


def format_of(path: str | os.PathLike[str]) -> FileFormat | None:
    """The format that a file name's suffix stands for, in any case; None if it is not one of :data:`SUFFIXES`."""
    name = Path(path).name.lower()
    return next((one for one in FORMATS if name.endswith(one.suffixes)), None)


def read_file_header(path: str | os.PathLike[str]) -> FileHeader:
    """Size and geometry of a NRRD, NIfTI or MetaImage file.

    :raises InputError: not readable, not three-dimensional, not one value a voxel, or 8-bit.
    """
    return _header(Path(path), image_reader(Path(path)))


def read_file(path: str | os.PathLike[str], progress: Progress | None = None) -> CTVolume:
    """Read a NRRD, NIfTI or MetaImage file of HU. Integers are kept exactly, real numbers rounded.

    Geometry is LPS mm, as ITK gives it; NIfTI's RAS and NRRD's other spaces are converted by ITK.

    :raises InputError: the file is damaged, has no three dimensions or more than one value a voxel, holds NaN, or its
        values are not HU.
    """
    import SimpleITK as sitk

    path = Path(path)
    _report(progress, 0)
    reader = image_reader(path)
    header = _header(path, reader)
    name, voxel_bytes = format_of(path).name, _voxel_bytes(reader)
    if name == "nifti":
        nifti.check_nifti(path)
    with reading(path):
        is_whole = name != "nrrd" or nrrd.is_whole(path, data_files(path), voxel_bytes)
        is_whole = is_whole and (name != "metaimage" or metaimage.is_whole(path, voxel_bytes))
    if not is_whole:
        raise damaged_file(path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise damaged_file(path) from error
    hu, conversion_warnings = to_hu(sitk.GetArrayViewFromImage(image))
    padding_hu = _padding(header.metadata)
    steps, step_warnings = recorded_steps(header.metadata)
    warnings = (*header.warnings, *step_warnings, *conversion_warnings, *check_hounsfield(hu, padding_hu))
    provenance = Provenance(source=str(path), format=name, padding_hu=padding_hu, warnings=warnings, steps=steps)
    _report(progress, 1)
    return CTVolume(hu, header.spacing, header.origin, header.direction, provenance)


def read_metadata(reader: sitk.ImageFileReader) -> dict[str, str]:
    """The header entries of a file whose header was read, as :func:`header_text`.

    An entry whose name is no UTF-8 is left out: ITK's Python interface cannot be asked for it.
    """
    keys = [key for key in reader.GetMetaDataKeys() if header_text(key) == key]
    return {key: header_text(reader.GetMetaData(key)) for key in keys}


def header_text(text: str) -> str:
    """An entry of a header as ITK's Python interface gives it, such that it also takes it again.

    Bytes that are no UTF-8 come as surrogates, which it refuses; they are read as Latin-1, as older programs write it.
    """
    encoded = text.encode("utf-8", "surrogateescape")
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded.decode("latin-1")


def write_file(
    volume: CTVolume, path: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Write a volume as NRRD, NIfTI or MetaImage (by suffix), int16, compressed, with its history in the header.

    The written file is read back and compared before it is moved into place, because ITK does not report every full
    disk (it writes cut-off NIfTI files without an error).

    :raises OutputError: unknown suffix, existing file without ``overwrite``, the source itself, or a failed write.
    """
    path = Path(path)
    check_file_output(volume.provenance.source, path, overwrite=overwrite)
    file_format = format_of(path)
    forms = _forms_of_source(volume) if file_format.name == "nifti" else None
    _report(progress, 0)
    with atomic_file(path, overwrite=overwrite) as temporary:
        # Kept in no name: reading back needs its memory.
        write_image(image_of(volume.hu, volume, _fields(volume.provenance, file_format)), temporary, path, forms)
        _verify(volume, temporary, path)
        _report(progress, 1)


def check_file_output(source: str | os.PathLike[str], path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse at once what :func:`write_file` would refuse for the file's name or what is there."""
    path = Path(path)
    if format_of(path) is None:
        raise OutputError("has no suffix of a supported format", path=path, hint=f"use one of {', '.join(SUFFIXES)}")
    refuse_source(path, source)
    for place in (path, *(path.with_suffix(suffix) for suffix in DETACHED_SUFFIXES.get(path.suffix.lower(), ()))):
        refuse_existing_file(place, overwrite)


def _report(progress: Progress | None, done: int) -> None:
    if progress:
        progress(done, 1)


def image_reader(path: Path) -> sitk.ImageFileReader:
    """ITK's reader that has read the header.

    :raises InputError: the file is missing, damaged, or sheared.
    """
    import SimpleITK as sitk

    if not path.is_file():
        raise InputError("does not exist", path=path, hint="check the path")
    _require_sound_header(path)
    reader = sitk.ImageFileReader()
    # By suffix and not by content: ITK's own choice depends on the case of the suffix.
    reader.SetImageIO(format_of(path).image_io)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise nifti.slanted_axes(path) from error
        if format_of(path).name == "nifti" and nifti.is_second_version(path):
            raise InputError("is NIfTI of the second version", path=path, hint="save it as NIfTI-1 or NRRD") from error
        raise damaged_file(path) from error
    return reader


def _require_sound_header(path: Path) -> None:
    """:raises InputError: ITK would not survive the header, cannot unpack the voxels, or the file cannot be read."""
    rules = {"nrrd": nrrd, "metaimage": metaimage}.get(format_of(path).name)
    with reading(path):
        is_sound = rules is None or rules.is_sound_header(path)
        is_bzip2 = is_sound and rules is nrrd and nrrd.encoding(path) in ("bz2", "bzip2")
    if not is_sound:
        raise damaged_file(path)
    if is_bzip2:
        raise InputError(
            "has voxels that bzip2 packed, which no reader here unpacks",
            path=path,
            hint="save it again with the encoding gzip or raw, such as with 3D Slicer's Save",
        )


def _voxel_bytes(reader: sitk.ImageFileReader) -> int:
    """What all voxels take in memory."""
    import SimpleITK as sitk

    one = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID())
    return math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * one.GetSizeOfPixelComponent()


def _header(path: Path, reader: sitk.ImageFileReader) -> FileHeader:
    import SimpleITK as sitk

    size = reader.GetSize()
    if len(size) != 3:
        kind = "a single picture" if len(size) == 2 else "a time series or stack of volumes"
        raise OtherKindError(
            f"has {len(size)} dimensions ({kind})", path=path, hint="save one three-dimensional CT volume and load that"
        )
    if reader.GetNumberOfComponents() != 1:
        raise OtherKindError(
            f"has {reader.GetNumberOfComponents()} values a voxel, not HU", path=path, hint="load the CT volume itself"
        )
    if reader.GetPixelID() in (sitk.sitkUInt8, sitk.sitkInt8):
        raise OtherKindError(
            "has 8-bit values, a segmentation or a picture and not HU", path=path, hint="load the CT volume itself"
        )
    # So few bytes cannot hold that many voxels; a reader would take memory for all of them.
    if _voxel_bytes(reader) > MOST_COMPRESSION * sum(file.stat().st_size for file in (path, *data_files(path))):
        raise damaged_file(path)
    metadata = read_metadata(reader)
    spacing = tuple(reader.GetSpacing())
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    if not nifti.is_straight(direction):
        raise nifti.slanted_axes(path)
    if format_of(path).name == "nifti":
        nifti.check_forms(path, tuple(size[::-1]), np.column_stack([direction * spacing, reader.GetOrigin()]))
    warnings = grid_warnings(size[2], spacing)
    if _lacks_orientation(format_of(path), metadata):
        text = "The file does not say how the scan lies in the patient; left and right cannot be trusted."
        warnings = (*warnings, VolumeWarning("no-orientation", text))
    return FileHeader(
        shape=tuple(size[::-1]),
        spacing=spacing,
        origin=tuple(reader.GetOrigin()),
        direction=direction,
        metadata=metadata,
        warnings=warnings,
    )


def _lacks_orientation(file_format: FileFormat, metadata: Mapping[str, str]) -> bool:
    """NRRD without a space in the patient, or NIfTI whose qform and sform codes are both 0 (unknown)."""
    if file_format.name == "nrrd":
        space = metadata.get("NRRD_space", "")
        return not space or space.startswith(("scanner", "3D-"))
    if file_format.name == "nifti":
        return metadata.get("qform_code") == "0" and metadata.get("sform_code") == "0"
    return False


def data_files(path: Path) -> list[Path]:
    """The files with the voxels of a detached header (.mhd, .nhdr): one name, a numbered pattern or a list of names."""
    if path.suffix.lower() not in DETACHED_SUFFIXES:
        return []
    try:
        with path.open("rb") as file:
            found = _DATA_FILE.search(file.read(1 << 20).decode("latin-1"))
    except OSError:
        return []
    first, *more = (found.group(1) if found else "").splitlines() or [""]
    lines = more if first.startswith("LIST") else [first]
    # A pattern has its range behind it; a single name may have blanks within.
    names = {name for line in lines for name in (line.strip(), *line.split()[:1]) if name.isprintable()}
    patterns = [re.sub(r"%\d*d", "*", glob.escape(name)) for name in names if name and not Path(name).is_absolute()]
    matches = {Path(os.path.normpath(match)) for pattern in patterns for match in path.parent.glob(pattern)}
    return sorted(match for match in matches if match.is_file() and match != path)


def damaged_file(path: Path) -> InputError:
    """What to say of a file that is not what its name says."""
    return InputError(
        "is damaged, incomplete or not of the format its name says", path=path, hint="copy or export it again"
    )


def _padding(metadata: Mapping[str, str]) -> int | None:
    try:
        padding = int(metadata.get(PADDING_FIELD) or metadata.get(SLICER_PADDING_FIELD, ""))
    except ValueError:
        return None
    return padding if -(2**15) <= padding < 2**15 else None


def recorded_steps(metadata: Mapping[str, str]) -> tuple[tuple[ProcessingStep, ...], tuple[VolumeWarning, ...]]:
    """The processing steps that a header tells. The attack notice counts even where the rest is unreadable."""
    warnings: tuple[VolumeWarning, ...] = ()
    steps: tuple[ProcessingStep, ...] = ()
    try:
        steps = steps_from_text(metadata.get(STEPS_FIELD) or metadata.get(SLICER_STEPS_FIELD, "[]"))
    except (RecursionError, TypeError, ValueError):
        text = "The processing history in the file's header cannot be read; parts of it are unknown."
        warnings = (VolumeWarning("unreadable-history", text),)
    descrip = metadata.get(DESCRIP_FIELD, "")
    is_attack = Provenance(steps=steps).is_simulated_attack
    if not is_attack and (NOTICE in metadata.get(NOTICE_FIELD, "") or NOTICE in descrip):
        steps = (*steps, ProcessingStep(SIMULATED_ATTACK, descrip or NOTICE, time=""))
    elif not steps and descrip.startswith(PROTECTED_MARK):
        steps = (ProcessingStep(PROTECTION, descrip, time=""),)
    return steps, warnings


def steps_to_text(steps: Iterable[ProcessingStep]) -> str:
    """Processing steps as JSON: NumPy numbers and arrays as numbers and lists, anything else as its text."""
    return json.dumps(
        [{**vars(step), "parameters": dict(step.parameters)} for step in steps],
        default=lambda value: value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value),
    )


def steps_from_text(text: str) -> tuple[ProcessingStep, ...]:
    """The steps of :func:`steps_to_text`.

    :raises RecursionError, TypeError, ValueError: the text is none of it.
    """
    steps = tuple(ProcessingStep(**values) for values in json.loads(text))
    for step in steps:
        texts = (step.kind, step.description, step.time)
        if not all(isinstance(text, str) for text in texts) or not isinstance(step.parameters, dict):
            raise TypeError("no step")
    return steps


def image_of(values: np.ndarray, place: CTVolume | Any, entries: Mapping[str, str]) -> sitk.Image:
    """An image of ITK.

    :param values: (slices, rows, columns).
    :param place: has ``spacing``, ``origin`` and ``direction`` as a ``CTVolume`` does.
    :param entries: of the header.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(values)
    image.SetSpacing(place.spacing)
    image.SetOrigin(place.origin)
    image.SetDirection(np.ravel(place.direction).tolist())
    for key, text in entries.items():
        image.SetMetaData(key, text)
    return image


def _fields(provenance: Provenance, file_format: FileFormat) -> dict[str, str]:
    """The header entries that tell a volume's history in a file of this format."""
    if file_format.name == "nifti":
        descrip = _descrip(provenance)
        return {DESCRIP_FIELD: descrip} if descrip else {}
    fields = {}
    if provenance.is_simulated_attack:
        fields[NOTICE_FIELD] = f"{NOTICE} by MITSGAN {__version__}. Not a patient's scan."
    if provenance.steps:
        fields[STEPS_FIELD] = steps_to_text(provenance.steps)
    if provenance.padding_hu is not None:
        fields[PADDING_FIELD] = str(provenance.padding_hu)
    return fields


def _descrip(provenance: Provenance) -> str:
    """The mark for NIfTI: ASCII of at most :data:`DESCRIP_LENGTH` characters."""
    if not provenance.steps:
        return ""
    mark = f"{NOTICE} by MITSGAN" if provenance.is_simulated_attack else PROTECTED_MARK
    kinds = ", ".join(step.description for step in provenance.steps)
    text = f"{mark} {__version__}: {kinds}".encode("ascii", "replace").decode()
    return " ".join(text.split())[:DESCRIP_LENGTH]


def refuse_source(path: Path, source: str | os.PathLike[str]) -> None:
    """Raise ``OutputError`` where a file to be written is the one that was read."""
    if os.fspath(source) and path.exists() and Path(source).exists() and path.samefile(source):
        raise OutputError("is the source itself, which is never overwritten", path=path, hint="choose another name")


def _forms_of_source(volume: CTVolume) -> nifti.NiftiForms | None:
    """The forms of the NIfTI file that a volume was read from, for its copy."""
    source = Path(volume.provenance.source)
    if volume.provenance.format != "nifti" or not source.is_file():
        return None
    header = read_file_header(source)
    original = CTVolume(np.broadcast_to(np.int16(0), header.shape), header.spacing, header.origin, header.direction)
    return nifti.read_forms(source) if volume.same_geometry(original, GEOMETRY_TOLERANCE_MM) else None


def write_image(image: sitk.Image, temporary: Path, path: Path, forms: nifti.NiftiForms | None = None) -> None:
    """Write an image compressed, in the format of ``path``, to a place that is named as it.

    :param forms: of NIfTI, in place of those that ITK makes.
    :raises OutputError: ITK noticed a failure; it does not notice every one.
    """
    import SimpleITK as sitk

    file_format = format_of(path)
    # The lower case suffix is what ITK knows; SCAN.NII.GZ is refused by its NIfTI writer.
    suffix = next(s for s in sorted(file_format.suffixes, key=len, reverse=True) if path.name.lower().endswith(s))
    plain = temporary.with_name(temporary.name[: -len(suffix)] + suffix)
    written = plain.with_suffix("") if forms and suffix == ".nii.gz" else plain
    writer = sitk.ImageFileWriter()
    writer.SetImageIO(file_format.image_io)
    writer.SetFileName(str(written))
    writer.UseCompressionOn()
    try:
        writer.Execute(image)
    except RuntimeError as error:
        raise OutputError(
            "cannot be written", path=path, hint="check the free space on the disk and its permissions"
        ) from error
    if forms:
        nifti.write_forms(written, forms)
    if written != plain:
        _compress(written, plain)
    plain.rename(temporary)


def _compress(source: Path, destination: Path) -> None:
    """Compress a file in place of itself; neither its name nor the time goes in."""
    with (
        source.open("rb") as plain,
        destination.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
    ):
        shutil.copyfileobj(plain, packed, 1 << 20)
    source.unlink()


def _verify(volume: CTVolume, temporary: Path, path: Path) -> None:
    import SimpleITK as sitk

    failed = OutputError("could not be written completely", path=path, hint="check the free space on the disk")
    try:
        reader = image_reader(temporary)
        header = _header(temporary, reader)
        if format_of(path).name == "nifti":
            is_same = header.shape == volume.shape and nifti.holds_voxels(temporary, volume.hu)
        else:
            image = reader.Execute()  # kept in a name: the view does not keep it alive
            is_same = same_voxels(sitk.GetArrayViewFromImage(image), volume.hu)
    except (InputError, RuntimeError) as error:
        raise failed from error
    written = CTVolume(volume.hu, header.spacing, header.origin, header.direction)
    if not is_same or not volume.same_geometry(written, GEOMETRY_TOLERANCE_MM):
        raise failed


def same_voxels(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are equal, compared slice by slice to save memory."""
    return one.shape == other.shape and all(map(np.array_equal, one, other))
