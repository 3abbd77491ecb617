"""Parts of the panel, each usable and testable by itself. They get their widgets from the module and import no Qt.

``jobs`` runs one heavy job at a time, ``conditions`` says what is missing for each button, ``sentences`` words what
the panel says, ``device`` finds out what networks run on, ``comparison`` is the side-by-side view with heatmaps,
flicker and plot.
"""

from .comparison import ComparisonView
from .conditions import missing_for
from .device import DeviceLine
from .jobs import JobRunner

__all__ = ["ComparisonView", "DeviceLine", "JobRunner", "missing_for"]
