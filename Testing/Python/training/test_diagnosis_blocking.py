"""The mark against diagnosis networks and its removal, from train.py: samples, bounds, learning, models that load."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_data import SQUARES, write_judge
from mark_data import MARK, UNMARK, tiny_mark, write_mark, write_mark_dataset, write_mark_models
from MITSGANLib.errors import CancelledError, InputError, ModelError
from MITSGANLib.judges.judge import Judge, load_judge
from MITSGANLib.protection.generator import Generator, GeneratorConfig
from MITSGANLib.protection.proposer import BLOCKER_KIND
from MITSGANLib.protection.protector import load_protector
from MITSGANLib.weights import ModelCard, half_precision, write_weights
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.data.dataset import Dataset, Part
from MITSGANTrainingLib.training.diagnosis_blocking import BlockingTask, CubeGrids, blocked_cube
from MITSGANTrainingLib.training.engine import Step
from MITSGANTrainingLib.training.inputs import Inputs
from MITSGANTrainingLib.training.recipes import find_task, load_recipe
from MITSGANTrainingLib.training.unblocking import (
    Unblocker,
    UnblockerConfig,
    UnblockingTask,
    load_unblocker,
    unblocked,
)
from training_data import same
from training_rivals import terminate_in

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
    return main(["train", str(recipe), *fixed, "--threads", "1", "--no-logs", *options])


def task_of(text: str, data: Path, folder: Path, changes: dict | None = None):
    path = folder / "recipe.toml"
    path.write_text(text)
    recipe = load_recipe(path, changes)
    torch.manual_seed(recipe.training.seed)
    inputs = Inputs(Dataset.open(data), CPU, models=folder / "models")
    return find_task(recipe.task)(recipe.config, recipe.training, inputs)


def grids_of(task: BlockingTask | UnblockingTask, part: Part) -> CubeGrids:
    """The cubes of one side of the dataset, as the task takes them."""
    return CubeGrids(task.inputs, part, task.config.cubes, task.config.held_out)


@pytest.fixture(scope="module")
def grids(data, tmp_path_factory) -> CubeGrids:
    """Cubes of the small dataset."""
    folder = tmp_path_factory.mktemp("task")
    write_mark_models(folder / "models")
    return grids_of(task_of(MARK, data, folder), "validation")


def tiny_judges(folder: Path) -> tuple[Judge, ...]:
    return load_protector(folder / "protectors" / "tiny-mark.safetensors").proposer.judges


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
    @pytest.mark.slow
    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_cubes_lie_on_one_grid_and_half_are_nodules(self, grids, seed):
        drawn = grids.draw(6, np.random.default_rng(seed))
        assert sum(one.cube.yes for one in drawn) == 3
        assert len({one.spacing_kji for one in drawn}) == 1
        assert len({one.search_seed for one in drawn}) == 6
        hu = grids.hu(drawn)
        assert hu.shape == (6, *(round(48 / mm) for mm in drawn[0].spacing_kji))
        assert torch.equal(hu, hu.round())
        assert torch.equal(hu, grids.hu(drawn)), "the same drawing gives the same voxels"

    @pytest.mark.slow
    def test_no_held_out_patient_is_seen(self, data, tmp_path):
        write_mark(write_mark_models(tmp_path / "models") / "protectors" / "tiny-mark.safetensors", tiny_mark())
        task = task_of(UNMARK, data, tmp_path, {"held_out": ["a", "b", "patient-9"]})
        sources = {part: grids_of(task, part).source for part in ("training", "validation")}
        seen = {name for source in sources.values() for group in source.groups() for name in group.patients.tolist()}
        assert seen == {"patient-0", "patient-2", *"cdefghij"}
        assert task.product().data == {"sources": "not stated"} | {
            part: source.described() for part, source in sources.items()
        }


class TestMark:
    @pytest.mark.slow
    def test_train_py_makes_a_protector_that_says_what_it_is(self, trained):
        protector = load_protector(trained / "protectors" / "tiny-mark.safetensors")
        assert protector.budget.strength_hu == 300
        assert protector.proposer.config.passes == 3
        card = ModelCard.read(trained / "protectors" / "tiny-mark.json")
        assert card.kind == BLOCKER_KIND
        assert "MADE TO MISLEAD DIAGNOSIS NETWORKS" in card.description
        assert "restore the original first" in card.limits
        assert card.training["inputs"]["mine"] == load_judge("mine", trained).digest
        assert {"mine right clean", "mine right blocked", "rmse_hu"} == set(card.figures)
        assert str(trained.parent) not in json.dumps(card.to_json())

    @pytest.mark.slow
    def test_its_judges_are_those_of_the_recipe(self, trained):
        (judge,), expected = tiny_judges(trained), load_judge("mine", trained)
        cubes = np.random.default_rng(0).normal(-700, 200, (2, 32, 32, 32)).astype(np.float32)
        assert np.array_equal(judge.score_views(cubes), expected.score_views(cubes))
        assert (judge.threshold, judge.digest) == (expected.threshold, expected.digest)

    @pytest.mark.slow
    def test_its_figures_are_of_cubes_that_it_misleads(self, trained):
        figures = ModelCard.read(trained / "protectors" / "tiny-mark.json").figures
        assert figures["mine right clean"] == 1
        assert figures["mine right blocked"] < 1
        assert figures["rmse_hu"] > 10

    @pytest.mark.slow
    def test_there_are_no_weights_to_begin_with(self, train, trained, capsys):
        start = ["--start-from", str(trained / "protectors" / "tiny-mark.safetensors")]
        assert train(MARK, *start) == InputError.exit_code
        assert "no weights of its own" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("judges=[]", "at least one nodule judge"),
            ("judges=['forensic']", "not asked about nodules"),
            ("search.passes=0", "at least 1"),
            ("search.passe=4", "search.passes"),
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
    @pytest.mark.slow
    def test_it_learns_to_remove_the_mark(self, data, trained):
        before, after = learn(task_of(UNMARK, data, trained.parent, {"learning_rate": 1e-2}), 15)
        assert after < 0.9 * before

    @pytest.mark.slow
    def test_pairs_are_clean_and_marked_within_the_budget(self, data, trained):
        task = task_of(UNMARK, data, trained.parent)
        mark = load_protector(trained / "protectors" / "tiny-mark.safetensors")
        grids = grids_of(task, "training")
        drawn = grids.draw(4, np.random.default_rng(0))
        for one, cube in zip(drawn, grids.hu(drawn), strict=True):
            clean = cube.numpy().astype(np.int16)
            marked = blocked_cube(clean, one.spacing_kji, mark.proposer, mark.budget, one.search_seed, "cpu")
            change = marked.astype(int) - clean
            limit = mark.budget.strength_hu * mark.budget.fraction(clean)
            assert 0 < np.abs(change).max() <= limit.max()
            assert (np.abs(change) <= limit + 1e-6).all()

    @pytest.mark.slow
    def test_what_is_left_is_measured_by_the_mark_itself(self, data, trained):
        """A network that leaves all as it is leaves the whole mark; one that blanks all is farther off."""
        task = task_of(UNMARK, data, trained.parent)
        samples = task.draw(Step(0, 0, 4))
        assert {one.pair for one in samples} == set(range(4))
        (nothing,), (blank,) = (
            list(task.losses(samples, {"unmarker": network})) for network in (lambda x: x, torch.zeros_like)
        )
        assert nothing.scalars["left"].item() == pytest.approx(1)
        assert blank.value > nothing.value > 0

    def test_a_protector_that_is_no_mark_is_refused(self, train, tmp_path, capsys):
        card = write_mark(tmp_path / "models" / "protectors" / "tiny-mark.safetensors", tiny_mark())
        network = Generator(GeneratorConfig(trunk_filters=4, residual_blocks=1, output="residual", unshuffle=2))
        other = {"class": "Generator", "config": dataclasses.asdict(network.config)}
        path = tmp_path / "models" / "protectors" / "tiny-mark.safetensors"
        write_weights(path, half_precision(network), dataclasses.replace(card, architecture=other))
        assert train(UNMARK) == InputError.exit_code
        assert "blocks no diagnosis" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_resumed_run_equals_an_unbroken_one(self, train, tmp_path, monkeypatch):
        write_mark(tmp_path / "models" / "protectors" / "tiny-mark.safetensors", tiny_mark())
        assert train(UNMARK, work="whole") == 0
        whole = (tmp_path / "models" / "unmarkers" / "tiny-unmark.safetensors").read_bytes()
        terminate_in(monkeypatch, UnblockingTask, 2)
        assert train(UNMARK, work="parts") == CancelledError.exit_code
        monkeypatch.undo()
        assert train(UNMARK, work="parts") == 0
        works = (tmp_path / f"{work}-unblocking" / "last.pt" for work in ("whole", "parts"))
        assert same(*(torch.load(path, weights_only=True) for path in works))
        assert (tmp_path / "models" / "unmarkers" / "tiny-unmark.safetensors").read_bytes() == whole

    @pytest.mark.slow
    def test_train_py_makes_a_removal_network_that_loads(self, trained):
        network, card = load_unblocker(trained / "unmarkers" / "tiny-unmark.safetensors")
        marked = np.full((3, 21, 34), -800, np.int16)
        assert unblocked(marked, network).shape == marked.shape
        assert (
            card.training["inputs"]["tiny-mark"] == load_protector(trained / "protectors/tiny-mark.safetensors").digest
        )

    @pytest.mark.slow
    def test_another_kind_of_model_is_refused(self, trained):
        with pytest.raises(ModelError, match="not a remover of marks"):
            load_unblocker(trained / "protectors" / "tiny-mark.safetensors")

    @settings(max_examples=10, deadline=None)
    @given(rows=st.integers(8, 30), columns=st.integers(8, 30), limit=st.floats(1, 50), seed=st.integers(0, 1000))
    def test_no_voxel_is_moved_farther_than_the_limit(self, rows, columns, limit, seed):
        torch.manual_seed(seed)
        network = Unblocker(UnblockerConfig(filters=4, layers=2, limit_hu=limit))
        hu = np.random.default_rng(seed).integers(-1000, 300, (2, rows, columns)).astype(np.int16)
        assert np.abs(unblocked(hu, network).astype(int) - hu).max() <= limit + 0.5


@pytest.mark.parametrize("name", ["miad-mark", "unmark"])
def test_shipped_recipes_hold_the_reported_scans_out(name):
    config = load_recipe(name).config
    assert {"LIDC-IDRI-0001", "RIDER-Pilot-0117"} <= set(config.held_out)


def test_the_shipped_mark_leaves_an_architecture_out():
    assert load_recipe("miad-mark").config.judges == ("nodule-plain", "nodule-residual")
