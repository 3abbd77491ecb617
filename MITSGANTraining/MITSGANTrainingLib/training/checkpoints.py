"""Checkpoints of a training run: written atomically, read back only into the same configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from MITSGANLib.errors import InputError, OutputError

from .configuration import differences

FORMAT = 2
_NAMED = 6  # differences that an error lists


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` (state dictionaries, numbers, texts) so that ``path`` is the old or the new file, never a part.

    :raises OutputError: when the disk does not take it; the previous checkpoint stays.
    """
    # Not atomic_file, which moves an older file away first: killed in between, it would leave neither.
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            # Without it a power failure can leave the new name with none of the content.
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"The checkpoint {path} could not be written ({error}); free space, then run again."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What :func:`save_checkpoint` wrote, on the CPU; None where there is no file.

    :raises InputError: when the file is unreadable or of another format.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise InputError(f"The checkpoint {path} is unreadable; delete it to start anew.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"The checkpoint {path} was written by another version; delete it, or choose another --work folder."
        )
    return content


def require_same(path: Path, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """:raises InputError: when a checkpoint's configuration is not the run's, with what differs."""
    found = differences(saved, present, old_name="checkpoint", new_name="recipe")
    if found:
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise InputError(
            f"The checkpoint {path} belongs to another run: {'; '.join(found[:_NAMED])}{more}. "
            "Choose another --work folder, delete the checkpoint, or set the recipe back."
        )
