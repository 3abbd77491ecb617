"""The patient in a CT: a mask that depends on each slice alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..scan.cubes import box_around
from ..scan.filters import enlarged
from ..scan.volume import as_volume, is_padding

# Body mask: blocks of about 3 mm. The patient's skin is thicker than the shells of tables, which are 1 to 5 mm.
_MASK_BLOCK_MM = 2.8
_TISSUE_HU = -300.0
_TABLE_SHELL_MM = 9.0
# Smaller parts of a slice, beside its largest or in themselves, are no patient. That costs the tip of an arm, 0.01 % of
# the mask of LIDC-IDRI-0001; at 0.5 % and 350 mm2, parts of the table came in, in 30 of 64 slices of Lung_Dx-A0001.
_SMALLEST_PART = 0.03
_SMALLEST_PART_MM2 = 1000.0
# A lung that the field of view cuts open, against air and table around the patient, told apart on blocks. At most 14 %
# of a lung was below -960 HU (emphysema included), while air around the patient mostly is; foam under the back is not,
# but at least 51 % of its outline was the border of the picture. RIDER-Pilot-0117 has a cut lung in 87 of 95 slices,
# with 1 to 14 %; of 1267 lungs cut by simulated small fields of view, 85 % were below the limit.
_AIR_HU = -960.0
_LUNG_AIR_FRACTION = 0.15
_LUNG_EDGE_FRACTION = 0.47
_SMALLEST_OPEN_LUNG_MM2 = 1500.0
# Within the lungs is what has so much lung around it. With a mean over 25 mm, twice, a nodule of 30 mm still is, and of
# the chest wall and the mediastinum the outermost 3 to 5 mm.
_LUNG_BELOW_HU = -500
_AROUND_MM = 25.0
_IN_LUNGS = (0.3, 0.4)

# A voxel and its four neighbors within the slice.
_CROSS = np.zeros((3, 3, 3), bool)
_CROSS[1, 1, :] = _CROSS[1, :, 1] = True


def body_mask(hu: np.ndarray, padding_hu: int | None = None, spacing_kji: Sequence[float] | None = None) -> np.ndarray:
    """The patient with lungs and other gas inside, without surrounding air, most of the table, and padding.

    Conservative at the skin: the outermost 5 mm or so count only where the voxel itself is tissue (> -300 HU).
    Voxels equal to ``padding_hu`` or below -1024 HU are never in the mask. Works on blocks of about 3 mm; thin shells
    (table, clothes) are removed by an opening, then every slice is filled. A lung that a small field of view cuts open
    is told from the air around the patient by its HU and its outline.

    Each slice's mask depends on that slice alone, so a part of a series gives what the whole gives.

    :param hu: (slices, rows, columns) in HU.
    :param padding_hu: HU of DICOM Pixel Padding, where the file declares one.
    :param spacing_kji: mm along (slice, row, column); without it the rows are taken to span 360 mm.
    :returns: bool array of the same shape.
    """
    from scipy import ndimage

    hu = as_volume(hu)
    in_plane = float(np.mean(spacing_kji[1:])) if spacing_kji is not None else 360.0 / max(hu.shape[1:])
    factor = max(1, round(_MASK_BLOCK_MM / in_plane))
    block_mm = factor * in_plane
    small, padding_blocks = _block_means(hu, padding_hu, factor)
    tissue = small > _TISSUE_HU

    # Radius of a 2-D disc that a shell does not survive.
    radius = max(1, round(_TABLE_SHELL_MM / 2 / block_mm))
    j, i = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = (j**2 + i**2 <= (radius + 0.5) ** 2)[None]
    # Outside of the picture counts as tissue: a patient cut by the border must not be worn away there.
    beyond = ndimage.binary_dilation(padding_blocks, disc) | tissue if padding_blocks.any() else tissue
    opened = ndimage.binary_dilation(ndimage.binary_erosion(beyond, disc, border_value=1), disc) & tissue
    # The opening rounds corners and can break a thin chest wall: grow back into tissue, a little farther than it took.
    body = _large_parts(opened, block_mm)
    for _ in range(radius + 1):
        body = _spread(body) & tissue

    filled = body | _enclosed(body, padding_blocks, small < _AIR_HU, block_mm)

    core = ~_spread(_spread(~(filled | padding_blocks))) & filled
    rim = _spread(filled)
    mask, near = (enlarged(blocks, factor, hu.shape) for blocks in (core, rim))
    for of_slice, beside, plane in zip(mask, near, hu, strict=True):
        of_slice |= beside & (plane > _TISSUE_HU)
        of_slice &= ~is_padding(plane, padding_hu)
    return mask


def lung_share(plane: np.ndarray, mask: np.ndarray, spacing_kji: Sequence[float]) -> np.ndarray:
    """How far each voxel of a slice lies within the lungs, 0..1: vessels and nodules in them do, the mediastinum not.

    :param plane: int16 HU (rows, columns).
    :param mask: of :func:`body_mask`.
    :param spacing_kji: mm along (slice, row, column).
    :return: float32 of the same shape.
    """
    from scipy import ndimage

    lung = (plane < _LUNG_BELOW_HU) & mask
    inner = np.zeros(plane.shape, np.float32)
    box = box_around(lung)
    if box is None:
        return inner
    size = [2 * round(_AROUND_MM / 2 / mm) + 1 for mm in spacing_kji[1:]]
    # The first mean reaches half its size beyond the lungs. Farther away the second one is too small to count.
    box = tuple(
        slice(max(0, part.start - n // 2 - 1), part.stop + n // 2 + 1) for part, n in zip(box, size, strict=True)
    )
    share = lung[box].astype(np.float32)
    for _ in range(2):
        share = ndimage.uniform_filter(share, size, mode="nearest")
    low, high = _IN_LUNGS
    inner[box] = np.clip((share - low) / (high - low), 0, 1)
    return inner


def _large_parts(blocks: np.ndarray, block_mm: float) -> np.ndarray:
    """Connected blocks of a slice that are large, beside its largest part and in themselves."""
    from scipy import ndimage

    labels, count = ndimage.label(blocks, _CROSS)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    of_slice = sizes[labels].max(axis=(1, 2))
    smallest = np.maximum(_SMALLEST_PART * of_slice, _SMALLEST_PART_MM2 / block_mm**2)
    return blocks & (sizes[labels] >= smallest[:, None, None])


def _enclosed(body: np.ndarray, padding: np.ndarray, air: np.ndarray, block_mm: float) -> np.ndarray:
    """Blocks that the body encloses within their slice: lungs and gas, also a lung cut open by the border."""
    from scipy import ndimage

    outside = ~body & ~padding
    labels, count = ndimage.label(outside, _CROSS)
    edge = _spread(padding)
    edge[:, (0, -1), :] = True
    edge[:, :, (0, -1)] = True
    outline = outside & ~ndimage.binary_erosion(outside, _CROSS)

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


def _block_means(hu: np.ndarray, padding_hu: int | None, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean HU of factor x factor blocks in plane, with padding as air, and which blocks are mostly padding."""
    slices, rows, columns = hu.shape
    shape = (-(-rows // factor), -(-columns // factor))
    means = np.empty((slices, *shape), np.float32)
    padding = np.empty((slices, *shape), bool)
    border = ((0, shape[0] * factor - rows), (0, shape[1] * factor - columns))

    def mean(plane: np.ndarray) -> np.ndarray:
        # Whole numbers, whose sum is exact in whatever order; NumPy's mean over two axes takes ten times as long.
        plane = np.pad(plane, border, mode="edge") if any(map(any, border)) else plane
        rows = sum((plane[n::factor] for n in range(1, factor)), plane[::factor].astype(np.int32))
        total = sum((rows[:, n::factor] for n in range(1, factor)), rows[:, ::factor])
        return total.astype(np.float32) / np.float32(factor**2)

    for k, plane in enumerate(hu):
        empty = is_padding(plane, padding_hu)
        means[k] = mean(np.where(empty, np.int16(-1000), plane))
        padding[k] = mean(empty) > 0.5 if empty.any() else False
    return means, padding


def _spread(blocks: np.ndarray) -> np.ndarray:
    """What is True in a block or one of its four neighbors within the slice, as a dilation by a cross."""
    spread = blocks.copy()
    spread[:, 1:] |= blocks[:, :-1]
    spread[:, :-1] |= blocks[:, 1:]
    spread[:, :, 1:] |= blocks[:, :, :-1]
    spread[:, :, :-1] |= blocks[:, :, 1:]
    return spread
