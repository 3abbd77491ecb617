"""A protector's network over slabs of slices: where it runs, in what parts, how many slices at a time, how precisely.

What lies where no change is allowed is never computed: the network sees tiles around the rest, each wider by the
network's margin, so that what comes out within is what the whole slice would give. On a CPU that is so bit for bit
(but for a generator on a grid that is no power of 2, whose interpolation rounds by place: by some 1e-5 HU).
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CHOOSE_CPU, DependencyError
from ..runtime import devices
from ..runtime.threads import map_slices, slabs
from ..scan.cubes import Box, whole, within
from ..scan.volume import CTVolume
from .proposer import AllowedIn, Execution, Proposal

logger = logging.getLogger(__name__)

# Smaller tiles cost more in margins than they leave out.
LEAST_EDGE = 128
# A network that is given another size than before is made ready for it first, which took a fifth of the time where each
# slice had one of its own. Of 4 to 64 voxels 32 were best.
EDGE_STEP = 32
# PyTorch and oneDNN compute small inputs of a convolution in another way, which rounds differently: those of at most
# 20480 numbers, and those of fewer rows or columns than this (16 to 24 were seen to differ). So no layer of a tile may
# be that small; slices that are, are neither divided nor put together.
SMALL_INPUT, SHORT_INPUT = 20480, 32
# On a CPU, what a layer puts out should stay in the cache: of 3 to 100 MB, 9 and 14 were best for the paper's generator
# (32 MB of cache). Of smaller networks each core takes a slice of its own: threads that share one wait for each other.
CPU_LAYER_BYTES = 14_000_000
_CPU_BATCH = 8
# More slices at a time gain nothing on a GPU and cost memory of the host.
GPU_BATCH = 32
# Of the free memory; the rest is for fragments and other programs.
_GPU_SHARE = 0.7
# Two changes less than 1 HU apart are at most 1 HU apart after rounding; the probe does not show the worst case.
_HALF_TOLERANCE_HU = 0.25


Run = Callable[["torch.Tensor", "Tile"], "torch.Tensor"]
"""What a network gives for the wanted part of a tile, from all that it must see, both (batch, 1, rows, columns)."""


@dataclass(frozen=True)
class Tile:
    """A part of a slice: the ``wanted`` rows and columns, and the ``wide`` ones that the network must see."""

    wanted: Box
    wide: Box

    @property
    def size(self) -> int:
        """Voxels that the network must see."""
        return math.prod(part.stop - part.start for part in self.wide)

    @property
    def inner(self) -> Box:
        """The wanted part within the wide one."""
        return within(self.wanted, self.wide)


@dataclass(frozen=True)
class Tiling:
    """What parts of a slice a network may be given.

    :param margin: rows and columns around a part that decide what comes out within, a multiple of ``multiple``; None
        for whole slices only.
    :param layer_bytes: what the largest layer puts out, for each voxel.
    :param multiple: parts begin and end at multiples of this, or at the border of the slice.
    :param least_edge: rows and columns that a part has at least, margins included; smaller slices are one part.
    """

    margin: int | None
    layer_bytes: float
    multiple: int = 1
    least_edge: int = LEAST_EDGE

    def tiles(self, needed: np.ndarray, most_voxels: float = math.inf) -> list[Tile]:
        """Tiles that cover every needed voxel of a slice, with as few voxels in all as bands of equal height can do.

        :param needed: bool (rows, columns).
        :param most_voxels: a tile is divided further while it has more than this, margins included, and is not yet
            small.
        """
        rows, shape = np.flatnonzero(needed.any(axis=1)), needed.shape
        if not rows.size:
            return []
        if self.margin is None or min(shape) < self.least_edge:
            return [Tile(whole(shape), whole(shape))]
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        most_bands = 1 if math.isinf(most_voxels) else max(1, (bottom - top) * 2 // self.least_edge)
        plans = []
        for bands in range(1, most_bands + 1):
            plan = []
            edges = [self._aligned_up(round(edge), shape[0]) for edge in np.linspace(top, bottom, bands + 1)]
            edges[0] = top
            for first, last in itertools.pairwise(edges):
                columns = np.flatnonzero(needed[first:last].any(axis=0))
                if columns.size:
                    across = slice(int(columns[0]), int(columns[-1]) + 1)
                    plan += self._divided((slice(first, last), across), shape, most_voxels)
            plans.append(plan)
        return min(plans, key=lambda plan: sum(tile.size for tile in plan))

    def _divided(self, wanted: Box, shape: tuple[int, int], most_voxels: float) -> list[Tile]:
        """A rectangle as one tile, or as halves of its longer side while that is too large."""
        tile = Tile(wanted, tuple(map(self._widened, wanted, shape)))
        edges = [part.stop - part.start for part in wanted]
        if tile.size <= most_voxels or max(edges) <= self.least_edge:
            return [tile]
        axis = int(edges[0] <= edges[1])
        long = wanted[axis]
        middle = self._aligned_up(long.start + edges[axis] // 2, shape[axis])
        halves = (slice(long.start, middle), slice(middle, long.stop))
        boxes = ((*wanted[:axis], half, *wanted[axis + 1 :]) for half in halves)
        return [tile for box in boxes for tile in self._divided(box, shape, most_voxels)]

    def _widened(self, part: slice, size: int) -> slice:
        """The part with its margin, at multiples, as long as many others, and no shorter than ``least_edge``."""
        start = max(0, part.start // self.multiple * self.multiple - self.margin)
        stop = min(size, self._aligned_up(part.stop, size) + self.margin)
        step = -(-EDGE_STEP // self.multiple) * self.multiple
        length = max(self.least_edge, -(-(stop - start) // step) * step)
        stop = self._aligned_up(min(size, start + length), size)
        return slice(max(0, min(start, (stop - length) // self.multiple * self.multiple)), stop)

    def _aligned_up(self, value: int, size: int) -> int:
        return min(size, -(-value // self.multiple) * self.multiple)


def hu_to_network(hu: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
    """HU of any shape to [-1, 1] over the fixed ``window`` (low, high); values beyond are clipped."""
    low, high = window
    return ((hu.float() - low) * (2 / (high - low)) - 1).clamp(-1, 1)


def network_to_hu(values: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
    """The reverse of :func:`hu_to_network` within the window."""
    low, high = window
    return (values + 1) * ((high - low) / 2) + low


class SliceNetwork:
    """What makes a network that looks at single slices a :class:`~.proposer.Proposer`."""

    def propose(self, volume: CTVolume, allowed_in: AllowedIn, execution: Execution) -> Iterator[Proposal]:
        """What the network proposes where change is allowed, float32 HU; see :meth:`.proposer.Proposer.propose`.

        :raises DependencyError: when the device or precision is not there, or a GPU's memory is too small for a slice.
        """
        network = SliceInference(self, volume.shape[1:], execution)
        # The number of slices at a time may change with each slab.
        start = 0
        while start < volume.shape[0]:
            slab = slice(start, min(start + network.batch_size, volume.shape[0]))
            allowed = allowed_in(slab)
            yield slab, allowed, network.change(volume.hu[slab], allowed)
            start = slab.stop

    def seconds(self, _volume: CTVolume, _device: str) -> float | None:
        """None: slices take equally long."""
        return None

    def tiling(self) -> Tiling:
        """What parts of a slice the network may be given."""
        raise NotImplementedError

    def ready(self, _shape: tuple[int, int], _seed: int, device: torch.device, dtype: torch.dtype, _fused: bool) -> Run:
        """A copy of the network as a function of tiles of slices (batch, 1, rows, columns), float32 in and out.

        :param shape: (rows, columns) of whole slices.
        :param seed: of what the network draws.
        :param fused: whether it may round differently in order to be faster.
        """
        whole = copy.deepcopy(self).eval().to(device, dtype)
        return lambda x, tile: whole(x.to(dtype)).float()[(..., *tile.inner)]


class SliceInference:
    """A network ready to propose changes for slices of one size.

    :param network: MITS-GAN's generator, or TAFIM; it stays as it is.
    :param shape: (rows, columns) of the slices.
    :param execution: its precision "auto" is half on a GPU where a probe shows that it moves what this network proposes
        by well below 1 HU at its strength, else float32. Its batch size is found on a GPU from the free memory.
    :param fused: fold batch norm into convolutions; None does so on a GPU alone, since it costs the identity of bits.
    :raises DependencyError: when the device is not there, or for half precision without a GPU.
    """

    def __init__(
        self, network: SliceNetwork, shape: tuple[int, int], execution: Execution, *, fused: bool | None = None
    ) -> None:
        self._device = device = devices.resolve_device(execution.device)
        self._config, self._shape = network.config, shape
        self._on_gpu = device.type == "cuda"
        self._tiling = network.tiling()
        layer_bytes, least_edge = self._tiling.layer_bytes, self._tiling.least_edge
        # What a CPU's cache holds is not worth dividing, what it does not is.
        fits = min(shape) >= least_edge and 2 * layer_bytes * math.prod(shape) <= CPU_LAYER_BYTES
        self._side_by_side = fits and not self._on_gpu
        self._most_voxels = math.inf if self._on_gpu else CPU_LAYER_BYTES / layer_bytes
        self.finds_batch = execution.batch_size is None and self._on_gpu
        self.batch_size = execution.batch_size or (1 if self._on_gpu else max(_CPU_BATCH, torch.get_num_threads()))
        fused = self._on_gpu if fused is None else fused
        self._exact = network.ready(shape, execution.seed, device, torch.float32, fused)
        self._half: Run | None = None
        if devices.may_use_half(execution.precision, device):
            self._half = network.ready(shape, execution.seed, device, torch.float16, fused)
            if execution.precision == "auto" and not self._half_error_hu(execution.strength_hu) <= _HALF_TOLERANCE_HU:
                self._half = None

    @property
    def precision(self) -> str:
        """ "half" or "float32", whichever it is in the end."""
        return "half" if self._half else "float32"

    def change(self, hu: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """The change that the network proposes in HU, float32, same shape; 0 where no change is allowed.

        A residual network's output is a share of what is allowed, an image generator's output is the new slice itself.
        Best given ``batch_size`` slices at a time, which may become fewer or more with each call.

        :param hu: int16 (slices, rows, columns).
        :param allowed: the largest change in HU, same shape.
        :raises DependencyError: when the GPU's memory is too small for a single slice.
        """
        try:
            return self._change_finding_batch(hu, allowed) if self.finds_batch else self.change_at_once(hu, allowed)
        except torch.cuda.OutOfMemoryError:
            # Tried again outside of this block: the error holds on to the memory of what failed.
            slices = len(hu)
        if slices == 1:
            raise DependencyError(
                "The GPU's memory is too small for a single slice, or other programs use it", hint=CHOOSE_CPU
            )
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()
        self.batch_size, self.finds_batch = -(-slices // 2), False
        logger.info("The GPU's memory is too small for %d slices at a time; trying %d.", slices, self.batch_size)
        parts = slabs(slices, self.batch_size)
        return np.concatenate([self.change(hu[part], allowed[part]) for part in parts])

    def _change_finding_batch(self, hu: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """:meth:`change_at_once`, from whose need of memory follows how many slices there may be next time."""
        tiles = self._tiles(allowed)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        change = self.change_at_once(hu, allowed)
        if tiles:
            seen = max(tile.size for tile in tiles) * len(hu)
            slice_bytes = (torch.cuda.max_memory_allocated(self._device) - before) / seen * math.prod(self._shape)
            # Free bytes, and those that torch keeps without using them.
            kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            free = torch.cuda.mem_get_info(self._device)[0] + kept
            fitting = int(_GPU_SHARE * free / max(1.0, slice_bytes))
            self.batch_size, self.finds_batch = max(1, min(GPU_BATCH, fitting)), False
        return change

    def change_at_once(self, hu: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """As :meth:`change`, with the memory for all these slices together."""
        change = np.zeros(hu.shape, np.float32)
        parts = slabs(len(hu), len(hu) if self._on_gpu else 1)

        @torch.inference_mode()
        def fill(number: int) -> None:
            part = parts[number]
            for tile in self._tiles(allowed[part]):
                where = (part, *tile.wanted)
                output = self._output(hu[(part, *tile.wide)], tile)
                if self._config.output == "image":
                    change[where] = network_to_hu(output, self._config.hu_window).cpu().numpy() - hu[where]
                else:
                    change[where] = output.cpu().numpy() * allowed[where]

        if self._side_by_side:
            map_slices(fill, len(parts))
        else:
            for number in range(len(parts)):
                fill(number)
        return change

    def _tiles(self, allowed: np.ndarray) -> list[Tile]:
        """Where the network must run for these slices together."""
        return self._tiling.tiles(allowed.any(axis=0), self._most_voxels)

    def _output(self, hu: np.ndarray, tile: Tile) -> torch.Tensor:
        """The network's output for a tile, float32 (slices, rows, columns), from what it must see of some slices."""
        # A copy, since torch does not take read-only arrays.
        x = hu_to_network(torch.from_numpy(hu.copy()).to(self._device), self._config.hu_window).unsqueeze(1)
        if self._half:
            output = self._half(x, tile)
            # Beyond 65504 half precision has only infinity.
            if torch.isfinite(output).all():
                return output.squeeze(1)
        return self._exact(x, tile).squeeze(1)

    def _half_error_hu(self, strength_hu: float) -> float:
        """How far half precision moves the proposed change, at most, in a slice of noise and one of smooth ramps.

        The slices depend on nothing but their size, so that parts of a series are treated as the whole.
        """
        low, high = self._config.hu_window
        ramp = torch.linspace(-1, 1, math.prod(self._shape)).reshape(self._shape)
        noise = torch.rand(self._shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        x = torch.stack([noise, ramp]).unsqueeze(1).to(self._device)
        tile = Tile(whole(self._shape), whole(self._shape))
        with torch.inference_mode():
            error = (self._half(x, tile) - self._exact(x, tile)).abs().max().item()
        return error * ((high - low) / 2 if self._config.output == "image" else strength_hu)
