"""TAFIM (Aneja, Markhasin, Nießner, ECCV 2022) for slices of CT, the rival that MITS-GAN's paper compares with.

One learned perturbation is the same for all images; a U-Net looks at it and at one image and gives that image's own
perturbation, which is added to the image and bounded. Built from the description in the papers, not from TAFIM's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from .generator import convolution
from .inference import SliceNetwork, Tiling


@dataclass(frozen=True)
class TAFIMConfig:
    """Architecture of the model.

    :param base_filters: width of the U-Net's first level; each deeper level has twice as many.
    :param levels: how often the U-Net halves the slice.
    :param tile: edge in voxels of the global perturbation. Larger slices repeat it, smaller ones see its first corner;
        512, the usual matrix of CT, is TAFIM's own case of one perturbation as large as the image.
    :param hu_window: HU that map to -1 and 1 on the way in; values beyond are clipped.
    """

    base_filters: int = 16
    levels: int = 4
    tile: int = 512
    hu_window: tuple[float, float] = (-1024.0, 1024.0)

    # As a generator's: the output is a share of the allowed change, which bounds what TAFIM adds in HU.
    output: ClassVar[str] = "residual"


class _Level(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(*convolution(channels_in, channels_out), *convolution(channels_out, channels_out))


class UNet(nn.Module):
    """A U-Net (batch, channels, rows, columns) -> (batch, 1, rows, columns) for edges that ``2**levels`` divides."""

    def __init__(self, channels_in: int, base_filters: int, levels: int) -> None:
        super().__init__()
        filters = [base_filters * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(_Level(a, b) for a, b in zip([channels_in, *filters], filters, strict=False))
        self.widen = nn.ModuleList(
            nn.ConvTranspose2d(filters[level + 1], filters[level], 2, stride=2) for level in reversed(range(levels))
        )
        self.up = nn.ModuleList(_Level(2 * filters[level], filters[level]) for level in reversed(range(levels)))
        self.last = nn.Conv2d(base_filters, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One channel (batch, 1, rows, columns) from ``x`` (batch, channels, rows, columns)."""
        skips = []
        for depth, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2) if depth else x)
            skips.append(x)
        for widen, level, skip in zip(self.widen, self.up, reversed(skips[:-1]), strict=True):
            x = level(torch.cat([widen(x), skip], dim=1))
        return self.last(x)


class TAFIM(SliceNetwork, nn.Module):
    """The global perturbation, learned with the rest, and the U-Net that fits it to each slice."""

    def __init__(self, config: TAFIMConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TAFIMConfig()
        self.perturbation = nn.Parameter(torch.randn(1, 1, config.tile, config.tile))
        self.unet = UNet(2, config.base_filters, config.levels)

    def forward(self, x: torch.Tensor, corners: Sequence[tuple[int, int]] | None = None) -> torch.Tensor:
        """Slices (batch, 1, rows, columns) in [-1, 1] to the share in [-1, 1] of the allowed change, same shape.

        :param corners: (row, column) in the whole slice of each slice's first voxel, so that a crop meets the part of
            the global perturbation that it will meet in its slice; where None, these are whole slices.
        """
        rows, columns = x.shape[-2:]
        parts = [self._part(corner, rows, columns) for corner in corners or ((0, 0),)]
        both = torch.cat([x, torch.cat(parts).expand(x.shape[0], -1, -1, -1)], dim=1)
        step = 2**self.config.levels
        missing = (-columns % step, -rows % step)
        if any(missing):
            both = F.pad(both, (0, missing[0], 0, missing[1]), mode="replicate")
        return torch.tanh(self.unet(both))[..., :rows, :columns]

    def tiling(self) -> Tiling:
        """Whole slices alone: the U-Net looks at nearly all of one."""
        return Tiling(None, 4 * self.config.base_filters)

    def _part(self, corner: tuple[int, int], rows: int, columns: int) -> torch.Tensor:
        """The global perturbation (1, 1, rows, columns), repeated as far as needed, from ``corner`` on."""
        tile, device = self.config.tile, self.perturbation.device
        j, i = (
            torch.arange(first, first + size, device=device).remainder(tile)
            for first, size in zip(corner, (rows, columns), strict=True)
        )
        return self.perturbation[..., j[:, None], i]
