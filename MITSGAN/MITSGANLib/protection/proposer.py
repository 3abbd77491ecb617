"""What proposes the change that protects a scan: a network, a search on the scan itself, or nothing.

Whatever is proposed, :func:`~MITSGANLib.protection.protector.protect` bounds it, rounds it, and puts the watermark on
top. Another way to protect is another :class:`Proposer`, which :mod:`.presets` loads by the class that a card names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..runtime.progress import Progress
from ..runtime.threads import slabs
from ..scan.volume import CTVolume

AllowedIn = Callable[[slice], np.ndarray]
"""Gives the largest change in HU at each voxel of a slab of slices, int16 (slices, rows, columns)."""

BLOCKER_CLASS = "DecisionMark"
"""Class of a protector without a network: it searches its change with the judges in its file."""

BLOCKER_KIND = "mark against diagnosis networks"
"""Kind of a protector that misleads diagnosis networks on purpose; whoever uses one has to be told."""

Proposal = tuple[slice, np.ndarray, np.ndarray]
"""A slab of slices, what is allowed in it (int16 HU), and the change that is proposed (HU, same shape)."""


@dataclass(frozen=True)
class Execution:
    """How a proposer runs.

    :param seed: of what it draws.
    :param strength_hu: the largest change that is allowed anywhere.
    :param device: "auto", "cpu", "cuda" or "cuda:N".
    :param batch_size: slices at a time; None finds it.
    :param precision: "float32", "half" (GPU), or "auto".
    :param progress: called with (finished slices, all slices) before the first slab is there; may raise
        ``CancelledError``.
    """

    seed: int = 0
    strength_hu: float = math.inf
    device: str = "auto"
    batch_size: int | None = None
    precision: str = "auto"
    progress: Progress | None = None


class Proposer(Protocol):
    """Proposes how each voxel of a scan may change."""

    def propose(self, volume: CTVolume, allowed_in: AllowedIn, execution: Execution) -> Iterator[Proposal]:
        """The proposals for all slices of a scan, slab after slab in their order.

        :raises ModelError: when no usable change comes out.
        :raises TargetError: when the scan has nothing that the search looks at.
        """

    def seconds(self, volume: CTVolume, device: str) -> float | None:
        """A rough estimate for the whole scan; None where all slices take equally long, so that a few tell.

        :raises TargetError: as for :meth:`propose`.
        """


def in_slabs(
    volume: CTVolume,
    allowed_in: AllowedIn,
    execution: Execution,
    search: Callable[..., np.ndarray],
) -> Iterator[Proposal]:
    """The proposals of a search that looks at all slices at once.

    :param search: gives the change in HU from what is ``allowed``, both of the scan's shape, and tells ``progress``
        (steps done, all steps); as many slices count as finished as its share that is done.
    """
    slices, report = volume.shape[0], execution.progress
    allowed = np.concatenate([allowed_in(slab) for slab in slabs(slices)])
    told = report and (lambda done, steps: report(done * slices // steps, slices))
    change = search(allowed=allowed, progress=told)
    for slab in slabs(slices):
        yield slab, allowed[slab], change[slab]


@dataclass(frozen=True)
class Nothing:
    """Proposes no change: what is left is the watermark alone."""

    def propose(self, volume: CTVolume, _allowed_in: AllowedIn, _execution: Execution) -> Iterator[Proposal]:
        """Zeros for every slab; see :meth:`Proposer.propose`."""
        for slab in slabs(volume.shape[0]):
            nothing = np.zeros(volume.hu[slab].shape, np.int16)
            yield slab, nothing, nothing

    def seconds(self, _volume: CTVolume, _device: str) -> float | None:
        """None: slices take equally long."""
        return None
