"""Protection of a whole scan: slice-wise inference of a network, bounded by the budget, in whole HU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import models
from .budget import Budget, allowed_in_slices, apply_change
from .devices import resolve_device
from .errors import InputError, ModelError
from .inference import SliceInference
from .marking import DecisionMark, judged_places, mark_change
from .volume import PROTECTION, CTVolume, ProcessingStep

if TYPE_CHECKING:
    from .generator import Generator
    from .tafim import TAFIM

Progress = Callable[[int, int], None]

_MARK_SLAB = 16  # slices whose allowed change is found at a time


@dataclass(frozen=True)
class Protector:
    """A network ready to run, the budget that bounds it, and the seed of its noise.

    :param generator: MITS-GAN's generator, or TAFIM, which has a learned perturbation in place of noise and no seed, or
        a mark, which has a search with a seed in place of a network.
    :param digest: SHA-256 of the weights, recorded with every protected volume.
    """

    name: str
    generator: Generator | TAFIM | DecisionMark
    budget: Budget
    seed: int = 0
    digest: str = ""


def load_protector(
    name: str | os.PathLike[str] = "default", *, strength_hu: float | None = None, seed: int = 0
) -> Protector:
    """A protector by name, or by the path of a .safetensors file with its card beside it.

    :param name: or one of :data:`~.models.PRESETS`.
    :param strength_hu: largest change anywhere in HU; the preset's or the model's own where None.
    :raises ModelError: when the model is unknown or corrupt.
    :raises InputError: when the strength is not usable.
    """
    network, card = models.load_protector(name)
    try:
        budget = Budget(**card.budget)
    except (TypeError, InputError) as error:
        raise ModelError(f"The card of model '{card.name}' has an unusable budget ({error}).") from error
    preset = models.PRESETS.get(os.fspath(name))
    if strength_hu is None and preset is not None:
        strength_hu = preset.strength_hu
    if strength_hu is not None:
        budget = budget.at_strength(float(strength_hu))
    return Protector(card.name, network, budget, seed, card.sha256)


def protect(
    volume: CTVolume,
    *,
    model: str | os.PathLike[str] | Protector = "default",
    strength_hu: float | None = None,
    device: str = "auto",
    seed: int = 0,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: Progress | None = None,
) -> CTVolume:
    """The protected scan: same geometry, changed within the body only, by at most the strength, in whole HU.

    The same scan, model, strength and seed give the same voxels on the same device, whatever the batch size.

    :param model: name or path of a protector, or one that is already loaded (its own strength and seed hold then).
    :param batch_size: slices at a time; None finds it, on a GPU from the free memory. Too many become fewer.
    :param precision: "float32", "half" (GPU), or "auto"; see :class:`~.inference.SliceInference`.
    :param progress: called with (finished slices, all slices) after each batch; may raise ``CancelledError``. A mark
        is searched in all slices at once, so that these are as many as its share of the search that is done.
    :raises ModelError: when the model is unknown, corrupt, or answers NaN.
    :raises TargetError: when the model is a mark, and no lung is found.
    :raises DependencyError: when the device or precision is not there, or a GPU's memory is too small for one slice.
    """
    ready = model if isinstance(model, Protector) else load_protector(model, strength_hu=strength_hu, seed=seed)
    padding = volume.provenance.padding_hu

    def allowed_in(hu: np.ndarray) -> np.ndarray:
        return allowed_in_slices(hu, ready.budget, volume.spacing_kji, padding)

    if isinstance(ready.generator, DecisionMark):
        protected = _marked(volume, ready, allowed_in, device, progress)
    else:
        protected = np.empty_like(volume.hu)
        options = {"device": device, "batch_size": batch_size, "precision": precision}
        for slab, allowed, change in propose_change(volume.hu, ready, allowed_in, **options):
            protected[slab] = apply_change(volume.hu[slab], change, allowed)
            if progress:
                progress(slab.stop, volume.shape[0])
    step = ProcessingStep(
        PROTECTION,
        f"MITSGAN protection with model {ready.name}, at most {ready.budget.strength_hu:g} HU",
        {"model": ready.name, "model_sha256": ready.digest, "seed": ready.seed, **ready.budget.to_dict()},
    )
    return volume.with_hu(protected, step)


def propose_change(
    hu: np.ndarray,
    protector: Protector,
    allowed_in: Callable[[np.ndarray], np.ndarray],
    *,
    device: str = "auto",
    batch_size: int | None = None,
    precision: str = "auto",
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Run the network over slabs of slices, where change is allowed.

    Yields the slab, what is allowed in it, and the proposed change in HU, float32.

    :param allowed_in: gives the largest change in HU at each voxel of a slab, same shape, from its HU.
    """
    network = SliceInference(
        protector.generator,
        hu.shape[1:],
        device=resolve_device(device),
        seed=protector.seed,
        strength_hu=protector.budget.strength_hu,
        precision=precision,
        batch_size=batch_size,
    )
    start = 0
    while start < len(hu):
        slab = slice(start, min(start + network.batch_size, len(hu)))
        allowed = allowed_in(hu[slab])
        yield slab, allowed, network.change(hu[slab], allowed)
        start = slab.stop


def _marked(
    volume: CTVolume,
    protector: Protector,
    allowed_in: Callable[[np.ndarray], np.ndarray],
    device: str,
    progress: Progress | None,
) -> np.ndarray:
    """The voxels of the scan with a mark, whose search needs all slices at once."""
    slices = volume.shape[0]
    slabs = [slice(start, min(start + _MARK_SLAB, slices)) for start in range(0, slices, _MARK_SLAB)]
    places = judged_places(volume)
    allowed = np.concatenate([allowed_in(volume.hu[slab]) for slab in slabs])
    change = mark_change(
        volume.hu,
        allowed,
        places,
        volume.spacing_kji,
        protector.generator,
        seed=protector.seed,
        device=device,
        progress=progress and (lambda done, passes: progress(done * slices // passes, slices)),
    )
    return np.concatenate([apply_change(volume.hu[slab], change[slab], allowed[slab]) for slab in slabs])
