"""Registry of trained weights: safetensors files, each beside a JSON model card that says what it is.

``Resources/Models/protectors/NAME.{safetensors,json}`` are protectors; each folder ``Resources/Models/attackers/NAME``
holds an ``injector`` and a ``remover``. Weights of one's own may lie anywhere, card beside them. The card's SHA-256 is
checked before any tensor is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    import torch

    from .generator import Generator
    from .marking import DecisionMark
    from .tafim import TAFIM

MODELS_FOLDER = Path(__file__).resolve().parents[1] / "Resources" / "Models"
DEFAULT_PROTECTOR = "mitsgan-small"
DEFAULT_ATTACKER = "ctgan-small"
NO_MODEL = "none"
"""In place of a protector's name: a watermark alone."""
DECISION_MARK = "DecisionMark"
"""Class of a protector that is no network, but searches its change with the judges that its file holds."""
MARK = "mark against diagnosis networks"
"""Kind of a protector that misleads diagnosis networks on purpose; whoever uses one has to be told."""


@dataclass(frozen=True)
class Preset:
    """An installed protector at a strength, with or without the open watermark, under a name that says what it is for.

    :param strength_hu: of the network, in place of the protector's own; None keeps that.
    :param watermark_hu: largest change by the watermark, on top of the network's; None without one.
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


@dataclass(frozen=True)
class ModelCard:
    """What a file of weights is, how it was made and what was measured.

    :param architecture: class name under "class" and its configuration under "config".
    :param data: what it was trained and validated on, with licences.
    :param figures: as measured; each entry names its data.
    :param budget: of a protector: the default strength and the fractions per tissue it was trained with.
    :param sha256: of the safetensors file.
    """

    name: str
    kind: str
    description: str
    architecture: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    figures: Mapping[str, Any]
    limits: str
    seed: int
    command: str
    commit: str
    sha256: str = ""
    licence: str = "Apache-2.0"
    budget: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """:raises ModelError: when the card is missing, not JSON, or lacks or adds fields."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ModelError(
                f"The model card {path} is missing; reinstall the extension or choose another model."
            ) from error
        except (ValueError, TypeError) as error:
            raise ModelError(f"The model card {path} cannot be read ({error}); reinstall the extension.") from error

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def available_protectors(folder: Path = MODELS_FOLDER) -> list[ModelCard]:
    """Cards of all installed protectors, the default one first."""
    cards = [ModelCard.read(path) for path in sorted((folder / "protectors").glob("*.json"))]
    return sorted(cards, key=lambda card: card.name != DEFAULT_PROTECTOR)


def choices(folder: Path = MODELS_FOLDER) -> dict[str, ModelCard]:
    """What a user can choose, by name: the presets that are installed, then all other protectors."""
    cards = {card.name: card for card in available_protectors(folder)}
    presets = {name: cards[preset.protector] for name, preset in PRESETS.items() if preset.protector in cards}
    covered = {preset.protector for preset in PRESETS.values() if preset == Preset(preset.protector)}
    return {**presets, **{name: card for name, card in cards.items() if name not in covered}}


def choice(name: str) -> str:
    """The name under which :func:`choices` lists a protector: the preset that it is as it was made, or its own."""
    return next((preset for preset, made in PRESETS.items() if made == Preset(name)), name)


def available_attackers(folder: Path = MODELS_FOLDER) -> list[str]:
    """Names of all installed attackers, the default one first."""
    names = sorted(path.name for path in (folder / "attackers").glob("*") if path.is_dir())
    return sorted(names, key=lambda name: name != DEFAULT_ATTACKER)


def load_protector(
    name: str | os.PathLike[str], folder: Path = MODELS_FOLDER
) -> tuple[Generator | TAFIM | DecisionMark, ModelCard]:
    """The network of a protector in evaluation mode, or a mark with the networks that it misleads, and its card.

    :param name: a preset, an installed protector, or the path of a .safetensors file with its card beside it.
    :raises ModelError: when it is unknown, corrupt, no protector, or its weights do not fit its architecture.
    """
    path = protector_path(name, folder)
    tensors, card = read_weights(path)
    if card.architecture.get("class") == DECISION_MARK:
        from .marking import DecisionMark

        return DecisionMark.of(tensors, card), card
    return fill(_protector_network(card), tensors, card), card


