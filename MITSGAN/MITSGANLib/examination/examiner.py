"""One examiner for every scan: all evidence that its voxels and headers hold, and one verdict."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import TargetError
from ..files.dicom.drill import is_drill_step
from ..judges.judge import DEFAULT_JUDGES, Judge, load_judge
from ..scan.filters import correlate
from ..scan.lungs import lung_positions
from ..scan.volume import SIMULATED_ATTACK, CTVolume, Provenance
from ..watermark.checking import Check, check_on, find_grid, likely_watermark, shows
from ..watermark.embedding import recorded_watermark
from ..watermark.pattern import OPEN_KEY, WatermarkKey
from ..watermark.sums import FOUND_SD
from .blocks import AT_PLEURA, Blocks
from .copies import Copy, find_copies
from .noise import fine_kernel, noise_map, residual
from .placement import Placement
from .suspicion import (
    COARSE_NOISE,
    COLOR,
    FOREIGN,
    NEAR_MM,
    NOISE,
    WATERMARK,
    Suspicion,
    asked_limit,
    of_faded_watermark,
    of_foreign_noise,
    of_noise,
    of_watermark,
    together,
)
from .touch_up import TouchUp, find_touch_up, touch_up_edge
from .verdict import ChangedPlace, Evidence, Outcome, Verdict, Voxel
from .whitened import WHOLE_GAIN, Whitened, whiten

Progress = Callable[[int, int], None]

UNTOLD, TOLD, CHANGED = range(3)
"""Values of the map: outside the lungs or cannot be told, nothing found, changed."""

COPY, TOUCH_UP, JUDGE = "copied tissue", "CT-GAN's noise source", "forensic judge"

MOST_OF_THE_LUNGS = 0.5
_SMALLEST_MM3 = 50.0
_EDGE_SCORE = 0.7  # from here on blocks belong to a place that is listed
_COPY_SD, _DEGRADED_COPY_SD = 11.0, 15.0
# The judge is asked where evidence alone does not suffice, and beside other places of the same scan.
_WORTH_ASKING, _MOST_ASKED, _COMPARED = 0.75, 30, 60
_WORTH_SAYING = 0.5  # of what counts
_JUDGE_SURE = 0.985
_SEED = 5
_UNMARKED = (
    "it carries no watermark that could be read, so that only its noise and copied tissue could speak: "
    "of what networks add, and of edits that keep the noise, most would not show"
)


@dataclass(frozen=True)
class _Mark:
    """The watermark over the whole scan: how many standard deviations it stands out, and what share of it is left."""

    sd: float
    gain: float
    is_degraded: bool
    regridding: str = ""

    @property
    def is_found(self) -> bool:
        return self.sd >= FOUND_SD


@dataclass(frozen=True, eq=False)
class Examination:
    """What was found in a scan's voxels.

    Places are told in the voxels of the copy as it is stored. Blocks and copies are of what is examined of it.

    :param placement: where the copy's voxels lie in what is examined.
    :param lungs: bool (slices, block rows, block columns).
    :param suspicions: each kind of evidence in every block.
    :param mark: the watermark, over the whole scan.
    :param copies: of tissue, and of CT-GAN's noise.
    :param touch_up: where CT-GAN's noise is; None where its source holds no lung, so that it could not be sought.
    """

    placement: Placement
    blocks: Blocks
    lungs: np.ndarray
    suspicions: tuple[Suspicion, ...]
    mark: _Mark
    copies: tuple[Copy, ...]
    touch_up: TouchUp | None
    with_judge: bool
    places: tuple[ChangedPlace, ...]
    verdict: Verdict

    @property
    def volume(self) -> CTVolume:
        """The copy."""
        return self.placement.copy

    @functools.cached_property
    def asked_limit(self) -> float:
        """What is an alarm at a place that somebody asks about."""
        from scipy import ndimage

        size = [2 * max(1, round(NEAR_MM / edge)) + 1 for edge in self.blocks.mm]
        return asked_limit(ndimage.maximum_filter(together(self.suspicions), size), self.lungs)

    @functools.cached_property
    def judge_limit(self) -> float:
        """What the judge says of hardly any place of this scan, nor of others."""
        return _judge_limit(self.blocks.volume, _judge())

    def at(self, kji: Voxel) -> ChangedPlace:
        """What is to be said of a voxel (slice, row, column) that somebody asks about.

        A strength of 1 is an alarm there, which takes less than to be listed.

        :raises TargetError: outside the scan.
        """
        if not self.volume.contains(kji):
            raise TargetError(f"Voxel {kji} lies outside the scan of {self.volume.shape} voxels; choose another.")
        blocks, kji = self.blocks, self.placement.inside(kji)
        volume = blocks.volume
        box = _box_around(blocks, kji, (2 * NEAR_MM,) * 3)
        near = together([dataclasses.replace(one, score=one.score[box]) for one in self.suspicions])
        most = np.unravel_index(int(near.argmax()), near.shape)
        tops = [(one.kind, float(one.score[box][most])) for one in self.suspicions]
        limit = self.asked_limit
        evidence = [
            Evidence(kind, _words(kind, top, limit), top / limit) for kind, top in tops if top > _WORTH_SAYING * limit
        ]
        source = None
        for copy in self.copies:
            if _within(kji, copy, volume.spacing_kji):
                evidence.append(_of_copy(copy, self.placement))
                source = copy.source_kji
        touched = self.touch_up
        if touched is not None and (dense := float(touched.dense[blocks.block_of(kji)])) >= 1:
            evidence.append(_of_dense_touch_up(dense, touched.source_kji, self.placement))
            source = source or touched.source_kji
        if self.with_judge:
            score = float(_judge().score(volume, [kji])[0])
            if score >= self.judge_limit:
                evidence.append(_of_judge(score, self.judge_limit))
        evidence.sort(key=lambda one: -one.strength)
        return _place(self.placement, kji, (0.0, 0.0, 0.0), evidence, source, float(near.max()) / limit)

    def can_tell(self, kji: Voxel) -> bool:
        """Whether any kind of evidence would show a forgery at a voxel."""
        block = self.block_of(kji)
        return any(bool(one.told[block]) for one in self.suspicions)

    def block_of(self, kji: Voxel) -> Voxel:
        """The block of a voxel (slice, row, column)."""
        return self.blocks.block_of(self.placement.inside(kji))

    def voxels(self, values: np.ndarray) -> np.ndarray:
        """Each block's value at all voxels of the copy, int16 of its shape; 0 at those that are in no block."""
        return self.placement.values_outside(self.blocks.voxels(values))

    def class_volume(self) -> CTVolume:
        """A label map of the scan's geometry: :data:`UNTOLD`, :data:`TOLD` or :data:`CHANGED` of each voxel."""
        classes = np.zeros(self.lungs.shape, np.uint8)
        classes[np.any([one.told for one in self.suspicions], axis=0)] = TOLD
        classes[together(self.suspicions) >= 1] = CHANGED
        labels = self.voxels(classes)
        for place in self.places:
            half = np.maximum(np.array(place.size_mm) / 2 / self.volume.spacing_kji, 1).astype(int)
            box = tuple(slice(max(0, at - n), at + n + 1) for at, n in zip(place.kji, half, strict=True))
            labels[box] = CHANGED
        return dataclasses.replace(self.volume, hu=labels, provenance=Provenance())


