"""The whole panel: its sections, and who needs whom."""

from __future__ import annotations

from typing import Any

from .attack import AttackSection
from .compare import CompareSection
from .export import ExportSection
from .keys import KeysSection
from .protect import ProtectSection
from .restore_verify import RestoreVerifySection
from .shared import Panel
from .volume import VolumeSection


class MITSGANPanel(Panel):
    """The module's panel, from the arguments of :class:`Panel`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.compare = CompareSection(self)
        self.volume = VolumeSection(self, self.compare)
        self.keys = KeysSection(self)
        self.restore_verify = RestoreVerifySection(self, self.keys, self.compare)
        self.protect = ProtectSection(self, self.volume, self.compare, self.keys, self.restore_verify)
        self.attack = AttackSection(self, self.compare)
        self.export = ExportSection(self, self.keys, self.restore_verify)
        self.sections = (
            self.volume,
            self.protect,
            self.attack,
            self.compare,
            self.export,
            self.keys,
            self.restore_verify,
        )
