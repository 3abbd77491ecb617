"""Keys and signatures around volume nodes: exports that are sealed and signed, scans on disk restored and verified.

A key is opened for one job, and nothing here keeps it, names its file in an error, or puts it into the scene.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from ..errors import InputError, MITSGANError, OutputError
from ..files.atomic import atomic_file, atomic_folder
from ..files.storage import is_dicom_output, load_volume, save_volume
from ..files.volume_files import format_of, read_file
from ..keys.key_files import Key, generate_key, passphrase_key, read_key_file, write_key_file
from ..keys.signing_keys import (
    fingerprint,
    load_public_key,
    load_signing_key,
    new_signing_key,
    raw_public_key,
    save_signing_key,
)
from ..keys.signing_keys import read_key_bytes as read_pem
from ..scan.volume import CTVolume
from ..seal.sealing import Restored, restore, save_sealed, seal_file
from ..signature.contents import read_contents_to_verify
from ..signature.manifest import manifest_path
from ..signature.signing import Signers, signed_output
from ..signature.verification import Verification, find_manifest, verify_scan
from ..watermark.pattern import watermark_key
from .change_map import change_map_node, signature_legend
from .dicom_source import INSTANCES_ATTRIBUTE, dicom_files_of, reversed_slices
from .privacy import paths_kept_from_log
from .volumes import node_from_volume, volume_from_node

if TYPE_CHECKING:
    from ..signature.dicom.digital_signature import ImageSignatures

logger = logging.getLogger(__name__)

Compute = Callable[[Callable[[Any], Any], Any], Any]


@dataclass(frozen=True)
class Locks:
    """What an export does besides writing: seal with ``key``, sign with ``signers``; either may be None."""

    key: Key | None = None
    signers: Signers | None = None

    def __bool__(self) -> bool:
        return self.key is not None or self.signers is not None


@dataclass(frozen=True)
class ScanOnDisk:
    """A volume file, or a DICOM folder and which series of it (None: the only one)."""

    path: Path
    series: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a volume file, and no DICOM."""
        return self.path.is_file() and format_of(self.path) is not None


@dataclass(frozen=True, eq=False)
class SignatureCheck:
    """What became of checking a scan on disk.

    :param volume: the scan, where its slices form one.
    :param verification: against its manifest; None where only DICOM's own signatures are there.
    :param signatures: DICOM's own.
    :param is_signer_known: whether a public key that was given is the signer's.
    """

    volume: CTVolume | None
    verification: Verification | None
    signatures: ImageSignatures
    is_signer_known: bool

    @property
    def is_intact(self) -> bool:
        if self.verification is None:
            return self.signatures.all_valid
        return self.verification.is_intact and not self.signatures.changed


# Key files


def make_key_file(path: Path) -> str:
    """Write a new key file, readable by its owner only, and give the identity of its key.

    :raises OutputError: the file exists, or cannot be written.
    """
    with _key_path_kept(path):
        _refuse_existing(path)
        key = generate_key()
        write_key_file(key, path)
        return key.id


def make_signing_key_file(path: Path) -> tuple[str, Path]:
    """Write a new pair of keys for signatures; the fingerprint and the path of the public key, which lies beside.

    :raises OutputError: a file of either name exists, or cannot be written.
    """
    with _key_path_kept(path):
        _refuse_existing(path)
        key = new_signing_key()
        return fingerprint(raw_public_key(key.public_key())), save_signing_key(key, path)


def key_identity(path: Path) -> str:
    """The identity of the key in a file, which is no secret.

    :raises InputError: it is no key file.
    """
    with _key_path_kept(path):
        return read_key_file(path).id


def signing_key_identity(path: Path) -> str | None:
    """The fingerprint of a signing key; None while a passphrase locks it.

    :raises InputError: it is no Ed25519 private key.
    """
    with _key_path_kept(path):
        if b"ENCRYPTED" in read_pem(path):
            return None
        return fingerprint(raw_public_key(load_signing_key(path).public_key()))


