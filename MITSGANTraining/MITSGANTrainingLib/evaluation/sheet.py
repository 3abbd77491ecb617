"""A sheet of forgeries on untouched scans, to judge on sight whether an attacker is worth defending against.

Places are seeded, not picked: random lung voxels to inject at, the most nodule-like structures to remove.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from MITSGANLib.attack.attacker import Attacker, simulate_attack
from MITSGANLib.report.pictures import Orientation
from MITSGANLib.runtime.progress import Progress, counted
from MITSGANLib.scan.cubes import CUBE_MM
from MITSGANLib.scan.targets import Target
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.scan.windows import LUNG
from PIL import Image

from .figures import SHOWN_MM, SIDEWAYS, axes_at, draw_line, new_figure, show_slice, text_at

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
        (k, j, i), (z_mm, row_mm, column_mm) = target.kji, map(float, scan.spacing_kji)
        # Copies, so that no whole attacked scan stays in memory.
        axial, coronal = ([one.hu[index].copy() for one in (scan, attacked)] for index in (k, np.s_[:, j]))
        across_slices = Orientation.of(scan.direction, vertical=2)
        planes = (
            Plane(*axial, (j, i), (row_mm, column_mm), Orientation.of(scan.direction)),
            Plane(*coronal, (k, i), (z_mm, column_mm), across_slices),
        )
        forgeries.append(PicturedForgery(target.action, *planes, f"{name}\nslice {k}"))
    return forgeries


def draw_sheet(rows: Sequence[tuple[str, Sequence[PicturedForgery]]], title: str) -> bytes:
    """A PNG: for each row of forgeries its axial slices before and after, and the coronal slice after, enlarged.

    :param rows: (label, forgeries); all rows have the same number.
    """
    columns = max(len(forgeries) for _label, forgeries in rows)
    lines = ("before", "after", "after, across slices")
    step = len(lines) * (_CELL + _GAP) + 0.42
    width, height = 2 * _LABEL + columns * (_CELL + _GAP), _TOP + len(rows) * step
    subtitle = (
        f"SIMULATED ATTACKS, not patients' images. {SHOWN_MM:g} mm around the target, {LUNG}; the corners mark the "
        f"attacked cube of {CUBE_MM} mm."
    )
    figure = new_figure(width, height, title, subtitle)
    for number, (words, forgeries) in enumerate(rows):
        top = _TOP + number * step
        bottom = top + len(lines) * (_CELL + _GAP)
        text_at(figure, 0.12, (top + bottom) / 2, words, **SIDEWAYS)
        for line, when in enumerate(lines):
            text_at(figure, width - 0.14, top + line * (_CELL + _GAP) + _CELL / 2, when, **SIDEWAYS)
        for column, forgery in enumerate(forgeries):
            left = _LABEL + column * (_CELL + _GAP)
            for line in range(len(lines)):
                axes = axes_at(figure, left, top + line * (_CELL + _GAP), _CELL, _CELL)
                plane = forgery.coronal if line == 2 else forgery.axial
                _show(axes, plane, plane.after if line else plane.before)
            text_at(figure, left + _CELL / 2, bottom, forgery.caption, fontsize=6, ha="center", va="top")
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DPI)
    canvas.draw()
    stream = io.BytesIO()
    # Grays and one green: a palette takes a third of the space of full color.
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(_COLORS).save(stream, "png", optimize=True)
    return stream.getvalue()


def _show(axes: Any, plane: Plane, hu: np.ndarray) -> None:
    """What is around the target, with the corners of the attacked cube."""
    show_slice(axes, hu, plane.view, plane.spacing, plane.center)
    reach, arm = (mm / np.array(plane.spacing) for mm in (CUBE_MM / 2, 4.0))
    for corner in itertools.product((-1, 1), (-1, 1)):
        row, column = plane.center + corner * reach
        down, right = corner * arm
        ends = (row, column - right), (row, column), (row - down, column)
        draw_line(axes, plane.view, hu.shape, *ends, width=0.6)
