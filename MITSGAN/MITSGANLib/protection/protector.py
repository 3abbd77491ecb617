"""Protection of a whole scan, in whole HU: a network's change, bounded by the budget, and a watermark on top."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..budget.budget import Budget, Surroundings, apply_change
from ..errors import InputError, ModelError
from ..runtime.devices import resolve_device
from ..runtime.threads import slabs
from ..scan.volume import PROTECTION, CTVolume, ProcessingStep
from ..watermark.embedding import DEFAULT_BUDGET, Watermark
from ..watermark.pattern import OPEN_KEY, ScanSigns, WatermarkKey
from . import presets
from .diagnosis_blocking import DiagnosisBlocker, blocking_change, judged_places
from .inference import SliceInference

if TYPE_CHECKING:
    from .generator import Generator
    from .tafim import TAFIM

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Protector:
    """What is ready to protect scans: a network, a watermark, or both.

    :param generator: MITS-GAN's generator, or TAFIM, which has a learned perturbation in place of noise and no seed, or
        a mark, which has a search with a seed in place of a network; None where there is a watermark alone.
    :param budget: bounds the network's change; the watermark has its own, and comes on top.
    :param seed: of the network's noise.
    :param digest: SHA-256 of the weights, recorded with every protected volume.
    """

    name: str
    generator: Generator | TAFIM | DiagnosisBlocker | None
    budget: Budget
    seed: int = 0
    digest: str = ""
    watermark: Watermark | None = None

    @property
    def strength_hu(self) -> float:
        """The largest change of a voxel, in HU."""
        of_network = self.budget.strength_hu if self.generator is not None else 0.0
        return of_network + (self.watermark.budget.strength_hu if self.watermark else 0.0)

    @property
    def title(self) -> str:
        """For people: what is done to a scan."""
        parts = [f"model {self.name}"] if self.generator is not None else []
        if self.watermark:
            parts.append("the open watermark" if self.watermark.is_open else "a keyed watermark")
        return " and ".join(parts)

    def at_strength(self, strength_hu: float) -> Protector:
        """The same with another largest change: network and watermark in proportion.

        :raises InputError: when the strength is not usable.
        """
        if self.watermark is None:
            return dataclasses.replace(self, budget=self.budget.at_strength(strength_hu))
        share = strength_hu / self.strength_hu
        mark = dataclasses.replace(
            self.watermark, budget=self.watermark.budget.at_strength(share * self.watermark.budget.strength_hu)
        )
        return dataclasses.replace(
            self, budget=self.budget.at_strength(share * self.budget.strength_hu), watermark=mark
        )

    def to_dict(self) -> dict[str, Any]:
        """For the provenance of what is protected; nothing of a key."""
        network = {"model": self.name, "model_sha256": self.digest, "seed": self.seed, **self.budget.to_dict()}
        return (network if self.generator is not None else {}) | (self.watermark.to_dict() if self.watermark else {})


def load_protector(
    name: str | os.PathLike[str] = "default",
    *,
    strength_hu: float | None = None,
    seed: int = 0,
    watermark: WatermarkKey | None = None,
) -> Protector:
    """A protector by name, or by the path of a .safetensors file with its card beside it.

    :param name: or one of :data:`~.models.PRESETS`, or :data:`~.models.NO_MODEL` for a watermark alone.
    :param strength_hu: largest change anywhere in HU; the preset's or the model's own where None.
    :param watermark: key of a watermark in place of the preset's open one, or in addition to a model that has none.
    :raises ModelError: when the model is unknown or corrupt.
    :raises InputError: when the strength is not usable.
    """
    ready = _load(name, seed)
    if watermark is not None:
        mark = ready.watermark or Watermark()
        ready = dataclasses.replace(ready, watermark=dataclasses.replace(mark, key=watermark))
    return ready if strength_hu is None else ready.at_strength(float(strength_hu))


def _load(name: str | os.PathLike[str], seed: int) -> Protector:
    """The protector as its preset or its card has it."""
    if os.fspath(name) == presets.NO_MODEL:
        return Protector(presets.NO_MODEL, None, Budget(), watermark=Watermark())
    network, card = presets.load_network(name)
    try:
        budget = Budget(**card.budget)
    except (TypeError, InputError) as error:
        raise ModelError(f"The card of model '{card.name}' has an unusable budget ({error}).") from error
    preset = presets.PRESETS.get(os.fspath(name), presets.Preset(card.name))
    if preset.strength_hu is not None:
        budget = budget.at_strength(preset.strength_hu)
    mark = None
    if preset.watermark_hu is not None:
        mark = Watermark(OPEN_KEY, DEFAULT_BUDGET.at_strength(preset.watermark_hu))
    return Protector(card.name, network, budget, seed, card.sha256, mark)


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

    The network comes first, then the watermark, whose signs depend on the HU that the network leaves.

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
    limits = _Limits(volume, ready)
    if ready.generator is None:
        changed = _unchanged(volume, limits)
    elif isinstance(ready.generator, DiagnosisBlocker):
        changed = _marked(volume, ready, limits, device, progress)
        progress = None  # told already: its search takes nearly all of the time
    else:
        options = {"device": device, "batch_size": batch_size, "precision": precision}
        proposed = propose_change(volume.hu, ready, limits, **options)
        changed = ((slab, apply_change(volume.hu[slab], change, allowed)) for slab, allowed, change in proposed)
    signs = ScanSigns.of(volume, ready.watermark.key) if ready.watermark else None
    protected = np.empty_like(volume.hu)
    for slab, hu in changed:
        protected[slab] = ready.watermark.marked(hu, limits.around, signs, slab.start) if ready.watermark else hu
        if progress:
            progress(slab.stop, volume.shape[0])
    words = f"MITSGAN protection with {ready.title}, at most {ready.strength_hu:g} HU"
    return volume.with_hu(protected, ProcessingStep(PROTECTION, words, ready.to_dict()))


class _Limits:
    """What is allowed in slab after slab; keeps the last one's surroundings, which the watermark asks for as well.

    :ivar around: of the slab that was asked for last.
    """

    around: Surroundings

    def __init__(self, volume: CTVolume, protector: Protector) -> None:
        self._volume, self._budget = volume, protector.budget
        budgets = [protector.budget] if protector.generator is not None else []
        budgets += [protector.watermark.budget] if protector.watermark else []
        self._with_noise = any(budget.noise_share is not None for budget in budgets)

    def __call__(self, hu: np.ndarray) -> np.ndarray:
        """The largest change by the network in HU at each voxel of a slab, same shape, from its HU."""
        volume = self._volume
        self.around = Surroundings.of(hu, volume.spacing_kji, volume.provenance.padding_hu, with_noise=self._with_noise)
        return self.around.allowed(hu, self._budget)


def _unchanged(volume: CTVolume, limits: _Limits) -> Iterator[tuple[slice, np.ndarray]]:
    """The scan's own slabs, where there is no network."""
    for slab in slabs(volume.shape[0]):
        limits(volume.hu[slab])
        yield slab, volume.hu[slab]


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
    volume: CTVolume, protector: Protector, limits: _Limits, device: str, progress: Progress | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Slabs of the scan with a mark, whose search needs all slices at once."""
    slices = volume.shape[0]
    places = judged_places(volume)
    allowed = np.concatenate([limits(volume.hu[slab]) for slab in slabs(slices)])
    change = blocking_change(
        volume.hu,
        allowed,
        places,
        volume.spacing_kji,
        protector.generator,
        seed=protector.seed,
        device=device,
        progress=progress and (lambda done, passes: progress(done * slices // passes, slices)),
    )
    for slab in slabs(slices):
        if protector.watermark:
            limits(volume.hu[slab])
        yield slab, apply_change(volume.hu[slab], change[slab], allowed[slab])