def public_key_identity(path: Path) -> str:
    """The fingerprint of a public key.

    :raises InputError: it is no Ed25519 public key.
    """
    with _key_path_kept(path):
        return fingerprint(raw_public_key(load_public_key(path)))


def open_locks(key_path: Path | None, signing_path: Path | None, passphrase: str) -> Locks:
    """The keys in files.

    :param passphrase: of the signing key, where one locks it; empty for none.
    :raises InputError: a file is no such key, or its passphrase is missing or wrong.
    """
    key = signers = None
    if key_path is not None:
        with _key_path_kept(key_path):
            key = read_key_file(key_path)
    if signing_path is not None:
        with _key_path_kept(signing_path):
            if not passphrase and signing_key_identity(signing_path) is None:
                raise InputError(_("The signing key is locked; type its passphrase."))
            unlock = passphrase_key(passphrase).secret if passphrase else None
            signers = Signers(load_signing_key(signing_path, unlock))
    return Locks(key, signers)


def open_key(key_path: Path | None, passphrase: str) -> Key:
    """The key to restore with: that of a file, or else of a passphrase.

    :raises InputError: the file is no key file, or there is neither.
    """
    if key_path is None:
        return passphrase_key(passphrase)
    return open_locks(key_path, None, "").key


# Scans on disk


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
    from ..files.dicom.headers import read_header

    with paths_kept_from_log({files[0]: _("a file of the scan")}):
        header = read_header(files[0])
    return ScanOnDisk(folders.pop(), header.text("SeriesInstanceUID") if header else None)


