"""Where a copy lies on the grid of the scan that was marked: cropped, flipped, its axes permuted, resampled, turned.

Signs are bound to the marked scan's grid, so that whoever looks for them has to know it. Formats and programs crop,
flip and resample, with or without saying so in the header. So the likely grids are tried one after the other on a few
slices: what carries the signs at one of them stands out far above all others. It takes seconds, and only copies pay
for it in which nothing is found as they are.

Arrays of a slice are (row, column) along growing LPS. Voxels are (slice, row, column).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..budget.budget import Budget
from ..errors import InputError
from ..runtime.threads import map_slices
from ..scan.alignment import aligned, between, pasted
from ..scan.volume import LOWEST_HU, PROTECTION, CTVolume, Provenance
from .pattern import TILE, Grid, GridSecret, WatermarkKey, grid_secret, products_of_tiles, signs_of_tiles, tile_levels
from .sums import Reading

T = TypeVar("T")

GRID_FIELD = "watermark_grid"
"""In a protection's record: the grid of the scan that was marked."""

# What most copies leave of a sign.
_LEFT = np.array([[0.12, 0.3, 0.12], [0.3, 1.0, 0.3], [0.12, 0.3, 0.12]], np.float32)
# The largest of 100000 tries that miss comes to 4.3 standard deviations.
_FOUND_SD, _ROUGH_SD, _PROMISING_SD = 7.0, 4.0, 2.5
_LOOKED_AT, _SLICES = 9, 2
_FEW_TILES, _TILES = 96, 1500
# Nearly all CT slices have so many rows and columns.
_EDGES = (256, 512, 768, 1024)
_MOST_CROPS = 60_000
_MOST_DEGREES, _DEGREES, _FINE_DEGREES = 6.0, 0.2, 0.05
_SPACING_MM, _FINE_SPACING_MM = 4e-4, 1e-4


@dataclass(frozen=True, eq=False)
class Regridding:
    """How a copy lies on the marked scan's grid.

    :param grid: the marked scan's, with voxels of 0 HU that take no memory.
    :param to_grid: 4x4, from voxel (slice, row, column, 1) of the copy to that of the grid.
    :param words: what was done to the copy, for people.
    """

    grid: CTVolume
    to_grid: np.ndarray
    words: str

    @property
    def is_exact(self) -> bool:
        """Whether every voxel of the copy is one of the grid."""
        return bool(np.allclose(self.to_grid, np.rint(self.to_grid), atol=1e-6))

    def moved(self, copy: CTVolume) -> CTVolume:
        """The copy on the grid; what it does not hold is padding."""
        beyond = LOWEST_HU - 1
        if self.is_exact:
            hu = pasted(copy.hu, self.to_grid, self.grid.shape, beyond)
            return dataclasses.replace(self.grid, hu=hu, provenance=copy.provenance)
        from scipy import ndimage

        hu = np.empty(self.grid.shape, np.int16)
        back = np.linalg.inv(self.to_grid)
        # Mostly the slices are the same, and each can be taken for itself.
        alone = np.allclose(back[0], (1, 0, 0, 0)) and np.allclose(back[1:3, 0], 0)

        def look(k: int) -> None:
            if alone:
                values, matrix, offset = copy.hu[k], back[1:3, 1:3], back[1:3, 3]
            else:
                values, matrix, offset = copy.hu, back[:3, :3], back[:3, 3] + k * back[:3, 0]
            shape = hu.shape[1:] if alone else (1, *hu.shape[1:])
            values = values.astype(np.float32)
            hu[k] = np.rint(ndimage.affine_transform(values, matrix, offset, shape, order=1, cval=float(beyond)))

        map_slices(look, len(hu))
        return dataclasses.replace(self.grid, hu=hu, provenance=copy.provenance)


def grid_record(volume: CTVolume) -> dict[str, Any]:
    """What a protection records of the grid that the signs are bound to, JSON-ready."""
    return {
        "shape": list(volume.shape),
        "spacing": list(volume.spacing),
        "origin": list(volume.origin),
        "direction": volume.direction.ravel().tolist(),
    }


