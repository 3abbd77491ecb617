"""A signed exam (PS3.17 Annex W): one document that refers to every instance of a study with its MAC, and is signed.

It is a Key Object Selection titled "Signed Complete Acquisition Content". No instance is touched. It shows which are
intact, changed, missing or extra.

A MAC (PS3.3 C.17.2.1, C.12.1.1.3.1.1) is SHA-256 or SHA-512 over all elements of an instance that are public, save
earlier signatures; which these are stands beside it. Private elements are left out: archives drop them, and in implicit
encoding their VR is lost. Like a signature it is bound to one encoding of the pixels.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, OutputError
from ...files.atomic import atomic_file, refuse_existing_file
from ...files.dicom.derive import reference_to
from ...files.dicom.encoded import code_item, new_item, new_uid, tags_of
from ...files.dicom.headers import Header, damage_named, damaged_file, quiet_pydicom, read_dataset
from ...files.dicom.series import DicomScan, scan_dicom
from ...runtime.progress import Progress, counted
from . import digital_signature
from .byte_stream import PIXEL_DATA, ByteStreamError, byte_stream, even, is_signable, mac_syntax, require_same_encoding
from .dcmtk_blocks import ITEM_BYTES, SEQUENCE_BYTES, Buffer, ReferenceSizes, lay_out, size_of

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from pydicom import Dataset

KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
TITLE = "SignedCompleteAcquisitionContent"  # a code of PS3.16, in the scheme DCM
DOCUMENT_NAME = "signed-exam.dcm"

# What the document says of patient and study, as the images do: Type 1 and 2 of these modules, and what identifies.
_SHARED_KEYWORDS = tuple(
    """
    SpecificCharacterSet PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate
    StudyTime ReferringPhysicianName StudyID AccessionNumber StudyDescription
    """.split()  # noqa: SIM905 - as literals they would fill many lines
)
_OPTIONAL_KEYWORDS = ("SpecificCharacterSet", "IssuerOfPatientID", "StudyDescription")
# No signature may cover these groups (PS3.3 C.12.1.1.3.1.1): commands, file meta, signatures, padding.
_NEVER_SIGNED_GROUPS = (0x0000, 0x0002, 0x4FFE, 0xFFFA, 0xFFFC, 0xFFFE)
# Of MACs; why there is a longer one says dcmtk_blocks.
_ALGORITHMS = ("SHA256", "SHA512")
SOP_SEQUENCE = 0x00081199
_MOST_NAMES = 8


@dataclass(frozen=True)
class Exam:
    """A study in a folder: its instances by series, and the exam documents beside them."""

    path: Path
    series: tuple[tuple[Header, ...], ...]
    documents: tuple[Path, ...]

    @property
    def instances(self) -> tuple[Header, ...]:
        """All instances, series by series."""
        return tuple(header for series in self.series for header in series)


@dataclass(frozen=True)
class ExamVerification:
    """What a study is against its document: each instance by the name of its file within the study.

    ``missing`` names places in the document, since there is no file. ``unchecked`` are instances whose MAC says
    nothing, such as those compressed since. Nothing here quotes a header.
    """

    document: Path
    signatures: tuple[digital_signature.SignatureReport, ...]
    intact: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_changed(self) -> bool:
        """Whether the document or the study is not what was signed."""
        return bool(self.changed or self.missing or self.extra) or any(r.status == "changed" for r in self.signatures)

    @property
    def is_checked(self) -> bool:
        """Whether a valid signature covers the references, and every instance could be compared."""
        return not self.unchecked and any(map(_covers, self.signatures))

    @property
    def is_trusted(self) -> bool:
        """Whether a valid signature over the references is by someone trusted."""
        return any(_covers(report) and report.trusted for report in self.signatures)

    def summary(self) -> list[str]:
        """What to tell a person."""
        lines = [f"{len(self.intact)} instance{'' if len(self.intact) == 1 else 's'} intact"]
        for kind in ("changed", "missing", "extra", "unchecked"):
            lines += [f"{kind}: {name}" for name in some_names(getattr(self, kind))]
        for report in self.signatures:
            if report.fingerprint:
                lines.append(report.signer)
            if report.status != "valid":
                lines.append(f"signature {report.status}: {report.text}")
        if not self.signatures:
            lines.append("The document carries no signature, so anybody may have written it.")
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**dataclasses.asdict(self), "document": str(self.document)}


def read_exam(path: str | os.PathLike[str]) -> Exam:
    """Find the one study of a folder.

    :raises InputError: there is no CT in it, several studies or patients, an instance without UIDs or twice, or a file
        cannot be read.
    """
    scan = scan_study(path)
    for file in (*scan.damaged, *scan.without_series, *(header.path for header in scan.others)):
        if file in scan.damaged:
            raise damaged_file(file)
        raise InputError(
            "lacks a Series Instance UID, so no document can refer to it", path=file, hint="take it out of the folder"
        )
    documents = exam_documents(scan)
    images = [[header for header in one.headers if header.path not in documents] for one in scan.series]
    series = [tuple(sorted(one, key=lambda header: (header.number("InstanceNumber"), header.path))) for one in images]
    exam = Exam(scan.path, tuple(filter(None, series)), documents)
    if not any(header.is_ct_image for header in exam.instances):
        raise InputError("holds no CT image", path=scan.path, hint="give the folder of a CT study")
    for keyword, word in (("StudyInstanceUID", "studies"), ("PatientID", "patients")):
        count = len({header.text(keyword) for header in exam.instances})
        if count > 1:
            raise InputError(f"holds images of {count} {word}", path=scan.path, hint="sign each study by itself")
    seen: set[str] = set()
    for header in exam.instances:
        if not all(map(header.text, ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"))):
            raise InputError("lacks a UID, so no document can refer to it", path=header.path, hint="anonymize it anew")
        if header.text("SOPInstanceUID") in seen:
            raise InputError(
                "is there twice, under another name too", path=header.path, hint="take one out of the folder"
            )
        seen.add(header.text("SOPInstanceUID"))
    return exam


def sign_exam(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    signer: digital_signature.DicomSigner,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, int]:
    """Sign a study as a whole. No file of it is changed.

    :param output: the file of the document; None puts it into the study, as :data:`DOCUMENT_NAME`.
    :returns: where the document was written, and how many instances it refers to.
    :raises InputError: as :func:`read_exam`; or the study has a document already, which is replaced only with
        ``overwrite`` and in its place; or an instance is big-endian.
    :raises OutputError: the output exists without ``overwrite``, is an instance, or cannot be written.
    """
    exam = read_exam(path)
    output = exam.path / DOCUMENT_NAME if output is None else Path(output)
    for document in exam.documents:
        if not (overwrite and output.exists() and output.samefile(document)):
            raise InputError(
                "signs this exam already",
                path=document,
                hint="verify it; to sign anew, take it away, or overwrite it in its place",
            )
    if output.exists() and any(output.samefile(header.path) for header in exam.instances):
        raise OutputError("is an image of the exam", path=output, hint="choose another name")
    refuse_existing_file(output, overwrite)
    document = _document(exam, datetime.datetime.now().astimezone(), progress)
    digital_signature.sign_dataset(document, signer, datetime.datetime.now(datetime.UTC), public_tags(document))
    with atomic_file(output, overwrite=overwrite) as temporary, quiet_pydicom():
        document.save_as(temporary, enforce_file_format=True)
    return output, len(exam.instances)


def find_exam_document(path: str | os.PathLike[str]) -> Path | None:
    """The document that signs the study in a folder, or None; of a file, the file itself if it is one.

    :raises InputError: there are several.
    """
    documents = exam_documents(scan_study(path))
    if len(documents) > 1:
        raise InputError(f"holds {len(documents)} signed exams", path=path, hint="name the document to verify")
    return documents[0] if documents else None


def verify_exam(
    path: str | os.PathLike[str], document: Path, trusted: Sequence[Certificate] = (), progress: Progress | None = None
) -> ExamVerification:
    """Compare a study with the document that signs it; instances are found by SOP Instance UID, whatever their names.

    :param trusted: certificates of signers, or of authorities that issue them.
    :raises InputError: the document cannot be read, or names no instance.
    """
    dataset = read_dataset(document)
    signatures = digital_signature.verify_dataset(dataset, trusted)
    with damage_named(document), quiet_pydicom():
        references = list(_references(dataset))
    if not references:
        raise InputError("names no instance", path=document, hint="sign the exam anew")
    scan = scan_study(path)
    headers = [header for series in scan.series for header in series.headers] + list(scan.others)
    files = {header.path: header.text("SOPInstanceUID") for header in headers}
    files |= dict.fromkeys((*scan.without_series, *scan.damaged), "")
    by_uid: dict[str, list[Path]] = defaultdict(list)
    for file, uid in files.items():
        if not file.samefile(document):
            by_uid[uid].append(file)
    found: dict[str, list[str]] = defaultdict(list)
    uncovered: set[str] = set()
    for place, uid, item in counted(references, progress):
        candidates = by_uid.pop(uid, []) if uid else []
        if not candidates:
            found["missing"].append(place)
            continue
        # Of several under one UID the one that was signed is the instance, and the others are extra.
        kinds = {file: _compare(file, item, uncovered) for file in candidates}
        best = min(candidates, key=lambda file: ("intact", "unchecked", "changed").index(kinds[file]))
        found[kinds[best]].append(scan.name(best))
        found["extra"] += [scan.name(file) for file in candidates if file != best]
    found["extra"] += [scan.name(file) for left in by_uid.values() for file in left]
    notes = []
    if found["unchecked"]:
        notes.append("Unchecked: compressed or decompressed since, or their MAC covers no pixels or is of a weak kind.")
    if uncovered:
        notes.append(f"Elements were added that no MAC covers: {', '.join(sorted(uncovered))}.")
    return ExamVerification(
        document, signatures, **{kind: tuple(sorted(names)) for kind, names in found.items()}, notes=tuple(notes)
    )


def scan_study(path: str | os.PathLike[str]) -> DicomScan:
    """What a folder holds, without the directories of media, which are no instances."""
    scan = scan_dicom(path)
    others = [h for h in scan.others if h.dataset.file_meta.get("MediaStorageSOPClassUID") != MEDIA_DIRECTORY]
    return dataclasses.replace(scan, others=tuple(others))


def exam_documents(scan: DicomScan) -> tuple[Path, ...]:
    """The documents of signed exams in a folder."""
    headers = [header for series in scan.series for header in series.headers]
    selections = [header.path for header in headers if header.text("SOPClassUID") == KEY_OBJECT_SELECTION]
    return tuple(path for path in selections if is_exam_document(path))


def is_exam_document(path: Path) -> bool:
    """Whether a DICOM file is the document of a signed exam, valid or not."""
    with quiet_pydicom():
        try:
            document = read_dataset(path)
            title, expected = document.ConceptNameCodeSequence[0], code_item(TITLE)
            is_titled = all(title[name] == expected[name] for name in ("CodeValue", "CodingSchemeDesignator"))
            return is_titled and document.SOPClassUID == KEY_OBJECT_SELECTION
        except Exception:  # noqa: BLE001 - a damaged document is no document
            return False


def some_names(names: Sequence[str]) -> list[str]:
    """The first names, and how many more there are."""
    more = [f"and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return [*names[:_MOST_NAMES], *more]


def _document(exam: Exam, time: datetime.datetime, progress: Progress | None) -> Dataset:
    """The document, not signed yet."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    title = code_item(TITLE)
    first = next(header for header in exam.instances if header.is_ct_image)
    document = _shared(first.path)
    document.file_meta = FileMetaDataset()
    document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    document.SOPClassUID = KEY_OBJECT_SELECTION
    document.SOPInstanceUID, document.SeriesInstanceUID = new_uid(), new_uid()
    document.Modality, document.Manufacturer = "KO", "MITSGAN"
    document.SeriesDescription = title.CodeMeaning
    document.SeriesNumber = int(max(header.number("SeriesNumber") for header in exam.instances)) + 1
    document.InstanceNumber = 1
    document.ContentDate = document.InstanceCreationDate = time.strftime("%Y%m%d")
    document.ContentTime = document.InstanceCreationTime = time.strftime("%H%M%S")
    document.ReferencedPerformedProcedureStepSequence = []
    document.ValueType, document.ContinuityOfContent = "CONTAINER", "SEPARATE"
    document.ConceptNameCodeSequence = [title]
    document.ContentTemplateSequence = [new_item(MappingResource="DCMR", TemplateIdentifier="2010")]
    evidence, content = [], []
    for header in counted(exam.instances, progress):
        evidence.append(_evidence(header))
        kind, reference = "IMAGE" if header.text("Rows") else "COMPOSITE", reference_to(header.dataset)
        content.append(new_item(RelationshipType="CONTAINS", ValueType=kind, ReferencedSOPSequence=[reference]))
    _add_references(document, exam, evidence, content)
    return document


