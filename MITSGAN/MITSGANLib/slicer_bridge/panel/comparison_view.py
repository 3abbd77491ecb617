"""The side-by-side view of a comparison: four linked views, their captions and heatmaps, flicker, the plot's clicks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from ...errors import TargetError
from ...scan.windows import LUNG
from .. import layout
from ..captions import Caption, ColorKey, write_caption
from ..differences import difference_range, set_difference_threshold
from ..tables import slice_of_point
from ..targets import target_from_markups
from ..volumes import SIMULATED_ATTACK_COLOR, is_simulated_attack

_PLOT_SIGNAL = "dataSelected(vtkStringArray*, vtkCollection*)"
_COLOR, _ATTACKED_COLOR = (1.0, 1.0, 1.0), tuple(0.4 + 0.6 * part for part in SIMULATED_ATTACK_COLOR)


@functools.cache
def _titles() -> dict[str, str]:
    """What stands in each view; Slicer takes a millisecond to look up a text."""
    return {
        "source": _("Original"),
        "protected": _("Protected"),
        "source attacked": _("Original, attacked (simulated)"),
        "protected attacked": _("Protected, attacked (simulated)"),
    }


def volumes_of(parameters: Any) -> dict[str, slicer.vtkMRMLScalarVolumeNode | None]:
    """The volumes of the module's parameter node by the names of the views."""
    return {
        "source": parameters.sourceVolume,
        "protected": parameters.protectedVolume,
        "source attacked": parameters.sourceAttacked,
        "protected attacked": parameters.protectedAttacked,
    }


def heatmaps_of(parameters: Any) -> dict[str, slicer.vtkMRMLScalarVolumeNode | None]:
    """The heatmaps of the module's parameter node by the names of the views."""
    return {
        "protected": parameters.protectionHeatmap,
        "source attacked": parameters.sourceAttackedHeatmap,
        "protected attacked": parameters.protectedAttackedHeatmap,
    }


