"""A DICOM series -> ``CTVolume``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...runtime.progress import Progress
from ...scan.plausibility import check_hounsfield, clipped_warning
from ...scan.volume import CTVolume, Provenance, VolumeWarning
from .checks import header_warnings, require_one_origin
from .drill import drill_step, is_drill
from .frames import Frame, frames_of, slices_by_file
from .geometry import Stack, stack_frames
from .headers import read_dataset
from .pixels import count_clipped, decode_frames, shown_hu, to_int16_hu
from .series import DicomSeries

# Files of the series that was read last as they were then, and its stack. Who writes a scan mostly has just read it.
_read_last: tuple[tuple[tuple, ...], Stack] | None = None


def stack_series(series: DicomSeries) -> Stack:
    """The slices of a series in order, with the geometry and warnings that headers alone give.

    :raises InputError: the images do not form one regular stack (see :func:`~.geometry.stack_frames`).
    """
    require_one_origin(series.images)
    frames = [frame for header in series.images for frame in frames_of(header)]
    stack = stack_frames(frames)
    return dataclasses.replace(stack, warnings=(*stack.warnings, *header_warnings(series, frames)))


def stack_of_last(files: Sequence[str]) -> Stack | None:
    """The stack of the series that :func:`read_series` read last, if these are its files, and none changed since."""
    last = _read_last
    try:
        return last[1] if last is not None and last[0] == _states(files) else None
    except OSError:  # one is gone, which whoever reads it will say
        return None


def _states(files: Sequence[str]) -> tuple[tuple, ...]:
    """What tells whether files are still what they were."""
    found = ((file, Path(file).stat()) for file in files)
    return tuple((file, state.st_ino, state.st_size, state.st_mtime_ns) for file, state in found)


def read_series(series: DicomSeries, progress: Progress | None = None, source: str = "") -> CTVolume:
    """Read the voxels of a series found by :func:`~.series.scan_dicom`.

    HU = Rescale Slope * stored + Rescale Intercept of each slice (PS3.3 C.11.1), rounded to int16. Voxels (slice, row,
    column) are ordered along the normal of the images, geometry is LPS mm.

    :param source: what the provenance shall name as source.
    :raises InputError: the images form no regular stack, a file is damaged, or the values are not HU.
    :raises DependencyError: the pixels are compressed and the package for it is missing.
    """
    global _read_last
    stack = stack_series(series)
    files = tuple(str(path) for path in slices_by_file(stack.frames))
    _read_last = (_states(files), stack)
    hu, clipped = None, 0
    for k, stored in _decoded(stack.frames, progress):
        if hu is None:  # once pixels were found to be as large as headers say
            hu = np.empty(stack.shape, dtype=np.int16)
        hu[k] = shown_hu(stored, stack.frames[k])
        clipped += count_clipped(stored, stack.frames[k])
    padding_hu, padding_warnings = _padding(stack.frames, hu)
    warnings = [*stack.warnings, *padding_warnings]
    if clipped:
        warnings.append(clipped_warning(clipped))
    provenance = Provenance(
        source=source,
        format="dicom",
        series_instance_uid=series.uid,
        dicom_files=files,
        dicom_problem=series.writing_problem,
        padding_hu=padding_hu,
        warnings=(*warnings, *check_hounsfield(hu, padding_hu)),
        steps=(drill_step(),) if any(map(is_drill, series.images)) else (),
    )
    return CTVolume(hu, stack.spacing, stack.origin, stack.direction, provenance)


def _decoded(frames: Sequence[Frame], progress: Progress | None) -> Iterator[tuple[int, np.ndarray]]:
    """Slice number and stored integers of every slice; each file is opened once."""
    done = 0
    for path, slices in slices_by_file(frames).items():
        stored = decode_frames(read_dataset(path), [frames[k] for k in slices])
        for k in slices:
            if progress:
                progress(done, len(frames))
            done += 1
            yield k, stored[frames[k].index]
    if progress:
        progress(len(frames), len(frames))


def _padding(frames: Sequence[Frame], hu: np.ndarray) -> tuple[int | None, list[VolumeWarning]]:
    """The padding and warnings about it."""
    values = _declared_padding(frames)
    if values == {None}:
        return None, []
    if len(values) > 1:
        text = "Pixel Padding has different HU in different slices; it is left unmarked."
        return None, [VolumeWarning("padding-varies", text)]
    padding_hu = values.pop()
    if not np.any(hu == padding_hu):
        return padding_hu, []
    text = f"Voxels outside the scanner's field of view are padded with {padding_hu} HU; they are never changed."
    return padding_hu, [VolumeWarning("padding-values", text)]


def declared_padding_hu(frames: Sequence[Frame]) -> int | None:
    """The HU of Pixel Padding Value (PS3.3 C.7.5.1.1.2), if declared and the same in all slices."""
    values = _declared_padding(frames)
    return values.pop() if len(values) == 1 else None


def _declared_padding(frames: Sequence[Frame]) -> set[int | None]:
    return {
        None if frame.padding_value is None else int(to_int16_hu(frame.hu(np.array(frame.padding_value))))
        for frame in frames
    }
