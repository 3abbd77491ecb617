"""Examination and verification of a collection: what was found of every CT scan of a tree.

The output is a folder with the summary and the records; no scan is written. See ``trees`` for what makes a run
resumable.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from MITSGANLib.errors import InputError
from MITSGANLib.examination.signed import examine_contents
from MITSGANLib.examination.verdict import Outcome
from MITSGANLib.files.dicom.headers import read_header
from MITSGANLib.files.dicom.series import list_files
from MITSGANLib.keys.key_files import read_key_file
from MITSGANLib.keys.signing_keys import fingerprint, load_public_key, raw_public_key
from MITSGANLib.scan.volume import VolumeWarning
from MITSGANLib.signature.contents import ScanContents, read_contents_to_verify, read_series_to_verify
from MITSGANLib.signature.dicom.digital_signature import (
    ImageSignatures,
    certificate_fingerprint,
    load_certificates,
    verify_images,
)
from MITSGANLib.signature.dicom.exam import ExamVerification, is_exam_document, verify_exam
from MITSGANLib.signature.manifest import SUFFIX
from MITSGANLib.signature.study import StudyVerification, find_study_manifest, is_study_manifest, verify_study
from MITSGANLib.signature.verification import Verification, find_manifest, manifest_within, verify_scan
from MITSGANLib.watermark.pattern import OPEN_KEY, WatermarkKey, watermark_key

from .inventory import BESIDE_CT, Failure, Inventory, StockedScan, file_fact, relative_path, stock_files
from .trees import Record, ScanJob, Stage, Tell, TreeConfig, TreeReport, Write, checked, work_through

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

INTACT, NOT_CHECKED, CHANGED, UNKNOWN_SIGNER = 0, InputError.exit_code, 7, 8
VERDICTS = {
    INTACT: "intact",
    NOT_CHECKED: "cannot be checked",
    CHANGED: "changed",
    UNKNOWN_SIGNER: "intact, unknown signer",
}
EXAMINED = {Outcome.INTACT: 0, Outcome.NOTHING_FOUND: 0, Outcome.CHANGED: 7, Outcome.CANNOT_TELL: 8}

OF_STUDY = "signed with its study"

# As an inventory says of what may be an exam's document.
_SELECTION = "Key Object Selection"
_KINDS = ("intact", "changed", "missing", "extra", "unchecked")
_MOST_TILES = _MOST_FINDINGS = 100
# Exit code, verdict, what is known, and warnings.
_Judged = tuple[int, str, dict[str, Any], tuple[VolumeWarning, ...]]


class Trust(NamedTuple):
    """Whom the user trusts: a watermark's key, Ed25519 keys (fingerprint and file), and X.509 certificates."""

    key: WatermarkKey
    signers: Mapping[str, Path]
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True)
class VerdictConfig(TreeConfig):
    """What to judge, where the results go, and whom to trust; each process reads the files itself.

    :param watermark: key file of the watermark; the open one where None.
    :param public_keys: files of Ed25519 keys.
    :param certificates: files of X.509 certificates.
    :param deidentified: whether identifying headers were changed on purpose.
    """

    watermark: Path | None = None
    public_keys: tuple[Path, ...] = ()
    certificates: tuple[Path, ...] = ()
    deidentified: bool = False

    def trust(self) -> Trust:
        """What the files hold; raises as :func:`read_trust`."""
        return read_trust(self.watermark, self.public_keys, self.certificates)

    def settings(self) -> dict[str, Any]:
        """What decides the results besides the scans."""
        key = self.watermark and read_key_file(self.watermark)
        trust = self.trust()
        return {
            "watermark": key.id if key else "open",
            "signers": sorted(trust.signers),
            "certificates": sorted(map(certificate_fingerprint, trust.certificates)),
            "deidentified": self.deidentified,
        }


@functools.lru_cache(maxsize=1)
def read_trust(watermark: Path | None, public_keys: tuple[Path, ...], certificates: tuple[Path, ...]) -> Trust:
    """What the files of :class:`VerdictConfig` hold.

    :raises InputError: one cannot be read, or holds something else.
    """
    return Trust(
        watermark_key(read_key_file(watermark)) if watermark else OPEN_KEY,
        {fingerprint(raw_public_key(load_public_key(file))): file for file in public_keys},
        tuple(one for file in certificates for one in load_certificates(file)),
    )


@dataclass(frozen=True, kw_only=True)
class VerdictRecord(Record):
    """Record of a scan that was judged; ``result`` is what is known, JSON-ready."""

    verdict: str
    exit_code: int
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> int:
        return self.exit_code

    @property
    def outcome(self) -> str:
        return self.verdict

    def summary(self) -> dict[str, Any]:
        summary = {name: value for name, value in super().summary().items() if name != "files"}
        return {**summary, "exit_code": self.exit_code, "verdict": self.verdict, **self.result}


