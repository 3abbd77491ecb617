"""Key files and signing keys: make them, name them, open them for one job.

Nothing here keeps a key, names its file in an error, or puts it into the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from ..errors import InputError, OutputError
from ..keys import signing_keys
from ..keys.key_files import Key, generate_key, passphrase_key, read_key_file, write_key_file
from ..save_protected import Proofs
from ..signature.signing import Signers
from .privacy import paths_kept_from_log


@contextmanager
def _key_file(path: Path, *, is_new: bool = False) -> Iterator[None]:
    with paths_kept_from_log({path: _("the key file")}):
        if is_new and path.exists():
            raise OutputError(_("There is a file of this name. A key file is never replaced; choose another name."))
        yield


def make_key_file(path: Path) -> str:
    """Write a new key file, readable by its owner only, and give the identity of its key.

    :raises OutputError: the file exists, or cannot be written.
    """
    with _key_file(path, is_new=True):
        key = generate_key()
        write_key_file(key, path)
        return key.id


def make_signing_key_file(path: Path) -> tuple[str, Path]:
    """Write a new pair of keys for signatures; the fingerprint and the path of the public key, which lies beside.

    :raises OutputError: a file of either name exists, or cannot be written.
    """
    with _key_file(path, is_new=True):
        key = signing_keys.new_signing_key()
        return _fingerprint(key.public_key()), signing_keys.save_signing_key(key, path)


def key_identity(path: Path) -> str:
    """The identity of the key in a file, which is no secret.

    :raises InputError: it is no key file.
    """
    with _key_file(path):
        return read_key_file(path).id


def signing_key_identity(path: Path) -> str | None:
    """The fingerprint of a signing key; None while a passphrase locks it.

    :raises InputError: it is no Ed25519 private key.
    """
    with _key_file(path):
        is_locked = b"ENCRYPTED" in signing_keys.read_pem(path)
        return None if is_locked else _fingerprint(signing_keys.load_signing_key(path).public_key())


def public_key_identity(path: Path) -> str:
    """The fingerprint of a public key.

    :raises InputError: it is no Ed25519 public key.
    """
    with _key_file(path):
        return _fingerprint(signing_keys.load_public_key(path))


def open_proofs(key_path: Path | None, signing_path: Path | None, passphrase: str) -> Proofs:
    """The keys in files.

    :param passphrase: of the signing key, where one locks it; empty for none.
    :raises InputError: a file is no such key, or its passphrase is missing or wrong.
    """
    key, signers = open_key(key_path, "") if key_path else None, None
    if signing_path is not None:
        with _key_file(signing_path):
            if not passphrase and signing_key_identity(signing_path) is None:
                raise InputError(_("The signing key is locked; type its passphrase."))
            unlock = passphrase_key(passphrase).secret if passphrase else None
            signers = Signers(signing_keys.load_signing_key(signing_path, unlock))
    return Proofs(key, signers)


def open_key(key_path: Path | None, passphrase: str) -> Key:
    """The key to restore with: that of a file, or else of a passphrase.

    :raises InputError: the file is no key file, or there is neither.
    """
    if key_path is None:
        return passphrase_key(passphrase)
    with _key_file(key_path):
        return read_key_file(key_path)


def _fingerprint(key: Any) -> str:
    return signing_keys.fingerprint(signing_keys.raw_public_key(key))
