"""Untrained judges, in memory and as files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from MITSGANLib import weights
from MITSGANLib.judges import networks
from MITSGANLib.judges.judge import Sight, kind_of
from MITSGANLib.judges.networks import PlainConfig, PlanesConfig, ResidualConfig, SquaresConfig

CUBE, SQUARES = Sight("cube", 32), Sight("squares", 24, 3)
NETWORKS = {
    "PlainNetwork": PlainConfig(filters=4),
    "ResidualNetwork": ResidualConfig(filters=2, blocks=1),
    "PlanesNetwork": PlanesConfig(filters=2),
    "SquaresNetwork": SquaresConfig(filters=2, border=4),
}


def untrained(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return getattr(networks, name)(NETWORKS[name]).eval()


def write_judge(
    folder: Path,
    name: str = "mine",
    question: str = "nodule",
    network: str = "PlainNetwork",
    view: Sight = CUBE,
    **changes: object,
) -> weights.ModelCard:
    """An untrained judge as an installed one, its card with changes."""
    fields = {
        "name": name,
        "kind": kind_of(question),
        "architecture": {
            "class": network,
            "config": dataclasses.asdict(NETWORKS[network]),
            "view": dataclasses.asdict(view),
        },
        "figures": {"threshold": 0.25},
        **dict.fromkeys(("description", "limits", "command", "commit"), ""),
        "data": {},
        "training": {},
        "seed": 0,
    }
    card = weights.ModelCard(**fields | changes)
    return weights.write_weights(
        folder / "judges" / f"{name}.safetensors", weights.half_precision(untrained(network)), card
    )
