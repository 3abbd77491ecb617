"""The attackers that are installed, by name; needs no torch."""

from __future__ import annotations

from pathlib import Path

from ..weights import MODELS_FOLDER

DEFAULT_ATTACKER = "ctgan-small"


def available_attackers(folder: Path = MODELS_FOLDER) -> list[str]:
    """Names of all installed attackers, the default one first."""
    names = sorted(path.name for path in (folder / "attackers").glob("*") if path.is_dir())
    return sorted(names, key=lambda name: name != DEFAULT_ATTACKER)
