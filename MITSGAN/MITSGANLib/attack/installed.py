"""The attackers that are installed, by name; needs no torch."""

from __future__ import annotations

from pathlib import Path

from ..scan.targets import Action
from ..weights import MODELS_FOLDER

DEFAULT_ATTACKER = "ctgan-small"
FILES: dict[Action, tuple[str, str]] = {
    "inject": ("injector.safetensors", "INJ"),
    "remove": ("remover.safetensors", "REM"),
}
"""What makes a folder an attacker: weights of our own, or a folder of published ones."""


def actions_of(folder: Path) -> list[Action]:
    """What the attacker in a folder can do, by the files that it has."""
    return [action for action, files in FILES.items() if any((folder / file).exists() for file in files)]


def available_attackers() -> list[str]:
    """Names of all installed attackers, the default one first."""
    names = sorted(path.name for path in (MODELS_FOLDER / "attackers").glob("*") if path.is_dir())
    return sorted(names, key=lambda name: name != DEFAULT_ATTACKER)
