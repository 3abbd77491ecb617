"""What change is allowed where, in HU: scanner noise, body mask, limit per voxel, and the bounded integer change.

Arrays are (slice, row, column); a single slice (row, column) works wherever a function says so. Nothing here knows of
networks: whatever a network proposes, :func:`apply_change` is the last step and the one that guarantees the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import InputError, ModelError

# The range of 12-bit CT with an intercept of -1024. Values at its ends are saturated (or padding) and hold no signal.
LOWEST_HU, HIGHEST_HU = -1024, 3071

# Soft tissue in which noise is measured: fat is left out (its strands look like noise), and so are bone and contrast.
_NOISE_TISSUE_HU = (-50.0, 150.0)
_NOISE_WINDOW_MM = 7.0
_NOISE_BIN_HU = 0.5
# Less soft tissue than this in a slice and the mode wanders: drawing compact patches of a slice of LIDC-IDRI-0028, its
# standard deviation was 6 % of its mean at 1800 mm2, 34 % at 900 mm2, 60 % at 200 mm2.
_NOISE_MINIMUM_MM2 = 1800.0
_NOISE_MINIMUM_WINDOWS = 200
_USUAL_SPACING_MM = 0.7

# Body mask: blocks of about 3 mm. The patient's skin is thicker than the shells of tables, which are 1 to 5 mm.
_MASK_BLOCK_MM = 2.8
_TISSUE_HU = -300.0
_TABLE_SHELL_MM = 9.0
_SMALLEST_PART = 0.03
# A lung that the field of view cuts open, against air and table around the patient, told apart on blocks. At most 14 %
# of a lung was below -960 HU (emphysema included), while air around the patient mostly is; foam under the back is not,
# but at least 51 % of its outline was the border of the picture. RIDER-Pilot-0117 has a cut lung in 87 of 95 slices,
# with 1 to 14 %; of 1267 lungs cut by simulated small fields of view, 85 % were below the limit.
_AIR_HU = -960.0
_LUNG_AIR_FRACTION = 0.15
_LUNG_EDGE_FRACTION = 0.47
_SMALLEST_OPEN_LUNG_MM2 = 1500.0


@dataclass(frozen=True)
class NoiseEstimate:
    """Scanner noise as the standard deviation in HU within soft tissue.

    :param sd_hu: the median of the slices' values, or None where no slice holds enough soft tissue.
    :param per_slice_hu: one value per slice; None where that slice holds too little soft tissue.
    :param window_voxels: side of the square window in which a standard deviation is taken, in voxels of the slice.
    :param definition: how it was measured, for reports.
    """

    sd_hu: float | None
    per_slice_hu: tuple[float | None, ...]
    window_voxels: int
    definition: str

    def to_dict(self) -> dict:
        """JSON-ready form."""
        return {
            "sd_hu": self.sd_hu,
            "per_slice_hu": list(self.per_slice_hu),
            "window_voxels": self.window_voxels,
            "definition": self.definition,
        }


def estimate_noise(hu: np.ndarray, spacing_kji: Sequence[float] | None = None) -> NoiseEstimate:
    """Robust scanner-noise standard deviation in HU, per slice and for the volume.

    Per slice: the standard deviation in every 7 mm square that lies wholly in soft tissue (-50..150 HU after smoothing
    with sigma 1.5 voxels, so that noise itself does not select the voxels), and the mode of their histogram. Anatomy
    only ever adds to a local standard deviation, so it fills the histogram's upper tail and leaves the mode alone
    (Christianson et al., AJR 2015;205:W93, call this the global noise level).

    Why not a high-pass residual or the difference of neighboring slices, which need no windows: CT noise is colored by
    the reconstruction kernel and by overlap of slices. On the development scans the median absolute deviation of a
    Laplacian residual gave 2.2, 3.0, 4.0, 4.9 and 31 HU where this gives 8.1, 8.8, 15.8, 16.3 and 49.5 HU (GE STANDARD,
    Philips B, RIDER, LIDC-IDRI-0002, Philips L); slice differences gave 12.6 for 15.8 HU at 0.8 mm between slices, and
    13.6 for 8.8 HU at 5 mm, where anatomy moves. Very smooth noise is wider than the window: of noise smoothed with a
    sigma of 1 voxel this reports 91 %, an error on the safe side.

    :param hu: (slices, rows, columns) in HU, or one slice (rows, columns).
    :param spacing_kji: mm along (slice, row, column); without it 0.7 mm in plane, usual for chest CT, is assumed.
    """
    from scipy import ndimage

    hu = _as_volume(hu)
    spacing = float(np.mean(spacing_kji[1:])) if spacing_kji is not None else _USUAL_SPACING_MM
    window = max(5, round(_NOISE_WINDOW_MM / spacing) | 1)
    low, high = _NOISE_TISSUE_HU
    # What the window loses of the variance of white noise by taking the mean from the same voxels.
    correction = window / math.sqrt(window**2 - 1)
    per_slice = []
    for plane in hu:
        values = np.maximum(plane, LOWEST_HU).astype(np.float32)
        smooth = ndimage.gaussian_filter(values, 1.5, mode="nearest", truncate=2.0)
        tissue = (smooth > low) & (smooth < high)
        # A window that leaves the slice would repeat its border, which is not tissue, so those centers drop out.
        inside = ndimage.uniform_filter(tissue.astype(np.float32), window, mode="constant") > 1 - 0.5 / window**2
        if np.count_nonzero(inside) < max(_NOISE_MINIMUM_WINDOWS, _NOISE_MINIMUM_MM2 / spacing**2):
            per_slice.append(None)
            continue
        mean = ndimage.uniform_filter(values, window, mode="nearest")
        square = ndimage.uniform_filter(values * values, window, mode="nearest")
        deviation = np.sqrt(np.maximum(square - mean * mean, 0)[inside]) * correction
        per_slice.append(_mode(deviation))
    known = [value for value in per_slice if value is not None]
    return NoiseEstimate(
        sd_hu=float(np.median(known)) if known else None,
        per_slice_hu=tuple(per_slice),
        window_voxels=window,
        definition=(
            f"mode of the standard deviation in HU within {window}x{window}-voxel squares of soft tissue "
            f"({low:g}..{high:g} HU), per slice; volume: median over slices"
        ),
    )


def _mode(values: np.ndarray) -> float:
    """Mode of positive values from a smoothed histogram with bins of 0.5 HU (or finer for small values)."""
    from scipy import ndimage

    median = float(np.median(values))
    if median == 0:
        return 0.0
    # A synthetic, nearly noise-free scan needs finer bins than a real one; an upper end of four medians holds the mode.
    width = min(_NOISE_BIN_HU, median / 20)
    counts, edges = np.histogram(values, bins=np.arange(0, 4 * median + width, width))
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), sigma=max(1.0, 0.05 * median / width))
    peak = int(np.argmax(smooth))
    return float((edges[peak] + edges[peak + 1]) / 2)


def body_mask(hu: np.ndarray, padding_hu: int | None = None, spacing_kji: Sequence[float] | None = None) -> np.ndarray:
    """The patient with lungs and other gas inside, without surrounding air, most of the table, and padding.

    Conservative at the skin: the outermost 5 mm or so count only where the voxel itself is tissue (> -300 HU).
    Voxels equal to ``padding_hu`` or below -1024 HU are never in the mask. Works on blocks of about 3 mm; thin shells
    (table, clothes) are removed by an opening, then every slice is filled. A lung that a small field of view cuts open
    is told from the air around the patient by its HU and its outline.

    :param hu: (slices, rows, columns) in HU.
    :param padding_hu: HU of DICOM Pixel Padding, where the file declares one.
    :param spacing_kji: mm along (slice, row, column); without it the rows are taken to span 360 mm.
    :returns: bool array of the same shape.
    """
    from scipy import ndimage

    hu = _as_volume(hu)
    slices, rows, columns = hu.shape
    in_plane = float(np.mean(spacing_kji[1:])) if spacing_kji is not None else 360.0 / max(rows, columns)
    factor = max(1, round(_MASK_BLOCK_MM / in_plane))
    block_mm = factor * in_plane
    small, padding_blocks = _block_means(hu, padding_hu, factor)
    tissue = small > _TISSUE_HU

    in_plane_cross = np.zeros((3, 3, 3), bool)
    in_plane_cross[1] = ndimage.generate_binary_structure(2, 1)
    # Radius of a 2-D disc that a shell does not survive.
    disc = _disc(max(1, round(_TABLE_SHELL_MM / 2 / block_mm)))[None]
    # Outside of the picture counts as tissue: a patient cut by the border must not be worn away there.
    beyond = ndimage.binary_dilation(padding_blocks, disc) | tissue
    opened = ndimage.binary_dilation(ndimage.binary_erosion(beyond, disc, border_value=1), disc) & tissue
    parts, count = ndimage.label(opened)
    if count == 0:
        return np.zeros(hu.shape, bool)
    sizes = np.bincount(parts.ravel())[1:]
    kept = np.concatenate(([False], sizes >= _SMALLEST_PART * sizes.max()))
    # The opening rounds corners and can break a thin chest wall: grow back into tissue, a little farther than it took.
    body = ndimage.binary_dilation(kept[parts], in_plane_cross, iterations=disc.shape[-1] // 2 + 1, mask=tissue)

    filled = body | _enclosed(body, padding_blocks, small < _AIR_HU, block_mm)

    core = ndimage.binary_erosion(filled | padding_blocks, in_plane_cross, iterations=2, border_value=1) & filled
    rim = ndimage.binary_dilation(filled, in_plane_cross)
    mask = np.empty(hu.shape, bool)
    for k in range(slices):
        plane = hu[k]
        mask[k] = _enlarge(core[k], factor, plane.shape) | (
            _enlarge(rim[k], factor, plane.shape) & (plane > _TISSUE_HU)
        )
        mask[k] &= ~_is_padding(plane, padding_hu)
    return mask


def _enclosed(body: np.ndarray, padding: np.ndarray, air: np.ndarray, block_mm: float) -> np.ndarray:
    """Blocks that the body encloses within their slice: lungs, gas, also a lung that the picture's border cuts open."""
    from scipy import ndimage

    cross = np.zeros((3, 3, 3), bool)
    cross[1] = ndimage.generate_binary_structure(2, 1)
    outside = ~body & ~padding
    labels, count = ndimage.label(outside, cross)
    edge = ndimage.binary_dilation(padding, cross)
    edge[:, (0, -1), :] = True
    edge[:, :, (0, -1)] = True
    outline = outside & ~ndimage.binary_erosion(outside, cross)

    def blocks_where(selected: np.ndarray) -> np.ndarray:
        return np.bincount(labels[selected], minlength=count + 1)

    area = blocks_where(outside)
    edge_length = blocks_where(outline & edge)
    open_lung = (
        (area * block_mm**2 > _SMALLEST_OPEN_LUNG_MM2)
        & (blocks_where(outside & air) < _LUNG_AIR_FRACTION * area)
        & (edge_length < _LUNG_EDGE_FRACTION * blocks_where(outline))
    )
    enclosed = (edge_length == 0) | open_lung
    enclosed[0] = False
    return enclosed[labels]


