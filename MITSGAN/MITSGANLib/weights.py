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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError
from .files.atomic import atomic_file
from .runtime.resources import resources_folder
from .scan.targets import Action

if TYPE_CHECKING:
    import torch


# Widths, depths and sizes are far below, and a network of that many layers takes seconds to be refused.
LARGEST_NUMBER = 10_000

MODELS_FOLDER = resources_folder(Path(__file__).resolve().parent) / "Models"

DEFAULT_ATTACKER = "ctgan-small"
ATTACKER_FILES: dict[Action, tuple[str, str]] = {
    "inject": ("injector.safetensors", "INJ"),
    "remove": ("remover.safetensors", "REM"),
}
"""What makes a folder an attacker: weights of our own, or a folder of published ones."""


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
        """Read a card.

        :raises ModelError: when it is missing, not JSON, lacks or adds fields, or one is of another type.
        """
        try:
            card = cls(**json.loads(path.read_text(encoding="utf-8")))
            for one in dataclasses.fields(cls):
                kind = {"str": str, "int": int}.get(one.type, dict)
                if type(getattr(card, one.name)) is not kind:
                    raise TypeError(f"{one.name} is no {kind.__name__}")
            return card
        except FileNotFoundError as error:
            raise ModelError(
                f"The model card {path} is missing; reinstall the extension or choose another model."
            ) from error
        except (ValueError, TypeError, RecursionError, OSError) as error:
            raise ModelError(f"The model card {path} cannot be read ({error}); reinstall the extension.") from error

    def to_json(self) -> str:
        """The text of the card's file."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def installed_cards(folder: Path, first: Collection[str]) -> list[ModelCard]:
    """Cards of all models in a folder by name, but those named ``first`` first."""
    cards = [ModelCard.read(path) for path in sorted(folder.glob("*.json"))]
    return sorted(cards, key=lambda card: card.name not in first)


def actions_of(folder: Path) -> list[Action]:
    """What the attacker in a folder can do, by the files that it has."""
    return [action for action, files in ATTACKER_FILES.items() if any((folder / file).exists() for file in files)]


def available_attackers() -> list[str]:
    """Names of all installed attackers, the default one first."""
    names = sorted(path.name for path in (MODELS_FOLDER / "attackers").glob("*") if path.is_dir())
    return sorted(names, key=lambda name: name != DEFAULT_ATTACKER)


def weights_path(name: str | os.PathLike[str], folder: Path, what: str, installed: Callable[[], Sequence[str]]) -> Path:
    """Where the weights of a model lie that is installed in ``folder``, or named by its .safetensors file.

    :param what: the kind of model, in words.
    :param installed: gives the names that there are.
    :raises ModelError: when there are none.
    """
    given = os.fspath(name)
    if given.endswith(".safetensors"):
        if not Path(given).is_file():
            raise ModelError(f"There are no weights at {given}; check the path.")
        return Path(given)
    path = folder / f"{given}.safetensors"
    # A name is not a way to files elsewhere; those are given with their suffix.
    if Path(given).name != given or not path.exists():
        known = ", ".join(installed()) or "none"
        raise ModelError(f"There is no {what} '{given}'; installed are: {known}. A file is named with .safetensors.")
    return path


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

    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    card = dataclasses.replace(card, sha256=hashlib.sha256(content).hexdigest())
    # One block for both: weights beside another model's card would be refused as corrupt.
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_bytes(content)
        temporary.with_suffix(".json").write_text(card.to_json(), encoding="utf-8")
    return card


def configuration(kind: type, card: ModelCard) -> Any:
    """The frozen dataclass ``kind`` from the card's architecture.

    :raises ModelError: when the card names other fields, or numbers that no architecture has.
    """
    try:
        return configured(kind, card.architecture["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"Model '{card.name}' has an architecture this version does not know ({error}).") from error


def configured(kind: type, values: Mapping[str, Any]) -> Any:
    """The frozen dataclass ``kind`` from the values of a card.

    :raises ValueError, TypeError, AttributeError: these are others, or numbers that no architecture has: of such a
        width or depth even the attempt takes memory or hours.
    """
    numbers = [one for value in values.values() for one in (value if isinstance(value, list) else [value])]
    if not all(one is None or isinstance(one, str) or abs(one) <= LARGEST_NUMBER for one in numbers):
        raise ValueError("a number that no architecture has")
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def fill(make: Callable[[], torch.nn.Module], tensors: Mapping[str, torch.Tensor], card: ModelCard) -> Any:
    """A network with these weights (stored in half precision, used in float32), in evaluation mode.

    :param make: makes the network; called once without memory for its weights, so that a card that asks for more of
        them than the file holds costs none.
    :raises ModelError: when the network cannot be made, or names or shapes differ.
    """
    import torch

    try:
        with torch.device("meta"):
            wanted = {name: tensor.shape for name, tensor in make().state_dict().items()}
    except Exception as error:  # of a configuration that is none, layers raise what they like
        raise ModelError(f"Model '{card.name}' has an architecture that cannot be built ({error}).") from error
    if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ModelError(f"The weights of '{card.name}' belong to another architecture; reinstall the extension.")
    network = make()
    network.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return network.eval().requires_grad_(False)


def half_precision(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A network's state for shipping: floating-point tensors in float16, which halves the file."""
    return {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
