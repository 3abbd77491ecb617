"""Where a scan carries a key's watermark, and where it should and does not: what was painted there afterwards.

The evidence is that of :mod:`.sums`. Arrays of blocks are (slice, block row, block column), turned so that rows and
columns run along growing LPS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..budget.budget import Budget
from ..errors import TargetError
from ..scan.volume import CTVolume, Provenance
from .embedding import Watermark, recorded_watermark, versions
from .fading import faded, with_lost_padding
from .pattern import OPEN_KEY, Grid, WatermarkKey, block_sums
from .places import DEGRADED_THRESHOLD_SD, PLACE_THRESHOLD_SD, Place
from .regridding import Regridding, find_regridding
from .sums import BLOCK, FOUND_SD, SURROUNDING_MM, Reading, Sums, deviations, enlarge

Progress = Callable[[int, int], None]

UNKNOWN, MARKED, ALTERED = range(3)
"""Classes of blocks: too little signal to tell, the watermark is there, it should be there and is not."""

# Of what an attack leaves in the scan: a nodule of its own size, or the 20 mm that CT-GAN paints.
WINDOWS_MM = (9.0, 14.0, 20.0)
"""Edges of the windows in which a loss is sought."""
SIGMAS_MM = (4.0, 6.0, 8.0)
"""Widths of Gaussian surroundings in the lungs. Wide ones tell more where little of a watermark is left."""
# A window tells where so many standard deviations are expected, and misses the watermark below both of these.
_TELLING, _MISSING_SD, _MISSING_SHARE = 8.0, 4.0, 0.3
# Lossy compression takes more from smooth tissue than from the rest, and nobody can tell that from forgery: 5:1
# JPEG 2000 leaves a quarter on LIDC-IDRI-0002, and 93 places would be listed in an untouched copy.
_DEGRADED_GAIN = 0.6
_TOLD_SLICES = 12  # that tell which watermark it is
_SMALLEST_MM3 = 150.0


@dataclass(frozen=True)
class MissingRegion:
    """A place where the watermark is missing.

    :param kji: voxel (slice, row, column) in its middle.
    :param lps_mm: the same in the patient.
    :param size_mm: extent along (slice, row, column) of the middles of windows without it, roughly what was painted.
    :param share: of the expected watermark that is left where least is left.
    """

    kji: tuple[int, int, int]
    lps_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    share: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"kji": self.kji, "lps_mm": self.lps_mm, "size_mm": self.size_mm, "share": self.share}


@dataclass(frozen=True, eq=False)
class Check:
    """What a check found.

    :param sd: how many standard deviations the whole scan's watermark stands out.
    :param gain: its strength beside that of an unchanged copy, 1 where nothing was lost and the budget is the right
        one; of the finest of it, which goes first.
    :param seen: (windows, slices, block rows, block columns): how much of it a window of each size around each block
        holds, in standard deviations.
    :param expected: of the same shape: what it would be if the window were like its surroundings.
    :param seen_in_lungs: as ``seen``, in Gaussian surroundings within the lungs, of sigmas :data:`SIGMAS_MM`.
    :param expected_in_lungs: as ``expected``, likewise.
    :param classes: uint8 (slices, block rows, block columns), of :data:`UNKNOWN`, :data:`MARKED` and :data:`ALTERED`;
        all unknown without a watermark, or with one that has lost too much.
    :param regions: where it is missing, the largest first.
    :param regridded: where the copy lies on the marked scan's grid; None where that is its own.
    """

    volume: CTVolume
    sd: float
    gain: float
    seen: np.ndarray
    expected: np.ndarray
    seen_in_lungs: np.ndarray
    expected_in_lungs: np.ndarray
    classes: np.ndarray
    regions: tuple[MissingRegion, ...]
    regridded: Regridding | None = None

    @property
    def regridding(self) -> str:
        """What was done to the grid of the marked scan, in words; empty where nothing was."""
        return self.regridded.words if self.regridded else ""

    @property
    def is_found(self) -> bool:
        """Whether the scan carries the key's watermark at all."""
        return self.sd >= FOUND_SD

    @property
    def telling_share(self) -> float:
        """Share of the blocks with any watermark where the check can tell."""
        return float((self.classes != UNKNOWN).sum() / max(1, (self.expected[-1] > 0).sum()))

    @property
    def is_degraded(self) -> bool:
        """Whether so much of it is lost everywhere that places where it is missing cannot be listed."""
        return self.is_found and self.gain < _DEGRADED_GAIN

    def at(self, kji: tuple[int, int, int]) -> Place:
        """What is left of it at a voxel (slice, row, column), in the window that shows a loss most.

        :raises TargetError: as :meth:`block_of`.
        """
        block = self.block_of(kji)
        seen, expected = (values[:, block[0], block[1], block[2]] for values in (self.seen, self.expected))
        window = int(np.argmax(expected - seen))
        threshold = DEGRADED_THRESHOLD_SD if self.is_degraded else PLACE_THRESHOLD_SD
        return Place(kji, WINDOWS_MM[window], float(seen[window]), float(expected[window]), threshold)

    def block_of(self, kji: tuple[int, int, int]) -> tuple[int, int, int]:
        """The block of a voxel (slice, row, column); the nearest where rows or columns fill no tile.

        :raises TargetError: outside the scan, or its slices are smaller than a tile.
        """
        if not self.volume.contains(kji):
            raise TargetError(f"Voxel {kji} lies outside the scan of {self.volume.shape} voxels; choose another.")
        if not self.classes.size:
            raise TargetError(f"Slices of {self.volume.shape[1]} x {self.volume.shape[2]} voxels hold no watermark.")
        flips = Grid.of(self.volume).flips
        inner = (
            (index if flip > 0 else size - 1 - index) // BLOCK
            for index, flip, size in zip(kji[1:], flips, self.volume.shape[1:], strict=True)
        )
        return kji[0], *(min(block, count - 1) for block, count in zip(inner, self.classes.shape[1:], strict=True))

    def class_volume(self) -> CTVolume:
        """A label map of the scan's geometry: the class of each voxel."""
        found = np.zeros(self.volume.shape, np.int16)
        grid = Grid.of(self.volume)
        for plane, classes in zip(found, self.classes, strict=True):
            large = enlarge(classes, BLOCK)
            grid.turned(plane)[: large.shape[0], : large.shape[1]] = large
        return dataclasses.replace(self.volume, hu=found, provenance=Provenance())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "found": self.is_found,
            "sd": round(self.sd, 2),
            "gain": round(self.gain, 4),
            "degraded": self.is_degraded,
            "regridding": self.regridding,
            "telling_share": round(self.telling_share, 4),
            "regions": [region.to_dict() for region in self.regions],
        }


