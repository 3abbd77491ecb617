"""What the tests of restoration and of collections share: an untrained protector as files, and what is in a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
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


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their relative paths."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outputs(out: Path) -> dict[str, bytes]:
    """The files of a collection's output without its records and its summary."""
    return {name: data for name, data in contents(out).items() if not name.startswith((RECORDS, SUMMARY))}
