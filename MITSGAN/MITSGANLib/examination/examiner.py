"""One examiner for every scan: all evidence that its voxels and headers hold, and one verdict."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import TargetError
from ..files.dicom.drill import is_drill_step
from ..judges.judge import DEFAULT_JUDGES, Judge, load_judge
from ..runtime.progress import Progress
from ..scan.filters import correlate
from ..scan.lungs import lung_positions
from ..scan.volume import SIMULATED_ATTACK, CTVolume, Provenance
from ..watermark.checking import Check, Glance, check_on, find_grid
from ..watermark.embedding import recorded_watermark
from ..watermark.pattern import OPEN_KEY, WatermarkKey
from ..watermark.sums import FOUND_SD
from .blocks import Blocks
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
_MISSING = {
    WATERMARK: "the watermark is missing",
    NOISE: "noise is missing",
    COARSE_NOISE: "coarse noise is missing",
    COLOR: "the noise is of another color than around",
    FOREIGN: "it has noise that this scanner does not let through",
}


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
    :param suspicions: each kind of evidence in every block.
    :param mark: the watermark, over the whole scan.
    :param copies: of tissue, and of CT-GAN's noise.
    :param touch_up: where CT-GAN's noise is; None where its source holds no lung, so that it could not be sought.
    :param with_judge: whether the forensic judge is asked at places.
    :param is_keyed: whether the watermark that was sought is not the open one.
    """

    placement: Placement
    blocks: Blocks
    suspicions: tuple[Suspicion, ...]
    mark: _Mark
    copies: tuple[Copy, ...]
    touch_up: TouchUp | None
    with_judge: bool
    is_keyed: bool

    @property
    def volume(self) -> CTVolume:
        """The copy."""
        return self.placement.copy

    @property
    def lungs(self) -> np.ndarray:
        """Bool of blocks."""
        return self.blocks.lungs

    @functools.cached_property
    def asked_limit(self) -> float:
        """What is an alarm at a place that somebody asks about."""
        from scipy import ndimage

        size = [2 * max(1, round(NEAR_MM / edge)) + 1 for edge in self.blocks.mm]
        return asked_limit(ndimage.maximum_filter(together(self.suspicions), size), self.lungs)

    def at(self, kji: Voxel) -> ChangedPlace:
        """What is to be said of a voxel (slice, row, column) that somebody asks about.

        A strength of 1 is an alarm there, which takes less than to be listed.

        :raises TargetError: outside the scan.
        """
        if not self.volume.contains(kji):
            raise TargetError(f"Voxel {kji} lies outside the scan of {self.volume.shape} voxels; choose another.")
        kji = self.placement.inside(kji)
        box = self._box_around(kji, (2 * NEAR_MM,) * 3)
        near = together([dataclasses.replace(one, score=one.score[box]) for one in self.suspicions])
        most = np.unravel_index(int(near.argmax()), near.shape)
        limit = self.asked_limit
        tops = [(one.kind, float(one.score[box][most])) for one in self.suspicions]
        evidence = [_of_block(kind, top, limit) for kind, top in tops if top > _WORTH_SAYING * limit]
        source = None
        for copy in self.copies:
            if self._is_within(kji, copy):
                evidence.append(self._of_copy(copy))
                source = copy.source_kji
        touched = self.touch_up
        if touched is not None and (times := float(touched.dense[self.blocks.block_of(kji)])) >= 1:
            noise = (
                f"the noise of the place CT-GAN copies noise from, voxel {self.placement.outside(touched.source_kji)}"
            )
            text = f"what is dense there has {noise} ({times:.1f} times what counts)"
            evidence.append(Evidence(TOUCH_UP, text, times))
            source = source or touched.source_kji
        if self.with_judge:
            evidence += self._of_judge(kji)
        evidence.sort(key=lambda one: -one.strength)
        return self._place(kji, (0.0, 0.0, 0.0), evidence, source, float(near.max()) / limit)

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
        classes = np.zeros(self.blocks.shape, np.uint8)
        classes[np.any([one.told for one in self.suspicions], axis=0)] = TOLD
        classes[together(self.suspicions) >= 1] = CHANGED
        labels = self.voxels(classes)
        for place in self.places:
            half = np.maximum(np.array(place.size_mm) / 2 / self.volume.spacing_kji, 1).astype(int)
            box = tuple(slice(max(0, at - n), at + n + 1) for at, n in zip(place.kji, half, strict=True))
            labels[box] = CHANGED
        return dataclasses.replace(self.volume, hu=labels, provenance=Provenance())

    @functools.cached_property
    def places(self) -> tuple[ChangedPlace, ...]:
        """Everything that is listed, the surest first."""
        found = [*self._copied_places(), *self._suspicious_places()]
        return tuple(sorted(found, key=lambda place: -place.strength))

    def _copied_places(self) -> Iterator[ChangedPlace]:
        for copy in self.copies:
            copy = self._turned_to_the_copy(copy)
            tops = self._tops_near(copy.kji, copy.size_mm)
            evidence = [self._of_copy(copy), *(_of_block(kind, top) for kind, top in tops if top >= 0.8)]
            yield self._place(copy.kji, copy.size_mm, evidence, copy.source_kji)

    def _suspicious_places(self) -> Iterator[ChangedPlace]:
        from scipy import ndimage

        whole = together(self.suspicions)
        labels, _ = ndimage.label(whole >= _EDGE_SCORE, np.ones((3, 3, 3)))
        candidates = []
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            here = labels[box] == number
            listed_mm3 = np.count_nonzero(here & (whole[box] >= 1)) * float(np.prod(self.blocks.mm))
            top = float(whole[box][here].max())
            if listed_mm3 >= _SMALLEST_MM3 or top >= _WORTH_ASKING:
                candidates.append((top, box, here, bool(listed_mm3 >= _SMALLEST_MM3)))
        candidates.sort(key=lambda one: (-one[3], -one[0]))
        # Lossy compression changes noise everywhere, and the judge takes much of that for forged.
        left_to_ask = _MOST_ASKED if self.with_judge and not self.mark.is_degraded else 0
        for top, box, here, is_listed in candidates:
            weights = np.where(here, whole[box], 0) ** 2
            kji = self.blocks.middle(
                [part.start + at for part, at in zip(box, ndimage.center_of_mass(weights), strict=True)]
            )
            if self._is_of_a_copy(kji, box, here):
                continue
            tops = [(one.kind, float(one.score[box][here].max())) for one in self.suspicions]
            evidence = [_of_block(kind, top) for kind, top in tops if top >= _WORTH_SAYING]
            # The judge looks at the noise itself, so it is one more witness.
            if left_to_ask and top >= _WORTH_ASKING:
                left_to_ask -= 1
                judged = self._of_judge(kji)
                is_listed, evidence = is_listed or bool(judged), evidence + judged
            if is_listed:
                edges = zip(box, self.blocks.mm, strict=True)
                size_mm = tuple(round((part.stop - part.start) * edge, 1) for part, edge in edges)
                evidence.sort(key=lambda one: -one.strength)
                yield self._place(kji, size_mm, evidence, None, top)

    @functools.cached_property
    def _judge_limit(self) -> float:
        """What the judge says of hardly any place of this scan, nor of others."""
        volume = self.blocks.volume
        try:
            places = lung_positions(volume, _COMPARED, _SEED, mask=self.blocks.lung)
        except TargetError:
            return 1.1
        own = np.clip(_judge().score(volume, places), 1e-6, 1 - 1e-6)
        # Half way from the 95th percentile of this scan to certainty, on the scale of odds.
        middle, high = np.percentile(np.log(own / (1 - own)), (50, 95))
        return max(_JUDGE_SURE, float(1 / (1 + np.exp(-(middle + 1.6 * (high - middle))))))

    def _of_judge(self, kji: Voxel) -> list[Evidence]:
        score, limit = float(_judge().score(self.blocks.volume, [kji])[0]), self._judge_limit
        text = f"the forensic judge takes it for forged ({score:.3f}; {limit:.3f} is rare in this scan)"
        return [Evidence(JUDGE, text, 1.0)] if score >= limit else []

    def _of_copy(self, copy: Copy) -> Evidence:
        source = self.placement.outside(copy.source_kji)
        figures = f"from voxel {source}, {copy.sd:.0f} standard deviations above chance"
        if copy.by_touch_up:
            return Evidence(
                TOUCH_UP, f"its noise is that of the place CT-GAN copies noise from: {figures}", copy.sd / 7.5
            )
        return Evidence(
            COPY, f"its noise is a copy: {figures}; or that is the copy and this the source", copy.sd / _COPY_SD
        )

    def _place(
        self,
        kji: Voxel,
        size_mm: Sequence[float],
        evidence: Sequence[Evidence],
        source: Voxel | None,
        together: float = 0.0,
    ) -> ChangedPlace:
        """A place of the copy.

        :param kji: voxel in what is examined of it, as ``size_mm`` and ``source`` are.
        """
        placement = self.placement
        there = placement.outside(kji)
        lps = tuple(round(float(value), 1) for value in placement.copy.voxel_to_lps(there))
        copied_from = None if source is None else placement.outside(source)
        return ChangedPlace(there, lps, placement.size_outside(size_mm), tuple(evidence), copied_from, together)

    def _box_around(self, kji: Voxel, size_mm: Sequence[float]) -> tuple[slice, ...]:
        half = [max(1, round(size / 2 / edge)) for size, edge in zip(size_mm, self.blocks.mm, strict=True)]
        return tuple(slice(max(0, at - n), at + n + 1) for at, n in zip(self.blocks.block_of(kji), half, strict=True))

    def _tops_near(self, kji: Voxel, size_mm: Sequence[float]) -> list[tuple[str, float]]:
        """Each kind of evidence, and its highest score around a voxel."""
        box = self._box_around(kji, size_mm)
        return [(one.kind, float(one.score[box].max(initial=0))) for one in self.suspicions]

    def _turned_to_the_copy(self, copy: Copy) -> Copy:
        """With the forged one of both places first: there more of the watermark, or of the usual noise, is missing."""
        if copy.by_touch_up:
            return copy
        one, other = (max(top for _, top in self._tops_near(kji, copy.size_mm)) for kji in (copy.kji, copy.source_kji))
        return dataclasses.replace(copy, kji=copy.source_kji, source_kji=copy.kji) if other > one else copy

    def _is_within(self, kji: Voxel, copy: Copy) -> bool:
        away = np.abs(np.subtract(kji, copy.kji)) * self.blocks.volume.spacing_kji
        return bool((away <= np.maximum(np.array(copy.size_mm) / 2, 5.0)).all())

    def _is_of_a_copy(self, kji: Voxel, box: tuple[slice, ...], here: np.ndarray) -> bool:
        """Whether a place belongs to a copy that is listed already."""
        for copy in self.copies:
            if copy.by_touch_up and (np.abs(np.subtract(kji, copy.kji)) <= _touch_up_reach(self.blocks.volume)).all():
                return True
            at = [at - part.start for at, part in zip(self.blocks.block_of(copy.kji), box, strict=True)]
            inside = all(0 <= index < size for index, size in zip(at, here.shape, strict=True))
            if self._is_within(kji, copy) or (inside and here[tuple(at)]):
                return True
        return False

    @functools.cached_property
    def verdict(self) -> Verdict:
        """What all of it says together."""
        volume, lungs, mark, sought = self.volume, self.lungs, self.mark, self.touch_up is not None
        evidence = list(_of_headers(volume))
        count = max(1, np.count_nonzero(lungs))
        told = {one.kind: float(np.count_nonzero(one.told & lungs)) / count for one in self.suspicions}
        noise, marked = told[NOISE], told.get(WATERMARK, 0.0)
        text = "no watermark was found"
        if mark.is_found:
            text = (
                f"the watermark stands out by {mark.sd:.0f} standard deviations; told about {marked:.0%} of the lungs"
            )
            if mark.is_degraded:
                text += f"; {mark.gain:.0%} of it is left everywhere, as after lossy compression or smoothing"
            if mark.regridding:
                text += f"; it lies on another grid than the scan that was marked: {mark.regridding}"
        evidence.append(Evidence(WATERMARK, text))
        if not sought:
            text = "CT-GAN's noise source holds no lung in this scan, so it was not sought"
            evidence.append(Evidence(TOUCH_UP, text))
        reasons = [] if lungs.any() else ["no lungs were found"]
        lost = not mark.is_found and (recorded_watermark(volume) is not None or self.is_keyed)
        if lost:
            reasons.append("the watermark that should be there was not found: resampled, smoothed, another scan or key")
        if self.places or any(one.strength >= 1 for one in evidence):
            outcome = Outcome.CHANGED
        elif lost or max(noise, marked) < MOST_OF_THE_LUNGS:
            outcome = Outcome.CANNOT_TELL
            if lungs.any() and not lost:
                reasons.append(f"only {max(noise, marked):.0%} of the lungs can be told about")
        else:
            outcome = Outcome.NOTHING_FOUND
        if outcome is not Outcome.CANNOT_TELL and not mark.is_found:
            reasons.append(_UNMARKED)
        kinds = _kinds(noise, told[COLOR], marked, bool(lungs.any()), sought)
        return Verdict(outcome, self.places, tuple(evidence), tuple(reasons), tuple(told.items()), *kinds)


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
    :param progress: hears of parts.
    :raises DependencyError: the package cryptography cannot be imported.
    """
    most = 0

    def tell(done: int) -> None:
        nonlocal most
        most = max(most, done)  # what is done twice is told once
        if progress:
            progress(most, 100)

    placement, blocks, whitened, check = _placed(volume, key, tell)
    lungs = blocks.lungs
    marks = [] if whitened is None else [of_foreign_noise(blocks, whitened)]
    if check is None:
        mark = _Mark(whitened.sd, whitened.gain, False, placement.words)
        marks.append(of_watermark(blocks, whitened))
    else:
        words = ", ".join(filter(None, (placement.words, check.regridding)))
        mark = _Mark(check.sd, check.gain, check.is_degraded, words)
        marks.append(of_faded_watermark(check, lungs))
    tell(45)
    kernel = fine_kernel(blocks.volume)
    fine = residual(blocks.volume, kernel)
    added = None if check is not None else functools.partial(_added, whitened, kernel)
    suspicions = *of_noise(noise_map(blocks, fine, added), lungs), *marks
    del whitened, check, added
    tell(60)
    copies = find_copies(blocks, fine) if lungs.any() else []
    tell(80)
    is_lossy = mark.is_degraded if mark.is_found else None
    touched = find_touch_up(blocks, fine, kernel, is_lossy=is_lossy) if lungs.any() else None
    tell(95)
    del fine
    # Lossy compression repeats itself, and more so in one place than in another.
    copies = [one for one in copies if one.sd >= (_DEGRADED_COPY_SD if mark.is_degraded else 0)]
    copies = _explained(copies, touched.copies if touched else (), blocks.volume)
    with_judge = with_judge and bool(lungs.any())
    found = Examination(placement, blocks, suspicions, mark, copies, touched, with_judge, key != OPEN_KEY)
    _ = found.verdict  # and the places: whoever reads them shall not wait
    tell(100)
    return found


def _added(whitened: Whitened, kernel: np.ndarray, k: int) -> np.ndarray:
    """What the watermark should have added to slice ``k`` after a filter."""
    return correlate(whitened.gain * whitened.marks[k].astype(np.float32), kernel)


def _placed(
    volume: CTVolume, key: WatermarkKey, tell: Callable[[int], None]
) -> tuple[Placement, Blocks, Whitened | None, Check | None]:
    """How a copy is examined, and its signs: a check of them where too much is lost, or none are there."""
    placement = Placement.upright(volume)
    glance = Glance(placement.examined, key)
    if placement.examined is not volume and (stored := Glance(volume, key)).is_marked:
        placement, glance = Placement.as_stored(volume), stored
    watermark = glance.watermark
    tell(5)
    grid = find_grid(glance, lambda *_: tell(10))
    if grid is not None and grid.is_exact:
        placement, grid = placement.on(grid), None
        watermark = Glance(placement.examined, key).watermark
    tell(15)
    blocks = Blocks.of(placement.examined)
    whitened = whiten(blocks, watermark)
    if whitened is not None and (gain := whitened.gain_of_marked) >= WHOLE_GAIN:
        return placement, blocks, dataclasses.replace(whitened, gain=gain), None
    tell(20)
    check = check_on(placement.examined, watermark, grid, lambda done, of: tell(20 + 20 * done // of))
    return placement, blocks, whitened, check


def _explained(copies: Sequence[Copy], touched: Sequence[Copy], volume: CTVolume) -> tuple[Copy, ...]:
    """Copies, without those that CT-GAN's noise explains: all of its places share it with the source and each other."""
    reach_kji = _touch_up_reach(volume)
    knots = [one.kji for one in touched] + [one.source_kji for one in touched[:1]]

    def near(kji: Voxel) -> bool:
        return any(bool((np.abs(np.subtract(kji, knot)) <= reach_kji).all()) for knot in knots)

    return (*touched, *(copy for copy in copies if not (near(copy.kji) and near(copy.source_kji))))


