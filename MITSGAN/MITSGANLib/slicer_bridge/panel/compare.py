"""The section that measures and shows side by side: figures, heatmaps, windows, flicker, table, views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from ...files import atomic
from ...measure.attack_effect import Effect
from ...scan.windows import BONE, LUNG, MEDIASTINUM, Window
from ..layout import (
    comparison_is_shown,
    layout_before_comparison,
    register_layout,
    restore_layout,
    set_layout,
    set_window,
    show_heatmaps,
)
from ..operations import ComparisonNodes
from ..privacy import path_kept_from_log
from ..tables import table_text
from ..volumes import remove_result, results_of, source_of
from . import sentences
from .comparison_view import ComparisonView, volumes_of
from .shared import Panel, Section

_FLICKER_MILLISECONDS = 500


class CompareSection(Section):
    """Measures all volumes, shows them side by side, and keeps only results of the volumes that are selected."""

    def __init__(self, panel: Panel) -> None:
        super().__init__(panel)
        self._observed_layout: Any = None
        self._layout_before: int | None = None
        self._measured: tuple[Effect, str] | None = None
        ui = panel.ui
        for text, first, second in (
            (_("Original / protected"), "source", "protected"),
            (_("Original / attacked"), "source", "source attacked"),
            (_("Protected / attacked"), "protected", "protected attacked"),
            (_("Attacked / protected, attacked"), "source attacked", "protected attacked"),
        ):
            ui.flickerComboBox.addItem(text, f"{first}|{second}")
        self.flicker_timer = panel.timer(_FLICKER_MILLISECONDS, self._on_timeout)
        self.view = ComparisonView(lambda: panel.parameters, panel.observer, ui.flickerButton, self.flicker_timer)
        ui.flickerComboBox.connect("currentIndexChanged(int)", self._on_pair_changed)
        ui.flickerButton.connect("toggled(bool)", self._on_flicker_toggled)
        for button, slot in (
            (ui.lungButton, lambda: self.show_window(LUNG)),
            (ui.mediastinumButton, lambda: self.show_window(MEDIASTINUM)),
            (ui.boneButton, lambda: self.show_window(BONE)),
            (ui.copyTableButton, self.copy_table),
            (ui.saveTableButton, self.save_table),
            (ui.centerButton, self.show),
            (ui.restoreLayoutButton, self.restore_layout),
        ):
            button.connect("clicked()", slot)
        panel.add_job(
            ui.compareButton,
            ui.compareProgressBar,
            self.measure,
            unit=_("steps"),
            failure=_("Failed to compare the volumes."),
            icon="Compare",
            missing=panel.missing_protected,
        )
        for missing, widgets in (
            (self._missing_source, (ui.lungButton, ui.mediastinumButton, ui.boneButton)),
            (panel.missing_protected, (ui.centerButton,)),
            (self._missing_views, (ui.restoreLayoutButton, ui.flickerButton)),
            (lambda: self._missing_result("metricsTable"), (ui.copyTableButton, ui.saveTableButton)),
            (
                lambda: self._missing_result("protectionHeatmap"),
                (ui.heatmapCheckBox, ui.opacitySlider, ui.thresholdSlider),
            ),
        ):
            panel.add_control(*widgets, missing=missing)

    @property
    def effect(self) -> Effect | None:
        """What was measured of the volumes that are selected now, with this attacker; None before."""
        parameters = self._panel.parameters
        effect, attacker = self._measured or (None, "")
        return effect if parameters.metricsTable and parameters.attacker == attacker else None

    def refresh(self) -> None:
        """Show what the parameter node says."""
        self._panel.show_text(self._panel.ui.summaryLabel, self._panel.parameters.summary)
        self.view.refresh()

    def leave(self) -> None:
        """Flicker no more."""
        self.view.stop_flicker()

    def scene_closes(self) -> None:
        """Forget what was measured, and remember the views that were shown before the comparison."""
        self._measured = None
        self._layout_before = layout_before_comparison()

    def scene_closed(self) -> None:
        """Show those views: Slicer would go back to the comparison, whose views are empty now."""
        if self._layout_before is not None:
            set_layout(self._layout_before)

    def close(self) -> None:
        """Let go of the plot, whose widget outlives the panel."""
        self.view.close()

    def measure(self, progress: Callable[..., None]) -> None:
        """Measure all volumes and show them side by side."""
        panel, parameters = self._panel, self._panel.parameters
        panel.ensure_packages()
        attacked = (parameters.sourceAttacked, parameters.protectedAttacked)
        result = panel.logic.compare(
            parameters.sourceVolume,
            parameters.protectedVolume,
            attacked if all(attacked) else (),
            attacker=parameters.attacker,
            device=parameters.device,
            threshold=parameters.heatmapThresholdPercent / 100,
            progress=progress,
        )
        panel.jobs.breathe(result.table)
        with panel.changing():
            self.discard(parameters)
            self._keep(parameters, result)
        panel.jobs.breathe(result.table)
        self.show()
        panel.bring_into_sight(panel.ui.summaryLabel)
        panel.jobs.say(_("The figures are on the tab beside the images; a click into the plot goes to its slice."))

    def show(self) -> None:
        """Show all volumes side by side, around the target."""
        self.view.show()
        layout = register_layout()
        if layout and layout is not self._observed_layout:
            self._panel.observer.addObserver(layout, vtk.vtkCommand.ModifiedEvent, self._on_layout_changed)
            self._observed_layout = layout
        self._panel.changed()

    def refill(self) -> None:
        """Views must not be labeled with what they no longer show."""
        if comparison_is_shown():
            self.show()

    def show_window(self, window: Window) -> None:
        """Show all volumes in a window for lung, mediastinum or bone."""
        if self._panel.parameters:
            set_window(volumes_of(self._panel.parameters).values(), window)

    def restore_layout(self) -> None:
        """Go back to the views as they were before the comparison."""
        self.view.stop_flicker()
        restore_layout()
        self._panel.changed()

    def copy_table(self) -> None:
        """Put the table of metrics on the clipboard."""
        slicer.app.clipboard().setText(table_text(self._panel.parameters.metricsTable))
        self._panel.jobs.say(_("Copied the table."))

    def save_table(self) -> None:
        """Write the table of metrics to a file."""
        path = self._panel.ask_for_new_file(_("Table of metrics"), "metrics.csv", "CSV (*.csv)")
        if path is None:
            return
        with self._panel.trying(_("Failed to write the table.")):
            text = table_text(self._panel.parameters.metricsTable, ",")
            # The dialog has asked whether to replace the file.
            with path_kept_from_log(path), atomic.atomic_file(path, overwrite=True) as temporary:
                temporary.write_text(text, encoding="utf-8")
            self._panel.jobs.say(_("Wrote {path}.").format(path=path))

    def follow(self, source: slicer.vtkMRMLScalarVolumeNode) -> None:
        """Select results of this source, as those of another would be compared with the wrong scan."""
        parameters = self._panel.parameters
        protected = parameters.protectedVolume
        origin = source_of(protected) if protected else None
        # A protected volume from a file knows no source; the user's choice of it stands.
        if origin is source or (protected and not origin):
            return
        results = results_of(source)
        parameters.protectedVolume = results[-1] if results else None
        parameters.sourceAttacked = parameters.protectedAttacked = None
        self.discard(parameters)
        self.refill()

    def discard(self, parameters: Any) -> None:
        """Remove the results of the last comparison: they are not of the volumes that are selected now."""
        # First: a volume that goes while views show it makes each of them look for another.
        show_heatmaps({}, visible=False, opacity=0.0)
        for node in (
            parameters.protectionHeatmap,
            parameters.sourceAttackedHeatmap,
            parameters.protectedAttackedHeatmap,
            parameters.metricsTable,
            parameters.figuresTable,
            parameters.rmseChart,
        ):
            if node:
                remove_result(node)
        self._measured, parameters.summary = None, ""

    def _missing_source(self) -> str:
        parameters = self._panel.parameters
        return "" if parameters and parameters.sourceVolume else _("Select a CT volume.")

    def _missing_views(self) -> str:
        is_shown = self._panel.parameters and comparison_is_shown()
        return "" if is_shown else _("Show the volumes side by side first.")

    def _missing_result(self, name: str) -> str:
        return "" if getattr(self._panel.parameters, name, None) else _("Measure first.")

    def _keep(self, parameters: Any, result: ComparisonNodes) -> None:
        parameters.metricsTable, parameters.figuresTable, parameters.rmseChart = (
            result.table,
            result.figures,
            result.chart,
        )
        parameters.protectionHeatmap = result.heatmaps.get("protected")
        parameters.sourceAttackedHeatmap = result.heatmaps.get("source attacked")
        parameters.protectedAttackedHeatmap = result.heatmaps.get("protected attacked")
        self._measured = (result.effect, parameters.attacker)
        parameters.summary = sentences.about_effect(result.effect)
        parameters.showHeatmaps = True

    def _on_layout_changed(self, _caller: Any, _event: Any) -> None:
        self.view.refresh()
        self._panel.changed()

    def _on_flicker_toggled(self, on: bool) -> None:
        if on:
            self.view.start_flicker()
        else:
            self.view.end_flicker()

    def _on_pair_changed(self, _index: int) -> None:
        # Put back what the last pair showed.
        self.view.stop_flicker()

    def _on_timeout(self) -> None:
        combo_box = self._panel.ui.flickerComboBox
        self.view.flicker(combo_box.itemData(combo_box.currentIndex).split("|"))