def _add_references(
    document: Dataset, exam: Exam, evidence: Sequence[Sequence[Dataset]], content: Sequence[Dataset]
) -> None:
    """Add the references to a document, in an order that DCMTK can check; see ``dcmtk_blocks``.

    :param evidence: of each instance an item with its MAC, and one with a longer MAC.
    """
    series_of = [number for number, headers in enumerate(exam.series) for _ in headers]
    uids = [headers[0].text("SeriesInstanceUID") for headers in exam.series]
    observations = [new_uid() for _ in content]
    buffer = Buffer()
    buffer.elements(document, [tag for tag in public_tags(document) if tag < digital_signature.REFERENCES])

    def pass_between(buffer: Buffer) -> None:
        buffer.elements(document, [tag for tag in public_tags(document) if tag > digital_signature.REFERENCES])
        buffer.begin()

    chunks, lengthened = lay_out(
        ReferenceSizes(
            [ITEM_BYTES + size_of(plain) for plain, _longer in evidence],
            series_of,
            [len(even(uid.encode())) for uid in uids],
            len(even(str(document.StudyInstanceUID).encode())),
            size_of(evidence[0][1]) - size_of(evidence[0][0]),
        ),
        [
            (
                size_of(item, [SOP_SEQUENCE]) - SEQUENCE_BYTES,
                (len(item.RelationshipType), len(even(item.ValueType.encode()))),
                len(even(observation.encode())),
            )
            for item, observation in zip(content, observations, strict=True)
        ],
        buffer.used,
        pass_between,
    )
    for k in lengthened:
        content[k].ObservationUID = observations[k]
    document.ContentSequence = list(content)
    document.CurrentRequestedProcedureEvidenceSequence = []
    for chunk in chunks:
        all_series = [
            new_item(
                SeriesInstanceUID=uids[number],
                ReferencedSOPSequence=[evidence[k][k < chunk.references[0] + chunk.longer] for k in references],
            )
            for number, references in itertools.groupby(chunk.references, key=series_of.__getitem__)
        ]
        study = new_item(StudyInstanceUID=document.StudyInstanceUID, ReferencedSeriesSequence=all_series)
        document.CurrentRequestedProcedureEvidenceSequence.append(study)


