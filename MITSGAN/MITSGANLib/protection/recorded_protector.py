"""The protector that a protected volume records in its provenance, to run it once more."""

from __future__ import annotations

import dataclasses

from ..budget.budget import Budget
from ..errors import InputError, ModelError
from ..scan.volume import PROTECTION, CTVolume
from ..watermark.embedding import DEFAULT_BUDGET, Watermark
from .protector import Protector, load_protector


def protector_of(volume: CTVolume) -> Protector:
    """The installed protector with the strength and seed of the volume's last protection.

    :raises InputError: when the volume was not protected by this library, or with a key, which no volume holds.
    :raises ModelError: when that model is not installed, or its weights are others now.
    """
    step = volume.provenance.last(PROTECTION)
    if step is None or "model" not in step.parameters:
        raise InputError("The protected volume does not say how it was made; protect the CT volume again.")
    parameters = dict(step.parameters)
    ready = load_protector(str(parameters["model"]), seed=int(parameters.get("seed", 0)))
    if parameters.get("model_sha256", ready.digest) != ready.digest:
        raise ModelError(f"The model '{ready.name}' has changed since the volume was protected; protect it again.")
    strength = parameters.get("watermark_strength_hu")
    if strength is not None and parameters.get("watermark") != "open":
        raise InputError(
            "The volume carries a watermark with a key, which it does not hold; protect the CT without one."
        )
    mark = None if strength is None else Watermark(budget=DEFAULT_BUDGET.at_strength(float(strength)))
    budget = {field.name: parameters[field.name] for field in dataclasses.fields(Budget) if field.name in parameters}
    return dataclasses.replace(ready, budget=dataclasses.replace(ready.budget, **budget), watermark=mark)