@dataclass(frozen=True)
class Budget:
    """How much change is allowed in which tissue.

    :param strength_hu: the largest change anywhere, in HU.
    :param lung: fraction of the strength from -920 to -500 HU. Most is spent here: CT-GAN's histogram equalization
        turns 10 HU into about 4 % of its input range in lung parenchyma, 0.5 % in soft tissue, 0.03 % in bone.
    :param soft_tissue: fraction from -300 to 200 HU.
    :param bone: fraction from 500 HU upwards.

    Between these ranges the fraction is linear in HU, so that no edge of a tissue class can be seen in the change. It
    falls to 0 at -960 HU: air in the trachea and the bowel stays as it is.
    """

    strength_hu: float = 20.0
    lung: float = 1.0
    soft_tissue: float = 0.3
    bone: float = 0.3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength_hu) and 0 <= self.strength_hu <= HIGHEST_HU - LOWEST_HU):
            raise InputError(f"The strength must be from 0 to 4095 HU, not {self.strength_hu}.")
        for name in ("lung", "soft_tissue", "bone"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"The budget's fraction for {name} must be from 0 to 1, not {getattr(self, name)}.")

    def fraction(self, hu: np.ndarray) -> np.ndarray:
        """Fraction of the strength that is allowed at each HU value, 0..1, float64, same shape."""
        knots = (-960, -920, -500, -300, 200, 500)
        values = (0.0, self.lung, self.lung, self.soft_tissue, self.soft_tissue, self.bone)
        return np.interp(hu, knots, values)

    def to_dict(self) -> dict:
        """JSON-ready form."""
        return {
            "strength_hu": float(self.strength_hu),
            "lung": float(self.lung),
            "soft_tissue": float(self.soft_tissue),
            "bone": float(self.bone),
        }


