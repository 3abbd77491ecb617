"""Difference heatmaps as overlay volumes: signed HU, blue where lower and orange where higher, black where equal.

They are meant to be added to the scan below (see ``layout.show_heatmaps``): black adds nothing, and what differs a
little shines a little. Laid over it, any color would cover the scan, since Slicer shows a voxel of an overlay wholly or
not at all.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import slicer
from slicer.i18n import tr as _

from ..errors import InputError
from ..report.pictures import color_limit
from ..scan.volume import CTVolume
from .volumes import DIFFERENCE_ATTRIBUTE, node_from_volume, volume_from_node

_SLICES_FOR_LIMIT = 32
_COLORS = 255  # odd, so that one color stands for no difference
_LOWER, _HIGHER = np.array((0.20, 0.55, 1.0)), np.array((1.0, 0.55, 0.05))
_THRESHOLD_ATTRIBUTE = "MITSGAN.ThresholdHU"


def difference_node(
    reference_node: slicer.vtkMRMLScalarVolumeNode,
    other_node: slicer.vtkMRMLScalarVolumeNode,
    name: str,
    *,
    limit_hu: float | None = None,
    threshold_hu: float = 1.0,
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new volume of other minus reference in HU, cut to where they differ, with its colors and color legend.

    :param limit_hu: difference with the full color; from the voxels when None.
    :param threshold_hu: smaller differences are not shown; see :func:`set_difference_threshold`.
    :raises InputError: when the two volumes do not lie on the same grid.
    """
    difference = _difference(volume_from_node(reference_node), volume_from_node(other_node))
    # Every slice of an attacked cube, some of a whole scan: enough for a round number.
    some = difference.hu[:: max(1, difference.shape[0] // _SLICES_FOR_LIMIT)]
    limit = float(limit_hu or color_limit(some))
    node = node_from_volume(difference, name, reference_node)
    node.SetAttribute(DIFFERENCE_ATTRIBUTE, f"{limit:g}")
    display = node.GetDisplayNode()
    display.SetInterpolate(False)
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(-limit, limit)
    set_difference_threshold(node, threshold_hu)
    legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(node)
    legend.SetTitleText(_("Difference (HU)"))
    legend.SetLabelFormat("%+.0f")
    legend.SetNumberOfLabels(5)
    legend.SetVisibility(False)
    return node


def set_difference_threshold(node: slicer.vtkMRMLScalarVolumeNode, threshold_hu: float) -> None:
    """Show only differences of at least ``threshold_hu`` in a node made by :func:`difference_node`."""
    limit = float(node.GetAttribute(DIFFERENCE_ATTRIBUTE))
    shown = f"{threshold_hu:g}"
    display = node.GetDisplayNode()
    colors = display.GetColorNode()
    name = f"{node.GetName()} colors"
    if colors is None or colors.GetName() != name:
        colors = slicer.vtkMRMLColorTableNode()
        colors.SetTypeToUser()
        colors.SetName(name)
        colors.SetHideFromEditors(True)
        colors.SetNumberOfColors(_COLORS)
        slicer.mrmlScene.AddNode(colors)
    # Each color that is set makes all displays follow. A scene file keeps the attribute but not the colors of a node
    # that is hidden from editors; the brightest of a table without colors is black.
    if colors.GetAttribute(_THRESHOLD_ATTRIBUTE) != shown or not any(_color(colors, _COLORS - 1)):
        with slicer.util.NodeModify(colors):
            colors.SetAttribute(_THRESHOLD_ATTRIBUTE, shown)
            colors.GetLookupTable().SetRange(-limit, limit)
            for index, rgb in enumerate(_rgb(limit, threshold_hu)):
                colors.SetColor(index, f"{limit * (2 * index / (_COLORS - 1) - 1):+.1f} HU", *rgb, 1.0)
    display.SetAndObserveColorNodeID(colors.GetID())


def _difference(reference: CTVolume, other: CTVolume) -> CTVolume:
    if not reference.same_geometry(other):
        raise InputError(_("The two volumes do not lie on the same grid; compare a scan with its own result."))
    difference = np.empty(reference.shape, np.int16)
    # Slice by slice: the wider integers of a whole scan would take half a gigabyte.
    changed = [np.zeros(size, bool) for size in reference.shape]
    for k, (before, after) in enumerate(zip(reference.hu, other.hu, strict=True)):
        difference[k] = np.clip(np.subtract(after, before, dtype=np.int32), -32768, 32767)
        is_changed = difference[k] != 0
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
    return CTVolume(
        difference[tuple(box)],
        reference.spacing,
        tuple(reference.voxel_to_lps([part.start for part in box])),
        reference.direction,
        # The marks of an attack stay with what is computed from it; identifiers of the source do not matter here.
        dataclasses.replace(other.provenance, padding_hu=None),
    )


def _color(colors: slicer.vtkMRMLColorTableNode, index: int) -> tuple[float, ...]:
    return colors.GetLookupTable().GetTableValue(index)[:3]


def _rgb(limit: float, threshold_hu: float) -> list[tuple[float, float, float]]:
    share = np.linspace(-1, 1, _COLORS)
    # Half a color's width less, so that a difference of exactly the threshold is seen.
    hidden = np.abs(share) * limit < threshold_hu - limit / (_COLORS - 1)
    return [
        (0.0, 0.0, 0.0)
        if is_hidden or value == 0
        else tuple(float(part) for part in abs(value) ** 0.5 * (_LOWER if value < 0 else _HIGHER))
        for value, is_hidden in zip(share, hidden, strict=True)
    ]
