"""The side-by-side view of a comparison: four linked views, their captions and heatmaps, flicker, the plot's clicks."""

from __future__ import annotations

import functools
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from ...scan.windows import BONE, LUNG, MEDIASTINUM, Window
from .. import layout
from ..captions import WHITE, write_caption
from ..differences import difference_range, set_difference_threshold
from ..tables import slice_of_point
from ..targets import has_target, target_from_markups
from ..volumes import SIMULATED_ATTACK_COLOR, is_simulated_attack
from .shared import Section

VOLUMES = {
    "source": "sourceVolume",
    "protected": "protectedVolume",
    "source attacked": "sourceAttacked",
    "protected attacked": "protectedAttacked",
}
"""By view, the parameter that is the volume in it."""
HEATMAPS = {
    "protected": "protectionHeatmap",
    "source attacked": "sourceAttackedHeatmap",
    "protected attacked": "protectedAttackedHeatmap",
}
"""By view, the parameter that is the heatmap over it."""

_FLICKER_MILLISECONDS = 500
_PLOT_SIGNAL = "dataSelected(vtkStringArray*, vtkCollection*)"
_ATTACKED_COLOR = tuple(0.4 + 0.6 * part for part in SIMULATED_ATTACK_COLOR)


@functools.cache
def _titles() -> dict[str, str]:
    """What stands in each view; Slicer takes a millisecond to look up a text."""
    return {
        "source": _("Original"),
        "protected": _("Protected"),
        "source attacked": _("Original, attacked (simulated)"),
        "protected attacked": _("Protected, attacked (simulated)"),
    }


