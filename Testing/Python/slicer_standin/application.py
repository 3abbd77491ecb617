"""``slicer.app``, the module base classes and the rest of what a module file imports, over a real MRML scene."""

# Names are those of Qt and Slicer.
# ruff: noqa: N802, N815

from __future__ import annotations

import importlib.util
import sys
import types
import unittest
from pathlib import Path
from typing import ClassVar

import slicer
import vtk
from packaging.requirements import Requirement
from PySide6 import QtCore, QtWidgets

from . import parameters, widgets


class _PlotView:
    """Keeps the slot that a module connects, so that a test can click a point."""

    _SIGNAL = "dataSelected(vtkStringArray*,vtkCollection*)"
    slot = None

    def connect(self, signal, slot):
        assert signal.replace(" ", "") == self._SIGNAL
        self.slot = slot

    def disconnect(self, signal, _slot):
        assert signal.replace(" ", "") == self._SIGNAL
        self.slot = None


class _PlotWidget:
    def __init__(self, node):
        self._node, self._view = node, _PlotView()

    def mrmlPlotViewNode(self):
        return self._node

    def plotView(self):
        return self._view


class _Tabs:
    """The tab widget of a layout with tabs."""

    currentIndex = 0

    def className(self):
        return "QTabWidget"

    def setCurrentIndex(self, index):
        self.currentIndex = index


class _SliceView:
    """A view with a render window, which nothing renders into unless a test asks."""

    _spare: ClassVar[list[vtk.vtkRenderWindow]] = []
    """Windows of closed views that nothing was rendered into: to make one takes 17 ms."""

    def __init__(self):
        self._window = None

    def renderWindow(self):
        if self._window is None:
            self._window = self._spare.pop() if self._spare else vtk.vtkRenderWindow()
            self._window.SetOffScreenRendering(True)
            self._window.AddRenderer(vtk.vtkRenderer())
        return self._window

    def close(self):
        if self._window is not None and self._window.GetNeverRendered():
            self._window.RemoveRenderer(self._window.GetRenderers().GetFirstRenderer())
            self._spare.append(self._window)
        self._window = None

    def scheduleRender(self):
        pass


class _SliceWidget:
    def __init__(self, tabs):
        self._view, self._tabs = _SliceView(), tabs

    def className(self):
        return "qMRMLSliceWidget"

    def parent(self):
        return self._tabs

    def sliceView(self):
        return self._view


class LayoutManager:
    """Does what the application does when the layout node changes: makes the logics and widgets of new views."""

    def __init__(self, scene):
        self._scene, self._slice_logics, self._plots = scene, {}, {}
        self._slice_widgets, self.tabs = {}, _Tabs()
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLScene(scene)
        self._logic.GetLayoutNode().AddObserver(vtk.vtkCommand.ModifiedEvent, self._make_views)
        self._make_views()

    def _make_views(self, *_event):
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            if node.GetID() not in self._slice_logics:
                node.SetDimensions(400, 300, 1)
                logic = slicer.vtkMRMLSliceLogic()
                logic.SetMRMLScene(self._scene)
                logic.SetSliceNode(node)
                self._slice_logics[node.GetID()] = logic
                self._slice_widgets[node.GetLayoutName()] = _SliceWidget(self.tabs)
        for node in slicer.util.getNodesByClass("vtkMRMLPlotViewNode"):
            self._plots.setdefault(node.GetID(), _PlotWidget(node))

    def close(self):
        """Let go of the scene. VTK holds an observer's method, and so this object, out of the collector's sight."""
        self._logic.GetLayoutNode().RemoveAllObservers()
        for logic in (*self._slice_logics.values(), self._logic):
            logic.SetMRMLScene(None)
        for widget in self._slice_widgets.values():
            widget.sliceView().close()
        for held in (self._slice_logics, self._slice_widgets, self._plots):
            held.clear()

    def mrmlSliceLogics(self):
        logics = vtk.vtkCollection()
        for logic in self._slice_logics.values():
            logics.AddItem(logic)
        return logics

    def sliceWidget(self, name):
        return self._slice_widgets.get(name)

    @property
    def plotViewCount(self):
        return len(self._plots)

    def plotWidget(self, index):
        return list(self._plots.values())[index]


