"""Sign a scan, so that anyone can tell whether and where it was changed afterwards.

Without OUTPUT the manifest is written beside INPUT, as NAME.manifest.json. With OUTPUT the scan is copied there: DICOM
files carry the manifest inside, other files have it beside them. Nothing in INPUT is changed.

With --exam or --study a whole DICOM study is signed, and no file of it is touched. --exam writes a DICOM document, in
the study or at OUTPUT; --study writes a manifest, beside the study or at OUTPUT. --pixels-only writes one for copies
that will be de-identified: it covers pixels and geometry of CT alone, and verifies where names and UIDs are gone.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from MITSGANLib.keys.signing_keys import load_signing_key
from MITSGANLib.signature.dicom.digital_signature import DicomSigner, load_dicom_signer
from MITSGANLib.signature.dicom.exam import sign_exam
from MITSGANLib.signature.signing import Signers, sign_scan
from MITSGANLib.signature.study import sign_study

from ..archives.signing import SigningConfig, sign_collection
from . import key_options, shared, tree_options

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_DICOM = """\
The standard's own signatures (PS3.15). Other programs can check them, such as DCMTK's dcmsign.
Each signs one image in one compression. They need an RSA or elliptic curve key and the X.509
certificate made for it. OUTPUT must then be a DICOM folder; with --exam, a file.
"""


_COLLECTIONS = """\
With --collection, INPUT is a tree of folders of any depth, and OUTPUT becomes the same tree: every
signed DICOM image, NRRD, NIfTI or MetaImage file has the path and name of its original. Skipped,
and listed: DICOM other than CT, localizers, unrelated files; with --others copy they are copied
unchanged. To continue after a stop, run the same command again. It signs a scan anew only if its
content or a key changed, if its output is missing, or with --overwrite. OUTPUT must be new, empty,
or from an earlier run. Exit code: 0 all CT is signed, 3 some could not be.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_options(parser, "input")
    parser.add_argument("output", metavar="OUTPUT", nargs="?", help="a folder (DICOM) or a file for the signed copy")
    shared.add_options(parser, "--series")
    parser.add_argument(
        "--key",
        metavar="FILE",
        type=Path,
        help="Ed25519 private key; mitsgan keygen --signing makes one; needed without --exam",
    )
    key_options.add_passphrase(parser, "ask for the passphrase that locks the key")
    parser.add_argument("--study", action="store_true", help="one manifest of all series of a study, and of all in it")
    parser.add_argument(
        "--pixels-only",
        action="store_true",
        help="one manifest of a study's pixels and geometry alone, for copies that will be de-identified",
    )
    shared.add_options(parser, "--overwrite", "--json")
    tree_options.add_collection(parser, _COLLECTIONS)
    group = parser.add_argument_group("DICOM signatures", _DICOM)
    group.add_argument("--dicom-key", metavar="FILE", type=Path, help="private key (PEM)")
    group.add_argument("--certificate", metavar="FILE", type=Path, help="its X.509 certificate (PEM)")
    group.add_argument(
        "--exam",
        action="store_true",
        help="sign a study as a whole and touch no image: a Key Object Selection with the MAC of every instance",
    )
    group.add_argument("--dicom-passphrase-env", metavar="NAME", help="environment variable with its passphrase")


def run(options: argparse.Namespace) -> int:
    if (options.dicom_key is None) != (options.certificate is None):
        options.refuse("--dicom-key and --certificate belong together; give both, or neither")
    if options.exam and not options.dicom_key:
        options.refuse("--exam needs --dicom-key and --certificate: the document is signed as DICOM has it")
    if options.exam and (options.key or options.series or options.passphrase):
        options.refuse("--exam signs every series of a study, with --dicom-key; leave --key and --series out")
    if not options.exam and options.key is None:
        options.refuse("the following arguments are required: --key")
    is_study = options.study or options.pixels_only
    if is_study and (options.exam or options.dicom_key or options.series):
        options.refuse(
            "--study and --pixels-only sign every series with --key; leave --exam, --dicom-key, --series out"
        )
    passphrase = key_options.passphrase(options)
    for secret in filter(None, (options.key, options.dicom_key)):
        key_options.warn_of_readers(secret)
    if tree_options.is_collection(options):
        return _sign_collection(options, passphrase and passphrase.secret)
    key = options.key and load_signing_key(options.key, passphrase and passphrase.secret)
    dicom = options.dicom_key and load_dicom_signer(
        options.dicom_key, options.certificate, key_options.passphrase_from(options.dicom_passphrase_env)
    )
    if options.exam:
        _sign_exam(options, dicom)
    elif is_study:
        _sign_study(options, key)
    else:
        _sign_scan(options, Signers(key, dicom))
    return 0


def _sign_collection(options: argparse.Namespace, passphrase: bytes | None) -> int:
    if options.series is not None or options.exam or options.study or options.pixels_only:
        options.refuse("--collection signs each series; leave --series, --exam, --study and --pixels-only out")
    if options.output is None:
        options.refuse("--collection needs OUTPUT, a folder for the signed copies")
    config = SigningConfig(
        **tree_options.tree_values(options),
        signing_key=options.key,
        passphrase=passphrase,
        dicom_key=options.dicom_key,
        certificate=options.certificate,
        dicom_passphrase=key_options.passphrase_from(options.dicom_passphrase_env),
    )
    return tree_options.run_collection(options, partial(sign_collection, config))


def _sign_scan(options: argparse.Namespace, signers: Signers) -> None:
    with shared.progress_bar("Signing", "slice") as progress:
        signed, where = sign_scan(
            options.input,
            options.output,
            signers,
            series=options.series,
            overwrite=options.overwrite,
            progress=progress,
        )
    manifest = signed.manifest
    result = {
        "output": options.output,
        "manifest": str(where),
        "signer": manifest.fingerprint,
        "signed": manifest.created,
        "shape": list(manifest.shape),
        "headers": manifest.headers is not None,
        "dicom_signatures": signers.dicom is not None,
    }
    text = f"Signed {manifest.shape[0]} slices with the key {manifest.fingerprint}. Wrote {where}"
    shared.answer(options, result, text)


def _sign_exam(options: argparse.Namespace, signer: DicomSigner) -> None:
    with shared.progress_bar("Signing", "instance") as progress:
        where, count = sign_exam(options.input, options.output, signer, overwrite=options.overwrite, progress=progress)
    result = {"output": str(where), "instances": count}
    shared.answer(options, result, f"Signed an exam of {count} instances. Wrote {where}")


def _sign_study(options: argparse.Namespace, key: Ed25519PrivateKey) -> None:
    with shared.progress_bar("Signing", "instance") as progress:
        manifest, where = sign_study(
            options.input,
            options.output,
            key,
            pixels_only=options.pixels_only,
            overwrite=options.overwrite,
            progress=progress,
        )
    counts = [len(instances) for instances in manifest.series]
    result = {"manifest": str(where), "signer": manifest.fingerprint, "covers": manifest.covers, "instances": counts}
    what = "slices, their pixels and geometry alone," if options.pixels_only else "instances"
    shared.answer(options, result, f"Signed {sum(counts)} {what} in {len(counts)} series. Wrote {where}")
