"""Checkpoints of a training run: written atomically, read back only into the same configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from MITSGANLib.errors import InputError, OutputError


class Stateful(Protocol):
    """A module or an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


def save_checkpoint(path: Path, state: dict[str, Stateful], config: dict[str, Any], step: int) -> None:
    """Write all states, the configuration and the number of finished steps.

    :raises OutputError: when the disk does not take it; the previous checkpoint stays.
    """
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"config": config, "step": step, "state": {k: v.state_dict() for k, v in state.items()}}, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"The checkpoint {path} could not be written ({error}); free space, then run again."
        ) from error


def load_checkpoint(path: Path, state: dict[str, Stateful], config: dict[str, Any]) -> int:
    """Restore all states and give the number of finished steps; 0 where there is no checkpoint.

    :raises InputError: when the file is unreadable or belongs to another configuration.
    """
    if not path.exists():
        return 0
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise InputError(f"The checkpoint {path} is unreadable; delete it to start anew.") from error
    if saved["config"] != config:
        raise InputError(f"The checkpoint {path} belongs to another configuration; choose another folder or delete it.")
    for name, item in state.items():
        item.load_state_dict(saved["state"][name])
    return saved["step"]
