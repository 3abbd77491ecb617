"""MITS-GAN's published objective from train.py: it trains, resumes, and its gradient flows through the attacker."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from MITSGANLib.errors import InputError
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANTrainingLib.training.engine import Step
from MITSGANTrainingLib.training.mitsgan import MITSGANTask
from MITSGANTrainingLib.training.recipes import load_recipe
from training_rivals import Bench, assert_resumes, learn

TINY = """
task = "mitsgan"
name = "tiny"
attackers = ["untrained"]
crop = 32
slices = 4
validation_targets = 1
[generator]
trunk_filters = 4
residual_blocks = 1
[discriminator]
base_filters = 2
strided_layers = 3
[budget]
strength_hu = 4095.0
soft_tissue = 1.0
bone = 1.0
[training]
steps = 3
batch_size = 1
save_every = 1
validate_every = 3
images_every = 3
"""


def manipulation(task: MITSGANTask, added: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The manipulation loss of the first step, and its gradient by the voxels.

    :param added: what the generator adds to the slices, in the networks' range; else nothing.
    """
    seen = []

    def generator(slices: torch.Tensor, _noise: torch.Tensor) -> torch.Tensor:
        seen.append((torch.zeros_like(slices) if added is None else added).requires_grad_())
        return slices + seen[0]

    networks = {"generator": generator, "discriminator": task.discriminator}
    *_, loss = task.losses(task.draw(Step(0, 0, 1)), networks)
    value = loss.scalars["manipulation"]
    return value.detach(), torch.autograd.grad(value, seen[0])[0]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, phantom, untrained_attackers) -> Bench:
    return Bench.make(tmp_path_factory.mktemp("mitsgan"), TINY, phantom.volume, untrained_attackers)


class TestTraining:
    @pytest.mark.slow
    def test_train_py_makes_a_protector_that_paints_slices(self, bench, tmp_path, phantom):
        assert bench.train(tmp_path) == 0
        path = tmp_path / "models" / "protectors" / "tiny.safetensors"
        card = json.loads(path.with_suffix(".json").read_text())
        assert card["training"]["alpha"] == 1.0
        assert card["figures"]["rmse_hu"] > 0
        assert card["figures"]["loss"] == pytest.approx(card["figures"]["domain"] - card["figures"]["manipulation"])
        protector = load_protector(path)
        assert (protector.proposer.config.output, protector.budget.strength_hu) == ("image", 4095.0)
        change = protect(phantom.volume, model=protector).hu.astype(int) - phantom.volume.hu
        assert np.abs(change).max() > 100, "nothing but its range bounds the paper's operating point"

    @pytest.mark.slow
    def test_a_resumed_run_equals_an_unbroken_one(self, bench, tmp_path, monkeypatch):
        assert_resumes(bench, tmp_path, 2, monkeypatch)

    @pytest.mark.slow
    def test_both_networks_learn_their_parts(self, bench):
        """The discriminator's loss falls below a guess; the manipulation loss, weighted up, rises."""
        seen = learn(bench.task(learning_rate=3e-3, alpha=20.0, compared="square"), 25)
        assert np.mean([scalars["discriminator"] for scalars in seen[-5:]]) < 2 * math.log(2) - 0.1
        first, last = (np.mean([s["manipulation"] for s in part]) for part in (seen[:3], seen[-3:]))
        assert last > 1.3 * first

    @pytest.mark.slow
    def test_warm_up_brings_the_generator_to_its_slice(self, bench):
        made = bench.task(learning_rate=3e-3, warm_up=20)
        assert [made.draw(Step(number, 0, 1))[0].warm_up for number in (0, 19, 20)] == [True, True, False]
        seen = learn(made, 21)
        assert seen[19]["generator"] < 0.7 * seen[0]["generator"]
        assert "manipulation" not in seen[19]
        assert "manipulation" in seen[20]


