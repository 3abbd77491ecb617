"""DICOM headers: which files are DICOM, and the few elements that sorting and checking a series needs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DependencyError, InputError, MITSGANError, reading
from .encoded import EncodedFile, decode_now, native_syntax

if TYPE_CHECKING:
    from pydicom import Dataset

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_CONVERTED_ENHANCED_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2.2"
ENHANCED_CT = (ENHANCED_CT_IMAGE_STORAGE, LEGACY_CONVERTED_ENHANCED_CT_IMAGE_STORAGE)
CT_STORAGE = (CT_IMAGE_STORAGE, *ENHANCED_CT)

PREAMBLE_END = b"DICM"

# Of the patient module only the identifier is read, to see that one series is of one patient; it is never shown.
HEADER_KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "Modality",
    "ImageType",
    "SyntheticData",
    "SeriesDescription",
    "SeriesNumber",
    "InstanceNumber",
    "ConvolutionKernel",
    "ContributingEquipmentSequence",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "GantryDetectorTilt",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "InConcatenationTotalNumber",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "LossyImageCompression",
    "BurnedInAnnotation",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
# Of these a scan is as good without.
DESCRIBING_KEYWORDS = (
    "SyntheticData",
    "SeriesDescription",
    "SeriesNumber",
    "InstanceNumber",
    "ConvolutionKernel",
    "ContributingEquipmentSequence",
    "SliceThickness",
    "GantryDetectorTilt",
)


@dataclass(frozen=True)
class Header:
    """The scanned elements (:data:`HEADER_KEYWORDS`) of one DICOM file."""

    path: Path
    dataset: Dataset

    def text(self, keyword: str) -> str:
        """An element as one line of printable text, or an empty string: headers are foreign and go to terminals."""
        value = self.dataset.get(keyword)
        if value is None:
            return ""
        text = str(value) if isinstance(value, str) or not isinstance(value, Sequence) else "/".join(map(str, value))
        return (text if text.isprintable() else "".join(c for c in text if c.isprintable())).strip()

    def number(self, keyword: str) -> float:
        """An element as a number; 0 where it is missing, empty or no single number."""
        try:
            return float(self.text(keyword) or 0)
        except ValueError:
            return 0.0

    @property
    def is_ct_image(self) -> bool:
        """Whether this is a CT image, single-frame or Enhanced, by its SOP class."""
        return self.text("SOPClassUID") in CT_STORAGE

    @property
    def may_be_cut_off_ct(self) -> bool:
        """Whether a file without Series UID may be the beginning of a CT image, and not a DICOMDIR or a stray file."""
        media_class = self.dataset.file_meta.get("MediaStorageSOPClassUID")
        return self.dataset.preamble is not None and media_class in (None, *CT_STORAGE)

    @property
    def is_picture(self) -> bool:
        """Whether this is a page of colors or of 8 bits, such as a screen capture or a dose report, and no slice."""
        gray = self.text("PhotometricInterpretation") in ("", "MONOCHROME1", "MONOCHROME2")
        return not gray or self.text("SamplesPerPixel") not in ("", "1") or self.text("BitsAllocated") == "8"

    @property
    def is_enhanced(self) -> bool:
        """Whether this is Enhanced CT, with many frames."""
        return self.text("SOPClassUID") in ENHANCED_CT

    @property
    def image_type(self) -> tuple[str, ...]:
        """The values of Image Type (PS3.3 C.7.6.1.1.2)."""
        value = self.dataset.get("ImageType") or ()
        return (value,) if isinstance(value, str) else tuple(str(part) for part in value)

    @property
    def contributors(self) -> tuple[str, ...]:
        """The manufacturers of Contributing Equipment; of those that cannot be read, none."""
        with quiet_pydicom():
            try:
                items = self.dataset.get("ContributingEquipmentSequence") or []
                return tuple(str(item.get("Manufacturer") or "") for item in items)
            except Exception:  # noqa: BLE001 - pydicom decodes items at first use, and meets damage with anything
                return ()

    @property
    def is_localizer(self) -> bool:
        """True for a scout / topogram / surview: PS3.3 C.8.2.1.1.1 has LOCALIZER in Image Type."""
        return "LOCALIZER" in self.image_type or "SCOUT" in self.image_type


def silence_pydicom() -> None:
    """Silence pydicom for the whole process: what it logs and warns of quotes header values."""
    _pydicom_log().propagate = False  # not a level, which would be set back when pydicom is imported
    warnings.filterwarnings("ignore", module=r"pydicom\b")


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence what pydicom warns of and logs: it quotes header values, and a patient's name must not reach a log.

    What fails is raised all the same.
    """
    log = _pydicom_log()
    # Not a level, whose change makes every logger forget what it knows. What its children log ends at its handlers.
    before = log.propagate, log.handlers
    log.propagate, log.handlers = False, [logging.NullHandler()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.propagate, log.handlers = before


def _pydicom_log() -> logging.Logger:
    """The logger above all of pydicom's, with a handler, since Python else takes its own."""
    log = logging.getLogger("pydicom")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    return log


def require_pydicom() -> None:
    """Raise ``DependencyError`` where pydicom cannot be imported."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "DICOM needs the package pydicom, which is not installed; install it with: pip install pydicom"
        ) from error


def read_header(path: Path) -> Header | None:
    """The header of a DICOM file recognized by its content, or None for any other file.

    A DICOM file begins with a preamble (PS3.10 7.1); older ones have none and begin with group 0002 or 0008.

    :raises InputError: the file begins as DICOM but is damaged, or cannot be opened.
    """
    start = _first_bytes(path)
    has_preamble = start[128:] == PREAMBLE_END
    if not has_preamble and not (start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"):
        return None
    try:
        dataset = read_dataset(path, stop_before_pixels=True, specific_tags=HEADER_KEYWORDS)
    except InputError:
        if has_preamble:
            raise
        return None
    with damage_named(path), quiet_pydicom():
        decode_now(dataset, DESCRIBING_KEYWORDS)
        decode_now(dataset.file_meta)
    return Header(path, dataset)


def holds_nothing(path: Path) -> bool:
    """Whether a file is empty or all zeros, as copies are that failed.

    :raises InputError: the file cannot be read.
    """
    with reading(path), path.open("rb") as file:
        return not any(chunk.strip(b"\0") for chunk in iter(lambda: file.read(1 << 20), b""))


def has_dicom_preamble(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes; enough for files of our own writing.

    :raises InputError: the file cannot be opened.
    """
    return _first_bytes(path)[128:] == PREAMBLE_END


def _first_bytes(path: Path) -> bytes:
    with reading(path), path.open("rb") as file:
        return file.read(132)


def read_dataset(path: Path, **options: object) -> Dataset:
    """The data set of a DICOM file; with ``options``, which ``pydicom.dcmread`` takes, a part of it.

    :raises InputError: the file is damaged or cannot be opened.
    """
    import pydicom

    if not options:
        return read_encoded(path).dataset
    with damage_named(path), quiet_pydicom():
        dataset = pydicom.dcmread(path, force=True, **options)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = native_syntax(*dataset.original_encoding)
        return dataset


def read_encoded(path: Path) -> EncodedFile:
    """A whole DICOM file with its bytes, so that it can be written again with some elements replaced.

    :raises InputError: the file is damaged or cannot be opened.
    """
    with damage_named(path), quiet_pydicom():
        return EncodedFile.parse(path.read_bytes())


@contextmanager
def damage_named(path: Path, damaged: Callable[[Path], InputError] | None = None) -> Iterator[None]:
    """Take whatever pydicom and decoders raise at foreign bytes as damage: many types, none of them documented.

    :param damaged: makes the error from the path, in place of :func:`damaged_file`.
    :raises InputError: in place of anything that is not an error of ours, or of this computer; the system's refusal to
        read the file, too.
    """
    try:
        yield
    except (MITSGANError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # pydicom raises one without, of a damaged sequence
            raise InputError(f"cannot be read ({error.strerror})", path=path, hint="check its permissions") from error
        raise (damaged or damaged_file)(path) from error


def damaged_file(path: Path) -> InputError:
    """The error about a DICOM file that cannot be read."""
    return InputError(
        "is a damaged or incomplete DICOM file", path=path, hint="copy it again from its source or take it away"
    )
