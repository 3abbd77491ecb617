"""Pictures of slices and of differences between them, as PNG bytes or files.

Slices are (row, column) arrays in HU. They are shown as radiologists expect, whatever the direction matrix: for axial
slices anterior up and the patient's right on the left. Matplotlib is used through figures of its own, without pyplot,
so that neither Slicer's nor anybody's global state is touched.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from ..files.atomic import atomic_file
from ..scan.regions import Region
from ..scan.volume import CTVolume
from ..scan.windows import LUNG, Window

_BACKGROUND, _FOREGROUND, _MARK = "black", "#e8e8e8", "#6cff6c"
_DPI = 120
# Anatomy under a difference is dimmed: colors over white soft tissue would be too pale to read off the color bar.
_DIMMED_WHITE = 380


def window_image(slice_hu: np.ndarray, window: Window = LUNG) -> np.ndarray:
    """The slice as a window shows it: uint8, 0 black to 255 white, same shape and orientation."""
    return np.rint(window.scaled(slice_hu) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Look:
    """How a slice is shown.

    :param spacing: mm along (row index, column index).
    :param direction: 3x3 as in :class:`CTVolume`; None for axis-aligned LPS.
    :param square: outlined; its slices do not matter.
    :param crosshair: (row, column), marked with a cross that leaves the middle free.
    :param picture_inches: longer edge at 120 dots per inch; smaller pictures have larger text beside them.
    """

    title: str = ""
    window: Window = LUNG
    spacing: tuple[float, float] = (1.0, 1.0)
    direction: np.ndarray | None = None
    square: Region | None = None
    crosshair: tuple[float, float] | None = None
    picture_inches: float = 6.4

    @property
    def view(self) -> Orientation:
        """How the slice is turned."""
        return Orientation.of(self.direction)

    def size_mm(self, shape: tuple[int, ...]) -> tuple[float, float]:
        """(height, width) of the picture of a slice of this shape."""
        height, width = shape[0] * self.spacing[0], shape[1] * self.spacing[1]
        return (width, height) if self.view.transpose else (height, width)


def render_slice(slice_hu: np.ndarray, look: Look = Look()) -> bytes:
    """PNG of a slice."""
    slice_hu = _as_slice(slice_hu)
    figure, axes, _ = _figure(look, slice_hu.shape, str(look.window))
    _show_slice(axes, look, slice_hu)
    _mark(axes, look, slice_hu.shape)
    return _png(figure, look.title)


def difference_overlay(
    reference_slice: np.ndarray,
    other_slice: np.ndarray,
    look: Look = Look(),
    *,
    kind: Literal["signed", "absolute"] = "signed",
    limit_hu: float | None = None,
) -> bytes:
    """PNG of other minus reference in color over the reference slice, with a color bar in HU.

    Where nothing changed, the color is fully transparent. Signed: orange where other is higher, blue where it is lower.

    :param limit_hu: difference with the full color; from :func:`color_limit` when None.
    :raises InputError: when the slices differ in shape, or ``kind`` is unknown.
    """
    reference_slice, difference = _difference(reference_slice, other_slice)
    limit = limit_hu or color_limit(difference)
    figure, axes, bar_axes = _figure(look, difference.shape, _size_in_words(difference, look), bar=True)
    _show_slice(axes, look, reference_slice, white=_DIMMED_WHITE)
    image = _show_difference(axes, look, difference, kind, limit)
    _color_bar(figure, bar_axes, image, kind, limit, difference)
    _mark(axes, look, difference.shape)
    return _png(figure, look.title)


def render_square(
    reference_slice: np.ndarray,
    other_slice: np.ndarray,
    square: Region,
    look: Look = Look(),
    *,
    limit_hu: float | None = None,
    titles: tuple[str, str] = ("reference", "other"),
) -> bytes:
    """PNG of a square of a slice, enlarged: reference, other, and the signed difference with its color bar in HU.

    Parameters as in :func:`difference_overlay`; ``titles`` name the first two pictures.
    """
    reference_slice, _ = _difference(reference_slice, other_slice)
    _, *index = square.index
    first, second = reference_slice[*index], np.asarray(other_slice)[*index]
    if 0 in first.shape:
        raise InputError("The square lies outside the slice; choose it within the scan.")
    first, difference = _difference(first, second)
    limit = limit_hu or color_limit(difference)
    height_mm, width_mm = look.size_mm(first.shape)
    width, margin, gap, top, right = 3.2, 0.12, 0.1, 0.9, 1.0
    height = width * height_mm / width_mm
    figure = _canvas(margin + 3 * (width + gap) + right, height + top + margin)
    _headline(figure, look.title, _size_in_words(difference, look), margin)
    panels = [_axes(figure, margin + index * (width + gap), margin, width, height) for index in range(3)]
    bar_axes = _axes(figure, margin + 3 * (width + gap) + 0.05, margin + 0.05 * height, 0.16, 0.9 * height)
    whites = (255, 255, _DIMMED_WHITE)
    for axes, values, name, white in zip(panels, (first, second, first), (*titles, "difference"), whites, strict=True):
        _show_slice(axes, look, values, white, interpolation="nearest")
        axes.set_title(name, color=_FOREGROUND, fontsize=10)
    image = _show_difference(panels[2], look, difference, "signed", limit, interpolation="nearest")
    _color_bar(figure, bar_axes, image, "signed", limit, difference)
    return _png(figure, look.title)


def rmse_bars(rmse_per_slice: Sequence[float], *, marked: Sequence[int] = (), title: str = "") -> bytes:
    """PNG of a bar for each slice's RMSE in HU.

    :param marked: slice indices whose bars are colored and numbered, such as the worst slice.
    """
    figure = _canvas(9, 2.6)
    axes = figure.add_axes((0.08, 0.2, 0.9, 0.66))
    _draw_bars(axes, rmse_per_slice, marked)
    axes.set_title(title, color=_FOREGROUND, fontsize=10, loc="left")
    return _png(figure, title)


def color_limit(difference_hu: np.ndarray) -> float:
    """HU of the full color for a difference: 99.5th percentile of what is not 0, rounded up to 1, 2, 3 or 5 x 10^n.

    A percentile, because a few voxels at a paste border would otherwise take the color from all others.
    """
    magnitude = np.abs(np.asarray(difference_hu, dtype=np.float64))
    magnitude = magnitude[magnitude > 0]
    if magnitude.size == 0:
        return 1.0
    wanted = float(np.percentile(magnitude, 99.5))
    power = 10.0 ** np.floor(np.log10(wanted))
    return float(next(step * power for step in (1, 2, 3, 5, 10) if step * power >= wanted * (1 - 1e-9)))


def save_heatmaps(
    reference: CTVolume,
    other: CTVolume,
    folder: Path,
    *,
    target_kji: tuple[int, int, int] | None = None,
    square: Region | None = None,
    evenly_spaced: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Write PNG files that show where two volumes differ; returns their paths, the overview first.

    ``overview.png``: the largest |difference| projected along slices and along rows, and the RMSE of every slice.
    ``slice-K-signed.png`` and ``slice-K-absolute.png``: of the slice with the largest RMSE, of the target's slice, and
    of ``evenly_spaced`` slices. ``square-K.png``: the enlarged square, where ``square`` and ``target_kji`` are given.
    All share one color range. Files are written whole or not at all; files of the same name are replaced.

    :param reference, other: volumes of the same shape.
    :param target_kji: (slice, row, column), marked with a crosshair.
    :raises InputError: when shapes differ or the target lies outside the scan.
    :raises OutputError: when the folder cannot be written to.
    """
    if reference.shape != other.shape:
        raise InputError(
            f"The two volumes differ in shape: {reference.shape} and {other.shape} voxels; they must be equal."
        )
    if target_kji is not None and not reference.contains(target_kji):
        raise InputError(
            f"The target voxel {target_kji} lies outside the scan of {reference.shape} voxels; choose another."
        )
    slices = reference.shape[0]
    found = _Differences.of(reference.hu, other.hu)
    shown = {int(k) for k in np.linspace(0, slices - 1, evenly_spaced + 2).round()[1:-1]} | {found.worst}
    if target_kji is not None:
        shown.add(int(target_kji[0]))
    limit = color_limit(found.along_slices)
    warning = "SIMULATED ATTACK. " if other.provenance.is_simulated_attack else ""
    title = f"{warning}Largest |difference|"
    pictures: dict[str, Callable[[], bytes]] = {
        "overview.png": lambda: _overview(reference, found, limit, sorted(shown), title)
    }
    digits = len(str(slices - 1))
    for k in sorted(shown):
        at_target = target_kji is not None and k == int(target_kji[0])
        notes = f"{', largest RMSE' if k == found.worst else ''}{', target' if at_target else ''}"
        both = reference.hu[k], other.hu[k]
        look = Look(f"{warning}Slice {k}{notes}", spacing=reference.spacing_kji[1:], direction=reference.direction)
        marked = replace(look, square=square, crosshair=tuple(target_kji[1:])) if at_target else look
        for kind in ("signed", "absolute"):
            pictures[f"slice-{k:0{digits}d}-{kind}.png"] = partial(
                difference_overlay, *both, marked, kind=kind, limit_hu=limit
            )
        if at_target and square is not None:
            pictures[f"square-{k:0{digits}d}.png"] = partial(render_square, *both, square, look, limit_hu=limit)

    paths = []
    for done, (name, picture) in enumerate(pictures.items()):
        paths.append(folder / name)
        with atomic_file(paths[-1], overwrite=True) as temporary:
            temporary.write_bytes(picture())
        if progress:
            progress(done + 1, len(pictures))
    return tuple(paths)


