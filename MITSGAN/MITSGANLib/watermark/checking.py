"""Where a scan carries a key's watermark, and where it should and does not: what was painted there afterwards.

The evidence is that of :mod:`.sums`, and arrays of blocks are those of :mod:`.blocks`.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..budget.budget import Budget
from ..errors import TargetError
from ..runtime.progress import Progress
from ..scan.volume import CTVolume, Provenance
from .blocks import BLOCK, BlockGrid
from .embedding import Watermark, recorded_watermark, versions
from .fading import faded, with_lost_padding
from .pattern import OPEN_KEY, VERSION, WatermarkKey
from .regridding import Regridding, find_regridding
from .sums import FOUND_SD, SURROUNDING_MM, Reading, Sums

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
# A whole scan has a million places, so that what is listed must be far beyond chance. Of one place that is asked about,
# less is enough.
# Of 200 untouched places in each of LIDC-IDRI-0002 and -0028, 5 % fell short by more than 1.1 and 1.4, 1 % by 1.4 and
# 1.8; after 5:1 JPEG 2000, 5 % by 5.9 and 5.2. Real nodules scatter more than lung: a limit that follows what untouched
# lung falls short by, 1.1 on the thin slices of RIDER-Pilot-0117, found more forgeries and called 20 % of the planted
# nodules there forged (docs/research/protector-log.md).
_PLACE_SD, _DEGRADED_PLACE_SD = 2.0, 6.0


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


@dataclass(frozen=True)
class Place:
    """What is left of the watermark around one voxel that somebody asks about.

    :param window_mm: edge of the window that shows a loss most.
    :param seen: how much the window holds, in standard deviations.
    :param expected: what it would hold if it were like its surroundings.
    :param threshold: what it may fall short by at an untouched place, in standard deviations.
    """

    kji: tuple[int, int, int]
    window_mm: float
    seen: float
    expected: float
    threshold: float = _PLACE_SD

    @property
    def missing_sd(self) -> float:
        """By how many standard deviations it falls short."""
        return self.expected - self.seen

    @property
    def is_missing(self) -> bool:
        """Whether it falls short by more than it may at an untouched place."""
        return self.can_tell and self.missing_sd > self.threshold

    @property
    def can_tell(self) -> bool:
        """Whether so much of it is expected that its absence would be noticed."""
        return self.expected > self.threshold

    @property
    def words(self) -> str:
        """One sentence for people."""
        figures = f"{self.seen:.1f} of {self.expected:.1f} standard deviations are left in {self.window_mm:.0f} mm"
        if self.is_missing:
            return f"watermark MISSING: {figures}."
        return f"watermark there: {figures}." if self.can_tell else f"cannot be told: {figures}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "kji": self.kji,
            "window_mm": self.window_mm,
            "seen_sd": round(self.seen, 2),
            "expected_sd": round(self.expected, 2),
            "threshold_sd": round(self.threshold, 2),
            "missing": self.is_missing,
            "can_tell": self.can_tell,
        }


@dataclass(frozen=True, eq=False)
class Check:
    """What a check found.

    :param sd: how many standard deviations the whole scan's watermark stands out.
    :param gain: its strength beside that of an unchanged copy, 1 where nothing was lost and the budget is the right
        one; of the finest of it, which goes first.
    :param seen: (windows, slices, block rows, block columns): how much of it a window of each size of
        :data:`WINDOWS_MM` around each block holds, in standard deviations.
    :param expected: of the same shape: what it would be if the window were like its surroundings.
    :param seen_in_lungs: as ``seen``, in Gaussian surroundings within the lungs, of sigmas :data:`SIGMAS_MM`.
    :param expected_in_lungs: as ``expected``, likewise.
    :param classes: uint8 (slices, block rows, block columns), of :data:`UNKNOWN`, :data:`MARKED` and :data:`ALTERED`;
        all unknown without a watermark, or with one that has lost too much.
    :param regions: where it is missing, the largest first.
    :param regridded: where the copy lies on the marked scan's grid; None where that is its own.
    """

    blocks: BlockGrid
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
    def volume(self) -> CTVolume:
        """The scan."""
        return self.blocks.volume

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
        seen, expected = (values[:, *block] for values in (self.seen, self.expected))
        window = int(np.argmax(expected - seen))
        threshold = _DEGRADED_PLACE_SD if self.is_degraded else _PLACE_SD
        return Place(kji, WINDOWS_MM[window], float(seen[window]), float(expected[window]), threshold)

    def block_of(self, kji: tuple[int, int, int]) -> tuple[int, int, int]:
        """The block of a voxel (slice, row, column); the nearest where rows or columns fill no tile.

        :raises TargetError: outside the scan, or its slices are smaller than a tile.
        """
        if not self.volume.contains(kji):
            raise TargetError(f"Voxel {kji} lies outside the scan of {self.volume.shape} voxels; choose another.")
        if not self.classes.size:
            raise TargetError(f"Slices of {self.volume.shape[1]} x {self.volume.shape[2]} voxels hold no watermark.")
        return self.blocks.block_of(kji)

    def class_volume(self) -> CTVolume:
        """A label map of the scan's geometry: the class of each voxel."""
        return dataclasses.replace(self.volume, hu=self.blocks.voxels(self.classes), provenance=Provenance())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "found": self.is_found,
            "sd": round(self.sd, 2),
            "gain": round(self.gain, 4),
            "degraded": self.is_degraded,
            "regridding": self.regridding,
            "telling_share": round(self.telling_share, 4),
            "regions": [dataclasses.asdict(region) for region in self.regions],
        }


