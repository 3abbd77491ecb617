"""PySide6 widgets with PythonQt's manners: properties without calls, ``connect("signal(type)", slot)``, ``name``."""

# Names are those of Qt and Slicer.
# ruff: noqa: N802, N815

from __future__ import annotations

import functools
import types
from xml.etree import ElementTree

import shiboken6
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Qt, Signal
from PySide6.QtUiTools import QUiLoader

# Properties that are functions as well: virtual ones that Qt calls, and QTimer's static one.
_FUNCTIONS = {"sizeHint", "minimumSizeHint", "singleShot"}


def _by_signature(function, sender, *arguments):
    """``connect`` and ``disconnect`` by PythonQt's plain signature; PySide's signals call them in their own way.

    Of a signal that does not exist PythonQt says so on the console only, and nothing is ever called.
    """
    if len(arguments) == 2 and isinstance(arguments[0], str) and not arguments[0][0].isdigit():
        signal = QtCore.QMetaObject.normalizedSignature(arguments[0]).data().decode()
        if sender.metaObject().indexOfSignal(signal) < 0:
            raise LookupError(f"{type(sender).__name__} has no signal {signal}")
        return function(sender, QtCore.SIGNAL(signal), arguments[1])
    return function(*arguments)


class _Manners:
    """What PythonQt adds to every object."""

    def __getattribute__(self, name):
        # An ordinary method would lose to PySide's own of this name.
        if name in ("connect", "disconnect"):
            return functools.partial(_by_signature, getattr(QtCore.QObject, name), self)
        return super().__getattribute__(name)

    def __setattr__(self, name, value):
        # PySide would take any name; PythonQt knows the properties of a class and nothing else. (Qt's loader of ``.ui``
        # files keeps widgets as attributes.)
        is_property = isinstance(getattr(type(self), name, None), property | QtCore.Property)
        if not (is_property or name.startswith("_") or isinstance(value, QtWidgets.QWidget)):
            raise AttributeError(f"{type(self).__name__} has no property {name}")
        super().__setattr__(name, value)

    @property
    def name(self):
        return self.property("objectName")

    def className(self):
        return self.metaObject().className()


def _attribute(name):
    def write(self, value):
        if not self.setProperty(name, value):
            raise TypeError(f"{type(self).__name__}.{name} does not take {value!r}")

    return property(lambda self: self.property(name), write)


def with_manners(base, class_name=None):
    """A subclass of a PySide6 class that behaves as PythonQt's class of that name, by default the same."""
    meta = base.staticMetaObject
    names = {meta.property(index).name() for index in range(meta.propertyCount())} - _FUNCTIONS
    if base is QtWidgets.QProgressBar:
        # A virtual function as well: Qt would ask the property, which asks Qt, and so on.
        names -= {"text"}
    names -= {name for name, value in vars(base).items() if isinstance(value, QtCore.Property)}
    return type(class_name or base.__name__, (_Manners, base), {name: _attribute(name) for name in names})


def _stored(kind, name, default):
    """A property that only keeps its value."""
    return QtCore.Property(
        kind, lambda self: getattr(self, name, default), lambda self, value: setattr(self, name, value)
    )


class _NodeComboBox(QtWidgets.QComboBox):
    """qMRMLNodeComboBox: the nodes of a scene by name, and none."""

    currentNodeChanged = Signal(object)
    nodeTypes = _stored("QStringList", "_node_types", [])
    showChildNodeTypes = _stored(bool, "_show_children", True)
    noneEnabled = _stored(bool, "_none_enabled", False)
    addEnabled = _stored(bool, "_add_enabled", True)
    removeEnabled = _stored(bool, "_remove_enabled", True)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._ids, self._filling = None, [None], False
        self.setSizeAdjustPolicy(self.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.addItem("None")
        self.currentIndexChanged.connect(self._emit)

    def setMRMLScene(self, scene):
        self._scene = scene
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent):
            scene.AddObserver(event, self._fill)
        scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._leave_out)
        self._fill()

    def currentNode(self):
        node_id = self._ids[QtWidgets.QComboBox.currentIndex(self)]
        return self._scene.GetNodeByID(node_id) if node_id else None

    def setCurrentNode(self, node):
        self._fill()
        # Of a node that it does not list, Slicer makes none: several parameters may refer to one that is being deleted.
        node_id = node.GetID() if node else None
        self.setCurrentIndex(self._ids.index(node_id) if node_id in self._ids else 0)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _leave_out(self, scene, _event, node):
        """As in Slicer, a node's row goes before the node does, and Qt then selects the row before it."""
        if not shiboken6.isValid(self) or scene.IsClosing() or node.GetID() not in self._ids:
            return
        current = QtWidgets.QComboBox.currentIndex(self)
        index = self._ids.index(node.GetID())
        self._filling = True
        self.removeItem(index)
        del self._ids[index]
        if current == index:
            self.setCurrentIndex(index - 1)
        self._filling = False
        if current == index:
            self._emit()

    def _fill(self, *_event):
        if not shiboken6.isValid(self):
            return
        current = self._ids[max(0, QtWidgets.QComboBox.currentIndex(self))]
        nodes = [
            node
            for kind in self.nodeTypes
            for node in (
                self._scene.GetNthNodeByClass(index, kind) for index in range(self._scene.GetNumberOfNodesByClass(kind))
            )
            if node.GetID() and (self.showChildNodeTypes or node.GetClassName() == kind)
        ]
        self._filling = True
        self.clear()
        self.addItems(["None", *(node.GetName() for node in nodes)])
        self._ids = [None, *(node.GetID() for node in nodes)]
        self.setCurrentIndex(self._ids.index(current) if current in self._ids else 0)
        self._filling = False
        if current not in self._ids:
            self._emit()

    def _emit(self, *_index):
        if not self._filling:
            self.currentNodeChanged.emit(self.currentNode())


