"""Display windows in HU: what a radiologist sees as black, white and in between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class Window:
    """A display window in HU.

    :raises InputError: when the width is not positive.
    """

    center: float
    width: float
    name: str

    def __post_init__(self) -> None:
        if not (np.isfinite(self.center) and np.isfinite(self.width) and self.width > 0):
            raise InputError(f"A window needs a center and a positive width in HU, not {self.center}/{self.width}.")

    @property
    def low(self) -> float:
        """The HU value shown black, and everything below it."""
        return self.center - self.width / 2

    @property
    def high(self) -> float:
        """The HU value shown white, and everything above it."""
        return self.center + self.width / 2

    def clipped(self, hu: np.ndarray) -> np.ndarray:
        """HU limited to the window, same shape, float64."""
        return np.clip(np.asarray(hu, dtype=np.float64), self.low, self.high)

    def scaled(self, hu: np.ndarray) -> np.ndarray:
        """0 (black) to 1 (white), same shape, float64."""
        return (self.clipped(hu) - self.low) / self.width

    def __str__(self) -> str:
        return f"{self.name} window {self.center:g}/{self.width:g} HU"


LUNG = Window(-600, 1500, "lung")

MEDIASTINUM = Window(40, 400, "mediastinum")

BONE = Window(400, 1800, "bone")
