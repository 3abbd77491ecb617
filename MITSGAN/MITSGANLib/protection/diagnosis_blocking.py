"""Diagnosis blocking, searched on the scan itself: a bounded change after which nodule judges are wrong.

After MIAD-MARK (an adversarial watermark that misleads diagnosis networks and that key holders remove), without a
network that makes it. Frozen judges, which the model's file names, are first asked all over the clean lungs. What
they take for a nodule is then to be hidden, and what is most like one elsewhere is to look like one; signed gradients
with momentum (Dong et al., CVPR 2018) do so, through judges that look from another place in each pass, through a little
noise and smoothing. No right answer is needed. Arrays are (slice, row, column), HU.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from ..errors import InputError, ModelError, TargetError
from ..judges.judge import Judge, Sight, load_judge, maker
from ..runtime.devices import resolve_device
from ..scan.cubes import CUBE_MM, Voxel, box_around, cube_shape, cube_start, rescale
from ..scan.filters import enlarged
from ..scan.lungs import lung_mask
from ..scan.volume import CTVolume
from ..weights import MODELS_FOLDER, ModelCard, configuration, fill, half_precision, installed_cards
from .proposer import BLOCKER_CLASS, AllowedIn, Execution, Progress, Proposal, in_slabs

_SURE = 1e-4  # a threshold nearer to 0 or 1 has no useful logit
_BATCH = 8  # cubes at a time
_CLOSING_MM = 16.0  # nodules and vessels as thick as twice this count as lung
_MARGIN_MM = 5.0  # beyond the lungs' outline, where nodules touch the pleura
_SPOT_SIGMAS_MM = (2.0, 4.5)  # of the Laplacian, which answers most to balls of 7 and 16 mm
_SPOT_APART_MM = 6.0
_SPOTS_PER_CUBE = 4  # spots that judges are asked about, for each cube that the lungs hold
_GRID_MM = 16.0  # between the other places that judges are asked about
_HIDDEN_PER_CUBE = 0.5  # places to be hidden for each cube that the lungs hold, in a chest scan; to estimate time alone
_MARKED_FROM = 1 / 3  # share of the allowed change from which a block is changed, and then by all that is allowed


@dataclass(frozen=True)
class BlockingConfig:
    """How the change is searched.

    :param passes: steps; in each, every place that is to be hidden is looked at once.
    :param block_mm: size along slices and in the plane of the blocks of voxels that have one sign; at least one voxel.
        Coarse blocks make the change cheap to describe, and judges do not see much finer ones.
    :param first_step, last_step: share of the allowed change that a step moves a block by, falling linearly.
    :param momentum: weight of the earlier passes' gradients.
    :param margin: by which logits are to lie beyond the threshold, on the other side; farther ones no longer pull.
    :param reach: hidden is what judges together take for a nodule in the clean scan, or nearly: by logits up to this
        far below the threshold. Other judges may see more than these.
    :param false_mm: distance of the cubes whose middles are made to look like nodules, on a grid that lies elsewhere in
        each pass, since nobody knows where a judge will look; 0 for none.
    :param clear_mm: least distance, along some axis, from such a middle to all nodules that are hidden.
    :param jitter_mm: farthest, along each axis, that judges look from beside a nodule that is hidden.
    :param noise_hu: largest standard deviation of the noise that is added to what judges see.
    :param blur: largest weight of each voxel's neighbors, along each axis, in what judges see.
    """

    passes: int = 40
    block_mm: tuple[float, float] = (2.0, 1.4)
    first_step: float = 0.4
    last_step: float = 0.1
    momentum: float = 0.9
    margin: float = 2.0
    reach: float = 1.0
    false_mm: float = 0.0
    clear_mm: float = 24.0
    jitter_mm: float = 3.0
    noise_hu: float = 8.0
    blur: float = 0.5

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise InputError(f"passes must be at least 1, not {self.passes}.")
        if len(self.block_mm) != 2 or not all(0 < mm <= 16 for mm in self.block_mm):
            raise InputError(f"block_mm must be two sizes above 0 and at most 16 mm, not {self.block_mm}.")
        for name in ("first_step", "last_step", "momentum", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be from 0 to 1, not {getattr(self, name)}.")
        for name in ("margin", "reach", "false_mm", "clear_mm", "jitter_mm", "noise_hu"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}.")

    def block(self, spacing_kji: Sequence[float]) -> Voxel:
        """Size of a block in voxels."""
        sizes = (self.block_mm[0], self.block_mm[1], self.block_mm[1])
        return tuple(max(1, round(size / mm)) for size, mm in zip(sizes, spacing_kji, strict=True))


@dataclass(frozen=True, eq=False)
class DiagnosisBlocker:
    """The judges to mislead, and how.

    :param judges: of nodules, in cubes of 32 mm.
    :raises InputError: when there is none, or one is asked about something else.
    """

    judges: tuple[Judge, ...]
    config: BlockingConfig

    def __post_init__(self) -> None:
        if not self.judges:
            raise InputError("Diagnosis blocking needs at least one nodule judge to mislead; name one.")
        for judge in self.judges:
            if judge.question != "nodule" or judge.view.shape != (CUBE_MM,) * 3:
                raise InputError(f"The judge {judge.name} is not asked about nodules in 32 mm cubes; name another.")

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], card: ModelCard) -> DiagnosisBlocker:
        """The blocker of a model's file.

        :raises ModelError: when card and tensors do not hold one, or an installed judge is another now, or missing.
        """
        judges = []
        try:
            config = configuration(BlockingConfig, card)
            for found in card.architecture["judges"]:
                prefix = f"{found['name']}/"
                own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
                if own:
                    network = fill(maker(found["class"], found["config"]), own, card)
                    view, threshold = Sight(**found["view"]), float(found["threshold"])
                    judges.append(Judge(found["name"], "nodule", view, network, threshold, found["sha256"]))
                    continue
                judges.append(load_judge(found["name"]))
                if judges[-1].digest != found["sha256"]:
                    raise ModelError(
                        f"Blocker '{card.name}' was made with another judge '{found['name']}' than the installed one; "
                        "make it anew with train.py, or reinstall the extension."
                    )
            return cls(tuple(judges), config)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, InputError) as error:
            raise ModelError(
                f"The card of blocker '{card.name}' lacks or has unusable judges ({error}); reinstall the extension."
            ) from error

    def propose(self, volume: CTVolume, allowed_in: AllowedIn, execution: Execution) -> Iterator[Proposal]:
        """The change that the search finds, which looks at all slices at once; see :meth:`change`.

        :raises TargetError: when no lung is found.
        """
        where = {"places": judged_places(volume), "spacing_kji": volume.spacing_kji}
        search = functools.partial(self.change, volume.hu, **where, seed=execution.seed, device=execution.device)
        yield from in_slabs(volume, allowed_in, execution, search)

    def change(
        self,
        hu: np.ndarray,
        allowed: np.ndarray,
        places: np.ndarray,
        spacing_kji: Sequence[float],
        *,
        seed: int = 0,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """The change in HU, int16 (slices, rows, columns): each voxel's is 0, or all that is allowed, up or down.

        The same input and seed give the same change on the same machine and number of threads; on a GPU sums are taken
        in no fixed order, so that single blocks may differ.

        :param hu: int16 (slices, rows, columns).
        :param allowed: int16, same shape: the largest change in HU.
        :param places: bool, same shape, not empty: where judges may be asked; see :func:`judged_places`.
        :param spacing_kji: mm along (slice, row, column).
        :param progress: called with (done, all) passes; may raise ``CancelledError``.
        """
        plan = SearchPlan(places, spacing_kji, self.config)
        box, passes = plan.box, self.config.passes
        rng = np.random.default_rng(seed)
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            search = BlockSearch(hu[box], allowed[box], spacing_kji, self, resolve_device(device))
            asked = plan.asked(hu[box])

            def batches(items: Sequence[Any], done: int) -> Iterator[Sequence[Any]]:
                for start in range(0, len(items), _BATCH):
                    if progress:
                        progress(done, passes)
                    yield items[start : start + _BATCH]

            beyond = [one for batch in batches(asked, 0) for one in search.beyond(batch)]
            nodules = plan.nodules(asked, np.array(beyond))
            for number in range(passes):
                for batch in batches(plan.draw(nodules, rng), number):
                    search.look(batch, rng)
                search.step(number / passes)
            signs = search.signs()
        if progress:
            progress(passes, passes)
        change = np.zeros(hu.shape, np.int16)
        change[box] = signs * allowed[box]
        return change

    def seconds(self, volume: CTVolume, device: str) -> float | None:
        """A rough estimate of how long the search takes for a scan here, from one batch of its cubes.

        :raises TargetError: when no lung is found.
        """
        plan = SearchPlan(judged_places(volume), volume.spacing_kji, self.config)
        hu, rng = volume.hu[plan.box], np.random.default_rng(0)
        search = BlockSearch(hu, np.ones_like(hu), volume.spacing_kji, self, resolve_device(device))
        asked = plan.asked(hu)
        some = [Turn(kji, True) for kji in asked[:_BATCH]]
        search.look(some[:1], rng)  # the first run also pays for starting the device
        seconds = []
        for work in (lambda: search.beyond(asked[:_BATCH]), lambda: search.look(some, rng)):
            started = time.perf_counter()
            work()
            seconds.append((time.perf_counter() - started) / len(some))
        false = (CUBE_MM / self.config.false_mm) ** 3 if self.config.false_mm else 0.0
        return len(asked) * seconds[0] + self.config.passes * (_HIDDEN_PER_CUBE + false) * plan.cubes * seconds[1]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a model's file holds: the SHA-256 of each judge, and the weights of those that are not installed.

        Weights are in half precision, each under its judge's name; installed ones are not shipped twice.
        """
        installed = {card.name: card.sha256 for card in installed_cards(MODELS_FOLDER / "judges", ())}
        digests = " ".join(judge.digest for judge in self.judges)
        found = {"judges_sha256": torch.frombuffer(bytearray(digests.encode()), dtype=torch.uint8)}
        for judge in self.judges:
            if installed.get(judge.name) != judge.digest:
                found |= {f"{judge.name}/{key}": tensor for key, tensor in half_precision(judge.network).items()}
        return found

    def architecture(self) -> dict[str, Any]:
        """What a card says, to be read back by :meth:`of`; JSON-ready."""
        judges = [
            {
                "name": judge.name,
                "class": type(judge.network).__name__,
                "config": dataclasses.asdict(judge.network.config),
                "view": dataclasses.asdict(judge.view),
                "threshold": judge.threshold,
                "sha256": judge.digest,
            }
            for judge in self.judges
        ]
        return {"class": BLOCKER_CLASS, "config": dataclasses.asdict(self.config), "judges": judges}