class TestObjective:
    @pytest.mark.slow
    def test_gradient_flows_through_the_attacker_unless_turned_off(self, bench):
        """Voxels of the shell move what is forged in the middle; as a constant, the forgery has no such part."""
        gradients, values = {}, {}
        for through in (True, False):
            values[through], gradients[through] = manipulation(bench.task(through_attacker=through))
        assert values[True] == values[False] > 0
        flowing = (gradients[True] - gradients[False]).abs()
        assert flowing.max() > 0.01 * gradients[False].abs().max()

    @pytest.mark.slow
    def test_gradient_is_that_of_the_loss(self, bench):
        """A step of at most 1 HU along it changes the loss by what it says."""
        made = bench.task()
        _value, gradient = manipulation(made)
        low, high = made.config.generator.hu_window
        step = gradient / gradient.abs().max() * (2 / (high - low))
        change = manipulation(made, step / 2)[0] - manipulation(made, -step / 2)[0]
        assert change.item() == pytest.approx((gradient * step).sum().item(), rel=0.1)

    @pytest.mark.slow
    def test_mean_over_slices_is_the_cubes_share_of_whole_slices(self, bench):
        square, slices = (manipulation(bench.task(compared=compared))[0].item() for compared in ("square", "slices"))
        # The cube has 13 x 11 x 11 voxels at 2.5 x 2.8 x 2.8 mm, and the slab 13 slices of 128x128.
        assert slices == pytest.approx(square * 11 * 11 / 128 / 128, rel=1e-5)

    @pytest.mark.slow
    def test_attackers_stay_as_they_are(self, bench, untrained_attackers):
        attackers = list(untrained_attackers.values())
        made = bench.task(against=attackers)
        before = [p.clone() for attacker in attackers for p in attacker.inpainter.generator.parameters()]
        networks = {name: learner.module for name, learner in made.learners.items()}
        for loss in made.losses(made.draw(Step(0, 0, 1)), networks):
            loss.value.backward()
        after = [p for attacker in attackers for p in attacker.inpainter.generator.parameters()]
        assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))

    @pytest.mark.slow
    def test_a_pass_shows_as_many_slices_as_there_are(self, bench):
        assert bench.task(slices=16).samples_per_epoch == 3
        assert bench.task(slices=4).samples_per_epoch == 12


class TestRecipes:
    def test_shipped_ones_are_the_papers_and_the_public_codes(self):
        paper, public, cpu = (load_recipe(f"mitsgan-{name}").config for name in ("paper", "public-code", "paper-cpu"))
        kind = type(paper.generator)
        assert paper.generator == kind()
        assert cpu.generator == kind()
        assert public.generator == kind(noise_kernel=1, noise="uniform", first_batch_norm=False, last_kernel=1)
        assert (paper.alpha, public.alpha) == (1.0, 0.1)
        assert {paper.compared, public.compared, cpu.compared} == {"slices"}
        assert (paper.through_attacker, public.through_attacker) == (True, False)
        training = load_recipe("mitsgan-paper").training
        assert (training.epochs, paper.slices, paper.learning_rate, paper.betas) == (20, 16, 2e-4, (0.5, 0.999))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"generator.output": "residual"}, "generator.output"),
            ({"generator.trunk_filters": 0}, "trunk_filters"),
            ({"discriminator.strided_layers": 0}, "strided_layers"),
            ({"discriminator.strided_layers": 5}, "needs 128 rows"),
            ({"compared": "cube"}, "compared"),
            ({"alpha": -1.0}, "alpha"),
            ({"alfa": 1.0}, "alpha"),
        ],
    )
    def test_mistakes_name_the_key(self, bench, changes, words):
        with pytest.raises(InputError, match=words):
            load_recipe(bench.recipe, changes)

    def test_slices_too_small_for_the_discriminator_are_named(self, bench):
        with pytest.raises(InputError, match="strided_layers"):
            bench.task(**{"crop": 0, "discriminator.strided_layers": 6})
