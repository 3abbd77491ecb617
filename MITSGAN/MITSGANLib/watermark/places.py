"""What is left of the watermark at one place that somebody asks about.

A whole scan has a million places, so that what :func:`~.checking.check_watermark` lists by itself must be far beyond
chance. Of one place that is asked about, less is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Of 200 untouched places in each of LIDC-IDRI-0002 and -0028, 5 % fell short by more than 1.1 and 1.4, 1 % by 1.4 and
# 1.8; after 5:1 JPEG 2000, 5 % by 5.9 and 5.2. Real nodules scatter more than lung: a limit that follows what untouched
# lung falls short by, 1.1 on the thin slices of RIDER-Pilot-0117, found more forgeries and called 20 % of the planted
# nodules there forged (docs/research/protector-log.md).
PLACE_THRESHOLD_SD, DEGRADED_THRESHOLD_SD = 2.0, 6.0


@dataclass(frozen=True)
class Place:
    """What is left of the watermark around one voxel.

    :param window_mm: edge of the window that shows a loss most.
    :param seen: how much the window holds, in standard deviations.
    :param expected: what it would hold if it were like its surroundings.
    :param threshold: what it may fall short by at an untouched place, in standard deviations.
    """

    kji: tuple[int, int, int]
    window_mm: float
    seen: float
    expected: float
    threshold: float = PLACE_THRESHOLD_SD

    @property
    def missing_sd(self) -> float:
        """By how many standard deviations it falls short."""
        return self.expected - self.seen

    @property
    def is_missing(self) -> bool:
        """Whether it falls short by more than it may at an untouched place."""
        return self.can_tell and self.missing_sd > self.threshold

    @property
    def can_tell(self) -> bool:
        """Whether so much of it is expected that its absence would be noticed."""
        return self.expected > self.threshold

    @property
    def words(self) -> str:
        """One sentence for people."""
        figures = f"{self.seen:.1f} of {self.expected:.1f} standard deviations are left in {self.window_mm:.0f} mm"
        if self.is_missing:
            return f"watermark MISSING: {figures}."
        return f"watermark there: {figures}." if self.can_tell else f"cannot be told: {figures}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "kji": self.kji,
            "window_mm": self.window_mm,
            "seen_sd": round(self.seen, 2),
            "expected_sd": round(self.expected, 2),
            "threshold_sd": round(self.threshold, 2),
            "missing": self.is_missing,
            "can_tell": self.can_tell,
        }