class ViewsSection(Section):
    """Shows the volumes of the parameter node side by side, in the comparison layout."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self._shows_first = False
        self._layout_before: int | None = None
        self._plot_view: Any = None
        self._selected: dict[str, tuple[int, ...]] = {}
        self._clicked_series = ""
        ui = panel.ui
        for text, first, second in (
            (_("Original / protected"), "source", "protected"),
            (_("Original / attacked"), "source", "source attacked"),
            (_("Protected / attacked"), "protected", "protected attacked"),
            (_("Attacked / protected, attacked"), "source attacked", "protected attacked"),
        ):
            ui.flickerComboBox.addItem(text, f"{first}|{second}")
        self.flicker_timer = panel.timer(_FLICKER_MILLISECONDS, self._flicker)
        # Put back what the last pair showed.
        ui.flickerComboBox.connect("currentIndexChanged(int)", lambda _index: self.leave())
        ui.flickerButton.connect("toggled(bool)", self._on_flicker_toggled)
        for button, window in ((ui.lungButton, LUNG), (ui.mediastinumButton, MEDIASTINUM), (ui.boneButton, BONE)):
            button.connect("clicked()", lambda window=window: self._show_window(window))
            panel.add_control(button, missing=self._missing_source)
        ui.centerButton.connect("clicked()", self.show)
        ui.restoreLayoutButton.connect("clicked()", self.restore_layout)
        panel.add_control(ui.centerButton, missing=panel.missing_protected)
        panel.add_control(ui.restoreLayoutButton, ui.flickerButton, missing=self._missing_views)

    def refresh(self) -> None:
        """Show or hide the overlays as the parameter node says, and listen to the plot if there is one by now."""
        parameters = self._panel.parameters
        if not parameters:
            return
        heatmaps = self._nodes(HEATMAPS)
        for node in filter(None, heatmaps.values()):
            set_difference_threshold(node, parameters.heatmapThresholdPercent / 100)
        # Colors of one volume over the other would hide what flicker is to show.
        visible = parameters.showHeatmaps and not self._panel.ui.flickerButton.checked
        layout.show_heatmaps(heatmaps, visible=visible, opacity=parameters.heatmapOpacity)
        for _view, _slice_node, composite in layout.comparison_views():
            self._panel.observe(composite, vtk.vtkCommand.ModifiedEvent, self._write_captions)
        self._write_captions()
        self._connect_plot()

    def leave(self) -> None:
        """Flicker no more, as if the user had released the button."""
        self._panel.ui.flickerButton.checked = False

    def scene_closes(self) -> None:
        """Remember the views that were shown before the comparison."""
        self._layout_before = layout.layout_before_comparison()

    def scene_closed(self) -> None:
        """Show those views: Slicer would go back to the comparison, whose views are empty now."""
        if self._layout_before is not None:
            layout.set_layout(self._layout_before)

    def close(self) -> None:
        """Let go of the plot, whose widget outlives the panel."""
        self.flicker_timer.stop()
        if self._plot_view:
            self._plot_view.disconnect(_PLOT_SIGNAL, self.on_points_selected)
            self._plot_view = None

    def show(self) -> None:
        """Switch to the comparison layout, centered on the target."""
        panel, parameters = self._panel, self._panel.parameters
        if not parameters:
            return
        self.leave()
        layout.show_comparison(
            self._nodes(VOLUMES),
            heatmaps=self._nodes(HEATMAPS),
            target_ras=target_from_markups(parameters.targetPoint) if has_target(parameters.targetPoint) else None,
            table=parameters.figuresTable,
            chart=parameters.rmseChart,
        )
        if parameters is not panel.parameters:
            # The scene was closed while the views were drawn.
            return
        if parameters.targetPoint:
            layout.keep_out_of_comparison(parameters.targetPoint.GetDisplayNode())
        self.refresh()
        node = layout.register_layout()
        if node:
            panel.observe(node, vtk.vtkCommand.ModifiedEvent, self._on_layout_changed)
        panel.changed()

    def refill(self) -> None:
        """Views must not be labeled with what they no longer show."""
        if layout.comparison_is_shown():
            self.show()

    def _show_window(self, window: Window) -> None:
        if self._panel.parameters:
            layout.set_window(self._nodes(VOLUMES).values(), window)

    def restore_layout(self) -> None:
        """Go back to the views as they were before the comparison."""
        self.leave()
        layout.restore_layout()
        self._panel.changed()

    def on_points_selected(self, series_ids: vtk.vtkStringArray, selections: vtk.vtkCollection) -> None:
        """Go to the slice whose point was clicked."""
        before, self._selected = self._selected, _points_by_series(series_ids, selections)
        # The chart keeps a selected point for each line, and tells of a click before it selects and after it.
        self._clicked_series = next(
            (series_id for series_id, points in self._selected.items() if points != before.get(series_id)),
            self._clicked_series,
        )
        parameters, points = self._panel.parameters, self._selected.get(self._clicked_series)
        if not parameters or not parameters.sourceVolume or not points:
            return
        series = slicer.mrmlScene.GetNodeByID(self._clicked_series)
        if series:
            layout.jump_to_slice(parameters.sourceVolume, slice_of_point(series, points[0]))

    def _missing_source(self) -> str:
        parameters = self._panel.parameters
        return "" if parameters and parameters.sourceVolume else _("Select a CT volume.")

    def _missing_views(self) -> str:
        is_shown = self._panel.parameters and layout.comparison_is_shown()
        return "" if is_shown else _("Show the volumes side by side first.")

    def _nodes(self, names: dict[str, str]) -> dict[str, slicer.vtkMRMLScalarVolumeNode | None]:
        return {view: getattr(self._panel.parameters, name) for view, name in names.items()}

    def _on_layout_changed(self, _caller: Any, _event: Any) -> None:
        self.refresh()
        self._panel.changed()

    def _on_flicker_toggled(self, on: bool) -> None:
        if on:
            self._shows_first = False
            self.flicker_timer.start()
        else:
            self.flicker_timer.stop()
            if self._panel.parameters:
                for view, node in self._nodes(VOLUMES).items():
                    layout.show_volume(view, node)
        self.refresh()

    def _flicker(self) -> None:
        """Show the other volume of the chosen pair, in the view of the second."""
        combo_box = self._panel.ui.flickerComboBox
        if self._panel.parameters:
            self._shows_first = not self._shows_first
            first, second = combo_box.itemData(combo_box.currentIndex).split("|")
            layout.show_volume(second, self._nodes(VOLUMES)[first if self._shows_first else second])

    def _write_captions(self, caller: Any = None, _event: Any = None) -> None:
        """Say in each image what it shows. Flicker and the user change that, each in one image."""
        if not self._panel.parameters:
            return
        heatmaps = self._nodes(HEATMAPS)
        titles = {node.GetID(): _titles()[view] for view, node in self._nodes(VOLUMES).items() if node}
        for view, _slice_node, composite in layout.comparison_views():
            if caller is not None and caller is not composite:
                continue
            tag, node = layout.VIEWS[view].tag, slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
            if node is None:
                write_caption(tag, _("{title}: none yet").format(title=_titles()[view]))
                continue
            text, limit, colors = titles.get(node.GetID(), node.GetName()), None, None
            heatmap = heatmaps.get(view)
            if heatmap and composite.GetForegroundOpacity() > 0:
                threshold, limit = difference_range(heatmap)
                # Short: on a screen of 1280 pixels a view has some 320.
                text = "\n".join((text, _("in color: changed more than {threshold:g} HU").format(threshold=threshold)))
                colors = heatmap.GetDisplayNode().GetColorNode().GetLookupTable()
            write_caption(tag, text, _ATTACKED_COLOR if is_simulated_attack(node) else WHITE, limit, colors)

    def _connect_plot(self) -> None:
        # The plot's widget exists once the layout has been shown.
        manager = slicer.app.layoutManager()
        if self._plot_view or not manager:
            return
        for index in range(manager.plotViewCount):
            widget = manager.plotWidget(index)
            if widget.mrmlPlotViewNode() is layout.plot_view_node():
                self._plot_view = widget.plotView()
                self._plot_view.connect(_PLOT_SIGNAL, self.on_points_selected)


def _points_by_series(series_ids: vtk.vtkStringArray, selections: vtk.vtkCollection) -> dict[str, tuple[int, ...]]:
    """Indices of the selected points, for each line that has any."""
    count = series_ids.GetNumberOfValues()
    points = {series_ids.GetValue(index): selections.GetItemAsObject(index) for index in range(count)}
    return {
        series_id: tuple(selected.GetValue(index) for index in range(selected.GetNumberOfValues()))
        for series_id, selected in points.items()
        if selected is not None and selected.GetNumberOfValues()
    }