def _shared(path: Path) -> Dataset:
    """What the document says of patient and study, as an image does."""
    shared = new_item()
    with damage_named(path), quiet_pydicom():
        image = read_dataset(path)
        for keyword in _SHARED_KEYWORDS:
            if keyword in image:
                shared[keyword] = image[keyword]
            elif keyword not in _OPTIONAL_KEYWORDS:
                setattr(shared, keyword, "")
    return shared


def _evidence(header: Header) -> list[Dataset]:
    """References to an instance with its MAC, one for each of :data:`_ALGORITHMS`.

    :raises ByteStreamError: the file is big-endian.
    """
    items = []
    with quiet_pydicom():
        dataset = read_dataset(header.path)
        if not dataset.file_meta.TransferSyntaxUID.is_little_endian:
            raise ByteStreamError("is big-endian", path=header.path, hint="convert it to little-endian first")
        tags, syntax = public_tags(dataset), mac_syntax(dataset)
        for name, mac in zip(_ALGORITHMS, _macs(dataset, tags, _ALGORITHMS), strict=True):
            items.append(reference_to(header.dataset))
            items[-1].ReferencedSOPInstanceMACSequence = [
                new_item(MACCalculationTransferSyntaxUID=syntax, MACAlgorithm=name, DataElementsSigned=tags, MAC=mac)
            ]
    return items