class Application:
    """``slicer.app``."""

    def __init__(self, scene):
        self._logic = slicer.vtkSlicerApplicationLogic()
        self._logic.SetMRMLScene(scene)
        self._layout_manager = LayoutManager(scene)
        self._slots = {"startupCompleted()": [], "lastWindowClosed()": [], "paletteChanged(QPalette)": []}

    def applicationLogic(self):
        return self._logic

    def layoutManager(self):
        return self._layout_manager

    def connect(self, signal, slot):
        self._slots[signal].append(slot)

    def disconnect(self, signal, slot):
        if slot in self._slots[signal]:
            self._slots[signal].remove(slot)

    def emit(self, signal):
        """Call what is connected, as the application would."""
        for slot in list(self._slots[signal]):
            slot()

    def processEvents(self):
        QtWidgets.QApplication.processEvents()

    def clipboard(self):
        return QtWidgets.QApplication.clipboard()

    def testingEnabled(self):
        return False

    def setOverrideCursor(self, _cursor):
        pass

    def restoreOverrideCursor(self):
        pass


class DicomDatabase:
    """``slicer.dicomDatabase``: which file holds an instance."""

    isOpen = True

    def __init__(self):
        self.files = {}

    def fileForInstance(self, uid):
        return str(self.files.get(uid, ""))


class _Module:
    def __init__(self, parent):
        self.parent = parent

    def resourcePath(self, name):
        return str(Path(self.parent.path).parent / "Resources" / name)


class _Widget:
    developerMode = False

    def __init__(self, parent):
        self.parent = parent
        self.layout = parent.layout()

    def setup(self):
        pass

    def resourcePath(self, name):
        return str(Path(sys.modules[type(self).__module__].__file__).parent / "Resources" / name)

    def onReload(self):
        """What ``slicer.util.reloadScriptedModule`` does: the code anew, this widget away, another in its place."""
        module = self.load(Path(sys.modules[type(self).__module__].__file__))
        self.cleanup()
        while self.layout.count():
            item = self.layout.takeAt(0)
            if item.widget():
                item.widget().hide()
        widget = getattr(module, type(self).__name__)(self.parent)
        setattr(slicer.modules, type(self).__name__, widget)
        widget.setup()


class _Logic:
    def __init__(self):
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self):
        scene = slicer.mrmlScene
        node = scene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag(self.moduleName)
            node.SetModuleName(self.moduleName)
            node = scene.AddNode(node)
        return node


class _Test(unittest.TestCase):
    def setUp(self):
        pass

    def delayDisplay(self, _text):
        pass


