"""What ``--protectors`` names: a model, noise without a network, or what is found on the scan against the attacker.

``NAME`` is an installed protector, or a preset, which may carry the open watermark; ``FILE`` a ``.safetensors`` with
its card beside it; both also with ``@HU`` for that strength instead of their own. ``none`` is the open watermark alone.
What ``noise:HU``, ``ct-noise:HU``, ``gradient:N@HU`` and ``search:N@HU`` are stands in ``notes.KINDS``. Signed
gradients move soft tissue and bone less, as the default budget does. A search sees the lung near the targets alone, as
whole lungs against all attackers take hours; a removal's places are those that it takes for nodules by itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from MITSGANLib.attack.attacker import Attacker
from MITSGANLib.budget.budget import SEARCH_BUDGET, Budget
from MITSGANLib.errors import InputError
from MITSGANLib.protection.presets import NO_MODEL, PRESETS, SEARCH, protector_path
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.weights import ModelCard

from .ct_noise import measure_texture, noise_baseline
from .gradient_search import protect_by_gradient, protect_by_search

Kind = Literal["network", "noise", "ct-noise", "gradient", "search"]
_STEPPED, _NOISE = ("gradient", "search"), ("noise", "ct-noise")


@dataclass(frozen=True)
class ProtectionArm:
    """One entry of ``--protectors``, checked.

    :param source: name or path of the model; empty without one.
    :param amount_hu: strength or root mean square in HU; None for a model's own strength.
    :param steps: of signed gradients, or of a search in each block of lung.
    :param digest: SHA-256 of the weights.
    :param watermark: budget of the open watermark; empty without one.
    :param alpha: weight of the paper's term in training, where the card says it.
    """

    kind: Kind
    name: str
    seed: int
    source: str = ""
    amount_hu: float | None = None
    steps: int = 0
    digest: str = ""
    budget: Mapping[str, float] = field(default_factory=dict)
    watermark: Mapping[str, float] = field(default_factory=dict)
    alpha: float | None = None

    @property
    def needs_noise_controls(self) -> bool:
        """Whether noise of equal RMSE says something beside it; noise is its own control."""
        return self.kind not in _NOISE

    @property
    def knows_the_attack(self) -> bool:
        """Whether each attacker and action has a protected volume of its own."""
        return self.kind in _STEPPED

    def identity(self) -> dict[str, Any]:
        """What decides the voxels, for keys of the cache: neither its name nor where the weights lie."""
        return {
            "kind": self.kind,
            "seed": self.seed,
            # A budget holds the strength, whether it was asked for or is the model's own.
            "amount_hu": None if self.budget else self.amount_hu,
            "steps": self.steps,
            "weights_sha256": self.digest,
            "budget": dict(self.budget),
            "watermark": dict(self.watermark),
        }

    def describe(self) -> dict[str, Any]:
        """For results; no paths."""
        return {"name": self.name, **self.identity(), "alpha": self.alpha}

    def apply(
        self, volume: CTVolume, *, targets: Sequence[tuple[int, int, int]], attacker: Attacker | None, device: str
    ) -> CTVolume:
        """The protected scan.

        :param targets: voxels (slice, row, column); only what :attr:`knows_the_attack` looks at them and the attacker.
        :raises MITSGANError: when it cannot be made.
        """
        if self.kind == "network":
            ready = load_protector(self.source, strength_hu=self.amount_hu, seed=self.seed)
            return protect(volume, model=ready, device=device)
        if self.knows_the_attack:
            way = protect_by_gradient if self.kind == "gradient" else protect_by_search
            budget = Budget(**self.budget)
            return way(volume, targets, [attacker], budget=budget, steps=self.steps, seed=self.seed, device=device)
        texture = measure_texture(volume) if self.kind == "ct-noise" else None
        return noise_baseline(volume, self.amount_hu, self.seed, texture)


def read_protections(words: Sequence[str], seed: int) -> tuple[ProtectionArm, ...]:
    """The protections that these words name, in their order, each once; models are read and their SHA-256 checked.

    :raises InputError: when a word is malformed.
    :raises ModelError: when a model is unknown or corrupt.
    """
    unique: dict[str, ProtectionArm] = {}
    for word in words:
        protection = read_protection(word, seed)
        unique.setdefault(repr(protection.identity()), protection)
    counts = Counter(protection.name for protection in unique.values())
    return tuple(
        dataclasses.replace(found, name=f"{found.name} ({found.digest[:6]})") if counts[found.name] > 1 else found
        for found in unique.values()
    )


def read_protection(word: str, seed: int) -> ProtectionArm:
    """One word; see the module for its forms."""
    kind, colon, rest = word.partition(":")
    if colon and kind in _NOISE:
        return ProtectionArm(kind, word, seed, amount_hu=_amount(word, rest))
    if colon and kind in _STEPPED:
        steps, _, strength = rest.partition("@")
        if not steps.isdigit() or int(steps) < 1:
            raise InputError(f"'{word}' names no number of steps; write {kind}:STEPS@HU, such as {kind}:20@18.")
        amount = _amount(word, strength)
        budget = Budget(amount) if kind == "gradient" else SEARCH_BUDGET.at_strength(amount)
        return ProtectionArm(kind, word, seed, amount_hu=amount, steps=int(steps), budget=budget.to_dict())
    # A folder's name may hold an @ as well; what ends in the suffix is a path as it stands.
    source, at, strength = ("", "", "") if word.endswith(".safetensors") else word.rpartition("@")
    source, amount = (source, _amount(word, strength)) if at else (word, None)
    if source == SEARCH:
        raise InputError(f"'{word}' names no number of steps; write search:STEPS@HU, such as search:75@60.")
    if source.endswith(".safetensors"):
        source = str(Path(source).resolve())  # workers on other machines do not share this one's working folder
    # Loading compares the weights with their card, before any long work.
    ready = load_protector(source, strength_hu=amount, seed=seed)
    alone = source == NO_MODEL
    name = "watermark" if alone else source if source in PRESETS else ready.name
    return ProtectionArm(
        "network",
        name + (f"@{amount:g}" if at else ""),
        seed,
        source=source,
        amount_hu=amount,
        digest=ready.digest,
        budget=ready.budget.to_dict(),
        watermark=ready.watermark.budget.to_dict() if ready.watermark else {},
        alpha=None if alone else _alpha(ModelCard.read(protector_path(source).with_suffix(".json")).training),
    )


def _amount(word: str, text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 < amount <= 4095:
        raise InputError(
            f"'{word}' names no usable number of HU; write NAME@HU, noise:HU, ct-noise:HU, gradient:STEPS@HU or "
            "search:STEPS@HU with a number from 0 to 4095."
        )
    return amount


def _alpha(training: Mapping[str, Any]) -> float | None:
    """The weight of the paper's term, at any depth of a card's training configuration."""
    own = [float(training[key]) for key in ("alpha", "paper_weight") if isinstance(training.get(key), (int, float))]
    nested = (_alpha(value) for value in training.values() if isinstance(value, Mapping))
    return own[0] if own else next((alpha for alpha in nested if alpha is not None), None)
