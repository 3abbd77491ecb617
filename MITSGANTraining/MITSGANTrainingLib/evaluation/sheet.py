"""A sheet of forgeries on untouched scans, to judge on sight whether an attacker is worth defending against.

Places are seeded, not picked: random lung voxels to inject at, the most nodule-like structures to remove.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from MITSGANLib.attack.attacker import Attacker, simulate_attack
from MITSGANLib.report.pictures import Orientation, window_image
from MITSGANLib.runtime.progress import Progress, counted
from MITSGANLib.scan.cubes import CUBE_MM
from MITSGANLib.scan.targets import Target
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.scan.windows import LUNG
from PIL import Image

from .figures import LINE_COLOR, axes_at, label, new_figure

SHOWN_MM = 64.0
_CELL, _LABEL, _TOP, _GAP = 1.35, 0.32, 0.75, 0.06  # inches
_DPI, _COLORS = 130, 128


@dataclass(frozen=True)
class Plane:
    """A slice through the target before and after the attack.

    :param before: int16 HU (rows, columns); ``after`` likewise.
    :param center: the target's (row, column).
    :param spacing: mm along (row, column).
    :param view: how the slice stands as radiologists expect.
    """

    before: np.ndarray
    after: np.ndarray
    center: tuple[int, int]
    spacing: tuple[float, float]
    view: Orientation


@dataclass(frozen=True)
class PicturedForgery:
    """One attack: the slice through the target as the scan was taken, and across the slices."""

    action: str
    axial: Plane
    coronal: Plane
    caption: str


def forge(
    scan: CTVolume,
    name: str,
    targets: Sequence[Target],
    attackers: Sequence[Attacker],
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> list[PicturedForgery]:
    """Attack the scan at each target on its own, with the attacker of the target's action.

    :param name: of the scan, for the captions.
    :param attackers: one per action.
    """
    by_action = {attacker.action: attacker for attacker in attackers}
    forgeries = []
    for target in counted(targets, progress):
        attacked = simulate_attack(scan, target.kji, target.action, attacker=by_action[target.action], device=device)
        k, j, i = target.kji
        z_mm, row_mm, column_mm = (float(mm) for mm in scan.spacing_kji)
        # Copies, so that no whole attacked scan stays in memory.
        axial = (scan.hu[k].copy(), attacked.hu[k].copy())
        coronal = (scan.hu[:, j].copy(), attacked.hu[:, j].copy())
        forgeries.append(
            PicturedForgery(
                target.action,
                Plane(*axial, (j, i), (row_mm, column_mm), Orientation.of(scan.direction)),
                Plane(*coronal, (k, i), (z_mm, column_mm), Orientation.of(scan.direction, vertical=2)),
                f"{name}\nslice {k}",
            )
        )
    return forgeries


def draw_sheet(rows: Sequence[tuple[str, Sequence[PicturedForgery]]], title: str) -> bytes:
    """A PNG: for each row of forgeries its axial slices before and after, and the coronal slice after, enlarged.

    :param rows: (label, forgeries); all rows have the same number.
    """
    columns = max(len(forgeries) for _label, forgeries in rows)
    lines = ("before", "after", "after, across slices")
    step = len(lines) * (_CELL + _GAP) + 0.42
    width, height = 2 * _LABEL + columns * (_CELL + _GAP), _TOP + len(rows) * step
    figure = new_figure(
        width,
        height,
        title,
        f"SIMULATED ATTACKS, not patients' images. {SHOWN_MM:g} mm around the target, {LUNG}; the corners mark the "
        f"attacked cube of {CUBE_MM} mm.",
    )
    for number, (words, forgeries) in enumerate(rows):
        top = _TOP + number * step
        label(figure, 0.12, top + len(lines) * (_CELL + _GAP) / 2, words)
        for line, when in enumerate(lines):
            label(figure, width - 0.14, top + line * (_CELL + _GAP) + _CELL / 2, when)
        for column, forgery in enumerate(forgeries):
            left = _LABEL + column * (_CELL + _GAP)
            for line in range(len(lines)):
                axes = axes_at(figure, left, top + line * (_CELL + _GAP), _CELL, _CELL)
                plane = forgery.coronal if line == 2 else forgery.axial
                _show(axes, plane, plane.after if line else plane.before)
            figure.text(
                (left + _CELL / 2) / width,
                1 - (top + len(lines) * (_CELL + _GAP)) / height,
                forgery.caption,
                fontsize=6,
                ha="center",
                va="top",
            )
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DPI)
    canvas.draw()
    stream = io.BytesIO()
    # Grays and one green: a palette takes a third of the space of full color.
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(_COLORS).save(stream, "png", optimize=True)
    return stream.getvalue()


def _show(axes: Axes, plane: Plane, hu: np.ndarray) -> None:
    across, down = plane.spacing if plane.view.transpose else plane.spacing[::-1]
    x, y = plane.view.point(*plane.center, hu.shape)
    picture = plane.view.picture(window_image(hu, LUNG))
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect=down / across)
    axes.set_axis_off()
    half, reach, arm = SHOWN_MM / 2, CUBE_MM / 2, 4.0
    axes.set_xlim(x - half / across, x + half / across)
    axes.set_ylim(y + half / down, y - half / down)
    for right in (-1, 1):
        for lower in (-1, 1):
            corner_x, corner_y = x + right * reach / across, y + lower * reach / down
            axes.plot(
                [corner_x - right * arm / across, corner_x, corner_x],
                [corner_y, corner_y, corner_y - lower * arm / down],
                color=LINE_COLOR,
                linewidth=0.6,
            )
