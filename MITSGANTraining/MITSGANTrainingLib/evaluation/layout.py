"""Tables as text and numbers alone, which ``rendering`` turns into files, and how measurements become cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import notes
from .measure import CLEAN, CT_LIKE, GAUSSIAN, PROTECTED
from .outcomes import MeasuredAttack
from .statistics import Estimate, Observation, estimate

ROWS = {
    PROTECTED: "protected",
    GAUSSIAN: "Gaussian noise instead",
    CT_LIKE: "CT-like noise instead",
    CLEAN: "unprotected",
}
NONE = "–"


@dataclass(frozen=True)
class Cell:
    """What stands in a table, and the numbers behind it."""

    text: str = NONE
    estimate: Estimate | None = None
    published: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        figures = self.estimate.to_dict() if self.estimate else {}
        return {"text": self.text, "source": "paper" if self.published else "measured", **figures}


@dataclass(frozen=True)
class Column:
    """Two lines of a table's head."""

    group: str
    name: str


@dataclass(frozen=True)
class Row:
    """Labels on the left, as many as the table's ``corner`` has, and one cell for each column."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """One table. ``key`` names it in files."""

    key: str
    caption: str
    corner: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class ResultSection:
    """Tables of one kind with what they mean."""

    key: str
    title: str
    notes: tuple[str, ...]
    tables: tuple[Table, ...]


def observations(
    attacks: Iterable[MeasuredAttack], protection: str | None, value: Callable[[Mapping[str, Any]], float | None]
) -> list[Observation]:
    """One value for each target; of one protection, or of all attacks for None."""
    return [
        Observation(one.patient, value(record))
        for one in attacks
        if protection in (None, one.protection)
        for record in one.result["targets"]
    ]


def mean_cell(
    observations: Sequence[Observation],
    digits: int,
    seed: int,
    within: Literal["mean", "median"] = "mean",
    factor: float = 1.0,
) -> Cell:
    """The mean over patients with its interval, times ``factor``; arguments as of :func:`.estimate`."""
    scaled = [Observation(o.patient, None if o.value is None else factor * o.value) for o in observations]
    return cell_of(estimate(scaled, within=within, seed=seed), digits)


def cell_of(found: Estimate, digits: int) -> Cell:
    """A figure with its interval."""
    if found.value is None:
        return Cell(estimate=found)
    text = number(found.value, digits)
    if found.low is not None:
        text += f" [{number(found.low, digits)}, {number(found.high, digits)}]"
    return Cell(text, found)


def number(value: float, digits: int) -> str:
    """A figure with so many decimals."""
    return f"{round(value, digits) + 0.0:.{digits}f}"  # adding 0 turns -0.00 into 0.00


def unprotected(attacks: Sequence[MeasuredAttack]) -> list[MeasuredAttack]:
    """Each scan's scene once: the attack on the clean scan is the same with whatever protection it stands beside."""
    return list({(one.scan, one.scene): one for one in attacks}.values())


def attack_words(pair: tuple[str, str], attacks: Sequence[MeasuredAttack]) -> str:
    """For captions: the attack and at how many places."""
    places = sum(len(found.result["targets"]) for found in unprotected(attacks))
    return f"attack: {pair[1]} by {pair[0]} at {notes.count(places, 'place')}"
