"""Presets and installed protectors: what a user can choose by name, how strong it is, and how it is loaded.

The noise budget lies in two places: the strengths here, and what they mean in each tissue in :mod:`..budget.budget`.
A model's card may hold fractions of its own, with which it was trained.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from ..weights import MODELS_FOLDER, ModelCard, configuration, fill, installed_cards, read_weights, weights_path
from .proposer import BLOCKER_CLASS, BLOCKER_KIND

if TYPE_CHECKING:
    from .proposer import Proposer

DEFAULT_PROTECTOR = "mitsgan-small"

NO_MODEL = "none"
"""In place of a protector's name: a watermark alone."""
SEARCH = "search"
"""In place of a protector's name: a change searched on the scan itself; see :mod:`.search`."""


@dataclass(frozen=True)
class Preset:
    """An installed protector at a strength, with or without the open watermark, under a name that says what it is for.

    :param strength_hu: of the perturbation, in place of the protector's own; None keeps that.
    :param watermark_hu: largest change by the watermark, on top of the perturbation; None without one.
    """

    protector: str
    strength_hu: float | None = None
    watermark_hu: float | None = None


PRESETS: Mapping[str, Preset] = {
    "default": Preset(DEFAULT_PROTECTOR, 16.0, 10.0),
    "strong": Preset(DEFAULT_PROTECTOR, 48.0, 30.0),
    "paper": Preset("mitsgan-paper-cpu"),
    "block-ai": Preset("miad-mark"),
}


FOR_READERS = ("default", "strong")
"""What somebody who reads scans may choose; all else is for research."""


def preset_of(parameters: Mapping[str, object]) -> str | None:
    """The name of the preset that a protection's recorded parameters are those of; None for any other."""
    for name, preset in PRESETS.items():
        recorded = parameters.get("model"), parameters.get("watermark_strength_hu")
        strength = parameters.get("strength_hu")
        if recorded == (preset.protector, preset.watermark_hu) and preset.strength_hu in (None, strength):
            return name
    return None


def available_protectors(folder: Path = MODELS_FOLDER) -> list[ModelCard]:
    """Cards of all installed protectors, the default one first."""
    return installed_cards(folder / "protectors", [DEFAULT_PROTECTOR])


def choices() -> dict[str, ModelCard]:
    """What a user can choose, by name: the presets that are installed, then all other protectors."""
    cards = {card.name: card for card in available_protectors()}
    presets = {name: cards[preset.protector] for name, preset in PRESETS.items() if preset.protector in cards}
    covered = {preset.protector for preset in PRESETS.values() if preset == Preset(preset.protector)}
    return {**presets, **{name: card for name, card in cards.items() if name not in covered}}


def choice(name: str) -> str:
    """The name of a protector in :func:`choices`: its preset's where it is unchanged, else its own."""
    return next((preset for preset, made in PRESETS.items() if made == Preset(name)), name)


def load_proposer(name: str | os.PathLike[str], folder: Path = MODELS_FOLDER) -> tuple[Proposer, ModelCard]:
    """What a protector's file proposes changes with, networks in evaluation mode, and its card.

    :param name: a preset, an installed protector, or the path of a .safetensors file with its card beside it.
    :raises ModelError: when it is unknown, corrupt, no protector, or its weights do not fit its architecture.
    """
    from .diagnosis_blocking import DiagnosisBlocker
    from .generator import Generator, GeneratorConfig
    from .tafim import TAFIM, TAFIMConfig

    networks = {"Generator": (Generator, GeneratorConfig), "TAFIM": (TAFIM, TAFIMConfig)}
    tensors, card = read_weights(protector_path(name, folder))
    kind = card.architecture.get("class")
    if kind == BLOCKER_CLASS:
        return DiagnosisBlocker.of(tensors, card), card
    if kind not in networks:
        known = ", ".join((*networks, BLOCKER_CLASS))
        raise ModelError(f"Model '{card.name}' is of class {kind}, not a protector ({known}).")
    network, config = networks[kind]
    values = configuration(config, card)
    return fill(lambda: network(values), tensors, card), card


def protector_path(name: str | os.PathLike[str], folder: Path = MODELS_FOLDER) -> Path:
    """Where the weights of a protector lie; ``name`` as for :func:`load_proposer`.

    :raises ModelError: when there are none.
    """
    name = os.fspath(name)
    name = PRESETS[name].protector if name in PRESETS else name

    def installed() -> list[str]:
        return [*PRESETS, *(card.name for card in available_protectors(folder))]

    return weights_path(name, folder / "protectors", "protector", installed)


def is_blocker(name: str | os.PathLike[str]) -> bool:
    """Whether a protector misleads diagnosis networks on purpose; ``name`` as for :func:`load_proposer`, or none.

    :raises ModelError: when it is unknown, or its card cannot be read.
    """
    has_card = name not in (NO_MODEL, SEARCH)
    return has_card and ModelCard.read(protector_path(name).with_suffix(".json")).kind == BLOCKER_KIND
