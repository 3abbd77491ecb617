"""Sections of tables as Markdown, LaTeX and rows of CSV."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from .layout import Cell, Section, Table

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


def to_markdown(title: str, sections: Sequence[Section], pictures: Sequence[tuple[str, str]] = ()) -> str:
    """One page, its prose in lines of 120 columns. ``pictures`` are (path, caption), shown at the end."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for table in section.tables:
            lines += [_wrapped(f"**{table.caption}**"), "", *_markdown_table(table), ""]
        lines += [*(_wrapped(f"- {note}", indent="  ") for note in section.notes), ""]
    for path, caption in pictures:
        lines += [f"![{caption}]({path})", "", _wrapped(f"*{caption}*"), ""]
    return "\n".join(lines)


def to_latex(sections: Sequence[Section]) -> str:
    """Tables for a paper; needs the packages booktabs and graphicx."""
    lines = ["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."]
    for section in sections:
        lines += ["", f"% {section.title}"]
        for table in section.tables:
            lines += _latex_table(section, table)
        notes = " ".join(map(_escaped, section.notes))
        lines += [f"\\par\\noindent{{\\footnotesize {notes}\\par}}"]
    return "\n".join(lines) + "\n"


def to_csv_rows(sections: Sequence[Section]) -> Iterator[tuple[object, ...]]:
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


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _markdown_table(table: Table) -> list[str]:
    head = [*table.corner, *(f"{column.group}: {column.name}" for column in table.columns)]
    lines = [_markdown_row(head), _markdown_row(["---"] * len(table.corner) + ["---:"] * len(table.columns))]
    previous: tuple[str, ...] = ()
    for row in table.rows:
        first = "" if previous[:1] == row.labels[:1] and len(row.labels) > 1 else row.labels[0]
        lines.append(_markdown_row([first, *row.labels[1:], *(cell.text for cell in row.cells)]))
        previous = row.labels
    return lines


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _latex_table(section: Section, table: Table) -> list[str]:
    left = len(table.corner)
    groups = [(name, len(list(columns))) for name, columns in groupby(table.columns, lambda column: column.group)]
    head, rules, at = " & " * (left - 1), [], left + 1
    for name, width in groups:
        head += f" & \\multicolumn{{{width}}}{{c}}{{{_escaped(name)}}}"
        rules.append(f"\\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    names = [*table.corner, *(column.name for column in table.columns)]
    lines = [
        "\\begin{table}",
        f"\\caption{{{_escaped(section.title)} ({_escaped(table.caption)}).}}",
        f"\\label{{tab:{table.key}}}",
        "\\resizebox{\\textwidth}{!}{%",
        f"\\begin{{tabular}}{{{'l' * left}{'r' * len(table.columns)}}}",
        "\\toprule",
        f"{head} \\\\",
        "".join(rules),
        " & ".join(map(_escaped, names)) + " \\\\",
    ]
    previous = None
    for row in table.rows:
        new = row.labels[0] != previous
        lines.append(("\\midrule\n" if new else "") + _latex_row(row.labels, row.cells, new))
        previous = row.labels[0]
    return [*lines, "\\bottomrule", "\\end{tabular}}", "\\end{table}"]


def _latex_row(labels: Sequence[str], cells: Sequence[Cell], new: bool) -> str:
    first = labels[0] if new else ""
    return " & ".join(map(_escaped, [first, *labels[1:]])) + " & " + " & ".join(map(_latex_cell, cells)) + " \\\\"


def _latex_cell(cell: Cell) -> str:
    value, bracket, interval = cell.text.partition(" [")
    if not bracket:
        return _escaped(value)
    return f"\\shortstack[r]{{{_escaped(value)}\\\\{{\\scriptsize [{_escaped(interval)}}}}}"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