def recorded_grid(volume: CTVolume) -> CTVolume | None:
    """The grid of the scan that was marked, as a copy's provenance has it; None where it says nothing usable."""
    step = volume.provenance.last(PROTECTION)
    record = step.parameters.get(GRID_FIELD) if step else None
    if not isinstance(record, Mapping):
        return None
    try:
        shape = tuple(int(size) for size in record["shape"])
        if len(shape) != 3 or not all(0 < size <= 4096 for size in shape):
            return None
        return CTVolume(
            np.broadcast_to(np.int16(0), shape),
            tuple(record["spacing"]),
            tuple(record["origin"]),
            np.reshape(record["direction"], (3, 3)),
        )
    except (KeyError, TypeError, ValueError, InputError):  # what a file says may be anything
        return None


def find_regridding(
    volume: CTVolume, keys: Sequence[WatermarkKey], budget: Budget, alive: Callable[[], None] = lambda: None
) -> Regridding | None:
    """Find the grid at which a copy carries the signs; None where it does at none that is tried.

    :param keys: of each version of the signs that may be there, the likeliest first; another one's are not sought where
        rows and columns were cut off, as that takes tens of thousands of tries.
    :param budget: that the watermark was put in with.
    :param alive: called at each try; may raise ``CancelledError``. All tries together may take a minute.
    """
    upright = aligned(volume, np.eye(3))
    rearranged = between(volume, upright)
    by_version: dict[int, WatermarkKey] = {}
    for key in keys:
        by_version.setdefault(key.version, key)
    probe = _Probe.of(upright, tuple(by_version.values()), budget, alive)
    found = probe and probe.searched(recorded_grid(volume))
    if found is None:
        return None
    # The same for the copy as it is stored.
    is_permuted = not np.allclose(np.abs(rearranged[:3, :3]), np.eye(3))
    words = ", ".join(filter(None, ("axes permuted" if is_permuted else "", found.words)))
    return Regridding(found.grid, found.to_grid @ rearranged, words or "stored in another order")


def _recorded(upright: CTVolume, grid: CTVolume) -> Regridding:
    grid = aligned(grid, np.eye(3))
    to_grid = between(upright, grid)
    # A copy that is only cropped keeps its own voxels; others are looked at in its own slices, if they are parallel.
    if not np.allclose(to_grid, np.rint(to_grid), atol=0.02) and np.allclose(to_grid[0, 1:3], 0, atol=1e-4):
        corner = grid.voxel_to_lps((to_grid[0, 3], 0, 0))
        spacing = (*grid.spacing[:2], upright.spacing[2])
        grid = _empty(grid, (upright.shape[0], *grid.shape[1:]), spacing=spacing, origin=tuple(corner))
        to_grid = between(upright, grid)
    near = np.rint(to_grid)
    return Regridding(grid, np.where(np.abs(to_grid - near) < 0.02, near, to_grid), "on another grid")


def _arrangements(upright: CTVolume) -> Iterator[Regridding]:
    """The array flipped or transposed, and the header not."""
    names = ("slices in the opposite order", "flipped back to front", "flipped left to right")
    is_square = upright.shape[1] == upright.shape[2] and np.isclose(*upright.spacing[:2])
    for swap, *flips in itertools.product((False, True), *[(False, True)] * 3):
        matrix = np.eye(4)
        for axis, (flip, size) in enumerate(zip(flips, upright.shape, strict=True)):
            if flip:
                matrix[axis, axis], matrix[axis, 3] = -1, size - 1
        words = [name for name, flip in zip(names, flips, strict=True) if flip]
        if swap and is_square:
            matrix = matrix[[0, 2, 1, 3]]
            words = ["rows and columns exchanged", *words]
        elif swap:
            continue
        yield Regridding(_empty(upright), matrix, ", ".join(words))


def _other_slices(upright: CTVolume) -> Iterator[Regridding]:
    """A scan that begins some slices earlier or later."""
    count = upright.shape[0]
    for missing in sorted(range(-count, count + 1), key=abs):
        if missing:
            matrix = np.eye(4)
            matrix[0, 3] = missing
            shape = (max(count, count + missing), *upright.shape[1:])
            words = f"the first {missing} slices left out" if missing > 0 else f"{-missing} slices added in front"
            yield Regridding(_empty(upright, shape), matrix, words)