@dataclass
class VerdictReport(TreeReport):
    """What became of everything in the tree."""

    @property
    def verdicts(self) -> Counter[str]:
        """Number of scans with each verdict."""
        return Counter(record.verdict for record, _ in self.finished)

    def worst(self) -> list[VerdictRecord]:
        """Scans whose exit code is not 0, the worst first, 50 at most."""
        records = [record for record, _ in self.finished if record.code]
        return sorted(records, key=lambda record: (record.code, record.source))[:50]

    def figures(self) -> dict[str, Any]:
        return {"verdicts": dict(self.verdicts.most_common())}


def examine_collection(config: VerdictConfig, stage: Stage | None = None, tell: Tell | None = None) -> VerdictReport:
    """Examine every CT scan of a tree, as ``signed.examine_contents`` does, and write what was found to ``config.out``.

    :raises InputError, OutputError: as :func:`trees.checked` and ``work_through``, or a key or a certificate cannot be
        read.
    """
    config = checked(config)
    report = VerdictReport("examine", "Examining", "examined")
    return work_through(config, report, _Examination, config.settings(), stage, tell)


def verify_collection(config: VerdictConfig, stage: Stage | None = None, tell: Tell | None = None) -> VerdictReport:
    """Verify every CT scan of a tree against its manifest and its signatures; as :func:`examine_collection`.

    A study that is signed as a whole is verified as a whole. A scan that is not signed, nor part of one, is a failure.
    """
    config = checked(config)
    report = VerdictReport("verify", "Verifying", "verified")
    return work_through(config, report, _Verification, config.settings(), stage, tell)


def verification_code(verification: Verification | None, signatures: ImageSignatures, known: Collection[str]) -> int:
    """What a manifest and DICOM's own signatures say together, as the exit code, see :data:`VERDICTS`.

    :param known: fingerprints of the signers that the user trusts.
    """
    if verification:
        is_changed = signatures.changed or not verification.is_intact
        return _code(is_changed, verification.manifest.fingerprint in known)
    # Without a manifest DICOM's own signatures stand alone, so each image needs one that covers its pixels. One without
    # any among the others was put there, or lost its signature.
    is_changed = signatures.changed or not signatures.all_signed
    return _code(is_changed, signatures.all_trusted, signatures.all_valid)


def study_code(verification: StudyVerification, known: Collection[str]) -> int:
    """What the manifest of a whole study says, as the exit code."""
    return _code(not verification.is_intact, verification.manifest.fingerprint in known)


def exam_code(verification: ExamVerification) -> int:
    """What the document of a signed exam says, as the exit code."""
    return _code(verification.is_changed, verification.is_trusted, verification.is_checked)


def _code(is_changed: bool, is_trusted: bool, is_checked: bool = True) -> int:
    if is_changed:
        return CHANGED
    if not is_checked:
        return NOT_CHECKED
    return INTACT if is_trusted else UNKNOWN_SIGNER


@dataclass(frozen=True)
class _Study(StockedScan):
    """A signed study: all files of its folder, and the file that signs it.

    :param folder, document: relative to the tree.
    """

    folder: str
    document: str

    @property
    def source(self) -> str:
        return self.folder or "."

    @property
    def key(self) -> str:
        return hashlib.sha256(os.fsencode(f"study\0{self.document}")).hexdigest()[:32]


