"""Make a key file to seal and restore scans, or, with --signing, to sign them.

A sealing key holds 256 random bits. Whoever has it can restore what was sealed with it. Without it nobody can, not even
you: keep a copy in a safe place, apart from the scans. A signing key (Ed25519) comes with its public key beside it.
Give the public key to those who verify. Only you can read either private file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from MITSGANLib.keys.key_files import generate_key, require_cryptography, write_key_file
from MITSGANLib.keys.signing_keys import new_signing_key, save_signing_key

from . import key_options, shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keyfile", metavar="KEYFILE", help="the new file; an existing one is never replaced")
    parser.add_argument("--signing", action="store_true", help="make a pair of keys for signatures instead")
    key_options.add_passphrase(parser, "with --signing: ask for a passphrase that locks the private key")


def run(options: argparse.Namespace) -> None:
    require_cryptography()
    if options.signing:
        passphrase = key_options.passphrase(options, is_new=True)
        public = save_signing_key(new_signing_key(), Path(options.keyfile), passphrase and passphrase.secret)
        shared.say(f"Wrote {options.keyfile} (private) and {public} (public: give this one to those who verify).")
        return
    if options.passphrase or options.passphrase_env is not None or options.passphrase_fd is not None:
        options.refuse("a passphrase locks signing keys; add --signing, or seal with the passphrase and without a file")
    key = generate_key()
    write_key_file(key, options.keyfile)
    shared.say(
        f"Wrote {options.keyfile} (key {key.id}). Keep a copy apart from the scans: without it there is no way back."
    )