@dataclass(frozen=True, eq=False)
class _Probe:
    """A few slices of an upright copy, with what each voxel tells if its sign is +1.

    :param keys: of :func:`find_regridding`, one of a version.
    :param numbers: of the slices.
    :param planes: float32 (row, column) in HU, and the products of :meth:`~.sums.Reading.unsigned`.
    :param alive: of :func:`find_regridding`.
    """

    volume: CTVolume
    keys: tuple[WatermarkKey, ...]
    numbers: tuple[int, ...]
    planes: tuple[tuple[np.ndarray, np.ndarray], ...]
    alive: Callable[[], None]

    @classmethod
    def of(
        cls, volume: CTVolume, keys: tuple[WatermarkKey, ...], budget: Budget, alive: Callable[[], None]
    ) -> _Probe | None:
        """Those of the slices that tell most; None where none tells anything."""
        count = volume.shape[0]
        some = np.unique(np.linspace(0, count - 1, _LOOKED_AT + 2).astype(int)[1:-1]).tolist()
        few = dataclasses.replace(volume, hu=volume.hu[some])
        reading = dataclasses.replace(Reading.of(few, keys[0], budget), fading=_LEFT)
        found = []
        for number, k in enumerate(some):
            plane, product = reading.unsigned(number)
            power = float(np.square(product).sum())
            if power > 0:
                found.append((power, k, plane.astype(np.float32), product))
        if not found:
            return None
        best = sorted(found, key=lambda one: -one[0])[:_SLICES]
        planes = tuple((hu, product) for _, _, hu, product in best)
        return cls(volume, keys, tuple(k for _, k, _, _ in best), planes, alive)

    def searched(self, recorded: CTVolume | None) -> Regridding | None:
        """The grid on which the slices carry the signs; None where they do on none that is tried.

        :param recorded: of :func:`recorded_grid`.
        """
        volume = self.volume
        told = () if recorded is None else (_recorded(volume, recorded),)
        for attempt in itertools.chain(told, _arrangements(volume)):
            if self.sd(attempt) >= _FOUND_SD:
                return attempt
        is_usual = volume.shape[1] == volume.shape[2] and volume.shape[1] in _EDGES
        # The longest search comes last.
        last = (self.turned, self.cropped) if is_usual else (self.cropped, self.turned)
        found = (search() for search in (self.other_slices, self.resampled, *last))
        return next((one for one in found if one is not None), None)

    def sd(self, attempt: Regridding, slices: int = _SLICES) -> float:
        """By how many standard deviations signs stand out in a try, of the version that does so most."""
        self.alive()
        grid = Grid.of(attempt.grid)
        total, squares = np.zeros((2, len(self.keys)))
        turn, shift = attempt.to_grid[1:3, 1:3], attempt.to_grid[1:3, 3]
        for k, (plane, product) in list(zip(self.numbers, self.planes, strict=True))[:slices]:
            place = grid.place(0)
            at = attempt.to_grid[0, 0] * k + attempt.to_grid[0, 3]
            depth = grid.first_depth + at * grid.step_depth
            hu, values = (_in_plane(part, turn, shift, attempt.grid.shape[1:]) for part in (plane, product))
            for number, key in enumerate(self.keys):
                tiles = _Tiles.of(hu, values, 0, 0, _TILES, key.version)
                one, many = tiles.correlation(grid_secret(key, place), depth, hu.shape, 0, 0)
                total[number] += one
                squares[number] += many
        return float((total / np.sqrt(np.maximum(squares, 1e-12))).max())

    def other_slices(self) -> Regridding | None:
        """Slices left out at an end, and the header not told."""
        return self._best(_other_slices(self.volume))

    def cropped(self) -> Regridding | None:
        """Rows or columns cut off, told in the header or not."""
        rows, columns = self.volume.shape[1:]
        k, (plane, product), key = self.numbers[0], self.planes[0], self.keys[0]
        of_alignment: dict[tuple[int, int], _Tiles] = {}
        left = _MOST_CROPS
        for edge in _EDGES:
            if (rows, columns) == (edge, edge) or rows > edge or columns > edge:
                continue
            offsets = list(itertools.product(range(edge - rows + 1), range(edge - columns + 1)))
            left -= len(offsets)
            if left < 0:
                return None
            grid = Grid.of(_empty(self.volume, (self.volume.shape[0], edge, edge)))
            depth = grid.first_depth + k * grid.step_depth
            steps = _steps(self.volume)
            kept = grid_secret(key, grid.place(0))
            for row, column in offsets:
                self.alive()
                part = (-row % TILE, -column % TILE)
                if part not in of_alignment:
                    of_alignment[part] = _Tiles.of(plane, product, *part, _FEW_TILES, key.version)
                tiles = of_alignment[part]
                moved = dataclasses.replace(grid, in_plane=grid.in_plane - row * steps[0] - column * steps[1])
                told = [grid_secret(key, place) for place in moved.places(0)]
                for secret in (*told, kept):
                    total, squares = tiles.correlation(secret, depth, (edge, edge), row, column)
                    if total < _PROMISING_SD * squares**0.5:
                        continue
                    is_told = secret is not kept
                    if self.sd(_cropped_try(self.volume, edge, row, column, is_told=is_told)) >= _FOUND_SD:
                        # The filter spreads each sign, so that its neighbors are promising as well.
                        near = itertools.product(range(row - 3, row + 4), range(column - 3, column + 4))
                        inside = [one for one in near if 0 <= one[0] <= edge - rows and 0 <= one[1] <= edge - columns]
                        return self._best(_cropped_try(self.volume, edge, *one, is_told=is_told) for one in inside)
        return None

    def resampled(self) -> Regridding | None:
        """From square slices of the usual number of rows to other voxels."""
        _, rows, columns = self.volume.shape
        spacing = np.array(self.volume.spacing[:2])
        if rows != columns or not np.isclose(*spacing):
            return None
        for edge in _EDGES:
            if rows == edge:
                continue
            middle, reach = rows * spacing[0] / edge, 1.5 * spacing[0] / edge
            around = middle + np.arange(-reach, reach + _SPACING_MM, _SPACING_MM)
            rough = itertools.product((0.0, 0.5, 1.0), around)
            best = self._promising(lambda one, edge=edge: _resampled_try(self.volume, edge, *one), rough)
            if best is not None:
                fine = best[1] + np.arange(-_SPACING_MM, _SPACING_MM + _FINE_SPACING_MM, _FINE_SPACING_MM)
                return self._best(_resampled_try(self.volume, edge, best[0], step) for step in fine)
        return None

    def turned(self) -> Regridding | None:
        """Turned in the plane about the middle, told in the header or not."""
        upright = _upright_try(self.volume)
        if self.sd(upright) >= _FOUND_SD:
            return upright
        angles = np.arange(-_MOST_DEGREES, _MOST_DEGREES + _DEGREES, _DEGREES)
        best = self._promising(lambda degrees: _turned_try(self.volume, degrees), angles[np.abs(angles) > 0.1])
        if best is None:
            return None
        fine = np.arange(-_DEGREES, _DEGREES + _FINE_DEGREES, _FINE_DEGREES)
        return self._best(_turned_try(self.volume, best + more) for more in fine)

    def _promising(self, attempt: Callable[[T], Regridding], values: Iterable[T]) -> T | None:
        """The value of the best of rough tries in one slice; None where none is promising."""
        found = ((self.sd(attempt(value), slices=1), value) for value in values)
        sd, value = max(found, key=lambda pair: pair[0])
        return value if sd >= _ROUGH_SD else None

    def _best(self, attempts: Iterable[Regridding]) -> Regridding | None:
        """The best of tries in all slices; None where none carries the signs."""
        sd, attempt = max(((self.sd(one), one) for one in attempts), key=lambda pair: pair[0])
        return attempt if sd >= _FOUND_SD else None


