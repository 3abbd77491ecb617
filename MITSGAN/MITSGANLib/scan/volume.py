"""``CTVolume``: one CT scan in Hounsfield units with its place in the patient, independent of any file format.

Axis order of arrays is (slice, row, column), also written (k, j, i). World coordinates are LPS in mm, as in DICOM and
ITK: x grows to the patient's left, y to posterior, z to superior. Slicer's RAS differs in the sign of x and y.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError

HU_MIN, HU_MAX = int(np.iinfo(np.int16).min), int(np.iinfo(np.int16).max)
# The range of 12-bit CT with an intercept of -1024. Values at its ends are saturated (or padding) and hold no signal.
LOWEST_HU, HIGHEST_HU = -1024, 3071

SIMULATED_ATTACK = "simulated-attack"
PROTECTION = "protection"


@dataclass(frozen=True)
class VolumeWarning:
    """A named observation about an input that does not stop the work, such as ``gantry-tilt``.

    ``name`` is stable and meant for programs; ``text`` says to a person what was seen and what it means.

    :param of_protecting: it matters only to whoever protects the scan.
    """

    name: str
    text: str
    of_protecting: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass(frozen=True)
class ProcessingStep:
    """One thing that was done to a volume: ``kind`` is :data:`PROTECTION`, :data:`SIMULATED_ATTACK` or another word.

    ``parameters`` holds what is needed to repeat it (model, SHA-256, strength, target); never a key or a patient name.
    """

    kind: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Provenance:
    """Where the voxels came from and what was done to them since.

    ``dicom_files`` lists the source files, one per slice in slice order (one file alone for Enhanced CT); the DICOM
    writer takes the original headers from them. ``dicom_problem`` says why it cannot, as the end of a sentence that
    begins with "it", or is None. ``padding_hu`` is the HU value of DICOM Pixel Padding, where declared.
    """

    source: str = ""
    format: str = "memory"
    series_instance_uid: str | None = None
    dicom_files: tuple[str, ...] = ()
    dicom_problem: str | None = None
    padding_hu: int | None = None
    warnings: tuple[VolumeWarning, ...] = ()
    steps: tuple[ProcessingStep, ...] = ()

    @property
    def is_simulated_attack(self) -> bool:
        """True when any step was a simulated attack. Such a volume is never written as DICOM."""
        return self.last(SIMULATED_ATTACK) is not None

    def last(self, kind: str) -> ProcessingStep | None:
        """The latest step of a kind, such as :data:`PROTECTION`; None where there is none."""
        return next((step for step in reversed(self.steps) if step.kind == kind), None)

    def with_step(self, step: ProcessingStep) -> Provenance:
        """The same provenance with one more step at its end."""
        return dataclasses.replace(self, steps=(*self.steps, step))


@dataclass(frozen=True, eq=False)
class CTVolume:
    """A CT scan in HU.

    :param hu: int16 array (slices, rows, columns) in HU; made read-only.
    :param spacing: mm between voxel centres along (column, row, slice) index, that is (i, j, k) as in ITK; all > 0.
    :param origin: LPS position in mm of the centre of voxel (k, j, i) = (0, 0, 0).
    :param direction: 3x3, column 0 / 1 / 2 is the LPS unit vector along growing column / row / slice index.
    :param provenance: where the voxels came from.
    :raises InputError: for arrays that are not 3-D int16 or geometry that is not finite, positive and invertible.
    """

    hu: np.ndarray
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: np.ndarray = field(default_factory=lambda: np.eye(3))
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        hu = np.asarray(self.hu)
        if hu.ndim != 3 or hu.dtype != np.int16 or 0 in hu.shape:
            raise InputError(
                f"A CT volume must be a non-empty 3-D int16 array in HU, not {hu.dtype} of shape {hu.shape}."
            )
        spacing = tuple(float(value) for value in self.spacing)
        origin = tuple(float(value) for value in self.origin)
        direction = np.array(self.direction, dtype=np.float64).reshape(3, 3)
        if len(spacing) != 3 or not np.all(np.isfinite(spacing)) or min(spacing) <= 0:
            raise InputError(f"Voxel spacing must be three positive numbers in mm, not {self.spacing}.")
        if len(origin) != 3 or not np.all(np.isfinite(origin)):
            raise InputError(f"The volume's origin must be three finite numbers in mm, not {self.origin}.")
        if not np.all(np.isfinite(direction)) or abs(abs(np.linalg.det(direction)) - 1) > 1e-2:
            raise InputError(
                "The volume's direction matrix is not a rotation or reflection; its geometry cannot be trusted."
            )
        view = hu.view()
        view.flags.writeable = False
        direction.flags.writeable = False
        for name, value in (("hu", view), ("spacing", spacing), ("origin", origin), ("direction", direction)):
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return self.hu.shape

    @property
    def spacing_kji(self) -> tuple[float, float, float]:
        """Spacing in mm in the order of the array's axes: (slice, row, column)."""
        return self.spacing[::-1]

    @property
    def voxel_to_lps_matrix(self) -> np.ndarray:
        """4x4 matrix from homogeneous (i, j, k) = (column, row, slice) index to LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.direction * np.asarray(self.spacing)
        matrix[:3, 3] = self.origin
        return matrix

    def voxel_to_lps(self, kji: Sequence[float]) -> np.ndarray:
        """LPS mm of the centre of voxel (slice, row, column); fractions are allowed."""
        k, j, i = (float(value) for value in kji)
        return (self.voxel_to_lps_matrix @ (i, j, k, 1.0))[:3]

    def lps_to_voxel(self, lps: Sequence[float]) -> np.ndarray:
        """Continuous (slice, row, column) index of an LPS point in mm; may lie outside the scan."""
        ijk = np.linalg.solve(self.voxel_to_lps_matrix, (*(float(value) for value in lps), 1.0))[:3]
        return ijk[::-1]

    def nearest_voxel(self, lps: Sequence[float]) -> tuple[int, int, int]:
        """(slice, row, column) of the voxel whose centre is nearest to an LPS point in mm; may lie outside the scan."""
        k, j, i = np.floor(self.lps_to_voxel(lps) + 0.5).astype(int)
        return int(k), int(j), int(i)

    def contains(self, kji: Sequence[int]) -> bool:
        """Whether (slice, row, column) is a voxel of this scan."""
        return all(0 <= index < size for index, size in zip(kji, self.shape, strict=True))

    def with_hu(self, hu: np.ndarray, step: ProcessingStep | None = None) -> CTVolume:
        """The same scan with other voxel values of the same shape, and ``step`` added to its provenance."""
        if hu.shape != self.shape:
            raise InputError(f"New voxels have shape {hu.shape}, the scan has {self.shape}.")
        provenance = self.provenance.with_step(step) if step else self.provenance
        return dataclasses.replace(self, hu=hu, provenance=provenance)

    def same_geometry(self, other: CTVolume, tolerance_mm: float = 1e-3) -> bool:
        """True when both have the same shape and every corner lies at the same LPS point within ``tolerance_mm``."""
        if self.shape != other.shape:
            return False
        corners = itertools.product(*((0, size) for size in self.shape))
        return all(np.allclose(self.voxel_to_lps(c), other.voxel_to_lps(c), rtol=0, atol=tolerance_mm) for c in corners)


def lps_from_ras(ras: Sequence[float]) -> np.ndarray:
    """LPS mm of a RAS point in mm (and the reverse: the map is its own inverse)."""
    x, y, z = (float(value) for value in ras)
    return np.array((-x, -y, z))


def hu_from_float(values: np.ndarray) -> np.ndarray:
    """Nearest int16 HU of real values, clipped to the int16 range.

    :raises InputError: when a value is NaN or infinite, since no HU would be right for it.
    """
    if not np.all(np.isfinite(values)):
        raise InputError(
            "The volume holds NaN or infinite values; repair it before use, for example by reloading the original."
        )
    return np.clip(np.rint(values), HU_MIN, HU_MAX).astype(np.int16)


def require_int16(hu: np.ndarray) -> np.ndarray:
    """The array as it is, of any shape.

    :raises InputError: when it is not int16, as HU are kept here.
    """
    hu = np.asarray(hu)
    if hu.dtype != np.int16:
        raise InputError(
            f"Voxels must be int16 in HU, not {hu.dtype}; read the scan with MITSGANLib.files.volume_files or dicom."
        )
    return hu


def as_volume(hu: np.ndarray) -> np.ndarray:
    """The array as (slices, rows, columns); one slice (rows, columns) becomes a volume of one.

    :raises InputError: when it is neither, or empty.
    """
    hu = np.asarray(hu)
    if hu.ndim == 2:
        hu = hu[None]
    if hu.ndim != 3 or 0 in hu.shape:
        raise InputError(f"A CT must be a non-empty 3-D array (slice, row, column), not one of shape {hu.shape}.")
    return hu


def is_padding(plane: np.ndarray, padding_hu: int | None) -> np.ndarray:
    """Which voxels hold no CT value: those below -1024 HU or at ``padding_hu``; bool, same shape."""
    padding = plane < LOWEST_HU
    return padding if padding_hu is None else padding | (plane == padding_hu)
