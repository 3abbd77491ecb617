"""The paper's Figures 6 and 7 from our measurements: what attacks leave, and where protection changes the scan.

Every picture names window, region and data; attacked pictures say that they are simulated.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from MITSGANLib.report.pictures import Orientation, color_limit, window_image
from MITSGANLib.scan.windows import LUNG

from .measure import CLEAN, CT_LIKE, GAUSSIAN, PROTECTED

SHOWN_MM = 64.0
_CELL, _CONTEXT, _LABEL, _GAP, _TOP, _BAR = 1.7, 3.5, 0.35, 0.08, 0.95, 0.9  # inches
_CAPTION = 0.3
_DPI = 150
_LETTERS_AN_INCH = 15  # of text of 8 points, at most
_LINE_COLOR = "#3ddc5a"
SIDEWAYS = {"rotation": 90, "ha": "center", "va": "center"}
_CONTROLS = {GAUSSIAN: "Gaussian noise", CT_LIKE: "CT-like noise"}


@dataclass(frozen=True)
class Example:
    """One target: its slices with each protection.

    :param title: action, scan and slice.
    :param slices: for each protection, in the order of the figure's columns, the arrays that :mod:`measure` stored.
    """

    title: str
    slices: Mapping[str, Mapping[str, np.ndarray]]


class _Arm(NamedTuple):
    title: str
    protection: str
    arm: str


def attacks_figure(examples: Sequence[Example], attacker: str) -> Figure:
    """Figure 6: for each target the clean slice, and enlarged all arms before (upper) and after the attack (lower row).

    The two noise controls have the RMSE of the first protection that has them.
    """
    arms = [_Arm("clean", next(iter(examples[0].slices)), CLEAN), *_arms(examples)]
    width = _LABEL + _CONTEXT + len(arms) * (_CELL + _GAP) + _LABEL
    height = _TOP + len(examples) * (2 * (_CELL + _GAP) + 3 * _GAP)
    shown = (
        f"SIMULATED ATTACKS, not patients' images. Shown in the {LUNG}. Left: the clean slice; right: {SHOWN_MM:g} mm "
        "around the target. Frame: the 32 mm square of Table 2."
    )
    title = f"Attacks by {attacker} on the clean and the protected scan (paper's Figure 6)"
    figure = new_figure(width, height, title, shown)
    for number, example in enumerate(examples):
        top = _TOP + number * (2 * (_CELL + _GAP) + 3 * _GAP)
        axes = axes_at(figure, _LABEL, top, _CONTEXT, 2 * _CELL + _GAP)
        first = next(iter(example.slices.values()))
        _show(axes, first, CLEAN)
        text_at(figure, 0.45 * _LABEL, top + _CELL, example.title, **SIDEWAYS)
        for line, words in enumerate(("before attack", "after attack")):
            text_at(figure, width - 0.5 * _LABEL, top + (line + 0.5) * (_CELL + _GAP), words, **SIDEWAYS)
        for column, arm in enumerate(arms):
            left = _LABEL + _CONTEXT + _GAP + column * (_CELL + _GAP)
            stored = example.slices[arm.protection]
            for line, image in enumerate((arm.arm, f"{arm.arm} attacked")):
                axes = axes_at(figure, left, top + line * (_CELL + _GAP), _CELL, _CELL)
                if image in stored:
                    _show(axes, stored, image, enlarged=True)
                else:
                    axes.set_axis_off()
            if number == 0:
                text_at(figure, left, top - 0.04, arm.title, va="bottom")
    return figure


def changes_figure(examples: Sequence[Example]) -> Figure:
    """Figure 7: the absolute difference of each protected slice from the clean one, all with one color range."""
    arms = _arms(examples)

    def difference_of(stored: Mapping[str, np.ndarray], arm: str) -> np.ndarray | None:
        return np.abs(stored[arm].astype(np.float64) - stored[CLEAN]) if arm in stored else None

    differences = [[difference_of(example.slices[arm.protection], arm.arm) for arm in arms] for example in examples]
    limit = max(color_limit(values) for row in differences for values in row if values is not None)
    size = 1.6 * _CELL
    width = _LABEL + len(arms) * (size + _GAP) + _BAR
    height = _TOP + len(examples) * (size + _CAPTION)
    shown = "|protected - clean| in HU, whole slice of the target; the color grows with the root of the difference."
    figure = new_figure(width, height, "What protection changes in the slice (paper's Figure 7)", shown)
    for number, (example, row) in enumerate(zip(examples, differences, strict=True)):
        top = _TOP + number * (size + _CAPTION)
        # The longest name would run into the next row's.
        name = textwrap.fill(example.title, int(_LETTERS_AN_INCH * size), break_on_hyphens=False)
        text_at(figure, 0.45 * _LABEL, top + size / 2, name, **SIDEWAYS)
        for column, (arm, difference) in enumerate(zip(arms, row, strict=True)):
            left = _LABEL + column * (size + _GAP)
            axes, stored = axes_at(figure, left, top, size, size), example.slices[arm.protection]
            if difference is None:
                axes.set_axis_off()
            else:
                norm = PowerNorm(0.5, 0, limit, clip=True)
                image = show_slice(axes, difference, *_standing(stored), cmap="inferno", norm=norm)
                rmse = float(np.sqrt(np.mean(np.square(difference))))
                words = f"RMSE {rmse:.1f}, largest {np.max(difference):.0f} HU"
                axes.set_title(words, fontsize=7, y=-0.06, pad=0)
            if number == 0:
                text_at(figure, left, top - 0.04, arm.title, va="bottom")
    left = _LABEL + len(arms) * (size + _GAP) + 0.1
    bar = figure.colorbar(image, cax=axes_at(figure, left, _TOP, 0.15, size), extend="max")
    bar.set_label("HU", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure at 150 dots per inch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()


def as_svg(figure: Figure) -> bytes:
    """The figure with its text as text; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mitsgan"}):
        figure.savefig(stream, format="svg", dpi=_DPI, metadata={"Date": None})
    return stream.getvalue()


