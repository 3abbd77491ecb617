"""Signing a scan on disk: a manifest beside it, or a copy of its DICOM files that carry it within.

A signed copy has the UIDs of its original: nothing that the original says is changed, elements are added. They are the
private entry ``manifest`` (see ``files.dicom.private_block``), and DICOM's own signature where it is asked for.
"""

from __future__ import annotations

import datetime
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from ..files.atomic import atomic_file, atomic_folder
from ..files.dicom.frames import slices_by_file
from ..files.dicom.headers import quiet_pydicom, read_encoded
from ..files.dicom.private_block import entry_changes
from ..files.dicom.write import check_series_output
from ..files.storage import is_dicom_output
from ..runtime.progress import Progress
from .contents import ENTRY, ScanContents, read_contents
from .dicom.digital_signature import SIGNATURE_KEYWORDS, DicomSigner, sign_dataset
from .digests import SALT_BYTES
from .manifest import SignedManifest, manifest_path, sign_volume

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Signers:
    """The keys of one signing: Ed25519 for the manifest, and one with a certificate for DICOM's own signatures."""

    key: Ed25519PrivateKey
    dicom: DicomSigner | None = None


def sign_scan(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    signers: Signers,
    *,
    series: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[SignedManifest, Path]:
    """Sign a scan.

    :param path: a DICOM folder or file, or a volume file.
    :param output: where the signed copy goes: a folder for DICOM, whose files carry the manifest, or a file, with its
        manifest beside it. None writes the manifest alone, beside ``path``.
    :param series: Series Instance UID, where a folder holds several.
    :returns: the manifest, and where it or the folder that carries it was written.
    :raises InputError: the scan cannot be read, as ``storage.load_volume`` says.
    :raises OutputError: the output exists without ``overwrite``, is the input, or cannot be written; or DICOM's own
        signatures are asked for without DICOM files to carry them.
    """
    path = Path(path)
    output = None if output is None else Path(output)
    if signers.dicom and output is None:
        raise OutputError("DICOM's own signatures go into the files; name a folder for the signed copy.")
    scan = read_contents(path, series, progress)
    if output is None:
        signed = _sign(scan, signers)
        with atomic_file(manifest_path(path), overwrite=overwrite) as temporary:
            temporary.write_bytes(signed.document())
        return signed, manifest_path(path)
    _check_output(scan, output, signers, overwrite)
    if scan.images:
        root = path if path.is_dir() else path.parent
        with atomic_folder(output, overwrite=overwrite) as temporary:
            return sign_images(scan, signers, lambda file: temporary / file.relative_to(root)), output
    signed = _sign(scan, signers)
    with atomic_file(output, overwrite=overwrite) as temporary:
        shutil.copyfile(path, temporary)
        manifest_path(temporary).write_bytes(signed.document())
    return signed, manifest_path(output)


@contextmanager
def signed_output(output: str | os.PathLike[str], signers: Signers, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a path to save a scan at, as ``storage.save_volume`` does; it appears at ``output`` when it is signed.

    What is signed is what was written, read back: DICOM may not show every HU of a volume.

    :raises OutputError: the output exists without ``overwrite``, or cannot be written.
    """
    output = Path(output)
    atomic = atomic_folder if is_dicom_output(output) else atomic_file
    with atomic(output, overwrite=overwrite) as temporary:
        yield temporary
        scan = read_contents(temporary)
        if scan.images:
            sign_images(scan, signers, lambda file: file)
        else:
            manifest_path(temporary).write_bytes(_sign(scan, signers).document())


def sign_images(scan: ScanContents, signers: Signers, target: Callable[[Path], Path]) -> SignedManifest:
    """Sign a DICOM scan that was read; each of its files is written, with its share, to the place ``target`` gives."""
    signed = _sign(scan, signers)
    slices = slices_by_file(scan.images)
    time = datetime.datetime.fromisoformat(signed.manifest.created)
    for path, share in zip(slices, signed.shares(list(slices.values())), strict=True):
        file = read_encoded(path)
        with quiet_pydicom():
            changes = entry_changes(file.dataset, ENTRY, share)
            if signers.dicom:
                sign_dataset(file.dataset, signers.dicom, time)
                changes |= {file.dataset[keyword].tag: file.dataset[keyword] for keyword in SIGNATURE_KEYWORDS}
            target(path).parent.mkdir(parents=True, exist_ok=True)
            with target(path).open("wb") as stream:
                file.write(stream, changes)
    return signed


def _sign(scan: ScanContents, signers: Signers) -> SignedManifest:
    headers = [image.headers for image in scan.images] or None
    now = datetime.datetime.now(datetime.UTC)
    return sign_volume(scan.volume, signers.key, secrets.token_bytes(SALT_BYTES), now, headers)


def _check_output(scan: ScanContents, output: Path, signers: Signers, overwrite: bool) -> None:
    if scan.images:
        check_series_output(scan.volume, output, overwrite=overwrite)
        return
    if signers.dicom:
        raise OutputError(
            "is no DICOM, and DICOM's own signatures go into its files", path=scan.path, hint="leave them out"
        )
    if not output.name.lower().endswith("".join(scan.path.suffixes[-2:]).lower()):
        raise OutputError(
            f"must end in {''.join(scan.path.suffixes[-2:])}, as the file does that is copied", path=output
        )
    if scan.path.suffix.lower() in (".mhd", ".nhdr"):
        raise OutputError("has its voxels in a second file", path=scan.path, hint="sign it where it is, without a copy")
    if output.exists() and output.samefile(scan.path):
        raise OutputError("is the input itself", path=output, hint="sign it where it is, without a copy")
