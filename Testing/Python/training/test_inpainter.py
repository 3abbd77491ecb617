"""Training of in-painters of any family: samples as asked for, tasks that learn and resume, models that load."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from MITSGANLib import weights
from MITSGANLib.attack.attacker import load_attacker, simulate_attack
from MITSGANLib.errors import InputError
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.data.cubes import CubeSet
from MITSGANTrainingLib.data.dataset import Dataset
from MITSGANTrainingLib.data.nodules import Nodules
from MITSGANTrainingLib.training import inpainter
from MITSGANTrainingLib.training.engine import Step
from MITSGANTrainingLib.training.inpainter import InpainterTask
from MITSGANTrainingLib.training.inputs import Inputs
from MITSGANTrainingLib.training.nodule_samples import EDGE, NoduleSampling, NoduleSource
from MITSGANTrainingLib.training.recipes import load_recipe
from MITSGANTrainingLib.training.samples import Disturbances
from training_data import LUNG_HU, NODULE_HU, balls, write_nodule_dataset

FAMILIES = {
    "ctgan": "[ctgan]\nbase_filters = 2",
    "unet": "[unet]\nfilters = 4\ngroups = 2",
    "flow": "[flow]\nfilters = 4\ngroups = 2\nsteps = 2",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory, phantom) -> Path:
    return write_nodule_dataset(tmp_path_factory.mktemp("data") / "dataset", phantom.volume)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch) -> None:
    """The look-up table and the validation from few samples: with as many as a recipe takes, most of the time."""
    monkeypatch.setattr(inpainter, "TABLE_SAMPLES", 20)
    monkeypatch.setattr(inpainter, "PLACES", 6)


def recipe_text(family: str, role: str = "injector") -> str:
    return f"""
