"""The mark against diagnosis networks and its removal, from train.py: samples, bounds, learning, models that load."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_data import SQUARES, write_judge
from mark_data import MARK, UNMARK, write_mark_dataset, write_mark_models
from MITSGANLib import models
from MITSGANLib.errors import CancelledError, InputError, ModelError
from MITSGANLib.judges import View, load_judge
from MITSGANLib.protector import load_protector
from MITSGANTrainingLib.samples import Dataset
from MITSGANTrainingLib.training.commandline import main
from MITSGANTrainingLib.training.engine import Step, Trainer
from MITSGANTrainingLib.training.inputs import Inputs
from MITSGANTrainingLib.training.marking import MarkingTask, judged_cubes, threshold_logit
from MITSGANTrainingLib.training.recipes import find_task, load_recipe
from MITSGANTrainingLib.training.unmarking import Unmarker, UnmarkerConfig, load_unmarker, unmarked
from training_data import same

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory, phantom) -> Path:
    return write_mark_dataset(tmp_path_factory.mktemp("data") / "dataset", phantom.volume)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data) -> Path:
    """A folder of models with a mark and its removal, each after a few steps."""
    folder = write_mark_models(tmp_path_factory.mktemp("trained") / "models")
    for text in (MARK, UNMARK):
        assert train_in(folder.parent, data, text) == 0
    return folder


@pytest.fixture
def train(tmp_path, data):
    """``train(text, *options)`` runs the command line on the small dataset, into folders of this test."""
    write_mark_models(tmp_path / "models")
    return lambda text, *options, **folders: train_in(tmp_path, data, text, *options, **folders)


def train_in(folder: Path, data: Path, text: str, *options: str, work: str = "work", out: str = "models") -> int:
    recipe = folder / "tiny.toml"
    recipe.write_text(text)
    work = f"{work}-{load_recipe(recipe).task}"
    fixed = ["--data", str(data), "--work", str(folder / work), "--out", str(folder / out), "--device", "cpu"]
    return main([str(recipe), *fixed, "--threads", "1", "--no-logs", *options])


def task_of(text: str, data: Path, folder: Path, changes: dict | None = None):
    path = folder / "recipe.toml"
    path.write_text(text)
    recipe = load_recipe(path, changes)
    torch.manual_seed(recipe.training.seed)
    inputs = Inputs(Dataset.open(data), CPU, models=folder / "models")
    return find_task(recipe.task)(recipe.config, recipe.training, inputs)


@pytest.fixture(scope="module")
def marking(data, tmp_path_factory) -> MarkingTask:
    """A task of the small dataset, for what does not change it."""
    folder = tmp_path_factory.mktemp("task")
    write_mark_models(folder / "models")
    return task_of(MARK, data, folder)


def learn(task, steps: int) -> tuple[float, float]:
    """The loss at the first and the last of some steps on the same samples."""
    samples = task.draw(Step(0, 0, task.training.batch_size))
    ((name, learner),) = task.learners.items()
    learner.module.train()
    seen = []
    for _ in range(steps):
        (found,) = task.losses(samples, {name: learner.module})
        learner.optimizer.zero_grad()
        found.value.backward()
        learner.optimizer.step()
        seen.append(found.value.item())
    return seen[0], seen[-1]


class TestSamples:
    @settings(max_examples=15, deadline=None)
    @given(
        slice_mm=st.sampled_from([1.0, 1.25, 2.5, 5.0]), pixel_mm=st.floats(0.6, 2.0), seed=st.integers(0, 2**32 - 1)
    )
    def test_what_judges_see_is_what_they_cut_from_a_scan(self, slice_mm, pixel_mm, seed):
        spacing = (slice_mm, pixel_mm, pixel_mm)
        shape = [round(48 / mm) for mm in spacing]
        hu = np.random.default_rng(seed).normal(-700, 200, shape).astype(np.int16)
        seen = judged_cubes(torch.from_numpy(hu[None]).float(), spacing)[0].numpy()
        np.testing.assert_allclose(seen, View("cube", 32).cut(hu, spacing, [size // 2 for size in shape]), atol=0.01)

    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_cubes_lie_on_one_grid_and_half_are_nodules(self, marking, seed):
        drawn = marking._training.draw(6, np.random.default_rng(seed))
        assert sum(one.cube.yes for one in drawn) == 3
        assert len({(one.spacing_kji, one.noise_seed) for one in drawn}) == 1
        hu = marking._training.hu(drawn)
        assert hu.shape == (6, *(round(48 / mm) for mm in drawn[0].spacing_kji))
        assert torch.equal(hu, hu.round())
        assert torch.equal(hu, marking._training.hu(drawn)), "the same drawing gives the same voxels"

    def test_no_held_out_patient_is_seen(self, data, tmp_path):
        write_mark_models(tmp_path / "models")
        task = task_of(MARK, data, tmp_path, {"held_out": ["a", "b", "patient-9"]})
        seen = {name for grids in (task._training, task._validation) for name in grids.source._nodules.patients}
        assert seen == {"patient-0", "patient-2", *"cdefghij"}


class TestMark:
    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_the_change_is_in_whole_hu_and_within_the_budget(self, marking, seed):
        drawn = marking._training.draw(2, np.random.default_rng(seed))
        clean, change, _share = marking._marked(marking._training, drawn, marking.generator)
        limits = torch.from_numpy(marking.config.budget.fraction(clean.numpy())) * marking.config.budget.strength_hu
        assert torch.equal(change, change.round())
        assert (change.abs() <= limits + 1e-6).all()

    def test_the_loss_rewards_what_is_wrong_either_way(self, marking):
        """A judge that is sure: nodules seen as such cost, and so do healthy places seen as such."""
        drawn = marking._validation.draw(4, np.random.default_rng(0))
        (judge,) = marking._judges
        yes = torch.tensor([one.cube.yes for one in drawn])
        seen = torch.zeros(4, 32, 32, 32)
        sure = torch.where(yes, 9.0, -9.0) + threshold_logit(judge)

        class Fixed(torch.nn.Module):
            def __init__(self, logits):
                super().__init__()
                self.logits = logits

            def forward(self, _hu):
                return self.logits

        original = judge.network
        try:
            object.__setattr__(judge, "network", Fixed(sure))
            right, shares = marking._loss(seen, drawn)
            object.__setattr__(judge, "network", Fixed(2 * threshold_logit(judge) - sure))
            wrong, none = marking._loss(seen, drawn)
        finally:
            object.__setattr__(judge, "network", original)
        assert right > 9
        assert wrong < 0.01
        assert (shares["mine right"], none["mine right"]) == (1, 0)

    def test_it_learns_to_mislead(self, data, tmp_path):
        write_mark_models(tmp_path / "models")
        before, after = learn(task_of(MARK, data, tmp_path, {"change_weight": 0.0}), 12)
        assert after < 0.9 * before

    def test_train_py_makes_a_protector_that_says_what_it_is(self, trained):
        protector = load_protector(trained / "protectors" / "tiny-mark.safetensors")
        assert protector.budget.strength_hu == 300
        card = models.ModelCard.read(trained / "protectors" / "tiny-mark.json")
        assert card.kind == models.MARK
        assert "MADE TO MISLEAD DIAGNOSIS NETWORKS" in card.description
        assert "restore the original first" in card.limits
        assert card.training["inputs"]["mine"] == load_judge("mine", trained).digest
        assert {"mine right", "mine right clean", "rmse_hu"} <= set(card.figures)
        assert str(trained.parent) not in json.dumps(card.to_json())

    def test_a_resumed_run_equals_an_unbroken_one(self, train, tmp_path, monkeypatch):
        assert train(MARK, work="whole", out="models") == 0
        step = Trainer._step

        def step_and_stop(self, number):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, number)

        monkeypatch.setattr(Trainer, "_step", step_and_stop)
        write_mark_models(tmp_path / "b")
        assert train(MARK, work="parts", out="b") == CancelledError.exit_code
        monkeypatch.undo()
        assert train(MARK, work="parts", out="b") == 0
        works = (tmp_path / f"{work}-marking" / "last.pt" for work in ("whole", "parts"))
        assert same(*(torch.load(path, weights_only=True) for path in works))
        whole, parts = (tmp_path / out / "protectors" / "tiny-mark.safetensors" for out in ("models", "b"))
        assert whole.read_bytes() == parts.read_bytes()

    def test_images_show_clean_marked_and_change(self, marking):
        with torch.no_grad():
            (image,) = marking.images().values()
        assert image.ndim == 2
        assert 0 <= image.min() < image.max() <= 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("judges=[]", "at least one nodule judge"),
            ("judges=['forensic']", "not asked about nodules"),
            ("generator.output=image", "must be 'residual'"),
            ("budget.strength_hu=0.0", "must be above 0"),
            ("budget.noise_share=0.2", "noise_share must be left out"),
            ("cubes.context_mm=10", "at most 9"),
            ("cubes.pixel_mm=[1.0, 0.5]", "smaller size first"),
            ("cubes.slice_mm=[20.0]", "at most 8 mm"),
        ],
    )
    def test_what_cannot_be_trained_is_refused(self, train, tmp_path, change, message, capsys):
        write_judge(tmp_path / "models", "forensic", "forgery", "SquaresNetwork", SQUARES)
        assert train(MARK, "--set", change) == InputError.exit_code
        assert message in capsys.readouterr().err

    def test_an_unknown_judge_is_refused(self, train, capsys):
        assert train(MARK, "--set", "judges=['nobody']") == ModelError.exit_code
        assert "no judge 'nobody'" in capsys.readouterr().err


class TestUnmark:
    def test_it_learns_to_remove_the_mark(self, data, trained):
        before, after = learn(task_of(UNMARK, data, trained.parent, {"learning_rate": 1e-2}), 15)
        assert after < 0.9 * before

    def test_train_py_makes_a_removal_network_that_loads(self, trained):
        network, card = load_unmarker(trained / "unmarkers" / "tiny-unmark.safetensors")
        marked = np.full((3, 21, 34), -800, np.int16)
        assert unmarked(marked, network).shape == marked.shape
        assert (
            card.training["inputs"]["tiny-mark"] == load_protector(trained / "protectors/tiny-mark.safetensors").digest
        )

    def test_another_kind_of_model_is_refused(self, trained):
        with pytest.raises(ModelError, match="not a remover of marks"):
            load_unmarker(trained / "protectors" / "tiny-mark.safetensors")

    @settings(max_examples=10, deadline=None)
    @given(rows=st.integers(8, 30), columns=st.integers(8, 30), limit=st.floats(1, 50), seed=st.integers(0, 1000))
    def test_no_voxel_is_moved_farther_than_the_limit(self, rows, columns, limit, seed):
        torch.manual_seed(seed)
        network = Unmarker(UnmarkerConfig(filters=4, layers=2, limit_hu=limit))
        hu = np.random.default_rng(seed).integers(-1000, 300, (2, rows, columns)).astype(np.int16)
        assert np.abs(unmarked(hu, network).astype(int) - hu).max() <= limit + 0.5


@pytest.mark.parametrize("name", ["miad-mark", "unmark"])
def test_shipped_recipes_hold_the_reported_scans_out(name):
    config = load_recipe(name).config
    assert {"LIDC-IDRI-0001", "RIDER-Pilot-0117"} <= set(config.held_out)


def test_the_shipped_mark_leaves_an_architecture_out():
    assert load_recipe("miad-mark").config.judges == ("nodule-plain", "nodule-residual")
