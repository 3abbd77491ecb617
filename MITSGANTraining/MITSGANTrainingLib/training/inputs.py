"""What a task is built from besides its recipe: prepared data, attackers, and the device it runs on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from MITSGANLib import weights
from MITSGANLib.attack.attacker import Attacker, load_attacker
from MITSGANLib.errors import ModelError
from MITSGANLib.weights import actions_of

from ..data.dataset import Dataset


@dataclass(frozen=True)
class Inputs:
    """What a run is given.

    :param data: prepared samples; see :mod:`MITSGANTrainingLib.data.dataset`.
    :param attackers: names or folders given on the command line; empty takes the recipe's.
    :param models: the folder that the trained model goes to; attackers are looked up there first.
    """

    data: Dataset
    device: torch.device
    attackers: tuple[str, ...] = ()
    models: Path = weights.MODELS_FOLDER

    def load_attackers(self, named_by_recipe: Sequence[str]) -> list[Attacker]:
        """Every injector and remover of the attackers that the command line or else the recipe names, on the device.

        :raises ModelError: when one is unknown, corrupt, or has neither of the two.
        """
        found = []
        for name in self.attackers or tuple(named_by_recipe):
            places = (self.models / "attackers" / name, weights.MODELS_FOLDER / "attackers" / name, Path(name))
            folder = next((place for place in places if place.is_dir()), places[-1])
            actions = actions_of(folder)
            if not actions:
                raise ModelError(
                    f"There is no attacker '{name}': neither {folder} nor an installed one of this name holds an "
                    "injector or a remover; train them first, or name others with --attackers."
                )
            found += [load_attacker(folder, action).to(self.device) for action in actions]
        return found

    def models_with(self, path: str) -> Path:
        """The folder of models that holds this file: the one written to, or else that of the installed ones."""
        return self.models if (self.models / path).is_file() else weights.MODELS_FOLDER


def fingerprint(*arrays: np.ndarray) -> str:
    """A short digest of arrays, to tell one set of samples from another."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