def examine(
    volume: CTVolume,
    *,
    key: WatermarkKey = OPEN_KEY,
    with_judge: bool = True,
    progress: Progress | None = None,
) -> Examination:
    """Look for everything that was changed in a chest CT, wherever it is.

    :param key: of the watermark; the open one where none is given.
    :param with_judge: whether the forensic judge is asked at suspicious places, which needs torch.
    :param progress: called with (finished parts, all parts); may raise ``CancelledError``.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    told = _Told(progress, 100)
    placement, blocks, whitened, check = _placed(volume, key, told)
    lungs = blocks.lungs()
    marks = [] if whitened is None else [of_foreign_noise(blocks, whitened, blocks.lungs(AT_PLEURA))]
    if check is None:
        mark = _Mark(whitened.sd, whitened.gain, False, placement.words)
        marks.append(of_watermark(blocks, whitened, lungs))
    else:
        words = ", ".join(filter(None, (placement.words, check.regridding)))
        mark = _Mark(check.sd, check.gain, check.is_degraded, words)
        marks.append(of_faded_watermark(check, lungs))
    told.at(45)
    kernel = fine_kernel(blocks.volume)
    fine = residual(blocks.volume, kernel)
    added = None if check is not None else functools.partial(_added, whitened, kernel)
    suspicions = [*of_noise(noise_map(blocks, fine, added), lungs), *marks]
    del whitened, check, added
    told.at(60)
    copies = find_copies(blocks, fine, lungs) if lungs.any() else []
    told.at(80)
    is_lossy = mark.is_degraded if mark.is_found else None
    touched = find_touch_up(blocks, fine, kernel, lungs, is_lossy=is_lossy) if lungs.any() else None
    told.at(95)
    del fine
    # Lossy compression repeats itself, and more so in one place than in another.
    copies = [one for one in copies if one.sd >= (_DEGRADED_COPY_SD if mark.is_degraded else 0)]
    found = _explained(copies, touched.copies if touched else (), blocks.volume)
    with_judge = with_judge and bool(lungs.any())
    # Lossy compression changes noise everywhere, and the judge takes much of that for forged.
    places = _places(placement, blocks, suspicions, found, with_judge and not mark.is_degraded)
    told.at(100)
    verdict = _verdict(volume, lungs, suspicions, mark, touched is not None, places, key)
    rest = (tuple(suspicions), mark, tuple(found), touched, with_judge, places, verdict)
    return Examination(placement, blocks, lungs, *rest)


def _added(whitened: Whitened, kernel: np.ndarray, k: int) -> np.ndarray:
    """What the watermark should have added to slice ``k`` after a filter."""
    return correlate(whitened.gain * whitened.marks[k].astype(np.float32), kernel)


def _placed(
    volume: CTVolume, key: WatermarkKey, told: _Told
) -> tuple[Placement, Blocks, Whitened | None, Check | None]:
    """How a copy is examined, and its signs: a check of them where too much is lost, or none are there."""
    placement = Placement.upright(volume)
    if placement.examined is not volume and shows(volume, likely_watermark(volume, key)):
        placement = Placement.as_stored(volume)
    watermark = likely_watermark(placement.examined, key)
    told.at(5)
    grid = find_grid(placement.examined, watermark, lambda *_: told.at(10))
    if grid is not None and grid.is_exact:
        placement, grid = placement.on(grid), None
        watermark = likely_watermark(placement.examined, key)
    told.at(15)
    blocks = Blocks.of(placement.examined)
    whitened = whiten(blocks, watermark)
    if whitened is not None and (gain := whitened.gain_of_marked) >= WHOLE_GAIN:
        return placement, blocks, dataclasses.replace(whitened, gain=gain), None
    told.at(20)
    check = check_on(placement.examined, watermark, grid, lambda done, of: told.at(20 + 20 * done // of))
    return placement, blocks, whitened, check


class _Told:
    def __init__(self, progress: Progress | None, parts: int) -> None:
        self._progress, self._parts, self._most = progress, parts, 0

    def at(self, done: int) -> None:
        """What is done twice is told once."""
        self._most = max(self._most, done)
        if self._progress:
            self._progress(self._most, self._parts)


def _explained(copies: Sequence[Copy], touched: Sequence[Copy], volume: CTVolume) -> list[Copy]:
    """Copies, without those that CT-GAN's noise explains: all of its places share it with the source and each other."""
    reach_kji = _touch_up_reach(volume)
    knots = [one.kji for one in touched] + [one.source_kji for one in touched[:1]]

    def near(kji: Voxel) -> bool:
        return any(bool((np.abs(np.subtract(kji, knot)) <= reach_kji).all()) for knot in knots)

    return [*touched, *(copy for copy in copies if not (near(copy.kji) and near(copy.source_kji)))]


