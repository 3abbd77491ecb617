"""The task of demonstrating an attack: target, action, attacker, and the button."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from ...weights import available_attackers
from .. import targets
from ..layout import prepare_view, show_in_ordinary_views
from ..operations import prepare_measuring
from ..packages import KEYS, NETWORKS
from ..volumes import remove_result
from . import sentences
from .shared import Section, select

_VIEWS_MILLISECONDS = 200
_REST_MILLISECONDS = 100


class AttackSection(Section):
    """Places the target with one click in a view, and attacks both volumes there."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self._observed: Any = None
        ui = panel.ui
        for name in available_attackers():
            ui.attackerComboBox.addItem(name, name)
        panel.set_icon(ui.placeTargetButton, "Target")
        panel.bind(ui.attackerComboBox, "attacker")
        ui.injectRadioButton.connect("toggled(bool)", self._on_inject_toggled)
        ui.placeTargetButton.connect("clicked()", self.place_target)
        ui.attackerFolderButton.connect("clicked()", self._choose_attacker_folder)
        self._views_timer = panel.timer(_VIEWS_MILLISECONDS, self._prepare_view)
        # A point that is dragged moves with every pixel.
        self._rest_timer = panel.timer(_REST_MILLISECONDS, self._on_target_changed)
        self._rest_timer.setSingleShot(True)
        ui.attackCollapsibleButton.connect("contentsCollapsed(bool)", self._on_folded)
        panel.add_control(
            ui.protectedVolumeSelector,
            ui.placeTargetButton,
            ui.injectRadioButton,
            ui.removeRadioButton,
            ui.attackerComboBox,
            ui.attackerFolderButton,
            waits=True,
        )
        panel.add_job(
            ui.simulateAttackButton,
            ui.attackProgressBar,
            self.attack,
            unit=_("volumes"),
            failure=_("Failed to simulate the attack."),
            icon="Attack",
            missing=panel.missing_target,
        )

    def refresh(self) -> None:
        parameters, ui = self._panel.parameters, self._panel.ui
        # parameterNodeWrapper has no connector for radio buttons, nor for a combo box filled at run time.
        if ui.attackerComboBox.findData(parameters.attacker) < 0:
            ui.attackerComboBox.addItem(Path(parameters.attacker).name, parameters.attacker)
        select(ui.attackerComboBox, parameters.attacker)
        ui.injectRadioButton.checked = parameters.action == "inject"
        ui.removeRadioButton.checked = parameters.action == "remove"
        attacked = (parameters.sourceAttacked, parameters.protectedAttacked)
        text, ui.attackedLabel.toolTip = sentences.about_attacked(attacked)
        self._panel.show_text(ui.attackedLabel, text)
        self._observe(parameters.targetPoint)
        self._describe_target()

    def leave(self) -> None:
        """Let clicks in views do what they did before, and observe no target any more."""
        self._views_timer.stop()
        self._rest_timer.stop()
        targets.stop_placing(self._observed)
        self._observe(None)

    def place_target(self) -> None:
        """Wait for one click in a slice view; do so no longer when that is under way."""
        parameters = self._panel.parameters
        if targets.is_placing(parameters.targetPoint):
            targets.stop_placing(parameters.targetPoint)
            return
        if not parameters.targetPoint:
            parameters.targetPoint = targets.new_target_list()
        interaction = targets.interaction_node()
        self._panel.observe(interaction, interaction.InteractionModeChangedEvent, self._on_target_changed)
        targets.start_placing(parameters.targetPoint)

    def _choose_attacker_folder(self) -> None:
        folder = self._panel.ask_for_folder(_("Folder with attacker files"))
        if folder and self._panel.parameters:
            self._panel.parameters.attacker = str(folder)

    def attack(self, progress: Callable[..., None]) -> None:
        """Attack both volumes at the target, in place of the last attack, and show all four side by side."""
        panel, parameters = self._panel, self._panel.parameters
        is_folder = parameters.attacker not in available_attackers()
        panel.ensure_packages(*KEYS, *NETWORKS, *(("h5py",) if is_folder else ()))
        before = [node for node in (parameters.sourceAttacked, parameters.protectedAttacked) if node]
        source, protected = panel.logic.simulateAttack(
            parameters.sourceVolume,
            parameters.protectedVolume,
            targets.target_from_markups(parameters.targetPoint),
            parameters.action,
            parameters.attacker,
            device=parameters.device,
            replaces=before,
            progress=progress,
        )
        panel.jobs.breathe(source, protected)
        with panel.changing():
            panel.examine.discard(parameters)
            panel.compare.discard(parameters)
            parameters.sourceAttacked, parameters.protectedAttacked = source, protected
        panel.jobs.breathe(source, protected)
        panel.views.show()
        panel.jobs.breathe(source, protected)
        with panel.changing():
            show_in_ordinary_views(protected)
            parameters.volume = protected
        # Now: a volume that goes while views show it makes each of them look for another.
        for node in before:
            panel.jobs.breathe(source, protected)
            remove_result(node)
        panel.jobs.say(_("Next: measure below, or examine what is selected."))

    def _on_folded(self, folded: bool) -> None:
        # Whoever opens the demonstration will want to compare.
        if not folded and self._panel.parameters:
            self._views_timer.start()
            self._panel.inquiry.ask(("measuring",), prepare_measuring)

    def _prepare_view(self) -> None:
        if not slicer.app.layoutManager() or not prepare_view():
            self._views_timer.stop()

    def _on_inject_toggled(self, inject: bool) -> None:
        if self._panel.parameters:
            self._panel.parameters.action = "inject" if inject else "remove"

    def _observe(self, target: slicer.vtkMRMLMarkupsFiducialNode | None) -> None:
        """Follow the point list: placing, moving or deleting a point does not change the parameter node."""
        if target is self._observed:
            return
        markups = slicer.vtkMRMLMarkupsNode
        for event, method in (
            (markups.PointPositionDefinedEvent, self._on_target_placed),
            # It is dragged, moved by a script, or removed.
            (markups.PointPositionUndefinedEvent, self._on_target_moves),
            (markups.PointModifiedEvent, self._on_target_moves),
            (markups.PointRemovedEvent, self._on_target_moves),
        ):
            if self._observed:
                self._panel.module_widget.removeObserver(self._observed, event, method)
            if target:
                self._panel.module_widget.addObserver(target, event, method)
        self._observed = target

    def _on_target_placed(self, _caller: Any, _event: Any) -> None:
        # Not within the event: the view that placed the point still holds on to the list.
        self._panel.later(self._keep_last_target)

    def _keep_last_target(self) -> None:
        if self._observed:
            targets.keep_last_point(self._observed)
            self._on_target_changed()

    def _on_target_moves(self, _caller: Any, _event: Any) -> None:
        self._rest_timer.start()

    def _on_target_changed(self, _caller: Any = None, _event: Any = None) -> None:
        if self._panel.parameters and not self._panel.is_closed:
            self._describe_target()
            self._panel.changed()

    def _describe_target(self) -> None:
        parameters = self._panel.parameters
        self._panel.show_text(
            self._panel.ui.targetDescriptionLabel,
            sentences.about_target(parameters.targetPoint, parameters.sourceVolume, parameters.action),
        )
