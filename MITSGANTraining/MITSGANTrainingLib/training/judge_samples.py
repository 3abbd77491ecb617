"""What the samples of all judges have in common: drawn with a seed first, made from the drawing in a second step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..data.dataset import PreparedScan

CLEAR_MM = 6  # a nodule that keeps so far from the middle is beside it


@dataclass(frozen=True, eq=False)
class Group:
    """Views of one kind that are not trained on.

    :param views: (n, slices, rows, columns) int16 HU.
    :param patients: (n,) whom each came from.
    """

    name: str
    yes: bool
    views: np.ndarray
    patients: np.ndarray


class Source(Protocol):
    """Where a judge's samples come from."""

    def __len__(self) -> int:
        """Samples of one pass."""

    def marks(self) -> Iterator[np.ndarray]:
        """What tells these samples from others, for :func:`~.inputs.fingerprint`."""

    def described(self) -> str:
        """What they are, for the model card."""

    def draw(self, count: int, rng: np.random.Generator) -> list[Any]:
        """Drawings, half of them with the answer yes."""

    def views(self, drawn: Sequence[Any]) -> torch.Tensor:
        """Drawings as the judge sees them, float32 (n, slices, rows, columns) in HU."""

    def groups(self) -> list[Group]:
        """All samples as they are, by kind, for validation."""


def clear_structures(scan: PreparedScan) -> np.ndarray:
    """Nodule-like structures (n, 3) whose middle 20 mm no finding reaches, best first."""
    clear = [
        kji
        for kji in scan.nodule_like_positions
        if all(
            np.linalg.norm((np.array(finding.kji) - kji) * scan.spacing_kji) > finding.reach_mm + 2 * CLEAR_MM
            for finding in scan.findings
            if finding.kind in ("nodule", "non-nodule")
        )
    ]
    return np.array(clear, dtype=np.int64).reshape(-1, 3)
