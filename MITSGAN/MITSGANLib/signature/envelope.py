"""Signed bytes: DSSE envelopes (github.com/secure-systems-lab/dsse, version 1.0.2) with one Ed25519 signature.

What is signed is the payload with its type, byte by byte as it is stored, so that nothing has to be brought into a
canonical form before it is checked, and no signature for one purpose passes for another. An envelope has exactly one
form, too: canonical JSON (sorted keys, no spaces, ASCII), base64 with no spare bits. Anything else is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..keys.signing_keys import fingerprint, raw_public_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PAYLOAD_TYPE = "application/vnd.mitsgan.manifest.v1+json"
STUDY_TYPE = "application/vnd.mitsgan.study.v1+json"
PUBLIC_KEY_BYTES, SIGNATURE_BYTES = 32, 64


class ManifestError(InputError):
    """A manifest is damaged, was altered, or does not bear the signature of the key it names."""

    exit_code = 7


def seal_payload(payload: bytes, key: Ed25519PrivateKey, kind: str = PAYLOAD_TYPE) -> dict[str, Any]:
    """An envelope of a ``kind``, as JSON values, with ``payload`` and its signature."""
    signature = key.sign(pre_authentication_encoding(kind, payload))
    return {
        "payload": encode_bytes(payload),
        "payloadType": kind,
        "signatures": [{"keyid": fingerprint(raw_public_key(key.public_key())), "sig": encode_bytes(signature)}],
    }


def open_envelope(envelope: Any, kind: str = PAYLOAD_TYPE) -> dict[str, Any]:
    """The signed values of an envelope, one of which is the ``public_key`` that signed them.

    :raises ManifestError: it is no envelope of this kind in its one form, or does not bear the signature of that key.
    :raises KeyError, TypeError: the payload names no key.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    match envelope:
        case {
            "payload": payload,
            "payloadType": found,
            "signatures": [{"keyid": str(claimed), "sig": signature, **more}],
        }:
            if found != kind or more or len(envelope) != 3:
                raise ManifestError("This is no manifest of a scan, or one of a newer version of MITSGAN.")
        case _:
            raise ManifestError(
                "This is no manifest of a scan; give the one that was written when the scan was signed."
            )
    payload, signature = decode_bytes(payload), decode_bytes(signature, SIGNATURE_BYTES)
    values = parse_canonical_json(payload)
    public_key = decode_bytes(values["public_key"], PUBLIC_KEY_BYTES)
    try:
        if claimed != fingerprint(public_key):
            raise ManifestError("The manifest names another key than the one it carries: it was altered.")
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, pre_authentication_encoding(kind, payload))
    except (InvalidSignature, ValueError) as error:
        raise ManifestError("The signature of the manifest is wrong: it was altered, or damaged on its way.") from error
    return values


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """What DSSE signs: the type and the payload, each after its length, so that neither can take bytes of the other."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def canonical_json(value: Any) -> bytes:
    """The one form of JSON values here: sorted keys, no spaces, ASCII, shortest decimals of floats, bytes as base64."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=encode_bytes).encode()


def parse_canonical_json(data: bytes) -> Any:
    """JSON values from their one form.

    :raises ManifestError: the bytes are no JSON, or not in the form of :func:`canonical_json`.
    """
    try:
        value = json.loads(data)
        is_canonical = canonical_json(value) == data
    except (ValueError, RecursionError) as error:
        raise ManifestError("The manifest is damaged: it is no JSON.") from error
    if not is_canonical:
        raise ManifestError("The manifest is damaged or was edited: it is not in the form in which it is written.")
    return value


def encode_bytes(data: bytes) -> str:
    """Base64 (RFC 4648, section 4)."""
    return base64.b64encode(data).decode("ascii")


def decode_bytes(text: Any, length: int | None = None) -> bytes:
    """Bytes from base64.

    :raises ManifestError: no base64 in the form of :func:`encode_bytes`, or of another length.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ManifestError("The manifest is damaged: a digest in it is unreadable.") from error
    if encode_bytes(data) != text or (length is not None and len(data) != length):
        raise ManifestError("The manifest is damaged: a digest in it is unreadable.")
    return data


def short_text(value: Any) -> str:
    """A short printable text: it goes to terminals.

    :raises ValueError: it is something else.
    """
    if not isinstance(value, str) or len(value) > 64 or not value.isprintable():
        raise ValueError("no text")
    return value