def new_output(path: Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """A path for work in the background to write to; the result appears at ``path`` when the block ends well.

    So it is the thread of the application that lets it appear, and whoever cancels before that finds nothing.
    """
    return (atomic_folder if is_dicom_output(path) else atomic_file)(path, overwrite=overwrite)


def save_locked(
    volume: CTVolume,
    original: CTVolume,
    path: Path,
    locks: Locks,
    report: Callable[..., None] | None,
    own: Path | None = None,
) -> None:
    """Save a protected volume as DICOM or a file, sealed and signed as ``locks`` say.

    :param original: what the seal restores; for DICOM, its files.
    :param own: the file that ``original`` may have been loaded from: if it shows the same, the seal restores it.
    """
    original = _as_in_file(original, own) if locks.key else original

    def while_writing(done: int, total: int) -> None:
        if report:
            # How long sealing and signing take is not known beforehand.
            report(*((done, total) if done < total or not locks else (0, 0)))

    with signed_output(path, locks.signers) if locks.signers else nullcontext(path) as unsigned:
        if locks.key is None:
            save_volume(volume, unsigned, progress=while_writing)
        else:
            # Mostly the same key file made the watermark; with another's the seal is as exact, but longer.
            mark = None if locks.key.is_passphrase else watermark_key(locks.key)
            save_sealed(volume, original, unsigned, locks.key, watermark=mark, progress=while_writing)


def stale_companions(path: Path, locks: Locks) -> list[Path]:
    """Where the seal and the manifest of an earlier file would lie that a file saved with ``locks`` has replaced."""
    return [
        beside for beside, lock in ((seal_file(path), locks.key), (manifest_path(path), locks.signers)) if lock is None
    ]


def restore_scan(
    scan: ScanOnDisk,
    destination: Path,
    key: Key,
    name: str | None,
    *,
    progress: Callable[..., None] | None,
    compute: Compute,
) -> tuple[Restored, slicer.vtkMRMLScalarVolumeNode | None]:
    """Restore the original of a sealed scan on disk.

    :param destination: a new folder for DICOM; a file for a file, which is replaced if it exists.
    :param name: of a new node with the original; None to load none.
    :raises InputError: no seal, the wrong key, or the scan or the seal was changed.
    :raises OutputError: the destination cannot be written.
    """

    words = {destination: _("the chosen place"), scan.path: _("the protected scan")}
    with paths_kept_from_log(words):
        if not scan.is_file and (destination.is_relative_to(scan.path) or scan.path.is_relative_to(destination)):
            raise OutputError(_("The original cannot lie within the protected scan; choose another folder."))
        if scan.is_file and destination.exists() and destination.samefile(scan.path):
            raise OutputError(_("The original cannot take the place of the protected scan; choose another name."))
        with new_output(destination, overwrite=scan.is_file) as new:

            def work(report: Any) -> tuple[Restored, CTVolume | None]:
                restored = restore(scan.path, new, key, series=scan.series, progress=report)
                return restored, load_volume(new) if name is not None else None

            restored, volume = compute(work, progress)
    logger.info("MITSGAN restored a scan")
    return restored, node_from_volume(volume, name) if volume is not None else None


def check_scan(
    scan: ScanOnDisk,
    public_keys: Sequence[Path],
    *,
    progress: Callable[..., None] | None,
    compute: Compute,
) -> SignatureCheck:
    """Tell whether a signed scan on disk is as it was signed.

    :param public_keys: of signers that the user trusts.
    :raises InputError: it is not signed, is no CT, or a public key is none.
    :raises ManifestError: its manifest was altered.
    """
    known = {public_key_identity(path) for path in public_keys}

    def work(report: Any) -> SignatureCheck:
        from ..signature.dicom.digital_signature import verify_images

        read = read_contents_to_verify(scan.path, scan.series, report)
        if report:
            report(0, 0)
        signed = find_manifest(read)
        signatures = verify_images(read.files)
        if signed is None and not signatures.signed:
            raise InputError(_("The scan is not signed: it carries no manifest, and none lies beside it."))
        verification = signed and verify_scan(read, signed)
        is_known = bool(verification) and verification.manifest.fingerprint in known
        return SignatureCheck(read.volume, verification, signatures, is_known)

    with paths_kept_from_log({scan.path: _("the scan")}):
        checked = compute(work, progress)
    logger.info("MITSGAN checked a signed scan")
    return checked


def change_nodes(
    checked: SignatureCheck, candidates: Sequence[slicer.vtkMRMLScalarVolumeNode | None]
) -> tuple[slicer.vtkMRMLLabelMapVolumeNode | None, slicer.vtkMRMLScalarVolumeNode | None]:
    """A node with the map of changes, and the volume that it lies over; the map is None where there is none.

    :param candidates: volumes that may hold the scan; where none does, it is added to the scene.
    """
    if checked.verification is None or not checked.verification.tiles.any():
        return None, None
    over = next((node for node in candidates if node is not None and _holds(node, checked.volume)), None)
    if over is None and checked.volume is not None:
        over = node_from_volume(checked.volume, _("Verified scan"))
    return change_map_node(checked.verification.map_volume(), over, signature_legend()), over


def _as_in_file(original: CTVolume, own: Path | None) -> CTVolume:
    """The original as its file has it, with the type of its values and its header; or as it is."""
    if own is None:
        return original
    try:
        loaded = read_file(own)
    except MITSGANError:
        return original
    return loaded if _is_same(loaded, original) else original


def _holds(node: slicer.vtkMRMLScalarVolumeNode, volume: CTVolume | None) -> bool:
    """Whether a node shows a scan; Slicer may count slices from the other end than DICOM's normal does."""
    try:
        shown = volume_from_node(node)
    except InputError:
        return False
    return volume is not None and any(_is_same(shown, turned) for turned in (volume, reversed_slices(volume)))


def _is_same(one: CTVolume, other: CTVolume) -> bool:
    return one.shape == other.shape and one.same_geometry(other, 0.05) and np.array_equal(one.hu, other.hu)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise OutputError(_("There is a file of this name. A key file is never replaced; choose another name."))


def _key_path_kept(path: Path) -> AbstractContextManager[None]:
    return paths_kept_from_log({path: _("the key file")})