@dataclass(frozen=True, eq=False)
class Glance:
    """What some slices in the middle of a scan, on its own grid, tell of a key's watermark; they are read once.

    Reading them raises ``DependencyError`` where the package cryptography cannot be imported.

    :param key: of whatever version.
    :param budget: that the watermark was put in with, where that is known.
    """

    volume: CTVolume
    key: WatermarkKey = OPEN_KEY
    budget: Budget | None = None

    @functools.cached_property
    def candidates(self) -> tuple[Watermark, ...]:
        """What the scan's provenance says that it was marked with; all that it may be, where it says nothing."""
        recorded = recorded_watermark(self.volume, self.key)
        found = versions(self.key) if recorded is None else (recorded,)
        if self.budget is None:
            return found
        return tuple(dataclasses.replace(one, budget=self.budget) for one in found[:2])

    @property
    def watermark(self) -> Watermark:
        """What the scan was marked with: the candidate that explains most, the newest where none does."""
        return self.candidates[0] if len(self.candidates) == 1 else self._told[0]

    @functools.cached_property
    def is_marked(self) -> bool:
        """Whether the slices hold anything of the watermark. What was compressed or smoothed holds it faded."""
        return self._told[1] > 0 or faded(with_lost_padding(self._reading)) is not None

    @functools.cached_property
    def _reading(self) -> Reading:
        first = max(0, (self.volume.shape[0] - _TOLD_SLICES) // 2)
        some = _slab(self.volume, slice(first, first + _TOLD_SLICES))
        return Reading.of(some, self.candidates[0].key, self.candidates[0].budget)

    @functools.cached_property
    def _told(self) -> tuple[Watermark, float]:
        """The candidate that explains most of the signs, and how much that is."""
        best, most = self.candidates[0], 0.0
        for one in self.candidates:
            of_budget = dataclasses.replace(one.budget, noise_share=self._reading.budget.noise_share)
            sums = Sums.of(dataclasses.replace(self._reading, key=one.key, budget=of_budget))
            if sums.sd < FOUND_SD:
                continue
            explained = float(sums.correlation.sum()) ** 2 / max(float(sums.full.sum()), 1e-12)
            if explained > most:
                best, most = one, explained
            if one.key.version == VERSION:  # older ones share none of its signs
                break
        return best, most


def check_watermark(
    volume: CTVolume, key: WatermarkKey = OPEN_KEY, *, budget: Budget | None = None, progress: Progress | None = None
) -> Check:
    """Look for the key's watermark everywhere in a scan, also on another grid than the one that was marked.

    :param budget: that the watermark was embedded with; None takes that of a :class:`Glance`. Another one makes it look
        weaker or stronger than it is.
    :param progress: hears of slices.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    glance = Glance(volume, key, budget)
    return check_on(volume, glance.watermark, find_grid(glance, progress), progress)


def find_grid(glance: Glance, progress: Progress | None = None) -> Regridding | None:
    """The grid on which a copy carries its signs, where that is not its own; None where it is, or none is found.

    The search takes seconds, up to a minute. Only copies pay for it whose middle slices hold nothing of the watermark.
    Where the copy does not say which watermark it is, older signs are sought, too.

    :param progress: called with (0, all slices) now and then.
    """
    if glance.is_marked:
        return None
    volume, likely = glance.volume, glance.watermark
    keys = (likely.key, *(one.key for one in glance.candidates))
    return find_regridding(volume, keys, likely.budget, lambda: progress and progress(0, volume.shape[0]))


def check_on(
    volume: CTVolume, watermark: Watermark, regridding: Regridding | None, progress: Progress | None = None
) -> Check:
    """Look for a watermark everywhere, on the grid that its signs were found on or else on the scan's own.

    :param regridding: of :func:`find_grid`.
    """
    if regridding is None:
        return _check(volume, watermark, progress)
    moved = regridding.moved(volume)
    is_usual = watermark.budget in [one.budget for one in versions(watermark.key)]
    own = Glance(moved, watermark.key, None if is_usual else watermark.budget).watermark
    check = _check(moved, own, progress, is_moved=True)
    return _seen_in(volume, check, regridding) if check.is_found else _check(volume, watermark, None)


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
    seen, expected = map(np.stack, zip(*map(sums.in_boxes, WINDOWS_MM), strict=True))
    around = map(np.stack, zip(*map(sums.in_lungs, SIGMAS_MM), strict=True))
    classes = np.zeros(sums.full.shape, np.uint8)
    regions: tuple[MissingRegion, ...] = ()
    if sd >= FOUND_SD and gain >= _DEGRADED_GAIN:
        telling = (expected >= _TELLING) & (expected[0] > 0)
        missing = telling & (seen < np.maximum(_MISSING_SD, _MISSING_SHARE * expected))
        share = np.where(telling, seen / np.where(telling, expected, 1), 1).min(axis=0)
        altered, regions = _regions(sums.blocks, missing.any(axis=0), share)
        classes[telling.any(axis=0)] = MARKED
        classes[altered] = ALTERED
    return Check(sums.blocks, sd, gain, seen, expected, *around, classes, regions)


def _seen_in(copy: CTVolume, moved: Check, regridding: Regridding) -> Check:
    """What was found on the marked scan's grid, in the blocks of the copy."""
    blocks = BlockGrid.of(copy)
    voxels = np.stack(np.meshgrid(*blocks.middles(), indexing="ij")).reshape(3, -1)
    on_grid = regridding.to_grid[:3, :3] @ voxels + regridding.to_grid[:3, 3:]
    # The grid's own rows and columns run along growing LPS.
    there = np.stack([np.rint(on_grid[0]), *np.floor((on_grid[1:] + 0.5) / BLOCK)]).astype(int)
    sizes = np.array(moved.classes.shape)[:, None]
    inside = ((there >= 0) & (there < sizes)).all(axis=0)
    there = tuple(np.clip(there, 0, sizes - 1))

    def taken(name: str) -> np.ndarray:
        values = getattr(moved, name)
        return np.where(inside, values[..., *there], 0).astype(values.dtype).reshape(*values.shape[:-3], *blocks.shape)

    regions = []
    back = np.linalg.inv(regridding.to_grid)
    for region in moved.regions:
        kji = tuple(int(index) for index in np.rint(back[:3, :3] @ region.kji + back[:3, 3]))
        if copy.contains(kji):
            lps = tuple(round(float(value), 1) for value in copy.voxel_to_lps(kji))
            size = np.abs(back[:3, :3] @ np.divide(region.size_mm, moved.volume.spacing_kji)) * copy.spacing_kji
            size_mm = tuple(round(float(mm), 1) for mm in size)
            regions.append(dataclasses.replace(region, kji=kji, lps_mm=lps, size_mm=size_mm))
    maps = {name: taken(name) for name in ("seen", "expected", "seen_in_lungs", "expected_in_lungs", "classes")}
    return dataclasses.replace(moved, blocks=blocks, regions=tuple(regions), regridded=regridding, **maps)


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
    check = _check(slab, Glance(volume, key).watermark, None)
    return dataclasses.replace(check.at((kji[0] - first, *kji[1:])), kji=kji) if check.is_found else None


def _regions(blocks: BlockGrid, missing: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, tuple[MissingRegion, ...]]:
    """Blocks without the watermark that are no specks, and what they make together, the largest first."""
    from scipy import ndimage

    labels, _ = ndimage.label(missing, np.ones((3, 3, 3)))
    large, found = np.zeros_like(missing), []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        here = labels[box] == number
        if here.sum() * float(np.prod(blocks.mm)) < _SMALLEST_MM3:
            continue
        large[box] |= here
        kji = blocks.middle([part.start + at for part, at in zip(box, ndimage.center_of_mass(here), strict=True)])
        size_mm = tuple(round((part.stop - part.start) * mm, 1) for part, mm in zip(box, blocks.mm, strict=True))
        lps = tuple(round(float(value), 1) for value in blocks.volume.voxel_to_lps(kji))
        found.append((here.sum(), MissingRegion(kji, lps, size_mm, round(float(share[box][here].min()), 3))))
    return large, tuple(region for _, region in sorted(found, key=lambda pair: -pair[0]))
