"""What was measured, as the tables take it: values with their scan, patient, protection and attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .measure import AttackerChoice, Settings
from .protections import ProtectionArm


@dataclass(frozen=True)
class MeasuredAttack:
    """What was measured at the targets of one scan, with one protection, by one attacker's action.

    :param patient: number of the patient, from 1.
    :param result: as :mod:`measure` stored it.
    :param scene: number of the scan's scene, where it has several.
    """

    scan: str
    patient: int
    protection: str
    attacker: str
    action: str
    result: Mapping[str, Any]
    scene: int = 0


@dataclass(frozen=True)
class WholeScan:
    """What protection changed in one scan, all slices. ``protection`` names the attack too, where that matters."""

    scan: str
    patient: int
    protection: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """What the tables need to know of the evaluation.

    :param sweep: protections of Table 3, with what its columns are called.
    :param lpips: the network that measured LPIPS, or why it was not measured.
    :param judges: as :meth:`~.jury.Jury.describe` says it; None where success is not measured.
    :param failures: what could not be measured.
    """

    protections: tuple[ProtectionArm, ...]
    attackers: tuple[AttackerChoice, ...]
    actions: tuple[str, ...]
    sweep: tuple[tuple[str, str], ...]
    settings: Settings
    lpips: str
    judges: Mapping[str, Any] | None = None
    failures: tuple[str, ...] = ()

    @property
    def planted(self) -> dict[str, Any] | None:
        """Nodules planted for removals, as :meth:`~.planting.NoduleFile.describe` says it; None where none are."""
        return self.settings.nodules.describe() if self.settings.nodules else None
