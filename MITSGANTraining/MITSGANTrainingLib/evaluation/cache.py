"""Results of finished work, each in a file named by the digest of everything it depends on.

A stopped evaluation finds here what it had finished. Whatever changes (voxels, weights, options, the measurement's
version) changes the key.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from MITSGANLib.files.atomic import atomic_file

Key = Mapping[str, Any]

MEASUREMENT = 5
"""Version of how figures are measured. Raise it with every change that moves a figure, so that no table mixes two.

A test holds figures of one small evaluation against recorded ones, and says when this number has to be raised.
"""


@dataclass(frozen=True)
class Cache:
    """A folder of JSON results and NPZ pictures; several processes may use it at once."""

    folder: Path

    def load(self, key: Key) -> dict[str, Any] | None:
        """The result stored under this key; None where there is none, or it is damaged."""
        try:
            stored = json.loads(self._path(key, ".json").read_text(encoding="utf-8"))
            return stored["result"] if stored["key"] == json.loads(json.dumps(key)) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def store(self, key: Key, result: Mapping[str, Any]) -> None:
        """:raises OutputError: when it cannot be written."""
        text = json.dumps({"key": key, "result": result}, indent=1, allow_nan=False)
        with atomic_file(self._path(key, ".json"), overwrite=True) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def load_arrays(self, key: Key) -> dict[str, np.ndarray] | None:
        """As :meth:`load`, for arrays."""
        try:
            with np.load(self._path(key, ".npz"), allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def store_arrays(self, key: Key, arrays: Mapping[str, np.ndarray]) -> None:
        """:raises OutputError: when they cannot be written."""
        with atomic_file(self._path(key, ".npz"), overwrite=True) as temporary:
            np.savez_compressed(temporary, **arrays)

    def _path(self, key: Key, suffix: str) -> Path:
        text = json.dumps(key, sort_keys=True, allow_nan=False)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}{suffix}"
