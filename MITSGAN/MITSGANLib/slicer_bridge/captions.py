"""What stands in the images of slice views: whose image it is, and a small key of the colors over it.

Slicer clips the labels of views, and cuts the names in their corners in the middle. These are actors of the views. They
live as long as the views do, whatever layout shows them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk

_TEXT, _KEY = "MITSGAN.Caption", "MITSGAN.ColorKey"
_FONT_SIZE, _KEY_FONT_SIZE = 15, 11
_KEY_PIXELS = (80, 110)
WHITE, _BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
# What is behind the words shines through a little: they have to be read on lung and on bone.
_SHADE = 0.55
_HIDDEN = (0.25, 0.25, 0.25, 1.0)


def write_caption(
    view: str,
    words: str,
    rgb: tuple[float, float, float] = WHITE,
    limit_hu: float | None = None,
    colors: vtk.vtkLookupTable | None = None,
) -> None:
    """Write into the image of a slice view, in place of what was written before.

    :param view: the view's name in the layout; nothing is done while it has no widget.
    :param words: in one or more lines.
    :param limit_hu: difference with the full color of a heatmap, positive or negative; None for no key of its colors.
    :param colors: from -limit to +limit; what is not shown is transparent.
    """
    manager = slicer.app.layoutManager()
    widget = manager.sliceWidget(view) if manager else None
    if widget is None:
        return
    renderer = widget.sliceView().renderWindow().GetRenderers().GetFirstRenderer()
    text, key = _actor(renderer, _TEXT, _new_text), _actor(renderer, _KEY, _new_key)
    shown_limit = key.GetLookupTable().GetRange()[1] if key.GetVisibility() and key.GetLookupTable() else None
    said = (text.GetInput(), text.GetTextProperty().GetColor(), shown_limit)
    # Views change many times when the comparison is shown; the text says the threshold of the colors.
    if said == (words, rgb, limit_hu):
        return
    text.SetInput(words)
    text.GetTextProperty().SetColor(rgb)
    slicer.app.applicationLogic().UseCustomFontFile(text.GetTextProperty())
    key.SetVisibility(limit_hu is not None)
    if limit_hu is not None:
        key.SetLookupTable(_opaque(colors, limit_hu))
    widget.sliceView().scheduleRender()


def _actor(renderer: vtk.vtkRenderer, name: str, make: Callable[[], Any]) -> Any:
    """The view's own actor of this name, made when there is none."""
    for prop in renderer.GetViewProps():
        if prop.GetObjectName() == name:
            return prop
    actor = make()
    actor.SetObjectName(name)
    renderer.AddViewProp(actor)
    return actor


def _new_text() -> vtk.vtkTextActor:
    text = vtk.vtkTextActor()
    # In the middle: Slicer writes into the corners.
    place = text.GetPositionCoordinate()
    place.SetCoordinateSystemToNormalizedViewport()
    place.SetValue(0.5, 0.98)
    look = text.GetTextProperty()
    look.SetJustificationToCentered()
    look.SetVerticalJustificationToTop()
    look.SetFontSize(_FONT_SIZE)
    look.SetBold(True)
    look.SetBackgroundColor(_BLACK)
    look.SetBackgroundOpacity(_SHADE)
    return text


def _new_key() -> vtk.vtkScalarBarActor:
    key = vtk.vtkScalarBarActor()
    key.SetNumberOfLabels(5)
    key.SetLabelFormat("%g HU")
    # Or VTK makes short labels larger than long ones.
    key.SetUnconstrainedFontSize(True)
    look = key.GetLabelTextProperty()
    look.SetFontSize(_KEY_FONT_SIZE)
    look.SetBold(False)
    look.SetItalic(False)
    look.SetShadow(False)
    # Behind each label: VTK's own background of the key ends in the middle of the highest one.
    look.SetBackgroundColor(_BLACK)
    look.SetBackgroundOpacity(_SHADE)
    key.SetMaximumWidthInPixels(_KEY_PIXELS[0])
    key.SetMaximumHeightInPixels(_KEY_PIXELS[1])
    key.SetTextPositionToPrecedeScalarBar()
    key.GetPositionCoordinate().SetCoordinateSystemToNormalizedViewport()
    key.SetPosition(0.79, 0.05)
    key.SetWidth(0.2)
    key.SetHeight(0.4)
    return key


def _opaque(colors: vtk.vtkLookupTable, limit_hu: float) -> vtk.vtkLookupTable:
    opaque = vtk.vtkLookupTable()
    opaque.DeepCopy(colors)
    opaque.SetRange(-limit_hu, limit_hu)
    for index in range(opaque.GetNumberOfTableValues()):
        if not opaque.GetTableValue(index)[3]:
            opaque.SetTableValue(index, *_HIDDEN)
    return opaque
