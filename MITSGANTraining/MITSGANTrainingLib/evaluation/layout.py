"""Tables as text and numbers alone, which ``rendering`` turns into files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .statistics import Estimate

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


def cell_of(found: Estimate, digits: int) -> Cell:
    """A figure with its interval, with so many decimals."""

    def written(value: float) -> str:
        return f"{round(value, digits) + 0.0:.{digits}f}"  # adding 0 turns -0.00 into 0.00

    if found.value is None:
        return Cell(estimate=found)
    interval = "" if found.low is None else f" [{written(found.low)}, {written(found.high)}]"
    return Cell(written(found.value) + interval, found)
