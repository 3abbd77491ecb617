"""Does an attack succeed? It must reach its finding, and pass for untouched: two frozen judges decide.

An injection reaches its finding when the nodule judge sees a nodule where it saw none before, a removal when it sees
none where it saw one. Places where there was nothing to reach (a nodule already, or none to remove) count neither way.
Either passes when the forgery judge takes the place for untouched, at its threshold of 5 % false alarms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import weights
from ..errors import ModelError
from ..scan.cubes import Box, union
from ..scan.targets import Action
from .judge import DEFAULT_JUDGES, QUESTIONS, Judge, Question, load_judge


@dataclass(frozen=True)
class Seen:
    """What the judges say of one place, each score from 0 (no) to 1 (yes)."""

    nodule: float
    forgery: float


@dataclass(frozen=True)
class Judgment:
    """What an attack came to at one place.

    :param possible: whether there was something to reach: no nodule before an injection, one before a removal.
    :param achieved: whether the finding is there (inject) or gone (remove) afterwards.
    :param unnoticed: whether the forged place passes for untouched.
    :param alarm: whether the place was taken for forged before it was.
    """

    action: Action
    before: Seen
    after: Seen
    possible: bool
    achieved: bool
    unnoticed: bool
    alarm: bool

    @property
    def succeeded(self) -> bool | None:
        """Achieved and unnoticed; None where there was nothing to reach, which counts neither way."""
        return self.achieved and self.unnoticed if self.possible else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        pairs = [(question, when) for question in QUESTIONS for when in ("before", "after")]
        scores = {f"{question}_{when}": getattr(getattr(self, when), question) for question, when in pairs}
        words = ("possible", "achieved", "unnoticed", "alarm", "succeeded")
        return scores | {word: getattr(self, word) for word in words}


@dataclass(frozen=True)
class Jury:
    """The two judges that decide about success."""

    nodule: Judge
    forgery: Judge

    @classmethod
    def load(cls, names: Sequence[str | Path] = (), folder: Path = weights.MODELS_FOLDER) -> Jury:
        """Judges by name or path, as :func:`.load_judge` takes them; the default where none is named.

        :raises ModelError: when one is unknown or corrupt, or two are asked the same question.
        """
        found: dict[Question, Judge] = {}
        for name in names:
            judge = load_judge(name, folder)
            if judge.question in found:
                raise ModelError(
                    f"The judges '{found[judge.question].name}' and '{judge.name}' both decide about {judge.question}; "
                    "name one of each question."
                )
            found[judge.question] = judge
        for question, default in DEFAULT_JUDGES.items():
            if question not in found:
                found[question] = load_judge(default, folder)
        return cls(found["nodule"], found["forgery"])

    def identity(self) -> dict[str, Any]:
        """Weights and threshold by question: what decides verdicts, for results and keys of caches."""
        return {
            judge.question: {"sha256": judge.digest, "threshold": judge.threshold}
            for judge in (self.nodule, self.forgery)
        }

    def describe(self) -> dict[str, Any]:
        """:meth:`identity` with names, for results."""
        found = self.identity()
        return {question: {"name": getattr(self, question).name, **found[question]} for question in found}

    def box(self, shape: Sequence[int], spacing_kji: Sequence[float], kji: Sequence[int]) -> Box:
        """The part of a scan (slices, rows, columns) that the judges look at for a place; the rest is not read."""
        return union(*(judge.view.box(shape, spacing_kji, kji) for judge in (self.nodule, self.forgery)))

    def to(self, device: str) -> Jury:
        """This jury with its networks on a device."""
        return Jury(self.nodule.to(device), self.forgery.to(device))

    def look(self, parts: Sequence[np.ndarray], spacing_kji: Sequence[float], kji: Sequence[int]) -> list[Seen]:
        """What the judges say of the same place in several scans.

        :param parts: scans, or their parts in :meth:`box`, each (slices, rows, columns) in HU.
        :param kji: (slice, row, column) of the place, counted from the start of each part.
        """
        nodule, forgery = (
            judge.score_views([judge.view.cut(part, spacing_kji, kji) for part in parts])
            for judge in (self.nodule, self.forgery)
        )
        return [Seen(float(a), float(b)) for a, b in zip(nodule, forgery, strict=True)]

    def verdict(self, action: Action, before: Seen, after: Seen, clean: Seen | None = None) -> Judgment:
        """What an attack came to.

        :param before: of the scan that is attacked, such as the protected one.
        :param after: of the attacked scan.
        :param clean: of the scan before protection, which says what there was to reach, so that all arms count the same
            places; ``before`` where it is missing.
        """
        was, remains = (bool(self.nodule.says_yes(sight.nodule)) for sight in (clean or before, after))
        injects = action == "inject"
        return Judgment(
            action,
            before,
            after,
            possible=not was if injects else was,
            achieved=remains if injects else not remains,
            unnoticed=not self.forgery.says_yes(after.forgery),
            alarm=bool(self.forgery.says_yes(before.forgery)),
        )
