"""One image plane, whichever kind of DICOM object it comes from: a single-frame CT or a frame of Enhanced CT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError
from .headers import Header, quiet_pydicom
from .series import HU_RESCALE_TYPES

if TYPE_CHECKING:
    from pydicom import Dataset

# Functional groups that hold position, orientation, measures and rescale values of a frame of Enhanced CT.
_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)


@dataclass(frozen=True)
class Frame:
    """One image plane. Positions are LPS mm; HU = ``slope`` * stored + ``intercept``.

    ``index`` counts frames within the file from 0. ``pixel_spacing`` is (between rows, between columns) in mm. Of the
    16 bits of a stored integer ``bits`` are used, as two's complement if ``signed`` (PS3.5 8.1.1).
    ``padding`` is the inclusive range of stored integers that mean "no data" (PS3.3 C.7.5.1.1.2), or None.
    """

    path: Path
    index: int
    rows: int
    columns: int
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    pixel_spacing: tuple[float, float]
    thickness: float | None
    slope: float
    intercept: float
    bits: int
    signed: bool
    padding: tuple[int, int] | None
    padding_value: int | None

    @property
    def stored_range(self) -> tuple[int, int]:
        """Lowest and highest storable integer."""
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.signed else (0, (1 << self.bits) - 1)

    @property
    def needs_unused_bits(self) -> bool:
        """True where padding does not fit into Bits Stored, so the scanner used all 16 bits whatever it declared."""
        low, high = self.stored_range
        return self.padding_value is not None and not low <= self.padding_value <= high

    @property
    def name(self) -> str:
        """The file, and where it holds several frames, which."""
        return self.path.name if self.index == 0 else f"{self.path.name} frame {self.index + 1}"

    def hu(self, stored: np.ndarray) -> np.ndarray:
        """Stored integers as HU in float64, not rounded or clipped."""
        return stored * np.float64(self.slope) + self.intercept

    def is_padding(self, stored: np.ndarray) -> np.ndarray:
        """True where stored integers are padding."""
        if self.padding is None:
            return np.zeros(stored.shape, dtype=bool)
        return (stored >= self.padding[0]) & (stored <= self.padding[1])


def frames_of(header: Header) -> list[Frame]:
    """The image planes of one DICOM file.

    :raises InputError: an element that places the plane or gives its HU is missing or no number.
    """
    with quiet_pydicom():
        try:
            if header.is_enhanced:
                return _enhanced_frames(header)
            if int(header.dataset.get("NumberOfFrames") or 1) != 1:
                raise InputError(
                    "holds many frames without saying where each lies",
                    path=header.path,
                    hint="export it as single slices",
                )
            # The elements stand in the data set itself.
            return [_frame(header, 0, *[header.dataset] * 4)]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                "has a missing or invalid position, orientation, spacing or rescale value",
                path=header.path,
                hint="export the series again from its source",
            ) from error


def _enhanced_frames(header: Header) -> list[Frame]:
    """The frames of Enhanced CT. Functional groups, shared or of each frame, hold the elements (PS3.3 C.7.6.16)."""
    per_frame = header.dataset.PerFrameFunctionalGroupsSequence
    shared = (header.dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    if len(per_frame) != int(header.dataset.NumberOfFrames):
        raise InputError(
            f"describes {len(per_frame)} frames but says it has another number: it is damaged", path=header.path
        )

    return [
        _frame(header, index, *((frame.get(group) or shared[group].value)[0] for group in _GROUPS))
        for index, frame in enumerate(per_frame)
    ]


def _frame(
    header: Header, index: int, position: Dataset, orientation: Dataset, measures: Dataset, rescale: Dataset
) -> Frame:
    dataset = header.dataset
    signed = int(dataset.PixelRepresentation) == 1
    slope, intercept = _numbers([rescale.RescaleSlope, rescale.RescaleIntercept], 2)
    if slope == 0:
        raise InputError("has Rescale Slope 0, so its HU are unknown", path=header.path, hint="export the series again")
    if str(rescale.get("RescaleType") or "") not in HU_RESCALE_TYPES:
        raise InputError("has values of another Rescale Type than HU", path=header.path, hint="choose another series")
    pixel_spacing = _numbers(measures.PixelSpacing, 2)
    if min(pixel_spacing) <= 0:
        raise InputError(
            "has no positive Pixel Spacing, so sizes are unknown", path=header.path, hint="export the series again"
        )
    # Pixel Padding Value and Pixel Padding Range Limit; the range between them may be either way round.
    ends = (dataset.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    value, limit = (None if end is None else _stored_integer(end, signed) for end in ends)
    padding = None if value is None else [value, value if limit is None else limit]
    return Frame(
        path=header.path,
        index=index,
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position=_numbers(position.ImagePositionPatient, 3),
        orientation=_numbers(orientation.ImageOrientationPatient, 6),
        pixel_spacing=pixel_spacing,
        thickness=_thickness(measures),
        slope=slope,
        intercept=intercept,
        bits=int(dataset.BitsStored),
        signed=signed,
        padding=padding and (min(padding), max(padding)),
        padding_value=value,
    )


def _thickness(measures: Dataset) -> float | None:
    """Slice Thickness in mm; None where it is missing or no length."""
    try:
        thickness = float(measures.get("SliceThickness") or 0)
    except (TypeError, ValueError):
        return None
    return thickness if 0 < thickness < math.inf else None


def _stored_integer(value: object, signed: bool) -> int:
    """An integer element in the meaning of the pixels: some scanners write 63536 where signed pixels hold -2000."""
    number = int(value)
    return number - (1 << 16) if signed and number >= 1 << 15 else number


def _numbers(values: Sequence[object], count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not np.all(np.isfinite(numbers)):
        raise ValueError(f"{count} finite numbers expected")
    return numbers


def slices_by_file(frames: Sequence[Any]) -> dict[Path, list[int]]:
    """The slice numbers that each file holds, files in the order of their first slice.

    :param frames: frames, or whatever else has the ``path`` of its file, one for each slice.
    """
    slices: dict[Path, list[int]] = {}
    for k, frame in enumerate(frames):
        slices.setdefault(frame.path, []).append(k)
    return slices
