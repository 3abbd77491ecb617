"""MITS-GAN's generator and discriminator (Pasqualino et al. 2024, section 3 and figure 4) in torch.

The generator takes a slice and noise and gives the protected slice, or, in residual mode, the change as a share of
what the budget allows. Slices are (batch, 1, rows, columns) in network range: HU over a fixed window, never over the
volume's own minimum and maximum, so that equal HU look equal to the network in every scan.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import ModelError
from ..scan.volume import CTVolume
from .inference import LEAST_EDGE, SHORT_INPUT, SMALL_INPUT, Run, SliceNetwork, Tile, Tiling
from .proposer import AllowedIn, Execution, Proposal
from .search import without_slow


@dataclass(frozen=True)
class GeneratorConfig:
    """Architecture of the generator. The defaults are the paper's.

    :param trunk_filters: width of the trunk.
    :param residual_blocks: residual blocks between the trunk's first and last convolution.
    :param noise_filters: output channels of the Noise Net's five convolutions.
    :param noise_kernel: edge of their kernels; the paper does not say, the public code has 1.
    :param noise: distribution of the noise; "gaussian" in the paper, "uniform" in the public code.
    :param first_batch_norm: batch norm after the trunk's first convolution (paper) or bias without it (public code).
    :param last_kernel: edge of the last convolution's kernel; 1 in the public code.
    :param output: "image" gives the protected slice (paper); "residual" gives a change that is added to the slice.
    :param unshuffle: the trunk works on slices folded by this factor into channels; 1 is the paper's full resolution.
    :param grid: the output is painted on every ``grid``-th voxel and interpolated in between; divides ``unshuffle``.
        Change of 6 to 12 mm survives an attacker's resampling, and costs a third in local SSIM of single voxels.
    :param hu_window: HU that map to -1 and 1; values beyond are clipped on the way in and left alone on the way out.
    :param slower_mm: standard deviation of the Gaussian whose part is taken out of the proposed change in each slice,
        so that no offset is left; 0 takes nothing out.
    """

    trunk_filters: int = 64
    residual_blocks: int = 3
    noise_filters: tuple[int, ...] = (2, 4, 4, 2, 1)
    noise_kernel: int = 3
    noise: Literal["gaussian", "uniform"] = "gaussian"
    first_batch_norm: bool = True
    last_kernel: int = 3
    output: Literal["image", "residual"] = "image"
    unshuffle: int = 1
    grid: int = 1
    hu_window: tuple[float, float] = (-1024.0, 3071.0)
    slower_mm: float = 0.0


def draw_noise(shape: tuple[int, int], kind: Literal["gaussian", "uniform"], seed: int) -> torch.Tensor:
    """The image-agnostic perturbation (1, 1, rows, columns) of ``seed``, the same for every slice and on every device.

    It does not depend on the slice's index, so a part of a series is protected just as within the whole.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn if kind == "gaussian" else torch.rand
    return draw((1, 1, *shape), generator=generator)


def convolution(channels_in: int, channels_out: int, kernel: int = 3) -> list[nn.Module]:
    """Convolution that keeps rows and columns, batch norm and ReLU."""
    layer = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return [layer, nn.BatchNorm2d(channels_out), nn.ReLU()]


