"""Protection of a whole scan, in whole HU: what a proposer changes, bounded by the budget, and a watermark on top."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..budget.budget import SEARCH_BUDGET, WATERMARK_BUDGET, Budget, Surroundings, apply_change, check_strength
from ..errors import InputError, ModelError
from ..runtime.devices import describe_cpu, describe_device, resolve_device
from ..runtime.threads import map_slices, usable_threads
from ..scan.cubes import box_around
from ..scan.volume import PROTECTION, CTVolume, ProcessingStep
from ..watermark.embedding import Watermark, recorded_watermark
from ..watermark.pattern import OPEN_KEY, ScanSigns, WatermarkKey
from ..watermark.regridding import GRID_FIELD, grid_record
from . import presets
from .proposer import Execution, Nothing, Progress, Proposer

if TYPE_CHECKING:
    import torch

_MOST_SLICES = 4  # that are timed


@dataclass(frozen=True)
class Protector:
    """What is ready to protect scans: a proposer, a watermark, or both.

    :param proposer: proposes the perturbation; :class:`~.proposer.Nothing` where there is a watermark alone.
    :param budget: bounds the perturbation; the watermark has its own, and comes on top.
    :param seed: of what the proposer draws.
    :param digest: SHA-256 of the weights, recorded with every protected volume.
    """

    name: str
    proposer: Proposer
    budget: Budget
    seed: int = 0
    digest: str = ""
    watermark: Watermark | None = None

    @property
    def has_model(self) -> bool:
        """Whether anything but the watermark changes a scan."""
        return self.proposer != Nothing()

    @property
    def strength_hu(self) -> float:
        """The largest change of a voxel, in HU."""
        perturbation = self.budget.strength_hu if self.has_model else 0.0
        return perturbation + (self.watermark.budget.strength_hu if self.watermark else 0.0)

    def place(self, device: str = "auto") -> str:
        """Where it runs, in words; a watermark alone runs on the processor, without torch.

        :raises DependencyError: as :func:`~..runtime.devices.resolve_device`.
        """
        return describe_device(resolve_device(device)) if self.has_model else describe_cpu()

    @property
    def title(self) -> str:
        """What is done to a scan, for people."""
        parts = [f"model {self.name}"] if self.has_model else []
        if self.watermark:
            parts.append(f"{'the open' if self.watermark.is_open else 'a keyed'} watermark")
        return " and ".join(parts)

    def at_strength(self, strength_hu: float) -> Protector:
        """The same with another largest change: perturbation and watermark in proportion.

        :raises InputError: when the strength is not usable.
        """
        if self.watermark is None:
            return dataclasses.replace(self, budget=self.budget.at_strength(strength_hu))
        check_strength(strength_hu)
        share = strength_hu / self.strength_hu
        own, marks = (one.at_strength(share * one.strength_hu) for one in (self.budget, self.watermark.budget))
        return dataclasses.replace(self, budget=own, watermark=dataclasses.replace(self.watermark, budget=marks))

    def to_dict(self) -> dict[str, Any]:
        """What provenance says of a protected scan, JSON-ready; nothing of a key."""
        model = {"model": self.name, "model_sha256": self.digest, "seed": self.seed, **self.budget.to_dict()}
        return (model if self.has_model else {}) | (self.watermark.to_dict() if self.watermark else {})


def load_protector(
    name: str | os.PathLike[str] = "default",
    *,
    strength_hu: float | None = None,
    seed: int = 0,
    watermark: WatermarkKey | None = None,
) -> Protector:
    """A protector by name, or by the path of a .safetensors file with its card beside it.

    :param name: or one of :data:`~.presets.PRESETS`, or :data:`~.presets.NO_MODEL` for a watermark alone, or
        :data:`~.presets.SEARCH`.
    :param strength_hu: largest change anywhere in HU; the preset's or the model's own where None.
    :param watermark: key of a watermark in place of the preset's open one, or in addition to a model that has none.
    :raises ModelError: when the model is unknown or corrupt.
    :raises InputError: when the strength is not usable.
    """
    given = os.fspath(name)
    if given == presets.NO_MODEL:
        ready = watermark_alone()
    elif given == presets.SEARCH:
        from .search import Search

        ready = Protector(given, Search(), SEARCH_BUDGET, seed, watermark=Watermark())
    else:
        ready = _from_file(given, seed)
    if watermark is not None:
        ready = dataclasses.replace(ready, watermark=dataclasses.replace(ready.watermark or Watermark(), key=watermark))
    return ready if strength_hu is None else ready.at_strength(float(strength_hu))


def _from_file(name: str, seed: int) -> Protector:
    """The protector as its preset or its card has it."""
    proposer, card = presets.load_proposer(name)
    preset = presets.PRESETS.get(name, presets.Preset(card.name))
    try:
        budget = Budget(**card.budget)
    except (TypeError, InputError) as error:
        raise ModelError(f"The card of model '{card.name}' has an unusable budget ({error}).") from error
    if preset.strength_hu is not None:
        budget = budget.at_strength(preset.strength_hu)
    marks = preset.watermark_hu and Watermark(budget=WATERMARK_BUDGET.at_strength(preset.watermark_hu))
    return Protector(card.name, proposer, budget, seed, card.sha256, marks)


def watermark_alone(key: WatermarkKey = OPEN_KEY, budget: Budget = WATERMARK_BUDGET) -> Protector:
    """A protector that leaves a watermark and changes nothing else."""
    return Protector(presets.NO_MODEL, Nothing(), Budget(), watermark=Watermark(key, budget))


def recorded_protector(volume: CTVolume) -> Protector:
    """The installed protector that a protected volume records, with the strength and seed of its last protection.

    :raises InputError: when the volume was not protected by this library, or with a key, which no volume holds.
    :raises ModelError: when that model is not installed, or its weights are others now.
    """
    step = volume.provenance.last(PROTECTION)
    if step is None or "model" not in step.parameters:
        raise InputError("The protected volume does not say how it was made; protect the CT volume again.")
    parameters = step.parameters
    ready = load_protector(str(parameters["model"]), seed=int(parameters.get("seed", 0)))
    if parameters.get("model_sha256", ready.digest) != ready.digest:
        raise ModelError(f"The model '{ready.name}' has changed since the volume was protected; protect it again.")
    strength = parameters.get("watermark_strength_hu")
    if strength is not None and parameters.get("watermark") != "open":
        raise InputError(
            "The volume carries a watermark with a key, which it does not hold; protect the CT without one."
        )
    watermark = None if strength is None else recorded_watermark(volume) or Watermark()
    budget = {field.name: parameters[field.name] for field in dataclasses.fields(Budget) if field.name in parameters}
    return dataclasses.replace(ready, budget=dataclasses.replace(ready.budget, **budget), watermark=watermark)


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

    The perturbation comes first, then the watermark, whose signs depend on the HU that it leaves.

    The same scan, model, strength and seed give the same voxels on the same device, whatever the batch size.

    :param model: name or path of a protector, or one that is already loaded (its own strength and seed hold then).
    :param batch_size: as in :class:`.proposer.Execution`, and so are device and precision. Too many become fewer.
    :param progress: called with (finished slices, all slices), never with fewer than before; may raise
        ``CancelledError``.
    :raises ModelError: when the model is unknown, corrupt, or answers NaN.
    :raises TargetError: when the model searches in the lungs, and none is found.
    :raises DependencyError: when the device or precision is not there, or a GPU's memory is too small for one slice.
    """
    ready = model if isinstance(model, Protector) else load_protector(model, strength_hu=strength_hu, seed=seed)
    budgets = [ready.budget, *([ready.watermark.budget] if ready.watermark else [])]
    with_noise = any(budget.noise_share is not None for budget in budgets)

    # Kept, since the watermark asks for those of the same slab again.
    @functools.lru_cache(maxsize=1)
    def around(first: int, stop: int) -> Surroundings:
        padding = volume.provenance.padding_hu
        return Surroundings.of(volume.hu[first:stop], volume.spacing_kji, padding, with_noise=with_noise)

    def allowed_in(slab: slice) -> np.ndarray:
        return around(slab.start, slab.stop).allowed(volume.hu[slab], ready.budget)

    report = _rising(progress)
    execution = Execution(ready.seed, ready.budget.strength_hu, device, batch_size, precision, report)
    signs = ScanSigns.of(volume, ready.watermark.key) if ready.watermark else None
    protected = np.empty_like(volume.hu)
    for slab, allowed, change in ready.proposer.propose(volume, allowed_in, execution):
        hu = _perturbed(volume.hu[slab], change, allowed)
        if ready.watermark:
            hu = ready.watermark.marked(hu, around(slab.start, slab.stop), signs, slab.start)
        protected[slab] = hu
        report(slab.stop, volume.shape[0])
    words = f"MITSGAN protection with {ready.title}, at most {ready.strength_hu:g} HU"
    grid = {GRID_FIELD: grid_record(volume)} if ready.watermark else {}
    return volume.with_hu(protected, ProcessingStep(PROTECTION, words, {**ready.to_dict(), **grid}))


