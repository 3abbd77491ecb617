"""Which patients train and which validate: drawn with a seed, before any scan is cut."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from MITSGANLib.errors import InputError


@dataclass(frozen=True)
class SplitOptions:
    """How patients are divided.

    :param validation_share: share of the patients that validate.
    :param held_out: patients that validate in any case; only what is missing to the share is drawn.
    :raises InputError: when the share is not between 0 and 1.
    """

    validation_share: float = 0.2
    seed: int = 0
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.validation_share < 1:
            raise InputError(f"The share of validation must lie between 0 and 1, not {self.validation_share:g}.")


@dataclass(frozen=True)
class Split:
    """Patients of each side, sorted."""

    training: tuple[str, ...]
    validation: tuple[str, ...]


def split_patients(groups: Sequence[Collection[str]], options: SplitOptions) -> Split:
    """Divide each group by itself, so that each side has patients of each kind where there are at least two.

    :param groups: patients by what they bring (scans with large findings, other scans, ready cubes alone); a patient
        counts in the first group that names them.
    :raises InputError: when a patient to hold out is not there, or a side would be empty.
    """
    seen, distinct = set(), []
    for group in groups:
        distinct.append(sorted(set(group) - seen))
        seen.update(group)
    unknown = sorted(set(options.held_out) - seen)
    if unknown:
        raise InputError(f"{len(unknown)} of the patients to hold out have no scan or cube here; check their names.")
    rng = np.random.default_rng(options.seed)
    validation: set[str] = set()
    for group in distinct:
        validation.update(_drawn(group, options, rng))
    training = seen - validation
    if not training or not validation:
        side, patients = "validation" if training else "training", f"patient{'s' * (len(seen) != 1)}"
        hint = "give scans of more patients, or another --split or --hold-out."
        raise InputError(f"The split of {len(seen)} {patients} leaves {side} empty; {hint}")
    return Split(tuple(sorted(training)), tuple(sorted(validation)))


def _drawn(group: Sequence[str], options: SplitOptions, rng: np.random.Generator) -> list[str]:
    held_out = [name for name in group if name in options.held_out]
    others = rng.permutation([name for name in group if name not in options.held_out]).tolist()
    wanted = round(len(group) * options.validation_share)
    if len(group) > 1:
        wanted = min(max(wanted, 1), len(group) - 1)
    return held_out + others[: max(0, wanted - len(held_out))]
