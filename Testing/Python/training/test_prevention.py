"""Training for prevention: judges' sureness leads it, and what it proposes has no slow part."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANTrainingLib.training.engine import Step
from MITSGANTrainingLib.training.prevention import PreventionTask
from MITSGANTrainingLib.training.recipes import load_recipe
from scipy import ndimage
from training_rivals import Bench

TINY = """
task = "prevention"
name = "tiny"
attackers = ["untrained"]
context = 4
validation_targets = 1
judges = ["nodule-plain"]
[generator]
trunk_filters = 4
residual_blocks = 1
output = "residual"
unshuffle = 2
slower_mm = 6.0
[budget]
strength_hu = 40.0
[training]
steps = 2
batch_size = 1
save_every = 1
validate_every = 2
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory, phantom, untrained_attackers) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("prevention"), TINY, phantom.volume, untrained_attackers)


@pytest.mark.slow
def test_a_protector_within_its_budget_and_without_a_slow_part(bench, tmp_path, phantom):
    assert bench.train(tmp_path) == 0
    path = tmp_path / "models" / "protectors" / "tiny.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    assert {"nodule-plain", "untrained-inject"} <= set(card["training"]["inputs"])
    protected = protect(phantom.volume, model=load_protector(path), device="cpu")
    change = np.subtract(protected.hu, phantom.volume.hu, dtype=np.float32)
    assert 0 < np.abs(change).max() <= 40
    sigma = [0, *(6.0 / np.array(phantom.volume.spacing_kji[1:]))]
    slow = ndimage.gaussian_filter(change, sigma)
    assert np.sqrt(np.mean(slow**2)) < 0.2 * np.sqrt(np.mean(change**2))


@pytest.mark.slow
def test_the_loss_is_the_judges_and_reaches_every_weight(bench):
    task: PreventionTask = bench.task()
    samples = task.draw(Step(0, 0, 2))
    (loss,) = task.losses(samples, {"generator": task.network.train()})
    (sure,) = (value for name, value in loss.scalars.items() if name.startswith("untrained"))
    expected = sure + task.config.pattern_weight * loss.scalars["pattern"]
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.value.backward()
    assert all(p.grad is not None and torch.any(p.grad != 0) for p in task.network.parameters())


def test_the_shipped_recipe_leaves_no_offset():
    config = load_recipe("mitsgan-prevent").config
    assert config.generator.slower_mm > 0
    assert config.budget.noise_share is not None
