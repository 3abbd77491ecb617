"""What tests of collections and of signatures share: an untrained protector as files, a signer, what is in a folder."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from MITSGANLib.protection.generator import Generator, GeneratorConfig
from MITSGANLib.weights import ModelCard, write_weights
from MITSGANTrainingLib.archives.inventory import RECORDS, SUMMARY


def write_protector(folder: Path) -> str:
    """An untrained protector as files, so that other processes can load it; the name to give as a model."""
    torch.manual_seed(11)
    config = GeneratorConfig(trunk_filters=4, residual_blocks=1, output="residual", unshuffle=2)
    card = ModelCard(
        name="tiny",
        kind="protector",
        description="Untrained, for tests.",
        architecture={"class": "Generator", "config": dataclasses.asdict(config)},
        data={},
        training={},
        figures={},
        limits="It protects nothing.",
        seed=11,
        command="",
        commit="",
        budget={"strength_hu": 12.0},
    )
    path = folder / "tiny.safetensors"
    write_weights(path, Generator(config).state_dict(), card)
    return str(path)


def make_signer(folder: Path, name: str, key: object) -> tuple[Path, Path]:
    """(private key, certificate) files."""
    now, who = datetime.datetime.now(datetime.UTC), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number(), now - day, now + day)
    made = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = serialization.Encoding.PEM
    (folder / f"{name}.crt").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(private)
    (folder / f"{name}.key").chmod(0o600)
    return folder / f"{name}.key", folder / f"{name}.crt"


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their relative paths."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outputs(out: Path) -> dict[str, bytes]:
    """The files of a collection's output without its records and its summary."""
    return {name: data for name, data in contents(out).items() if not name.startswith((RECORDS, SUMMARY))}