def check_watermark(
    volume: CTVolume, key: WatermarkKey = OPEN_KEY, *, budget: Budget | None = None, progress: Progress | None = None
) -> Check:
    """Look for the key's watermark everywhere in a scan, also on another grid than the one that was marked.

    :param budget: that the watermark was embedded with; None takes that of :func:`likely_watermark`. Another one makes
        it look weaker or stronger than it is.
    :param progress: called with (finished slices, all slices); may raise ``CancelledError``.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    used = likely_watermark(volume, key, budget)
    return check_on(volume, used, find_grid(volume, used, progress), progress)


def find_grid(volume: CTVolume, watermark: Watermark, progress: Progress | None = None) -> Regridding | None:
    """The grid on which a copy carries its signs, where that is not its own; None where it is, or none is found.

    The search takes seconds, up to a minute. Only copies pay for it whose middle slices hold nothing of the watermark.

    :param watermark: of :func:`likely_watermark`; where the copy does not say which it is, older signs are sought, too.
    :param progress: called with (0, all slices) now and then; may raise ``CancelledError``.
    """
    if shows(volume, watermark):
        return None
    is_told = recorded_watermark(volume, watermark.key) is not None
    others = () if is_told else tuple(one.key for one in versions(watermark.key))

    def alive() -> None:
        if progress:
            progress(0, volume.shape[0])

    return find_regridding(volume, (watermark.key, *others), watermark.budget, alive)


def check_on(
    volume: CTVolume, watermark: Watermark, regridding: Regridding | None, progress: Progress | None = None
) -> Check:
    """Look for a watermark everywhere, on the grid that its signs were found on or else on the scan's own.

    :param regridding: of :func:`find_grid`.
    :param progress: called with (finished slices, all slices); may raise ``CancelledError``.
    """
    if regridding is None:
        return _check(volume, watermark, progress)
    moved = regridding.moved(volume)
    is_usual = watermark.budget in [one.budget for one in versions(watermark.key)]
    own = likely_watermark(moved, watermark.key, None if is_usual else watermark.budget)
    check = _check(moved, own, progress, is_moved=True)
    return _seen_in(volume, check, regridding) if check.is_found else _check(volume, watermark, None)


def likely_watermark(volume: CTVolume, key: WatermarkKey = OPEN_KEY, budget: Budget | None = None) -> Watermark:
    """What a scan was marked with: as its provenance says, or else, as most formats lose that, as its signs tell.

    The newest where nothing tells.

    :param key: of whatever version.
    :param budget: that it was put in with, where that is known.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    recorded = recorded_watermark(volume, key)
    if recorded is not None:
        return recorded if budget is None else dataclasses.replace(recorded, budget=budget)
    candidates = versions(key)
    if budget is not None:
        candidates = tuple(dataclasses.replace(one, budget=budget) for one in candidates[:2])
    reading = Reading.of(_some_slices(volume), key, candidates[0].budget)

    def explained(watermark: Watermark) -> float:
        of_budget = dataclasses.replace(watermark.budget, noise_share=reading.budget.noise_share)
        sums = Sums.of(dataclasses.replace(reading, key=watermark.key, budget=of_budget))
        if sums.sd < FOUND_SD:
            return 0.0
        return float(sums.correlation.sum()) ** 2 / max(float(sums.full.sum()), 1e-12)

    return max(candidates, key=explained)