@dataclass(frozen=True)
class Orientation:
    """How to turn an array of (row, column) into a picture that stands as radiologists expect."""

    transpose: bool
    flip_vertical: bool
    flip_horizontal: bool
    letters: tuple[str, str, str, str]  # left, right, top, bottom

    @classmethod
    def of(cls, direction: np.ndarray | None, horizontal: int = 0, vertical: int = 1) -> Orientation:
        """View of the plane of two array axes, given as columns of the direction matrix (0 column, 1 row, 2 slice)."""
        matrix = np.eye(3) if direction is None else np.asarray(direction, dtype=np.float64).reshape(3, 3)
        across, down = matrix[:, horizontal], matrix[:, vertical]
        # From left to right x (to the patient's left), else y (to posterior); upwards z, else anterior.
        transpose = int(np.argmax(np.abs(across))) > int(np.argmax(np.abs(down)))
        if transpose:
            across, down = down, across
        axis_across, axis_down = int(np.argmax(np.abs(across))), int(np.argmax(np.abs(down)))
        flip_horizontal = bool(across[axis_across] < 0)
        flip_vertical = bool(down[axis_down] < 0) != (axis_down == 2)
        ends = (("R", "L"), ("A", "P"), ("I", "S"))
        top, bottom = ends[axis_down][::-1] if axis_down == 2 else ends[axis_down]
        return cls(transpose, flip_vertical, flip_horizontal, (*ends[axis_across], top, bottom))

    def picture(self, values: np.ndarray) -> np.ndarray:
        """An array (row, column) turned as it is shown."""
        values = values.T if self.transpose else values
        values = values[::-1] if self.flip_vertical else values
        return values[:, ::-1] if self.flip_horizontal else values

    def point(self, row: float, column: float, shape: tuple[int, ...]) -> tuple[float, float]:
        """(x, y) in the picture of a voxel center of an array of this shape."""
        height, width = shape
        if self.transpose:
            row, column, height, width = column, row, width, height
        return (width - 1 - column if self.flip_horizontal else column, height - 1 - row if self.flip_vertical else row)


