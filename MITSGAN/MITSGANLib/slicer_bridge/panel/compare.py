"""The section that measures: figures in words, in a table and in a plot, and heatmaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from ...files.atomic import atomic_file
from ...measure.attack_effect import Effect
from ..layout import show_heatmaps
from ..privacy import path_kept_from_log
from ..tables import table_text
from ..volumes import remove_result, results_of, source_of
from . import sentences
from .shared import Section
from .views import HEATMAPS


class CompareSection(Section):
    """Measures all volumes, and keeps only results of the volumes that are selected."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self._measured: tuple[Effect, str] | None = None
        ui = panel.ui
        ui.copyTableButton.connect("clicked()", self._copy_table)
        ui.saveTableButton.connect("clicked()", self._save_table)
        panel.add_job(
            ui.compareButton,
            ui.compareProgressBar,
            self.measure,
            unit=_("steps"),
            failure=_("Failed to compare the volumes."),
            icon="Compare",
            missing=panel.missing_protected,
        )
        for name, widgets in (
            ("metricsTable", (ui.copyTableButton, ui.saveTableButton)),
            ("protectionHeatmap", (ui.heatmapCheckBox, ui.opacitySlider, ui.thresholdSlider)),
        ):
            panel.add_control(*widgets, missing=lambda name=name: self._missing_result(name))

    @property
    def effect(self) -> Effect | None:
        """What was measured of the volumes that are selected now, with this attacker; None before."""
        parameters = self._panel.parameters
        effect, attacker = self._measured or (None, "")
        return effect if parameters.metricsTable and parameters.attacker == attacker else None

    def refresh(self) -> None:
        self._panel.show_text(self._panel.ui.summaryLabel, self._panel.parameters.summary)

    def scene_closes(self) -> None:
        self._measured = None

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
            parameters.metricsTable, parameters.figuresTable = result.table, result.figures
            parameters.rmseChart = result.chart
            for view, name in HEATMAPS.items():
                setattr(parameters, name, result.heatmaps.get(view))
            self._measured = (result.effect, parameters.attacker)
            parameters.summary = sentences.about_effect(result.effect)
            parameters.showHeatmaps = True
        panel.jobs.breathe(result.table)
        panel.views.show()
        panel.bring_into_sight(panel.ui.summaryLabel)
        panel.jobs.say(_("The figures are on the tab beside the images; a click into the plot goes to its slice."))

    def _copy_table(self) -> None:
        slicer.app.clipboard().setText(table_text(self._panel.parameters.metricsTable))
        self._panel.jobs.say(_("Copied the table."))

    def _save_table(self) -> None:
        path = self._panel.ask_for_new_file(_("Table of metrics"), "metrics.csv", "CSV (*.csv)")
        if path is None:
            return
        with self._panel.trying(_("Failed to write the table.")):
            text = table_text(self._panel.parameters.metricsTable, ",")
            # The dialog has asked whether to replace the file.
            with path_kept_from_log(path), atomic_file(path, overwrite=True) as temporary:
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
        self._panel.views.refill()

    def discard(self, parameters: Any) -> None:
        """Remove the results of the last comparison: they are not of the volumes that are selected now."""
        # First: a volume that goes while views show it makes each of them look for another.
        show_heatmaps({}, visible=False, opacity=0.0)
        for name in (*HEATMAPS.values(), "metricsTable", "figuresTable", "rmseChart"):
            node = getattr(parameters, name)
            if node:
                remove_result(node)
        self._measured, parameters.summary = None, ""

    def _missing_result(self, name: str) -> str:
        return "" if getattr(self._panel.parameters, name, None) else _("Measure first.")
