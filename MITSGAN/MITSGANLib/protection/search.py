"""A change searched on the scan itself, asked for one thing: that attacks do not achieve their finding.

The upper bound of prevention, and a product for data that are protected once. A search sees attackers and nodule
judges. It moves every voxel of the lungs within its budget, so that at places drawn anew in every step an injection
shows no nodule, and a removal leaves one. It never asks how far a forgery moves: what moves a forgery makes another
nodule (docs/research/protection.md). The attacker reads the changed scan, and the judges see there what he paints. They
see less of it; he paints on, and an eye sees it. A patient's own nodules stay seen where they are clearer than forged
ones (docs/results/prevention.md).

Held by construction: whole HU within the budget; nothing slower than about 20 mm, so that densitometry stays as it is
and no attacker subtracts an offset; a mean of 0 over the lungs. Arrays are (slice, row, column).
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from ..attack.attacker import Attacker, load_attacker
from ..attack.chain import touch_up
from ..errors import InputError, TargetError
from ..files.atomic import atomic_file
from ..judges.judge import Judge, load_judge
from ..runtime.devices import resolve_device
from ..scan.cubes import CUBE_MM, Box, Patch, PatchedScan, Voxel, box_around, cube_shape, cube_start, cut, rescale
from ..scan.lungs import interior, lung_mask, nodule_like_positions
from ..scan.regions import cube_around
from ..scan.volume import CTVolume
from ..weights import MODELS_FOLDER, actions_of, available_attackers
from .proposer import AllowedIn, Execution, Progress, Proposal, in_slabs

JUDGES = ("nodule-residual", "nodule-plain")
"""Whom the search asks. The third nodule judge and the forensic judge take no part, so that they can decide."""

_HALF_CUBE_MM = 16.0
# A removal makes sense where something is to be removed; this many compact structures stand for nodules.
_STRUCTURES = 24
_STRUCTURE_JITTER_MM = 3.0
# Adam's usual constants (Kingma and Ba, 2015), but for the second moment: steps at other places change the gradient's
# size, so what is long ago tells little.
_FIRST_MOMENT, _SECOND_MOMENT, _TINY = 0.9, 0.99, 1e-8
_KEPT = ("share", "first", "second", "count")  # of each voxel, in a file
_NEAR_MM = 3.0  # of the lungs, where an attack looks closely: vessels in them, and a rim


@dataclass(frozen=True)
class SearchConfig:
    """How a change is searched.

    :param steps: for each block of lung of ``block_mm``; a time limit may end the search earlier.
    :param places: attacked in each step, all in one block.
    :param rate: of the first step, for the change as a share of its limit before tanh; it falls to 0 along a cosine.
    :param block_mm: edge of the blocks of lung that are searched in turn.
    :param slower_mm: standard deviation of the Gaussian whose part is taken out; 6 mm takes what is slower than 20 mm.
    :param noise_hu: largest standard deviation of noise that is added to what attackers see, drawn for each place.
    :param into_original: judges see what is painted in the original, which asks about the attacker alone and has moved
        nothing. Else they see it in the changed scan, as software that reads a protected copy does.
    :param half: networks compute in bfloat16, which takes two thirds of the time where a processor has it.
    """

    steps: int = 400
    places: int = 6
    rate: float = 0.1
    block_mm: float = 32.0
    slower_mm: float = 6.0
    noise_hu: float = 4.0
    into_original: bool = False
    half: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.places < 1:
            raise InputError("A search needs at least one step and one place in each step.")
        if not (self.rate > 0 and self.block_mm > 0 and self.slower_mm > 0 and self.noise_hu >= 0):
            raise InputError("A search's rate and lengths must be above 0, its noise 0 or more.")


@dataclass(frozen=True)
class Block:
    """A part of the lungs: its targets, and the box of voxels that attacks there look at.

    :param inject: (n, 3) voxels of lung.
    :param remove: (m, 3) voxels at compact structures; may be empty.
    """

    box: Box
    inject: np.ndarray
    remove: np.ndarray


class ChangeSearch:
    """A search on one scan, which can be run for a while, kept in a file, and continued.

    >>> search = ChangeSearch(volume, allowed, attackers, judges)
    >>> search.run(minutes=30, state=Path("scan.search.npz"))
    >>> change = search.change()

    :param volume: the scan.
    :param allowed: int16 of its shape, the largest change of each voxel in HU.
    :param attackers: injectors and removers whose findings shall not be achieved.
    :param judges: nodule judges of cubes that say whether they are.
    :param within: bool of the scan's shape, where targets may lie; everywhere in the lungs where None.
    :raises InputError: without attackers or judges, or with a judge that does not look at cubes for nodules.
    :raises TargetError: when no lung is found.
    """

    def __init__(
        self,
        volume: CTVolume,
        allowed: np.ndarray,
        attackers: Sequence[Attacker],
        judges: Sequence[Judge],
        config: SearchConfig | None = None,
        *,
        seed: int = 0,
        device: str = "auto",
        within: np.ndarray | None = None,
    ) -> None:
        if not attackers or not judges:
            raise InputError("A search needs at least one attacker and one nodule judge.")
        if any(judge.question != "nodule" or judge.view.kind != "cube" for judge in judges):
            raise InputError("A search asks judges of nodules that look at cubes; name such judges.")
        self.config, self._volume, self._seed = config or SearchConfig(), volume, seed
        self._device = resolve_device(device)
        self._attackers = [attacker.to(self._device) for attacker in attackers]
        self._judges = [judge.to(self._device) for judge in judges]
        # A CPU computes faster in this layout; no value depends on it.
        for network in (*(one.inpainter.generator for one in self._attackers), *(one.network for one in self._judges)):
            network.to(memory_format=torch.channels_last_3d)
        self._lung = lung_mask(volume)
        actions = {attacker.action for attacker in attackers}
        blocks = _blocks(volume, self._lung, self.config.block_mm, within)
        self.blocks = [block for block in blocks if any(len(getattr(block, action)) for action in actions)]
        if not self.blocks:
            raise TargetError("No lung was found where a change could be searched; use a chest CT.")
        # Outside the lungs an attack hardly looks; what is allowed there stays unused.
        sigma = _NEAR_MM / np.array(volume.spacing_kji)
        near = ndimage.gaussian_filter(self._lung.astype(np.float32), sigma, truncate=2.0) > 0.1
        self._scan = torch.from_numpy(volume.hu.copy()).to(self._device)
        self._limit = torch.from_numpy(np.where(near, allowed, 0).astype(np.float32)).to(self._device)
        shape = volume.shape
        self._share = torch.zeros(shape, device=self._device)
        self._first, self._second, self._count = (torch.zeros(shape, device=self._device) for _ in range(3))
        self.steps_done = 0

    @property
    def steps(self) -> int:
        """Steps of the whole search, over all blocks."""
        return self.config.steps * len(self.blocks)

    def run(
        self,
        minutes: float | None = None,
        *,
        state: Path | None = None,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Search until all steps are done or the time is over; continues where an earlier run ended.

        :param minutes: time limit; the step size falls to 0 by then, so that a short search ends well, too.
        :param state: file that is read before and written after, and every five minutes between.
        :param progress: called with (steps done, all steps); may raise ``CancelledError``: the state is kept then.
        :raises InputError: when the state is of another scan, budget or configuration.
        :raises OutputError: when the state cannot be written.
        """
        if state is not None and state.exists():
            self.restore(state)
        started = kept = clock()
        try:
            while self.steps_done < self.steps:
                spent = (clock() - started) / (60 * minutes) if minutes else 0.0
                if spent >= 1:
                    break
                # What ends first decides how far the step size has fallen.
                done = max(self.steps_done / self.steps, spent)
                self.step(0.5 * (1 + math.cos(math.pi * done)))
                if progress:
                    progress(self.steps_done, self.steps)
                if state is not None and clock() - kept > 300:
                    self.save(state)
                    kept = clock()
        finally:
            if state is not None:
                self.save(state)

    def change(self) -> np.ndarray:
        """The change found so far in HU, float32 of the scan's shape, within what is allowed, not yet rounded.

        Its mean over the lungs' voxels that were searched is 0 where the budget leaves room.
        """
        whole, searched = np.zeros(self._volume.shape, np.float32), self._count > 0
        if not searched.any():
            return whole
        # What no step looked at stays as it is, and need not be filtered.
        box = box_around(searched.cpu().numpy())
        limit = torch.where(searched[box], self._limit[box], 0)
        bounded = self._bounded(self._share[box], limit)
        # Each bound puts a little of what is slow back; four rounds left -1.5 of -2.6 HU in a region of LIDC-IDRI-0001.
        for _ in range(4):
            bounded = without_slow(bounded, limit, self._volume.spacing_kji, self.config.slower_mm)
        part, limit = bounded.cpu().numpy(), limit.cpu().numpy()
        free = self._lung[box] & (limit > 0)
        if free.any():
            part[free] -= part[free].mean()
            np.clip(part, -limit, limit, out=part)
        whole[box] = part
        return whole

    def save(self, path: Path) -> None:
        """Keep the search in a file (NPZ), whole or not at all; it holds nothing of the scan but a digest."""
        arrays = {name: getattr(self, f"_{name}").cpu().numpy() for name in _KEPT}
        arrays["count"] = arrays["count"].astype(np.uint16)
        with atomic_file(path, overwrite=True) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, steps_done=self.steps_done, identity=np.array(self._identity()), **arrays)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Continue a search that was kept.

        :raises InputError: when the file is damaged or of another search.
        """
        try:
            with np.load(path, allow_pickle=False) as kept:
                if str(kept["identity"]) != self._identity():
                    raise InputError(
                        "The kept search is of another scan, budget, attacker or configuration; name another file."
                    )
                self.steps_done = int(kept["steps_done"])
                for name in _KEPT:
                    setattr(self, f"_{name}", torch.from_numpy(kept[name].astype(np.float32)).to(self._device))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError("The kept search cannot be read; remove it, or name another file.") from error

    def _identity(self) -> str:
        digest = hashlib.sha256(self._volume.hu.tobytes())
        digest.update(self._limit.cpu().numpy().tobytes())
        who = "".join(f"{one.name} {one.digest}" for one in (*self._attackers, *self._judges))
        boxes = [block.box for block in self.blocks]
        digest.update(f"{(self.config, self._seed, boxes)!r}{who}".encode())
        return digest.hexdigest()

    def step(self, share: float = 1.0) -> None:
        """Take one step in the block whose turn it is; every round visits all blocks in an order of its own.

        :param share: of the configuration's rate.
        """
        turn, number = divmod(self.steps_done, len(self.blocks))
        order = np.random.default_rng((self._seed, turn)).permutation(len(self.blocks))
        block = self.blocks[order[number]]
        rng = np.random.default_rng((self._seed, turn, int(order[number])))
        part = block.box
        moving = self._share[part].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.sureness(block, rng, moving), moving)
        count = self._count[part].add_(1)
        first = self._first[part].mul_(_FIRST_MOMENT).add_(gradient, alpha=1 - _FIRST_MOMENT)
        second = self._second[part].mul_(_SECOND_MOMENT).addcmul_(gradient, gradient, value=1 - _SECOND_MOMENT)
        mean = first / (1 - _FIRST_MOMENT**count)
        spread = (second / (1 - _SECOND_MOMENT**count)).sqrt_()
        self._share[part] -= share * self.config.rate * mean / (spread + _TINY)
        self.steps_done += 1

    def sureness(self, block: Block, rng: np.random.Generator, share: torch.Tensor | None = None) -> torch.Tensor:
        """How sure judges are of what attackers want, as a mean logit, at places of a block that ``rng`` draws.

        :param share: of the block's voxels, before tanh; what was found so far where None.
        """
        hu = self._scan[block.box].float()
        change = self._bounded(self._share[block.box] if share is None else share, self._limit[block.box])
        # Whole HU, as it will be written; gradient as if not.
        protected = PatchedScan(self._scan, block.box, hu + change + (change.round() - change).detach())
        found = []
        for attacker in self._attackers:
            places = self._places(block, attacker.action, rng)
            if not places:
                continue
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.half):
                into = self._scan if self.config.into_original else protected
                scans, spacing, noise_hu = [protected] * len(places), self._volume.spacing_kji, self.config.noise_hu
                cubes = outcomes(scans, [into] * len(places), places, spacing, attacker, noise_hu, rng)
                logits = torch.stack([judge.network(cubes) for judge in self._judges]).float()
            found.append(logits.mean() if attacker.action == "inject" else -logits.mean())
        return torch.stack(found).sum()

    def _places(self, block: Block, action: str, rng: np.random.Generator) -> list[Voxel]:
        candidates = block.inject if action == "inject" else block.remove
        if not len(candidates):
            return []
        count = self.config.places if action == "inject" else min(2, len(candidates))
        places = candidates[rng.integers(len(candidates), size=count)]
        if action == "remove":
            jitter = rng.uniform(-_STRUCTURE_JITTER_MM, _STRUCTURE_JITTER_MM, places.shape) / self._volume.spacing_kji
            places = np.clip(places + np.rint(jitter).astype(int), 0, np.array(self._volume.shape) - 1)
        return [tuple(int(index) for index in kji) for kji in places]

    def _bounded(self, share: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
        return without_slow(limit * share.tanh(), limit, self._volume.spacing_kji, self.config.slower_mm)


@dataclass(frozen=True)
class Search:
    """Proposes a change that is searched on the scan itself, against installed attackers.

    :param attackers: names or folders; all that are installed where empty.
    :param judges: names of the nodule judges that are asked.
    :param minutes: time limit; None searches until all steps are done, which takes hours without a GPU.
    :param state: file in which the search is kept, and continued.
    :param near: voxels in whose neighborhood attacks are expected, up to 16 mm away along each axis; all of the lungs
        where empty.
    """

    attackers: tuple[str, ...] = ()
    judges: tuple[str, ...] = JUDGES
    config: SearchConfig = SearchConfig()
    minutes: float | None = None
    state: Path | None = None
    near: tuple[Voxel, ...] = ()

    def propose(self, volume: CTVolume, allowed_in: AllowedIn, execution: Execution) -> Iterator[Proposal]:
        """The change that the search finds, which looks at all slices at once; see :class:`ChangeSearch`.

        :raises TargetError: when no lung is found.
        :raises InputError: when the kept search is of another scan, budget or attacker.
        """

        def change(allowed: np.ndarray, progress: Progress | None) -> np.ndarray:
            search = self._on(volume, allowed, execution.seed, execution.device)
            search.run(self.minutes, state=self.state, progress=progress)
            return search.change()

        yield from in_slabs(volume, allowed_in, execution, change)

    def seconds(self, volume: CTVolume, device: str) -> float | None:
        """How long it takes: the time limit, or all steps at the pace of one."""
        if self.minutes is not None:
            return 60 * self.minutes
        search = self._on(volume, np.ones(volume.shape, np.int16), 0, device)
        search.step()  # the first also pays for starting the device
        started = time.perf_counter()
        search.step()
        return (time.perf_counter() - started) * search.steps

    def _on(self, volume: CTVolume, allowed: np.ndarray, seed: int, device: str) -> ChangeSearch:
        attackers = []
        for name in self.attackers or available_attackers():
            folder = MODELS_FOLDER / "attackers" / name
            actions = actions_of(folder if folder.is_dir() else Path(name))
            attackers += [load_attacker(name, action) for action in actions]
        judges = [load_judge(name) for name in self.judges]
        within = around(volume, self.near, _HALF_CUBE_MM) if self.near else None
        return ChangeSearch(volume, allowed, attackers, judges, self.config, seed=seed, device=device, within=within)


def around(volume: CTVolume, places: Sequence[Voxel], mm: float) -> np.ndarray:
    """Where a scan is at most ``mm`` from one of the voxels along each axis: bool of its shape."""
    found = np.zeros(volume.shape, bool)
    for kji in places:
        found[cube_around(volume, kji, 2 * mm).index] = True
    return found


def outcomes(
    scans: Sequence[PatchedScan],
    into: Sequence[torch.Tensor | PatchedScan],
    places: Sequence[Voxel],
    spacing_kji: Sequence[float],
    attacker: Attacker,
    noise_hu: float,
    rng: np.random.Generator,
) -> torch.Tensor:
    """What an attacker who reads protected scans paints, in other scans: (places, 32, 32, 32) HU at 1 mm.

    Judges who see it in the protected scan tell what software sees of it there; in the original, what the attacker's
    network was misled to (docs/results/prevention.md). Differentiable.

    :param scans: for each place, the protected scan that the attacker reads.
    :param into: for each place, the scan in HU (slices, rows, columns) that it is pasted into: the protected one, or
        the original.
    :param noise_hu: largest standard deviation of noise that is added to what the attacker sees.
    """
    shape = cube_shape(spacing_kji)
    starts = [cube_start(kji, shape) for kji in places]
    clean = torch.stack(
        [rescale(cut(scan, start, shape), (CUBE_MM,) * 3) for scan, start in zip(scans, starts, strict=True)]
    )
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32)).to(clean)
    sizes = torch.from_numpy(rng.uniform(0, noise_hu, len(places))).to(clean)
    forged = attacker.inpainter(clean + sizes.view(-1, 1, 1, 1) * noise)
    seen = []
    for scan, kji, start, cube in zip(into, places, starts, forged, strict=True):
        patch = touch_up(scan, kji, Patch(start, rescale(cube, shape)), attacker.action)
        attacked = PatchedScan(scan, patch.slices, patch.values)
        seen.append(rescale(cut(attacked, start, shape), (CUBE_MM,) * 3))
    return torch.stack(seen).float()


def without_slow(change: torch.Tensor, limit: torch.Tensor, spacing: Sequence[float], slower_mm: float) -> torch.Tensor:
    """The change without its slow part, within the limit; differentiable.

    :param change: in HU, (slices, rows, columns), or more axes before them.
    :param limit: largest change in HU, same shape; where it is 0, nothing changes and nothing counts.
    :param spacing: mm along the last axes; what is slow along all of these is taken out.
    :param slower_mm: standard deviation of the Gaussian whose part is taken out.
    """
    weight = (limit > 0).to(change)
    slow = _smoothed(change, spacing, slower_mm)
    room = _smoothed(weight, spacing, slower_mm)
    return (weight * (change - slow / room.clamp_min(1e-3))).clamp(-limit, limit)


def _blocks(volume: CTVolume, lung: np.ndarray, block_mm: float, within: np.ndarray | None) -> Iterator[Block]:
    """The lungs in blocks, each with the box that attacks at its targets read.

    :param within: bool of the scan's shape, where targets may lie; everywhere where None.
    """
    targets = lung & interior(volume, _HALF_CUBE_MM)
    structures = np.array(nodule_like_positions(volume, _STRUCTURES), dtype=int).reshape(-1, 3)
    if within is not None:
        targets &= within
        structures = structures[within[tuple(structures.T)]]
    spacing, shape = np.array(volume.spacing_kji), np.array(volume.shape)
    edge = np.maximum(np.rint(block_mm / spacing).astype(int), 1)
    places = np.argwhere(targets)
    if not len(places):
        return
    reach = np.ceil((_HALF_CUBE_MM + 1) / spacing).astype(int) + 1
    numbers = places // edge
    order = np.lexsort(numbers.T[::-1])
    borders = np.flatnonzero(np.any(np.diff(numbers[order], axis=0), axis=1)) + 1
    for group in np.split(order, borders):
        inside = places[group]
        low = np.maximum(inside.min(axis=0) - reach, 0)
        high = np.minimum(inside.max(axis=0) + reach + 1, shape)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        near = (structures // edge == numbers[group[0]]).all(axis=1)
        yield Block(box, inside, structures[near])


def _smoothed(values: torch.Tensor, spacing: Sequence[float], sigma_mm: float) -> torch.Tensor:
    """A Gaussian blur along the last axes, as many as there are spacings, zero beyond the part; differentiable."""
    result = values
    for axis, mm in enumerate(spacing, values.ndim - len(spacing)):
        radius = math.ceil(2.5 * sigma_mm / mm)
        distance = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype) * (mm / sigma_mm)
        kernel = torch.exp(-0.5 * distance**2)
        kernel = (kernel / kernel.sum()).view(1, 1, -1)
        lines = result.movedim(axis, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1])
        result = F.conv1d(flat, kernel, padding=radius).view(lines.shape).movedim(-1, axis)
    return result