@dataclass(frozen=True, eq=False)
class _Tiles:
    """Tiles of a slice that tell most, at one alignment.

    :param rows, columns: of the tiles, from the first that is whole.
    :param products: (tiles, 64).
    """

    rows: np.ndarray
    columns: np.ndarray
    levels: np.ndarray
    products: np.ndarray
    squares: float

    @classmethod
    def of(cls, plane: np.ndarray, product: np.ndarray, row: int, column: int, most: int, version: int) -> _Tiles:
        """Those of a slice whose tiles begin at a row and column of it.

        :param version: of the signs.
        """
        levels, unsure = tile_levels(plane[row:, column:])
        down, across = levels.shape
        whole = product[row : row + down * TILE, column : column + across * TILE]
        values = products_of_tiles(whole.reshape(down, TILE, across, TILE).transpose(0, 2, 1, 3), version)
        power = np.square(values).sum(axis=1) * ~unsure.ravel()
        chosen = np.argsort(-power)[:most]
        chosen = chosen[power[chosen] > 0]
        return cls(
            chosen // max(1, across),
            chosen % max(1, across),
            levels.ravel()[chosen],
            values[chosen],
            float(power[chosen].sum()),
        )

    def correlation(
        self, secret: GridSecret, depth: float, shape: Sequence[int], row: int, column: int
    ) -> tuple[float, float]:
        """With the signs of the marked scan, where the slice's first voxel is at a row and column of it; and variance.

        :param shape: (rows, columns) of the marked scan.
        """
        down, across = (size // TILE for size in shape)
        rows, columns = self.rows + -(-row // TILE), self.columns + -(-column // TILE)
        inside = (rows >= 0) & (rows < down) & (columns >= 0) & (columns < across)
        if not inside.all():
            rows, columns = rows[inside], columns[inside]
            levels, products = self.levels[inside], self.products[inside]
            squares = float(np.square(products).sum())
        else:
            levels, products, squares = self.levels, self.products, self.squares
        found = signs_of_tiles(secret, depth, levels, rows * across + columns, (down, across))
        return float(np.vdot(found.astype(np.float32), products)), squares


def _cropped_try(upright: CTVolume, edge: int, row: int, column: int, *, is_told: bool) -> Regridding:
    rows, columns = upright.shape[1:]
    first = upright.voxel_to_lps((0, -row, -column)) if is_told else upright.origin
    matrix = np.eye(4)
    matrix[1:3, 3] = row, column
    cut = (row, edge - rows - row, column, edge - columns - column)
    sides = ("in front", "at the back", "on the right", "on the left")
    words = ", ".join(f"{count} {'rows' if side < 2 else 'columns'} {sides[side]}" for side, count in enumerate(cut))
    grid = _empty(upright, (upright.shape[0], edge, edge), origin=tuple(first))
    return Regridding(grid, matrix, f"cropped by {words}")


def _resampled_try(upright: CTVolume, edge: int, kept: float, step: float) -> Regridding:
    """A grid whose first (0), middle (0.5) or last (1) voxels lie where the copy's do."""
    spacing = np.array(upright.spacing[:2])
    sizes = np.array(upright.shape[:0:-1])
    shift = kept * ((sizes - 1) * spacing - (edge - 1) * step)
    first = upright.voxel_to_lps((0, *(shift / spacing)[::-1]))
    shape = (upright.shape[0], edge, edge)
    grid = _empty(upright, shape, spacing=(step, step, upright.spacing[2]), origin=tuple(first))
    words = f"resampled from {step:.3f} to {spacing[0]:.3f} mm in the plane"
    return Regridding(grid, between(upright, grid), words)


def _turned_try(upright: CTVolume, degrees: float) -> Regridding:
    angle = np.deg2rad(degrees)
    middle = (np.array(upright.shape[1:]) - 1) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(4)
    matrix[1:3, 1:3], matrix[1:3, 3] = turn, middle - turn @ middle
    return Regridding(_empty(upright), matrix, f"turned by {abs(degrees):.1f} degrees in the plane")


def _upright_try(turned: CTVolume) -> Regridding:
    """A grid of the same size, about the same middle, along the patient's axes."""
    middle = (np.array(turned.shape) - 1) / 2
    first = turned.voxel_to_lps(middle) - middle[::-1] * turned.spacing
    grid = _empty(turned, origin=tuple(first), direction=np.eye(3))
    return Regridding(grid, between(turned, grid), "turned in the plane, as its header says")


def _in_plane(plane: np.ndarray, turn: np.ndarray, shift: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A slice of the copy on the grid, by linear interpolation; 0 beyond."""
    from scipy import ndimage

    if np.array_equal(turn, np.eye(2)) and not shift.any() and plane.shape == tuple(shape):
        return plane
    back = np.linalg.inv(turn)
    return ndimage.affine_transform(plane, back, -back @ shift, tuple(shape), order=1, mode="constant", cval=0)


def _steps(upright: CTVolume) -> tuple[np.ndarray, np.ndarray]:
    """By how much :attr:`Grid.in_plane` grows from one row, and one column, to the next."""
    first, row, column = (
        Grid.of(_empty(upright, origin=tuple(upright.voxel_to_lps(kji)))).in_plane
        for kji in ((0, 0, 0), (0, 1, 0), (0, 0, 1))
    )
    return row - first, column - first


def _empty(like: CTVolume, shape: Sequence[int] | None = None, **geometry: Any) -> CTVolume:
    """A volume of 0 HU with some scan's geometry, or another in part; it takes no memory for its voxels."""
    hu = np.broadcast_to(np.int16(0), tuple(like.shape if shape is None else shape))
    return dataclasses.replace(like, hu=hu, provenance=Provenance(), **geometry)