def _canvas(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, facecolor=_BACKGROUND)


def _axes(figure: Any, left: float, bottom: float, width: float, height: float, **options: Any) -> Any:
    """Axes at this place of a figure, in inches."""
    total_width, total_height = figure.get_size_inches()
    box = (left / total_width, bottom / total_height, width / total_width, height / total_height)
    return figure.add_axes(box, **options)


def _figure(look: Look, shape: tuple[int, ...], subtitle: str, bar: bool = False) -> tuple[Any, Any, Any]:
    """Figure, axes of a picture of a slice of this shape, and axes of the color bar."""
    height_mm, width_mm = look.size_mm(shape)
    scale = look.picture_inches / max(height_mm, width_mm)
    # A narrow picture still needs room for the text above it.
    height, width = max(height_mm * scale, 2.0), max(width_mm * scale, min(4.0, look.picture_inches))
    top, margin, right = 0.62, 0.12, 1.0 if bar else 0.12
    figure = _canvas(width + margin + right, height + top + margin)
    axes = _axes(figure, margin, margin, width, height, facecolor=_BACKGROUND)
    _headline(figure, look.title, subtitle, margin)
    bar_axes = _axes(figure, margin + width + 0.15, margin + 0.1 * height, 0.16, 0.8 * height) if bar else None
    return figure, axes, bar_axes


def _headline(figure: Any, title: str, subtitle: str, left: float) -> None:
    """Title and subtitle at the top, from ``left`` inches on."""
    inch, left = 1 / figure.get_figheight(), left / figure.get_figwidth()
    figure.text(left, 1 - 0.08 * inch, title, color=_FOREGROUND, fontsize=12, va="top")
    figure.text(left, 1 - 0.36 * inch, subtitle, color="#a8a8a8", fontsize=9, va="top")


