"""Differences of volumes as heatmaps: signed HU over the scan, blue where lower and red where higher, clear elsewhere.

Each map has a range and a threshold of its own: protection changes a few HU, an attack hundreds. What is computed from
voxels touches no node, so that it can run in the background.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import slicer
from slicer.i18n import tr as _
from vtk import vtkImageData

from ..errors import InputError
from ..report.pictures import color_limit
from ..scan.volume import CTVolume
from .volumes import DIFFERENCE_ATTRIBUTE, add_colors, image_from_volume, node_from_volume, own_colors

DEFAULT_THRESHOLD = 0.2
"""Share of a map's full color up to which nothing is colored: 1 HU of 5, 100 HU of 500."""

REFERENCES = {"protected": "source", "source attacked": "source", "protected attacked": "protected"}
"""By view, the view that its heatmap is against."""

_SLICES_FOR_LIMIT = 32
_COLORS = 255  # odd, so that one color stands for no difference
# From the smallest to the full color; neither end is a gray, so both show on lung and on bone.
_LOWER = np.array(((0.10, 0.20, 0.85), (0.30, 0.95, 1.00)))
_HIGHER = np.array(((0.80, 0.10, 0.05), (1.00, 0.85, 0.15)))
_THRESHOLD_ATTRIBUTE = "MITSGAN.ThresholdHU"


@dataclass(frozen=True)
class Difference:
    """Other minus reference in HU, cut to where they differ, the difference with the full color, and its image."""

    volume: CTVolume
    limit_hu: float
    image: vtkImageData | None = None


def differences(volumes: Mapping[str, CTVolume]) -> dict[str, Difference]:
    """The differences that the comparison shows, by view; both attacks share their range.

    :param volumes: by view; the attacked ones may be missing.
    :raises InputError: when two volumes do not lie on the same grid.
    """
    found = {
        view: difference(volumes[reference], volumes[view]) for view, reference in REFERENCES.items() if view in volumes
    }
    attacks = [view for view in found if view.endswith("attacked")]
    shared = max((found[view].limit_hu for view in attacks), default=0.0)
    return {**found, **{view: dataclasses.replace(found[view], limit_hu=shared) for view in attacks}}


def difference(reference: CTVolume, other: CTVolume) -> Difference:
    """Other minus reference, with a round number of HU for the full color.

    :raises InputError: when the two volumes do not lie on the same grid.
    """
    if not reference.same_geometry(other):
        raise InputError(_("The two volumes do not lie on the same grid; compare a scan with its own result."))
    hu = np.empty(reference.shape, np.int16)
    # Slice by slice: the wider integers of a whole scan would take half a gigabyte.
    changed = [np.zeros(size, bool) for size in reference.shape]
    for k, (before, after) in enumerate(zip(reference.hu, other.hu, strict=True)):
        hu[k] = np.clip(np.subtract(after, before, dtype=np.int32), -32768, 32767)
        is_changed = hu[k] != 0
        rows = is_changed.any(axis=1)
        changed[0][k] = rows.any()
        changed[1] |= rows
        changed[2] |= is_changed.any(axis=0)
    box = []
    for axis in changed:
        present = np.flatnonzero(axis)
        # Identical volumes still give a node: one voxel of no difference.
        low, high = (int(present[0]), int(present[-1]) + 1) if present.size else (0, 1)
        box.append(slice(low, high))
    volume = CTVolume(
        hu[tuple(box)],
        reference.spacing,
        tuple(reference.voxel_to_lps([part.start for part in box])),
        reference.direction,
        # The marks of an attack stay with what is computed from it; identifiers of the source do not matter here.
        dataclasses.replace(other.provenance, padding_hu=None),
    )
    # Every slice of an attacked cube, some of a whole scan: enough for a round number.
    limit_hu = color_limit(volume.hu[:: max(1, volume.shape[0] // _SLICES_FOR_LIMIT)])
    return Difference(volume, limit_hu, image_from_volume(volume))


def difference_node(
    shown: Difference,
    name: str,
    source_node: slicer.vtkMRMLScalarVolumeNode,
    *,
    threshold: float = DEFAULT_THRESHOLD,
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new volume node of a difference, with its colors.

    :param source_node: what it is about, under whose transform it is put.
    :param threshold: see :func:`set_difference_threshold`.
    """
    node = node_from_volume(shown.volume, name, source_node, shown.image)
    node.SetAttribute(DIFFERENCE_ATTRIBUTE, f"{shown.limit_hu:g}")
    display = node.GetDisplayNode()
    display.SetInterpolate(False)
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(-shown.limit_hu, shown.limit_hu)
    set_difference_threshold(node, threshold)
    return node


def difference_range(node: slicer.vtkMRMLScalarVolumeNode) -> tuple[float, float]:
    """The largest difference that is not colored, and that with the full color, in HU."""
    return float(node.GetDisplayNode().GetColorNode().GetAttribute(_THRESHOLD_ATTRIBUTE)), _limit(node)


def set_difference_threshold(node: slicer.vtkMRMLScalarVolumeNode, threshold: float) -> None:
    """Color only differences of more than this share (0 to 1) of that with the full color."""
    limit = _limit(node)
    threshold_hu = threshold * limit
    shown = f"{threshold_hu:g}"
    colors = own_colors(node) or add_colors(node, _COLORS, hidden=True)
    # Each color that is set makes all displays follow. A scene file keeps the attribute but not the colors of a node
    # that is hidden from editors; the brightest of a table without colors is black.
    brightest = colors.GetLookupTable().GetTableValue(_COLORS - 1)[:3]
    if colors.GetAttribute(_THRESHOLD_ATTRIBUTE) != shown or not any(brightest):
        with slicer.util.NodeModify(colors):
            colors.SetAttribute(_THRESHOLD_ATTRIBUTE, shown)
            colors.GetLookupTable().SetRange(-limit, limit)
            for index, rgba in enumerate(_rgba(limit, threshold_hu)):
                colors.SetColor(index, f"{limit * (2 * index / (_COLORS - 1) - 1):+.1f} HU", *rgba)
    node.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())


def _limit(node: slicer.vtkMRMLScalarVolumeNode) -> float:
    return float(node.GetAttribute(DIFFERENCE_ATTRIBUTE))


def _rgba(limit: float, threshold_hu: float) -> list[tuple[float, ...]]:
    """Colors from -limit to +limit: Slicer shows a voxel of an overlay wholly where they are opaque, else not."""
    share = np.linspace(-1, 1, _COLORS)
    # VTK gives each color the differences from its lower edge on, up to the next one's. What holds one that is not to
    # be colored is hidden, for a difference of exactly the threshold may lie at an edge.
    edges = np.linspace(-limit, limit, _COLORS + 1)
    crumb = 1e-9 * limit
    hidden = (edges[:-1] <= threshold_hu + crumb) & (edges[1:] > crumb - threshold_hu)
    return [
        (0.0, 0.0, 0.0, 0.0) if is_hidden else (*map(float, (1 - abs(value)) * ends[0] + abs(value) * ends[1]), 1.0)
        for value, is_hidden in zip(share, hidden, strict=True)
        for ends in (_LOWER if value < 0 else _HIGHER,)
    ]