def _touch_up_reach(volume: CTVolume) -> np.ndarray:
    """Voxels along (slice, row, column) from its middle: as many along every axis as along the finest, and a margin."""
    return np.full(3, touch_up_edge(volume.spacing_kji) // 2 + 5)


def _is_of_a_copy(blocks: Blocks, copies: Sequence[Copy], kji: Voxel, box: tuple[slice, ...], here: np.ndarray) -> bool:
    """Whether a place belongs to a copy that is listed already."""
    for copy in copies:
        if copy.by_touch_up and (np.abs(np.subtract(kji, copy.kji)) <= _touch_up_reach(blocks.volume)).all():
            return True
        block = blocks.block_of(copy.kji)
        inside = all(part.start <= at < part.stop for part, at in zip(box, block, strict=True))
        if _within(kji, copy, blocks.volume.spacing_kji) or (
            inside and here[tuple(at - part.start for part, at in zip(box, block, strict=True))]
        ):
            return True
    return False


def _places(
    placement: Placement,
    blocks: Blocks,
    suspicions: Sequence[Suspicion],
    copies: Sequence[Copy],
    with_judge: bool,
) -> tuple[ChangedPlace, ...]:
    """Everything that is listed, the surest first."""
    from scipy import ndimage

    volume = blocks.volume
    found: list[ChangedPlace] = []
    for copy in copies:
        copy = _turned_to_the_copy(copy, blocks, suspicions)
        tops = _tops_near(blocks, suspicions, copy.kji, copy.size_mm)
        evidence = [
            _of_copy(copy, placement),
            *(Evidence(kind, _words(kind, top, 1.0), top) for kind, top in tops if top >= 0.8),
        ]
        found.append(_place(placement, copy.kji, copy.size_mm, evidence, copy.source_kji))
    whole = together(suspicions)
    labels, _ = ndimage.label(whole >= _EDGE_SCORE, np.ones((3, 3, 3)))
    candidates = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        here = labels[box] == number
        listed_mm3 = np.count_nonzero(here & (whole[box] >= 1)) * float(np.prod(blocks.mm))
        top = float(whole[box][here].max())
        if listed_mm3 >= _SMALLEST_MM3 or top >= _WORTH_ASKING:
            candidates.append((top, box, here, bool(listed_mm3 >= _SMALLEST_MM3)))
    candidates.sort(key=lambda one: (-one[3], -one[0]))
    limit = None
    asked = 0
    for top, box, here, is_listed in candidates:
        weights = np.where(here, whole[box], 0) ** 2
        middle = [part.start + at for part, at in zip(box, ndimage.center_of_mass(weights), strict=True)]
        kji = blocks.middle(middle)
        size = tuple(round((part.stop - part.start) * edge, 1) for part, edge in zip(box, blocks.mm, strict=True))
        if _is_of_a_copy(blocks, copies, kji, box, here):
            continue
        tops = [(one.kind, float(one.score[box][here].max())) for one in suspicions]
        evidence = [Evidence(kind, _words(kind, top, 1.0), top) for kind, top in tops if top >= _WORTH_SAYING]
        # The judge looks at the noise itself, so it is one more witness.
        if with_judge and asked < _MOST_ASKED and top >= _WORTH_ASKING:
            asked += 1
            if limit is None:
                limit = _judge_limit(volume, _judge())
            score = float(_judge().score(volume, [kji])[0])
            if score >= limit:
                is_listed = True
                evidence.append(_of_judge(score, limit))
        if is_listed:
            evidence.sort(key=lambda one: -one.strength)
            found.append(_place(placement, kji, size, evidence, None, top))
    return tuple(sorted(found, key=lambda place: -place.strength))


@functools.cache
def _judge() -> Judge:
    """The forensic judge, loaded when it is first asked: torch takes seconds to import."""
    return load_judge(DEFAULT_JUDGES["forgery"])


def _judge_limit(volume: CTVolume, judge: Judge) -> float:
    """What the judge says of hardly any place of this scan, nor of others."""
    try:
        places = lung_positions(volume, _COMPARED, _SEED)
    except TargetError:
        return 1.1
    own = judge.score(volume, places)
    # Half way from the 95th percentile of this scan to certainty, on the scale of odds.
    odds = np.log(np.clip(own, 1e-6, 1 - 1e-6) / (1 - np.clip(own, 1e-6, 1 - 1e-6)))
    middle, high = np.percentile(odds, (50, 95))
    return max(_JUDGE_SURE, float(1 / (1 + np.exp(-(middle + 1.6 * (high - middle))))))


def _box_around(blocks: Blocks, kji: Voxel, size_mm: Sequence[float]) -> tuple[slice, ...]:
    half = [max(1, round(size / 2 / edge)) for size, edge in zip(size_mm, blocks.mm, strict=True)]
    return tuple(slice(max(0, at - n), at + n + 1) for at, n in zip(blocks.block_of(kji), half, strict=True))


def _tops_near(
    blocks: Blocks, suspicions: Sequence[Suspicion], kji: Voxel, size_mm: Sequence[float]
) -> list[tuple[str, float]]:
    """Each kind of evidence, and its highest score around a voxel."""
    box = _box_around(blocks, kji, size_mm)
    return [(one.kind, float(one.score[box].max(initial=0))) for one in suspicions]


def _turned_to_the_copy(copy: Copy, blocks: Blocks, suspicions: Sequence[Suspicion]) -> Copy:
    """With the forged one of both places first: there more of the watermark, or of the usual noise, is missing."""
    if copy.by_touch_up:
        return copy

    def score(kji: Voxel) -> float:
        return max(top for _, top in _tops_near(blocks, suspicions, kji, copy.size_mm))

    if score(copy.source_kji) > score(copy.kji):
        return dataclasses.replace(copy, kji=copy.source_kji, source_kji=copy.kji)
    return copy


def _within(kji: Voxel, copy: Copy, spacing_kji: Sequence[float]) -> bool:
    away = np.abs(np.subtract(kji, copy.kji)) * spacing_kji
    return bool((away <= np.maximum(np.array(copy.size_mm) / 2, 5.0)).all())


def _place(
    placement: Placement,
    kji: Voxel,
    size_mm: Sequence[float],
    evidence: Sequence[Evidence],
    source: Voxel | None,
    together: float = 0.0,
) -> ChangedPlace:
    """A place of the copy.

    :param kji: voxel in what is examined of it, as ``size_mm`` and ``source`` are.
    """
    there = placement.outside(kji)
    lps = tuple(round(float(value), 1) for value in placement.copy.voxel_to_lps(there))
    copied_from = None if source is None else placement.outside(source)
    return ChangedPlace(there, lps, placement.size_outside(size_mm), tuple(evidence), copied_from, together)


def _of_copy(copy: Copy, placement: Placement) -> Evidence:
    figures = f"from voxel {placement.outside(copy.source_kji)}, {copy.sd:.0f} standard deviations above chance"
    if copy.by_touch_up:
        return Evidence(TOUCH_UP, f"its noise is that of the place CT-GAN copies noise from: {figures}", copy.sd / 7.5)
    return Evidence(
        COPY, f"its noise is a copy: {figures}; or that is the copy and this the source", copy.sd / _COPY_SD
    )


def _of_dense_touch_up(times: float, source: Voxel, placement: Placement) -> Evidence:
    noise = f"the noise of the place CT-GAN copies noise from, voxel {placement.outside(source)}"
    return Evidence(TOUCH_UP, f"what is dense there has {noise} ({times:.1f} times what counts)", times)


def _of_judge(score: float, limit: float) -> Evidence:
    return Evidence(
        JUDGE, f"the forensic judge takes it for forged ({score:.3f}; {limit:.3f} is rare in this scan)", 1.0
    )


def _words(kind: str, score: float, limit: float) -> str:
    what = {
        WATERMARK: "the watermark is missing",
        NOISE: "noise is missing",
        COARSE_NOISE: "coarse noise is missing",
        COLOR: "the noise is of another color than around",
        FOREIGN: "it has noise that this scanner does not let through",
    }[kind]
    return (
        f"{what} ({score / limit:.1f} times what counts)" if score >= limit else f"{what} in part ({score / limit:.1f})"
    )


def _verdict(
    volume: CTVolume,
    lungs: np.ndarray,
    suspicions: Sequence[Suspicion],
    mark: _Mark,
    touch_up_sought: bool,
    places: tuple[ChangedPlace, ...],
    key: WatermarkKey,
) -> Verdict:
    evidence = list(_of_headers(volume))
    count = max(1, np.count_nonzero(lungs))
    told = {one.kind: float(np.count_nonzero(one.told & lungs)) / count for one in suspicions}
    noise, marked = told[NOISE], told.get(WATERMARK, 0.0)
    reasons = []
    if mark.is_found:
        text = f"the watermark stands out by {mark.sd:.0f} standard deviations; told about {marked:.0%} of the lungs"
        if mark.is_degraded:
            text += f"; {mark.gain:.0%} of it is left everywhere, as after lossy compression or smoothing"
        if mark.regridding:
            text += f"; it lies on another grid than the scan that was marked: {mark.regridding}"
        evidence.append(Evidence(WATERMARK, text))
    else:
        evidence.append(Evidence(WATERMARK, "no watermark was found"))
    if not touch_up_sought:
        evidence.append(Evidence(TOUCH_UP, "CT-GAN's noise source holds no lung in this scan, so it was not sought"))
    if not lungs.any():
        reasons.append("no lungs were found")
    lost = not mark.is_found and (recorded_watermark(volume) is not None or key != OPEN_KEY)
    if lost:
        reasons.append("the watermark that should be there was not found: resampled, smoothed, another scan or key")
    excluded, not_excluded = _kinds(noise, told[COLOR], marked, bool(lungs.any()), touch_up_sought)
    if places or any(one.strength >= 1 for one in evidence):
        outcome = Outcome.CHANGED
    elif lost or max(noise, marked) < MOST_OF_THE_LUNGS:
        outcome = Outcome.CANNOT_TELL
        if lungs.any() and not lost:
            reasons.append(f"only {max(noise, marked):.0%} of the lungs can be told about")
    else:
        outcome = Outcome.NOTHING_FOUND
    if outcome is not Outcome.CANNOT_TELL and not mark.is_found:
        reasons.append(_UNMARKED)
    return Verdict(
        outcome, places, tuple(evidence), tuple(reasons), tuple(told.items()), tuple(excluded), tuple(not_excluded)
    )


def _kinds(
    noise: float, color: float, mark: float, any_lungs: bool, touch_up_sought: bool
) -> tuple[list[str], list[str]]:
    excluded, left = [], []
    (excluded if noise >= MOST_OF_THE_LUNGS else left).append("paint with hardly any noise, over 15 mm or more")
    (excluded if color >= MOST_OF_THE_LUNGS else left).append("paint with white noise, over 15 mm or more")
    copied = "tissue or noise copied from elsewhere in this scan, unturned, over 10 mm or more"
    (excluded if any_lungs else left).append(copied)
    network = "removals by networks such as those measured"
    (excluded if mark >= MOST_OF_THE_LUNGS else left).append(network)
    touched_up = "removals with CT-GAN's own touch-up, which copies noise from one place"
    (excluded if touch_up_sought else left).append(touched_up)
    left += [
        "small or faint nodules that a network added" if mark >= MOST_OF_THE_LUNGS else "nodules that a network added",
        "edits that keep the noise and add what is smooth",
        "forgeries by whoever had the scan without its watermark, or the key",
        "changes outside the lungs, of the whole scan at once, or before it was protected",
    ]
    return excluded, left


def _of_headers(volume: CTVolume) -> list[Evidence]:
    found = []
    if is_drill_step(volume.provenance.last(SIMULATED_ATTACK)):
        found.append(Evidence("header", "the header says that this is a drill's case, with a forgery or without"))
    elif volume.provenance.is_simulated_attack:
        found.append(Evidence("header", "the header says that this is a simulated attack", 1.0))
    found += [
        Evidence("header", warning.text)
        for warning in volume.provenance.warnings
        if warning.name in ("derived", "lossy-compression")
    ]
    return found
