"""The comparison layout: source, protected, and both attacked, in four slice views that move together.

What the views show is done on MRML nodes, which the application's views follow; only their captions are not in MRML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import slicer
from slicer.i18n import tr as _

from ..scan.windows import LUNG, Window
from .volumes import SIMULATED_ATTACK_COLOR, ras_from_voxel, require_in_scene

# Custom layouts need a number of their own; Slicer's are below 100.
COMPARISON_LAYOUT = 14771
PREVIOUS_LAYOUT_ATTRIBUTE = "MITSGAN.PreviousLayout"
# Linked views act on all views of their group, so the comparison must not share the group of the ordinary views.
_VIEW_GROUP = 14771
_PLOT, _TABLE = "MITSGANPlot", "MITSGANTable"
_FIGURES = {"vtkMRMLPlotViewNode": _PLOT, "vtkMRMLTableViewNode": _TABLE}
_ZOOM_MM = 120.0
_LABELS_OPACITY = 0.4


@dataclass(frozen=True)
class SliceView:
    """One slice view of the comparison: its name in MRML, its short label, and the color of its bar."""

    tag: str
    label: str
    color: str


def hex_color(rgb: Sequence[float]) -> str:
    """A color as HTML and Slicer's layouts write it, of red, green and blue from 0 to 1."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


# A view cannot be narrower than its label, which Slicer clips: the whole names are in the images.
VIEWS = {
    "source": SliceView("MITSGANSource", "O", "#7a8793"),
    "protected": SliceView("MITSGANProtected", "P", "#2f80c3"),
    "source attacked": SliceView("MITSGANSourceAttacked", "OA", hex_color(SIMULATED_ATTACK_COLOR)),
    "protected attacked": SliceView("MITSGANProtectedAttacked", "PA", hex_color(SIMULATED_ATTACK_COLOR)),
}


def layout_description() -> str:
    """The layout as Slicer's XML: a tab of images, before the attack above after it, and a tab of plot and table."""
    slices = [
        _view(
            "vtkMRMLSliceNode",
            view.tag,
            viewlabel=view.label,
            orientation="Axial",
            viewcolor=view.color,
            viewgroup=str(_VIEW_GROUP),
        )
        for view in VIEWS.values()
    ]
    images = _layout("vertical", [_layout("horizontal", slices[:2]), _layout("horizontal", slices[2:])])
    figures = [_view(kind, tag, viewlabel=label) for (kind, tag), label in zip(_FIGURES.items(), "FT", strict=True)]
    tabs = _layout("tab", [images, _layout("vertical", figures)], names=(_("Images"), _("Figures")))
    return ElementTree.tostring(tabs, encoding="unicode")


def _layout(kind: str, contents: Sequence[ElementTree.Element], names: Sequence[str] = ()) -> ElementTree.Element:
    layout = ElementTree.Element("layout", {"type": kind, "split": "true"})
    for index, content in enumerate(contents):
        # Views of a row share its width, rows the height; a tab has a name.
        attributes = {"name": names[index]} if names else {"splitSize": "500"}
        ElementTree.SubElement(layout, "item", attributes).append(content)
    return layout


def _view(class_name: str, tag: str, **properties: str) -> ElementTree.Element:
    node = ElementTree.Element("view", {"class": class_name, "singletontag": tag})
    for name, value in properties.items():
        # Without an action: also of views that were made before the layout was shown.
        ElementTree.SubElement(node, "property", name=name).text = value
    return node


def register_layout() -> slicer.vtkMRMLLayoutNode | None:
    """Make the layout known to the scene's layout node, and give that node; None in a scene without views."""
    node = _layout_node()
    if node is not None and not node.IsLayoutDescription(COMPARISON_LAYOUT):
        node.AddLayoutDescription(COMPARISON_LAYOUT, layout_description())
    return node


