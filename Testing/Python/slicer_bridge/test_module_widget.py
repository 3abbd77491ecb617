"""The life of a module's panel, tested in the stand-in for Slicer."""

import os

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from PySide6 import QtGui, QtWidgets  # noqa: E402


def test_what_wraps_does_not_ask_for_width(panel):
    labels = [widget for widget in vars(panel.ui).values() if widget.className() == "QLabel" and widget.wordWrap]
    assert labels
    for label in labels:
        # Slicer's own layouts took 600 pixels for a long text of any other policy; those of Qt 6, here, do not.
        assert label.sizePolicy.horizontalPolicy().name == "Ignored", label.name


def test_the_state_line_stays_readable_when_the_application_turns_dark(panel):
    palette = panel.parent.palette
    palette.setColor(QtGui.QPalette.ColorRole.WindowText, QtGui.QColor("#fafafa"))
    panel.parent.setPalette(palette)
    slicer.app.emit("paletteChanged(QPalette)")
    QtWidgets.QApplication.processEvents()
    assert "QLabel { color: #fafafa; }" in panel.ui.stateFrame.styleSheet
