"""Protection of a whole scan: slice-wise inference of a network, bounded by the budget, in whole HU."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from . import models
from .budget import Budget, allowed_change, apply_change, body_mask
from .devices import resolve_device
from .errors import InputError, ModelError
from .volume import PROTECTION, CTVolume, ProcessingStep

if TYPE_CHECKING:
    import torch

    from .generator import Generator
    from .tafim import TAFIM

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Protector:
    """A network ready to run, the budget that bounds it, and the seed of its noise.

    :param generator: MITS-GAN's generator, or TAFIM, which has a learned perturbation in place of noise and no seed.
    :param digest: SHA-256 of the weights, recorded with every protected volume.
    """

    name: str
    generator: Generator | TAFIM
    budget: Budget
    seed: int = 0
    digest: str = ""


def load_protector(
    name: str | os.PathLike[str] = "default", *, strength_hu: float | None = None, seed: int = 0
) -> Protector:
    """A protector by name, or by the path of a .safetensors file with its card beside it.

    :param strength_hu: largest change anywhere in HU; the model's own default where None.
    :raises ModelError: when the model is unknown or corrupt.
    :raises InputError: when the strength is not usable.
    """
    network, card = models.load_protector(name)
    try:
        budget = Budget(**card.budget)
    except (TypeError, InputError) as error:
        raise ModelError(f"The card of model '{card.name}' has an unusable budget ({error}).") from error
    if strength_hu is not None:
        budget = dataclasses.replace(budget, strength_hu=float(strength_hu))
    return Protector(card.name, network, budget, seed, card.sha256)


def protect(
    volume: CTVolume,
    *,
    model: str | os.PathLike[str] | Protector = "default",
    strength_hu: float | None = None,
    device: str = "auto",
    seed: int = 0,
    batch_size: int = 4,
    progress: Progress | None = None,
) -> CTVolume:
    """The protected scan: same geometry, changed within the body only, by at most the strength, in whole HU.

    The same scan, model, strength and seed give the same voxels on the same device, whatever the batch size.

    :param model: name or path of a protector, or one that is already loaded (its own strength and seed hold then).
    :param progress: called with (finished slices, all slices) after each batch; may raise ``CancelledError``.
    :raises ModelError: when the model is unknown, corrupt, or answers NaN.
    """
    ready = model if isinstance(model, Protector) else load_protector(model, strength_hu=strength_hu, seed=seed)
    padding = volume.provenance.padding_hu
    mask = body_mask(volume.hu, padding, volume.spacing_kji)
    protected = volume.hu.copy()
    for slab, proposed in propose_change(volume.hu, ready, device=device, batch_size=batch_size):
        hu = volume.hu[slab]
        allowed = allowed_change(hu, ready.budget, mask[slab], padding)
        protected[slab] = apply_change(hu, proposed(hu, allowed), allowed)
        if progress:
            progress(slab.stop, volume.shape[0])
    step = ProcessingStep(
        PROTECTION,
        f"MITSGAN protection with model {ready.name}, at most {ready.budget.strength_hu:g} HU",
        {"model": ready.name, "model_sha256": ready.digest, "seed": ready.seed, **ready.budget.to_dict()},
    )
    return volume.with_hu(protected, step)


def propose_change(
    hu: np.ndarray, protector: Protector, *, device: str = "auto", batch_size: int = 4
) -> Iterator[tuple[slice, Callable[[np.ndarray, np.ndarray], np.ndarray]]]:
    """Run the network over slabs of slices.

    Yields the slab and a function of (HU, allowed change) that gives the proposed change in HU, float32: a residual
    network's output is a share of what is allowed, an image generator's output is the new slice itself.
    """
    import torch

    from .generator import hu_to_network, network_to_hu

    where = resolve_device(device)
    config = protector.generator.config
    network = _of_slices(protector, hu.shape[1:], where)
    for start in range(0, len(hu), batch_size):
        slab = slice(start, min(start + batch_size, len(hu)))
        with torch.inference_mode():
            x = hu_to_network(torch.from_numpy(hu[slab].copy()).to(where), config.hu_window).unsqueeze(1)
            output = network(x).squeeze(1)
            if config.output == "image":
                image = network_to_hu(output, config.hu_window).cpu().numpy()
                yield slab, lambda values, _allowed, image=image: image - values
            else:
                share = output.cpu().numpy()
                yield slab, lambda _values, allowed, share=share: share * allowed


def _of_slices(
    protector: Protector, shape: tuple[int, int], where: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The protector's network as a function of slices alone, on its device and in evaluation mode."""
    from .generator import Generator, draw_noise

    network = protector.generator.to(where).eval()
    if not isinstance(network, Generator):
        return network
    noise = draw_noise(shape, network.config.noise, protector.seed).to(where)
    return lambda slices: network(slices, noise)