def _touch_up_reach(volume: CTVolume) -> np.ndarray:
    """Voxels along (slice, row, column) from its middle: as many along every axis as along the finest, and a margin."""
    return np.full(3, touch_up_edge(volume.spacing_kji) // 2 + 5)


@functools.cache
def _judge() -> Judge:
    """The forensic judge, loaded when it is first asked: torch takes seconds to import."""
    return load_judge(DEFAULT_JUDGES["forgery"])


def _of_block(kind: str, score: float, limit: float = 1.0) -> Evidence:
    times = score / limit
    text = (
        f"{_MISSING[kind]} ({times:.1f} times what counts)" if times >= 1 else f"{_MISSING[kind]} in part ({times:.1f})"
    )
    return Evidence(kind, text, times)


def _kinds(noise: float, color: float, mark: float, any_lungs: bool, sought: bool) -> tuple[tuple[str, ...], ...]:
    """Kinds of forgery that are excluded, and that are not, by the shares of the lungs that can be told about."""
    noise_told, color_told, mark_told = (share >= MOST_OF_THE_LUNGS for share in (noise, color, mark))
    told = {
        "paint with hardly any noise, over 15 mm or more": noise_told,
        "paint with white noise, over 15 mm or more": color_told,
        "tissue or noise copied from elsewhere in this scan, unturned, over 10 mm or more": any_lungs,
        "removals by networks such as those measured": mark_told,
        "removals with CT-GAN's own touch-up, which copies noise from one place": sought,
        "small or faint nodules that a network added" if mark_told else "nodules that a network added": False,
        "edits that keep the noise and add what is smooth": False,
        "forgeries by whoever had the scan without its watermark, or the key": False,
        "changes outside the lungs, of the whole scan at once, or before it was protected": False,
    }
    return tuple(tuple(kind for kind, is_told in told.items() if is_told == excluded) for excluded in (True, False))


def _of_headers(volume: CTVolume) -> Iterator[Evidence]:
    if is_drill_step(volume.provenance.last(SIMULATED_ATTACK)):
        yield Evidence("header", "the header says that this is a drill's case, with a forgery or without")
    elif volume.provenance.is_simulated_attack:
        yield Evidence("header", "the header says that this is a simulated attack", 1.0)
    for warning in volume.provenance.warnings:
        if warning.name in ("derived", "lossy-compression"):
            yield Evidence("header", warning.text)
