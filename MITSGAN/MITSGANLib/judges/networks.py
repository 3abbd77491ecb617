"""Small classifiers that look at a place of a scan: three architectures for cubes, and one for slices.

All take voxels in HU as they come, (places, slices, rows, columns), scale them themselves, and give one logit per
place, so that a gradient reaches the HU. The numbers of layers and channels are ours; no published network is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

_GRID = 4  # cells per axis that the last features of a cube are averaged into; where something lies matters


@dataclass(frozen=True)
class CubeConfig:
    """What all networks for cubes have.

    :param filters: channels of the first layer.
    :param window_hu: what is told apart; values beyond are clipped.
    :param smooth_voxels: sigma of the Gaussian that comes first, against noise; 0 for none.
    """

    filters: int = 16
    dropout: float = 0.3
    window_hu: tuple[float, float] = (-1000.0, 200.0)
    smooth_voxels: float = 0.8


class _CubeNetwork(nn.Module):
    """Layers over a cube that is smoothed and clipped, averaged into a coarse grid, and a head over that."""

    def __init__(self, config: CubeConfig, layers: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.config = config
        intake = _Intake3d(config.window_hu, config.smooth_voxels)
        self.features = nn.Sequential(intake, *layers, nn.AdaptiveAvgPool3d(_GRID))
        self.head = head

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        """Cubes (n, edge, edge, edge) in HU to logits (n,)."""
        return self.head(self.features(hu)).squeeze(1)


@dataclass(frozen=True)
class PlainConfig(CubeConfig):
    """A plain 3-D CNN."""


class PlainNetwork(_CubeNetwork):
    """Four 3x3x3 convolutions, two of them with stride, then two dense layers over a coarse grid."""

    def __init__(self, config: PlainConfig) -> None:
        f = config.filters
        layers = [
            _convolution(3, 1, f, stride=2),
            _convolution(3, f, 2 * f, stride=2),
            _convolution(3, 2 * f, 2 * f),
            _convolution(3, 2 * f, 2 * f),
        ]
        super().__init__(config, layers, _dense(2 * f * _GRID**3, 32, config.dropout))


@dataclass(frozen=True)
class ResidualConfig(CubeConfig):
    """A small residual 3-D network.

    :param blocks: residual blocks at each of the two resolutions.
    """

    blocks: int = 2


class ResidualNetwork(_CubeNetwork):
    """Residual blocks at a half and a quarter of the resolution; learned weights say where in the cube to look."""

    def __init__(self, config: ResidualConfig) -> None:
        f = config.filters
        layers = [
            _convolution(3, 1, f, stride=2),
            *(_Residual3d(f) for _ in range(config.blocks)),
            _convolution(3, f, 2 * f, stride=2),
            *(_Residual3d(2 * f) for _ in range(config.blocks)),
        ]
        # One weight per channel and cell, without a hidden layer between: another kind of head than the plain one's.
        head = nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(2 * f * _GRID**3, 1))
        super().__init__(config, layers, head)


@dataclass(frozen=True)
class PlanesConfig(CubeConfig):
    """A 2.5-D network.

    :param offsets: planes through the cube, as voxels from its middle, along each of the three axes.
    """

    offsets: tuple[int, ...] = (-6, -3, 0, 3, 6)


class PlanesNetwork(nn.Module):
    """Planes across each axis as channels of one 2-D CNN that the axes share; a dense layer joins their views."""

    def __init__(self, config: PlanesConfig) -> None:
        super().__init__()
        self.config = config
        f = config.filters
        self.intake = _Intake3d(config.window_hu, config.smooth_voxels)
        self.features = nn.Sequential(
            _convolution(2, len(config.offsets), f),
            _convolution(2, f, 2 * f, stride=2),
            _convolution(2, 2 * f, 2 * f, stride=2),
            _convolution(2, 2 * f, 4 * f),
            nn.AdaptiveAvgPool2d(_GRID),
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(4 * f * _GRID**2, 32),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(3 * 32, 1)

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        """Cubes (n, edge, edge, edge) in HU to logits (n,)."""
        cubes = self.intake(hu).squeeze(1)
        seen = []
        for axis in (1, 2, 3):
            planes = torch.tensor(self.config.offsets, device=cubes.device) + cubes.shape[axis] // 2
            seen.append(self.features(cubes.index_select(axis, planes).movedim(axis, 1)))
        return self.head(torch.cat(seen, dim=1)).squeeze(1)


@dataclass(frozen=True)
class SquaresConfig:
    """A network for slices at the scan's own resolution, where the traces of resampling and copied noise are.

    :param window_hu: anatomy as seen; values beyond are clipped.
    :param border: voxels along the square's border whose detail is the unit of all detail: what is forged is in the
        middle, and how noisy a scan is must not matter.
    """

    filters: int = 12
    dropout: float = 0.3
    window_hu: tuple[float, float] = (-1050.0, 250.0)
    border: int = 12


class SquaresNetwork(nn.Module):
    """One 2-D CNN over each slice, whose features are averaged over slices: what is forged is so in all of them."""

    def __init__(self, config: SquaresConfig) -> None:
        super().__init__()
        self.config = config
        f = config.filters
        self.features = nn.Sequential(
            _convolution(2, 2, f, stride=2, kernel=5),
            _convolution(2, f, 2 * f, stride=2),
            _convolution(2, 2 * f, 2 * f),
            nn.MaxPool2d(2),
            _convolution(2, 2 * f, 2 * f),
            nn.AdaptiveAvgPool2d(2 * _GRID),
        )
        self.head = _dense(2 * f * (2 * _GRID) ** 2, 24, config.dropout)
        self.register_buffer("blur", _gaussian(1.0), persistent=False)

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        """Squares (n, slices, rows, columns) in HU to logits (n,)."""
        slices = hu.flatten(0, 1).unsqueeze(1)
        features = self.features(torch.cat([_seen(slices, self.config.window_hu), self._detail(hu)], dim=1))
        return self.head(features.unflatten(0, hu.shape[:2]).mean(dim=1)).squeeze(1)

    def _detail(self, hu: torch.Tensor) -> torch.Tensor:
        """What smoothing takes off, (n * slices, 1, rows, columns), squashed, so that edges do not drown noise."""
        slices = hu.flatten(0, 1).unsqueeze(1)
        smooth = F.conv2d(_padded(slices, self.blur, 3), self.blur.view(1, 1, 1, -1))
        smooth = F.conv2d(_padded(smooth, self.blur, 2), self.blur.view(1, 1, -1, 1))
        detail = slices - smooth
        n = self.config.border
        frame = torch.ones(detail.shape[-2:], dtype=torch.bool, device=hu.device)
        frame[n:-n, n:-n] = False
        unit = detail.abs()[..., frame].unflatten(0, hu.shape[:2]).flatten(1).median(dim=1).values.clamp_min(1.0)
        return torch.tanh(detail / (4 * unit.repeat_interleave(hu.shape[1]).view(-1, 1, 1, 1)))


class _Intake3d(nn.Module):
    """HU (n, slices, rows, columns), smoothed and clipped, to one channel from -1 to 1 (n, 1, ...)."""

    def __init__(self, window_hu: tuple[float, float], smooth_voxels: float) -> None:
        super().__init__()
        self.window_hu = window_hu
        self.register_buffer("blur", _gaussian(smooth_voxels), persistent=False)

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        x = _seen(hu.unsqueeze(1), self.window_hu)
        for axis in (2, 3, 4):
            shape = [1] * 5
            shape[axis] = len(self.blur)
            x = F.conv3d(_padded(x, self.blur, axis), self.blur.view(shape))
        return x


class _Residual3d(nn.Module):
    """Two convolutions and the way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(3, channels, channels)
        self.second = nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.second(self.first(x)))