class ComparisonView:
    """Shows what the parameter node holds, in the comparison layout.

    :param get_parameters: gives the module's parameter node, or None while the panel shows none.
    :param observer: see :class:`~MITSGANLib.slicer_bridge.panel.shared.Panel`.
    :param flicker_timer: a stopped timer, whose time-out calls :meth:`flicker`.
    """

    def __init__(
        self, get_parameters: Callable[[], Any], observer: Any, flicker_button: Any, flicker_timer: Any
    ) -> None:
        self._get_parameters, self._observer = get_parameters, observer
        self._button, self._timer = flicker_button, flicker_timer
        self._shows_first = False
        self._plot_view: Any = None
        self._selected: dict[str, tuple[int, ...]] = {}
        self._clicked_series = ""

    def show(self) -> None:
        """Switch to the comparison layout, centered on the target, in a lung window."""
        parameters = self._get_parameters()
        if not parameters:
            return
        self.stop_flicker()
        try:
            ras = target_from_markups(parameters.targetPoint)
        except TargetError:
            ras = None
        layout.show_comparison(
            volumes_of(parameters),
            heatmaps=heatmaps_of(parameters),
            target_ras=ras,
            window=LUNG,
            table=parameters.figuresTable,
            chart=parameters.rmseChart,
        )
        if parameters is not self._get_parameters():
            # The scene was closed while the views were drawn.
            return
        if parameters.targetPoint:
            layout.keep_out_of_comparison(parameters.targetPoint.GetDisplayNode())
        self.refresh()

    def refresh(self) -> None:
        """Show or hide the overlays as the parameter node says, and listen to the plot if there is one by now."""
        parameters = self._get_parameters()
        if not parameters:
            return
        heatmaps = heatmaps_of(parameters)
        for node in filter(None, heatmaps.values()):
            set_difference_threshold(node, parameters.heatmapThresholdPercent / 100)
        # Colors of one volume over the other would hide what flicker is to show.
        visible = parameters.showHeatmaps and not self._button.checked
        layout.show_heatmaps(heatmaps, visible=visible, opacity=parameters.heatmapOpacity)
        for _view, composite in layout.composites():
            if not self._observer.hasObserver(composite, vtk.vtkCommand.ModifiedEvent, self._write_captions):
                self._observer.addObserver(composite, vtk.vtkCommand.ModifiedEvent, self._write_captions)
        self._write_captions()
        self._connect_plot()

    def start_flicker(self) -> None:
        """Begin to alternate two volumes in one view."""
        self._shows_first = False
        self.refresh()
        self._timer.start()

    def flicker(self, pair: Sequence[str]) -> None:
        """Show the other volume of the pair (two names of views), in the view of the second."""
        parameters = self._get_parameters()
        if parameters:
            self._shows_first = not self._shows_first
            first, second = pair
            layout.show_volume(second, volumes_of(parameters)[first if self._shows_first else second])

    def end_flicker(self) -> None:
        """Stop the timer and put back what each view shows."""
        self._timer.stop()
        parameters = self._get_parameters()
        if parameters:
            for view, node in volumes_of(parameters).items():
                layout.show_volume(view, node)
        self.refresh()

    def stop_flicker(self) -> None:
        """As if the user had released the button."""
        self._button.checked = False

    def close(self) -> None:
        """Let go of the plot, whose widget outlives the panel."""
        self._timer.stop()
        if self._plot_view:
            self._plot_view.disconnect(_PLOT_SIGNAL, self.on_points_selected)
            self._plot_view = None

    def on_points_selected(self, series_ids: vtk.vtkStringArray, selections: vtk.vtkCollection) -> None:
        """Go to the slice whose point was clicked."""
        before, self._selected = self._selected, _points_by_series(series_ids, selections)
        # The chart keeps a selected point for each line, and tells of a click before it selects and after it.
        self._clicked_series = next(
            (series_id for series_id, points in self._selected.items() if points != before.get(series_id)),
            self._clicked_series,
        )
        parameters, points = self._get_parameters(), self._selected.get(self._clicked_series)
        if not parameters or not parameters.sourceVolume or not points:
            return
        series = slicer.mrmlScene.GetNodeByID(self._clicked_series)
        if series:
            layout.jump_to_slice(parameters.sourceVolume, slice_of_point(series, points[0]))

    def _write_captions(self, caller: Any = None, _event: Any = None) -> None:
        """Say in each image what it shows. Flicker and the user change that, each in one image."""
        parameters = self._get_parameters()
        if not parameters:
            return
        volumes, heatmaps = volumes_of(parameters), heatmaps_of(parameters)
        titles = {node.GetID(): _titles()[view] for view, node in volumes.items() if node}
        for view, composite in layout.composites():
            if caller is not None and caller is not composite:
                continue
            node = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
            if node is None:
                write_caption(layout.VIEWS[view].tag, Caption(_("{title}: none yet").format(title=_titles()[view])))
                continue
            text, key = titles.get(node.GetID(), node.GetName()), None
            heatmap = heatmaps.get(view)
            if heatmap and composite.GetForegroundOpacity() > 0:
                threshold, limit = difference_range(heatmap)
                # Short: on a screen of 1280 pixels a view has some 320.
                text = "\n".join((text, _("in color: changed more than {threshold:g} HU").format(threshold=threshold)))
                key = ColorKey(limit, heatmap.GetDisplayNode().GetColorNode().GetLookupTable())
            color = _ATTACKED_COLOR if is_simulated_attack(node) else _COLOR
            write_caption(layout.VIEWS[view].tag, Caption(text, color, key))

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
    found = {}
    for index in range(series_ids.GetNumberOfValues()):
        points = selections.GetItemAsObject(index)
        if points is not None and points.GetNumberOfValues():
            found[series_ids.GetValue(index)] = tuple(points.GetValue(i) for i in range(points.GetNumberOfValues()))
    return found
