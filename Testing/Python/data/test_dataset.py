"""The reader of prepared data, against files written here by hand: the format on disk is a contract."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from MITSGANLib.errors import InputError
from MITSGANTrainingLib.data.dataset import Dataset

EDGE = 6
SHAPE = (4, 5, 6)


def cubes(value: int, count: int) -> dict[str, np.ndarray]:
    return {
        "hu": np.full((count, EDGE, EDGE, EDGE), value, np.int16),
        "diameter_mm": np.full(count, 12.0, np.float32),
        "kji": np.zeros((count, 3), np.float32),
    }


def write_scan(folder: Path, name: str, patient: str, injector: int, remover: int, value: int) -> dict:
    """One scan of constant ``value``; its injector cubes hold ``value + 1``, its remover cubes ``value + 2``."""
    scan = folder / "scans" / name
    scan.mkdir(parents=True)
    np.save(scan / "scan.npy", np.full(SHAPE, value, np.int16))
    np.savez(scan / "injector.npz", **cubes(value + 1, injector))
    np.savez(scan / "remover.npz", **cubes(value + 2, remover))
    record = {
        "digest": f"digest of {name}",
        "spacing_kji": [2.5, 0.7, 0.8],
        "origin": [-10.0, -20.0, 30.0],
        "direction": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "padding_hu": -2000,
        "noise_sd_hu": 11.5,
        "lung_positions": [[1, 2, 3], [2, 2, 2]],
        "nodule_like_positions": [],
        "findings": [
            {"kji": [1.5, 2, 3], "diameter_mm": 12.0, "kind": "nodule", "readers": 3, "reach_mm": 6.5},
        ],
    }
    (scan / "scan.json").write_text(json.dumps(record))
    counts = {"injector": injector, "remover": remover}
    return {"id": name, "patient": patient, "shape": list(SHAPE), **counts, "digest": record["digest"]}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Scans of patients A (two) and B, ready cubes of B and C; A and C train, B validates."""
    scans = [
        write_scan(tmp_path, "a1", "A", injector=1, remover=3, value=10),
        write_scan(tmp_path, "a2", "A", injector=0, remover=2, value=20),
        write_scan(tmp_path, "b1", "B", injector=0, remover=1, value=30),
    ]
    (tmp_path / "cubes").mkdir()
    np.savez(tmp_path / "cubes" / "ready.npz", **cubes(70, 3), patient=np.array(["B", "C", "C"]))
    record = {
        "version": 1,
        "split": {"seed": 0, "training": ["A", "C"], "validation": ["B"]},
        "scans": scans,
        "cubes": [{"id": "ready", "injector": 3, "remover": 0, "patients": {"B": 1, "C": 2}}],
        "skipped": [],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    return tmp_path


def test_cubes_come_from_scans_and_ready_files_with_their_patients(folder):
    dataset = Dataset.open(folder)
    found = dataset.cubes("injector", "training")
    assert found.hu[:, 0, 0, 0].tolist() == [11, 70, 70]
    assert found.patients.tolist() == ["A", "C", "C"]
    found = dataset.cubes("remover", "training")
    assert found.hu[:, 0, 0, 0].tolist() == [12, 12, 12, 22, 22]
    assert found.hu.dtype == np.int16


def test_sides_share_no_patient(folder):
    dataset = Dataset.open(str(folder))
    assert dataset.patients("training") == ["A", "C"]
    for role in ("injector", "remover"):
        for part in ("training", "validation"):
            assert dataset.count(role, part) == len(dataset.cubes(role, part).hu)
        assert set(dataset.cubes(role, "training").patients) <= {"A", "C"}
        assert set(dataset.cubes(role, "validation").patients) == {"B"}
    assert [scan.id for scan in dataset.scans("training")] == ["a1", "a2"]
    assert [scan.id for scan in dataset.scans("validation")] == ["b1"]


def test_scan_is_memory_mapped_and_keeps_its_geometry(folder):
    scan = Dataset.open(folder).scans("training")[0]
    assert isinstance(scan.hu, np.memmap)
    assert not scan.hu.flags.writeable
    assert scan.lung_positions.tolist() == [[1, 2, 3], [2, 2, 2]]
    assert scan.nodule_like_positions.shape == (0, 3)
    assert scan.findings[0].kji == (1.5, 2, 3)
    assert scan.noise_sd_hu == 11.5
    volume = scan.volume()
    assert volume.spacing_kji == scan.spacing_kji == (2.5, 0.7, 0.8)
    assert volume.voxel_to_lps((2, 0, 1)).tolist() == pytest.approx([-9.2, -20, 35])
    assert volume.provenance.padding_hu == scan.padding_hu == -2000
    assert np.shares_memory(volume.hu, scan.hu)


def test_no_cubes_is_an_error_that_names_role_and_part(folder):
    record = json.loads((folder / "dataset.json").read_text())
    record["cubes"] = []
    (folder / "dataset.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="no injector cubes for validation"):
        Dataset.open(folder).cubes("injector", "validation")


@pytest.mark.parametrize(("role", "part", "wrong"), [("judge", "training", "'judge'"), ("injector", "test", "'test'")])
def test_unknown_role_or_part_is_named(folder, role, part, wrong):
    with pytest.raises(InputError, match=wrong):
        Dataset.open(folder).cubes(role, part)


def test_a_folder_without_dataset_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="mitsgan prepare"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("text", ['{"version": 99}', "[]", "{"])
def test_another_version_or_damage_is_refused(folder, text):
    (folder / "dataset.json").write_text(text)
    with pytest.raises(InputError, match="mitsgan prepare"):
        Dataset.open(folder)


@pytest.mark.parametrize("name", ["scan.json", "scan.npy", "injector.npz"])
@pytest.mark.parametrize("kept", [0, 20])
def test_a_cut_off_file_is_named(folder, name, kept):
    path = folder / "scans" / "a1" / name
    path.write_bytes(path.read_bytes()[:kept])
    dataset = Dataset.open(folder)
    with pytest.raises(InputError, match="a1"):
        dataset.cubes("injector", "training") if name.endswith("npz") else dataset.scans("training")


def test_a_scan_that_was_prepared_anew_since_is_not_mixed_in(folder):
    """A stopped run with other options leaves finished scans beside the old ``dataset.json``."""
    path = folder / "scans" / "a1" / "scan.json"
    path.write_text(path.read_text().replace("digest of a1", "digest of other options"))
    dataset = Dataset.open(folder)
    for read in (lambda: dataset.scans("training"), lambda: dataset.cubes("remover", "training")):
        with pytest.raises(InputError, match=r"newer than dataset\.json"):
            read()
