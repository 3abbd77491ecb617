"""Tables as text and numbers alone, and their sections as Markdown and LaTeX, by the templates in ``Resources``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from MITSGANLib.runtime.resources import resources_folder

from .statistics import Estimate

NONE = "–"
CSV_COLUMNS = ("table", "row", "image", "group", "column", "value", "low", "high", "patients", "values", "source")

_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


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


def to_markdown(title: str, sections: Sequence[ResultSection], pictures: Sequence[tuple[str, str]] = ()) -> str:
    """One page, its prose in lines of 120 columns. ``pictures`` are (path, caption), shown at the end."""
    return _rendered("tables.md.j2", title=title, sections=sections, pictures=pictures).rstrip("\n") + "\n"


def to_latex(sections: Sequence[ResultSection]) -> str:
    """Tables for a paper; needs the packages booktabs and graphicx."""
    return _rendered("tables.tex.j2", sections=sections)


def to_csv_rows(sections: Sequence[ResultSection]) -> Iterator[tuple[object, ...]]:
    """One row for each cell that holds a number; columns as :data:`CSV_COLUMNS`."""
    for table in (table for section in sections for table in section.tables):
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                found = cell.estimate
                if found is not None and found.value is not None:
                    where = (table.key, *(*row.labels, "")[:2], column.group, column.name)
                    counts = ("", "", "paper") if cell.published else (found.patients, found.values, "measured")
                    yield *where, found.value, found.low, found.high, *counts


def _rendered(template: str, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        # LaTeX is full of braces.
        *("<%", "%>", "<<", ">>", "<#", "#>"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(resources_folder(Path(__file__).resolve().parents[1])),
    )
    environment.filters |= {
        "wrapped": partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False),
        "cell": lambda text: text.replace("|", "\\|"),
        "tex": lambda text: text.translate(_LATEX),
        "tex_cell": _latex_cell,
        "spans": _spans,
    }
    return environment.get_template(template).render(values)


def _spans(table: Table) -> Iterator[tuple[str, int, int]]:
    """Each group of neighboring columns, with the numbers of its first and last one, labels counted before from 1."""
    first = len(table.corner) + 1
    for name, columns in groupby(table.columns, lambda column: column.group):
        last = first + len(list(columns)) - 1
        yield name, first, last
        first = last + 1


def _latex_cell(text: str) -> str:
    value, bracket, interval = text.translate(_LATEX).partition(" [")
    return f"\\shortstack[r]{{{value}\\\\{{\\scriptsize [{interval}}}}}" if bracket else value
