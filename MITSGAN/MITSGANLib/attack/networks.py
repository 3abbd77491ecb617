"""CT-GAN's 3-D pix2pix networks in torch, of any width.

Both take and give (batch, channel, slice, row, column). Convolutions follow Keras' 'same' padding, because published
weights were trained with it: a 4x4x4 kernel pads 1 and 1 at stride 2 on an even size, 1 and 2 at stride 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

# Keras: epsilon 1e-3, and a running average that keeps 0.8 of its old value (torch counts the new share).
_BATCH_NORM = {"eps": 1e-3, "momentum": 0.2}


@dataclass(frozen=True)
class CTGANConfig:
    """CT-GAN's generator, and in-painters like it to measure whether a protection holds against other networks.

    :param base_filters: width; the published one has 100 (189.5 M parameters).
    :param dropout: on the way up, in training only.
    :param batch_norm: batch norm wherever CT-GAN has it.
    :param skips: CT-GAN's skip connections; without them, an encoder and a decoder.
    """

    base_filters: int = 100
    dropout: float = 0.5
    batch_norm: bool = True
    skips: bool = True


class _Down(nn.Module):
    """4x4x4 convolution with stride 2, LeakyReLU(0.2), optional batch norm."""

    def __init__(self, channels_in: int, channels_out: int, batch_norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm3d(channels_out, **_BATCH_NORM) if batch_norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.leaky_relu(self.conv(x), 0.2))


class _Same(nn.Module):
    """4x4x4 convolution with stride 1 and Keras' 'same' padding: one voxel before, two after."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (1, 2) * 3))


class _Up(nn.Module):
    """Up-sampling by 2, convolution, ReLU, dropout, optional batch norm, then a skip connection's channels behind."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.same = _Same(channels_in, channels_out)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm3d(channels_out, **_BATCH_NORM) if batch_norm else nn.Identity()

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        x = F.relu(self.same(F.interpolate(x, scale_factor=2, mode="nearest")))
        x = self.norm(self.dropout(x))
        return x if skip is None else torch.cat([x, skip], dim=1)


class CTGANGenerator(nn.Module):
    """The in-painter: equalized cube with its middle set to 0 in, completed cube in [-1, 1] out.

    Input and output (batch, 1, 32, 32, 32). Source: CT-GAN, section 5 and figure 8; public code's layer order.
    """

    def __init__(self, config: CTGANConfig | None = None) -> None:
        super().__init__()
        self.config = config or CTGANConfig()
        f, dropout, norm = self.config.base_filters, self.config.dropout, self.config.batch_norm
        wide = [f, 2 * f, 4 * f, 8 * f, 8 * f]
        self.down = nn.ModuleList(
            _Down(before, after, norm and index > 0)
            for index, (before, after) in enumerate(zip([1, *wide], wide, strict=False))
        )
        up, channels = [], wide[-1]
        for own in reversed(wide[:-1]):
            up.append(_Up(channels, own, dropout, norm))
            channels = 2 * own if self.config.skips else own
        self.up = nn.ModuleList(up)
        self.last = _Same(channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Complete masked cubes (batch, 1, 32, 32, 32) in network range; same shape."""
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = up(x, skip if self.config.skips else None)
        return torch.tanh(self.last(F.interpolate(x, scale_factor=2, mode="nearest")))


class CTGANDiscriminator(nn.Module):
    """PatchGAN over a cube and its masked version: two (batch, 1, 32, 32, 32) in, (batch, 1, 2, 2, 2) scores out.

    Trained with least squares; 0 means real and 1 means forged, as in the public code.
    """

    def __init__(self, base_filters: int = 100) -> None:
        super().__init__()
        d = base_filters
        self.down = nn.Sequential(
            _Down(2, d, batch_norm=False), _Down(d, 2 * d), _Down(2 * d, 4 * d), _Down(4 * d, 8 * d)
        )
        self.last = _Same(8 * d, 1)

    def forward(self, cube: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Judge cubes beside what the generator saw of them, both (batch, 1, 32, 32, 32): (batch, 1, 2, 2, 2)."""
        return self.last(self.down(torch.cat([cube, masked], dim=1)))
