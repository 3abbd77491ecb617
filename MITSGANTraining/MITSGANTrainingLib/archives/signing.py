"""Signing of a collection: the same tree out, every CT scan in it with its manifest.

File for file: a signed image takes the relative path of its original. See ``trees`` for what makes a run resumable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from MITSGANLib.files.atomic import remove_leavings
from MITSGANLib.keys.signing_keys import fingerprint, load_signing_key, raw_public_key
from MITSGANLib.signature.contents import contents_of
from MITSGANLib.signature.dicom.digital_signature import certificate_fingerprint, load_dicom_signer
from MITSGANLib.signature.manifest import manifest_path
from MITSGANLib.signature.signing import Signers, sign_images, sign_scan

from . import trees

# A signed scan takes some 5 to 10 % more than it does without.
_SIGNED = 1.1


@dataclass(frozen=True, kw_only=True)
class SigningConfig(trees.TreeConfig):
    """What to sign, where to, and with which keys; each process reads their files itself.

    :param signing_key: file of an Ed25519 key.
    :param dicom_key, certificate: files of DICOM's own signatures; both or neither.
    :param passphrase, dicom_passphrase: unlock those files; never sent to a scheduler.
    """

    signing_key: Path
    passphrase: bytes | None = field(default=None, repr=False)
    dicom_key: Path | None = None
    certificate: Path | None = None
    dicom_passphrase: bytes | None = field(default=None, repr=False)

    def signers(self) -> Signers:
        """The keys.

        :raises InputError: a file is no such key, or its passphrase is missing or wrong.
        """
        dicom = self.dicom_key and load_dicom_signer(self.dicom_key, self.certificate, self.dicom_passphrase)
        return Signers(load_signing_key(self.signing_key, self.passphrase), dicom)


@dataclass(frozen=True, kw_only=True)
class SigningRecord(trees.Record):
    """Record of a signed scan; ``signed`` is when, ISO 8601."""

    slices: int
    signed: str

    def summary(self) -> dict[str, Any]:
        return {**super().summary(), "slices": self.slices, "signed": self.signed}


def sign_collection(
    config: SigningConfig, stage: trees.Stage | None = None, tell: trees.Tell | None = None
) -> trees.TreeReport:
    """Sign every CT scan of a tree into ``config.out``; see :func:`trees.work_through`.

    :raises InputError, OutputError: as :func:`trees.checked` and ``work_through``, or a key cannot be read.
    """
    report, config = trees.TreeReport("sign", "Signing", "signed", "slices"), trees.checked(config)
    signers = config.signers()
    settings: dict[str, Any] = {"signed_by": fingerprint(raw_public_key(signers.key.public_key()))}
    if signers.dicom:
        settings["certificate"] = certificate_fingerprint(signers.dicom.certificate)
    return trees.work_through(config, report, _Signing, settings, stage, tell)


@dataclass(frozen=True)
class _Signing(trees.ScanJob):
    """One scan to sign."""

    record_type: ClassVar[type[trees.Record]] = SigningRecord

    config: SigningConfig

    @property
    def expected_bytes(self) -> int:
        return int(self.scan.size * _SIGNED)

    def work(self) -> trees.Write:
        return self._sign_series if self.scan.uid else self._sign_file

    def _sign_file(self) -> tuple[list[str], dict[str, Any]]:
        source, target = (folder / self.scan.files[0] for folder in (self.config.tree, self.config.out))
        remove_leavings(target)
        signed, _ = sign_scan(source, target, self.config.signers(), overwrite=True)
        written = trees.relative_files([target, manifest_path(target)], self.config.out)
        return written, {"slices": signed.manifest.shape[0], "signed": signed.manifest.created}

    def _sign_series(self) -> tuple[list[str], dict[str, Any]]:
        tree, volume = self.config.tree, self.load()
        scan = contents_of(volume, tree / self.scan.source)
        names, signed = trees.relative_files(scan.files, tree), []

        def fill(folder: Path) -> Sequence[Path]:
            places = {file: folder / f"{number:06d}" for number, file in enumerate(scan.files)}
            signed.append(sign_images(scan, self.config.signers(), places.__getitem__))
            return list(places.values())

        trees.write_together(self.config.out, names, fill)
        return names, {"slices": volume.shape[0], "signed": signed[0].manifest.created}