def _perturbed(hu: np.ndarray, change: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Slices (slices, rows, columns) with the change that is allowed."""
    perturbed = hu.copy()

    def apply(k: int) -> None:
        box = box_around(allowed[k] > 0)
        if box is not None:
            perturbed[k][box] = apply_change(hu[k][box], change[k][box], allowed[k][box])

    map_slices(apply, len(hu))
    return perturbed


def _rising(progress: Progress | None) -> Callable[[int, int], None]:
    """Progress that never falls: a search tells its own, and the slabs after it have nothing to add."""
    most = 0

    def report(done: int, total: int) -> None:
        nonlocal most
        if progress and done >= most:
            most = done
            progress(done, total)

    return report


def seconds_to_protect(volume: CTVolume, model: str | Protector, device: torch.device) -> float:
    """An estimate for the whole scan: the proposer's own, or from slices of its middle, as many as run side by side.

    :raises ModelError: when the model cannot be loaded.
    :raises TargetError: when the model searches in the lungs, and none is found.
    """
    ready = model if isinstance(model, Protector) else load_protector(model)
    seconds = ready.proposer.seconds(volume, device.type)
    if seconds is not None:
        return seconds
    count = min(_MOST_SLICES, usable_threads(), volume.shape[0])
    first = (volume.shape[0] - count) // 2
    few = dataclasses.replace(volume, hu=volume.hu[first : first + count])
    # The first run also pays for starting the device.
    protect(dataclasses.replace(few, hu=few.hu[:1, :64, :64]), model=ready, device=device.type)
    started = time.perf_counter()
    protect(few, model=ready, device=device.type)
    return (time.perf_counter() - started) * volume.shape[0] / count
