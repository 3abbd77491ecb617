"""The section on the CT volume: what is selected, whether it can be used, and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from ...errors import InputError
from ...scan.windows import LUNG
from ..inspection import inspect_node
from ..layout import displayed_volume, set_window, show_in_ordinary_views
from ..volumes import first_scan, is_scan, origin_of
from . import sentences
from .shared import Panel, Section

if TYPE_CHECKING:
    from .compare import CompareSection


class VolumeSection(Section):
    """Selects what is displayed and displays what is selected, says whether it looks like CT, and loads samples.

    :param compare: shows results, which go when they are of another volume.
    """

    def __init__(self, panel: Panel, compare: CompareSection) -> None:
        super().__init__(panel)
        self._compare = compare
        self._inspected: tuple[str, int] | None = None
        scene, observer = slicer.mrmlScene, panel.observer
        observer.addObserver(scene, scene.NodeAddedEvent, self._on_node_added)
        # Before the selectors, which fall back on another volume.
        observer.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._on_node_removed, priority=1.0)
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
            if slicer.mrmlScene.IsNodePresent(node) and not _is_displayed(node):
                show_in_ordinary_views(node)
        self._panel.show_text(self._panel.ui.inspectionLabel, sentences.about_volume(node, self._panel.inspection))

    def enter(self) -> None:
        """Select the scan that the views show, or that what they show was made from; else the scene's first."""
        parameters, shown = self._panel.parameters, displayed_volume()
        if not parameters.sourceVolume:
            scan = origin_of(shown) if shown else None
            parameters.sourceVolume = scan if scan and is_scan(scan) else first_scan()

    def scene_closed(self) -> None:
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

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_added(self, scene: Any, _event: Any, node: Any) -> None:
        """Select a scan that is loaded while none is selected."""
        if node.IsA("vtkMRMLScalarVolumeNode") and not scene.IsBatchProcessing():
            # Not now: it has neither voxels nor a source yet.
            qt.QTimer.singleShot(0, lambda: self._select_added(node.GetID()))

    def _select_added(self, node_id: str) -> None:
        panel, node = self._panel, slicer.mrmlScene.GetNodeByID(node_id)
        if not panel.is_closed and panel.parameters and not panel.parameters.sourceVolume and node and is_scan(node):
            panel.parameters.sourceVolume = node

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_removed(self, scene: Any, _event: Any, node: Any) -> None:
        """Select nothing in place of a volume that goes: another patient's would be protected unnoticed."""
        parameters = self._panel.parameters
        if not parameters or scene.IsBatchProcessing():
            return
        for name in ("sourceVolume", "protectedVolume", "checkedVolume"):
            if getattr(parameters, name) is node:
                setattr(parameters, name, None)


def _is_displayed(node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether the ordinary views show a volume, or what was made from it."""
    shown = displayed_volume()
    return shown is not None and node in (shown, origin_of(shown))


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
