"""What one examiner found, and what all of it says together."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from .suspicion import strength

Voxel = tuple[int, int, int]


class Outcome(enum.Enum):
    """The four verdicts."""

    INTACT = "intact (signed)"
    CHANGED = "changed"
    NOTHING_FOUND = "nothing found"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Evidence:
    """What one kind of examination says.

    :param kind: "signature", "header", "watermark", "noise missing", "coarse noise missing", "noise of another color",
        "noise that the scanner does not let through", "copied tissue", "CT-GAN's noise source" or "forensic judge".
    :param text: for people; no header values, keys or paths.
    :param strength: 1 where it suffices by itself for a change to be listed; 0 where it speaks for none.
    """

    kind: str
    text: str
    strength: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"kind": self.kind, "text": self.text, "strength": round(self.strength, 3)}


@dataclass(frozen=True)
class ChangedPlace:
    """A place that was changed, or is asked about.

    :param kji: voxel (slice, row, column) in its middle.
    :param lps_mm: the same in the patient.
    :param size_mm: extent along (slice, row, column), roughly.
    :param evidence: the strongest first.
    :param source_kji: where its tissue was copied from, if that is known.
    :param together: what all that was seen says together, also what is too weak to be named.
    """

    kji: Voxel
    lps_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    evidence: tuple[Evidence, ...]
    source_kji: Voxel | None = None
    together: float = 0.0

    @property
    def strength(self) -> float:
        """What all of its evidence says together, 0 without any; from 1 on it was changed."""
        kinds: dict[str, float] = {}
        for one in self.evidence:
            kinds[one.kind] = max(one.strength, kinds.get(one.kind, 0.0))
        return max(self.together, strength(kinds))

    @property
    def is_sure(self) -> bool:
        """Whether one kind of evidence is far beyond what is listed, or two agree."""
        return self.strength >= 1.5 or sum(one.strength >= 1 for one in self.evidence) > 1

    @property
    def words(self) -> str:
        """How sure, and by what evidence."""
        by = "; ".join(one.text for one in self.evidence) or "no evidence of a change"
        return f"{'surely' if self.is_sure else 'probably'} changed: {by}" if self.strength >= 1 else by

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "kji": list(self.kji),
            "lps_mm": list(self.lps_mm),
            "size_mm": list(self.size_mm),
            "strength": round(self.strength, 3),
            "sure": self.is_sure,
            "source_kji": None if self.source_kji is None else list(self.source_kji),
            "evidence": [one.to_dict() for one in self.evidence],
        }


@dataclass(frozen=True)
class Verdict:
    """What all evidence says.

    :param places: what was changed, the surest first.
    :param evidence: of the whole scan.
    :param reasons: why it cannot be told; or what limits what was found.
    :param told: share of the lungs, 0..1, in which each kind of examination can tell.
    :param excluded: kinds of forgery that would mostly have been listed in that share.
    :param not_excluded: kinds that would not.
    """

    outcome: Outcome
    places: tuple[ChangedPlace, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    reasons: tuple[str, ...] = ()
    told: tuple[tuple[str, float], ...] = ()
    excluded: tuple[str, ...] = ()
    not_excluded: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "verdict": self.outcome.value,
            "reasons": list(self.reasons),
            "places": [place.to_dict() for place in self.places],
            "evidence": [one.to_dict() for one in self.evidence],
            "lung_share_told": {kind: round(share, 4) for kind, share in self.told},
            "excluded": list(self.excluded),
            "not_excluded": list(self.not_excluded),
        }