def shows(volume: CTVolume, watermark: Watermark) -> bool:
    """Whether some slices in the middle hold anything of a watermark, on the volume's own grid; takes a second or two.

    What was compressed or smoothed holds it faded.
    """
    reading = Reading.of(_some_slices(volume), watermark.key, watermark.budget)
    return Sums.of(reading).sd >= FOUND_SD or faded(with_lost_padding(reading)) is not None


def _some_slices(volume: CTVolume) -> CTVolume:
    first = max(0, (volume.shape[0] - _TOLD_SLICES) // 2)
    return _slab(volume, slice(first, first + _TOLD_SLICES))


def _slab(volume: CTVolume, some: slice) -> CTVolume:
    return dataclasses.replace(volume, hu=volume.hu[some], origin=tuple(volume.voxel_to_lps((some.start, 0, 0))))


def _check(volume: CTVolume, watermark: Watermark, progress: Progress | None, *, is_moved: bool = False) -> Check:
    """Look on the grid of the volume alone.

    :param is_moved: whether it was moved there, so that most of the watermark may be lost.
    """
    reading = with_lost_padding(Reading.of(volume, watermark.key, watermark.budget))
    processed = faded(reading) if is_moved else None
    sd, gain = 0.0, processed[1] if processed else 0.0
    if processed is None or gain >= _DEGRADED_GAIN:
        sums = Sums.of(reading, progress)
        sd, gain = sums.sd, sums.gain
    if sd < FOUND_SD or gain < _DEGRADED_GAIN:
        processed = processed or faded(reading)
        if processed is not None:
            sums = Sums.of(processed[0], progress and (lambda _done, of: progress(of, of)))
            sd = sums.sd
    mm = (volume.spacing_kji[0], *(BLOCK * step for step in volume.spacing_kji[1:]))
    left = sums.left(mm)
    evidence = [deviations(sums, left, size_mm, mm) for size_mm in WINDOWS_MM]
    seen, expected = (np.stack(values) for values in zip(*evidence, strict=True))
    in_lungs = [sums.in_lungs(left, sigma_mm, mm) for sigma_mm in SIGMAS_MM]
    around = [np.stack(values) for values in zip(*in_lungs, strict=True)]
    classes = np.zeros(sums.full.shape, np.uint8)
    regions: tuple[MissingRegion, ...] = ()
    if sd >= FOUND_SD and gain >= _DEGRADED_GAIN:
        telling = (expected >= _TELLING) & (expected[0] > 0)
        missing = telling & (seen < np.maximum(_MISSING_SD, _MISSING_SHARE * expected))
        altered = _without_specks(missing.any(axis=0), float(np.prod(mm)))
        classes[telling.any(axis=0)] = MARKED
        classes[altered] = ALTERED
        share = np.where(telling, seen / np.where(telling, expected, 1), 1).min(axis=0)
        regions = _regions(volume, altered, share)
    return Check(volume, sd, gain, seen, expected, *around, classes, regions)


def _seen_in(copy: CTVolume, moved: Check, regridding: Regridding) -> Check:
    """What was found on the marked scan's grid, in the blocks of the copy."""
    grid = Grid.of(copy)
    shape = (copy.shape[0], *block_sums(copy.hu[0], BLOCK).shape)
    at = [np.arange(shape[0], dtype=float)]
    for count, size, flip in zip(shape[1:], copy.shape[1:], grid.flips, strict=True):
        middle = (np.arange(count) + 0.5) * BLOCK - 0.5
        at.append(middle if flip > 0 else size - 1 - middle)
    voxels = np.stack(np.meshgrid(*at, indexing="ij")).reshape(3, -1)
    on_grid = regridding.to_grid[:3, :3] @ voxels + regridding.to_grid[:3, 3:]
    # The grid's own rows and columns run along growing LPS.
    blocks = np.stack([np.rint(on_grid[0]), *np.floor((on_grid[1:] + 0.5) / BLOCK)]).astype(int)
    sizes = np.array(moved.classes.shape)[:, None]
    inside = ((blocks >= 0) & (blocks < sizes)).all(axis=0)
    flat = np.ravel_multi_index(tuple(np.clip(blocks, 0, sizes - 1)), moved.classes.shape)

    def taken(values: np.ndarray) -> np.ndarray:
        return np.where(inside, values.ravel()[flat], 0).astype(values.dtype).reshape(shape)

    regions = []
    back = np.linalg.inv(regridding.to_grid)
    for region in moved.regions:
        kji = tuple(int(index) for index in np.rint(back[:3, :3] @ region.kji + back[:3, 3]))
        if copy.contains(kji):
            lps = tuple(round(float(value), 1) for value in copy.voxel_to_lps(kji))
            size = np.abs(back[:3, :3] @ np.divide(region.size_mm, moved.volume.spacing_kji)) * copy.spacing_kji
            size_mm = tuple(round(float(mm), 1) for mm in size)
            regions.append(dataclasses.replace(region, kji=kji, lps_mm=lps, size_mm=size_mm))
    return dataclasses.replace(
        moved,
        volume=copy,
        seen=np.stack([taken(values) for values in moved.seen]),
        expected=np.stack([taken(values) for values in moved.expected]),
        seen_in_lungs=np.stack([taken(values) for values in moved.seen_in_lungs]),
        expected_in_lungs=np.stack([taken(values) for values in moved.expected_in_lungs]),
        classes=taken(moved.classes),
        regions=tuple(regions),
        regridded=regridding,
    )


def check_place(volume: CTVolume, kji: tuple[int, int, int], key: WatermarkKey = OPEN_KEY) -> Place | None:
    """What is left of the watermark around one voxel, from the slices around it alone; None where there is none.

    As :meth:`Check.at` of the whole scan, but for the filter, which is learned from fewer slices, and on its own grid
    alone.

    :param kji: voxel (slice, row, column).
    :raises TargetError: outside the scan.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    if not volume.contains(kji):
        raise TargetError(f"Voxel {kji} lies outside the scan of {volume.shape} voxels; choose another.")
    reach = int(np.ceil((SURROUNDING_MM + WINDOWS_MM[-1]) / 2 / volume.spacing_kji[0])) + 1
    first = max(0, kji[0] - reach)
    slab = _slab(volume, slice(first, kji[0] + reach + 1))
    check = _check(slab, likely_watermark(volume, key), None)
    return dataclasses.replace(check.at((kji[0] - first, *kji[1:])), kji=kji) if check.is_found else None


def _without_specks(missing: np.ndarray, block_mm3: float) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(missing, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * block_mm3
    sizes[0] = 0
    return sizes[labels] >= _SMALLEST_MM3


def _regions(volume: CTVolume, missing: np.ndarray, share: np.ndarray) -> tuple[MissingRegion, ...]:
    from scipy import ndimage

    labels, _ = ndimage.label(missing, np.ones((3, 3, 3)))
    flips = Grid.of(volume).flips
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        here = labels[box] == number
        middle = [part.start + index for part, index in zip(box, ndimage.center_of_mass(here), strict=True)]
        size = [(part.stop - part.start) for part in box]
        kji = [round(middle[0])]
        for axis, flip in zip((1, 2), flips, strict=True):
            index = int((middle[axis] + 0.5) * BLOCK)
            kji.append(index if flip > 0 else volume.shape[axis] - 1 - index)
            size[axis] *= BLOCK
        size_mm = tuple(round(float(n * step), 1) for n, step in zip(size, volume.spacing_kji, strict=True))
        lps = tuple(round(float(value), 1) for value in volume.voxel_to_lps(kji))
        found.append((here.sum(), MissingRegion(tuple(kji), lps, size_mm, round(float(share[box][here].min()), 3))))
    return tuple(region for _, region in sorted(found, key=lambda pair: -pair[0]))
