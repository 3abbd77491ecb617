"""In-painters of other families than CT-GAN's, for the same cube: a U-Net with attention, and a flow.

Each takes the equalized cube with its middle set to 0 and gives the completed cube, (batch, 1, 32, 32, 32) both. What
lies around the middle comes back as it went in: unlike CT-GAN, neither paints the shell anew. Both work at half the
resolution, where a voxel holds the eight of the cube, so that a CPU trains them. Numbers of layers and channels are
ours; no published network is copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..scan.cubes import CUBE_MM
from ..scan.regions import MASK

_HEADS = 4
_WAVES = 8  # of each phase, that a time is written in
_FINE = 8  # channels of the full resolution


@dataclass(frozen=True)
class UNetConfig:
    """A U-Net with group norm, SiLU, sums instead of concatenated skips, and attention over 4 mm cells.

    :param filters: channels at 2 mm; twice as many at 4 mm, three times as many at 8 mm. A multiple of ``groups``.
    :param groups: of each group norm.
    :param attention: over all 512 cells of 4 mm.
    """

    filters: int = 24
    groups: int = 4
    attention: bool = True


@dataclass(frozen=True)
class FlowConfig:
    """A flow from noise to the middle of the cube, and the U-Net that leads it.

    :param filters, groups: as of :class:`UNetConfig`; without attention, with dilated convolutions at 8 mm.
    :param steps: of Euler from noise to cube.
    :param noise: standard deviation of the noise, in input units.
    """

    filters: int = 24
    groups: int = 4
    steps: int = 4
    noise: float = 0.5


class UNetInpainter(nn.Module):
    """Completes a cube in one pass."""

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or UNetConfig()
        c = self.config
        self.network = _UNet(2, c.filters, c.groups, attention=c.attention, timed=False)
        self.register_buffer("middle", _middle(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Complete masked cubes (batch, 1, 32, 32, 32) in network range; what was not masked stays."""
        seen = torch.cat([x, self.middle.expand_as(x)], dim=1)
        return torch.where(self.middle > 0, self.network(seen), x)


