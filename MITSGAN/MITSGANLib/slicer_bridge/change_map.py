"""Maps of what was changed in a signed or watermarked scan: label maps over the scan, in the ordinary views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import slicer
import vtk
from slicer.i18n import tr as _

from ..scan.volume import CTVolume
from ..signature.verification import CHANGED_TILE, INTACT, MAP_VALUES, MISSING_SLICE, WRONG_SLICE
from .volumes import SOURCE_ROLE, add_colors, free_name, image_from_volume, set_grid

CHANGE_MAP_ATTRIBUTE = "MITSGAN.ChangeMap"
LEGEND_CHANGED, LEGEND_UNTOLD = 1, 2
"""Labels of :func:`examination_legend`."""

RGBA = tuple[float, float, float, float]

# Unlike the orange of simulated attacks, and the blue and orange of differences.
_CLEAR: RGBA = (0.0, 0.0, 0.0, 0.0)
_MAGENTA: RGBA = (0.90, 0.10, 0.55, 1.0)
_YELLOW: RGBA = (0.95, 0.80, 0.10, 1.0)
_GRAY: RGBA = (0.55, 0.55, 0.60, 1.0)
_FAINT_GRAY: RGBA = (0.55, 0.55, 0.60, 0.4)


@dataclass(frozen=True)
class Legend:
    """What a map is called, and what its labels mean."""

    title: str
    labels: Mapping[int, tuple[str, RGBA]]  # for each value from 0 on, its name and color


def signature_legend() -> Legend:
    """The legend of what was changed since a scan was signed, by ``MAP_VALUES``."""
    colors = {INTACT: _CLEAR, CHANGED_TILE: _MAGENTA, WRONG_SLICE: _YELLOW, MISSING_SLICE: _GRAY}
    return Legend(_("Changes since signing"), {value: (MAP_VALUES[value], rgba) for value, rgba in colors.items()})


def examination_legend() -> Legend:
    """The legend of what an examination found."""
    labels = {
        0: (_("nothing found, or outside the lungs"), _CLEAR),
        LEGEND_CHANGED: (_("changed"), _MAGENTA),
        LEGEND_UNTOLD: (_("cannot be told"), _FAINT_GRAY),
    }
    return Legend(_("Examination"), labels)


def image_of_labels(labels: CTVolume) -> vtk.vtkImageData:
    """The image of a label map, which is made in the background."""
    return image_from_volume(labels, vtk.VTK_UNSIGNED_CHAR)


def change_map_node(
    labels: CTVolume,
    over: slicer.vtkMRMLScalarVolumeNode,
    legend: Legend,
    image: vtk.vtkImageData | None = None,
) -> slicer.vtkMRMLLabelMapVolumeNode:
    """A new label map node.

    :param labels: of the values in the legend.
    :param over: the volume that it is about, under whose transform it is put.
    :param image: of :func:`image_of_labels`; None makes it.
    """
    node = slicer.vtkMRMLLabelMapVolumeNode()
    node.SetName(free_name(legend.title))
    node.SetAttribute(CHANGE_MAP_ATTRIBUTE, "true")
    set_grid(node, labels)
    node.SetAndObserveImageData(image or image_of_labels(labels))
    slicer.mrmlScene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    colors = add_colors(node, len(legend.labels), hidden=False)
    for value, (words, rgba) in legend.labels.items():
        colors.SetColor(value, words, *rgba)
    node.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    node.SetAndObserveTransformNodeID(over.GetTransformNodeID())
    node.SetNodeReferenceID(SOURCE_ROLE, over.GetID())
    return node
