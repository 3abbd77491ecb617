"""PySide6 widgets with PythonQt's manners: properties without calls, ``connect("signal(type)", slot)``, ``name``."""

# Names are those of Qt and Slicer.
# ruff: noqa: N802, N815

from __future__ import annotations

import functools
import types
from xml.etree import ElementTree

import shiboken6
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Qt, Signal
from PySide6.QtUiTools import QUiLoader

# Properties that are functions as well: virtual ones that Qt calls, and QTimer's static one.
_FUNCTIONS = {"sizeHint", "minimumSizeHint", "singleShot"}


def _by_signature(function, sender, *arguments):
    """``connect`` and ``disconnect`` by PythonQt's plain signature; PySide's signals call them in their own way."""
    if len(arguments) == 2 and isinstance(arguments[0], str) and not arguments[0][0].isdigit():
        return function(sender, QtCore.SIGNAL(arguments[0]), arguments[1])
    return function(*arguments)


class _Manners:
    """What PythonQt adds to every object."""

    def __getattribute__(self, name):
        # An ordinary method would lose to PySide's own of this name.
        if name in ("connect", "disconnect"):
            return functools.partial(_by_signature, getattr(QtCore.QObject, name), self)
        return super().__getattribute__(name)

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


def with_manners(base):
    """A subclass of a PySide6 class that behaves as PythonQt's class of the same name."""
    meta = base.staticMetaObject
    names = {meta.property(index).name() for index in range(meta.propertyCount())} - _FUNCTIONS
    if base is QtWidgets.QProgressBar:
        # A virtual function as well: Qt would ask the property, which asks Qt, and so on.
        names -= {"text"}
    names -= {name for name, value in vars(base).items() if isinstance(value, QtCore.Property)}
    return type(base.__name__, (_Manners, base), {name: _attribute(name) for name in names})


class _NodeComboBox(QtWidgets.QComboBox):
    """qMRMLNodeComboBox: the nodes of a scene by name, and none."""

    currentNodeChanged = Signal(object)

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
        self._fill()

    def currentNode(self):
        node_id = self._ids[QtWidgets.QComboBox.currentIndex(self)]
        return self._scene.GetNodeByID(node_id) if node_id else None

    def setCurrentNode(self, node):
        self._fill()
        self.setCurrentIndex(self._ids.index(node.GetID() if node else None))

    def _fill(self, *_event):
        if not shiboken6.isValid(self):
            return
        current = self._ids[max(0, QtWidgets.QComboBox.currentIndex(self))]
        count = self._scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
        nodes = (self._scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode") for index in range(count))
        nodes = [node for node in nodes if node.GetClassName() == "vtkMRMLScalarVolumeNode" and node.GetID()]
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
    """ctkCollapsibleButton, always open: a title over its contents."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setContentsMargins(0, 26, 0, 0)

    def _title(self):
        return getattr(self, "_text", "")

    def _set_title(self, text):
        self._text = text

    text = QtCore.Property(str, _title, _set_title)

    def paintEvent(self, _event):
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width, 24)
        option.text = "▾ " + self._title()
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

    isEntered = True

    def __init__(self, parent=None):
        super().__init__(parent)
        self.receivers = []

    def setMRMLScene(self, scene):
        for receiver in self.receivers:
            receiver.setMRMLScene(scene)


class FileDialog:
    """Answers as the user would; a test sets ``answer``."""

    answer = ""

    @classmethod
    def getSaveFileName(cls, *_arguments):
        return cls.answer

    getExistingDirectory = getSaveFileName


_WIDGETS = {
    name: with_manners(getattr(QtWidgets, name))
    for name in (
        "QWidget",
        "QLabel",
        "QComboBox",
        "QDoubleSpinBox",
        "QPushButton",
        "QToolButton",
        "QRadioButton",
        "QCheckBox",
        "QProgressBar",
        "QLineEdit",
    )
}
_CUSTOM = {
    "qMRMLNodeComboBox": with_manners(_NodeComboBox),
    "ctkCollapsibleButton": with_manners(_CollapsibleButton),
    "ctkSliderWidget": with_manners(_SliderWidget),
    "qMRMLWidget": with_manners(_MRMLWidget),
}
_ALL = {**_WIDGETS, **_CUSTOM}


def qt_module():
    """What ``import qt`` gives."""
    module = types.ModuleType("qt")
    for name, value in _WIDGETS.items():
        setattr(module, name, value)
    module.Qt = Qt
    module.QIcon = QtGui.QIcon
    module.QFormLayout, module.QVBoxLayout = QtWidgets.QFormLayout, QtWidgets.QVBoxLayout
    module.QHBoxLayout = QtWidgets.QHBoxLayout
    module.QFileDialog = FileDialog
    module.QApplication = QtWidgets.QApplication
    module.QTimer = with_manners(QtCore.QTimer)
    return module


def slicer_widgets():
    """The widget classes that ``slicer`` itself gives."""
    return {name: value for name, value in _CUSTOM.items() if name.startswith("qMRML")}


def ctk_module():
    """What ``import ctk`` gives."""
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


def load_ui(path):
    """``slicer.util.loadUI``; connections to the scene are made by ``setMRMLScene`` of the top widget."""
    tree = ElementTree.parse(path)
    connections = tree.getroot().find("connections")
    receivers = [item.findtext("receiver") for item in connections.iter("connection")]
    tree.getroot().remove(connections)
    buffer = QtCore.QBuffer()
    buffer.setData(ElementTree.tostring(tree.getroot()))
    buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
    loader = _Loader()
    top = loader.load(buffer)
    if top is None:
        raise RuntimeError(loader.errorString())
    top.made = loader.made
    top.receivers = [widget for widget in loader.made if widget.name in receivers]
    return top


def child_widget_variables(top):
    """``slicer.util.childWidgetVariables``."""
    return types.SimpleNamespace(**{widget.name: widget for widget in top.made if widget.name})
