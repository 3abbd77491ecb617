"""A simulated attack as DICOM, for drills alone: marked for ever, and of nobody.

The mark is in headers and burned into no pixel, since a reader is to look for the forgery: Synthetic Data YES
(PS3.3 C.12.1.1.1), Image Type DERIVED, SIMULATED in the descriptions of series and study and in Image Comments. All
UIDs are new, and patient and order are replaced, so that no archive files it with the patient's own scans. This is no
de-identification: what else the original's headers hold stays. They say nothing of what was done, nor where.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...scan.volume import SIMULATED_ATTACK, ProcessingStep
from .encoded import new_uid, raw_element, raw_value, tags_of

if TYPE_CHECKING:
    from pydicom import Dataset

    from .headers import Header

SIMULATED = "SIMULATED"
COMMENT = f"{SIMULATED}: made by MITSGAN for a drill. Not a patient's image."
# Whether something was added, erased or left alone is for the answer sheet to say.
STEP_TEXT = f"{SIMULATED} for a drill; it may hold a forgery, and is no patient's image"

# What would lead back to the patient's own images, or files this one with them.
_LEADING_BACK = (
    "SourceImageSequence",
    "SourceImageEvidenceSequence",
    "ReferencedImageSequence",
    "ReferencedStudySequence",
    "ReferencedPatientSequence",
    "ReferencedInstanceSequence",
    "ReferencedImageEvidenceSequence",
    "ReferencedPerformedProcedureStepSequence",
    "RequestAttributesSequence",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDs",
    "OtherPatientIDsSequence",
    "OtherPatientNames",
    "ConcatenationUID",
    "SOPInstanceUIDOfConcatenationSource",
)


def drill_step() -> ProcessingStep:
    """What the headers of a drill's images tell of it."""
    return ProcessingStep(SIMULATED_ATTACK, STEP_TEXT)


def is_drill_step(step: ProcessingStep | None) -> bool:
    """Whether a step says no more than that a scan is a case of a drill."""
    return step is not None and step.kind == SIMULATED_ATTACK and step.description.startswith(STEP_TEXT)


def is_drill(header: Header) -> bool:
    """Whether an image says that a drill's series is what it belongs to."""
    return header.text("SyntheticData") == "YES" and header.text("SeriesDescription").startswith(SIMULATED)


@dataclass(frozen=True)
class Drill:
    """The new UIDs that the images of one drill series share."""

    series_uid: str = field(default_factory=new_uid)
    study_uid: str = field(default_factory=new_uid)
    frame_of_reference_uid: str = field(default_factory=new_uid)

    @property
    def patient_id(self) -> str:
        """An identifier of nobody."""
        return f"{SIMULATED}-{self.study_uid[-8:]}"


def mark_drill(dataset: Dataset, new: Dataset, drill: Drill) -> list[int]:
    """Mark the header of a derived image.

    :param new: the elements of the derived image that differ; changed in place.
    :returns: the tags to leave out.
    """
    new.SyntheticData = "YES"
    new.ImageComments = COMMENT
    new.StudyInstanceUID = drill.study_uid
    if "FrameOfReferenceUID" in dataset:
        new.FrameOfReferenceUID = drill.frame_of_reference_uid
    new.PatientName, new.PatientID = f"{SIMULATED}^Drill", drill.patient_id
    new.AccessionNumber = new.StudyID = ""
    for keyword in ("SeriesDescription", "StudyDescription"):
        # Bytes, so that the rest stays what it is in any character set; LO takes 64 characters.
        text = f"{SIMULATED} ".encode() + raw_value(dataset.get_item(keyword)).strip()
        text = text.strip() if len(text) <= 64 else SIMULATED.encode()
        new[keyword] = raw_element(keyword, "LO", text, dataset.original_encoding)
    for group in new.get("PerFrameFunctionalGroupsSequence") or []:
        for item in group.get("DerivationImageSequence") or []:
            item.SourceImageSequence = []
    leading = tags_of(_LEADING_BACK)
    for tag in leading:
        new.pop(tag, None)
    return leading
