"""The dialog before packages are installed: which, what for, and how large."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

from ..packages import TORCH, known_packages


class InstallChoice(enum.Enum):
    """What the user wants."""

    ALL = "all"
    WITHOUT_NETWORKS = "watermark and signatures alone"
    NOTHING = "nothing"


def ask_to_install(window: Any, names: Sequence[str], *, has_other_way: bool) -> InstallChoice:
    """Ask whether these packages may be installed.

    :param names: as Python imports them.
    :param has_other_way: whether there is one without PyTorch.
    """
    known = known_packages()
    lines = [
        _("• {name}, about {size} MB: {purpose}").format(name=one.name, size=one.megabytes, purpose=one.purpose)
        for one in (known[name] for name in names)
    ]
    if TORCH in names:
        lines.append(
            _("PyTorch for an NVIDIA GPU takes up to 3,000 MB. Choose the device CPU under Advanced for the small one.")
        )
    box = qt.QMessageBox(window)
    box.setWindowTitle(_("Install Python packages?"))
    box.setText(_("MITSGAN needs packages that Slicer does not ship. They are loaded from the internet once."))
    box.setInformativeText("\n".join(lines))
    install = box.addButton(_("Install"), qt.QMessageBox.AcceptRole)
    other = None
    if has_other_way:
        other = box.addButton(_("Only watermark and signatures (no PyTorch)"), qt.QMessageBox.AcceptRole)
    box.addButton(_("Cancel"), qt.QMessageBox.RejectRole)
    # Qt 5 in Python knows the one name, Qt 6 the other.
    (box.exec_ if hasattr(box, "exec_") else box.exec)()
    pressed = box.clickedButton()
    if pressed == install:
        return InstallChoice.ALL
    return InstallChoice.WITHOUT_NETWORKS if other is not None and pressed == other else InstallChoice.NOTHING
