"""Reader of what ``mitsgan prepare`` wrote: cubes for the attacker's two models, whole scans for protectors.

A prepared folder holds

- ``dataset.json``: version, options, split by patient, and what every scan gave;
- ``scans/ID/``: ``scan.npy`` (int16 HU, memory-mapped), ``scan.json`` (geometry, noise, positions, findings),
  ``injector.npz`` and ``remover.npz`` (``hu`` (n, edge, edge, edge) at 1 mm, ``diameter_mm``, ``kji``);
- ``cubes/ID.npz``: cubes that came ready made, with the ``patient`` of each.

Arrays are (slice, row, column), also written kji. Nothing is augmented on disk: variants are drawn in training.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from MITSGANLib.errors import InputError
from MITSGANLib.scan.volume import CTVolume, Provenance

from .cubes import CubeSet

FORMAT_VERSION = 1
DATASET_FILE = "dataset.json"
SCANS_FOLDER, CUBES_FOLDER = "scans", "cubes"

Role = Literal["injector", "remover"]
Part = Literal["training", "validation"]
ROLES: tuple[Role, ...] = ("injector", "remover")
PARTS: tuple[Part, ...] = ("training", "validation")


@dataclass(frozen=True)
class Finding:
    """Something that readers marked in a scan, in that scan's voxels.

    :param kji: (slice, row, column) of its center; fractions are kept.
    :param diameter_mm: longest diameter in a slice, or None where nobody measured it.
    :param kind: "nodule"; "small nodule" (known to be under 3 mm); "non-nodule" (abnormal, of 3 mm or more); "healthy"
        (a place that a table names as free of findings).
    :param readers: how many readers marked it, or None where the source does not say.
    :param reach_mm: distance from the center to its outermost part, for keeping clear of it.
    """

    kji: tuple[float, float, float]
    diameter_mm: float | None
    kind: Literal["nodule", "small nodule", "non-nodule", "healthy"]
    readers: int | None
    reach_mm: float


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """One whole scan and the places in it that training needs.

    :param hu: int16 (slices, rows, columns) in HU, memory-mapped and read-only.
    :param spacing_kji: mm along (slice, row, column).
    :param padding_hu: the HU of voxels outside the scanner's field of view, where declared.
    :param lung_positions: (n, 3) seeded voxels in the lungs, where an injection makes sense.
    :param nodule_like_positions: (m, 3) voxels of compact bright structures, best first, where a removal does.
    :param origin: LPS mm of voxel (0, 0, 0); ``direction`` as in ``CTVolume``.
    :param noise_sd_hu: the scan's own noise in soft tissue, or None where it could not be measured.
    """

    patient: str
    hu: np.ndarray
    spacing_kji: tuple[float, float, float]
    padding_hu: int | None
    lung_positions: np.ndarray
    nodule_like_positions: np.ndarray
    findings: tuple[Finding, ...] = ()
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: np.ndarray = field(default_factory=lambda: np.eye(3))
    noise_sd_hu: float | None = None
    id: str = ""

    def volume(self) -> CTVolume:
        """The scan as a volume; its voxels stay memory-mapped."""
        provenance = Provenance(source=f"prepared scan {self.id}", format="prepared", padding_hu=self.padding_hu)
        return CTVolume(self.hu, self.spacing_kji[::-1], self.origin, self.direction, provenance)


@dataclass(frozen=True)
class Dataset:
    """A prepared folder and what its ``dataset.json`` says. Use :meth:`open`."""

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Dataset:
        """Read ``dataset.json``.

        :raises InputError: when the folder holds no prepared dataset, or one of another version.
        """
        folder = Path(folder)
        path = folder / DATASET_FILE
        if not path.is_file():
            raise InputError(f"{folder} holds no {DATASET_FILE}; make or finish the dataset with: mitsgan prepare")
        record = _read_json(path)
        if record.get("version") != FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {record.get('version')}, this program reads {FORMAT_VERSION}; "
                "prepare the data again with: mitsgan prepare"
            )
        return cls(folder, record)

    def patients(self, part: Part) -> list[str]:
        """Names (or their digests, as prepared) of the patients of one side of the split.

        :raises InputError: when ``part`` is neither "training" nor "validation".
        """
        if part not in PARTS:
            raise InputError(f"A dataset has the parts {' and '.join(PARTS)}, not '{part}'.")
        return list(self.record["split"][part])

    def cubes(self, role: Role, part: Part) -> CubeSet:
        """All cubes for one model of the attacker, copied into memory: int16 (n, edge, edge, edge) HU at 1 mm.

        :raises InputError: when there is none, or a file is missing or not the one that ``dataset.json`` describes.
        """
        if role not in ROLES:
            raise InputError(f"Cubes are prepared for {' and '.join(ROLES)}, not '{role}'.")
        parts = list(self._cubes(role, set(self.patients(part))))
        if not parts:
            raise InputError(
                f"{self.folder} has no {role} cubes for {part}; prepare more scans or findings, or another split."
            )
        return CubeSet(np.concatenate([hu for hu, _ in parts]), np.concatenate([names for _, names in parts]))

    def count(self, role: Role, part: Part) -> int:
        """How many cubes :meth:`cubes` would give."""
        patients = self.patients(part)
        of_scans = sum(entry[role] for entry in self.record["scans"] if entry["patient"] in patients)
        ready = [entry["patients"] for entry in self.record["cubes"] if entry[role]]
        return of_scans + sum(counts.get(patient, 0) for counts in ready for patient in patients)

    def scans(self, part: Part) -> list[PreparedScan]:
        """The whole scans of one side of the split, in the order of ``dataset.json``; may be empty.

        :raises InputError: when a file is missing or not the one that ``dataset.json`` describes.
        """
        patients = set(self.patients(part))
        return [self._scan(entry) for entry in self.record["scans"] if entry["patient"] in patients]

    def _scan(self, entry: Mapping[str, Any]) -> PreparedScan:
        folder, record = self.folder / SCANS_FOLDER / entry["id"], self._scan_record(entry)
        hu = _load_array(folder / "scan.npy", mmap_mode="r")
        if hu.dtype != np.int16 or list(hu.shape) != list(entry["shape"]):
            raise _changed(folder)
        return PreparedScan(
            patient=entry["patient"],
            hu=hu,
            spacing_kji=tuple(record["spacing_kji"]),
            padding_hu=record["padding_hu"],
            lung_positions=_positions(record["lung_positions"]),
            nodule_like_positions=_positions(record["nodule_like_positions"]),
            findings=tuple(Finding(**{**one, "kji": tuple(one["kji"])}) for one in record["findings"]),
            origin=tuple(record["origin"]),
            direction=np.array(record["direction"], dtype=np.float64),
            noise_sd_hu=record["noise_sd_hu"],
            id=entry["id"],
        )

    def _scan_record(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        folder = self.folder / SCANS_FOLDER / entry["id"]
        record = _read_json(folder / "scan.json")
        if record.get("digest") != entry["digest"]:
            raise _changed(folder)
        return record

    def _cubes(self, role: Role, patients: set[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Cubes with the patient of each, file by file."""
        for entry in self.record["scans"]:
            if entry["patient"] in patients and entry[role]:
                self._scan_record(entry)
                hu = _load_cubes(self.folder / SCANS_FOLDER / entry["id"] / f"{role}.npz", entry[role])["hu"]
                yield hu, np.full(len(hu), entry["patient"])
        for entry in self.record["cubes"]:
            if entry[role]:
                data = _load_cubes(self.folder / CUBES_FOLDER / f"{entry['id']}.npz", entry[role])
                wanted = np.isin(data["patient"], sorted(patients))
                if wanted.any():
                    yield data["hu"][wanted], data["patient"][wanted]


def _positions(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _changed(path) from error
    if not isinstance(record, dict):
        raise _changed(path)
    return record


def _load_array(path: Path, **options: Any) -> Any:
    """An ``.npy`` as array, or an ``.npz`` as dictionary of arrays."""
    try:
        loaded = np.load(path, allow_pickle=False, **options)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _changed(path) from error


def _load_cubes(path: Path, count: int) -> dict[str, np.ndarray]:
    data = _load_array(path)
    if len(data["hu"]) != count:
        raise _changed(path)
    return data


def _changed(path: Path) -> InputError:
    return InputError(
        f"{path} is missing, damaged, or newer than {DATASET_FILE}; finish the dataset with the same mitsgan prepare."
    )