def prepare_view() -> bool:
    """Make one of the comparison's views that does not exist yet; whether there was one.

    Slicer makes those of a layout all together, and stands still for a second.
    """
    scene = slicer.mrmlScene
    kinds = [*(("vtkMRMLSliceNode", view.tag) for view in VIEWS.values()), *_FIGURES.items()]
    for class_name, tag in kinds:
        if scene.GetSingletonNode(tag, class_name) is None:
            # As Slicer's layout logic does; it knows the orientations by name.
            node = scene.CreateNodeByClass(class_name)
            node.UnRegister(None)
            node.SetSingletonTag(tag)
            node.SetLayoutName(tag)
            node.SetName(tag)
            scene.AddNode(node)
            return True
    return False


def show_comparison(
    volumes: Mapping[str, slicer.vtkMRMLScalarVolumeNode | None],
    *,
    heatmaps: Mapping[str, slicer.vtkMRMLScalarVolumeNode | None],
    target_ras: Sequence[float] | None,
    table: slicer.vtkMRMLTableNode | None = None,
    chart: slicer.vtkMRMLPlotChartNode | None = None,
) -> None:
    """Switch to the comparison layout and fill it, in a lung window.

    :param volumes, heatmaps: by the names in :data:`VIEWS`; views without a volume are empty.
    :param target_ras: world point in mm that all views are centered on and zoomed to; None shows whole slices.
    :raises CancelledError: the scene was closed while the views were laid out, which lets the application listen.
    """
    layout = register_layout()
    if layout is None:
        return
    if layout.GetViewArrangement() != COMPARISON_LAYOUT:
        # Together: Slicer lays out its views anew after each single change.
        with slicer.util.NodeModify(layout):
            layout.SetAttribute(PREVIOUS_LAYOUT_ATTRIBUTE, str(layout.GetViewArrangement()))
            # Or the layout would show that view alone.
            layout.RemoveAllMaximizedViewNodes()
            layout.SetViewArrangement(COMPARISON_LAYOUT)
    _open_first_tab()
    # New views get their size now; the zoom below depends on it.
    slicer.app.processEvents()
    require_in_scene(*filter(None, volumes.values()))
    set_window(volumes.values(), LUNG)
    views = comparison_views()
    for _name, _slice_node, composite in views:
        composite.SetLinkedControl(False)
    for name, slice_node, composite in views:
        # Together: Slicer writes its annotations anew, and draws, after each single change.
        with slicer.util.NodeModify(composite), slicer.util.NodeModify(slice_node):
            # What these views are labeled with is what they show, whatever volume the user loads meanwhile.
            composite.SetDoPropagateVolumeSelection(False)
            composite.SetForegroundVolumeID(_id(heatmaps.get(name)))
            composite.SetBackgroundVolumeID(_id(volumes.get(name)))
            composite.SetLabelVolumeID(None)
            if volumes.get(name):
                slice_node.RotateToVolumePlane(volumes[name])
            if target_ras is not None:
                _zoom(slice_node, _ZOOM_MM)
                slice_node.JumpSliceByCentering(*target_ras)
            elif volumes.get(name):
                _fit(slice_node, volumes[name])
    for _name, _slice_node, composite in views:
        with slicer.util.NodeModify(composite):
            composite.SetLinkedControl(True)
            # Also while the mouse moves, not only when it is let go.
            composite.SetHotLinkedControl(True)
    plot_view = plot_view_node()
    if plot_view is not None:
        plot_view.SetDoPropagatePlotChartSelection(False)
        plot_view.SetPlotChartNodeID(_id(chart))
        plot_view.SetInteractionMode(slicer.vtkMRMLPlotViewNode.InteractionModeSelectPoints)
    table_view = slicer.mrmlScene.GetSingletonNode(_TABLE, "vtkMRMLTableViewNode")
    if table_view is not None:
        table_view.SetDoPropagateTableSelection(False)
        table_view.SetTableNodeID(_id(table))


