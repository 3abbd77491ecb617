"""The volume that the views show: the panel is about it, says whether it can be used, and loads samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _

from ...errors import InputError, MITSGANError
from ...scan.volume import CTVolume
from ...scan.windows import LUNG
from .. import volumes
from ..inspection import Inspection, carries_open_watermark, inspect_scan
from ..layout import displayed_volume, ordinary_views, set_window, show_in_ordinary_views
from ..origin import steps_of
from ..packages import KEYS, are_installed
from . import sentences
from .jobs import Question
from .shared import Section


class VolumeSection(Section):
    """Follows what the views show, and lets them show what is selected; finds the scan and its results to it."""

    def __init__(self, panel: Any) -> None:
        super().__init__(panel)
        self._inspected: tuple[str, int] | None = None
        self._follows_soon = False
        self._seen: set[str] = set()
        scene, observer = slicer.mrmlScene, panel.module_widget
        observer.addObserver(scene, scene.NodeAddedEvent, self._on_node_added)
        # Before the selectors, which fall back on another volume.
        observer.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self._on_node_removed, priority=1.0)
        ui = panel.ui
        ui.sampleChestButton.connect("clicked()", self._load_chest)
        panel.add_control(ui.volumeSelector, ui.sampleChestButton, waits=True)
        panel.add_job(
            ui.samplePhantomButton,
            ui.protectProgressBar,
            self._load_phantom,
            unit="",
            failure=_("Failed to make the sample."),
        )

    @property
    def key(self) -> tuple[str, int] | None:
        """Changes when the volume or its voxels do; None without a volume, or with one that is known to be no CT."""
        return None if self._panel.missing_volume() else self._inspected

    def refresh(self) -> None:
        """Inspect the volume whenever it is another node or has other voxels, and find what belongs to it."""
        parameters, ui = self._panel.parameters, self._panel.ui
        node = parameters.volume
        before, self._inspected = self._inspected, _identity(node)
        self._panel.inspection = self._inspect(node) if node else None
        self._panel.has_open_watermark = self._look_for_watermark(node) if self._panel.is_usable else None
        # A volume that is being deleted is still referred to here when it is no longer there.
        if self._inspected != before and slicer.mrmlScene.IsNodePresent(node):
            # First, or what the views show is taken for the user's choice.
            if displayed_volume() is not node:
                show_in_ordinary_views(node)
            self._find_origin(node)
        text, tool_tip = sentences.about_volume(node, self._panel.inspection)
        self._panel.show_text(ui.inspectionLabel, text)
        ui.inspectionLabel.toolTip = tool_tip
        for widget in (ui.sampleLabel, ui.sampleChestButton, ui.samplePhantomButton):
            widget.setVisible(node is None)

    def enter(self) -> None:
        """Take what the views show; where they show nothing, the scene's first scan."""
        parameters = self._panel.parameters
        self._observe_views()
        self._follow()
        if not parameters.volume:
            parameters.volume = volumes.first_scan()

    def scene_closes(self) -> None:
        self._inspected = None
        self._seen.clear()

    def _load_chest(self) -> None:
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
            parameters.volume = nodes[0]

    def _load_phantom(self, progress: Callable[..., None]) -> None:
        parameters = self._panel.parameters
        parameters.volume = self._panel.logic.loadPhantom(progress=progress)

    def _inspect(self, node: slicer.vtkMRMLScalarVolumeNode) -> Inspection | None:
        """What is known of a volume's voxels; None while they are being looked at.

        Of a result that was just made, that is what is known of the scan that it was made from.
        """
        inquiry, question = self._panel.inquiry, ("inspection", *_identity(node))
        source = volumes.source_of(node)
        if node.GetID() not in self._seen and source and inquiry.answer(question) is None:
            known = inquiry.answer(("inspection", *_identity(source)))
            if known is not None:
                inquiry.remember(question, known)
        self._seen.add(node.GetID())
        try:
            known = self._ask(question, node, inspect_scan)
        except InputError as error:
            known = error
        return Inspection(problem=str(known)) if isinstance(known, Exception) else known

    def _look_for_watermark(self, node: slicer.vtkMRMLScalarVolumeNode) -> bool | None:
        """Whether a volume of which nothing is recorded carries the open watermark; None while that is not known."""
        try:
            if steps_of(node) or not are_installed(*KEYS):
                return None
            answer = self._ask(("watermark", *_identity(node)), node, carries_open_watermark)
        except MITSGANError:
            return None
        return None if isinstance(answer, Exception) else answer

    def _ask(self, question: Question, node: slicer.vtkMRMLScalarVolumeNode, look: Callable[[CTVolume], Any]) -> Any:
        """What a look at a volume's voxels tells; None while that is not known."""
        answer = self._panel.inquiry.answer(question)
        if answer is None:
            scan = volumes.scan_from_node(node)
            answer = self._panel.inquiry.ask(question, lambda: look(scan))
        return answer

    def _find_origin(self, node: slicer.vtkMRMLScalarVolumeNode) -> None:
        """Select a volume's source, which may be itself, and the protected version that belongs to it."""
        parameters, origin = self._panel.parameters, volumes.origin_of(node)
        if parameters.sourceVolume is not origin:
            had_one = parameters.sourceVolume is not None
            parameters.sourceVolume = origin
            if had_one:
                self._panel.compare.follow(origin)
        protected = node
        is_attacked, is_protected = volumes.is_simulated_attack, volumes.is_protected
        while protected is not origin and (is_attacked(protected) or not is_protected(protected)):
            protected = volumes.source_of(protected)
        if protected is not origin and protected is not parameters.protectedVolume:
            parameters.protectedVolume = protected
            parameters.sourceAttacked = parameters.protectedAttacked = None
            self._panel.compare.discard(parameters)

    def _observe_views(self) -> None:
        for composite in ordinary_views("vtkMRMLSliceCompositeNode"):
            self._panel.observe(composite, vtk.vtkCommand.ModifiedEvent, self._on_view_changed)

    def _on_view_changed(self, _caller: Any, _event: Any) -> None:
        # Not now: Slicer changes one view after the other.
        if not self._follows_soon:
            self._follows_soon = True
            self._panel.later(self._follow)

    def _follow(self) -> None:
        """Select what the views show."""
        self._follows_soon = False
        parameters = self._panel.parameters
        if not parameters or slicer.mrmlScene.IsBatchProcessing():
            return
        shown = displayed_volume()
        if shown not in (None, parameters.volume) and not shown.GetAttribute(volumes.DIFFERENCE_ATTRIBUTE):
            # Of a color image or a label map nothing can be said, and nothing may be said of another volume.
            parameters.volume = shown if shown.GetClassName() == "vtkMRMLScalarVolumeNode" else None

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_added(self, scene: Any, _event: Any, node: Any) -> None:
        """Select a scan as it is loaded, if none is selected, and follow new views."""
        if node.IsA("vtkMRMLSliceCompositeNode"):
            self._observe_views()
        if node.IsA("vtkMRMLScalarVolumeNode") and not scene.IsBatchProcessing():
            # Not now: it has neither voxels nor a source yet.
            self._panel.later(lambda: self._select_added(node))

    def _select_added(self, node: slicer.vtkMRMLScalarVolumeNode) -> None:
        parameters = self._panel.parameters
        if parameters and not parameters.volume and node.GetScene() is slicer.mrmlScene and volumes.is_scan(node):
            parameters.volume = node

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_removed(self, scene: Any, _event: Any, node: Any) -> None:
        """Select nothing in place of a volume that goes: another patient's would be protected unnoticed."""
        parameters = self._panel.parameters
        if not parameters or scene.IsBatchProcessing():
            return
        for name in ("volume", "sourceVolume", "protectedVolume"):
            if getattr(parameters, name) is node:
                setattr(parameters, name, None)
                self._panel.jobs.cancel(_("Canceled: the volume was removed from the scene."))


def _identity(node: Any) -> tuple[str, int] | None:
    image = node.GetImageData() if node else None
    return (node.GetID(), image.GetMTime() if image else 0) if node else None
