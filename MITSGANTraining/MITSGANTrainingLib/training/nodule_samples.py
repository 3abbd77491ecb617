"""Samples of nodule judges: cubes with and without a nodule in their middle, drawn with a seed and then made.

A nodule judge must not learn which scanner a cube came from: nodules come from many scanners and healthy lung from few.
So nodules are also planted into healthy lung, and healthy lung over nodules; what tells the sources apart is then the
same on both sides.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from MITSGANLib.errors import InputError
from MITSGANLib.scan.volume import hu_from_float
from scipy import ndimage
from torch.nn import functional as F

from ..data.cubes import CubeSet
from ..data.dataset import Dataset, Part
from ..data.nodules import Nodules, read_nodules
from ..preparation.cutting import EDGE, cut_cube
from ..preparation.splitting import SplitOptions, split_patients
from .configuration import Share, Weight
from .samples import CLEAR_MM, Disturbance, Disturbances, Group, Source, clear_structures, disturb

CubeKind = Literal["nodule", "planted", "healthy", "spot", "structure", "beside", "erased"]

_NODULE_KINDS: tuple[CubeKind, ...] = ("nodule", "planted")
_OTHER_KINDS: tuple[CubeKind, ...] = ("healthy", "spot", "structure", "beside", "erased")
_CLIP_HU = (-1200, 400)  # what public nodule cubes are clipped to, so that no value gives the source away
_REACH_MM = 8  # farthest shift along each axis: a 32 mm cube then still lies in one of 51 mm
_UNKNOWN_DIAMETER_MM = 20.0
_LUNG_PER_NODULE = 4  # places of lung that validate for each nodule
_SPOT_SIGMA_MM = 2.0  # of the Laplacian that answers most to a ball of 7 mm


@dataclass(frozen=True)
class NoduleSampling:
    """What a nodule judge is trained on.

    :param file: cubes around nodules of all sizes, as :func:`training_nodules` takes them; a relative path starts at
        the dataset's folder. Patients whom the dataset does not name are split by its seed. Empty for none.
    :param planted: share of the nodules that are planted into healthy lung.
    :param healthy, spot, structure, beside, erased: weights of the kinds without a nodule in the middle: anywhere in
        healthy lung; its brightest spot nearby; a nodule-like structure; beside a nodule; a nodule with lung over it.
    :param shift_mm: farthest a nodule lies from the middle along each axis.
    :param scale: largest share by which sizes change.
    :param planted_mm: smallest and largest diameter that planted nodules are brought to; empty leaves them as they are.
    """

    file: str = ""
    planted: Share = 0.4
    healthy: Weight = 0.2
    spot: Weight = 0.3
    structure: Weight = 0.2
    beside: Weight = 0.15
    erased: Weight = 0.15
    shift_mm: Weight = 3.0
    scale: Share = 0.1
    planted_mm: tuple[float, ...] = ()
    disturbances: Disturbances = field(default_factory=Disturbances)


def training_nodules(path: Path) -> Nodules:
    """Nodules of a file as cubes of ``EDGE`` voxels in the common range of HU: :func:`~..data.nodules.read_nodules`."""
    nodules = read_nodules(path, EDGE)
    return dataclasses.replace(nodules, hu=_trimmed(nodules.hu))


def split_nodules(nodules: Nodules, data: Dataset, held_out: Sequence[str]) -> dict[Part, Nodules]:
    """Both sides without patients held out; those that the dataset does not know are drawn with its seed."""
    known = {part: set(data.patients(part)) for part in ("training", "validation")}
    others = sorted(set(nodules.patients.tolist()) - known["training"] - known["validation"] - set(held_out))
    if len(others) > 1:
        split = data.record["split"]
        options = SplitOptions(split.get("validation_share", 0.2), split.get("seed", 0))
        drawn = split_patients([others], options)
        known["training"] |= set(drawn.training)
        known["validation"] |= set(drawn.validation)
    return {part: nodules.of(sorted(names - set(held_out))) for part, names in known.items()}


@dataclass(frozen=True)
class CubeDraw:
    """A cube to be made.

    :param nodule: which nodule, where its kind has one.
    :param lung: which cube of healthy lung or structure, where its kind has one.
    :param turn: radians in the plane.
    :param shift_mm: of what is in the middle.
    :param size: factor on a nodule before it is planted.
    """

    kind: CubeKind
    nodule: int
    lung: int
    flips: tuple[bool, bool, bool]
    turn: float
    scale: float
    shift_mm: tuple[float, float, float]
    disturbance: Disturbance
    size: float = 1.0

    @property
    def yes(self) -> bool:
        """Whether a nodule is in the middle, the right answer."""
        return self.kind in _NODULE_KINDS


class NoduleSource(Source):
    """Cubes with and without a nodule in the middle, from one side of a dataset's split.

    :param healthy, structures: cubes at 1 mm around places without a nodule; there may be no structure.
    :param edge: of the cubes that the judge sees.
    :raises InputError: when no kind of cube without a nodule has a weight.
    """

    def __init__(
        self, nodules: Nodules, healthy: CubeSet, structures: CubeSet, edge: int, config: NoduleSampling
    ) -> None:
        self._nodules, self._edge, self._config = nodules, edge, config
        self._healthy, self._structures = (CubeSet(_trimmed(c.hu), c.patients) for c in (healthy, structures))
        # A large nodule fills the cube; there is no place beside it.
        room = np.linalg.norm(np.full(3, _REACH_MM)) - CLEAR_MM
        self._small = np.flatnonzero(nodules.radii + np.linalg.norm(nodules.centers, axis=1) <= room)
        without = {"structure": not len(structures.hu), "beside": not len(self._small)}
        if len(config.planted_mm) not in (0, 2):
            raise InputError("planted_mm takes the smallest and the largest diameter, or nothing.")
        wanted = {kind: 0.0 if without.get(kind) else getattr(config, kind) for kind in _OTHER_KINDS}
        if sum(wanted.values()) == 0:
            raise InputError("All kinds of cubes without a nodule have the weight 0; give at least one.")
        self._kinds, self._weights = list(wanted), np.array(list(wanted.values())) / sum(wanted.values())

    @classmethod
    def of(cls, data: Dataset, part: Part, edge: int, config: NoduleSampling, held_out: Sequence[str]) -> NoduleSource:
        """From the dataset's cubes and scans, and the file of nodules.

        :raises InputError: when there is no nodule or no healthy lung.
        """
        found = []
        if config.file:
            found.append(split_nodules(training_nodules(data.folder / config.file), data, held_out)[part])
        named = set(found[0].patients.tolist()) if found else set()
        if data.count("injector", part):
            cubes = data.cubes("injector", part)
            centers, radii = np.zeros((len(cubes.hu), 3)), np.full(len(cubes.hu), _UNKNOWN_DIAMETER_MM / 2)
            others = set(data.patients(part)) - named - set(held_out)
            found.append(Nodules(_trimmed(cubes.hu), centers, radii, cubes.patients).of(sorted(others)))
        if not sum(len(nodules.hu) for nodules in found):
            raise InputError(f"There is no nodule for {part}; prepare scans with findings, or name a file of nodules.")
        nodules = Nodules(*(np.concatenate([getattr(n, f.name) for n in found]) for f in dataclasses.fields(Nodules)))
        lung = data.cubes("remover", part)
        clear = ~np.isin(lung.patients, list(held_out))
        if not clear.any():
            raise InputError(f"There is no healthy lung for {part}; prepare more scans, or hold out fewer patients.")
        structures = [
            (cut_cube(scan.volume(), kji), scan.patient)
            for scan in (data.scans(part) if config.structure else ())
            if scan.patient not in held_out
            for kji in clear_structures(scan)
        ]
        cubes = np.array([cube for cube, _patient in structures], np.int16).reshape(-1, EDGE, EDGE, EDGE)
        names = np.array([patient for _cube, patient in structures], dtype=np.str_)
        return cls(nodules, CubeSet(lung.hu[clear], lung.patients[clear]), CubeSet(cubes, names), edge, config)

    @functools.cached_property
    def _spots(self) -> np.ndarray:
        """The brightest spot of each healthy cube, (n, 3) mm from its middle; minutes for many, so only when asked."""
        return np.stack([_brightest_spot(cube) for cube in self._healthy.hu])

    def __len__(self) -> int:
        return 2 * len(self._nodules.hu)

    def marks(self) -> Iterator[np.ndarray]:
        yield from (self._nodules.hu, self._healthy.hu, self._structures.hu)

    def described(self) -> str:
        owners, others = (len(np.unique(cubes.patients)) for cubes in (self._nodules, self._healthy))
        return (
            f"{len(self._nodules.hu)} nodules of {owners} patients, {len(self._healthy.hu)} places of healthy lung and "
            f"{len(self._structures.hu)} nodule-like structures of {others} patients"
        )

    def draw_kind(self, yes: bool, count: int, rng: np.random.Generator) -> list[CubeDraw]:
        """Cubes with a nodule alone, or without one alone."""
        return [self._draw_one(yes, rng) for _ in range(count)]

    def healthy(self, count: int) -> np.ndarray:
        """Cubes of healthy lung as they are, evenly chosen, int16 (count, edge, edge, edge) HU."""
        chosen = np.unique(np.linspace(0, len(self._healthy.hu) - 1, count).astype(int))
        start = EDGE // 2 - self._edge // 2
        middle = (slice(start, start + self._edge),) * 3
        return self._healthy.hu[(chosen, *middle)]

    def solid(self, diameters_mm: tuple[float, float], middle_hu: float) -> NoduleSource:
        """This source with only the nodules between two diameters whose middle has at least this mean.

        :raises InputError: when none is left.
        """
        nodules = self._nodules
        means = np.array(
            [
                _moved(cube, np.rint(center).astype(int))[(slice(EDGE // 2 - 2, EDGE // 2 + 3),) * 3].mean()
                for cube, center in zip(nodules.hu, nodules.centers, strict=True)
            ]
        )
        low, high = diameters_mm
        chosen = (2 * nodules.radii >= low) & (2 * nodules.radii <= high) & (means >= middle_hu)
        if not chosen.any():
            raise InputError(f"No nodule of {low:g} to {high:g} mm is as dense as {middle_hu:g} HU; take more.")
        return NoduleSource(nodules.take(chosen), self._healthy, self._structures, self._edge, self._config)

    def views_with_quiet(self, drawn: Sequence[CubeDraw]) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`views`, and the same without the noise that disturbs them."""
        still = self._still(drawn)
        quiet = [dataclasses.replace(one.disturbance, noise_hu=0.0) for one in drawn]
        return disturb(still, [one.disturbance for one in drawn]), disturb(still, quiet)

    def _still(self, drawn: Sequence[CubeDraw]) -> torch.Tensor:
        cubes = torch.from_numpy(np.stack([self._cube(one) for one in drawn])).float()
        return _resampled(cubes, drawn, self._edge)

    def groups(self) -> list[Group]:
        """Every nodule as it is, planted, erased and beside the middle, and places without one."""
        rng = np.random.default_rng(0)
        each, lungs = np.arange(len(self._nodules.hu)), len(self._healthy.hu)
        pairs = list(zip(each, rng.integers(lungs, size=len(each)), strict=True))
        some = np.unique(np.linspace(0, lungs - 1, _LUNG_PER_NODULE * len(each)).astype(int))
        wanted: dict[CubeKind, list[tuple[int, int]]] = {
            "nodule": pairs,
            "planted": pairs,
            "healthy": [(0, lung) for lung in some],
            "spot": [(0, lung) for lung in some],
            "structure": [(0, number) for number in range(len(self._structures.hu))],
            "beside": [(nodule, 0) for nodule in self._small],
            "erased": pairs,
        }
        return [self._group(kind, places, rng) for kind, places in wanted.items() if places]

    def _group(self, kind: CubeKind, places: Sequence[tuple[int, int]], rng: np.random.Generator) -> Group:
        still = {"flips": (False,) * 3, "turn": 0.0, "scale": 1.0, "disturbance": Disturbance()}
        drawn = [
            CubeDraw(kind, int(nodule), int(lung), shift_mm=tuple(self._middle(kind, nodule, lung, rng)), **still)
            for nodule, lung in places
        ]
        if kind in ("healthy", "spot", "structure"):
            owners = self._lungs(kind).patients[[one.lung for one in drawn]]
        else:
            owners = self._nodules.patients[[one.nodule for one in drawn]]
        return Group(kind, kind in _NODULE_KINDS, hu_from_float(self._still(drawn).numpy()), owners)

    def _draw_one(self, yes: bool, rng: np.random.Generator) -> CubeDraw:
        config = self._config
        if yes:
            kind: CubeKind = "planted" if rng.random() < config.planted else "nodule"
        else:
            kind = self._kinds[rng.choice(len(self._kinds), p=self._weights)]
        nodule = int(rng.choice(self._small) if kind == "beside" else rng.integers(len(self._nodules.hu)))
        lung = int(rng.integers(len(self._lungs(kind).hu)))
        near = rng.uniform(-config.shift_mm, config.shift_mm, 3) * (kind not in ("healthy", "beside"))
        if kind == "healthy":
            near = rng.uniform(-_REACH_MM, _REACH_MM, 3)
        sized = kind == "planted" and config.planted_mm
        return CubeDraw(
            kind,
            nodule,
            lung,
            flips=tuple(bool(flip) for flip in rng.random(3) < 0.5),
            turn=float(np.pi / 2 * rng.integers(4) + rng.uniform(-0.2, 0.2)),
            scale=float(rng.uniform(1 - config.scale, 1 + config.scale)),
            shift_mm=tuple(np.clip(self._middle(kind, nodule, lung, rng) + near, -_REACH_MM, _REACH_MM).tolist()),
            disturbance=config.disturbances.draw(rng),
            size=float(rng.uniform(*config.planted_mm) / (2 * self._nodules.radii[nodule])) if sized else 1.0,
        )

    def _lungs(self, kind: CubeKind) -> CubeSet:
        return self._structures if kind == "structure" else self._healthy

    def _middle(self, kind: CubeKind, nodule: int, lung: int, rng: np.random.Generator) -> np.ndarray:
        """Where in its cube a sample has its middle, in mm from the cube's middle."""
        if kind == "nodule":
            return self._nodules.centers[nodule]
        if kind == "spot":
            return self._spots[lung]
        if kind == "beside":
            return self._beside(nodule, rng)
        return np.zeros(3)

    def _beside(self, nodule: int, rng: np.random.Generator) -> np.ndarray:
        """A middle that the nodule keeps clear of, or as nearly as those tried allow."""
        candidates = rng.uniform(-_REACH_MM, _REACH_MM, (64, 3))
        distances = np.linalg.norm(candidates - self._nodules.centers[nodule], axis=1)
        enough = np.flatnonzero(distances >= self._nodules.radii[nodule] + CLEAR_MM)
        return candidates[enough[0] if len(enough) else distances.argmax()]

    def _cube(self, drawn: CubeDraw) -> np.ndarray:
        """The cube that a sample is cut from, float32 (EDGE, EDGE, EDGE) HU."""
        lung = self._lungs(drawn.kind).hu[drawn.lung].astype(np.float32)
        if drawn.kind in ("healthy", "spot", "structure"):
            return lung
        nodule = self._nodules.hu[drawn.nodule]
        if drawn.kind in ("nodule", "beside"):
            return nodule.astype(np.float32)
        nodule = _moved(nodule, np.rint(self._nodules.centers[drawn.nodule]).astype(int)).astype(np.float32)
        radius = self._nodules.radii[drawn.nodule]
        if drawn.size != 1:
            nodule, radius = _sized(nodule, drawn.size), radius * drawn.size
        weight = _ball(radius + 2.0)
        return lung + weight * (nodule - lung) if drawn.kind == "planted" else nodule + weight * (lung - nodule)