class _CollapsibleButton(QtWidgets.QWidget):
    """ctkCollapsibleButton: a title over its contents, or alone."""

    contentsCollapsed = Signal(bool)
    _TITLE_HEIGHT = 24
    _text, _is_collapsed = "", False

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setContentsMargins(0, self._TITLE_HEIGHT + 2, 0, 0)

    def _set_text(self, text):
        self._text = text

    def _set_collapsed(self, is_collapsed):
        was_collapsed, self._is_collapsed = self._is_collapsed, is_collapsed
        self.setMaximumHeight(self._TITLE_HEIGHT if is_collapsed else 16777215)
        if is_collapsed != was_collapsed:
            self.contentsCollapsed.emit(is_collapsed)

    text = QtCore.Property(str, lambda self: self._text, _set_text)
    collapsed = QtCore.Property(bool, lambda self: self._is_collapsed, _set_collapsed)
    collapsedHeight = _stored(int, "_collapsed_height", 10)

    def paintEvent(self, _event):
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, self._TITLE_HEIGHT)
        option.text = ("▸ " if self._is_collapsed else "▾ ") + self._text
        painter = QtWidgets.QStylePainter(self)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButton, option)
        painter.end()


class _SliderWidget(QtWidgets.QWidget):
    """ctkSliderWidget: a slider and a spin box for one real number."""

    valueChanged = Signal(float)

    def __init__(self, parent=None):
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._slider, self._box = QtWidgets.QSlider(Qt.Orientation.Horizontal), QtWidgets.QDoubleSpinBox()
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._box)
        self._slider.setRange(0, 1000)
        self._slider.valueChanged.connect(lambda step: self._box.setValue(step / 1000 * self._box.maximum()))
        self._box.valueChanged.connect(self._on_value)

    def _on_value(self, value):
        self._slider.blockSignals(True)
        self._slider.setValue(round(1000 * value / self._box.maximum()))
        self._slider.blockSignals(False)
        self.valueChanged.emit(value)

    minimum = QtCore.Property(float, lambda self: self._box.minimum(), lambda self, v: self._box.setMinimum(v))
    maximum = QtCore.Property(float, lambda self: self._box.maximum(), lambda self, v: self._box.setMaximum(v))
    pageStep = QtCore.Property(
        float, lambda self: self._slider.pageStep() / 1000, lambda self, v: self._slider.setPageStep(round(1000 * v))
    )
    singleStep = QtCore.Property(float, lambda self: self._box.singleStep(), lambda self, v: self._box.setSingleStep(v))
    decimals = QtCore.Property(int, lambda self: self._box.decimals(), lambda self, v: self._box.setDecimals(v))
    suffix = QtCore.Property(str, lambda self: self._box.suffix(), lambda self, v: self._box.setSuffix(v))
    value = QtCore.Property(float, lambda self: self._box.value(), lambda self, v: self._box.setValue(v))


class _MRMLWidget(QtWidgets.QWidget):
    """qMRMLWidget: hands its scene to those whom the ``.ui`` connects."""

    _is_entered = False
    isEntered = QtCore.Property(bool, lambda self: self._is_entered)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._receivers = []

    def setMRMLScene(self, scene):
        for receiver in self._receivers:
            receiver.setMRMLScene(scene)


class FileDialog:
    """Answers as the user would; a test sets ``answer``."""

    answer = ""

    @classmethod
    def getSaveFileName(cls, *_arguments):
        return cls.answer

    getExistingDirectory = getOpenFileName = getSaveFileName