def _show(axes: Any, look: Look, values: np.ndarray, **options: Any) -> Any:
    """Draw values as a picture with square millimeters and its orientation letters."""
    from matplotlib.patheffects import withStroke

    view = look.view
    down, across = look.spacing[::-1] if view.transpose else look.spacing
    image = axes.imshow(view.picture(values), aspect=down / across, **options)
    axes.set_axis_off()
    for letter, x, y in zip(view.letters, (0.02, 0.98, 0.5, 0.5), (0.5, 0.5, 0.98, 0.02), strict=True):
        horizontal = {0.02: "left", 0.98: "right"}.get(x, "center")
        vertical = {0.02: "bottom", 0.98: "top"}.get(y, "center")
        text = axes.text(x, y, letter, transform=axes.transAxes, color=_FOREGROUND, ha=horizontal, va=vertical)
        text.set_path_effects([withStroke(linewidth=2.5, foreground=_BACKGROUND)])
    return image


def _show_slice(axes: Any, look: Look, hu: np.ndarray, white: float = 255, **options: Any) -> None:
    _show(axes, look, window_image(hu, look.window), cmap="gray", vmin=0, vmax=white, **options)


def _show_difference(axes: Any, look: Look, difference: np.ndarray, kind: str, limit: float, **options: Any) -> Any:
    if kind == "signed":
        return _show(axes, look, difference, cmap=_signed_colors(), vmin=-limit, vmax=limit, **options)
    if kind == "absolute":
        return _show(axes, look, np.abs(difference), cmap=_absolute_colors(), vmin=0, vmax=limit, **options)
    raise InputError(f"A difference is shown signed or absolute, not {kind}.")


def _signed_colors() -> Any:
    """Blue, transparent at 0, orange: two hues that color-blind readers tell apart, of growing opacity."""
    from matplotlib.colors import ListedColormap

    level = np.linspace(-1, 1, 511)
    size = np.abs(level)[:, None]
    low = np.array((0.15, 0.55, 1.0)) * (1 - size) + np.array((0.35, 0.95, 1.0)) * size
    high = np.array((1.0, 0.35, 0.05)) * (1 - size) + np.array((1.0, 0.85, 0.2)) * size
    return ListedColormap(np.hstack([np.where(level[:, None] < 0, low, high), _opacity(size)]))