class FlowInpainter(nn.Module):
    """Completes a cube by a flow (rectified, Liu et al., ICLR 2023) whose network names the end of each way.

    :ivar start: the noise that it starts from where none is given, (1, 1, 32, 32, 32) of deviation 1; kept with the
        weights, so that the same cube always becomes the same.
    """

    def __init__(self, config: FlowConfig | None = None) -> None:
        super().__init__()
        self.config = config or FlowConfig()
        c = self.config
        self.network = _UNet(3, c.filters, c.groups, attention=False, timed=True)
        self.register_buffer("start", torch.randn(1, 1, CUBE_MM, CUBE_MM, CUBE_MM))
        self.register_buffer("middle", _middle(), persistent=False)

    def forward(
        self, x: torch.Tensor, state: torch.Tensor | None = None, time: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The completed cube; or, as training asks, what :meth:`end` expects at a state and time."""
        return self.complete(x) if state is None else self.end(x, state, time)

    def complete(self, x: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
        """Walk from noise to the completed cubes (batch, 1, 32, 32, 32).

        :param start: other noise of deviation 1, shaped as ``x`` or as one cube.
        """
        state = self.config.noise * (self.start if start is None else start).expand_as(x)
        steps = self.config.steps
        for step in range(steps):
            end = self.end(x, state, x.new_full((len(x),), step / steps))
            # The way left is walked in equal parts; the last step arrives.
            state = state + (end - state) / (steps - step)
        return torch.where(self.middle > 0, state, x)

    def end(self, x: torch.Tensor, state: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The cube that the network expects at time 1.

        :param x: the cube with its middle set to 0.
        :param state: between noise (time 0) and cube (time 1), as ``x``; only its middle is looked at.
        :param time: (batch,).
        """
        return self.network(torch.cat([x, state * self.middle, self.middle.expand_as(x)], dim=1), time)


class _UNet(nn.Module):
    """(batch, channels, 32, 32, 32) to (batch, 1, 32, 32, 32), over 16, 8 and 4 cells an axis."""

    def __init__(self, channels: int, filters: int, groups: int, *, attention: bool, timed: bool) -> None:
        super().__init__()
        f, wide = filters, 3 * filters
        features = 4 * filters if timed else 0
        self.time = None
        if timed:
            self.time = nn.Sequential(nn.Linear(2 * _WAVES, features), nn.SiLU(), nn.Linear(features, features))

        def block(width: int, dilation: int = 1) -> _Block:
            return _Block(width, groups, dilation, features)

        self.take_in = nn.Conv3d(8 * channels, f, 3, padding=1)
        self.first, self.down_1 = block(f), nn.Conv3d(f, 2 * f, 3, stride=2, padding=1)
        self.second, self.down_2 = block(2 * f), nn.Conv3d(2 * f, wide, 3, stride=2, padding=1)
        self.deep = nn.ModuleList([block(wide), block(wide, 1 if attention else 2)])
        self.up_2, self.third = nn.Conv3d(wide, 2 * f, 3, padding=1), block(2 * f)
        self.attention = _Attention(2 * f, groups) if attention else None
        self.up_1, self.fourth = nn.Conv3d(2 * f, f, 3, padding=1), block(f)
        self.give_out = nn.Sequential(nn.GroupNorm(groups, f), nn.SiLU(), nn.Conv3d(f, _FINE, 3, padding=1))
        self.fine = nn.Sequential(
            nn.Conv3d(_FINE + channels, _FINE, 3, padding=1), nn.SiLU(), nn.Conv3d(_FINE, 1, 3, padding=1)
        )

    def forward(self, x: torch.Tensor, time: torch.Tensor | None = None) -> torch.Tensor:
        told = None if self.time is None else self.time(_waves(time))
        near = self.first(self.take_in(_folded(x)), told)
        middle = self.second(self.down_1(near), told)
        far = self.down_2(middle)
        for block in self.deep:
            far = block(far, told)
        middle = self.third(middle + self.up_2(_twice(far)), told)
        if self.attention is not None:
            middle = self.attention(middle)
        near = self.fourth(near + self.up_1(_twice(middle)), told)
        # Smoothly up: channels unfolded into voxels left a checkerboard that a forensic judge sees.
        fine = F.interpolate(self.give_out(near), scale_factor=2, mode="trilinear", align_corners=False)
        return self.fine(torch.cat([fine, x], dim=1))


class _Block(nn.Module):
    """Two convolutions behind group norm and SiLU, and the way around them; a time scales and shifts in between."""

    def __init__(self, channels: int, groups: int, dilation: int, features: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
        self.conv_1 = nn.Conv3d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.conv_2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.tell = nn.Linear(features, 2 * channels) if features else None

    def forward(self, x: torch.Tensor, told: torch.Tensor | None) -> torch.Tensor:
        y = self.norm_2(self.conv_1(F.silu(self.norm_1(x))))
        if self.tell is not None:
            scale, shift = self.tell(told)[:, :, None, None, None].chunk(2, dim=1)
            y = y * (1 + scale) + shift
        return x + self.conv_2(F.silu(y))


class _Attention(nn.Module):
    """Attention of all cells to all, with learned places, added to what came in."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.places = nn.Parameter(torch.zeros(1, channels, 8, 8, 8))
        self.ask, self.answer = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cells = (self.norm(x) + self.places).flatten(2).transpose(1, 2)
        parts = self.ask(cells).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        told = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return x + self.answer(told).transpose(1, 2).unflatten(2, x.shape[2:])


def _middle() -> torch.Tensor:
    """1 in the middle that is painted, 0 around it, (1, 1, 32, 32, 32)."""
    middle = torch.zeros(1, 1, CUBE_MM, CUBE_MM, CUBE_MM)
    middle[..., MASK, MASK, MASK] = 1
    return middle


def _folded(x: torch.Tensor) -> torch.Tensor:
    """Eight voxels into the channels of one: (n, c, 2 a, 2 a, 2 a) to (n, 8 c, a, a, a)."""
    n, c, edge = x.shape[:3]
    x = x.reshape(n, c, edge // 2, 2, edge // 2, 2, edge // 2, 2)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, 8 * c, *(edge // 2,) * 3)


def _twice(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _waves(time: torch.Tensor) -> torch.Tensor:
    """A time from 0 to 1 (n,) as sines and cosines of rising frequency (n, 2 x waves)."""
    phases = time[:, None] * math.pi * 2 ** torch.arange(_WAVES, device=time.device) / 2
    return torch.cat([phases.sin(), phases.cos()], dim=1)
