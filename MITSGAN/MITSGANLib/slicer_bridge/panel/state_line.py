"""The line at the top: what is known of the volume that is displayed, in one color, and the way to its place."""

from __future__ import annotations

from typing import Any

import qt
import slicer

from ..layout import go_to
from ..volumes import ras_from_voxel
from . import sentences
from .shared import Section

_PALETTE_SIGNAL = "paletteChanged(QPalette)"


class StateSection(Section):
    """Says what the displayed volume is: protected, painted over, simulated, signed, or not to be told."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self._place: tuple[int, int, int] | None = None
        panel.ui.goThereButton.connect("clicked()", self._go_there)
        self._painted: tuple[sentences.Tone, str] | None = None
        slicer.app.connect(_PALETTE_SIGNAL, self.follow_palette)

    def close(self) -> None:
        """Let go of the application, which outlives the panel."""
        slicer.app.disconnect(_PALETTE_SIGNAL, self.follow_palette)

    def follow_palette(self, _palette: Any = None) -> None:
        """Paint anew once the application is light or dark: the words would stay as they were, black on black."""
        self._panel.later(self.update)

    def update(self) -> None:
        panel = self._panel
        node = panel.parameters.volume if panel.parameters else None
        state = sentences.about_state(node, panel.inspection, panel.examine.examined, panel.has_open_watermark)
        panel.show_text(panel.ui.stateLabel, state.text)
        self._place = state.kji
        panel.ui.goThereButton.setVisible(state.kji is not None)
        # The window's own color of text: a style sheet would keep that of the day on which it was set.
        text = panel.window.palette.color(qt.QPalette.WindowText).name()
        if (state.tone, text) != self._painted:
            self._painted = (state.tone, text)
            color = state.tone.value
            # A bar of the color, and a veil of it over the window's own.
            panel.ui.stateFrame.styleSheet = (
                f"QFrame#stateFrame {{ background-color: rgba({color}, 45); border: none; "
                f"border-left: 5px solid rgb({color}); }} QLabel {{ color: {text}; }}"
            )

    def _go_there(self) -> None:
        node = self._panel.parameters.volume
        if node and self._place is not None:
            go_to(ras_from_voxel(node, self._place))
