"""The section on the CT volume: what is selected, whether it can be used, and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from ...errors import InputError
from ...scan.windows import LUNG
from ..inspection import inspect_node
from ..layout import set_window
from . import sentences
from .shared import Panel, Section

if TYPE_CHECKING:
    from .compare import CompareSection


class VolumeSection(Section):
    """Says at once whether the selected volume looks like CT, and loads samples.

    :param compare: shows results, which go when they are of another volume.
    """

    def __init__(self, panel: Panel, compare: CompareSection) -> None:
        super().__init__(panel)
        self._compare = compare
        self._inspected: tuple[str, int] | None = None
        ui = panel.ui
        ui.sampleChestButton.connect("clicked()", self.load_chest)
        panel.add_control(ui.sourceVolumeSelector, ui.sampleChestButton, waits=True)
        panel.add_job(
            ui.samplePhantomButton,
            ui.protectProgressBar,
            self.load_phantom,
            unit="",
            failure=_("Failed to make the sample."),
        )

    @property
    def key(self) -> tuple[str, int] | None:
        """Changes when the volume or its voxels do; None without a usable volume."""
        return self._inspected if self._panel.is_usable else None

    def refresh(self) -> None:
        """Inspect the source whenever it is another node or has other voxels."""
        parameters = self._panel.parameters
        node = parameters.sourceVolume
        inspected = _identity(node)
        before, self._inspected = self._inspected, inspected
        is_another = inspected and before and before[0] != inspected[0]
        # A volume that is being deleted is still referred to here when it is no longer there.
        if slicer.mrmlScene.IsNodePresent(node) and (is_another or not parameters.checkedVolume):
            parameters.checkedVolume = node
        if inspected != before:
            with _wait_cursor():
                self._panel.inspection = inspect_node(node) if node else None
            if is_another:
                self._compare.follow(node)
        self._panel.ui.inspectionLabel.text = sentences.about_volume(node, self._panel.inspection)

    def forget(self) -> None:
        """Inspect anew whatever is selected next: IDs of nodes are used again in another scene."""
        self._inspected = None

    def load_chest(self) -> None:
        """Load the chest CT of Slicer's Sample Data."""
        with slicer.util.tryWithErrorDisplay(_("Failed to load the sample."), waitCursor=True):
            import SampleData

            # The download lets the user open another module.
            parameters = self._panel.parameters
            nodes = SampleData.downloadSamples("CTChest")
            if not nodes:
                raise InputError(
                    _("The sample could not be downloaded; check the connection, or use the synthetic thorax.")
                )
            set_window(nodes, LUNG)
            parameters.sourceVolume = nodes[0]

    def load_phantom(self, progress: Callable[..., None]) -> None:
        """Make the synthetic thorax."""
        parameters = self._panel.parameters
        parameters.sourceVolume = self._panel.logic.loadPhantom(progress)


@contextmanager
def _wait_cursor() -> Iterator[None]:
    """Slicer's own WaitCursor processes events, which may close the scene while the parameter node is being shown."""
    slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
    try:
        yield
    finally:
        slicer.app.restoreOverrideCursor()


def _identity(node: Any) -> tuple[str, int] | None:
    image = node.GetImageData() if node else None
    return (node.GetID(), image.GetMTime() if image else 0) if node else None
