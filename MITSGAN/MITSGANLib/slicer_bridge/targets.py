"""The target of an attack as a point list: placed with one click through Slicer's markups, one point at a time."""

from __future__ import annotations

import numpy as np
import slicer
from slicer.i18n import tr as _

from ..errors import MITSGANError, TargetError
from ..scan.targets import check_target, outgrows_attack
from ..scan.volume import CTVolume
from .volumes import SIMULATED_ATTACK_COLOR, volume_from_node, voxel_from_ras


def new_target_list() -> slicer.vtkMRMLMarkupsFiducialNode:
    """An empty point list that looks like a target."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", _("Attack target"))
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetSelectedColor(SIMULATED_ATTACK_COLOR)
    display.SetGlyphType(display.CrossDot2D)
    display.SetPointLabelsVisibility(False)
    return node


def start_placing(node: slicer.vtkMRMLMarkupsFiducialNode) -> None:
    """Let the next click in a view put a point into the list."""
    node.CreateDefaultDisplayNodes()
    # Slicer takes no click in a view that does not show the list, and the comparison keeps the last target out of its
    # views (see ``layout.keep_out_of_comparison``).
    node.GetDisplayNode().RemoveAllViewNodeIDs()
    logic = slicer.modules.markups.logic()
    logic.SetActiveList(node)
    logic.StartPlaceMode(False)


def stop_placing(node: slicer.vtkMRMLMarkupsFiducialNode | None) -> None:
    """Leave the mode in which a click places a point of this list."""
    if is_placing(node):
        interaction = interaction_node()
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)


def is_placing(node: slicer.vtkMRMLMarkupsFiducialNode | None) -> bool:
    """Whether a click in a view would place a point of this list."""
    interaction = interaction_node()
    if node is None or interaction is None or interaction.GetCurrentInteractionMode() != interaction.Place:
        return False
    return slicer.app.applicationLogic().GetSelectionNode().GetActivePlaceNodeID() == node.GetID()


def interaction_node() -> slicer.vtkMRMLInteractionNode | None:
    """The node that says what the mouse does, and changes when that does."""
    return slicer.app.applicationLogic().GetInteractionNode()


def has_target(node: slicer.vtkMRMLMarkupsNode | None) -> bool:
    """Whether a point has been placed."""
    return node is not None and node.GetNumberOfDefinedControlPoints() > 0


def keep_last_point(node: slicer.vtkMRMLMarkupsNode) -> None:
    """Remove all placed points but the last: an attack has one target."""
    while node.GetNumberOfDefinedControlPoints() > 1:
        node.RemoveNthControlPoint(0)


def target_from_markups(node: slicer.vtkMRMLMarkupsNode | None) -> tuple[float, float, float]:
    """World RAS position in mm of the point that was placed last in a markups node.

    :raises TargetError: when no point has been placed.
    """
    if node is not None:
        for index in reversed(range(node.GetNumberOfControlPoints())):
            if node.GetNthControlPointPositionStatus(index) == slicer.vtkMRMLMarkupsNode.PositionDefined:
                return tuple(node.GetNthControlPointPositionWorld(index))
    raise TargetError(_("No target point is placed; place one on the structure to attack."))


def target_problem(target: slicer.vtkMRMLMarkupsNode | None, node: slicer.vtkMRMLScalarVolumeNode | None) -> str:
    """Why nothing can be attacked at a target, as in air or near the border; empty where it can, or without one."""
    if node is None or not has_target(target):
        return ""
    try:
        check_target(_voxels_of(node), voxel_from_ras(node, target_from_markups(target)))
    except MITSGANError as error:
        return str(error)
    return ""


def is_too_large(target: slicer.vtkMRMLMarkupsNode, node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether what lies at a usable target is larger than what the attack can remove without a trace."""
    return outgrows_attack(_voxels_of(node), voxel_from_ras(node, target_from_markups(target)))


def _voxels_of(node: slicer.vtkMRMLScalarVolumeNode) -> CTVolume:
    """The voxels of a volume with their spacing; its place in the patient is left out, and mostly nothing is copied."""
    values = slicer.util.arrayFromVolume(node)
    return CTVolume(values, node.GetSpacing()) if values.dtype == np.int16 else volume_from_node(node)