def plot_view_node() -> slicer.vtkMRMLPlotViewNode | None:
    """The comparison's plot view; None until the layout was first shown."""
    return slicer.mrmlScene.GetSingletonNode(_PLOT, "vtkMRMLPlotViewNode")


def comparison_is_shown() -> bool:
    """Whether the comparison layout is the current one."""
    return layout_before_comparison() is not None


def layout_before_comparison() -> int | None:
    """The number of the layout before the comparison; None while no comparison is shown."""
    layout = _layout_node()
    if layout is None or layout.GetViewArrangement() != COMPARISON_LAYOUT:
        return None
    previous = layout.GetAttribute(PREVIOUS_LAYOUT_ATTRIBUTE)
    return int(previous) if previous else layout.SlicerLayoutConventionalView


def restore_layout() -> None:
    """Go back from the comparison to the layout that was shown before it."""
    previous = layout_before_comparison()
    if previous is not None:
        set_layout(previous)


def set_layout(number: int) -> None:
    """Show a layout."""
    layout = _layout_node()
    layout.RemoveAllMaximizedViewNodes()
    layout.SetViewArrangement(number)


def show_volume(view: str, node: slicer.vtkMRMLScalarVolumeNode | None) -> None:
    """Put a volume into one view of the comparison (a name in :data:`VIEWS`), all else unchanged."""
    for name, _slice_node, composite in comparison_views():
        if name == view:
            composite.SetBackgroundVolumeID(_id(node))


def show_heatmaps(
    heatmaps: Mapping[str, slicer.vtkMRMLScalarVolumeNode | None], *, visible: bool, opacity: float
) -> None:
    """Show or hide the overlays in the comparison views."""
    for name, _slice_node, composite in comparison_views():
        node = heatmaps.get(name)
        with slicer.util.NodeModify(composite):
            composite.SetForegroundVolumeID(_id(node))
            # Or Slicer, where that is not its default, shows the scan beyond the overlay's box at half its brightness.
            composite.SetClipToBackgroundVolume(True)
            composite.SetForegroundOpacity(opacity if visible and node else 0.0)
            composite.SetCompositing(composite.Alpha)


def show_in_ordinary_views(node: slicer.vtkMRMLScalarVolumeNode, *, fit: bool = False) -> None:
    """Show a volume in the background of all slice views but those of the comparison.

    :param fit: also zoom to the whole volume.
    """
    logic = slicer.app.applicationLogic()
    logic.GetSelectionNode().SetActiveVolumeID(node.GetID())
    logic.PropagateBackgroundVolumeSelection(int(fit))


def displayed_volume() -> slicer.vtkMRMLVolumeNode | None:
    """The volume in the background of the ordinary slice views; None where they show none."""
    for composite in ordinary_views("vtkMRMLSliceCompositeNode"):
        node = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
        if node is not None:
            return node
    return None


def show_labels(node: slicer.vtkMRMLLabelMapVolumeNode) -> None:
    """Lay a label map over what the ordinary slice views show."""
    logic = slicer.app.applicationLogic()
    logic.GetSelectionNode().SetActiveLabelVolumeID(node.GetID())
    logic.PropagateLabelVolumeSelection(0)


def set_labels_visible(node: slicer.vtkMRMLLabelMapVolumeNode, visible: bool) -> None:
    """Show or hide a label map in the views that have it."""
    opacity = _LABELS_OPACITY if visible else 0.0
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if composite.GetLabelVolumeID() == node.GetID() and composite.GetLabelOpacity() != opacity:
            composite.SetLabelOpacity(opacity)


def go_to(ras: Sequence[float]) -> None:
    """Move all slice views to a world point in mm."""
    for slice_node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        slice_node.JumpSliceByOffsetting(*ras)


