"""The panel, a class for each of its sections. The module file makes them; they meet in :class:`Panel`.

``shared`` is what all have in common, ``volume``, ``protect``, ``attack``, ``compare``, ``export`` and ``keys`` are the
sections, ``buttons`` enables and explains. Below them, and free of Qt: ``jobs`` runs one heavy job at a time,
``conditions`` says what is missing for each button, ``sentences`` words what the panel says, ``device_line`` finds out
what networks run on, ``comparison_view`` is the side-by-side view with heatmaps, flicker and plot, ``key_choices``
holds the chosen key files.

A section has ``refresh`` if it shows something of the parameter node, ``leave`` if something has to end when the user
leaves the module or closes the scene, and ``close`` if something has to end with the panel.
"""

from .attack import AttackSection
from .buttons import Buttons
from .compare import CompareSection
from .export import ExportSection
from .jobs import JobRunner
from .keys import KeysSection
from .protect import ProtectSection
from .shared import Panel
from .volume import VolumeSection

__all__ = [
    "AttackSection",
    "Buttons",
    "CompareSection",
    "ExportSection",
    "JobRunner",
    "KeysSection",
    "Panel",
    "ProtectSection",
    "VolumeSection",
]