class NoiseNet(nn.Module):
    """Five convolutions, each with batch norm and ReLU, that shape the noise (paper, section 3.1)."""

    def __init__(self, filters: tuple[int, ...], kernel: int) -> None:
        super().__init__()
        pairs = itertools.pairwise((1, *filters))
        self.layers = nn.Sequential(*(layer for pair in pairs for layer in convolution(*pair, kernel)))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Shape noise (batch, 1, rows, columns); the channels are those of the last convolution."""
        return self.layers(noise)


class ResidualBlock(nn.Module):
    """Convolution, batch norm, ReLU, convolution, batch norm, plus the input."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.inplace = False
        self.layers = nn.Sequential(*convolution(filters, filters), *convolution(filters, filters)[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (batch, channels, rows, columns), same shape."""
        return self.layers(x).add_(x) if self.inplace else x + self.layers(x)


class Generator(SliceNetwork, nn.Module):
    """MITS-GAN's generator: Noise Net, then a trunk over the slice and the shaped noise as two channels."""

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
        if config.unshuffle % config.grid:
            raise ModelError(f"The grid of {config.grid} voxels does not divide the folding by {config.unshuffle}.")
        folded = config.unshuffle**2
        filters = config.trunk_filters
        self.noise_net = NoiseNet(config.noise_filters, config.noise_kernel)
        first = [
            nn.Conv2d((1 + config.noise_filters[-1]) * folded, filters, 3, padding=1, bias=not config.first_batch_norm)
        ]
        if config.first_batch_norm:
            first.append(nn.BatchNorm2d(filters))
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(config.unshuffle),
            *first,
            nn.ReLU(),
            *(ResidualBlock(filters) for _ in range(config.residual_blocks)),
            nn.Conv2d(filters, folded // config.grid**2, config.last_kernel, padding=config.last_kernel // 2),
            nn.PixelShuffle(config.unshuffle // config.grid),
            *([nn.Upsample(scale_factor=config.grid, mode="bilinear")] if config.grid > 1 else []),
        )

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Slices and noise, both (batch or 1, 1, rows, columns), to the output in [-1, 1] of the slices' shape.

        Rows and columns need not be multiples of ``unshuffle``: edges are replicated and cropped again.
        """
        rows, columns = x.shape[-2:]
        return torch.tanh(self.trunk(self._joined(x, self.noise_net(noise))))[..., :rows, :columns]

    def _joined(self, x: torch.Tensor, shaped: torch.Tensor) -> torch.Tensor:
        """Slices and noise that the Noise Net has shaped, as the trunk takes them."""
        rows, columns = x.shape[-2:]
        both = torch.cat([shaped.expand(x.shape[0], -1, -1, -1), x], dim=1)
        missing = (-columns % self.config.unshuffle, -rows % self.config.unshuffle)
        if any(missing):
            both = nn.functional.pad(both, (0, missing[0], 0, missing[1]), mode="replicate")
        return both

    def propose(self, volume: CTVolume, allowed_in: AllowedIn, execution: Execution) -> Iterator[Proposal]:
        """As :meth:`.inference.SliceNetwork.propose`, without what is slow, where the configuration says so."""
        slower_mm = self.config.slower_mm
        for slab, allowed, change in super().propose(volume, allowed_in, execution):
            if slower_mm:
                parts = (torch.from_numpy(part.astype(np.float32)) for part in (change, allowed))
                change = without_slow(*parts, volume.spacing_kji[1:], slower_mm).numpy()
            yield slab, allowed, change

    def tiling(self) -> Tiling:
        """Tiles that give, within, what the whole slice would give."""
        fold = self.config.unshuffle
        channels = min(module.in_channels for module in self.trunk.modules() if isinstance(module, nn.Conv2d))
        folds = max(SHORT_INPUT, math.isqrt(SMALL_INPUT // channels) + 1)
        layer_bytes = 4 * self.config.trunk_filters / fold**2
        return Tiling(self.margin, layer_bytes, multiple=fold, least_edge=max(LEAST_EDGE, folds * fold))

    def ready(self, shape: tuple[int, int], seed: int, device: torch.device, dtype: torch.dtype, fused: bool) -> Run:
        """A copy as a function of slices and their tile, with the noise of ``seed`` shaped once for all slices."""
        network = for_inference(self, fused=fused).to(device)
        with torch.inference_mode():
            shaped = network.noise_net(draw_noise(shape, self.config.noise, seed).to(device)).to(dtype)
        network = network.to(dtype=dtype, memory_format=torch.channels_last if fused else torch.preserve_format)
        return lambda x, tile: network.of_tile(x.to(dtype), shaped[(..., *tile.wide)], tile).float()

    def of_tile(self, x: torch.Tensor, shaped: torch.Tensor, tile: Tile) -> torch.Tensor:
        """What the whole slice would give for the wanted part of a tile, in a quarter less time.

        Each convolution leaves out the border that no layer after it looks at; what it puts out is the same.
        """
        fold, inner = self.config.unshuffle, tile.inner
        narrowing = _Narrowing(
            self, [min(part.start, size - part.stop) for part, size in zip(inner, x.shape[-2:], strict=True)]
        )
        output = torch.tanh(narrowing.through(self.trunk, self._joined(x, shaped)))
        offsets = [fold * left_out for left_out in narrowing.left_out]
        return output[(..., *(slice(part.start - by, part.stop - by) for part, by in zip(inner, offsets, strict=True)))]

    @property
    def margin(self) -> int:
        """Rows and columns around a part of a slice that decide what comes out within that part.

        Holds for parts that begin and end at multiples of ``unshuffle``, or at the border of the slice.
        """
        kernels = [module.kernel_size[0] for module in self.trunk.modules() if isinstance(module, nn.Conv2d)]
        between = self.config.unshuffle if self.config.grid > 1 else 0
        return sum(kernel // 2 for kernel in kernels) * self.config.unshuffle + between


class _Narrowing:
    """A generator's trunk over a tile, each layer's output narrower where nothing after it looks at its border.

    :param spare: rows and columns of the slice at either side of what is wanted.
    """

    def __init__(self, generator: Generator, spare: Sequence[int]) -> None:
        fold = generator.config.unshuffle
        self._spare, self._to_come = [size // fold for size in spare], generator.margin // fold
        # Smaller inputs round differently.
        self._least = generator.tiling().least_edge // fold
        self.left_out = [0, 0]
        """Rows and columns at either side of the tile that the last output lacks, in the trunk's voxels."""

    def through(self, layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        """Layers, one after the other, over features (batch, channels, rows, columns)."""
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                x = self._convolve(layer, x)
            elif isinstance(layer, ResidualBlock):
                before = list(self.left_out)
                changed = self.through(layer.layers, x)
                inner = (
                    slice(now - then, size - (now - then))
                    for now, then, size in zip(self.left_out, before, x.shape[-2:], strict=True)
                )
                x = changed.add_(x[(..., *inner)])
            else:
                x = layer(x)
        return x

    def _convolve(self, layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        reach = layer.kernel_size[0] // 2
        self._to_come -= reach
        padding = [reach, reach]
        for axis, size in enumerate(x.shape[-2:]):
            if self._spare[axis] - self.left_out[axis] - reach >= self._to_come and size - 2 * reach >= self._least:
                self.left_out[axis] += reach
                padding[axis] = 0
        return nn.functional.conv2d(x, layer.weight, layer.bias, padding=padding)


def for_inference(generator: Generator, *, fused: bool = False) -> Generator:
    """A copy of a generator in evaluation mode that overwrites what it no longer needs.

    It answers bit for bit as the generator does, unless ``fused``: then each batch norm becomes a part of the
    convolution before it, which rounds differently (by some 1e-5 of the output's range).
    """
    network = copy.deepcopy(generator).eval().requires_grad_(False)
    for module in list(network.modules()):
        if isinstance(module, nn.ReLU | ResidualBlock):
            module.inplace = True
        if fused and isinstance(module, nn.Sequential):
            for place, (layer, after) in enumerate(itertools.pairwise(list(module))):
                if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                    module[place], module[place + 1] = fuse_conv_bn_eval(layer, after), nn.Identity()
    return network


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Architecture of the discriminator.

    :param base_filters: width; the public code has 1, the paper does not say.
    :param slope: of the LeakyReLU.
    :param first_batch_norm: batch norm after the first convolution, too.
    :param strided_layers: convolutions that halve the slice before the last one; with 7 there are the paper's eight in
        all, for 512x512. Each one less halves the least edge of a slice: 5 are for crops of 128x128.
    """

    base_filters: int = 1
    slope: float = 0.2
    first_batch_norm: bool = False
    strided_layers: int = 7

    @property
    def least_edge(self) -> int:
        """Fewest rows and columns that a slice must have."""
        return 4 << self.strided_layers


class Discriminator(nn.Module):
    """Eight 4x4 convolutions to the likelihood that a slice is an original (paper, section 3.1).

    Input (batch, 1, rows, columns) of at least 512 by 512 (see ``least_edge``), output (batch,) in (0, 1). The paper's
    text puts batch norm after each layer; like the public code, the first has none unless asked for, and the last gives
    the likelihood.
    """

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        filters = [config.base_filters * min(2**layer, 8) for layer in range(config.strided_layers)]
        layers: list[nn.Module] = []
        for index, (channels_in, channels_out) in enumerate(zip([1, *filters], filters, strict=False)):
            layers.append(nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False))
            if index or config.first_batch_norm:
                layers.append(nn.BatchNorm2d(channels_out))
            layers.append(nn.LeakyReLU(config.slope))
        self.layers = nn.Sequential(*layers, nn.Conv2d(filters[-1], 1, 4, bias=False))

    def forward(self, x: torch.Tensor, *, logits: bool = False) -> torch.Tensor:
        """The likelihood of each slice, or its logit, on which a loss is stable."""
        score = self.layers(x).mean(dim=(1, 2, 3))
        return score if logits else torch.sigmoid(score)
