"""The life of a module's panel, tested in the stand-in for Slicer."""

import os

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)


def test_what_wraps_does_not_ask_for_width(panel):
    labels = [widget for widget in vars(panel.ui).values() if widget.className() == "QLabel" and widget.wordWrap]
    assert labels
    for label in labels:
        # Slicer's own layouts took 600 pixels for a long text of any other policy; those of Qt 6, here, do not.
        assert label.sizePolicy.horizontalPolicy().name == "Ignored", label.name
