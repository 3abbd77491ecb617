"""Pages of HTML with all pictures inside, from the templates in ``Resources``."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, NamedTuple

from ..files.atomic import atomic_file
from ..runtime.resources import resources_folder


class PageTable(NamedTuple):
    """A table of text, and notes below it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


class PagePicture(NamedTuple):
    """A picture as PNG, and its caption."""

    png: bytes
    caption: str


def save_page(path: Path, template: str, **values: Any) -> None:
    """Write the page that a template makes of these values; it shows tables and figures by macros of ``page.html.j2``.

    It appears whole or not at all. An older one is replaced.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(resources_folder(Path(__file__).resolve().parents[1]))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    page = environment.get_template(template).render(values)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(page, encoding="utf-8")
