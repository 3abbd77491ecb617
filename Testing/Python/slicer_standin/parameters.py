"""``slicer.parameterNodeWrapper`` for the types that the module uses, stored as Slicer stores them."""

# Names are those of Qt and Slicer.
# ruff: noqa: N802, N803

from __future__ import annotations

import dataclasses
import types
import typing

import slicer
import vtk


@dataclasses.dataclass
class WithinRange:
    minimum: float
    maximum: float

    def check(self, value):
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not within {self.minimum}..{self.maximum}")


@dataclasses.dataclass
class Choice:
    choices: list

    def check(self, value):
        if value not in self.choices:
            raise ValueError(f"{value} is not one of {self.choices}")


def _parameter(name, kind, checks):
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):

        def read(self):
            return self.parameterNode.GetNodeReference(name)

        def write(self, node):
            if node is not None and not node.IsA(kind.__name__):
                raise TypeError(f"{name} is a {kind.__name__}")
            self.parameterNode.SetNodeReferenceID(name, node.GetID() if node else None)

    else:

        def read(self):
            text = self.parameterNode.GetParameter(name)
            return text == "True" if kind is bool else kind(text)

        def write(self, value):
            if not isinstance(value, (int, float) if kind is float else kind):
                raise TypeError(f"{name} is a {kind.__name__}, not {value!r}")
            for check in checks:
                check.check(value)
            self.parameterNode.SetParameter(name, str(value))

    return property(read, write)


_SIGNALS = {"QCheckBox": "toggled", "QDoubleSpinBox": "valueChanged", "SliderWidget": "valueChanged"}


class _Connection:
    """A widget that shows a parameter and changes it."""

    def __init__(self, wrapper, name, widget):
        self.wrapper, self.name, self.widget = wrapper, name, widget
        self.is_selector = hasattr(widget, "currentNode")
        signal = "currentNodeChanged" if self.is_selector else _SIGNALS[type(widget).__name__.strip("_")]
        self.signal = getattr(widget, signal)
        self.show()
        self.signal.connect(self.keep)

    def show(self):
        value = getattr(self.wrapper, self.name)
        if self.is_selector:
            if self.widget.currentNode() is not value:
                self.widget.setCurrentNode(value)
        elif isinstance(value, bool):
            self.widget.checked = value
        else:
            self.widget.value = value

    def keep(self, *_value):
        if self.is_selector:
            value = self.widget.currentNode()
        else:
            value = self.widget.checked if type(self.widget).__name__ == "QCheckBox" else self.widget.value
        if getattr(self.wrapper, self.name) != value:
            setattr(self.wrapper, self.name, value)


def _connect_gui(self, ui):
    widgets = {w.property("SlicerParameterName"): w for w in vars(ui).values() if w.property("SlicerParameterName")}
    connections = [_Connection(self, name, widget) for name, widget in widgets.items()]
    tag = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: [c.show() for c in connections])
    self.connections[tag] = connections
    return tag


def _disconnect_gui(self, tag):
    self.parameterNode.RemoveObserver(tag)
    for connection in self.connections.pop(tag):
        connection.signal.disconnect(connection.keep)


def parameterNodeWrapper(cls):
    """The class decorator."""
    hints = typing.get_type_hints(cls, include_extras=True)
    defaults = {name: getattr(cls, name) for name in hints if hasattr(cls, name)}

    def initialize(self, parameterNode):
        self.parameterNode, self.connections = parameterNode, {}
        for name, value in defaults.items():
            if not parameterNode.GetParameter(name):
                setattr(self, name, value)

    for name, hint in hints.items():
        kind, *checks = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        setattr(cls, name, _parameter(name, kind, checks))
    cls.__init__ = initialize
    cls.connectGui, cls.disconnectGui = _connect_gui, _disconnect_gui
    for method in ("AddObserver", "RemoveObserver", "StartModify", "EndModify"):
        setattr(cls, method, lambda self, *arguments, m=method: getattr(self.parameterNode, m)(*arguments))
    return cls


def module():
    """What ``import slicer.parameterNodeWrapper`` gives."""
    result = types.ModuleType("slicer.parameterNodeWrapper")
    result.WithinRange, result.Choice, result.parameterNodeWrapper = WithinRange, Choice, parameterNodeWrapper
    return result