class StandIn:
    """Slicer's names in place for one test; ``monkeypatch`` takes them back.

    ``errors`` are the texts of the message boxes that would have been shown, ``status`` is what the status bar says.
    ``raised`` holds what slots and observers raised, which Qt and VTK would only print.
    """

    def __init__(self, monkeypatch):
        self.errors, self.raised, self._parents = [], [], []
        monkeypatch.setattr(sys, "excepthook", lambda _kind, error, _trace: self.raised.append(error))
        self.application = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
        self.scene, self._logics = new_scene()
        self.dicomDatabase = DicomDatabase()
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(slicer, "mrmlScene", self.scene, raising=False)
        for name, value in (
            ("app", Application(self.scene)),
            ("dicomDatabase", self.dicomDatabase),
            *widgets.slicer_widgets().items(),
        ):
            monkeypatch.setattr(slicer, name, value, raising=False)
        self.app = slicer.app
        markups = slicer.vtkSlicerMarkupsLogic()
        markups.SetMRMLApplicationLogic(self.app.applicationLogic())
        markups.SetMRMLScene(self.scene)
        modules = types.SimpleNamespace(markups=types.SimpleNamespace(logic=lambda: markups))
        monkeypatch.setattr(slicer, "modules", modules, raising=False)
        monkeypatch.setattr(slicer.util, "errorDisplay", lambda text, **_: self.errors.append(text))
        self.status = ""
        monkeypatch.setattr(slicer.util, "showStatusMessage", lambda text, _ms=0: setattr(self, "status", text))
        monkeypatch.setattr(slicer.util, "loadUI", widgets.load_ui)
        monkeypatch.setattr(slicer.util, "childWidgetVariables", widgets.child_widget_variables)
        base = types.ModuleType("slicer.ScriptedLoadableModule")
        for kind, value in (("", _Module), ("Widget", _Widget), ("Logic", _Logic), ("Test", _Test)):
            setattr(base, f"ScriptedLoadableModule{kind}", value)
        monkeypatch.setattr(_Widget, "load", staticmethod(self.load), raising=False)
        packaging = self.packaging = types.ModuleType("slicer.packaging")
        self.ensured = []
        packaging.load_requirements = _load_requirements
        packaging.pip_ensure = self._ensure
        monkeypatch.setattr(widgets.MessageBox, "asked", [])
        monkeypatch.setattr(widgets.MessageBox, "press", "Cancel")
        self.message_box = widgets.MessageBox
        for module in (widgets.qt_module(), widgets.ctk_module(), base, packaging, parameters.module()):
            monkeypatch.setitem(sys.modules, module.__name__, module)
            if "." in module.__name__:
                monkeypatch.setattr(slicer, module.__name__.partition(".")[2], module, raising=False)
        self.dialog = widgets.FileDialog

    def close(self):
        """Free the scene and the windows, which would stay for ever: 25 MB, and with a comparison 60."""
        self.app.layoutManager().close()
        self.scene.RemoveAllObservers()
        self.scene.Clear(True)
        for parent in self._parents:
            parent.deleteLater()
        QtWidgets.QApplication.sendPostedEvents(None, QtCore.QEvent.DeferredDelete)

    def _ensure(self, requirements, prompt_install=True, requester=None):
        assert not prompt_install, "the panel has asked"
        assert requester == "MITSGAN"
        self.ensured += [requirement.name for requirement in requirements]

    def load(self, path):
        """The module of a module file, as the application would import it."""
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        self._monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        return module

    def open_panel(self, module, width=400):
        """The module's widget, set up and entered, in a window of the width of Slicer's panel."""
        parent = self.new_parent(width)
        widget = getattr(module, f"{module.__name__}Widget")(parent)
        setattr(slicer.modules, type(widget).__name__, widget)
        widget.setup()
        self.enter(widget)
        parent.show()
        return widget

    def enter(self, widget):
        """Open the module."""
        widget.parent._is_entered = True
        widget.enter()

    def leave(self, widget):
        """Open another module."""
        widget.parent._is_entered = False
        widget.exit()

    def new_parent(self, width=400):
        """An empty window of the width of Slicer's panel."""
        parent = slicer.qMRMLWidget()
        self._parents.append(parent)
        parent.setLayout(QtWidgets.QVBoxLayout())
        parent.setFixedWidth(width)
        return parent


def _load_requirements(path):
    """``slicer.packaging.load_requirements``: objects, without comments and options."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def new_scene():
    """A scene with the node classes that the application's modules register, and what must live as long as it does."""
    scene = slicer.vtkMRMLScene()
    application_logic = slicer.vtkSlicerApplicationLogic()
    color_logic = slicer.vtkSlicerColorLogic()
    color_logic.SetMRMLApplicationLogic(application_logic)
    color_logic.SetMRMLScene(scene)
    return scene, (application_logic, color_logic)
