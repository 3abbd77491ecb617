"""Samples of forgery judges: places of whole scans, each untouched and forged by every attacker, in a cache on disk.

Some places have a nodule of another patient planted, in all versions: what is removed was there, and a nodule is no
forgery in itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from MITSGANLib.attack.attacker import Attacker, attack_patch
from MITSGANLib.errors import InputError
from MITSGANLib.files.atomic import atomic_file
from MITSGANLib.judges.judge import Sight
from MITSGANLib.scan.cubes import box_at
from MITSGANLib.scan.volume import LOWEST_HU, hu_from_float
from scipy import ndimage

from ..data.dataset import Dataset, Part, PreparedScan
from ..data.nodules import Nodules, nodule_patch
from .configuration import Count, CountOrNone, Weight
from .inputs import fingerprint
from .nodule_samples import split_nodules, training_nodules
from .samples import Disturbance, Disturbances, Group, Source, clear_structures

_CACHE_VERSION = 2
_LARGEST_MM = 20.0  # what an attacker makes up; it removes no more


@dataclass(frozen=True)
class Variations:
    """How scans are changed before they are attacked, so that few scans stand for many.

    CT-GAN copies noise from a fixed place of the scan. Whether a forgery has more or less noise than what is around it
    therefore depends on the scan; a judge that saw two scans takes their accident for the rule. The place is attacked
    in a part of the scan instead, whose borders, and with them the source of the noise, are drawn.

    :param reach: fewest and most voxels that the part reaches from the place; the attacker's cube must fit.
    :param sharpness: largest share of the difference to a smoothed scan that is taken off (another kernel) or added.
    :param noise_hu: largest standard deviation of noise that is added, smoothed by up to 1 voxel.
    """

    per_place: Count = 2
    reach: tuple[Count, Count] = (32, 96)
    sharpness: Weight = 0.8
    noise_hu: Weight = 20.0

    def apply(
        self, hu: np.ndarray, kji: Sequence[int], rng: np.random.Generator
    ) -> tuple[np.ndarray, tuple[int, int, int]]:
        """The part of a scan in another guise, int16 HU, and where in it the place (slice, row, column) is."""
        reach = rng.integers(self.reach[0], self.reach[1] + 1, (3, 2))
        sharpness, noise_hu = rng.uniform(-self.sharpness, self.sharpness), rng.uniform(0, self.noise_hu)
        noise_sigma, seed = rng.uniform(0, 1), rng.integers(2**62)
        low = np.maximum(np.subtract(kji, reach[:, 0]), 0)
        high = np.minimum(np.add(kji, reach[:, 1]) + 1, hu.shape)
        part = hu[box_at(low, high - low)].astype(np.float32)
        noise = np.random.default_rng(seed).standard_normal(part.shape, dtype=np.float32)
        noise = ndimage.gaussian_filter(noise, (0, noise_sigma, noise_sigma))
        smooth = ndimage.gaussian_filter(part, (0, 1, 1))
        varied = part + sharpness * (part - smooth) + noise * (noise_hu / noise.std())
        return hu_from_float(np.maximum(varied, LOWEST_HU)), tuple(np.subtract(kji, low).tolist())


@dataclass(frozen=True)
class ForgerySampling:
    """What a forgery judge is trained on.

    :param attackers: names of attackers; ``--attackers`` replaces them.
    :param lung_places, structure_places, nodule_places: places per scan, each taken untouched and forged by every
        attacker: in healthy lung, at nodule-like structures, and in lung with a nodule planted.
    :param nodules: file of nodules to plant, as ``nodule.file`` of a nodule judge; empty for none.
    :param jitter: voxels of the view by which the place is off its middle at most.
    :param cache: folder for forged places, which take minutes to make; relative to where the command runs.
    """

    attackers: tuple[str, ...] = ("ctgan-small",)
    lung_places: Count = 120
    structure_places: CountOrNone = 40
    nodule_places: CountOrNone = 60
    nodules: str = ""
    jitter: CountOrNone = 8
    cache: str = "runs/judge-samples"
    variations: Variations = field(default_factory=Variations)
    disturbances: Disturbances = field(default_factory=lambda: Disturbances(10.0, 10.0, 0.0, 0.0))


@dataclass(frozen=True)
class PlaceDraw:
    """A place to be shown.

    :param version: 0 for untouched, else the number of the forgery.
    :param start: first row and column (and slice, for a cube) of the stored view.
    """

    scan: int
    place: int
    version: int
    start: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    quarter_turns: int
    disturbance: Disturbance

    @property
    def yes(self) -> bool:
        """Whether it is forged, the right answer."""
        return self.version > 0


@dataclass(frozen=True, eq=False)
class ForgedScan:
    """Views of a scan's places in all versions.

    :param views: int16 (versions, n, slices, rows, columns) HU, memory-mapped.
    :param planted: how many of them, at the end, have a nodule planted.
    """

    patient: str
    views: np.ndarray
    planted: int = 0

    def of_kind(self, with_nodule: bool) -> slice:
        """Numbers of the places with a nodule planted, or of the others."""
        count = self.views.shape[1]
        return slice(count - self.planted, count) if with_nodule else slice(0, count - self.planted)


class ForgerySource(Source):
    """Places untouched and forged, from the scans of one side of a dataset's split."""

    def __init__(self, scans: Sequence[ForgedScan], names: Sequence[str], view: Sight, config: ForgerySampling) -> None:
        self._scans, self._names, self._view, self._config = scans, names, view, config

    @classmethod
    def of(
        cls,
        data: Dataset,
        part: Part,
        view: Sight,
        config: ForgerySampling,
        attackers: Sequence[Attacker],
        held_out: Sequence[str],
        seed: int,
    ) -> ForgerySource:
        """Attack the scans' places, or take what an earlier run left in the cache; validation scans are not varied.

        :raises InputError: when there is no scan.
        :raises OutputError: when the cache cannot be written.
        """
        scans = [scan for scan in data.scans(part) if scan.patient not in held_out]
        if not scans:
            raise InputError(f"The dataset has no whole scan for {part}; prepare scans, not cubes alone.")
        stored = dataclasses.replace(view, edge=view.edge + 2 * config.jitter)
        variations = config.variations if part == "training" else None
        forger = Forger(attackers, stored, Path(config.cache), variations, seed)
        nodules = _nodules(data, part, config, held_out, seed)
        planted = len(nodules.hu) if nodules else 0
        forged = []
        for scan in scans:
            structures = clear_structures(scan)[: config.structure_places]
            last = config.lung_places + planted
            lung, beneath = np.split(scan.lung_positions[:last], [min(config.lung_places, len(scan.lung_positions))])
            places = np.concatenate([lung, structures, beneath])
            here = nodules.take(np.arange(len(beneath))) if nodules else None
            views = forger.views(scan, places, here)
            repeated = variations.per_place if variations else 1
            forged.append(ForgedScan(scan.patient, views, len(beneath) * repeated))
        names = ("untouched", *(f"{attacker.name} {attacker.action}" for attacker in attackers))
        return cls(forged, names, view, config)

    def __len__(self) -> int:
        return sum(scan.views.shape[0] * scan.views.shape[1] for scan in self._scans)

    def marks(self) -> Iterator[np.ndarray]:
        yield from (scan.views[..., ::8, ::8] for scan in self._scans)

    def described(self) -> str:
        places = sum(scan.views.shape[1] for scan in self._scans)
        return (
            f"{places} views of places in {len(self._scans)} scans, untouched and forged ({', '.join(self._names[1:])})"
        )

    def groups(self) -> list[Group]:
        middle = self._start(np.array([self._config.jitter] * 3))
        box = box_at(middle, self._view.shape)
        groups = []
        for number, name in enumerate(self._names):
            for what, with_nodule in (("", False), (" with nodule", True)):
                parts = [(scan, scan.of_kind(with_nodule)) for scan in self._scans]
                views = np.concatenate([scan.views[(number, part, *box)] for scan, part in parts])
                owners = [np.full(part.stop - part.start, scan.patient) for scan, part in parts]
                if len(views):
                    groups.append(Group(name + what, number > 0, views, np.concatenate(owners)))
        return groups

    def _draw_one(self, yes: bool, rng: np.random.Generator) -> PlaceDraw:
        """All forgeries are equally likely."""
        scan = int(rng.integers(len(self._scans)))
        place = int(rng.integers(self._scans[scan].views.shape[1]))
        flips = rng.random(3) < 0.5
        return PlaceDraw(
            scan,
            place,
            version=int(rng.integers(1, len(self._names))) if yes else 0,
            start=self._start(rng.integers(0, 2 * self._config.jitter + 1, 3)),
            flips=tuple(bool(flip) for flip in flips),
            quarter_turns=int(rng.integers(4)),
            disturbance=self._config.disturbances.draw(rng),
        )

    def _start(self, start: np.ndarray) -> tuple[int, int, int]:
        slices, row, column = (int(value) for value in start)
        return (slices if self._view.kind == "cube" else 0), row, column

    def _still(self, drawn: Sequence[PlaceDraw]) -> torch.Tensor:
        views = []
        for one in drawn:
            view = self._scans[one.scan].views[(one.version, one.place, *box_at(one.start, self._view.shape))]
            views.append(np.rot90(np.flip(view, np.flatnonzero(one.flips)), one.quarter_turns, axes=(1, 2)))
        return torch.from_numpy(np.stack(views))