class MessageBox:
    """A box with buttons; a test names the one that is pressed by how its text begins, and reads what was asked."""

    AcceptRole, RejectRole = range(2)
    press, asked = "Cancel", []

    def __init__(self, _parent):
        self._buttons, self._words = [], []

    def _say(self, text):
        self._words.append(text)

    setWindowTitle = setText = setInformativeText = _say

    def addButton(self, text, _role):
        self._buttons.append(text)
        return text

    def exec_(self):
        type(self).asked.append("\n".join([*self._words, *self._buttons]))

    def clickedButton(self):
        return next(text for text in self._buttons if text.startswith(self.press))


_WIDGETS = {
    name: with_manners(getattr(QtWidgets, name))
    for name in (
        "QWidget",
        "QFrame",
        "QTableWidget",
        "QLabel",
        "QComboBox",
        "QDoubleSpinBox",
        "QPushButton",
        "QToolButton",
        "QRadioButton",
        "QCheckBox",
        "QProgressBar",
        "QLineEdit",
        "QTextBrowser",
    )
}
_CUSTOM = {
    "qMRMLNodeComboBox": with_manners(_NodeComboBox, "qMRMLNodeComboBox"),
    "ctkCollapsibleButton": with_manners(_CollapsibleButton, "ctkCollapsibleButton"),
    "ctkSliderWidget": with_manners(_SliderWidget, "ctkSliderWidget"),
    "qMRMLWidget": with_manners(_MRMLWidget, "qMRMLWidget"),
}
_ALL = {**_WIDGETS, **_CUSTOM}


@functools.cache
def qt_module():
    """What ``import qt`` gives: always the same, which modules hold on to."""
    module = types.ModuleType("qt")
    module.QSizePolicy = QtWidgets.QSizePolicy
    for name, value in _WIDGETS.items():
        setattr(module, name, value)
    module.Qt = Qt
    module.QIcon = QtGui.QIcon
    module.QPalette = QtGui.QPalette
    module.QFormLayout, module.QVBoxLayout = QtWidgets.QFormLayout, QtWidgets.QVBoxLayout
    module.QHBoxLayout = QtWidgets.QHBoxLayout
    module.QFileDialog = FileDialog
    module.QMessageBox = MessageBox
    module.QTableWidgetItem = QtWidgets.QTableWidgetItem
    module.QApplication = QtWidgets.QApplication
    module.QTimer, module.QProcess = with_manners(QtCore.QTimer), with_manners(QtCore.QProcess)
    module.QTimer.singleShot = staticmethod(_refuse_single_shot)
    return module


def _refuse_single_shot(*_arguments):
    """Slicer's own makes a timer that stays, with all that its slot refers to, until the application ends."""
    raise AssertionError("Slicer never frees what QTimer.singleShot calls; use Panel.later")


def slicer_widgets():
    """The widget classes that ``slicer`` itself gives."""
    return {name: value for name, value in _CUSTOM.items() if name.startswith("qMRML")}


@functools.cache
def ctk_module():
    """What ``import ctk`` gives, always the same."""
    module = types.ModuleType("ctk")
    for name, value in _CUSTOM.items():
        if name.startswith("ctk"):
            setattr(module, name, value)
    return module


class _Loader(QUiLoader):
    def __init__(self):
        super().__init__()
        self.made = []

    def createWidget(self, class_name, parent=None, name=""):
        if class_name not in _ALL:
            raise LookupError(f"the stand-in has no {class_name}")
        widget = _ALL[class_name](parent)
        widget.setObjectName(name)
        self.made.append(widget)  # or Python forgets that it is one of ours
        return widget


@functools.cache
def _without_connections(path):
    """A ``.ui`` file for Qt's loader, and the names of those to whom it connects the scene."""
    tree = ElementTree.parse(path)
    connections = tree.getroot().find("connections")
    receivers = [item.findtext("receiver") for item in connections.iter("connection")]
    tree.getroot().remove(connections)
    return ElementTree.tostring(tree.getroot()), receivers


def load_ui(path):
    """``slicer.util.loadUI``; connections to the scene are made by ``setMRMLScene`` of the top widget."""
    text, receivers = _without_connections(path)
    buffer = QtCore.QBuffer()
    buffer.setData(text)
    buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
    loader = _Loader()
    top = loader.load(buffer)
    if top is None:
        raise RuntimeError(loader.errorString())
    top._made = loader.made
    top._receivers = [widget for widget in loader.made if widget.name in receivers]
    return top


def child_widget_variables(top):
    """``slicer.util.childWidgetVariables``."""
    return types.SimpleNamespace(**{widget.name: widget for widget in top._made if widget.name})
