"""The task of examining the displayed volume: one button, a verdict, its places, and a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
from slicer.i18n import tr as _

from ...errors import TargetError
from ..change_map import set_changes_visible
from ..examine import ExaminedVolume
from ..layout import go_to, restore_layout, show_in_ordinary_views
from ..packages import KEYS
from ..targets import has_target, target_from_markups
from ..volumes import ras_from_voxel, remove_result, source_of, voxel_from_ras
from . import sentences
from .compare import CompareSection
from .keys import KeysSection
from .shared import Panel, Section
from .volume import VolumeSection


class ExamineSection(Section):
    """Examines, and shows the finding for as long as the volume that it is about is the displayed one.

    :param volume: knows when the displayed volume is another.
    :param compare: flickers no more once a map is shown.
    """

    def __init__(self, panel: Panel, volume: VolumeSection, keys: KeysSection, compare: CompareSection) -> None:
        super().__init__(panel)
        self._volume, self._keys, self._compare = volume, keys, compare
        self._finding: ExaminedVolume | None = None
        self._found_in: Any = None
        self._shown: tuple | None = None
        # Qt's table does not keep them.
        self._items: list[Any] = []
        ui = panel.ui
        ui.placesTable.connect("cellClicked(int,int)", self.go_to_place)
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
    def finding(self) -> ExaminedVolume | None:
        """What was found in the displayed volume as it is now; None before it was examined."""
        return self._finding if self._finding and self._found_in == self._volume.key else None

    def refresh(self) -> None:
        """Show the map where its volume is displayed."""
        parameters = self._panel.parameters
        if parameters.changeMap:
            is_of_it = source_of(parameters.changeMap) is parameters.volume
            is_stale = self._finding is not None and self.finding is None and is_of_it
            set_changes_visible(parameters.changeMap, parameters.showChanges and is_of_it and not is_stale)

    def update(self) -> None:
        """Show the verdict of the displayed volume, or none."""
        finding = self.finding
        target = self._target() if finding else None
        if target and finding.at(target) is None:
            self._panel.inquiry.ask(("place", id(finding), target), lambda: finding.look_at(target))
        shown = (id(finding), target, target and finding.at(target))
        if shown == self._shown:
            return
        self._shown = shown
        panel, ui = self._panel, self._panel.ui
        panel.show_text(ui.verdictLabel, sentences.about_finding(finding, target) if finding else "")
        self._fill_table(finding)
        ui.detailsCollapsibleButton.setVisible(finding is not None)
        panel.show_text(ui.detailsLabel, sentences.about_examination(finding) if finding else "")
        has_map = finding is not None and panel.parameters.changeMap is not None
        ui.showChangesCheckBox.setVisible(has_map)
        panel.show_text(ui.legendLabel, sentences.legend(finding) if has_map else "")

    def scene_closes(self) -> None:
        """Forget what was found: IDs of nodes are used again in another scene."""
        self._finding = self._found_in = None

    def examine(self, progress: Callable[..., None]) -> None:
        """Examine the displayed volume, and show what was found."""
        panel, parameters = self._panel, self._panel.parameters
        node, key = parameters.volume, self._volume.key
        panel.ensure_packages(*KEYS)
        finding = panel.logic.examine(
            node,
            self._keys.open_key_file() if self._keys.has_key else None,
            self._keys.public_key,
            places=[place for place in [self._target()] if place],
            progress=progress,
        )
        # The user may have displayed another one meanwhile.
        if parameters.volume is not node:
            panel.jobs.say(_("{name} was examined; show it to see what was found.").format(name=node.GetName()))
        self._finding, self._found_in = finding, key
        self.discard_map(parameters)
        if parameters.volume is node:
            self._compare.leave()
            restore_layout()
            show_in_ordinary_views(node)
            panel.jobs.breathe(node)
            parameters.changeMap = panel.logic.showFinding(finding, node, visible=parameters.showChanges)
            # The verdict is to be in sight without scrolling.
            panel.ui.protectionCollapsibleButton.collapsed = True
            panel.bring_into_sight(panel.ui.detailsCollapsibleButton)

    def discard(self, parameters: Any) -> None:
        """Remove finding and map: they are not of what is shown now."""
        self._finding = self._found_in = None
        self.discard_map(parameters)

    def discard_map(self, parameters: Any) -> None:
        """Remove the map."""
        if parameters.changeMap:
            remove_result(parameters.changeMap)

    def go_to_place(self, row: int, _column: int) -> None:
        """Show a place of the table in the slice views."""
        finding, node = self.finding, self._panel.parameters and self._panel.parameters.volume
        if finding and node and row < len(finding.verdict.places):
            go_to(ras_from_voxel(node, finding.verdict.places[row].kji))

    def _fill_table(self, finding: ExaminedVolume | None) -> None:
        table = self._panel.ui.placesTable
        places = finding.verdict.places if finding else ()
        table.setRowCount(len(places))
        self._items = []
        for row, place in enumerate(places):
            for column, text in enumerate(sentences.about_place(finding, place)):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(place.words)
                table.setItem(row, column, item)
                self._items.append(item)
        table.resizeColumnsToContents()
        table.setVisible(bool(places))
        # A reason may take two lines. Not now: a column has its width once the table is shown.
        qt.QTimer.singleShot(0, self._fit_rows)

    def _fit_rows(self) -> None:
        if not self._panel.is_closed:
            self._panel.ui.placesTable.resizeRowsToContents()

    def _target(self) -> tuple[int, int, int] | None:
        """The voxel that the user asks about; None without a target in the volume."""
        parameters = self._panel.parameters
        if not parameters or not has_target(parameters.targetPoint):
            return None
        try:
            return voxel_from_ras(parameters.volume, target_from_markups(parameters.targetPoint))
        except TargetError:
            return None
