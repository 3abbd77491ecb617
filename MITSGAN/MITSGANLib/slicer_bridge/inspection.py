"""Whether a volume node looks like a CT scan in HU, quick enough to say so while the user selects it."""

from __future__ import annotations

from dataclasses import dataclass

import slicer

from ..budget.noise import scan_noise
from ..errors import InputError
from .volumes import ct_from_node


@dataclass(frozen=True)
class Inspection:
    """What the panel says about a volume.

    :param problem: why it cannot be used; empty when it looks like CT in HU.
    :param noise_sd_hu: None where there is too little soft tissue to measure it in.
    :param warnings: sentences about what a careful user should know.
    """

    problem: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    noise_sd_hu: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def is_ct(self) -> bool:
        """Whether nothing speaks against a CT."""
        return not self.problem


def inspect_node(node: slicer.vtkMRMLScalarVolumeNode) -> Inspection:
    """Judge the voxels and the grid of a volume node. Never raises for what the user may have loaded."""
    try:
        volume = ct_from_node(node)
    except InputError as error:
        return Inspection(problem=str(error))
    noise = scan_noise(volume.hu, volume.spacing_kji).sd_hu
    return Inspection(
        "", volume.shape, volume.spacing, noise, tuple(warning.text for warning in volume.provenance.warnings)
    )
