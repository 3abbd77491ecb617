"""Examination and verification of a collection: what was found of every CT scan of a tree.

The output is a folder with the summary and the records; no scan is written. See ``trees`` for what makes a run
resumable.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from MITSGANLib.errors import InputError
from MITSGANLib.examination.signed import examine_contents
from MITSGANLib.examination.verdict import Outcome
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
from MITSGANLib.signature.dicom.exam import ExamVerification, verify_exam
from MITSGANLib.signature.study import StudyVerification, find_study_manifest, is_study_manifest, verify_study
from MITSGANLib.signature.verification import Verification, find_manifest, manifest_within, verify_scan
from MITSGANLib.watermark.pattern import OPEN_KEY, WatermarkKey, watermark_key

from .inventory import StockedScan, take_stock
from .restoration import without_companions
from .studies import StockedMember, StockedStudy, take_signed_stock
from .trees import Done, Record, ScanJob, Stage, Tell, TreeConfig, TreeReport, checked, found_series, work_through

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

_KINDS = ("intact", "changed", "missing", "extra", "unchecked")
_MOST_TILES = _MOST_FINDINGS = 100
# Exit code, verdict, what is known, and warnings.
_Judged = tuple[int, str, dict[str, Any], tuple[VolumeWarning, ...]]
# Complete or not: all of it is to be judged.
_ALL = functools.partial(take_stock, protected=None)


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

    :raises InputError: the tree is missing or empty, a key or a certificate cannot be read, or the Dask scheduler does
        not answer.
    :raises OutputError: the output overlaps the tree, holds something else, or is in use by another run.
    """
    config = checked(config)
    report = VerdictReport("examine", "Examining", "examined")
    return work_through(config, report, _Examination, config.settings(), without_companions(_ALL), stage, tell)


def verify_collection(config: VerdictConfig, stage: Stage | None = None, tell: Tell | None = None) -> VerdictReport:
    """Verify every CT scan of a tree against its manifest and its signatures; as :func:`examine_collection`.

    A study that is signed as a whole is verified as a whole. A scan that is not signed, nor part of one, is a failure.
    """
    config = checked(config)
    report = VerdictReport("verify", "Verifying", "verified")
    take = functools.partial(take_signed_stock, take=_ALL)
    return work_through(config, report, _Verification, config.settings(), take, stage, tell)


def verification_code(verification: Verification | None, signatures: ImageSignatures, known: Collection[str]) -> int:
    """What a manifest and DICOM's own signatures say together, as the exit code, see :data:`VERDICTS`.

    :param known: fingerprints of the signers that the user trusts.
    """
    if (verification and not verification.is_intact) or signatures.changed:
        return CHANGED
    if verification:
        return INTACT if verification.manifest.fingerprint in known else UNKNOWN_SIGNER
    # Without a manifest DICOM's own signatures stand alone, so each image needs one that covers its pixels. One without
    # any among the others was put there, or lost its signature.
    if not signatures.all_signed:
        return CHANGED
    if not signatures.all_valid:
        return NOT_CHECKED
    return INTACT if signatures.all_trusted else UNKNOWN_SIGNER


def study_code(verification: StudyVerification, known: Collection[str]) -> int:
    """What the manifest of a whole study says, as the exit code."""
    if not verification.is_intact:
        return CHANGED
    return INTACT if verification.manifest.fingerprint in known else UNKNOWN_SIGNER


def exam_code(verification: ExamVerification) -> int:
    """What the document of a signed exam says, as the exit code."""
    if verification.is_changed:
        return CHANGED
    if not verification.is_checked:
        return NOT_CHECKED
    return INTACT if verification.is_trusted else UNKNOWN_SIGNER


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

    def work(self) -> Done:
        started = time.monotonic()
        code, verdict, result, warnings = self.judged()
        values = {"exit_code": code, "verdict": verdict, "result": result}
        return self.finish(lambda: ([], {**values, "warnings": tuple(one.name for one in warnings)}), started)

    def judged(self) -> _Judged:
        """What is said of the scan, once it is read."""
        return self.judge(_contents(self.config.tree, self.scan))

    def judge(self, scan: ScanContents) -> _Judged:
        """What is said of the scan."""
        raise NotImplementedError

    def signatures(self, scan: ScanContents) -> tuple[Verification | None, ImageSignatures]:
        """What its manifest and its DICOM signatures say."""
        is_alone = not self.scan.uid or _fills_its_folder(self.config.tree, self.scan)
        signed = find_manifest(scan) if is_alone else manifest_within(scan)
        verification = signed and verify_scan(scan, signed, headers=not self.config.deidentified)
        return verification, verify_images(scan.files, self.config.trust().certificates)


class _Examination(_Judgement):
    """One scan to examine."""

    def judge(self, scan: ScanContents) -> _Judged:
        trust = self.config.trust()
        verdict, _ = examine_contents(scan, *self.signatures(scan), key=trust.key, trusted=trust.signers)
        warnings = scan.volume.provenance.warnings if scan.volume else ()
        result = verdict.to_dict()
        return EXAMINED[verdict.outcome], result.pop("verdict"), result, warnings


class _Verification(_Judgement):
    """One scan to verify, or a study that is signed as a whole."""

    def judged(self) -> _Judged:
        if not isinstance(self.scan, StockedStudy):
            return super().judged()
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

    def judge(self, scan: ScanContents) -> _Judged:
        verification, signatures = self.signatures(scan)
        if verification is None and not signatures.signed:
            if isinstance(self.scan, StockedMember):
                return INTACT, OF_STUDY, {}, ()
            raise InputError("It is not signed: it carries no manifest, and none lies beside it.")
        code = verification_code(verification, signatures, self.config.trust().signers)
        result = {"dicom_signatures": signatures.summary()}
        if verification:
            found = verification.to_dict()
            tiles = found.pop("changed_tiles")
            result |= {**found, "changed_tiles": len(tiles), "first_changed_tiles": tiles[:_MOST_TILES]}
        return code, VERDICTS[code], result, ()


def _contents(tree: Path, scan: StockedScan) -> ScanContents:
    if not scan.uid:
        return read_contents_to_verify(tree / scan.files[0])
    return read_series_to_verify(found_series(tree, scan), tree / scan.source)


def _fills_its_folder(tree: Path, scan: StockedScan) -> bool:
    """Whether a folder holds nothing but the images of one series, so that a manifest beside it is of these."""
    return {path.name for path in (tree / scan.source).iterdir()} == {Path(file).name for file in scan.files}