def judged_places(volume: CTVolume) -> np.ndarray:
    """Bool (slices, rows, columns): where diagnosis networks may be asked about nodules, lungs and what lies in them.

    :raises TargetError: when no lung is found.
    """
    lung = lung_mask(volume)
    if not lung.any():
        raise TargetError(
            "No lung was found in this scan, and diagnosis is blocked where networks look for nodules; "
            "give a chest CT, or choose another model."
        )
    # At about 2 mm in the plane; the outline of the places need not be finer.
    step = max(1, round(2.0 / min(volume.spacing_kji[1:])))
    small = lung[:, ::step, ::step]
    sampling = (volume.spacing_kji[0], volume.spacing_kji[1] * step, volume.spacing_kji[2] * step)
    near = ndimage.distance_transform_edt(~small, sampling) <= _CLOSING_MM
    inner = ndimage.distance_transform_edt(near, sampling) > _CLOSING_MM - _MARGIN_MM
    return enlarged(inner | small, step, volume.shape)


def places_inside(shape: Sequence[int], spacing_kji: Sequence[float]) -> np.ndarray:
    """Bool of ``shape`` (slices, rows, columns): middles of cubes that lie inside voxels of this shape.

    :raises InputError: when the voxels span less than a cube.
    """
    places = np.zeros(tuple(shape), bool)
    cube = cube_shape(spacing_kji)
    first = [-start for start in cube_start((0, 0, 0), cube)]
    places[tuple(slice(a, max(a, n - c + a + 1)) for a, n, c in zip(first, shape, cube, strict=True))] = True
    if not places.any():
        raise InputError(f"These voxels span less than the {CUBE_MM} mm that judges look at; give more of the scan.")
    return places


