"""Reports in a window of the application: the last one of this session, or one that the user chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

_WINDOW_PIXELS = (1000, 800)
# Where a report lies is kept for the session alone: a folder may be named after a patient.
_last: list[Path] = []
_window: list[Any] = []


def remember_report(path: Path) -> None:
    """Make a report the last one."""
    _last[:] = [path]


def last_report() -> Path | None:
    """The last report of this session that is still there."""
    return next((path for path in _last if path.is_file()), None)


def show_report(path: Path) -> Any:
    """Show an HTML or Markdown report in a window of its own, in place of the one shown before; the window."""
    remember_report(path)
    web = None if path.suffix == ".md" else getattr(slicer, "qSlicerWebWidget", None)
    view = (web or qt.QTextBrowser)()
    # Or it would outlive the application.
    view.setParent(slicer.util.mainWindow())
    view.setWindowFlags(qt.Qt.Window)
    view.setWindowTitle(_("Report"))
    view.resize(*_WINDOW_PIXELS)
    if web:
        view.url = path.absolute().as_uri()
    elif path.suffix == ".md":
        view.setMarkdown(path.read_text(encoding="utf-8"))
    else:
        view.setHtml(path.read_text(encoding="utf-8"))
    view.show()
    for other in _window:
        other.deleteLater()
    _window[:] = [view]
    return view