@dataclass(frozen=True)
class _Member(StockedScan):
    """A scan within a signed study, which needs no signature of its own."""

    @property
    def key(self) -> str:
        return hashlib.sha256(f"member\0{super().key}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Judgement(ScanJob):
    """One scan to judge; nothing of it is written."""

    record_type: ClassVar[type[Record]] = VerdictRecord

    config: VerdictConfig

    @property
    def targets(self) -> tuple[str, ...]:
        return ()

    @property
    def expected_bytes(self) -> int:
        return 0

    def work(self) -> Write:
        code, verdict, result, warnings = self.judged()
        names = tuple(one.name for one in warnings)
        return lambda: ([], {"exit_code": code, "verdict": verdict, "result": result, "warnings": names})

    def judged(self) -> _Judged:
        """What is said of the scan."""
        raise NotImplementedError

    def read(self) -> tuple[ScanContents, Verification | None, ImageSignatures]:
        """The scan, and what its manifest and its DICOM signatures say."""
        tree, source = self.config.tree, self.config.tree / self.scan.source
        if self.scan.uid:
            scan = read_series_to_verify(self.found_series(), source)
            # A manifest beside a folder is of a series that fills it.
            is_alone = {path.name for path in source.iterdir()} == {Path(file).name for file in self.scan.files}
        else:
            scan, is_alone = read_contents_to_verify(tree / self.scan.files[0]), True
        signed = find_manifest(scan) if is_alone else manifest_within(scan)
        verification = signed and verify_scan(scan, signed, headers=not self.config.deidentified)
        return scan, verification, verify_images(scan.files, self.config.trust().certificates)


class _Examination(_Judgement):
    """One scan to examine."""

    def judged(self) -> _Judged:
        trust, (scan, *signed) = self.config.trust(), self.read()
        verdict, _ = examine_contents(scan, *signed, key=trust.key, trusted=trust.signers)
        warnings = scan.volume.provenance.warnings if scan.volume else ()
        result = verdict.to_dict()
        return EXAMINED[verdict.outcome], result.pop("verdict"), result, warnings


class _Verification(_Judgement):
    """One scan to verify, or a study that is signed as a whole."""

    @staticmethod
    def sorted_out(stock: Inventory, tree: Path) -> Inventory:
        return _with_signed_studies(ScanJob.sorted_out(stock, tree), tree)

    def judged(self) -> _Judged:
        return self._judged_study() if isinstance(self.scan, _Study) else self._judged_scan()

    def _judged_study(self) -> _Judged:
        tree, trust = self.config.tree, self.config.trust()
        folder, document = tree / self.scan.folder, tree / self.scan.document
        manifest = find_study_manifest(document) if is_study_manifest(document) else None
        if manifest:
            verification = verify_study(folder, manifest)
            code, parts = study_code(verification, trust.signers), (verification, *verification.series)
        else:
            verification = verify_exam(folder, document, trust.certificates)
            code, parts = exam_code(verification), (verification,)
        found = {kind: [name for part in parts for name in getattr(part, kind, ())] for kind in _KINDS}
        findings = [{"kind": kind, "text": name} for kind in _KINDS[1:] for name in found[kind]]
        result = {
            "signed_by": self.scan.document,
            **{kind: len(names) for kind, names in found.items()},
            "findings": findings[:_MOST_FINDINGS],
            "notes": list(verification.notes),
        }
        return code, VERDICTS[code], result, ()

    def _judged_scan(self) -> _Judged:
        _, verification, signatures = self.read()
        if verification is None and not signatures.signed:
            if isinstance(self.scan, _Member):
                return INTACT, OF_STUDY, {}, ()
            raise InputError("It is not signed: it carries no manifest, and none lies beside it.")
        code = verification_code(verification, signatures, self.config.trust().signers)
        result = {"dicom_signatures": signatures.summary()}
        if verification:
            found = verification.to_dict()
            tiles = found.pop("changed_tiles")
            result |= {**found, "changed_tiles": len(tiles), "first_changed_tiles": tiles[:_MOST_TILES]}
        return code, VERDICTS[code], result, ()


def _with_signed_studies(stock: Inventory, tree: Path) -> Inventory:
    """What a tree holds, signed studies among the scans."""
    studies, failures = [], list(stock.failures)
    for document, folder in _documents(tree, stock):
        try:
            files = [document, *(relative_path(file, tree) for file in list_files(tree / folder))]
        except InputError as error:
            failures.append(Failure(folder or document, str(error)))
            continue
        facts = [fact for file in dict.fromkeys(files) if (fact := file_fact(tree, tree / file))]
        studies.append(_Study(**dataclasses.asdict(stock_files(facts)), folder=folder, document=document))

    def is_signed(files: Sequence[str]) -> bool:
        return any(all(_is_within(file, study.folder) or file == study.document for file in files) for study in studies)

    scans = (_Member(**dataclasses.asdict(one)) if is_signed(one.files) else one for one in stock.scans)
    return dataclasses.replace(
        stock,
        scans=(*studies, *scans),
        # What cannot be read is changed or extra, and all else is verified, too.
        others=tuple(other for other in stock.others if not is_signed(other.files)),
        failures=tuple(one for one in failures if not (one.files and is_signed(one.files))),
    )


def _documents(tree: Path, stock: Inventory) -> Iterator[tuple[str, str]]:
    """What signs a study, and the folder of that, both relative to the tree."""
    for file, reason in ((file, other.reason) for other in stock.others for file in other.files):
        if file.endswith(SUFFIX):
            if is_study_manifest(tree / file):
                yield file, file.removesuffix(SUFFIX)
        elif (_SELECTION in reason or reason == BESIDE_CT) and is_exam_document(tree / file):
            yield file, _folder_of(tree, file, stock)


def _folder_of(tree: Path, document: str, stock: Inventory) -> str:
    """The folder of an exam: that of its document, or where that has a folder to itself, the next one with its images.

    Archives give each series a folder.
    """
    own = posixpath.dirname(document)

    def study_of(file: str) -> str:
        try:
            header = read_header(tree / file)
        except InputError:
            return ""
        return header.text("StudyInstanceUID") if header else ""

    if not any(_is_within(scan.files[0], own) for scan in stock.scans):
        study = study_of(document)
        folder = own
        while folder and study:
            folder = posixpath.dirname(folder)
            if any(study_of(scan.files[0]) == study for scan in stock.scans if _is_within(scan.files[0], folder)):
                return folder
    return own


def _is_within(file: str, folder: str) -> bool:
    return not folder or file.startswith(f"{folder}/")
