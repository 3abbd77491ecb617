"""A small prepared dataset with nodules and lung on either side, a judge, and recipes of the mark and its removal."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
from judge_data import untrained, write_judge
from MITSGANLib.budget.budget import Budget
from MITSGANLib.judges.judge import Judge, Sight
from MITSGANLib.protection.diagnosis_blocking import BlockingConfig, DiagnosisBlocker
from MITSGANLib.protection.proposer import BLOCKER_KIND
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.weights import ModelCard, half_precision, write_weights
from training_data import LARGE_EDGE as EDGE
from training_data import LUNG_HU, balls, write_dataset

PATIENTS = ("patient-0", "patient-2", *"abcdefghij")

MARK = """
task = "diagnosis-blocking"
name = "tiny-mark"
judges = ["mine"]
validation_samples = 2
[search]
passes = 3
first_step = 0.6
reach = 0.0
false_mm = 32.0
[budget]
strength_hu = 300.0
soft_tissue = 0.5
[cubes]
slice_mm = [4.0]
pixel_mm = [1.5, 2.0]
[cubes.nodule]
file = "nodules.npz"
[training]
steps = 1
batch_size = 1
"""
UNMARK = """
task = "unblocking"
name = "tiny-unmark"
protector = "tiny-mark"
pairs = 4
slices = 4
validation_samples = 2
[network]
filters = 4
layers = 2
limit_hu = 300.0
[cubes]
slice_mm = [4.0]
pixel_mm = [1.5, 2.0]
[cubes.nodule]
file = "nodules.npz"
[training]
steps = 4
batch_size = 2
validate_every = 2
"""


def write_mark_dataset(folder: Path, volume: CTVolume) -> Path:
    """A dataset of the phantom with healthy lung of both sides, and a file of nodules beside."""
    write_dataset(folder, {"patient-0": volume, "patient-2": volume})
    record = json.loads((folder / "dataset.json").read_text())
    healthy = np.random.default_rng(1).normal(LUNG_HU, 20, (6, EDGE, EDGE, EDGE)).astype(np.int16)
    np.savez(folder / "cubes" / "lung.npz", hu=healthy, patient=np.repeat(["patient-0", "patient-2"], 3))
    record["cubes"] = [{"id": "lung", "injector": 0, "remover": 6, "patients": {"patient-0": 3, "patient-2": 3}}]
    (folder / "dataset.json").write_text(json.dumps(record))
    count = len(PATIENTS)
    np.savez(folder / "nodules.npz", hu=balls(count, 0), patient=np.array(PATIENTS), diameter_mm=np.full(count, 10.0))
    return folder


def tiny_mark(**search: object) -> DiagnosisBlocker:
    """A mark against the judge that :func:`write_mark_models` writes, three passes unless ``search`` says otherwise."""
    judge = Judge("mine", "nodule", Sight("cube", 32), _trained_judge(), 0.5, "digest of mine")
    return DiagnosisBlocker(
        (judge,), BlockingConfig(**{"passes": 3, "first_step": 0.6, "reach": 0.0, "false_mm": 32.0, **search})
    )


def write_mark(path: Path, mark: DiagnosisBlocker, **changes: object) -> ModelCard:
    """The model file of a mark, its card with changes."""
    fields = {
        "name": path.stem,
        "kind": BLOCKER_KIND,
        "architecture": mark.architecture(),
        "training": {"inputs": {judge.name: judge.digest for judge in mark.judges}},
        "budget": Budget(strength_hu=40.0).to_dict(),
        **dict.fromkeys(("description", "limits", "command", "commit"), ""),
        "data": {},
        "figures": {},
        "seed": 0,
    }
    return write_weights(path, mark.tensors(), ModelCard(**fields | changes))


def write_mark_models(folder: Path) -> Path:
    """A folder of models with the judge that the recipe names; it tells balls from lung."""
    card = write_judge(folder, "mine", figures={"threshold": 0.5})
    write_weights(folder / "judges" / "mine.safetensors", half_precision(_trained_judge()), card)
    return folder


@functools.cache
def _trained_judge() -> torch.nn.Module:
    network = untrained("PlainNetwork").train()
    for module in network.modules():
        # Few steps: the averages of batch norm have to keep up.
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 0.5
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    part = slice(9, 41)
    nodules = balls(4, 1)[:, part, part, part]
    lung = np.random.default_rng(2).normal(LUNG_HU, 20, nodules.shape)
    cubes = torch.from_numpy(np.concatenate([nodules, lung]).astype(np.float32))
    answers = (torch.arange(len(cubes)) < len(nodules)).float()
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(cubes), answers).backward()
        optimizer.step()
    return network.eval()
