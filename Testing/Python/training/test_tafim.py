"""TAFIM's training from train.py: bounded change, forgeries nearer to the target, compression in the way, resume."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from MITSGANLib.errors import InputError
from MITSGANLib.protection.inference import hu_to_network
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANLib.protection.tafim import TAFIM
from MITSGANTrainingLib.training.engine import Step
from MITSGANTrainingLib.training.recipes import load_recipe
from MITSGANTrainingLib.training.slabs import SlabScan, mean_square
from MITSGANTrainingLib.training.tafim import TAFIMSample, TAFIMTask
from training_rivals import Bench, assert_resumes, learn

TINY = """
task = "tafim"
name = "tiny"
attackers = ["untrained"]
crop = 32
validation_targets = 1
[model]
base_filters = 2
levels = 2
tile = 48
[budget]
strength_hu = 30.0
[compression]
share = 0.5
[training]
steps = 3
batch_size = 2
save_every = 1
validate_every = 3
images_every = 3
"""


def scalars_of(task: TAFIMTask, sample: TAFIMSample, model: Callable[..., torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The parts of the loss of one sample."""
    (loss,) = task.losses([sample], {"generator": model})
    return loss.scalars


@pytest.fixture(scope="module")
def bench(tmp_path_factory, phantom, untrained_attackers) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("tafim"), TINY, phantom.volume, untrained_attackers)


class TestTraining:
    @pytest.mark.slow
    def test_train_py_makes_a_protector_within_its_budget(self, bench, tmp_path, phantom):
        assert bench.train(tmp_path) == 0
        path = tmp_path / "models" / "protectors" / "tiny.safetensors"
        card = json.loads(path.with_suffix(".json").read_text())
        assert card["architecture"]["class"] == "TAFIM"
        assert 0 < card["figures"]["rmse_hu"] <= 30
        assert card["figures"]["untrained inject compressed moved_hu"] >= 0
        protector = load_protector(path)
        assert isinstance(protector.proposer, TAFIM)
        change = protect(phantom.volume, model=protector).hu.astype(int) - phantom.volume.hu
        assert 0 < np.abs(change).max() <= 30

    @pytest.mark.slow
    def test_a_resumed_run_equals_an_unbroken_one(self, bench, tmp_path, monkeypatch):
        assert_resumes(bench, tmp_path, 1, monkeypatch)

    @pytest.mark.slow
    def test_forgeries_come_nearer_to_the_target(self, bench):
        """With the shipped attackers: what untrained ones forge hardly depends on what they see."""
        made = bench.task(
            attackers=["ctgan-small"], learning_rate=1e-2, **{"budget.strength_hu": 200.0, "training.batch_size": 1}
        )
        seen = [scalars["manipulation"] for scalars in learn(made, 14)]
        assert np.mean(seen[-4:]) < 0.9 * np.mean(seen[:4])


class TestObjective:
    @pytest.mark.slow
    def test_gradient_reaches_the_global_perturbation_and_every_weight(self, bench):
        made = bench.task(**{"compression.share": 1.0})
        networks = {name: learner.module for name, learner in made.learners.items()}
        (loss,) = made.losses(made.draw(Step(0, 0, 2)), networks)
        loss.value.backward()
        assert made.network.perturbation.grad.abs().sum() > 0
        assert all(torch.isfinite(p.grad).all() for p in made.network.parameters())

    @pytest.mark.slow
    def test_change_is_whole_hu_within_the_budget(self, bench):
        made = bench.task()
        samples, window = made.draw(Step(0, 0, 2)), made.config.model.hu_window
        slabs = [sample.slab for sample in samples]
        scans = [
            SlabScan(scan, made.config.slices, made.config.crop, made.config.structure_share)
            for scan in made.inputs.data.scans("training")
        ]
        scan = scans[slabs[0].scan]
        allowed = torch.from_numpy(np.stack([scan.allowed(slab, made.config.budget) for slab in slabs])).float()
        seen = []

        def reconstruction(model) -> torch.Tensor:
            (loss,) = made.losses(samples, {"generator": model})
            return loss.scalars["reconstruction"].detach()

        def share(slices: torch.Tensor, _corners: object) -> torch.Tensor:
            seen.append(slices)
            return torch.full_like(slices, 0.37)

        assert reconstruction(share) == pytest.approx(mean_square((0.37 * allowed).round(), window))
        clean = torch.from_numpy(np.stack([scan.hu(slab) for slab in slabs])).float()
        assert torch.equal(seen[0], hu_to_network(clean, window).flatten(0, 1).unsqueeze(1))
        assert 0 < reconstruction(made.network) <= mean_square(allowed, window)

    def test_compression_is_between_protection_and_attack(self, bench):
        """The same slab and change, compressed hard, give another manipulation loss and the same reconstruction."""
        made = bench.task()
        slab = made.draw(Step(0, 0, 1))[0].slab
        plain, compressed = (scalars_of(made, TAFIMSample(slab, quality), made.network) for quality in (None, 10))
        assert plain["manipulation"] != compressed["manipulation"]
        assert plain["reconstruction"] == compressed["reconstruction"]

    @pytest.mark.parametrize(("forged_hu", "distance"), [(150.0, 0.0), (50.0, (100 * 2 / 2048) ** 2)])
    def test_manipulation_is_the_distance_from_the_target(self, bench, untrained_attackers, forged_hu, distance):
        forger = dataclasses.replace(
            untrained_attackers["inject"], inpainter=lambda cubes: torch.full_like(cubes, forged_hu)
        )
        made = bench.task(against=[forger])
        scalars = scalars_of(made, TAFIMSample(made.draw(Step(0, 0, 1))[0].slab, None), made.network)
        assert scalars["manipulation"].item() == pytest.approx(distance)

    def test_draws_follow_from_the_step_alone(self, bench):
        made = bench.task()
        first, again, other = (made.draw(Step(number, 0, 4)) for number in (5, 5, 6))
        assert first == again != other
        qualities = {sample.quality for number in range(20) for sample in made.draw(Step(number, 0, 4))}
        assert None in qualities
        assert len(qualities) > 10


class TestRecipes:
    def test_shipped_ones_load(self):
        paper, cpu = (load_recipe(f"tafim-{name}").config for name in ("paper", "cpu"))
        assert (paper.crop, paper.model.tile) == (0, 512)
        assert paper.budget == cpu.budget == load_recipe("mitsgan-paper").config.budget

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"model.levels": 0}, "model.levels"),
            ({"budget.strength_hu": 0.0}, "strength_hu"),
            ({"compression.quality": [0, 50]}, "qualit"),
            ({"model.output": "image"}, "model.output"),
            ({"target": 3.0}, "target_hu"),
        ],
    )
    def test_mistakes_name_the_key(self, bench, changes, words):
        with pytest.raises(InputError, match=words):
            load_recipe(bench.recipe, changes)
