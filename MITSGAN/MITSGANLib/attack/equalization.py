"""CT-GAN's histogram look-up table: HU to the generator's input range and back.

The table is the cumulative histogram of the training set, so the input range is spent where lungs have their voxels:
10 HU move the input by about 4 % of its range in lung parenchyma and by 0.03 % in bone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError, ModelError

BIN_COUNT = 10_000
# A table made from whole HU is a staircase: of three bins two are flat. With its own slope one in seven of the voxels
# that the attacker sees got a gradient; the slope over a few HU leads all of them.
_SLOPE_HALF_WIDTH_HU = 2.0
_STEEPEST_HU = 20_000.0  # HU per unit of input that the way back may have, which bone comes near to


@dataclass(frozen=True, eq=False)
class Equalization:
    """A look-up table and its normalization.

    :param bins: HU of the table's nodes, float64 (n,), increasing.
    :param cdf: cumulative count at each node, float64 (n,), not decreasing.
    :param mean: mean of the equalized training set.
    :param minimum: smallest equalized training value.
    :param maximum: largest equalized training value.
    :raises ModelError: when the arrays do not form a table.
    """

    bins: np.ndarray
    cdf: np.ndarray
    mean: float
    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        bins, cdf = (np.asarray(values, dtype=np.float64) for values in (self.bins, self.cdf))
        scalars = (self.mean, self.minimum, self.maximum)
        if bins.ndim != 1 or bins.shape != cdf.shape or bins.size < 2:
            raise ModelError(
                "The attacker's equalization table must be two 1-D arrays of equal length; get the file anew."
            )
        if not (np.isfinite(bins).all() and np.isfinite(cdf).all() and np.isfinite(scalars).all()):
            raise ModelError("The attacker's equalization table holds NaN or infinite values; get the file anew.")
        if (np.diff(bins) <= 0).any() or (np.diff(cdf) < 0).any() or self.maximum <= self.minimum:
            raise ModelError("The attacker's equalization table is not increasing; get the file anew.")
        object.__setattr__(self, "bins", bins)
        object.__setattr__(self, "cdf", cdf)

    @classmethod
    def from_cubes(cls, cubes_hu: np.ndarray) -> Equalization:
        """The table of a training set, as CT-GAN builds it: a cumulative histogram per cube over 10,000 equal bins.

        From counts of equal values: with float64 copies CT-GAN's 58,089 cubes would take 30 GB.

        :param cubes_hu: (cubes, ...) int16 HU, any shape after the first axis.
        :raises InputError: when all voxels hold one value.
        """
        counts = np.zeros(2**16, dtype=np.int64)
        for cube in cubes_hu:
            counts += np.bincount(cube.ravel().astype(np.int32) + 2**15, minlength=2**16)
        values = np.flatnonzero(counts) - 2**15
        if len(values) < 2:
            raise InputError("All training cubes hold one single value; they are no CT. Prepare the data set again.")
        counts = counts[values + 2**15]
        histogram, edges = np.histogram(values, BIN_COUNT, weights=counts.astype(np.float64))
        centers = edges[:-1] + np.diff(edges) / 2
        cdf = np.cumsum(histogram / len(cubes_hu))
        equalized = np.interp(values, centers, cdf)
        mean = float(np.average(equalized, weights=counts))
        return cls(centers, cdf, mean, float(equalized.min()), float(equalized.max()))

    def to_network(self, hu: torch.Tensor) -> torch.Tensor:
        """HU (any shape) to the generator's input range, about [-0.5, 0.5]; float64, differentiable in ``hu``.

        The values are the table's, the gradient is that of the table smoothed over 4 HU.
        """
        normalized = (_interpolate(hu.detach(), self.bins, self.cdf) - self.mean) / (self.maximum - self.minimum)
        return _with_slope(normalized, hu, self._slope) if hu.requires_grad else normalized

    def to_hu(self, values: torch.Tensor) -> torch.Tensor:
        """Generator output (any shape, clipped to [-0.5, 0.5]) to HU; float64, differentiable in ``values``.

        The values are the table's, the gradient is that of the smoothed table reversed, of at most 20,000 HU per unit.
        """
        clipped = values.double().clamp(-0.5, 0.5)
        hu = _interpolate(clipped.detach() * (self.maximum - self.minimum) + self.mean, self.cdf, self.bins)
        if not values.requires_grad:
            return hu
        return _with_slope(hu, clipped, lambda _values: 1 / self._slope(hu).clamp_min(1 / _STEEPEST_HU))

    def _slope(self, hu: torch.Tensor) -> torch.Tensor:
        """Input per HU, over a few HU."""
        above, below = (
            _interpolate(hu + d, self.bins, self.cdf) for d in (_SLOPE_HALF_WIDTH_HU, -_SLOPE_HALF_WIDTH_HU)
        )
        return (above - below) / (2 * _SLOPE_HALF_WIDTH_HU * (self.maximum - self.minimum))


def _with_slope(result: torch.Tensor, x: torch.Tensor, slope: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``result`` with the gradient ``slope(x)`` in ``x``."""
    x = x.double()
    # Of the same value: the bracket is 0.
    return result + slope(x.detach()) * (x - x.detach())


def _interpolate(x: torch.Tensor, xp: np.ndarray, fp: np.ndarray) -> torch.Tensor:
    """``numpy.interp`` in torch: float64, piecewise linear, constant beyond the ends."""
    # float64 throughout: in the table's flat ends one part in 1e7 of the cumulative count is tens of HU.
    x = x.double()
    nodes = torch.from_numpy(xp).to(x.device)
    values = torch.from_numpy(fp).to(x.device)
    # A plateau at the table's end has no width; the last value is the answer there, as in numpy.
    slopes = values.diff() / nodes.diff().clamp_min(torch.finfo(torch.float64).tiny)
    inside = x.clamp(nodes[0], nodes[-1])
    left = _node_before(nodes, inside)
    result = values[left] + slopes[left] * (inside - nodes[left])
    return torch.where(x >= nodes[-1], values[-1], result)


def _node_before(nodes: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Where the last node at or below each ``x`` stands, which lies between the ends; never the last of all."""
    # A table's nodes mostly lie evenly: to divide takes a tenth of the time of a search, which is left for the rest.
    last = nodes.numel() - 2
    left = ((x - nodes[0]) * ((last + 1) / (nodes[-1] - nodes[0]))).long().clamp_(0, last)
    missed = (x < nodes[left]) | (x >= nodes[left + 1])
    left[missed] = (torch.searchsorted(nodes, x[missed], right=True) - 1).clamp_(0, last)
    return left
