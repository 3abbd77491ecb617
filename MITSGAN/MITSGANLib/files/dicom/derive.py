"""Headers of a derived image: what changes against the original, and nothing else (PS3.3 C.7.6.1.1.3, C.12.1).

The image gets new SOP and Series Instance UIDs in the same study and frame of reference, says that it is derived, from
which image and by what equipment, and loses the elements that would no longer be true.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ... import __version__
from ...scan.volume import PROTECTION, SIMULATED_ATTACK, ProcessingStep, Provenance
from .drill import SIMULATED, Drill, is_drill, mark_drill
from .encoded import code_item, new_item, new_uid, raw_element, raw_value, tags_of
from .headers import ENHANCED_CT, Header, quiet_pydicom
from .private_block import block_tags, remove_entries

if TYPE_CHECKING:
    from pydicom import Dataset

    from .encoded import Element

MANUFACTURER = "MITSGAN"
SERIES_NUMBER_OFFSET = 1000
LONG_STRING, SHORT_TEXT = 64, 1024  # characters in LO and ST (PS3.5 6.2)
INTEGER_STRING_MAX = 2**31 - 1

_MOMENT = "%Y%m%d%H%M%S.%f%z"

# What of a step's parameters tells how a scan was protected, as numbers or words.
_TELLING_PARAMETERS = {
    "model": str,
    "model_sha256": str,
    "seed": int,
    "strength_hu": float,
    "watermark": str,
    "watermark_version": int,
    "watermark_strength_hu": float,
}
_PARAMETER = re.compile(r"(\w+)=([^,()\s]+)")

# Statistics and thumbnails of other pixels, signatures over other bytes, approvals of another instance.
NO_LONGER_TRUE = [
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "SmallestPixelValueInSeries",
    "LargestPixelValueInSeries",
    "IconImageSequence",
    "DigitalSignaturesSequence",
    "MACParametersSequence",
    "SOPInstanceStatus",
    "SOPAuthorizationDateTime",
    "SOPAuthorizationComment",
    "AuthorizationEquipmentCertificationNumber",
    "InstanceCreatorUID",
    "PixelDataProviderURL",
]


@dataclass(frozen=True)
class Derivation:
    """What all images of one derived series share. ``time`` is the moment of writing."""

    series_uid: str
    time: datetime.datetime
    steps: tuple[ProcessingStep, ...]
    drill: Drill | None = None

    @property
    def description(self) -> str:
        """The Derivation Description of each image."""
        if not self.steps:
            return f"Copied by MITSGAN {__version__} without processing."
        return f"Processed by MITSGAN {__version__}: {'; '.join(step_text(step) for step in self.steps)}."


def derived_elements(dataset: Dataset, derivation: Derivation) -> dict[int, Element | None]:
    """What changes in the header of an image, single-frame or Enhanced, for the image derived from it.

    Texts of the original that live on within new ones are taken as bytes, so that they stay what they are even where
    the character set is not the one that the header names.

    :returns: the new element for each tag, or None where it is to be left out.
    :raises Exception: an element that the new ones build on is damaged (as pydicom raises it).
    """
    new = new_item(SOPInstanceUID=new_uid())
    keep_lossy_history(dataset, new)
    _describe_series(dataset, new, derivation)
    _stamp(dataset, new, derivation.time)
    _add_equipment(dataset, new, derivation)
    _add(new, dataset, "ImageType", "CS", derived_type(raw_value(dataset.get_item("ImageType")), dataset.SOPClassUID))
    if dataset.SOPClassUID in ENHANCED_CT:
        _derive_frames(dataset, new, derivation)
    else:
        _describe_derivation(dataset, new, derivation, reference_to(dataset))
    private = block_tags(dataset)
    remove_entries(dataset)  # a seal and a manifest are of the source's pixels
    removed = [*tags_of(NO_LONGER_TRUE), *(tag for tag in private if tag not in dataset)]
    if derivation.drill:
        removed += mark_drill(dataset, new, derivation.drill)
    return {**dict.fromkeys(removed), **{tag: new.get_item(tag) for tag in new.keys()}}  # noqa: SIM118 - decodes


def derived_type(original: bytes, sop_class: str) -> bytes:
    """Image Type of the derived image: DERIVED\\SECONDARY and the values from the third on kept.

    Enhanced CT knows no SECONDARY (PS3.3 C.8.16.1.2 allows PRIMARY alone), so there only the first value changes.
    """
    second = b"PRIMARY" if sop_class in ENHANCED_CT else b"SECONDARY"
    return b"\\".join([b"DERIVED", second, *original.split(b"\\")[2:]])


def step_text(step: ProcessingStep) -> str:
    """A processing step with its parameters as one line of ASCII, which every character set of DICOM contains."""
    parameters = ", ".join(f"{name}={value}" for name, value in step.parameters.items())
    text = f"{step.description} ({parameters})" if parameters else step.description
    return " ".join(text.encode("ascii", "replace").decode().split())


def recorded_steps(header: Header) -> tuple[ProcessingStep, ...]:
    """What a header tells of the steps that MITSGAN took, the reverse of :func:`step_text` as far as that is possible.

    A series that calls itself simulated counts as one, whoever wrote it.
    """
    steps = []
    with quiet_pydicom():
        try:
            for item in header.dataset.get("ContributingEquipmentSequence") or []:
                if item.get("Manufacturer") == MANUFACTURER:
                    told = (str(item.get(f"Contribution{name}") or "") for name in ("Description", "DateTime"))
                    steps.append(_recorded_step(*told))
        except Exception:  # noqa: BLE001 - pydicom decodes items at first use, and meets damage with anything
            steps.append(ProcessingStep("unknown", "The processing history cannot be read.", time=""))
    simulated = is_drill(header) or SIMULATED in header.text("SeriesDescription").upper()
    if simulated and not any(step.kind == SIMULATED_ATTACK for step in steps):
        steps.append(ProcessingStep(SIMULATED_ATTACK, "The series says that it is simulated.", time=""))
    return tuple(steps)


def _recorded_step(text: str, time: str) -> ProcessingStep:
    kinds = {SIMULATED: SIMULATED_ATTACK, "MITSGAN protection": PROTECTION}
    kind = next((kind for start, kind in kinds.items() if text.startswith(start)), "processing")
    description, _, listed = text.rpartition(" (")
    parameters = {}
    for name, value in _PARAMETER.findall(listed):
        if name in _TELLING_PARAMETERS:
            try:
                parameters[name] = _TELLING_PARAMETERS[name](value)
            except ValueError:
                continue
    try:
        time = datetime.datetime.strptime(time, _MOMENT).isoformat(timespec="seconds")
    except ValueError:
        time = ""
    return ProcessingStep(kind, description or text, parameters, time)


def _add(new: Dataset, dataset: Dataset, keyword: str, vr: str, value: bytes) -> None:
    new[keyword] = raw_element(keyword, vr, value, dataset.original_encoding)


def _describe_series(dataset: Dataset, new: Dataset, derivation: Derivation) -> None:
    new.SeriesInstanceUID = derivation.series_uid
    suffix = b" (protected)" if Provenance(steps=derivation.steps).last(PROTECTION) else b" (MITSGAN)"
    original = raw_value(dataset.get_item("SeriesDescription")).strip().removesuffix(suffix)
    text = (_shortened(original, dataset, LONG_STRING - len(suffix)) + suffix).strip()
    _add(new, dataset, "SeriesDescription", "LO", text)
    try:
        number = int(dataset.get("SeriesNumber") or 0) + SERIES_NUMBER_OFFSET
    except (TypeError, ValueError):
        number = SERIES_NUMBER_OFFSET
    new.SeriesNumber = number if number <= INTEGER_STRING_MAX else SERIES_NUMBER_OFFSET


def _shortened(text: bytes, dataset: Dataset, length: int) -> bytes:
    """The first ``length`` characters of a text, by the character set if it is in that, else bytes."""
    from pydicom.charset import decode_bytes, encode_string

    if len(text) <= length:
        return text
    encodings = dataset.original_character_set
    encodings = [encodings] if isinstance(encodings, str) else encodings
    characters = decode_bytes(text, encodings, set())
    if encode_string(characters, encodings) != text:
        return text[:length]
    return encode_string(characters[:length], encodings)


def _stamp(dataset: Dataset, new: Dataset, time: datetime.datetime) -> None:
    """Dates of series, instance and pixel data; those of study and acquisition stay.

    In the zone that the data set states (0008,0201), else in local time, as PS3.3 C.12.1.1.8 has it.
    """
    try:
        zone = datetime.datetime.strptime(str(dataset.get("TimezoneOffsetFromUTC") or ""), "%z").tzinfo
    except ValueError:
        zone = None
    time = time.astimezone(zone)
    for name in ("Series", "InstanceCreation", "Content"):
        setattr(new, f"{name}Date", time.strftime("%Y%m%d"))
        setattr(new, f"{name}Time", time.strftime("%H%M%S.%f"))


def _add_equipment(dataset: Dataset, new: Dataset, derivation: Derivation) -> None:
    """Append an item for each step, else one for the writing itself, to Contributing Equipment (PS3.3 C.12.1.1.5)."""
    contributions = []
    for text, moment in [(step_text(step), step.time) for step in derivation.steps] or [(derivation.description, "")]:
        try:
            time = datetime.datetime.fromisoformat(moment)
        except ValueError:
            time = derivation.time
        contribution = new_item(
            PurposeOfReferenceCodeSequence=[code_item("ModifyingEquipment")],
            Manufacturer=MANUFACTURER,
            ManufacturerModelName=MANUFACTURER,
            SoftwareVersions=__version__,
            ContributionDateTime=time.strftime(_MOMENT),
            ContributionDescription=text[:SHORT_TEXT],
        )
        contributions.append(contribution)
    new.ContributingEquipmentSequence = [*(dataset.get("ContributingEquipmentSequence") or []), *contributions]


def _describe_derivation(dataset: Dataset, target: Dataset, derivation: Derivation, reference: Dataset) -> None:
    """Put derivation description, code and source image into an image or an item of a functional group.

    :param dataset: the original image, or the new item itself.
    """
    earlier = raw_value(dataset.get_item("DerivationDescription")).strip()
    text = derivation.description.encode() + (b" Before: " if earlier else b"")
    text += _shortened(earlier, dataset, max(0, SHORT_TEXT - len(text)))
    _add(target, dataset, "DerivationDescription", "ST", text[:SHORT_TEXT])
    if derivation.steps:
        # A protected image is its source plus a perturbation, pixel by pixel: of the standard derivations (PS3.16 CID
        # 7203) that one says what was done.
        earlier_codes = dataset.get("DerivationCodeSequence") or []
        target.DerivationCodeSequence = [*earlier_codes, code_item("PixelByPixelAddition")]
    reference.SpatialLocationsPreserved = "YES"
    reference.PurposeOfReferenceCodeSequence = [code_item("SourceImageForImageProcessingOperation")]
    target.SourceImageSequence = [reference]


def reference_to(dataset: Dataset) -> Dataset:
    """A new item of a sequence that refers to an instance (PS3.3 table 10-11)."""
    return new_item(
        ReferencedSOPClassUID=str(dataset.SOPClassUID), ReferencedSOPInstanceUID=str(dataset.SOPInstanceUID)
    )


def _derive_frames(dataset: Dataset, new: Dataset, derivation: Derivation) -> None:
    """Derive the frames of Enhanced CT: their types and Derivation Image functional groups (PS3.3 C.7.6.16.2.6).

    Source Image Evidence is required where a functional group names a source image (PS3.3 C.8.15.2).
    """
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [new_item()])[0]
    earlier = list(shared.pop("DerivationImageSequence").value) if "DerivationImageSequence" in shared else []
    groups = dataset.PerFrameFunctionalGroupsSequence
    for group in [shared, *groups]:
        for item in group.get("CTImageFrameTypeSequence") or []:
            frame_type = derived_type(raw_value(item.get_item("FrameType")), dataset.SOPClassUID)
            _add(item, item, "FrameType", "CS", frame_type)
    for number, group in enumerate(groups, start=1):
        item = new_item()
        reference = reference_to(dataset)
        reference.ReferencedFrameNumber = number
        item.set_original_encoding(*dataset.original_encoding, dataset.original_character_set)
        _describe_derivation(item, item, derivation, reference)
        group.DerivationImageSequence = [*earlier, *(group.get("DerivationImageSequence") or []), item]
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if keyword in dataset:
            new[keyword] = dataset[keyword]
    series = new_item(SeriesInstanceUID=dataset.SeriesInstanceUID, ReferencedSOPSequence=[reference_to(dataset)])
    study = new_item(StudyInstanceUID=dataset.StudyInstanceUID, ReferencedSeriesSequence=[series])
    new.SourceImageEvidenceSequence = [*(dataset.get("SourceImageEvidenceSequence") or []), study]


def keep_lossy_history(dataset: Dataset, new: Dataset) -> None:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5), even where the original only shows it by its transfer syntax."""
    from pydicom import uid

    may_be_lossy = (
        uid.JPEGBaseline8Bit,
        uid.JPEGExtended12Bit,
        uid.JPEGLSNearLossless,
        uid.JPEG2000,
        uid.HTJ2K,
    )
    if not dataset.get("LossyImageCompression") and dataset.file_meta.TransferSyntaxUID in may_be_lossy:
        new.LossyImageCompression = "01"
