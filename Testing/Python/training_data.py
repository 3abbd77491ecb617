"""A small prepared dataset on disk, as ``mitsgan prepare`` lays it out, for tests of training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from MITSGANLib import weights
from MITSGANLib.attack.attacker import Attacker, own_tensors
from MITSGANLib.scan.lungs import lung_positions, nodule_like_positions
from MITSGANLib.scan.volume import CTVolume

EDGE = 40
LARGE_EDGE = 51  # of cubes around nodules, with room for turns and shifts
LUNG_HU, NODULE_HU = -850, 20


def nodule_cubes(count: int, seed: int) -> np.ndarray:
    """Bright blocks in noisy lung, int16 (count, 40, 40, 40) HU."""
    hu = np.random.default_rng(seed).normal(-850, 60, (count, EDGE, EDGE, EDGE)).astype(np.int16)
    hu[:, 12:28, 12:28, 12:28] = 20
    return hu


def write_dataset(folder: Path, volumes: Mapping[str, CTVolume] | None = None, seed: int = 0) -> Path:
    """Six nodule cubes of three patients, the last of whom validates, and scans under the patients' names."""
    patients = ["patient-0", "patient-1", "patient-2"]
    (folder / "cubes").mkdir(parents=True)
    names = np.repeat(patients, 2)
    zeros = {"diameter_mm": np.full(6, 12.0, np.float32), "kji": np.zeros((6, 3), np.float32)}
    np.savez(folder / "cubes" / "ready.npz", hu=nodule_cubes(6, seed), patient=names, **zeros)
    scans = [_write_scan(folder, patient, volume) for patient, volume in (volumes or {}).items()]
    record = {
        "version": 1,
        "split": {"seed": 0, "training": patients[:2], "validation": patients[2:]},
        "scans": scans,
        "cubes": [{"id": "ready", "injector": 6, "remover": 0}],
        "skipped": [],
    }
    (folder / "dataset.json").write_text(json.dumps(record))
    return folder


def write_untrained_attackers(folder: Path, attackers: Mapping[str, Attacker]) -> None:
    """The attackers of the fixture ``untrained_attackers`` as the installed attacker "untrained" of a models folder."""
    for action, role in (("inject", "injector"), ("remove", "remover")):
        painter = attackers[action].inpainter
        architecture = {"class": "CTGANGenerator", "config": dataclasses.asdict(painter.generator.config)}
        texts = dict.fromkeys(("description", "limits", "command", "commit"), "")
        tables = {"data": {}, "training": {}, "figures": {}, "architecture": architecture}
        card = weights.ModelCard(name="untrained", kind=role, seed=0, **texts, **tables)
        path = folder / "attackers" / "untrained" / f"{role}.safetensors"
        weights.write_weights(path, own_tensors(painter.generator, painter.equalization), card)


def write_nodule_dataset(folder: Path, volume: CTVolume) -> Path:
    """A prepared dataset with a scan on either side, healthy lung of both, and a file of nodules beside."""
    write_dataset(folder, {"patient-0": volume, "patient-2": volume})
    record = json.loads((folder / "dataset.json").read_text())
    names = np.repeat(["patient-0", "patient-2"], 3)
    healthy = np.random.default_rng(1).normal(LUNG_HU, 20, (6, *(LARGE_EDGE,) * 3)).astype(np.int16)
    np.savez(folder / "cubes" / "lung.npz", hu=healthy, patient=names)
    record["cubes"] = [{"id": "lung", "injector": 0, "remover": 6, "patients": {"patient-0": 3, "patient-2": 3}}]
    (folder / "dataset.json").write_text(json.dumps(record))
    write_nodules(folder / "nodules.npz", ["patient-0", "patient-1", "patient-2", *"abcdefghij"])
    return folder


def balls(count: int, seed: int, radius: float = 5.0) -> np.ndarray:
    """Balls of soft tissue in the middle of noisy lung, int16 (count, 51, 51, 51) HU."""
    hu = np.random.default_rng(seed).normal(LUNG_HU, 20, (count, LARGE_EDGE, LARGE_EDGE, LARGE_EDGE))
    axis = np.arange(LARGE_EDGE) - LARGE_EDGE // 2
    ball = sum(np.meshgrid(axis**2, axis**2, axis**2, indexing="ij")) <= radius**2
    hu[:, ball] = NODULE_HU
    return hu.astype(np.int16)


def write_nodules(path: Path, patients: list[str], **arrays: np.ndarray) -> None:
    count = len(patients)
    fields = {"hu": balls(count, 0), "patient": np.array(patients), "diameter_mm": np.full(count, 10.0)}
    np.savez(path, **fields | arrays)


def _write_scan(folder: Path, patient: str, volume: CTVolume) -> dict:
    scan = folder / "scans" / patient
    scan.mkdir(parents=True)
    np.save(scan / "scan.npy", volume.hu)
    record = {
        "digest": f"digest of {patient}",
        "spacing_kji": volume.spacing_kji,
        "origin": volume.origin,
        "direction": volume.direction.tolist(),
        "padding_hu": volume.provenance.padding_hu,
        "noise_sd_hu": 12.0,
        "lung_positions": lung_positions(volume, 60, seed=0, margin_mm=16),
        "nodule_like_positions": nodule_like_positions(volume, 4),
        "findings": [],
    }
    (scan / "scan.json").write_text(json.dumps(record))
    shape = list(volume.shape)
    return {"id": patient, "patient": patient, "shape": shape, "injector": 0, "remover": 0, "digest": record["digest"]}


def same(a: Any, b: Any) -> bool:
    """Nested dictionaries and lists of equal tensors and numbers, to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return a == b