def _trimmed(cubes: np.ndarray) -> np.ndarray:
    """The middle EDGE voxels of cubes, int16, in the common range of HU; smaller ones with their border repeated."""
    size = cubes.shape[1]
    start = np.arange(EDGE) + (size - EDGE) // 2
    axis = np.clip(start, 0, size - 1)
    return np.clip(cubes[:, axis][:, :, axis][:, :, :, axis], *_CLIP_HU).astype(np.int16)


def _brightest_spot(cube: np.ndarray) -> np.ndarray:
    """Where within reach of the middle a cube is most like a small ball, in mm from its middle voxel."""
    tissue = np.clip(cube, -900, 100).astype(np.float32)
    reach = slice(EDGE // 2 - _REACH_MM, EDGE // 2 + _REACH_MM + 1)
    response = -ndimage.gaussian_laplace(tissue, _SPOT_SIGMA_MM, truncate=3.0)[reach, reach, reach]
    return np.array(np.unravel_index(response.argmax(), response.shape)) - _REACH_MM


def _moved(cube: np.ndarray, center: np.ndarray) -> np.ndarray:
    """The cube with what lies ``center`` voxels from its middle brought there; its border repeats."""
    axes = (np.clip(np.arange(EDGE) + shift, 0, EDGE - 1) for shift in center)
    return cube[np.ix_(*axes)]


def _sized(cube: np.ndarray, factor: float) -> np.ndarray:
    """The cube with what is in its middle ``factor`` times as large; beyond its border it repeats."""
    axis = torch.linspace(-1, 1, EDGE) / factor
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1], dim=-1)
    options = {"padding_mode": "border", "align_corners": True}
    return F.grid_sample(torch.from_numpy(cube)[None, None], grid[None], **options)[0, 0].numpy()


