"""The task of examining the displayed volume: one button, a verdict, its places, and a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

from ...errors import TargetError
from ...examination.verdict import Voxel
from ..examine import ExaminedVolume
from ..layout import go_to, restore_layout, set_labels_visible, show_in_ordinary_views
from ..packages import KEYS
from ..targets import has_target, target_from_markups
from ..volumes import ras_from_voxel, remove_result, source_of, voxel_from_ras
from . import sentences
from .shared import Section


class ExamineSection(Section):
    """Examines, and shows what was found for as long as the volume that it is about is the displayed one."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self._examined: ExaminedVolume | None = None
        self._examined_key: Any = None
        self._shown: tuple | None = None
        ui = panel.ui
        ui.placesTable.connect("cellClicked(int,int)", self._go_to_place)
        panel.add_control(ui.showChangesCheckBox)
        panel.add_job(
            ui.examineButton,
            ui.examineProgressBar,
            self.examine,
            unit="%",
            failure=_("Failed to examine the volume."),
            icon="Verify",
            missing=panel.missing_volume,
        )

    @property
    def examined(self) -> ExaminedVolume | None:
        """What was found in the displayed volume as it is now; None before it was examined."""
        return self._examined if self._examined and self._examined_key == self._panel.volume.key else None

    def refresh(self) -> None:
        """Show the map where its volume is displayed."""
        parameters = self._panel.parameters
        if parameters.changeMap:
            is_of_it = source_of(parameters.changeMap) is parameters.volume
            is_stale = self._examined is not None and self.examined is None and is_of_it
            set_labels_visible(parameters.changeMap, parameters.showChanges and is_of_it and not is_stale)

    def update(self) -> None:
        """Show the verdict of the displayed volume, or none."""
        examined = self.examined
        target = self._target() if examined else None
        if target and examined.asked.get(target) is None:
            self._panel.inquiry.ask(("place", id(examined), target), lambda: examined.look_at(target))
        shown = (id(examined), target, target and examined.asked.get(target))
        if shown == self._shown:
            return
        self._shown = shown
        panel, ui = self._panel, self._panel.ui
        panel.show_text(ui.verdictLabel, sentences.about_verdict(examined, target) if examined else "")
        self._fill_table(examined)
        ui.detailsCollapsibleButton.setVisible(examined is not None)
        panel.show_text(ui.detailsLabel, sentences.about_examination(examined) if examined else "")
        has_map = examined is not None and panel.parameters.changeMap is not None
        ui.showChangesCheckBox.setVisible(has_map)
        panel.show_text(ui.legendLabel, sentences.legend(examined) if has_map else "")

    def scene_closes(self) -> None:
        self._examined = self._examined_key = None

    def examine(self, progress: Callable[..., None]) -> None:
        """Examine the displayed volume, and show what was found."""
        panel, parameters = self._panel, self._panel.parameters
        node, key = parameters.volume, panel.volume.key
        panel.ensure_packages(*KEYS)
        examined = panel.logic.examine(
            node,
            panel.keys.open_key_file(),
            panel.keys.public_key,
            places=[place for place in [self._target()] if place],
            progress=progress,
        )
        # The user may have displayed another one meanwhile.
        if parameters.volume is not node:
            panel.jobs.say(_("{name} was examined; show it to see what was found.").format(name=node.GetName()))
        self.discard(parameters)
        self._examined, self._examined_key = examined, key
        if parameters.volume is node:
            panel.views.leave()
            restore_layout()
            show_in_ordinary_views(node)
            panel.jobs.breathe(node)
            parameters.changeMap = panel.logic.showExamined(examined, node, visible=parameters.showChanges)
            # The verdict is to be in sight without scrolling.
            panel.ui.protectionCollapsibleButton.collapsed = True
            panel.bring_into_sight(panel.ui.detailsCollapsibleButton)

    def discard(self, parameters: Any) -> None:
        """Remove the map, and forget what it shows: that is not of what is shown now."""
        self._examined = self._examined_key = None
        if parameters.changeMap:
            remove_result(parameters.changeMap)

    def _go_to_place(self, row: int, _column: int) -> None:
        examined, node = self.examined, self._panel.parameters and self._panel.parameters.volume
        if examined and node and row < len(examined.verdict.places):
            go_to(ras_from_voxel(node, examined.verdict.places[row].kji))

    def _fill_table(self, examined: ExaminedVolume | None) -> None:
        table = self._panel.ui.placesTable
        places = examined.verdict.places if examined else ()
        table.setRowCount(len(places))
        for row, place in enumerate(places):
            self._panel.set_row(table, row, sentences.about_place(examined, place), place.words)
        table.resizeColumnsToContents()
        table.setVisible(bool(places))
        # A reason may take two lines. Not now: a column has its width once the table is shown.
        self._panel.later(table.resizeRowsToContents)

    def _target(self) -> Voxel | None:
        """The voxel that the user asks about; None without a target in the volume."""
        parameters = self._panel.parameters
        if not parameters or not has_target(parameters.targetPoint):
            return None
        try:
            return voxel_from_ras(parameters.volume, target_from_markups(parameters.targetPoint))
        except TargetError:
            return None
