"""``slicer.parameterNodeWrapper`` for the types that the module uses, as strict as Slicer's own.

What Slicer 5.13 does and tests must not miss: values are cached, and read anew only when the parameter node is
modified; a connector exists for few pairs of type and widget class, and the class must be that very one; sliders need a
range; a widget that is being updated from the node does not write back.
"""

# Names are those of Qt and Slicer.
# ruff: noqa: N802, N803

from __future__ import annotations

import dataclasses
import types
import typing
import weakref

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


class _Parameter:
    """How values of one type are checked, stored in a parameter node, and read from it."""

    def __init__(self, name, hint, default):
        self.default = default
        self.kind, *self.checks = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        self.name, self.is_node = name, issubclass(self.kind, slicer.vtkMRMLNode)
        if not self.is_node and self.kind not in (bool, int, float, str):
            raise TypeError(f"{name}: the stand-in stores no {self.kind}")

    def read(self, node):
        # As after the scene was closed.
        if not node.HasParameter(self.name):
            self.write(node, self.default)
        if self.is_node:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        return text == "True" if self.kind is bool else self.kind(text)

    def write(self, node, value):
        if not isinstance(value, (int, float) if self.kind is float else self.kind) and not (
            self.is_node and value is None
        ):
            raise TypeError(f"{self.name} is a {self.kind.__name__}, not {value!r}")
        for check in self.checks:
            check.check(value)
        node.SetParameter(self.name, "" if self.is_node else str(value))
        if self.is_node:
            node.SetNodeReferenceID(self.name, value.GetID() if value else None)


# Parameter type and widget class -> (signal of a change, property of the value).
_CONNECTORS = {
    (bool, "QCheckBox"): ("stateChanged", "checked"),
    (float, "QDoubleSpinBox"): ("valueChanged", "value"),
    (float, "ctkSliderWidget"): ("valueChanged", "value"),
    (slicer.vtkMRMLNode, "qMRMLNodeComboBox"): ("currentNodeChanged", None),
}


class _Connector:
    """A widget that shows a parameter and changes it."""

    def __init__(self, parameter, widget):
        kind = slicer.vtkMRMLNode if parameter.is_node else parameter.kind
        class_name = type(widget).__name__
        if (kind, class_name) not in _CONNECTORS:
            raise RuntimeError(f"no connector from {kind} to {class_name}")
        self.widget = widget
        signal, self.property = _CONNECTORS[kind, class_name]
        self.signal = getattr(widget, signal)
        limits = [check for check in parameter.checks if isinstance(check, WithinRange)]
        if kind is float:
            if class_name == "ctkSliderWidget" and not limits:
                raise RuntimeError(f"the slider of {parameter.name} needs a range")
            low, high = (limits[0].minimum, limits[0].maximum) if limits else (float("-inf"), float("inf"))
            widget.minimum, widget.maximum = low, high
        if self.property is None:
            widget.nodeTypes = [parameter.kind.__name__]

    def read(self):
        return getattr(self.widget, self.property) if self.property else self.widget.currentNode()

    def write(self, value):
        if self.property:
            setattr(self.widget, self.property, value)
        else:
            self.widget.setCurrentNode(value)


class _Wrapper:
    """What the class decorator adds."""

    def __init__(self, parameterNode):
        self.parameterNode = parameterNode
        self._connections, self._updating = {}, False
        self._cache()
        this = weakref.ref(self)
        tag = parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: this() and this()._cache())
        weakref.finalize(self, parameterNode.RemoveObserver, tag)

    def _cache(self):
        self._values = {name: parameter.read(self.parameterNode) for name, parameter in self.allParameters.items()}

    def _set(self, name, value):
        with slicer.util.NodeModify(self.parameterNode):
            self.allParameters[name].write(self.parameterNode, value)
            self._values[name] = self.allParameters[name].read(self.parameterNode)

    def connectGui(self, ui):
        widgets = {w.property("SlicerParameterName"): w for w in vars(ui).values() if w.property("SlicerParameterName")}
        unknown = set(widgets) - set(self.allParameters)
        if unknown:
            raise ValueError(f"no parameters {unknown}")
        connectors = {name: _Connector(self.allParameters[name], widget) for name, widget in widgets.items()}
        slots = []
        for name, connector in connectors.items():
            connector.write(self._values[name])
            slots.append((connector.signal, lambda *_, n=name, c=connector: self._keep(n, c)))
            connector.signal.connect(slots[-1][1])
        tag = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._show(connectors))
        self._connections[tag] = slots
        return tag

    def disconnectGui(self, tag):
        for signal, slot in self._connections.pop(tag, []):
            signal.disconnect(slot)
        self.RemoveObserver(tag)

    def _keep(self, name, connector):
        with slicer.util.NodeModify(self):
            if not self._updating:
                self._set(name, connector.read())

    def _show(self, connectors):
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self):
                for name, connector in connectors.items():
                    connector.write(self._values[name])
        finally:
            self._updating = False

    def AddObserver(self, event, callback):
        return self.parameterNode.AddObserver(event, callback)

    def RemoveObserver(self, tag):
        self.parameterNode.RemoveObserver(tag)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, was_modifying):
        return self.parameterNode.EndModify(was_modifying)


def parameterNodeWrapper(cls):
    """The class decorator."""
    cls.allParameters = {
        name: _Parameter(name, hint, getattr(cls, name, None))
        for name, hint in typing.get_type_hints(cls, include_extras=True).items()
    }
    for name in cls.allParameters:
        setattr(
            cls,
            name,
            property(lambda self, n=name: self._values[n], lambda self, value, n=name: self._set(n, value)),
        )
    for name, method in vars(_Wrapper).items():
        if isinstance(method, types.FunctionType):
            setattr(cls, name, method)
    return cls


def module():
    """What ``import slicer.parameterNodeWrapper`` gives."""
    result = types.ModuleType("slicer.parameterNodeWrapper")
    result.WithinRange, result.Choice, result.parameterNodeWrapper = WithinRange, Choice, parameterNodeWrapper
    return result