def _ball(radius_mm: float) -> np.ndarray:
    """Weights (EDGE, EDGE, EDGE) of a ball in the middle that fades out over about 4 mm around its surface."""
    axis = np.arange(EDGE) - EDGE // 2
    distance = np.sqrt(sum(np.meshgrid(axis**2, axis**2, axis**2, indexing="ij")))
    return (1 / (1 + np.exp(np.clip(distance - radius_mm, -30, 30)))).astype(np.float32)


def _resampled(cubes: torch.Tensor, drawn: Sequence[CubeDraw], edge: int) -> torch.Tensor:
    """Cubes (n, EDGE, EDGE, EDGE) flipped, turned, scaled and shifted as drawn, (n, edge, edge, edge), at 1 mm.

    Voxel edge / 2 of the result is the middle of the sample, as in the attacker's cube.
    """
    matrices = torch.stack([_matrix(one) for one in drawn])
    steps = torch.arange(edge, dtype=torch.float32) - edge // 2
    points = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), dim=-1)
    shifts = torch.tensor([one.shift_mm for one in drawn], dtype=torch.float32)
    where = torch.einsum("nab,zyxb->nzyxa", matrices, points) + shifts.view(-1, 1, 1, 1, 3)
    # grid_sample counts from -1 to 1, and takes x, y, z.
    grid = where.flip(-1) / (EDGE // 2)
    return F.grid_sample(cubes.unsqueeze(1), grid, padding_mode="reflection", align_corners=True).squeeze(1)


def _matrix(drawn: CubeDraw) -> torch.Tensor:
    """From the result's (slice, row, column) in mm to the cube's."""
    cosine, sine = float(np.cos(drawn.turn)), float(np.sin(drawn.turn))
    turned = torch.tensor([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    signs = torch.tensor([-1.0 if flip else 1.0 for flip in drawn.flips])
    return turned * signs * drawn.scale
