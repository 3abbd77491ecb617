"""Command-line options that name a key. The secret itself is never an argument: other users of a machine see those."""

from __future__ import annotations

import argparse
import getpass
import os
from pathlib import Path
from typing import Any

from MITSGANLib.errors import InputError
from MITSGANLib.keys.key_files import Key, is_private, passphrase_key, read_key_file

from . import shared


def add_key(parser: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    """``--key`` or one of the ways to give a passphrase; ``text`` says what for, before "a key file"."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--key", metavar="KEYFILE", help=f"{text} a key file (see mitsgan keygen)")
    _add_passphrase(group, "ask for a passphrase instead")


def add_passphrase(parser: argparse.ArgumentParser, text: str) -> None:
    """The ways to give a passphrase; ``text`` says what ``--passphrase`` asks for."""
    _add_passphrase(parser.add_mutually_exclusive_group(), text)


def add_signing_key(parser: argparse.ArgumentParser) -> None:
    """``--sign`` and what unlocks it: the key that signs what is protected."""
    parser.add_argument("--sign", metavar="FILE", type=Path, help="sign the output with this key (see mitsgan sign)")
    parser.add_argument("--sign-passphrase-env", metavar="NAME", help="environment variable with its passphrase")


def signing_values(options: argparse.Namespace) -> dict[str, Any]:
    """The values of ``collection.CollectionConfig`` that the options of :func:`add_signing_key` give.

    :raises InputError: the passphrase is not there.
    """
    if options.sign_passphrase_env is not None and options.sign is None:
        options.refuse("--sign-passphrase-env unlocks a signing key; add --sign")
    return {"signing_key": options.sign, "signing_passphrase": passphrase_from(options.sign_passphrase_env)}


def _add_passphrase(group: argparse._MutuallyExclusiveGroup, text: str) -> None:
    group.add_argument("--passphrase", action="store_true", help=text)
    group.add_argument("--passphrase-env", metavar="NAME", help="take the passphrase from this environment variable")
    group.add_argument(
        "--passphrase-fd",
        metavar="N",
        type=_descriptor,
        help="take the passphrase from the first line of file descriptor N",
    )


def _descriptor(text: str) -> int:
    """The number of a file descriptor, of which a system has no more than 2^31."""
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a file descriptor")
    return int(text)


def key(options: argparse.Namespace, *, is_new: bool = False) -> Key | None:
    """The key that the options of :func:`add_key` name; None where they name none.

    :param is_new: for sealing: a passphrase is asked for twice, and may not be too short.
    :raises InputError: it cannot be read.
    """
    if options.key is None:
        return passphrase(options, is_new=is_new)
    found = read_key_file(options.key)
    warn_of_readers(options.key)
    return found


def warn_of_readers(path: str | os.PathLike[str]) -> None:
    """One line where others than its owner may read the file of a secret key."""
    if Path(path).is_file() and not is_private(path):  # what is missing, its reader says
        shared.note(f"warning: others may read the key file {path}; run: chmod 600 {path}")


def passphrase(options: argparse.Namespace, *, is_new: bool = False) -> Key | None:
    """The passphrase that the options name; None where they name none.

    :raises InputError: it cannot be read, is empty, or too short for a new one.
    """
    if options.passphrase_env is not None:
        text = _environment(options.passphrase_env)
    elif options.passphrase_fd is not None:
        try:
            with open(options.passphrase_fd, encoding="utf-8", errors="surrogateescape", closefd=False) as file:
                text = file.readline().rstrip("\r\n")
        except OSError as error:
            raise InputError(f"--passphrase-fd cannot be read ({error.strerror}); open it for reading.") from error
    elif options.passphrase:
        text = _asked(is_new)
    else:
        return None
    return passphrase_key(text, is_new=is_new)


def passphrase_from(variable: str | None) -> bytes | None:
    """The passphrase in an environment variable, as bytes; None where no variable is named.

    :raises InputError: it is not set, or empty.
    """
    return None if variable is None else passphrase_key(_environment(variable), is_new=False).secret


def _environment(variable: str) -> str:
    if variable not in os.environ:
        raise InputError("The environment variable that is to hold the passphrase is not set; set and export it.")
    return os.environ[variable]


def _asked(is_new: bool) -> str:
    try:
        text = getpass.getpass("Passphrase: ")
        if is_new and getpass.getpass("Again: ") != text:
            raise InputError("The two passphrases differ; run the command again.")
    except EOFError as error:
        raise InputError("No passphrase was given; use --passphrase-fd where there is no terminal.") from error
    return text