def _arms(examples: Sequence[Example]) -> list[_Arm]:
    """Every protection, then the noise controls of the first one that has them."""
    protections = list(examples[0].slices)
    arms = [_Arm(name, name, PROTECTED) for name in protections]
    for control, words in _CONTROLS.items():
        having = [name for name in protections if all(control in example.slices[name] for example in examples)]
        if having:
            as_of = f"\nas of {having[0]}" if len(protections) > 1 else ""
            arms.append(_Arm(words + as_of, having[0], control))
    return arms


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """An empty figure of so many inches, with its title and what is shown above."""
    figure = Figure(figsize=(width, height), facecolor="white")
    text_at(figure, 0.1, 0.1, title, fontsize=12, va="top")
    columns = max(60, int(width * _LETTERS_AN_INCH))
    text_at(figure, 0.1, 0.36, textwrap.fill(subtitle, columns), va="top", color="#444444")
    return figure


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Any:
    """Axes at inches from the left and upper edges."""
    total_width, total_height = figure.get_size_inches()
    box = (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
    return figure.add_axes(box)


def text_at(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Text at inches from the left and upper edges."""
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, **{"fontsize": 8, **style})


def show_slice(
    axes: Any,
    values: np.ndarray,
    view: Orientation,
    spacing: Sequence[float],
    around: tuple[float, float] | None = None,
    **options: Any,
) -> Any:
    """Draw a slice (rows, columns) in square millimeters; HU in the lung window where no colors are asked for.

    :param spacing: mm along (row, column).
    :param around: (row, column) around which to show 64 mm alone.
    """
    if not options:
        values, options = window_image(values, LUNG), {"cmap": "gray", "vmin": 0, "vmax": 255}
    across, down = spacing if view.transpose else spacing[::-1]
    image = axes.imshow(view.picture(values), aspect=down / across, **options)
    axes.set_axis_off()
    if around is not None:
        x, y = view.point(*around, values.shape)
        axes.set_xlim(x - SHOWN_MM / 2 / across, x + SHOWN_MM / 2 / across)
        axes.set_ylim(y + SHOWN_MM / 2 / down, y - SHOWN_MM / 2 / down)
    return image


def draw_line(axes: Any, view: Orientation, shape: tuple[int, ...], *places: tuple[float, float], width: float) -> None:
    """A line through places (row, column) of a slice of this shape."""
    axes.plot(*zip(*(view.point(*place, shape) for place in places), strict=True), color=_LINE_COLOR, linewidth=width)


def _show(axes: Any, stored: Mapping[str, np.ndarray], name: str, *, enlarged: bool = False) -> None:
    """One of the slices, the whole of it or what is around the target, with the frame of the square."""
    view, spacing = _standing(stored)
    j0, j1, i0, i1 = (bound - 0.5 for bound in stored["square"].tolist())
    show_slice(axes, stored[name], view, spacing, ((j0 + j1) / 2, (i0 + i1) / 2) if enlarged else None)
    draw_line(axes, view, stored[name].shape, (j0, i0), (j0, i1), (j1, i1), (j1, i0), (j0, i0), width=0.8)


def _standing(stored: Mapping[str, np.ndarray]) -> tuple[Orientation, list[float]]:
    """How the slices stand as radiologists expect, and mm along (row, column)."""
    return Orientation.of(stored["direction"]), stored["spacing_kji"][1:].tolist()
