"""Image planes -> a stack in slice order with one spacing, origin and direction, or the reason why they form none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ...scan.plausibility import grid_warnings
from ...scan.volume import VolumeWarning
from .frames import Frame

# Headers round numbers: positions to 0.01 mm, direction cosines to four to six digits.
POSITION_TOLERANCE_MM = 0.01
SPACING_TOLERANCE = 0.01  # of the slice spacing
COSINE_TOLERANCE = 1e-4
ORTHONORMAL_TOLERANCE = 1e-3
# A stack may lean by its rounding error, which grows with its length and stays well under a pixel.
STRAIGHT_TOLERANCE_MM = 0.1
STRAIGHT_TOLERANCE = 5e-4  # of the stack's length


@dataclass(frozen=True)
class Stack:
    """Frames ordered along +normal, where normal = row direction x column direction, so the volume is right-handed.

    ``spacing`` is mm along (column, row, slice) index, ``origin`` LPS mm of the first voxel, ``direction`` 3x3 with
    the LPS unit vectors of growing column / row / slice index as columns: the conventions of ``CTVolume``.
    """

    frames: tuple[Frame, ...]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: np.ndarray
    warnings: tuple[VolumeWarning, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return len(self.frames), self.frames[0].rows, self.frames[0].columns


def stack_frames(frames: Sequence[Frame]) -> Stack:
    """Order frames by position along their normal and find their common geometry.

    Slice spacing comes from positions (PS3.3 C.7.6.2.1.1), never from Slice Thickness or Spacing Between Slices, which
    scanners fill in loosely. A single slice has no spacing of its own and takes its thickness, with a warning.

    :raises InputError: the frames differ in size, spacing or orientation; slices are missing, repeated or unevenly
        spaced; or the gantry was tilted.
    """
    _require_alike(frames)
    direction = _direction(frames[0])
    along = np.array([frame.position for frame in frames]) @ direction[:, 2]
    order = np.argsort(along, kind="stable")
    frames, along = [frames[k] for k in order], along[order]
    if len(frames) == 1:
        slice_spacing = frames[0].thickness or 1.0
    else:
        _require_distinct(frames, along)
        _require_even(frames, along)
        _require_straight(frames, along, direction[:, 2])
        slice_spacing = float(along[-1] - along[0]) / (len(frames) - 1)
    between_rows, between_columns = frames[0].pixel_spacing
    spacing = (between_columns, between_rows, slice_spacing)
    warnings, thickness = [*grid_warnings(len(frames), spacing)], frames[0].thickness
    if thickness is not None and slice_spacing > 1.1 * thickness:
        text = (
            f"Slices are {slice_spacing:g} mm apart but {thickness:g} mm thick; the tissue between them was not imaged."
        )
        warnings.append(VolumeWarning("slice-gap", text))
    return Stack(
        frames=tuple(frames),
        spacing=spacing,
        origin=frames[0].position,
        direction=direction,
        warnings=tuple(warnings),
    )


def _require_alike(frames: Sequence[Frame]) -> None:
    first = frames[0]
    for frame in frames:
        what = None
        if (frame.rows, frame.columns) != (first.rows, first.columns):
            what = f"sizes ({first.columns}x{first.rows} and {frame.columns}x{frame.rows})"
        elif not np.allclose(frame.orientation, first.orientation, rtol=0, atol=COSINE_TOLERANCE):
            what = "orientations"
        elif not np.allclose(frame.pixel_spacing, first.pixel_spacing, rtol=1e-4, atol=0):
            what = "pixel spacings"
        if what:
            raise InputError(
                f"The series mixes images of different {what}: {first.name} and {frame.name}; separate them into two "
                "folders."
            )


def _direction(frame: Frame) -> np.ndarray:
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if np.any(abs(lengths - 1) > ORTHONORMAL_TOLERANCE) or abs(row @ column) > ORTHONORMAL_TOLERANCE:
        raise InputError(
            "has an Image Orientation that is no pair of perpendicular unit vectors",
            path=frame.path,
            hint="export the series again",
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return np.column_stack([row, column, np.cross(row, column)])


def _require_distinct(frames: Sequence[Frame], along: np.ndarray) -> None:
    repeated = np.flatnonzero(np.diff(along) < POSITION_TOLERANCE_MM)
    if repeated.size:
        first, second = frames[repeated[0]], frames[repeated[0] + 1]
        names = [frame.name for frame in (first, second)]
        if names[0] == names[1]:  # copies in other folders
            names = [f"{frame.path.parent.name}/{frame.name}" for frame in (first, second)]
        raise InputError(
            f"{repeated.size + 1} images or more lie at repeated positions, such as {names[0]} and {names[1]}; keep "
            "one copy of each slice, or one time point, in the folder."
            if repeated.size > 1
            else f"{names[0]} and {names[1]} lie at the same position; keep one of them in the folder."
        )


def _require_even(frames: Sequence[Frame], along: np.ndarray) -> None:
    gaps = np.diff(along)
    typical = float(np.median(gaps))
    even = np.linspace(along[0], along[-1], len(along))
    if np.max(np.abs(along - even)) <= max(POSITION_TOLERANCE_MM, SPACING_TOLERANCE * typical):
        return
    steps = np.rint(gaps / typical)
    between = f"between {frames[int(np.argmax(gaps))].name} and {frames[int(np.argmax(gaps)) + 1].name}"
    if steps.max() > 1 and np.max(np.abs(gaps / typical - steps)) < 0.1:
        missing = int((steps - 1).sum())
        raise InputError(
            f"{missing} {'slice is' if missing == 1 else 'slices are'} missing, such as {between} (a gap of "
            f"{gaps.max():.2f} mm where {typical:.2f} mm is usual); copy the whole series."
        )
    raise InputError(
        f"Slices are unevenly spaced, from {gaps.min():.2f} to {gaps.max():.2f} mm (the widest {between}); reconstruct "
        "the series with even spacing, or resample it in the viewer."
    )


def _require_straight(frames: Sequence[Frame], along: np.ndarray, normal: np.ndarray) -> None:
    """Refuse stacks that lean: the true grid is sheared, and resampling int16 HU silently would not be honest."""
    positions = np.array([frame.position for frame in frames])
    sideways = positions - positions[0] - np.outer(along - along[0], normal)
    length = float(along[-1] - along[0])
    tolerance = max(STRAIGHT_TOLERANCE_MM, STRAIGHT_TOLERANCE * length)
    if np.linalg.norm(sideways, axis=1).max() <= tolerance:
        return
    lean = sideways[-1] / length
    if np.linalg.norm(sideways - np.outer(along - along[0], lean), axis=1).max() <= tolerance:
        angle = float(np.degrees(np.arctan(np.linalg.norm(lean))))
        raise InputError(
            f"The gantry was tilted by {angle:.1f} degrees, so the slices form a slanted stack; straighten it in the "
            'viewer (in Slicer: DICOM module, "acquisition geometry regularization"), export it and load that.'
        )
    raise InputError(
        "The slices are shifted sideways against each other, so they form no straight stack; export the series again "
        "or resample it in the viewer."
    )