def threshold_logit(judge: Judge) -> float:
    """The logit from which on a judge says yes."""
    threshold = float(np.clip(judge.threshold, _SURE, 1 - _SURE))
    return float(np.log(threshold / (1 - threshold)))


@dataclass(frozen=True)
class Turn:
    """A place where the judges are to be misled: a nodule to hide, or a false one to make."""

    kji: Voxel
    hides: bool


class SearchPlan:
    """Where judges look, as voxels (slice, row, column) of ``box``, the part of the scan that they see from there."""

    def __init__(self, places: np.ndarray, spacing_kji: Sequence[float], config: BlockingConfig) -> None:
        self._spacing, self._config = np.asarray(spacing_kji, np.float64), config
        inner = box_around(places)
        if inner is None:
            raise InputError("There is no place at which judges may be asked; give at least one.")
        reach = np.ceil((CUBE_MM / 2 + config.jitter_mm) / self._spacing).astype(int) + 1
        self.box = tuple(
            slice(max(0, part.start - far), min(size, part.stop + far))
            for part, size, far in zip(inner, places.shape, reach.tolist(), strict=True)
        )
        self._places = places[self.box]
        self.cubes = max(1, round(np.count_nonzero(self._places) * self._spacing.prod() / CUBE_MM**3))

    def asked(self, hu: np.ndarray) -> list[Voxel]:
        """Where judges are asked about the clean scan: at spots, and on a grid.

        :param hu: int16 of the box.
        """
        axes = []
        for part, mm in zip(box_around(self._places), self._spacing, strict=True):
            first, last = part.start, part.stop - 1
            steps = np.linspace(first, last, 1 + math.ceil((last - first) * mm / _GRID_MM))
            axes.append(np.unique(np.rint(steps).astype(int)))
        grid = self._on_grid(axes)
        return list(dict.fromkeys([*self._spots(hu), *(tuple(kji) for kji in grid.tolist())]))

    def nodules(self, asked: Sequence[Voxel], beyond: np.ndarray) -> list[Voxel]:
        """The places that judges take for nodules, or nearly, the surest first, none beside a surer one.

        :param beyond: how far the judges' mean logit lies beyond the thresholds at each place.
        """
        kept: list[Voxel] = []
        for number in np.argsort(-beyond, kind="stable"):
            if beyond[number] < -self._config.reach:
                break
            if self._are_clear(np.array([asked[number]]), kept, _SPOT_APART_MM)[0]:
                kept.append(asked[number])
        return kept

    def draw(self, nodules: Sequence[Voxel], rng: np.random.Generator) -> list[Turn]:
        """What one pass looks at: near each nodule, to hide it, and all places on a grid of its own, but for those."""
        shape = np.array(self._places.shape)
        middles = np.array(nodules, int).reshape(-1, 3)
        shifts = rng.uniform(-self._config.jitter_mm, self._config.jitter_mm, middles.shape) / self._spacing
        moved = np.clip(middles + np.rint(shifts).astype(int), 0, shape - 1)
        targets = [Turn(tuple(kji), True) for kji in moved.tolist()]
        if not self._config.false_mm:
            return targets
        pitch = np.maximum(self._config.false_mm / self._spacing, 1)
        axes = [
            np.arange(rng.uniform(0, step), size, step).astype(int) for step, size in zip(pitch, shape, strict=True)
        ]
        grid = self._on_grid(axes)
        if not len(grid):
            # Places smaller than a cube mostly fall through the grid.
            flat = np.flatnonzero(self._places)
            grid = np.array([np.unravel_index(flat[rng.integers(len(flat))], self._places.shape)])
        clear = grid[self._are_clear(grid, nodules, self._config.clear_mm)]
        return targets + [Turn(tuple(kji), False) for kji in clear.tolist()]

    def _on_grid(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """The places (n, 3) among the points of a grid."""
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        return grid[self._places[tuple(grid.T)]]

    def _are_clear(self, places: np.ndarray, of: Sequence[Voxel], mm: float) -> np.ndarray:
        """Which places (n, 3) lie at least so far, along some axis, from all others."""
        others = np.array(of).reshape(-1, 3)
        away = np.abs((places[:, None] - others[None]) * self._spacing).max(axis=2, initial=0.0)
        return (away >= mm).all(axis=1)

    def _spots(self, hu: np.ndarray) -> list[Voxel]:
        """The brightest compact structures among the places, best first: where judges may see a nodule."""
        step = max(1, round(1.4 / float(self._spacing[1:].min())))
        tissue = np.clip(hu[:, ::step, ::step], -900, 100).astype(np.float32)
        places, mm = self._places[:, ::step, ::step], self._spacing * (1, step, step)
        response = np.zeros_like(tissue)
        for sigma in _SPOT_SIGMAS_MM:
            answer = ndimage.gaussian_laplace(tissue, sigma / mm, truncate=3.0)
            np.maximum(response, -(sigma**2) * answer, out=response)
        size = 2 * np.floor(_SPOT_APART_MM / mm).astype(int) + 1
        peaks = np.argwhere(places & (response > 0) & (response == ndimage.maximum_filter(response, tuple(size))))
        best = np.argsort(-response[tuple(peaks.T)], kind="stable")
        return [tuple(kji) for kji in (peaks[best[: _SPOTS_PER_CUBE * self.cubes]] * (1, step, step)).tolist()]


class BlockSearch:
    """The signs of all blocks on their way. Voxels and blocks are counted from the corner of ``hu``."""

    def __init__(
        self,
        hu: np.ndarray,
        allowed: np.ndarray,
        spacing_kji: Sequence[float],
        blocker: DiagnosisBlocker,
        device: torch.device,
    ) -> None:
        self._config, self._cube = blocker.config, cube_shape(spacing_kji)
        self._block = blocker.config.block(spacing_kji)
        self._judges = [(judge.to(device).network, threshold_logit(judge)) for judge in blocker.judges]
        self._hu, self._allowed = (torch.from_numpy(part.copy()).to(device) for part in (hu, allowed))
        blocks = [-(-size // edge) for size, edge in zip(hu.shape, self._block, strict=True)]
        self._share, self._momentum, self._gradient = (torch.zeros(blocks, device=device) for _ in range(3))

    def clean(self, middles: Sequence[Voxel]) -> torch.Tensor:
        """What judges see of the clean scan around each middle, float32 (middles, 32, 32, 32) in HU at 1 mm."""
        cubes = torch.stack([self._taken(self._hu, self._indices(kji)).float() for kji in middles])
        return rescale(cubes, (CUBE_MM,) * 3).float()

    def beyond(self, middles: Sequence[Voxel]) -> list[float]:
        """How far the judges' mean logit lies beyond their thresholds at each place of the clean scan."""
        with torch.no_grad():
            return self._beyond(self.clean(middles)).mean(dim=0).tolist()

    def look(self, targets: Sequence[Turn], rng: np.random.Generator) -> None:
        """Add the gradient of what these places lack of being turned."""
        noise_hu = rng.uniform(0, self._config.noise_hu, len(targets))
        blur = rng.uniform(0, self._config.blur, len(targets))
        seed = int(rng.integers(2**62))
        parts, shares, marked = [], [], []
        for target in targets:
            indices = self._indices(target.kji)
            blocks = [index // edge for index, edge in zip(indices, self._block, strict=True)]
            part = tuple(slice(int(index[0]), int(index[-1]) + 1) for index in blocks)
            share = self._share[part].clone().requires_grad_(True)
            hu, allowed = (self._taken(scan, indices).float() for scan in (self._hu, self._allowed))
            parts.append(part)
            shares.append(share)
            marked.append(hu + allowed * _spread(share, blocks))
        cubes = rescale(torch.stack(marked), (CUBE_MM,) * 3).float()
        seen = _disturbed(cubes, noise_hu, blur, seed)
        way = torch.tensor([-1.0 if target.hides else 1.0 for target in targets]).to(seen)
        lacking = F.softplus(self._config.margin - way * self._beyond(seen)).sum()
        for part, gradient in zip(parts, torch.autograd.grad(lacking, shares), strict=True):
            self._gradient[part] += gradient

    def step(self, progress: float) -> None:
        """Move all blocks that were looked at.

        :param progress: share of the steps that were done before.
        """
        config = self._config
        self._momentum.mul_(config.momentum).add_(self._gradient)
        self._gradient.zero_()
        rate = config.first_step + (config.last_step - config.first_step) * progress
        self._share.sub_(rate * self._momentum.sign()).clamp_(-1, 1)

    def signs(self) -> np.ndarray:
        """-1, 0 or 1 for each voxel, int16."""
        share = self._share.cpu().numpy()
        signs = np.where(np.abs(share) >= _MARKED_FROM, np.sign(share), 0).astype(np.int16)
        for axis, edge in enumerate(self._block):
            signs = signs.repeat(edge, axis=axis)
        return signs[tuple(slice(size) for size in self._hu.shape)]

    def _beyond(self, cubes: torch.Tensor) -> torch.Tensor:
        """How far each judge's logit lies beyond its threshold, (judges, cubes)."""
        return torch.stack([network(cubes) - limit for network, limit in self._judges])

    def _indices(self, kji: Voxel) -> list[np.ndarray]:
        """Voxels of the cube around a middle along each axis, as judges cut it; beyond the scan its border repeats."""
        return [
            np.clip(start + np.arange(count), 0, size - 1)
            for start, count, size in zip(cube_start(kji, self._cube), self._cube, self._hu.shape, strict=True)
        ]

    def _taken(self, scan: torch.Tensor, indices: Sequence[np.ndarray]) -> torch.Tensor:
        for axis, index in enumerate(indices):
            scan = scan.index_select(axis, _tensor(index, scan))
        return scan


def _spread(share: torch.Tensor, blocks: Sequence[np.ndarray]) -> torch.Tensor:
    """Each voxel's share from its block's. By products, since sums in a gradient then have a fixed order."""
    for axis, index in enumerate(blocks):
        matrix = torch.nn.functional.one_hot(_tensor(index - index[0], share), share.shape[axis]).to(share.dtype)
        share = (share.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return share


def _disturbed(cubes: torch.Tensor, noise_hu: np.ndarray, blur: np.ndarray, seed: int) -> torch.Tensor:
    """Cubes (n, edge, edge, edge), smoothed along each axis, with noise; one number of each for every cube."""
    weight = torch.from_numpy(blur).to(cubes).view(-1, 1, 1, 1)
    for axis in (1, 2, 3):
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (3 - axis)] = padding[2 * (3 - axis) + 1] = 1
        wide = F.pad(cubes.unsqueeze(1), padding, mode="replicate").squeeze(1)
        size = cubes.shape[axis]
        around = (wide.narrow(axis, 0, size) + wide.narrow(axis, 2, size)) / 2
        cubes = cubes + weight * (around - cubes)
    noise = torch.randn(cubes.shape, generator=torch.Generator().manual_seed(seed)).to(cubes)
    return cubes + torch.from_numpy(noise_hu).to(cubes).view(-1, 1, 1, 1) * noise


def _tensor(index: np.ndarray, beside: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(index).to(beside.device)