def _absolute_colors() -> Any:
    """Transparent at 0, then from violet over red to light yellow."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    hues = LinearSegmentedColormap.from_list("", ["#6a1fb0", "#e0245e", "#ff8c1a", "#fff6a0"])
    level = np.linspace(0, 1, 256)
    return ListedColormap(np.hstack([hues(level)[:, :3], _opacity(level[:, None])]))


def _opacity(size: np.ndarray) -> np.ndarray:
    # The root shows a tenth of the range at 0.28: faint changes are seen, and anatomy still shines through.
    return 0.9 * np.sqrt(size)


def _color_bar(figure: Any, axes: Any, image: Any, kind: str, limit: float, difference: np.ndarray) -> None:
    over, under = bool(difference.max() > limit), bool(difference.min() < -limit)
    if kind == "absolute":
        extend, label = ("max" if over or under else "neither"), "|difference| (HU)"
    else:
        extend = {(True, True): "both", (True, False): "max", (False, True): "min"}.get((over, under), "neither")
        label = "difference, other - reference (HU)"
    axes.set_facecolor("#404040")
    bar = figure.colorbar(image, cax=axes, extend=extend, extendfrac=0.03)
    bar.solids.set_edgecolor("none")
    bar.set_label(
        f"{label}, range {f'±{limit:g}' if kind == 'signed' else f'0..{limit:g}'}", color=_FOREGROUND, fontsize=9
    )
    bar.set_ticks(np.linspace(-limit if kind == "signed" else 0, limit, 5))
    axes.tick_params(colors=_FOREGROUND, labelsize=8)
    bar.outline.set_edgecolor("#808080")


def _mark(axes: Any, look: Look, shape: tuple[int, ...]) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    view, style = look.view, {"linewidth": 1.2, "path_effects": [withStroke(linewidth=2.6, foreground=_BACKGROUND)]}
    if look.square is not None:
        x0, y0 = view.point(look.square.j0 - 0.5, look.square.i0 - 0.5, shape)
        x1, y1 = view.point(look.square.j1 - 0.5, look.square.i1 - 0.5, shape)
        corner = (min(x0, x1), min(y0, y1))
        axes.add_patch(Rectangle(corner, abs(x1 - x0), abs(y1 - y0), fill=False, edgecolor=_MARK, **style))
    if look.crosshair is not None:
        x, y = view.point(*look.crosshair, shape)
        gap, end = 0.012 * max(shape), 0.045 * max(shape)
        for sign in (-1, 1):
            axes.plot([x + sign * gap, x + sign * end], [y, y], color=_MARK, **style)
            axes.plot([x, x], [y + sign * gap, y + sign * end], color=_MARK, **style)


def _draw_bars(axes: Any, values: Sequence[float], marked: Sequence[int]) -> None:
    index = np.arange(len(values))
    colors = [_MARK if k in set(marked) else "#5b8fd6" for k in index.tolist()]
    axes.set_facecolor(_BACKGROUND)
    axes.bar(index, values, color=colors, width=0.85)
    for k in marked:
        style = {"xytext": (0, 2), "textcoords": "offset points", "color": _MARK, "fontsize": 8, "ha": "center"}
        axes.annotate(str(k), (k, values[k]), **style)
    axes.margins(x=0.01, y=0.15)
    axes.set_xlabel("slice", color=_FOREGROUND, fontsize=9)
    axes.set_ylabel("RMSE (HU)", color=_FOREGROUND, fontsize=9)
    axes.tick_params(colors=_FOREGROUND, labelsize=8)
    for side in axes.spines.values():
        side.set_color("#606060")


def _overview(reference: CTVolume, found: _Differences, limit: float, shown: Sequence[int], title: str) -> bytes:
    """Two projections of the largest |difference| side by side at the same scale, and a bar for each slice's RMSE."""
    spacing_k, spacing_j, spacing_i = reference.spacing_kji
    axial = Look(spacing=(spacing_j, spacing_i), direction=reference.direction)
    coronal = Look(spacing=(spacing_k, spacing_i), direction=reference.direction[:, [0, 2, 1]])
    projections = ((axial, found.along_slices), (coronal, found.along_rows))
    heights, widths = zip(*(look.size_mm(values.shape) for look, values in projections), strict=True)
    scale = 9.0 / sum(widths)
    picture_height = min(max(heights) * scale, 7.0)
    margin, gap, right, top, bars = 0.6, 0.25, 1.0, 0.95, 2.0
    figure = _canvas(margin + 9.0 + gap + right, top + picture_height + bars)
    largest = f"slice {found.worst} has the largest RMSE, {found.rmse[found.worst]:.3g} HU"
    _headline(figure, title, f"over all slices and over all rows; {largest}", margin)
    left = margin
    for (look, values), width in zip(projections, widths, strict=True):
        axes = _axes(figure, left, bars, width * scale, picture_height, facecolor="#202020")
        image = _show_difference(axes, look, values, "absolute", limit)
        left += width * scale + gap
    bar_axes = _axes(figure, left, bars + 0.05 * picture_height, 0.16, 0.9 * picture_height)
    _color_bar(figure, bar_axes, image, "absolute", limit, found.along_slices)
    _draw_bars(_axes(figure, margin, 0.5, 9.2, 1.3), found.rmse, shown)
    return _png(figure, title)


@dataclass(frozen=True)
class _Differences:
    """RMSE of each slice; largest |difference| along slices (rows, columns) and along rows (slices, columns)."""

    rmse: np.ndarray
    along_slices: np.ndarray
    along_rows: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> _Differences:
        slices, rows, columns = first.shape
        found = cls(np.zeros(slices), np.zeros((rows, columns)), np.zeros((slices, columns)))
        for k in range(slices):
            magnitude = np.abs(second[k].astype(np.float64) - first[k])
            found.rmse[k] = _rms(magnitude)
            np.maximum(found.along_slices, magnitude, out=found.along_slices)
            found.along_rows[k] = magnitude.max(axis=0)
        return found

    @property
    def worst(self) -> int:
        return int(np.argmax(self.rmse))


def _difference(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference, other = _as_slice(reference), _as_slice(other)
    if reference.shape != other.shape:
        raise InputError(f"The two slices differ in shape: {reference.shape} and {other.shape}; they must be equal.")
    return reference, other.astype(np.float64) - reference


def _size_in_words(difference: np.ndarray, look: Look) -> str:
    return f"RMSE {_rms(difference):.3g} HU, max |difference| {np.abs(difference).max():.4g} HU; {look.window}"


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _as_slice(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"A slice must be a non-empty array (row, column), not one of shape {values.shape}.")
    return values


def _png(figure: Any, title: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Title": title} if title else None)
    return stream.getvalue()
