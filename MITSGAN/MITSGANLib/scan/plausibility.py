"""Whether a volume is a believable CT scan in Hounsfield units (HU), and the conversion of its values to int16.

Every reader passes through here, so a stored-value volume, a label map or a normalized array is refused in the same
words whatever file it came in.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .volume import HU_MAX, HU_MIN, VolumeWarning, hu_from_float

AIR_HU = -1000
# Air is near -1000 HU and fat near -100 HU, so a scan of a patient always has something below this.
LOWEST_TISSUE_WITHOUT_AIR = -200
HIGHEST_AIR_AND_LUNG = -300
# 12-bit CT holds -1024..3071 HU; a few voxels beyond are metal or padding, many are another unit.
CT_RANGE = (-1024, 3071)
MANY = 0.01
FRACTION_THAT_MATTERS = 0.01  # HU; less is the rounding error of 32-bit floating point
BODY_HU = -500
RIM_FRACTION = 0.1
THICK_SLICE_MM = 4.95  # 5 mm less the rounding of positions


def to_hu(values: np.ndarray) -> tuple[np.ndarray, tuple[VolumeWarning, ...]]:
    """Nearest int16 HU of an array (slices, rows, columns) of any integer or real type, and what was lost.

    Values outside int16 are clipped, not refused: they lie far beyond any tissue, so they are metal on an extended
    scale or "no data" fillers, which no later step changes.

    :raises InputError: when a value is NaN or infinite.
    """
    if values.dtype == np.int16:
        return values.copy(), ()
    hu = np.empty(values.shape, dtype=np.int16)
    largest_fraction, clipped = 0.0, 0
    for k, values_of_slice in enumerate(values):
        hu[k] = _slice_to_hu(values_of_slice)
        difference = np.abs(values_of_slice.astype(np.float64) - hu[k])
        beyond = (values_of_slice > HU_MAX + 0.5) | (values_of_slice < HU_MIN - 0.5)
        clipped += int(np.count_nonzero(beyond))
        largest_fraction = max(largest_fraction, float(difference[~beyond].max(initial=0.0)))
    warnings = []
    if largest_fraction > FRACTION_THAT_MATTERS:
        text = f"The values are not whole numbers; they were rounded to whole HU (by up to {largest_fraction:.2f} HU)."
        warnings.append(VolumeWarning("rounded-to-integer", text))
    if clipped:
        warnings.append(clipped_warning(clipped))
    return hu, tuple(warnings)


def clipped_warning(voxels: int) -> VolumeWarning:
    """The warning for ``voxels`` whose HU do not fit into 16 bits."""
    text = f"{voxels} voxels lie outside {HU_MIN}..{HU_MAX} HU and were clipped to that range."
    return VolumeWarning("clipped-to-int16", text)


def check_hounsfield(hu: np.ndarray, padding_hu: int | None = None) -> tuple[VolumeWarning, ...]:
    """Warnings about an int16 array (slices, rows, columns) that is said to be HU.

    :param padding_hu: the HU value of declared padding, which says nothing about the scan and is left out.
    :raises InputError: when the values cannot be HU of a patient: nothing but padding, nothing below 0, normalized.
    """
    counts = _histogram(hu)
    if padding_hu is not None:
        counts[padding_hu - HU_MIN] = 0
    present = np.flatnonzero(counts)
    if not present.size:
        raise InputError("The volume holds nothing but padding; load the series that shows the patient.")
    lowest, highest = int(present[0]) + HU_MIN, int(present[-1]) + HU_MIN
    _refuse_other_units(lowest, highest)
    return (*_range_warnings(counts, lowest, highest), *_field_of_view_warnings(hu))


def grid_warnings(slices: int, spacing: tuple[float, float, float]) -> tuple[VolumeWarning, ...]:
    """Warnings about a grid of ``slices`` slices with ``spacing`` in mm along (column, row, slice) index."""
    if slices == 1:
        text = (
            f"The volume has one slice; its thickness is taken as {spacing[2]:g} mm. Three-dimensional steps need more."
        )
        return (VolumeWarning("single-slice", text),)
    if spacing[2] >= THICK_SLICE_MM:
        text = (
            f"Slices are {spacing[2]:g} mm apart; small nodules may be missed, and figures for thin slices do not hold."
        )
        return (VolumeWarning("thick-slices", text),)
    return ()


def _slice_to_hu(values: np.ndarray) -> np.ndarray:
    if np.issubdtype(values.dtype, np.integer):
        return np.clip(values, HU_MIN, HU_MAX).astype(np.int16)
    return hu_from_float(values)


def _histogram(hu: np.ndarray) -> np.ndarray:
    """How many voxels have each of the 65536 HU values; slice by slice, as ``bincount`` needs 8 bytes a voxel."""
    counts = np.zeros(HU_MAX - HU_MIN + 1, dtype=np.int64)
    for hu_of_slice in hu:
        counts += np.bincount(np.ascontiguousarray(hu_of_slice).view(np.uint16).ravel(), minlength=counts.size)
    return np.roll(counts, -HU_MIN)  # as bits the negative ones come last


def _refuse_other_units(lowest: int, highest: int) -> None:
    advice = "load the CT series itself, in HU"
    if lowest >= 0:
        raise InputError(
            f"The values ({lowest} to {highest}) are not Hounsfield units: a CT scan has air near {AIR_HU} HU, and "
            f"none lies below 0; {advice}."
        )
    if lowest >= -10 and highest <= 10:
        raise InputError(f"The values ({lowest} to {highest}) are not Hounsfield units but look normalized; {advice}.")


def _range_warnings(counts: np.ndarray, lowest: int, highest: int) -> list[VolumeWarning]:
    total = counts.sum()
    below = counts[: CT_RANGE[0] - HU_MIN].sum() / total
    above = counts[CT_RANGE[1] + 1 - HU_MIN :].sum() / total
    warnings = []
    if lowest > LOWEST_TISSUE_WITHOUT_AIR:
        text = f"The lowest value is {lowest} HU: the volume shows no air. Check that it is a CT scan in HU."
        warnings.append(VolumeWarning("no-air", text))
    if highest < HIGHEST_AIR_AND_LUNG:
        text = f"The highest value is {highest} HU: the volume shows no soft tissue. Check that it is the right scan."
        warnings.append(VolumeWarning("no-tissue", text))
    if below > MANY:
        fill = int(np.argmax(counts[: CT_RANGE[0] - HU_MIN])) + HU_MIN
        text = (
            f"{below:.0%} of the voxels lie below {CT_RANGE[0]} HU, most at {fill} HU, which is not declared as "
            "padding; they are kept as they are."
        )
        warnings.append(VolumeWarning("values-below-air", text))
    if above > MANY:
        text = f"{above:.0%} of the voxels lie above {CT_RANGE[1]} HU. Check that the values are HU."
        warnings.append(VolumeWarning("values-above-range", text))
    return warnings


def _field_of_view_warnings(hu: np.ndarray) -> list[VolumeWarning]:
    """A warning when tissue reaches the edge of the images, so part of the body was not reconstructed."""
    rim = np.concatenate([hu[:, 0, :], hu[:, -1, :], hu[:, :, 0], hu[:, :, -1]], axis=1)
    fraction = np.count_nonzero(rim > BODY_HU) / rim.size
    if fraction <= RIM_FRACTION:
        return []
    text = f"Tissue covers {fraction:.0%} of the image edge: the body is cut off by the field of view."
    return [VolumeWarning("truncated-field-of-view", text)]