task = "inpainter"
role = "{role}"
name = "tiny"
{FAMILIES[family]}
[samples]
file = "nodules.npz"
planted_mm = [10.0, 12.0]
structure = 0.0
spot = 0.0
[training]
steps = 4
batch_size = 2
validate_every = 4
images_every = 4
save_every = 2
"""


def task_of(family: str, data: Path, folder: Path, role: str = "injector", **changes: object) -> InpainterTask:
    path = folder / "tiny.toml"
    path.write_text(recipe_text(family, role))
    recipe = load_recipe(path, changes)
    return InpainterTask(recipe.config, recipe.training, Inputs(Dataset.open(data), torch.device("cpu")))


def source(nodules: Nodules, **changes: object) -> NoduleSource:
    lung = CubeSet(np.full((2, EDGE, EDGE, EDGE), LUNG_HU, np.int16), np.full(2, "lung"))
    none = CubeSet(np.empty((0, EDGE, EDGE, EDGE), np.int16), np.empty(0, np.str_))
    still = {"disturbances": Disturbances(0.0, 0.0, 0.0, 0.0), "shift_mm": 0.0, "scale": 0.0}
    return NoduleSource(nodules, lung, none, 32, NoduleSampling(**still | changes))


def of_radii(*radii: float, hu: float = NODULE_HU) -> Nodules:
    cubes = np.concatenate([balls(1, 0, radius) for radius in radii])
    cubes[cubes == NODULE_HU] = hu
    return Nodules(cubes, np.zeros((len(radii), 3)), np.array(radii), np.array([f"r{radius}" for radius in radii]))


class TestSamples:
    @pytest.mark.parametrize("radius", [5.0, 8.0, 12.0])
    def test_planted_nodules_are_brought_to_one_size(self, radius):
        found = source(of_radii(radius), planted=1.0, planted_mm=(12.0, 12.0))
        views = found.views(found.draw_kind(True, 4, np.random.default_rng(0)))
        volume = (views > (LUNG_HU + NODULE_HU) / 2).float().sum(dim=(1, 2, 3))
        diameters = (6 / np.pi * volume.numpy()) ** (1 / 3)
        assert np.abs(diameters - 12).max() < 1

    def test_sizes_stay_where_none_is_asked_for(self):
        found = source(of_radii(8.0), planted=1.0)
        assert {one.size for one in found.draw_kind(True, 20, np.random.default_rng(0))} == {1.0}

    @pytest.mark.parametrize("planted_mm", [(12.0,), (10.0, 12.0, 14.0)])
    def test_one_size_or_three_are_refused(self, planted_mm):
        with pytest.raises(InputError, match="smallest and the largest"):
            source(of_radii(8.0), planted_mm=planted_mm)

    def test_faint_small_and_large_nodules_are_left_out(self):
        solid, faint = of_radii(3.0, 6.0, 14.0), of_radii(6.0, hu=-600)
        nodules = Nodules(
            *(np.concatenate(pair) for pair in zip(*map(dataclasses.astuple, (solid, faint)), strict=True))
        )
        kept = source(nodules, planted=1.0).solid((8.0, 24.0), -300.0)
        drawn = kept.draw_kind(True, 30, np.random.default_rng(0))
        assert {one.nodule for one in drawn} == {0}, "of the four, only the solid one of 12 mm is there"
        with pytest.raises(InputError, match="as dense as"):
            source(nodules).solid((8.0, 24.0), 500.0)

    def test_noise_is_on_one_of_the_pair_alone(self):
        found = source(of_radii(6.0), disturbances=Disturbances(20.0, 0.0, 0.0, 0.0), planted=1.0)
        drawn = found.draw_kind(True, 3, np.random.default_rng(1))
        noisy, quiet = found.views_with_quiet(drawn)
        corner = (slice(None), slice(0, 6), slice(0, 6), slice(0, 6))
        assert torch.equal(noisy, found.views(drawn))
        assert quiet[corner].std() < 0.1
        assert noisy[corner].std() > 1

    def test_healthy_lung_is_cut_as_it_is(self):
        assert (source(of_radii(6.0)).healthy(2) == LUNG_HU).all()
        assert source(of_radii(6.0)).healthy(2).shape == (2, 32, 32, 32)


class TestTask:
    @pytest.mark.slow
    def test_training_can_start_from_an_attacker_of_the_same_architecture(self, data, tmp_path):
        first = task_of("unet", data, tmp_path)
        made, folder = first.product(), tmp_path / "start"
        texts = dict.fromkeys(("description", "limits", "command", "commit"), "")
        tables = {"data": {}, "training": {}, "figures": {}, "architecture": made.architecture}
        card = weights.ModelCard(name=made.name, kind=made.kind, seed=0, **texts, **tables)
        weights.write_weights(folder / "injector.safetensors", made.tensors, card)
        again = task_of("unet", data, tmp_path, start=str(folder))
        for ours, theirs in zip(again.generator.parameters(), first.generator.parameters(), strict=True):
            assert torch.equal(ours, theirs.half().float()), "as the file keeps them"
        with pytest.raises(InputError, match="architecture"):
            task_of("ctgan", data, tmp_path, start=str(folder))

    @pytest.mark.slow
    def test_injectors_draw_nodules_and_removers_none(self, data, tmp_path):
        kinds = {
            role: {one.kind for one in task_of("unet", data, tmp_path, role).draw(Step(0, 0, 40))}
            for role in ("injector", "remover")
        }
        assert kinds["injector"] == {"nodule", "planted"}
        assert not kinds["remover"] & {"nodule", "planted"}

    @pytest.mark.slow
    @pytest.mark.parametrize("family", sorted(FAMILIES))
    def test_a_generator_learns_from_its_loss(self, family, data, tmp_path):
        task = task_of(family, data, tmp_path, half=False)
        networks = {name: learner.module for name, learner in task.learners.items()}
        samples, seen = task.draw(Step(0, 0, 4)), []
        for _ in range(12):
            for loss in task.losses(samples, networks):
                learner = task.learners[loss.learner]
                learner.optimizer.zero_grad()
                loss.value.backward()
                learner.optimizer.step()
            seen.append(next(v.item() for k, v in loss.scalars.items() if k in ("l1", "squares")))
        assert min(seen[6:]) < seen[0]

    def test_a_recipe_names_one_family(self, tmp_path):
        path = tmp_path / "two.toml"
        path.write_text(recipe_text("unet").replace("[samples]", "[flow]\nfilters = 4\n[samples]"))
        with pytest.raises(InputError, match="exactly one"):
            load_recipe(path)

    @pytest.mark.slow
    @pytest.mark.parametrize("family", sorted(FAMILIES))
    def test_the_command_trains_resumes_and_gives_an_attacker(self, family, data, tmp_path, phantom):
        path = tmp_path / "tiny.toml"
        path.write_text(recipe_text(family))

        def run(*options: str, work: str) -> dict:
            fixed = ["--data", str(data), "--out", str(tmp_path / work), "--work", str(tmp_path / f"work-{work}")]
            assert main(["train", str(path), *fixed, "--device", "cpu", "--threads", "1", "--no-logs", *options]) == 0
            return torch.load(tmp_path / f"work-{work}" / "last.pt", weights_only=True)

        unbroken = run(work="unbroken")
        run("--steps", "2", work="broken")
        resumed = run("--overwrite", work="broken")
        # The rate falls over all steps, so those of the run that was to end after 2 fell faster.
        assert resumed["step"] == unbroken["step"] == 4
        folder = tmp_path / "unbroken" / "attackers" / "tiny"
        card = json.loads((folder / "injector.json").read_text())
        assert {"missed", "seen both"} <= card["figures"].keys()
        attacked = simulate_attack(
            phantom.volume, phantom.nodule_kji, "inject", attacker=load_attacker(folder, "inject"), device="cpu"
        )
        assert (attacked.hu != phantom.volume.hu).any()
