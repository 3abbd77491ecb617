"""What a network costs at least: floating-point operations and bytes, counted while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Cost:
    """Count the convolutions that ran: ``flop`` counts a multiplication and an addition as two.

    ``bytes`` are those of inputs, weights and outputs, each moved once, as if nothing stayed in a cache in between.
    """

    flop: int = 0
    bytes: int = 0

    def seconds(self, flop_per_s: float, bytes_per_s: float) -> tuple[float, float]:
        """The least time for the arithmetic, and for moving the bytes, at these rates."""
        return self.flop / flop_per_s, self.bytes / bytes_per_s


@contextmanager
def counted() -> Iterator[Cost]:
    """Count every convolution that runs within the block, in whatever network."""
    cost, lock = Cost(), threading.Lock()  # slices run side by side

    convolve = nn.functional.conv2d

    def count(values: torch.Tensor, weight: torch.Tensor, *others: object, **options: object) -> torch.Tensor:
        output = convolve(values, weight, *others, **options)
        with lock:
            cost.flop += 2 * output.numel() * weight[0].numel()
            cost.bytes += sum(t.numel() * t.element_size() for t in (values, weight, output))
        return output

    nn.functional.conv2d = count  # which nn.Conv2d calls, too
    try:
        yield cost
    finally:
        nn.functional.conv2d = convolve
