"""Cubes that come ready made, without their scans: an ``.npz`` with ``hu``, ``patient`` and ``diameter_mm``."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from MITSGANLib.errors import InputError
from MITSGANLib.files.atomic import atomic_file

from .cutting import EDGE


@dataclass(frozen=True)
class ReadyCubes:
    """Nodules large enough for the injector: ``hu`` int16 (n, edge, edge, edge) at 1 mm, in the order of the file."""

    path: Path
    hu: np.ndarray
    patients: np.ndarray
    diameter_mm: np.ndarray

    def without(self, patients: Collection[str]) -> ReadyCubes:
        """The cubes of all other patients."""
        keep = ~np.isin(self.patients, sorted(patients))
        return ReadyCubes(self.path, self.hu[keep], self.patients[keep], self.diameter_mm[keep])

    def write(self, path: Path, names: Mapping[str, str]) -> None:
        """Write them with each patient under the name that ``names`` gives.

        :raises OutputError: when the file cannot be written.
        """
        renamed = np.array([names[patient] for patient in self.patients.tolist()], dtype=np.str_)
        with atomic_file(path, overwrite=True) as temporary, temporary.open("wb") as file:
            np.savez(file, hu=self.hu, patient=renamed, diameter_mm=self.diameter_mm)


def read_ready_cubes(path: Path, injector_from_mm: float) -> ReadyCubes:
    """Read a file of cubes; larger ones are cut down to the edge used here, around their middle voxel.

    :raises InputError: not readable, arrays that are missing or do not fit together, cubes too small, or no nodule
        large enough.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            hu, patients, diameter = (data[name] for name in ("hu", "patient", "diameter_mm"))
    except KeyError as error:
        problem = f"{path} lacks the array {error.args[0]}; it must hold hu, patient and diameter_mm."
        raise InputError(problem) from error
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read; give an .npz file with hu, patient and diameter_mm.") from error
    if hu.ndim != 4 or len(set(hu.shape[1:])) != 1 or patients.shape != hu.shape[:1] or diameter.shape != hu.shape[:1]:
        raise InputError(f"{path}: hu must be (n, edge, edge, edge), and patient and diameter_mm of length n.")
    if not np.issubdtype(hu.dtype, np.integer):
        raise InputError(f"{path}: hu must be whole numbers in HU, not {hu.dtype}.")
    if hu.shape[1] < EDGE:
        raise InputError(
            f"{path} has cubes of {hu.shape[1]} mm; turning and shifting them in training needs {EDGE} mm."
        )
    large = diameter >= injector_from_mm
    if not large.any():
        raise InputError(f"{path} has no nodule of at least {injector_from_mm:g} mm.")
    first = hu.shape[1] // 2 - EDGE // 2
    cubes = hu[large][:, *(slice(first, first + EDGE),) * 3].astype(np.int16)
    return ReadyCubes(path, cubes, patients[large].astype(np.str_), diameter[large].astype(np.float32))
