"""The sealed container: a payload under AES-256-GCM, bound to the protected scan it belongs to.

Layout: the mark ``MITSGAN seal 1`` and a line feed, the length of the header (4 bytes, big-endian), the header (JSON),
the ciphertext with its 16-byte tag. The header holds how the key is derived, the nonce, and the *identity*: what the
protected scan is. All that comes before the ciphertext is its associated data (NIST SP 800-38D), so a seal with one
byte changed anywhere does not open. The header is readable without the key and holds nothing that the protected scan
does not show.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import InputError
from ..keys.key_files import SALT_BYTES, Key, ScryptCost, require_cryptography, seal_key

MARK = b"MITSGAN seal 1\n"
NONCE_BYTES, TAG_BYTES = 12, 16
# A real header takes some hundred bytes.
HEADER_LIMIT = 1 << 16

_LENGTH = struct.Struct(">I")


def close_container(payload: bytes, identity: Mapping[str, Any], key: Key, *, cost: ScryptCost | None = None) -> bytes:
    """Encrypt and authenticate ``payload`` together with ``identity`` (JSON-ready), under a new salt and nonce.

    :param cost: of guessing a passphrase; the default of :class:`ScryptCost` where None.
    :raises DependencyError: the package cryptography is missing.
    """
    require_cryptography()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, nonce = os.urandom(SALT_BYTES), os.urandom(NONCE_BYTES)
    cost = (cost or ScryptCost()) if key.is_passphrase else None
    derivation = {"scrypt": asdict(cost)} if cost else {"hkdf-sha256": {"key_id": key.id}}
    header = {"derivation": derivation, "salt": salt.hex(), "nonce": nonce.hex(), "identity": dict(identity)}
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    head = MARK + _LENGTH.pack(len(text)) + text
    return head + AESGCM(seal_key(key, salt, cost)).encrypt(nonce, payload, head)


def open_container(data: bytes, key: Key) -> tuple[dict[str, Any], bytes]:
    """Identity and payload of a container.

    :raises InputError: no container, a damaged one, or the wrong key.
    :raises DependencyError: the package cryptography is missing.
    """
    require_cryptography()
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    header, start = _header(data)
    salt, nonce, cost = _opening(header, key)
    try:
        payload = AESGCM(seal_key(key, salt, cost)).decrypt(nonce, data[start:], data[:start])
    except InvalidTag as error:
        kind = "passphrase" if key.is_passphrase else "key"
        reason = f"the {kind} is not the one that this scan was sealed with, or the seal was changed"
        raise InputError(f"The seal does not open: {reason}.") from error
    return header["identity"], payload


def read_identity(data: bytes) -> dict[str, Any]:
    """The identity that a container states, not authenticated: good for an early, plain answer and no more.

    :raises InputError: no container, or a damaged one.
    """
    return _header(data)[0]["identity"]


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header and where the ciphertext begins."""
    if data[: len(MARK)] != MARK:
        raise InputError("This is no seal of MITSGAN that this version can read; it is damaged or newer.")
    start = len(MARK) + _LENGTH.size
    end = start + int.from_bytes(data[len(MARK) : start])
    try:
        if end - start > HEADER_LIMIT or len(data) < end + TAG_BYTES:
            raise ValueError("sizes")
        header = json.loads(data[start:end])
    except (ValueError, RecursionError) as error:
        raise _damaged() from error
    if not isinstance(header, dict) or not isinstance(header.get("identity"), dict):
        raise _damaged()
    return header, end


def _opening(header: Mapping[str, Any], key: Key) -> tuple[bytes, bytes, ScryptCost | None]:
    """Salt, nonce and cost of a header."""
    try:
        salt, nonce = bytes.fromhex(header["salt"]), bytes.fromhex(header["nonce"])
        ((method, parameters),) = header["derivation"].items()
        if len(salt) != SALT_BYTES or len(nonce) != NONCE_BYTES or method not in ("scrypt", "hkdf-sha256"):
            raise ValueError("sizes")
        cost = ScryptCost(**parameters) if method == "scrypt" else None
        key_id = None if cost else parameters["key_id"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged() from error
    if key.is_passphrase != (cost is not None):
        kind, other = ("key file", "passphrase") if key.is_passphrase else ("passphrase", "key file")
        raise InputError(f"This scan was sealed with a {kind}, not a {other}; give that.")
    if not key.is_passphrase and key_id != key.id:
        raise InputError("The key is not the one that this scan was sealed with; give the right one.")
    return salt, nonce, cost


def _damaged() -> InputError:
    return InputError("The seal is damaged; get the scan and its seal again from their source.")
