"""The whole panel: its sections, in the order in which they follow the parameter node."""

from __future__ import annotations

from typing import Any

from .attack import AttackSection
from .compare import CompareSection
from .examine import ExamineSection
from .export import ExportSection
from .folders import FoldersSection
from .keys import KeysSection
from .protect import ProtectSection
from .shared import Panel
from .state_line import StateSection
from .views import ViewsSection
from .volume import VolumeSection


class MITSGANPanel(Panel):
    """The module's panel, from the arguments of :class:`Panel`: a volume's state, three tasks, and what is rare."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.volume = VolumeSection(self)
        self.protect = ProtectSection(self)
        self.examine = ExamineSection(self)
        self.attack = AttackSection(self)
        self.compare = CompareSection(self)
        self.views = ViewsSection(self)
        self.export = ExportSection(self)
        self.keys = KeysSection(self)
        self.folders = FoldersSection(self)
        # Last: it says what the others have found out.
        self.state_line = StateSection(self)
        ui = self.ui
        tasks = (ui.protectionCollapsibleButton, ui.examineCollapsibleButton)
        # The demonstration and the other tasks are not in sight together.
        ui.attackCollapsibleButton.connect("contentsCollapsed(bool)", lambda folded: self._fold(tasks, folded))
        for task in tasks:
            task.connect("contentsCollapsed(bool)", lambda folded: self._fold((ui.attackCollapsibleButton,), folded))

    def _fold(self, others: Any, folded: bool) -> None:
        if not folded and not self.is_closed:
            for other in others:
                other.collapsed = True
