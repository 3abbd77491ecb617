"""Keys for signatures: Ed25519 pairs in PEM files, made, read, and named by their fingerprint.

The private key is PKCS #8, encrypted if a passphrase is given; the public key is a SubjectPublicKeyInfo. OpenSSL reads
and makes both (``openssl genpkey -algorithm ed25519``). ``cryptography`` is imported where it is used: an extension
must load without it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MAKE_SIGNING_KEY, InputError, reading
from ..files.atomic import atomic_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

LARGEST_KEY_FILE = 1 << 20


def new_signing_key() -> Ed25519PrivateKey:
    """A new random Ed25519 key (RFC 8032) from the operating system's generator."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate()


def public_key_path(private: Path) -> Path:
    """Where :func:`save_signing_key` puts the public key: ``clinic.pem`` has ``clinic.pub.pem`` beside it."""
    return private.with_name(f"{private.stem}.pub{private.suffix or '.pem'}")


def save_signing_key(key: Ed25519PrivateKey, path: Path, passphrase: bytes | None = None) -> Path:
    """Write a private key, readable by its owner only, and its public key beside it (:func:`public_key_path`).

    :param passphrase: encrypts the private key; it cannot be recovered.
    :returns: the path of the public key.
    :raises OutputError: a file of either name exists (a key is never overwritten), or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as pem

    encryption = pem.BestAvailableEncryption(passphrase) if passphrase else pem.NoEncryption()
    private = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    with atomic_file(path) as temporary:
        # Owner-only from the first byte on, not after the fact.
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
        temporary.with_name(public_key_path(path).name).write_bytes(public)
    return public_key_path(path)


def load_signing_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """Read an Ed25519 private key from a PEM file.

    :raises InputError: the file is missing, is another kind of key, or its passphrase is missing or wrong.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = load_pem_private_key(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError("is no Ed25519 key", path=path, hint=MAKE_SIGNING_KEY)
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key from a PEM file.

    :raises InputError: the file is missing or is another kind of key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(read_pem(path))
    except (UnsupportedAlgorithm, ValueError) as error:
        raise InputError(
            "holds no public key in PEM form", path=path, hint="give the signer's .pub.pem file"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError("is no Ed25519 public key", path=path, hint="give the signer's .pub.pem file")
    return key


def load_pem_private_key(path: Path, passphrase: bytes | None) -> PrivateKeyTypes:
    """Read a private key of any kind from a PEM file.

    :raises InputError: the file is missing or no private key, or its passphrase is missing or wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = read_pem(path)
    try:
        # A passphrase that a plain key does not need is an error of its own in the package; here it does no harm.
        return load_pem_private_key(data, passphrase if b"ENCRYPTED" in data else None)
    except TypeError as error:
        raise InputError("is locked by a passphrase", path=path, hint="give the passphrase, too") from error
    except (UnsupportedAlgorithm, ValueError) as error:
        what = (
            "cannot be opened with this passphrase" if passphrase and b"ENCRYPTED" in data else "holds no private key"
        )
        raise InputError(what, path=path, hint="check that it is the right PEM file") from error


def raw_public_key(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of an Ed25519 public key (RFC 8032)."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def fingerprint(public: bytes) -> str:
    """The name of a public key or certificate: the SHA-256 of its bytes in hexadecimal, for people to compare."""
    return hashlib.sha256(public).hexdigest()


def read_pem(path: Path) -> bytes:
    """The content of a file that may hold a key.

    :raises InputError: the file is missing, cannot be read or is far too large for a key.
    """
    with reading(path, "check its name and permissions"), path.open("rb") as file:
        data = file.read(LARGEST_KEY_FILE + 1)
    if len(data) > LARGEST_KEY_FILE:
        raise InputError("is no key: it is too large", path=path, hint="check the name")
    return data
