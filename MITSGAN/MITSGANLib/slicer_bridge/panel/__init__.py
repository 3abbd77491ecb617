"""Parts of the panel, each usable and testable by itself. They get their widgets from the module and import no Qt.

``jobs`` runs one heavy job at a time, ``conditions`` says what is missing for each button, ``sentences`` words what
the panel says, ``device`` finds out what networks run on, ``comparison`` is the side-by-side view with heatmaps,
flicker and plot, ``keys`` holds the chosen key files.
"""

from .comparison import ComparisonView
from .conditions import missing_for, missing_on_disk
from .device import DeviceLine
from .jobs import JobRunner
from .keys import KeyChoices

__all__ = ["ComparisonView", "DeviceLine", "JobRunner", "KeyChoices", "missing_for", "missing_on_disk"]
