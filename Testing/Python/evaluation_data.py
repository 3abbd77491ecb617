"""Scans, an untrained protector and untrained attackers as files, small enough to evaluate within seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from MITSGANLib.protection.generator import Generator, GeneratorConfig
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.weights import ModelCard, write_weights


def small_scan(seed: int = 3) -> CTVolume:
    """A thorax of 70 mm, just enough for a few places to attack."""
    return thorax_phantom(shape=(28, 128, 128), spacing_kji=(2.5, 2.8, 2.8), seed=seed).volume


def write_tiny_protector(
    path: Path, *, alpha: float | None = None, seed: int = 11, training: Mapping[str, Any] | None = None
) -> Path:
    """An untrained protector whose card names this alpha."""
    torch.manual_seed(seed)
    config = GeneratorConfig(trunk_filters=4, residual_blocks=1, output="residual", unshuffle=2)
    architecture = {"class": "Generator", "config": dataclasses.asdict(config)}
    texts = dict.fromkeys(("description", "limits", "command", "commit"), "")
    tables = {"data": {}, "figures": {}, "training": training or ({"alpha": alpha} if alpha is not None else {})}
    card = ModelCard(
        name="tiny",
        kind="protector",
        seed=seed,
        architecture=architecture,
        budget={"strength_hu": 12.0},
        **texts,
        **tables,
    )
    write_weights(path, Generator(config).state_dict(), card)
    return path
