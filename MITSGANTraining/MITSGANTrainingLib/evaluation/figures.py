"""The paper's Figures 6 and 7 from our measurements: what attacks leave, and where protection changes the scan.

Every picture names window, region and data; attacked pictures say that they are simulated.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from MITSGANLib.report.pictures import Orientation, color_limit, window_image
from MITSGANLib.scan.windows import LUNG

from .measure import CLEAN, CT_LIKE, GAUSSIAN, PROTECTED

_ZOOM_MM = 64.0
_CELL, _CONTEXT, _LABEL, _GAP, _TOP, _BAR = 1.7, 3.5, 0.35, 0.08, 0.95, 0.9  # inches
_CAPTION = 0.3
_DPI = 150
_LETTERS_AN_INCH = 15  # of text of 8 points, at most
LINE_COLOR = "#3ddc5a"
_CONTROLS = {GAUSSIAN: "Gaussian noise", CT_LIKE: "CT-like noise"}


@dataclass(frozen=True)
class Example:
    """One target: its slices with each protection.

    :param title: action, scan and slice.
    :param slices: for each protection, in the order of the figure's columns, the arrays that :mod:`measure` stored.
    """

    title: str
    slices: Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class _Arm:
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
    figure = new_figure(
        width,
        height,
        f"Attacks by {attacker} on the clean and the protected scan (paper's Figure 6)",
        f"SIMULATED ATTACKS, not patients' images. Shown in the {LUNG}. Left: the clean slice; right: {_ZOOM_MM:g} mm "
        "around the target. Frame: the 32 mm square of Table 2.",
    )
    for number, example in enumerate(examples):
        top = _TOP + number * (2 * (_CELL + _GAP) + 3 * _GAP)
        axes = axes_at(figure, _LABEL, top, _CONTEXT, 2 * _CELL + _GAP)
        first = next(iter(example.slices.values()))
        _show(axes, first, first[CLEAN], frame=True)
        label(figure, 0.45 * _LABEL, top + _CELL, example.title)
        for line, words in enumerate(("before attack", "after attack")):
            label(figure, width - 0.5 * _LABEL, top + (line + 0.5) * (_CELL + _GAP), words)
        for column, arm in enumerate(arms):
            left = _LABEL + _CONTEXT + _GAP + column * (_CELL + _GAP)
            stored = example.slices[arm.protection]
            for line, image in enumerate((arm.arm, f"{arm.arm} attacked")):
                axes = axes_at(figure, left, top + line * (_CELL + _GAP), _CELL, _CELL)
                if image in stored:
                    _show(axes, stored, stored[image], frame=True, zoom=True)
                else:
                    axes.set_axis_off()
            if number == 0:
                _heading(figure, left, top, arm.title)
    return figure


def changes_figure(examples: Sequence[Example]) -> Figure:
    """Figure 7: the absolute difference of each protected slice from the clean one, all with one color range."""
    arms = _arms(examples)
    differences = [[_difference(example.slices[arm.protection], arm.arm) for arm in arms] for example in examples]
    limit = max(color_limit(values) for row in differences for values in row if values is not None)
    size = 1.6 * _CELL
    width = _LABEL + len(arms) * (size + _GAP) + _BAR
    height = _TOP + len(examples) * (size + _CAPTION)
    figure = new_figure(
        width,
        height,
        "What protection changes in the slice (paper's Figure 7)",
        "|protected - clean| in HU, whole slice of the target; the color grows with the root of the difference.",
    )
    image: Any = None
    for number, (example, row) in enumerate(zip(examples, differences, strict=True)):
        top = _TOP + number * (size + _CAPTION)
        # The longest name would run into the next row's.
        name = textwrap.fill(example.title, int(_LETTERS_AN_INCH * size), break_on_hyphens=False)
        label(figure, 0.45 * _LABEL, top + size / 2, name)
        for column, (arm, difference) in enumerate(zip(arms, row, strict=True)):
            left = _LABEL + column * (size + _GAP)
            axes = axes_at(figure, left, top, size, size)
            if difference is None:
                axes.set_axis_off()
            else:
                image = _show_difference(axes, example.slices[arm.protection], difference, limit)
                rmse = float(np.sqrt(np.mean(np.square(difference))))
                words = f"RMSE {rmse:.1f}, largest {np.max(difference):.0f} HU"
                axes.set_title(words, fontsize=7, y=-0.06, pad=0)
            if number == 0:
                _heading(figure, left, top, arm.title)
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


def _difference(stored: Mapping[str, np.ndarray], arm: str) -> np.ndarray | None:
    """|arm - clean| in HU, float64 (rows, columns)."""
    return np.abs(stored[arm].astype(np.float64) - stored[CLEAN]) if arm in stored else None


def new_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """An empty figure of so many inches, with its title and what is shown above."""
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(0.1 / width, 1 - 0.1 / height, title, fontsize=12, va="top")
    columns = max(60, int(width * _LETTERS_AN_INCH))
    figure.text(0.1 / width, 1 - 0.36 / height, textwrap.fill(subtitle, columns), fontsize=8, va="top", color="#444444")
    return figure


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Any:
    """Axes at inches from the left and upper edges."""
    total_width, total_height = figure.get_size_inches()
    box = (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
    return figure.add_axes(box)


def _heading(figure: Figure, left: float, top: float, text: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - (top - 0.04) / height, text, fontsize=8, va="bottom")


def label(figure: Figure, x: float, y: float, text: str) -> None:
    """Text along a side, its middle at inches from the left and upper edges."""
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, fontsize=8, rotation=90, ha="center", va="center")


def _show(
    axes: Any, stored: Mapping[str, np.ndarray], values: np.ndarray, *, frame: bool = False, zoom: bool = False
) -> None:
    view, aspect = _view(stored)
    axes.imshow(view.picture(window_image(values, LUNG)), cmap="gray", vmin=0, vmax=255, aspect=aspect)
    axes.set_axis_off()
    j0, j1, i0, i1 = (int(bound) for bound in stored["square"])
    if frame:
        x0, y0, x1, y1 = _corners(view, (j0, j1, i0, i1), values.shape)
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=LINE_COLOR, linewidth=0.8)
    if zoom:
        _, row_mm, column_mm = stored["spacing_kji"]
        down, across = ((_ZOOM_MM / mm - (b - a)) / 2 for mm, a, b in ((row_mm, j0, j1), (column_mm, i0, i1)))
        x0, y0, x1, y1 = _corners(view, (j0 - down, j1 + down, i0 - across, i1 + across), values.shape)
        axes.set_xlim(x0, x1)
        axes.set_ylim(y1, y0)


def _show_difference(axes: Any, stored: Mapping[str, np.ndarray], difference: np.ndarray, limit: float) -> Any:
    view, aspect = _view(stored)
    axes.set_axis_off()
    norm = PowerNorm(0.5, 0, limit, clip=True)
    return axes.imshow(view.picture(difference), cmap="inferno", norm=norm, aspect=aspect)


def _view(stored: Mapping[str, np.ndarray]) -> tuple[Orientation, float]:
    """How the slice stands as radiologists expect, and the picture's height of a voxel by its width."""
    view = Orientation.of(stored["direction"])
    _, row_mm, column_mm = (float(mm) for mm in stored["spacing_kji"])
    return view, column_mm / row_mm if view.transpose else row_mm / column_mm


def _corners(
    view: Orientation, bounds: tuple[float, float, float, float], shape: tuple[int, ...]
) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge in the picture of rows j0..j1-1 and columns i0..i1-1."""
    j0, j1, i0, i1 = bounds
    x0, y0 = view.point(j0 - 0.5, i0 - 0.5, shape)
    x1, y1 = view.point(j1 - 0.5, i1 - 0.5, shape)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
