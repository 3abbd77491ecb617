"""The line at the top: what is known of the volume that is displayed, in one color, and the way to its place."""

from __future__ import annotations

from typing import Any

import qt
import slicer

from ..layout import go_to
from ..volumes import ras_from_voxel
from . import sentences
from .examine import ExamineSection
from .shared import Panel, Section

_PALETTE_SIGNAL = "paletteChanged(QPalette)"
# Readable on a light and on a dark window: the color is that of the bar, and a veil of it over the window's own.
_COLORS = {
    sentences.Tone.NONE: (128, 128, 128),
    sentences.Tone.GOOD: (38, 145, 75),
    sentences.Tone.NEUTRAL: (47, 128, 195),
    sentences.Tone.UNKNOWN: (160, 125, 20),
    sentences.Tone.ATTACK: (217, 89, 0),
    sentences.Tone.CHANGED: (205, 30, 60),
}


class StateSection(Section):
    """Says what the displayed volume is: protected, painted over, simulated, signed, or not to be told.

    :param examine: has examined it, or has not.
    """

    def __init__(self, panel: Panel, examine: ExamineSection) -> None:
        super().__init__(panel)
        self._examine = examine
        self._place: tuple[int, int, int] | None = None
        panel.ui.goThereButton.connect("clicked()", self.go_there)
        self._painted: tuple[sentences.Tone, str] | None = None
        slicer.app.connect(_PALETTE_SIGNAL, self.follow_palette)

    def close(self) -> None:
        """Let go of the application, which outlives the panel."""
        slicer.app.disconnect(_PALETTE_SIGNAL, self.follow_palette)

    def follow_palette(self, _palette: Any = None) -> None:
        """Paint anew once the application is light or dark: the words would stay as they were, black on black."""
        qt.QTimer.singleShot(0, self._repaint)

    def _repaint(self) -> None:
        if not self._panel.is_closed:
            self.update()

    def update(self) -> None:
        """Say it anew."""
        panel = self._panel
        node = panel.parameters.volume if panel.parameters else None
        state = sentences.about_state(node, panel.inspection, self._examine.finding, panel.has_open_watermark)
        panel.show_text(panel.ui.stateLabel, state.text)
        self._place = state.kji
        panel.ui.goThereButton.setVisible(state.kji is not None)
        # The window's own color of text: a style sheet would keep that of the day on which it was set.
        text = panel.window.palette.color(qt.QPalette.WindowText).name()
        if (state.tone, text) != self._painted:
            self._painted = (state.tone, text)
            red, green, blue = _COLORS[state.tone]
            panel.ui.stateFrame.styleSheet = (
                f"QFrame#stateFrame {{ background-color: rgba({red}, {green}, {blue}, 45); "
                f"border: none; border-left: 5px solid rgb({red}, {green}, {blue}); }} "
                f"QLabel {{ color: {text}; }}"
            )

    def go_there(self) -> None:
        """Show the place in the slice views."""
        node = self._panel.parameters.volume
        if node and self._place is not None:
            go_to(ras_from_voxel(node, self._place))
