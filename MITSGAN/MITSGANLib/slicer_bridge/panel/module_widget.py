"""The life of a module's panel: made once, shown and hidden, followed through scenes that open and close, reloaded."""

# Names are Slicer's.
# ruff: noqa: N802, N803

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from .shared import Panel


class ModuleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Loads a module's widgets, makes its panel, and shows that the parameter node of the scene."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Any = None
        self.panel: Panel | None = None
        self._parameterNode: Any = None
        self._parameterNodeGuiTag: Any = None

    def setUpPanel(self, uiFile: str, makePanel: Callable[..., Panel], makeLogic: Callable[..., Any]) -> None:
        """Build the panel, which ``setup`` does when the user opens the module for the first time.

        :param uiFile: among the module's resources.
        """
        ScriptedLoadableModuleWidget.setup(self)
        top = slicer.util.loadUI(self.resourcePath(uiFile))
        self.layout.addWidget(top)
        self.ui = slicer.util.childWidgetVariables(top)
        for widget in vars(self.ui).values():
            # Or Qt asks for 600 pixels for a long text, and makes the module panel that wide: it is to wrap instead.
            if widget.className() == "QLabel" and widget.wordWrap:
                policy = widget.sizePolicy
                policy.setHorizontalPolicy(qt.QSizePolicy.Ignored)
                widget.setSizePolicy(policy)
        top.setMRMLScene(slicer.mrmlScene)
        self.panel = makePanel(self, makeLogic)
        self.logic = self.panel.logic
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        # What was not shown while nodes came and went: a scene opened in place of another ends its import so.
        self.addObserver(scene, scene.EndBatchProcessEvent, self.onParametersModified)
        # Quitting waits for work in progress: the application calls cleanup only after it.
        slicer.app.connect("lastWindowClosed()", self.panel.jobs.cancel)
        self.enter()

    def cleanup(self) -> None:
        """Called when the application closes and the module widget is destroyed."""
        if self.panel:
            slicer.app.disconnect("lastWindowClosed()", self.panel.jobs.cancel)
            self.panel.close()
            self.exit()
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.setParameterNode(self.logic.getParameterNode())
        for section in self.panel.sections:
            section.enter()

    def exit(self) -> None:
        """Called each time the user opens a different module."""
        if self.panel:
            self.panel.leave()
            self.setParameterNode(None)

    def onReload(self) -> None:
        """Reload the library together with the module (developer mode)."""
        # None after a set-up that failed, which is what a reload may have been pressed for.
        jobs = self.panel and self.panel.jobs
        if jobs and jobs.button:
            jobs.cancel()
            jobs.say(_("Canceling; reload again when it has stopped."))
            return
        # The module file, which is executed anew, imports them anew.
        for name in [name for name in sys.modules if name.partition(".")[0] in ("MITSGANLib", "MITSGANTrainingLib")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, _caller: Any, _event: Any) -> None:
        """Let go of the parameter node before it is reset, and of work on nodes before they go."""
        self.panel.jobs.cancel(_("Canceled: the scene was closed."))
        self.exit()
        self.panel.scene_closes()

    def onSceneEndClose(self, _caller: Any, _event: Any) -> None:
        """Take a new parameter node if the panel is open."""
        for section in self.panel.sections:
            section.scene_closed()
        self.onSceneEndImport()

    def onSceneEndImport(self, _caller: Any = None, _event: Any = None) -> None:
        """Show what a scene that was just loaded says, if the panel is open."""
        if self.parent.isEntered:
            self.enter()

    def setParameterNode(self, inputParameterNode: Any) -> None:
        """Show and observe a parameter node, or none."""
        modified = vtk.vtkCommand.ModifiedEvent
        # The node is observed, not its wrapper: the mixin would keep every wrapper that it ever observed alive. With a
        # low priority, because the wrapper's values are caches that other observers renew, in no certain order.
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode.parameterNode, modified, self.onParametersModified)
        self._parameterNode = self.panel.parameters = inputParameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            node = self._parameterNode.parameterNode
            self.addObserver(node, modified, self.onParametersModified, priority=-1.0)
            self.onParametersModified()

    def onParametersModified(self, _caller: Any = None, _event: Any = None) -> None:
        """Show what the parameter node says, unless its nodes are half there while a scene is read."""
        # The end of the batch calls again.
        if self._parameterNode and not self.panel.is_closed and not slicer.mrmlScene.IsBatchProcessing():
            self.panel.refresh()