def protector_path(name: str | os.PathLike[str], folder: Path = MODELS_FOLDER) -> Path:
    """Where the weights of a protector lie; ``name`` as for :func:`load_protector`.

    :raises ModelError: when there are none.
    """
    if os.fspath(name).endswith(".safetensors"):
        path = Path(name)
        if not path.is_file():
            raise ModelError(f"There are no weights at {path}; check the path.")
        return path
    name = os.fspath(name)
    name = PRESETS[name].protector if name in PRESETS else name
    path = folder / "protectors" / f"{name}.safetensors"
    # A name is not a way to files elsewhere; those are given with their suffix.
    if Path(name).name != name or not path.exists():
        known = ", ".join([*PRESETS, *(card.name for card in available_protectors(folder))])
        raise ModelError(f"There is no protector '{name}'; installed are: {known}. A file is named with .safetensors.")
    return path


def is_mark(name: str | os.PathLike[str], folder: Path = MODELS_FOLDER) -> bool:
    """Whether a protector misleads diagnosis networks on purpose; ``name`` as for :func:`load_protector`, or none.

    :raises ModelError: when it is unknown, or its card cannot be read.
    """
    return name != NO_MODEL and ModelCard.read(protector_path(name, folder).with_suffix(".json")).kind == MARK


def _protector_network(card: ModelCard) -> Generator | TAFIM:
    from .generator import Generator, GeneratorConfig
    from .tafim import TAFIM, TAFIMConfig

    kinds = {"Generator": (Generator, GeneratorConfig), "TAFIM": (TAFIM, TAFIMConfig)}
    kind = card.architecture.get("class")
    if kind not in kinds:
        raise ModelError(
            f"Model '{card.name}' is of class {kind}, not a protector ({', '.join([*kinds, DECISION_MARK])})."
        )
    network, config = kinds[kind]
    try:
        return network(configuration(config, card))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"Model '{card.name}' has an architecture that cannot be built ({error}).") from error


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """All tensors of a safetensors file and its card, after the file's SHA-256 has been compared with the card's.

    :raises ModelError: when file or card is missing, or the file is not the one the card describes.
    """
    import safetensors.torch

    card = ModelCard.read(path.with_suffix(".json"))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"The weights {path} cannot be read ({error.strerror}); reinstall the extension.") from error
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise ModelError(f"The weights {path} are not those its model card describes; reinstall the extension.")
    try:
        return safetensors.torch.load(content), card
    except safetensors.SafetensorError as error:
        raise ModelError(f"The weights {path} are not a safetensors file; reinstall the extension.") from error


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor], card: ModelCard) -> ModelCard:
    """Write tensors and card; both appear whole or not at all. Gives the card with its SHA-256 filled in."""
    import safetensors.torch

    from .atomic import atomic_file

    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    card = dataclasses.replace(card, sha256=hashlib.sha256(content).hexdigest())
    # One block for both: weights beside another model's card would be refused as corrupt.
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_bytes(content)
        temporary.with_suffix(".json").write_text(card.to_json(), encoding="utf-8")
    return card


def configuration(kind: type, card: ModelCard) -> Any:
    """The frozen dataclass ``kind`` from the card's architecture.

    :raises ModelError: when the card names other fields.
    """
    try:
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in card.architecture["config"].items()}
        return kind(**values)
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"Model '{card.name}' has an architecture this version does not know ({error}).") from error


def fill(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], card: ModelCard) -> Any:
    """The network with these weights (stored in half precision, used in float32), in evaluation mode.

    :raises ModelError: when names or shapes differ.
    """
    floats = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    try:
        network.load_state_dict(floats)
    except RuntimeError as error:
        raise ModelError(
            f"The weights of '{card.name}' belong to another architecture; reinstall the extension."
        ) from error
    return network.eval().requires_grad_(False)


def half_precision(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A network's state for shipping: floating-point tensors in float16, which halves the file."""
    return {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
