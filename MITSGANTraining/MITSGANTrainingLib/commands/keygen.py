"""Make a key file: for sealing and restoring scans, or, with --signing, for signing them.

A sealing key holds 256 random bits. Whoever has it can restore what was sealed with it; without it nobody can, you
included: keep a copy in a safe place, apart from the scans. A signing key (Ed25519) comes with its public key beside
it, which those need who verify. Either file can be read by you alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from MITSGANLib.keys.key_files import generate_key, require_cryptography, write_key_file

from . import key_options
from .options import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keyfile", metavar="KEYFILE", help="the new file; an existing one is never replaced")
    parser.add_argument("--signing", action="store_true", help="make a pair of keys for signatures instead")
    key_options.add_passphrase(parser, "with --signing: ask for a passphrase that locks the private key")


def run(options: argparse.Namespace) -> None:
    require_cryptography()
    if options.signing:
        _make_signing_key(options)
        return
    if options.passphrase or options.passphrase_env is not None or options.passphrase_fd is not None:
        options.refuse("a passphrase locks signing keys; add --signing, or seal with the passphrase and without a file")
    key = generate_key()
    write_key_file(key, options.keyfile)
    say(f"Wrote {options.keyfile} (key {key.id}). Keep a copy apart from the scans: without it there is no way back.")


def _make_signing_key(options: argparse.Namespace) -> None:
    from MITSGANLib.keys.signing_keys import new_signing_key, save_signing_key

    passphrase = key_options.passphrase(options, is_new=True)
    public = save_signing_key(new_signing_key(), Path(options.keyfile), passphrase.secret if passphrase else None)
    say(f"Wrote {options.keyfile} (private) and {public} (public: give this one to those who verify).")
