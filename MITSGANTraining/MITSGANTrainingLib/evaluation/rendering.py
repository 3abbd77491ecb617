"""Sections of tables as Markdown and LaTeX, by the templates in ``Resources``, and as rows of CSV."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from MITSGANLib.runtime.resources import resources_folder

from .layout import ResultSection, Table

CSV_COLUMNS = (
    "table",
    "row",
    "image",
    "group",
    "column",
    "value",
    "low",
    "high",
    "patients",
    "values",
    "source",
)

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


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
                if found is None or found.value is None:
                    continue
                labels = (row.labels[0], row.labels[1] if len(row.labels) > 1 else "")
                source = "paper" if cell.published else "measured"
                counts = ("", "") if cell.published else (found.patients, found.values)
                yield table.key, *labels, column.group, column.name, found.value, found.low, found.high, *counts, source


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
        "wrapped": _wrapped,
        "cell": lambda text: text.replace("|", "\\|"),
        "tex": _escaped,
        "tex_cell": _latex_cell,
        "spans": _spans,
    }
    return environment.get_template(template).render(values)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _spans(table: Table) -> Iterator[tuple[str, int, int]]:
    """Each group of neighboring columns, with the numbers of its first and last one, labels counted before from 1."""
    first = len(table.corner) + 1
    for name, columns in groupby(table.columns, lambda column: column.group):
        last = first + len(list(columns)) - 1
        yield name, first, last
        first = last + 1


def _latex_cell(text: str) -> str:
    value, bracket, interval = text.partition(" [")
    if not bracket:
        return _escaped(value)
    return f"\\shortstack[r]{{{_escaped(value)}\\\\{{\\scriptsize [{_escaped(interval)}}}}}"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
