"""A thin stand-in for the Qt-facing names of Slicer's Python, with slicer-core's real MRML scene behind it.

It lets the tests load the real module files and the real ``.ui`` and click through them without the application.
``widgets`` gives PySide6 widgets the manners of PythonQt, ``parameters`` stands for ``slicer.parameterNodeWrapper``,
``application`` for ``slicer.app`` and the module base classes; ``lockstep`` shows every report of work. Product code
knows nothing of it.
"""

from .application import StandIn
from .lockstep import run_in_lockstep

__all__ = ["StandIn", "run_in_lockstep"]