def allowed_change(hu: np.ndarray, budget: Budget, mask: np.ndarray, padding_hu: int | None = None) -> np.ndarray:
    """The largest |change| in whole HU at each voxel, int16, same shape as ``hu``.

    0 outside ``mask``, at ``padding_hu``, at -1024 HU and below, at 3071 HU and above. Never so large that a voxel
    could reach -1024, 3071 or ``padding_hu``. Depends on the voxel alone, so slabs of slices give what the whole gives.

    :param hu: int16 in HU, any shape (a volume, a slab of slices, a slice).
    :param mask: bool of the same shape, the body; see :func:`body_mask`.
    """
    hu = _require_int16(hu)
    mask = np.asarray(mask)
    if mask.shape != hu.shape or mask.dtype != bool:
        raise InputError(
            f"The body mask must be a bool array of shape {hu.shape}, not {mask.dtype} of shape {mask.shape}."
        )
    table = _allowed_table(budget, padding_hu)
    index = np.clip(hu, LOWEST_HU, HIGHEST_HU).astype(np.int32) - LOWEST_HU
    return np.where(mask, table[index], np.int16(0))


def apply_change(hu: np.ndarray, change: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """``hu`` plus ``change`` clipped to ``allowed`` and rounded to whole HU; int16, same shape.

    ``|result - hu| <= allowed`` holds exactly for any finite or infinite ``change``. Whatever ``allowed`` says, a voxel
    within -1023..3070 HU stays within it, and any other voxel keeps its value.

    :param hu: int16 in HU, any shape.
    :param change: floating point in HU, same shape; infinite values count as "as much as allowed".
    :param allowed: integers >= 0 in HU, same shape; see :func:`allowed_change`.
    :raises ModelError: when ``change`` holds NaN, for which no value would be right.
    :raises InputError: when shapes or types do not fit.
    """
    hu = _require_int16(hu)
    change, allowed = np.asarray(change), np.asarray(allowed)
    if change.shape != hu.shape or allowed.shape != hu.shape:
        raise InputError(
            f"Voxels {hu.shape}, change {change.shape} and allowed change {allowed.shape} must have the same shape."
        )
    if not np.issubdtype(allowed.dtype, np.integer) or (allowed.size and allowed.min() < 0):
        raise InputError("The allowed change must be whole HU, not negative; compute it with allowed_change.")
    if np.isnan(change).any():
        raise ModelError(
            "The model proposed NaN as a change, so its output cannot be used; use another model, or run it in float32."
        )
    signal = (hu > LOWEST_HU) & (hu < HIGHEST_HU)
    # No voxel with a signal can move by more than the range, so whole HU up to it, exact in float32, are all there is.
    limit = np.where(signal, np.minimum(allowed, HIGHEST_HU - LOWEST_HU), 0).astype(np.result_type(change, np.float32))
    step = np.rint(np.clip(change, -limit, limit)).astype(np.int16)
    return np.where(signal, np.clip(hu + step, LOWEST_HU + 1, HIGHEST_HU - 1), hu).astype(np.int16)


def _allowed_table(budget: Budget, padding_hu: int | None) -> np.ndarray:
    """Allowed change for each of the 4096 values from -1024 to 3071 HU, int16."""
    hu = np.arange(LOWEST_HU, HIGHEST_HU + 1)
    # 20 * 0.3 is 6 in real numbers and must be in floating point; the bound by the strength is kept, as it is exact
    # wherever the product is within 1e-9 of a whole number.
    allowed = np.floor(budget.strength_hu * budget.fraction(hu) + 1e-9)
    room = np.minimum(hu - (LOWEST_HU + 1), (HIGHEST_HU - 1) - hu)
    if padding_hu is not None:
        room = np.minimum(room, np.abs(hu - padding_hu) - 1)
    return np.maximum(np.minimum(allowed, room), 0).astype(np.int16)


def _require_int16(hu: np.ndarray) -> np.ndarray:
    hu = np.asarray(hu)
    if hu.dtype != np.int16:
        raise InputError(f"Voxels must be int16 in HU, not {hu.dtype}; read the scan with MITSGANLib.files or dicom.")
    return hu


def _as_volume(hu: np.ndarray) -> np.ndarray:
    hu = np.asarray(hu)
    if hu.ndim == 2:
        hu = hu[None]
    if hu.ndim != 3 or 0 in hu.shape:
        raise InputError(f"A CT must be a non-empty 3-D array (slice, row, column), not one of shape {hu.shape}.")
    return hu


def _is_padding(plane: np.ndarray, padding_hu: int | None) -> np.ndarray:
    padding = plane < LOWEST_HU
    return padding if padding_hu is None else padding | (plane == padding_hu)


def _block_means(hu: np.ndarray, padding_hu: int | None, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean HU of factor x factor blocks in plane, with padding as air, and which blocks are mostly padding."""
    slices, rows, columns = hu.shape
    shape = (-(-rows // factor), -(-columns // factor))
    means = np.empty((slices, *shape), np.float32)
    padding = np.empty((slices, *shape), bool)
    border = ((0, shape[0] * factor - rows), (0, shape[1] * factor - columns))
    for k, plane in enumerate(hu):
        is_padding = _is_padding(plane, padding_hu)
        values = np.pad(np.where(is_padding, np.int16(-1000), plane), border, mode="edge")
        is_padding = np.pad(is_padding, border, mode="edge")
        blocks = (shape[0], factor, shape[1], factor)
        means[k] = values.reshape(blocks).mean(axis=(1, 3), dtype=np.float32)
        padding[k] = is_padding.reshape(blocks).mean(axis=(1, 3), dtype=np.float32) > 0.5
    return means, padding


def _disc(radius: int) -> np.ndarray:
    j, i = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return j**2 + i**2 <= (radius + 0.5) ** 2


def _enlarge(blocks: np.ndarray, factor: int, shape: tuple[int, int]) -> np.ndarray:
    return blocks.repeat(factor, axis=0).repeat(factor, axis=1)[: shape[0], : shape[1]]