def public_tags(dataset: Dataset) -> list[int]:
    """The elements that a MAC covers, in their order: all public ones that it may."""
    left_out = tags_of(digital_signature.SIGNATURE_KEYWORDS)
    return [
        tag
        for tag in sorted(dataset.keys())
        if not tag.is_private
        and tag.element  # group lengths
        and tag.group not in _NEVER_SIGNED_GROUPS
        and tag not in left_out
        and is_signable(dataset, tag)
    ]


def _macs(dataset: Dataset, tags: Sequence[int], algorithms: Sequence[str]) -> list[bytes]:
    digests = [hashlib.new(digital_signature.MAC_ALGORITHMS[algorithm]) for algorithm in algorithms]
    for piece in byte_stream(dataset, tags, dataset.file_meta.TransferSyntaxUID.is_encapsulated):
        for digest in digests:
            digest.update(piece)
    return [digest.digest() for digest in digests]


def _references(document: Dataset) -> Iterator[tuple[str, str, Dataset]]:
    """Each instance of a document: its place there, its UID and the item. A series may be spread over several."""
    by_series: dict[str, list[Dataset]] = defaultdict(list)
    for study in document.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            by_series[str(series.SeriesInstanceUID)] += series.ReferencedSOPSequence
    for number, items in enumerate(by_series.values(), 1):
        for k, item in enumerate(items, 1):
            place = f"instance {k} of {len(items)} in series {number} of the document"
            yield place, str(item.ReferencedSOPInstanceUID), item


def _compare(file: Path, reference: Dataset, uncovered: set[str]) -> str:
    """Whether a file is ``intact``, ``changed`` or ``unchecked``; adds what no MAC covers of it to ``uncovered``."""
    from pydicom.datadict import keyword_for_tag

    with quiet_pydicom():
        try:
            dataset = read_dataset(file)
        except InputError:
            return "changed"
        try:
            (item,) = reference.ReferencedSOPInstanceMACSequence
            require_same_encoding(dataset, item.MACCalculationTransferSyntaxUID)
            tags = set(digital_signature.signed_tags(item))
            if PIXEL_DATA in dataset and PIXEL_DATA not in tags:
                return "unchecked"
            (mac,) = _macs(dataset, digital_signature.signed_tags(item), [str(item.MACAlgorithm)])
            if not hmac.compare_digest(mac, bytes(item.MAC)):
                return "changed"
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - foreign bytes go through pydicom, which raises anything
            return "unchecked"
        uncovered |= {keyword_for_tag(tag) or "a retired one" for tag in set(public_tags(dataset)) - tags}
    return "intact"


def _covers(report: digital_signature.SignatureReport) -> bool:
    return report.status == "valid" and report.covers_references