def _convolution(axes: int, channels_in: int, channels_out: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch norm and ReLU, along 2 or 3 axes."""
    convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv3d, nn.BatchNorm3d)
    return nn.Sequential(
        convolution(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False),
        norm(channels_out),
        nn.ReLU(inplace=True),
    )


def _dense(features: int, hidden: int, dropout: float) -> nn.Sequential:
    """Two dense layers, from features to one logit."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(features, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, 1),
    )


def _seen(hu: torch.Tensor, window_hu: tuple[float, float]) -> torch.Tensor:
    """HU clipped to the window, from -1 to 1."""
    low, high = window_hu
    return (hu.clamp(low, high) - low) * (2 / (high - low)) - 1


def _gaussian(sigma: float) -> torch.Tensor:
    """Weights of a Gaussian along one axis, out to 2.5 sigma, sum 1."""
    reach = math.ceil(2.5 * sigma)
    # On the device "meta", where a network is only looked at, this would import a compiler, which takes seconds.
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32, device="cpu")
    weights = torch.exp(-(steps**2) / (2 * max(sigma, 1e-6) ** 2))
    return weights / weights.sum()


def _padded(x: torch.Tensor, kernel: torch.Tensor, axis: int) -> torch.Tensor:
    """``x`` with its border repeated along one axis, for a kernel that keeps the size."""
    reach = len(kernel) // 2
    padding = [0, 0] * (x.ndim - 2)
    place = 2 * (x.ndim - 1 - axis)
    padding[place] = padding[place + 1] = reach
    return F.pad(x, padding, mode="replicate")


NETWORKS: dict[str, tuple[type[nn.Module], type]] = {
    "PlainNetwork": (PlainNetwork, PlainConfig),
    "ResidualNetwork": (ResidualNetwork, ResidualConfig),
    "PlanesNetwork": (PlanesNetwork, PlanesConfig),
    "SquaresNetwork": (SquaresNetwork, SquaresConfig),
}
"""Each with its configuration, by the name that cards give."""
