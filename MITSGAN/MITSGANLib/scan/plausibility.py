"""Whether a volume is a believable CT scan in Hounsfield units (HU), and the conversion of its values to int16.

Every reader passes through here, so a stored-value volume, a label map or a normalized array is refused in the same
words whatever file it came in.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from .volume import HIGHEST_HU, HU_MAX, HU_MIN, LOWEST_HU, VolumeWarning, hu_from_float

AIR_HU = -1000
# Air is near -1000 HU and fat near -100 HU, so a scan of a patient always has something below this.
LOWEST_TISSUE_WITHOUT_AIR = -200
HIGHEST_AIR_AND_LUNG = -300
# Of the voxels; a few beyond the 12 bits of CT are metal or padding, many are another unit.
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
    hu, is_whole = np.empty(values.shape, dtype=np.int16), np.issubdtype(values.dtype, np.integer)
    largest_fraction, clipped = 0.0, 0
    for k, values_of_slice in enumerate(values):
        hu[k] = np.clip(values_of_slice, HU_MIN, HU_MAX) if is_whole else hu_from_float(values_of_slice)
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
    # How many voxels have each of the 65536 values; slice by slice, as ``bincount`` needs 8 bytes a voxel.
    counts = np.zeros(HU_MAX - HU_MIN + 1, dtype=np.int64)
    for hu_of_slice in hu:
        counts += np.bincount(np.ascontiguousarray(hu_of_slice).view(np.uint16).ravel(), minlength=counts.size)
    counts = np.roll(counts, -HU_MIN)  # as bits the negative ones come last
    if padding_hu is not None:
        counts[padding_hu - HU_MIN] = 0
    present = np.flatnonzero(counts)
    if not present.size:
        raise InputError("The volume holds nothing but padding; load the series that shows the patient.")
    lowest, highest = int(present[0]) + HU_MIN, int(present[-1]) + HU_MIN
    advice = "load the CT series itself, in HU"
    if lowest >= 0:
        raise InputError(
            f"The values ({lowest} to {highest}) are not Hounsfield units: a CT scan has air near {AIR_HU} HU, and "
            f"none lies below 0; {advice}."
        )
    if lowest >= -10 and highest <= 10:
        raise InputError(f"The values ({lowest} to {highest}) are not Hounsfield units but look normalized; {advice}.")
    rim = np.concatenate([hu[:, 0, :], hu[:, -1, :], hu[:, :, 0], hu[:, :, -1]], axis=1)
    return _warnings(counts, lowest, highest, np.count_nonzero(rim > BODY_HU) / rim.size)


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


def _warnings(counts: np.ndarray, lowest: int, highest: int, rim: float) -> tuple[VolumeWarning, ...]:
    """Warnings about how many voxels have each value, the ends of these values, and the share of tissue at the rim."""
    below, above = counts[: LOWEST_HU - HU_MIN], counts[HIGHEST_HU + 1 - HU_MIN :]
    share_below, share_above = below.sum() / counts.sum(), above.sum() / counts.sum()
    fill = int(np.argmax(below)) + HU_MIN
    many_below = (
        f"{share_below:.0%} of the voxels lie below {LOWEST_HU} HU, most at {fill} HU, which is not declared as "
        "padding; they are kept as they are."
    )
    many_above = f"{share_above:.0%} of the voxels lie above {HIGHEST_HU} HU. Check that the values are HU."
    no_air = f"The lowest value is {lowest} HU: the volume shows no air. Check that it is a CT scan in HU."
    no_tissue = f"The highest value is {highest} HU: the volume shows no soft tissue. Check that it is the right scan."
    cut_off = f"Tissue covers {rim:.0%} of the image edge: the body is cut off by the field of view."
    found = (
        ("no-air", no_air, lowest > LOWEST_TISSUE_WITHOUT_AIR),
        ("no-tissue", no_tissue, highest < HIGHEST_AIR_AND_LUNG),
        ("values-below-air", many_below, share_below > MANY),
        ("values-above-range", many_above, share_above > MANY),
        ("truncated-field-of-view", cut_off, rim > RIM_FRACTION),
    )
    return tuple(VolumeWarning(name, text) for name, text, is_so in found if is_so)
