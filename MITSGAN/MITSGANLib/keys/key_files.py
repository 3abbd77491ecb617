"""Keys: made, kept in a file, or derived from a passphrase. Nothing here ever shows one.

A key file is one line of text with 256 random bits. From it, or from a passphrase, each seal derives its own AES key
with a salt of its own: HKDF-SHA256 (RFC 5869) of a key file, scrypt (RFC 7914) of a passphrase. Both come from the
package cryptography, which is imported where it is used, because an extension must load without it.
"""

from __future__ import annotations

import base64
import binascii
import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import MAKE_KEY, DependencyError, InputError, reading
from ..files.atomic import atomic_file

KEY_BYTES, SALT_BYTES = 32, 16
LEAST_PASSPHRASE = 8

_FILE_MARK = "MITSGAN-KEY-1"
_KEY_FILE_LIMIT = 1024
# Each use of a key has a context of its own (RFC 5869 3.2), so that no two uses share key material.
_SEAL_CONTEXT, _ID_CONTEXT = b"MITSGAN seal 1", b"MITSGAN key id 1"


@dataclass(frozen=True)
class Key:
    """The secret of a key file (32 random bytes), or a passphrase (UTF-8 of its composed form)."""

    secret: bytes = field(repr=False)
    is_passphrase: bool = False

    @property
    def id(self) -> str | None:
        """16 hexadecimal digits that tell a key file from others and nothing about its secret; None for a passphrase.

        A passphrase has none: a value that is quick to compute would make guessing it quick.
        """
        return None if self.is_passphrase else derive(self.secret, None, _ID_CONTEXT)[:8].hex()


@dataclass(frozen=True)
class ScryptCost:
    """Cost of one guess of a passphrase: 128 * ``n`` * ``r`` bytes of memory, ``p`` times (RFC 7914).

    The default takes 128 MiB and some tenths of a second.

    :raises InputError: no power of two, or more than 1 GiB or 16 times, which no seal of ours asks for.
    """

    n: int = 1 << 17
    r: int = 8
    p: int = 1

    def __post_init__(self) -> None:
        if not all(type(value) is int and value > 0 for value in (self.n, self.r, self.p)):
            raise InputError("The seal's scrypt parameters are no positive integers; it is damaged.")
        if self.n < 2 or self.n & (self.n - 1) or 128 * self.n * self.r > 1 << 30 or self.p > 16:
            raise InputError(
                "The seal asks for scrypt parameters that no seal of MITSGAN has; it is damaged or hostile."
            )


def generate_key() -> Key:
    """A new random key."""
    return Key(os.urandom(KEY_BYTES))


def passphrase_key(text: str, *, is_new: bool = False) -> Key:
    """A key from a passphrase, the same however an input method composes its accents (Unicode NFC).

    :param is_new: for sealing, where a passphrase of less than 8 characters is refused.
    :raises InputError: an empty passphrase, or one too short to seal with.
    """
    text = unicodedata.normalize("NFC", text)
    if not text:
        raise InputError("The passphrase is empty; give one.")
    if is_new and len(text) < LEAST_PASSPHRASE:
        raise InputError(f"The passphrase is too short; take at least {LEAST_PASSPHRASE} characters, better six words.")
    return Key(text.encode("utf-8", "surrogateescape"), is_passphrase=True)


def write_key_file(key: Key, path: str | os.PathLike[str]) -> None:
    """Write a key to a new file that its owner alone can read. An existing file is never replaced.

    :raises OutputError: the file exists or cannot be written.
    """
    text = f"{_FILE_MARK} {base64.b64encode(key.secret).decode()}\n"
    with atomic_file(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)


def read_key_file(path: str | os.PathLike[str]) -> Key:
    """The key in a file of :func:`write_key_file`.

    :raises InputError: missing, unreadable, or no key file; the text never quotes its content.
    """
    path = Path(path)
    with reading(path, "check the path of the key file"), path.open("rb") as file:
        content = file.read(_KEY_FILE_LIMIT)
    words = content.split()
    try:
        secret = base64.b64decode(words[1], validate=True) if len(words) == 2 else b""
    except binascii.Error:
        secret = b""
    if words[:1] != [_FILE_MARK.encode()] or len(secret) != KEY_BYTES:
        raise InputError("is no key file of MITSGAN, or is damaged", path=path, hint=MAKE_KEY)
    return Key(secret)


def is_private(path: str | os.PathLike[str]) -> bool:
    """Whether the owner alone may read a key file; systems without such permissions count as private."""
    return os.name != "posix" or not Path(path).stat().st_mode & 0o077


def seal_key(key: Key, salt: bytes, cost: ScryptCost | None) -> bytes:
    """The 32 bytes of the AES key for one seal.

    :param cost: for a passphrase alone.
    """
    if not key.is_passphrase:
        return derive(key.secret, salt, _SEAL_CONTEXT)
    require_cryptography()
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return Scrypt(salt=salt, length=KEY_BYTES, n=cost.n, r=cost.r, p=cost.p).derive(key.secret)


def require_cryptography() -> None:
    """Raise ``DependencyError`` where the package cryptography cannot be imported."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "Keys need the package cryptography, which is not installed; install it with: pip install cryptography"
        ) from error


def derive(secret: bytes, salt: bytes | None, context: bytes) -> bytes:
    """32 bytes for one use of a secret, by HKDF-SHA256 (RFC 5869); ``context`` names the use.

    :raises DependencyError: the package cryptography cannot be imported.
    """
    require_cryptography()
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY_BYTES, salt, context).derive(secret)
