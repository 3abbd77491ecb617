"""The map of what was changed since a scan was signed: a label map over the scan, in the ordinary views."""

from __future__ import annotations

import numpy as np
import slicer
from slicer.i18n import tr as _

from ..integrity import MAP_VALUES
from ..integrity.verification import CHANGED_TILE, INTACT, MISSING_SLICE, WRONG_SLICE
from ..volume import CTVolume, lps_from_ras
from .layout import restore_layout, set_labels_opacity, show_in_ordinary_views, show_labels
from .volumes import ras_on_grid

CHANGE_MAP_ATTRIBUTE = "MITSGAN.ChangeMap"
# Unlike the orange of simulated attacks, and the blue and orange of differences.
COLORS = {
    INTACT: (0.0, 0.0, 0.0, 0.0),
    CHANGED_TILE: (0.90, 0.10, 0.55, 1.0),
    WRONG_SLICE: (0.95, 0.80, 0.10, 1.0),
    MISSING_SLICE: (0.55, 0.55, 0.60, 1.0),
}
_OPACITY = 0.4


def change_map_node(labels: CTVolume, over: slicer.vtkMRMLScalarVolumeNode | None) -> slicer.vtkMRMLLabelMapVolumeNode:
    """A new label map node.

    :param labels: of ``MAP_VALUES``, as ``Verification.map_volume`` gives it.
    :param over: the volume that it is about, under whose transform it is put; None where none is in the scene.
    """
    scene = slicer.mrmlScene
    node = slicer.vtkMRMLLabelMapVolumeNode()
    node.SetName(scene.GenerateUniqueName(_("Changes since signing")))
    node.SetAttribute(CHANGE_MAP_ATTRIBUTE, "true")
    directions = np.eye(4)
    directions[:3, :3] = np.diag((-1.0, -1.0, 1.0)) @ labels.direction
    node.SetIJKToRASDirectionMatrix(slicer.util.vtkMatrixFromArray(directions))
    node.SetSpacing(labels.spacing)
    node.SetOrigin(lps_from_ras(labels.origin))
    slicer.util.updateVolumeFromArray(node, labels.hu.astype(np.uint8))
    scene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID(_colors(node.GetName()).GetID())
    if over is not None:
        node.SetAndObserveTransformNodeID(over.GetTransformNodeID())
    return node


def show_changes(
    node: slicer.vtkMRMLLabelMapVolumeNode, over: slicer.vtkMRMLScalarVolumeNode | None, *, visible: bool
) -> None:
    """Show a change map over its volume in the ordinary views, at the first slice with changes."""
    restore_layout()
    if over is not None:
        show_in_ordinary_views(over)
    labels = slicer.util.arrayFromVolume(node)
    k = int(labels.any(axis=(1, 2)).argmax())
    rows, columns = np.nonzero(labels[k])
    ras = ras_on_grid(node, (k, rows.mean(), columns.mean()) if rows.size else (k, 0, 0))
    show_labels(node, _OPACITY if visible else 0.0, ras)


def set_changes_visible(node: slicer.vtkMRMLLabelMapVolumeNode, visible: bool) -> None:
    """Show or hide a change map in the views that have it."""
    set_labels_opacity(node, _OPACITY if visible else 0.0)


def _colors(name: str) -> slicer.vtkMRMLColorTableNode:
    # Not hidden from editors: a scene file keeps no colors of those that are.
    colors = slicer.vtkMRMLColorTableNode()
    colors.SetTypeToUser()
    colors.SetName(_("{name} colors").format(name=name))
    colors.SetNumberOfColors(len(COLORS))
    for value, rgba in COLORS.items():
        colors.SetColor(value, MAP_VALUES[value], *rgba)
    slicer.mrmlScene.AddNode(colors)
    return colors
