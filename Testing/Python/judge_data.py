"""Untrained judges, in memory and as files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from MITSGANLib import models
from MITSGANLib.judge_networks import PlainConfig, PlanesConfig, ResidualConfig, SquaresConfig
from MITSGANLib.judges import View, build_network, kind_of

CUBE, SQUARES = View("cube", 32), View("squares", 24, 3)
NETWORKS = {
    "PlainNetwork": PlainConfig(filters=4),
    "ResidualNetwork": ResidualConfig(filters=2, blocks=1),
    "PlanesNetwork": PlanesConfig(filters=2),
    "SquaresNetwork": SquaresConfig(filters=2, border=4),
}


def untrained(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(name, NETWORKS[name]).eval()


def write_judge(
    folder: Path,
    name: str = "mine",
    question: str = "nodule",
    network: str = "PlainNetwork",
    view: View = CUBE,
    **changes: object,
) -> models.ModelCard:
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
    card = models.ModelCard(**fields | changes)
    return models.write_weights(
        folder / "judges" / f"{name}.safetensors", models.half_precision(untrained(network)), card
    )