def show_table(node: slicer.vtkMRMLTableNode) -> None:
    """Show a table, in a layout that has room for one."""
    layout = _layout_node()
    if layout is not None and not comparison_is_shown():
        set_layout(layout.SlicerLayoutFourUpTableView)
    logic = slicer.app.applicationLogic()
    logic.GetSelectionNode().SetActiveTableID(node.GetID())
    logic.PropagateTableSelection()


def keep_out_of_comparison(display: slicer.vtkMRMLDisplayNode) -> None:
    """Show what ``display`` shows in all views but those of the comparison, where it would cover what is compared."""
    # Together: each change draws.
    with slicer.util.NodeModify(display):
        display.RemoveAllViewNodeIDs()
        for node in ordinary_views("vtkMRMLAbstractViewNode"):
            display.AddViewNodeID(node.GetID())


def jump_to_slice(node: slicer.vtkMRMLScalarVolumeNode, k: int) -> None:
    """Move the comparison views to slice ``k`` (0-based) of a volume node, without moving them sideways."""
    columns, rows, slices = node.GetImageData().GetDimensions()
    if not 0 <= k < slices:
        return
    ras = ras_from_voxel(node, (k, rows // 2, columns // 2))
    for _name, slice_node, _composite in comparison_views():
        slice_node.JumpSliceByOffsetting(*ras)


def set_window(nodes: Iterable[slicer.vtkMRMLScalarVolumeNode | None], window: Window) -> None:
    """Show volumes in a display window in HU."""
    for node in filter(None, nodes):
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(window.width, window.center)


def ordinary_views(class_name: str) -> list[Any]:
    """The views of a class, or their composite nodes, but for those of the comparison."""
    tags = {view.tag for view in VIEWS.values()}
    return [node for node in slicer.util.getNodesByClass(class_name) if node.GetLayoutName() not in tags]


def _layout_node() -> slicer.vtkMRMLLayoutNode | None:
    return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")


def comparison_views() -> list[tuple[str, slicer.vtkMRMLSliceNode, slicer.vtkMRMLSliceCompositeNode]]:
    """Name in :data:`VIEWS`, slice node and composite node of the comparison's views that exist by now.

    They are made when the layout is first shown.
    """
    found = []
    for name, view in VIEWS.items():
        slice_node = slicer.mrmlScene.GetSingletonNode(view.tag, "vtkMRMLSliceNode")
        composite = slicer.vtkMRMLSliceLogic.GetSliceCompositeNode(slice_node) if slice_node else None
        if composite is not None:
            found.append((name, slice_node, composite))
    return found


def _open_first_tab() -> None:
    """Turn to the images, where the layout's widgets exist."""
    manager = slicer.app.layoutManager()
    widget = manager.sliceWidget(VIEWS["source"].tag) if manager else None
    while widget is not None:
        if widget.className() == "QTabWidget":
            widget.setCurrentIndex(0)
            return
        widget = widget.parent()


def _fit(slice_node: slicer.vtkMRMLSliceNode, node: slicer.vtkMRMLScalarVolumeNode) -> None:
    # Slicer fits a view to a volume only when somebody asks, and new views look at the world's origin.
    columns, rows, slices = node.GetImageData().GetDimensions()
    column_mm, row_mm, _slice_mm = node.GetSpacing()
    slice_node.JumpSliceByCentering(*ras_from_voxel(node, ((slices - 1) // 2, (rows - 1) / 2, (columns - 1) / 2)))
    _zoom(slice_node, max(columns * column_mm, rows * row_mm))


def _zoom(slice_node: slicer.vtkMRMLSliceNode, millimeters: float) -> None:
    width, height, _depth = slice_node.GetDimensions()
    if width > 0 and height > 0:
        shorter = min(width, height)
        slice_node.SetFieldOfView(
            millimeters * width / shorter, millimeters * height / shorter, slice_node.GetFieldOfView()[2]
        )


def _id(node: slicer.vtkMRMLNode | None) -> str | None:
    return node.GetID() if node is not None else None