@dataclass(frozen=True)
class Forger:
    """Shows places of scans untouched and after every attack; what it has made lies in files in ``folder``.

    :param view: how places are shown.
    :param variations: of the scan before the attack, drawn with ``seed``.
    """

    attackers: Sequence[Attacker]
    view: Sight
    folder: Path
    variations: Variations | None = None
    seed: int = 0

    def views(self, scan: PreparedScan, places: np.ndarray, nodules: Nodules | None = None) -> np.ndarray:
        """Views of places (n, 3), int16 HU (1 + attackers, n, slices, rows, columns), memory-mapped.

        With variations n is ``per_place`` times as large. The file is named by the digest of all it depends on.

        :param nodules: planted before all else, one in each of the last places.
        :raises OutputError: when the file cannot be written.
        """
        key = {
            "version": _CACHE_VERSION,
            "scan": fingerprint(scan.hu[::4, ::16, ::16], places, np.array(scan.spacing_kji)),
            "attackers": [[attacker.digest, attacker.action] for attacker in self.attackers],
            "view": dataclasses.asdict(self.view),
            "variations": [dataclasses.asdict(self.variations), self.seed] if self.variations else None,
            "nodules": fingerprint(nodules.hu, nodules.centers, nodules.radii) if nodules else None,
        }
        path = self.folder / f"{sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.npy"
        if not path.is_file():
            subjects = self._subjects(scan, places, nodules)
            views = [self._versions(hu, kji, scan.spacing_kji) for hu, kji in subjects]
            with atomic_file(path, overwrite=True) as temporary:
                np.save(temporary, np.stack(views, axis=1))
        return np.load(path, mmap_mode="r")

    def _subjects(
        self, scan: PreparedScan, places: np.ndarray, nodules: Nodules | None
    ) -> Iterator[tuple[np.ndarray, tuple[int, int, int]]]:
        """Writable int16 voxels and the place in them: of the whole scan, or of a varied part."""
        whole = np.array(scan.hu)
        first = len(places) - (len(nodules.hu) if nodules else 0)
        for number, place in enumerate(places):
            kji = tuple(map(int, place))
            box, before = (slice(0, 0),) * 3, whole[:0, :0, :0]
            if nodules and number >= first:
                n = number - first
                chosen = (nodules.hu[n], float(nodules.radii[n]), nodules.centers[n])
                box, values = nodule_patch(whole, scan.spacing_kji, kji, *chosen)
                before, whole[box] = whole[box].copy(), values
            if self.variations is None:
                yield whole, kji
            else:
                rng = np.random.default_rng((self.seed, number))
                for _ in range(self.variations.per_place):
                    yield self.variations.apply(whole, kji, rng)
            whole[box] = before

    def _versions(self, hu: np.ndarray, kji: Sequence[int], spacing_kji: Sequence[float]) -> np.ndarray:
        """A place untouched and after each attack; ``hu`` is the same afterwards."""
        versions = [self.view.cut(hu, spacing_kji, kji)]
        for attacker in self.attackers:
            scan = torch.from_numpy(hu).to(next(attacker.inpainter.generator.parameters()).device)
            where, values = attack_patch(scan, kji, spacing_kji, attacker)
            before, hu[where] = hu[where].copy(), values
            versions.append(self.view.cut(hu, spacing_kji, kji))
            hu[where] = before
        return hu_from_float(np.stack(versions))


def _nodules(data: Dataset, part: Part, config: ForgerySampling, held_out: Sequence[str], seed: int) -> Nodules | None:
    """A nodule for each place, or None: all removable ones in turn, in a drawn order."""
    if not config.nodules or not config.nodule_places:
        return None
    found = split_nodules(training_nodules(data.folder / config.nodules), data, held_out)[part]
    found = found.take(2 * found.radii <= _LARGEST_MM)
    if not len(found.hu):
        raise InputError(
            f"No nodule of {config.nodules} below {_LARGEST_MM:g} mm is left for {part}; name another file."
        )
    order = np.random.default_rng(seed).permutation(len(found.hu))
    return found.take(np.resize(order, config.nodule_places))
