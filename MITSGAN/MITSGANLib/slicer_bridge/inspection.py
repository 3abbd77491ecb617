"""What a volume is, as far as a look at its voxels tells in a second or two in the background."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..budget.noise import scan_noise
from ..errors import InputError
from ..scan.volume import CTVolume
from ..watermark.embedding import versions
from ..watermark.sums import FOUND_SD, Reading, Sums
from .volumes import require_ct

# Of real scans, eight slices at 0.7 mm hold 150 standard deviations of the watermark; six are enough to find it.
_SLICES_TO_READ = 8


@dataclass(frozen=True)
class Inspection:
    """What the panel says about a volume."""

    problem: str = ""  # why it cannot be used; empty when it looks like CT in HU
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise_sd_hu: float | None = None  # None where there is too little soft tissue to measure it in
    warnings: tuple[str, ...] = ()  # sentences about what a careful user should know


def inspect_scan(scan: CTVolume) -> Inspection:
    """Judge the voxels and the grid of a volume. Never raises for what the user may have loaded."""
    try:
        volume = require_ct(scan)
    except InputError as error:
        return Inspection(problem=str(error))
    warnings = tuple(warning.text for warning in volume.provenance.warnings)
    return Inspection("", volume.shape, volume.spacing, scan_noise(volume.hu, volume.spacing_kji).sd_hu, warnings)


def carries_open_watermark(scan: CTVolume) -> bool:
    """Whether the slices in a scan's middle carry the open watermark, as it was put in: no examination.

    :raises DependencyError: the package cryptography cannot be imported.
    """
    first = max(0, (scan.shape[0] - _SLICES_TO_READ) // 2)
    middle = dataclasses.replace(
        scan, hu=scan.hu[first : first + _SLICES_TO_READ].copy(), origin=tuple(scan.voxel_to_lps((first, 0, 0)))
    )
    return any(Sums.of(Reading.of(middle, one.key, one.budget)).sd >= FOUND_SD for one in versions()[:2])
