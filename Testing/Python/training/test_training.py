"""Training from the public entry points: cubes without mix-ups, tasks that learn and resume, models that load."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib import weights as weights_module
from MITSGANLib.attack.attacker import Attacker, load_attacker
from MITSGANLib.attack.equalization import Equalization
from MITSGANLib.attack.networks import CTGANConfig, CTGANGenerator
from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import CancelledError, InputError, ModelError, OutputError
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANLib.scan.cubes import cube_shape
from MITSGANLib.weights import MODELS_FOLDER, ModelCard, read_weights, write_weights
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.data.cubes import CubeSet, augment, published_variants
from MITSGANTrainingLib.data.dataset import Dataset
from MITSGANTrainingLib.training.attacker import AttackerConfig, AttackerTask
from MITSGANTrainingLib.training.configuration import build, plain
from MITSGANTrainingLib.training.engine import DivergedError, Step, Task
from MITSGANTrainingLib.training.inputs import Inputs
from MITSGANTrainingLib.training.mitsgan_small import SmallProtectorTask, repeated_power
from MITSGANTrainingLib.training.recipes import find_task, load_recipe, parse_change, shipped_recipes
from MITSGANTrainingLib.training.run import take_over
from MITSGANTrainingLib.training.slabs import ScanTargets
from scipy import ndimage
from training_data import nodule_cubes, same, write_dataset, write_untrained_attackers
from training_rivals import InputsAgainst, terminate_in

CPU = torch.device("cpu")
INJECTOR = """
task = "attacker"
role = "injector"
name = "tiny"
base_filters = 2
[augmentation]
variants = 2
[training]
steps = 4
batch_size = 2
save_every = 2
report_every = 2
"""
PROTECTOR = """
task = "mitsgan-small"
name = "tiny"
attackers = ["untrained"]
context = 4
validation_targets = 1
[generator]
trunk_filters = 4
residual_blocks = 1
output = "residual"
unshuffle = 2
[budget]
strength_hu = 20.0
[training]
steps = 3
batch_size = 1
clip_norm = 1.0
save_every = 1
validate_every = 3
images_every = 3
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, phantom) -> Path:
    """A prepared dataset with nodule cubes, and a phantom scan on either side of the split."""
    shorter = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[:40])
    folder = tmp_path_factory.mktemp("data") / "dataset"
    return write_dataset(folder, {"patient-0": phantom.volume, "patient-2": shorter})


@pytest.fixture
def injector(tmp_path) -> Path:
    """A recipe of a tiny injector."""
    path = tmp_path / "tiny-injector.toml"
    path.write_text(INJECTOR)
    return path


@pytest.fixture
def protector(tmp_path, untrained_attackers) -> Path:
    """A recipe of a tiny protector, and the untrained attackers beside the model to be."""
    write_untrained_attackers(tmp_path / "models", untrained_attackers)
    path = tmp_path / "tiny-protector.toml"
    path.write_text(PROTECTOR)
    return path


@pytest.fixture
def train(tmp_path, data):
    """``train(recipe, *options)`` runs the command line on the small dataset, into folders of this test."""

    def run(recipe: Path, *options: str, work: str = "work", out: str = "models") -> int:
        fixed = ["--data", str(data), "--work", str(tmp_path / work), "--out", str(tmp_path / out), "--device", "cpu"]
        return main(["train", str(recipe), *fixed, "--threads", "1", "--no-logs", *options])

    return run


@pytest.fixture(scope="module")
def cubes() -> CubeSet:
    return CubeSet(nodule_cubes(6, seed=0), np.array([f"patient-{n // 2}" for n in range(6)]))


class TestCubes:
    def test_augmentation_is_seeded_and_begins_with_the_cube_itself(self, cubes):
        first, second = (augment(cubes, 3, seed=1) for _ in range(2))
        assert (first == second).all()
        assert first.shape == (18, 32, 32, 32)
        assert (first[::3] == cubes.hu[:, 4:36, 4:36, 4:36]).all()
        assert (first[::3] == cubes.centers()).all()
        assert (augment(cubes, 3, seed=2) != first).any()

    def test_unshifted_variants_keep_the_nodule_in_the_middle(self, cubes):
        samples = augment(cubes, 8, seed=1, shifted_share=0.0)
        assert (samples[:, 14:18, 14:18, 14:18] > -200).all()

    @pytest.mark.slow
    def test_published_variants_are_ct_gans_67(self, cubes):
        """The paper's 169 nodules became 11,323 samples."""
        cube = cubes.hu[0]
        variants = published_variants(cube)
        assert variants.shape == (11_323 / 169, 32, 32, 32)
        # Both flips together are a turn by 180 degrees, so the list holds that one twice.
        assert len(np.unique(variants, axis=0)) == 66
        middle = cube[4:36, 4:36, 4:36]
        for n, expected in enumerate((middle, middle[:, ::-1], middle[:, :, ::-1], middle[:, ::-1, ::-1])):
            assert (variants[n] == expected).all()
        for expected in (cube[4:36, :32, :32], cube[4:36, :32, 8:], cube[4:36, 8:, :32], cube[4:36, 8:, 8:]):
            assert (variants[-4:] == expected).all(axis=(1, 2, 3)).any()
        for n, degrees in ((0, 6), (14, 90), (40, 246)):
            turned = ndimage.rotate(cube.astype(float), degrees, axes=(1, 2), reshape=False, mode="reflect")
            assert np.abs(variants[4 + n] - turned[4:36, 4:36, 4:36]).max() < 1

    def test_a_cube_without_room_for_shifts_is_refused(self):
        with pytest.raises(InputError, match="room"):
            published_variants(np.zeros((34, 34, 34), np.int16))

    @settings(deadline=None, max_examples=25)
    @given(seed=st.integers(0, 2**32 - 1), low=st.integers(-2000, 3000), width=st.integers(1, 4000))
    def test_the_table_from_counts_is_the_one_from_samples(self, seed, low, width):
        samples = np.random.default_rng(seed).integers(low, low + width, (3, 4, 5, 6), endpoint=True).astype(np.int16)
        samples[0, 0, 0, :2] = (low, low + width)
        table = Equalization.from_cubes(samples)
        counts, edges = np.histogram(samples.ravel(), 10_000)
        equalized = np.interp(samples.ravel(), table.bins, table.cdf)
        assert np.allclose(table.bins, edges[:-1] + np.diff(edges) / 2)
        assert np.allclose(table.cdf, np.cumsum(counts / len(samples)))
        figures = (equalized.mean(), equalized.min(), equalized.max())
        assert (table.mean, table.minimum, table.maximum) == pytest.approx(figures)

    def test_samples_of_one_value_are_refused(self):
        with pytest.raises(InputError, match="one single value"):
            Equalization.from_cubes(np.zeros((2, 4, 4, 4), np.int16))


class TestAttackers:
    @pytest.mark.slow
    def test_train_py_makes_a_model_that_loads(self, injector, train, tmp_path):
        assert train(injector, "--steps", "2") == 0
        folder = tmp_path / "models" / "attackers" / "tiny"
        card = json.loads((folder / "injector.json").read_text())
        assert card["training"]["training"]["steps"] == card["training"]["steps_done"] == 2
        assert card["figures"]["mean_absolute_error_hu"] > 0
        assert card["command"] == "mitsgan train tiny-injector --data DATASET --steps 2"
        assert load_attacker(folder, "inject").digest == card["sha256"]

    @pytest.mark.slow
    def test_a_run_stopped_by_a_signal_goes_on_as_if_it_had_not_been(
        self, injector, train, tmp_path, monkeypatch, capsys
    ):
        assert train(injector, work="whole", out="a") == 0
        terminate_in(monkeypatch, AttackerTask, 2)
        assert train(injector, work="parts", out="b") == CancelledError.exit_code
        assert "after step 3 of 4; run the same command again" in capsys.readouterr().err
        assert not (tmp_path / "b").exists(), "a stopped run leaves no model"
        monkeypatch.undo()
        assert train(injector, work="parts", out="b") == 0
        assert same(*(torch.load(tmp_path / work / "last.pt", weights_only=True) for work in ("whole", "parts")))
        whole, parts = (tmp_path / out / "attackers" / "tiny" / "injector.safetensors" for out in "ab")
        assert whole.read_bytes() == parts.read_bytes()

    @pytest.mark.slow
    def test_it_learns(self, injector, train, tmp_path):
        """Forty steps on four cubes must at least bring the masked middle nearer than an untrained network has it."""
        errors = []
        for steps in ("1", "40"):
            options = ("--steps", steps, "--set", "learning_rate=2e-3", "--set", "training.report_every=100")
            assert train(injector, *options, work=steps, out=f"out-{steps}") == 0
            card = ModelCard.read(tmp_path / f"out-{steps}" / "attackers" / "tiny" / "injector.json")
            errors.append(card.figures["l1_input_units"])
        assert errors[1] < 0.9 * errors[0]

    @pytest.mark.slow
    @pytest.mark.parametrize("change", ["batch_norm=false", "skips=false", "adversarial=false"])
    def test_other_in_painters_are_made_and_load_as_what_they_are(self, injector, train, tmp_path, change):
        assert train(injector, "--steps", "2", "--set", change) == 0
        folder = tmp_path / "models" / "attackers" / "tiny"
        tensors, card = read_weights(folder / "injector.safetensors")
        assert ("without" in card.description) == (not change.startswith("adversarial"))
        assert ("L1 alone" in card.description) == change.startswith("adversarial")
        assert any("running_mean" in name for name in tensors) == (not change.startswith("batch_norm"))
        skipped = tensors["generator.last.conv.weight"].shape[1] == 4
        assert skipped == (not change.startswith("skips"))
        forged = load_attacker(folder, "inject").inpainter(torch.full((1, 32, 32, 32), -850.0, dtype=torch.float64))
        assert torch.isfinite(forged).all()

    @pytest.mark.slow
    def test_the_published_augmentation_has_67_samples_a_cube(self, data):
        recipe = load_recipe("ctgan-paper-injector", {"base_filters": 1})
        task = find_task(recipe.task)(recipe.config, recipe.training, Inputs(Dataset.open(data), CPU))
        assert task.samples_per_epoch == 67 * 4

    def test_another_configuration_in_the_same_folder_is_refused(self, injector, train, capsys):
        assert train(injector, "--steps", "1") == 0
        assert train(injector, "--set", "l1_weight=50.0") == InputError.exit_code
        assert "l1_weight is 100.0 in the checkpoint and 50.0 in the recipe" in capsys.readouterr().err

    @pytest.mark.slow
    def test_what_only_the_card_tells_may_change(self, injector, train, tmp_path):
        assert train(injector, "--steps", "1") == 0
        assert train(injector, "--steps", "2", "--set", "name=other", "--set", "sources=a collection, CC BY 4.0") == 0
        card = ModelCard.read(tmp_path / "models" / "attackers" / "other" / "injector.json")
        assert card.data["sources"] == "a collection, CC BY 4.0"

    def test_other_data_in_the_same_folder_is_refused(self, injector, train, tmp_path, capsys):
        assert train(injector, "--steps", "1") == 0
        other = write_dataset(tmp_path / "other", seed=1)
        assert train(injector, "--data", str(other)) == InputError.exit_code
        assert "inputs.training_cubes" in capsys.readouterr().err

    @pytest.mark.slow
    def test_starting_from_a_model_takes_its_weights_and_table(self, injector, train, tmp_path, data):
        assert train(injector, "--steps", "2") == 0
        path = tmp_path / "models" / "attackers" / "tiny" / "injector.safetensors"
        card = ModelCard.read(path.with_suffix(".json"))
        recipe = load_recipe(injector, {"augmentation.variants": 1, "dropout": 0.1})
        task = find_task(recipe.task)(recipe.config, recipe.training, Inputs(Dataset.open(data), CPU))
        assert take_over(task, path) == card.sha256
        assert same(dict(task.product().tensors), read_weights(path)[0])
        assert train(injector, "--start-from", str(path), work="tuned", out="tuned") == 0
        tuned = ModelCard.read(tmp_path / "tuned" / "attackers" / "tiny" / "injector.json")
        assert tuned.training["start_from"] == card.sha256

    def test_starting_from_another_architecture_is_refused_and_named(self, injector, train, tmp_path, capsys):
        assert train(injector, "--steps", "1") == 0
        path = str(tmp_path / "models" / "attackers" / "tiny" / "injector.safetensors")
        wider = ("--start-from", path, "--set", "base_filters=3")
        assert train(injector, *wider, work="wider") == ModelError.exit_code
        assert "base_filters is 2 in the file and 3 in the recipe" in capsys.readouterr().err

    def test_a_dry_run_says_what_it_takes_and_writes_nothing(self, injector, train, tmp_path, capsys):
        assert train(injector, "--dry-run") == 0
        said = capsys.readouterr().out
        generator = sum(p.numel() for p in CTGANGenerator(CTGANConfig(2)).parameters())
        assert f"generator {generator:,}" in said
        assert "Steps: 4" in said
        assert not (tmp_path / "work").exists()
        assert not (tmp_path / "models").exists()


class TestSmallProtector:
    def task(self, protector: Path, folder: Path, data: Path, against: Iterable[Attacker] = ()) -> SmallProtectorTask:
        recipe = load_recipe(protector)
        inputs = InputsAgainst(Dataset.open(data), CPU, models=folder / "models", against=tuple(against))
        return SmallProtectorTask(recipe.config, recipe.training, inputs)

    @pytest.mark.slow
    def test_train_py_makes_a_protector_that_protects_within_its_budget(self, protector, train, tmp_path, phantom):
        assert train(protector) == 0
        path = tmp_path / "models" / "protectors" / "tiny.safetensors"
        change = protect(phantom.volume, model=load_protector(path)).hu.astype(int) - phantom.volume.hu
        assert 0 < np.abs(change).max() <= 20
        card = ModelCard.read(path.with_suffix(".json"))
        assert "untrained-inject" in card.training["inputs"]
        assert card.figures["pattern"] >= 0

    @pytest.mark.slow
    def test_a_resumed_run_equals_an_unbroken_one(self, protector, train, tmp_path, monkeypatch):
        assert train(protector, work="whole") == 0
        terminate_in(monkeypatch, SmallProtectorTask, 1)
        assert train(protector, work="parts") == CancelledError.exit_code
        monkeypatch.undo()
        assert train(protector, work="parts") == 0
        assert same(*(torch.load(tmp_path / work / "last.pt", weights_only=True) for work in ("whole", "parts")))

    @pytest.mark.slow
    def test_the_loss_reaches_every_weight_and_no_attackers(self, protector, tmp_path, data, untrained_attackers):
        attackers = list(untrained_attackers.values())
        task = self.task(protector, tmp_path, data, attackers)
        samples = task.draw(Step(0, 0, 2))
        assert len(samples) == 2
        (loss,) = task.losses(samples, {"generator": task.network.train()})
        loss.value.backward()
        still = [name for name, p in task.network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not still, "the loss does not reach these weights"
        assert all(p.grad is None for attacker in attackers for p in attacker.inpainter.generator.parameters())

    @pytest.mark.slow
    def test_sample_images_are_images(self, protector, tmp_path, data):
        task = self.task(protector, tmp_path, data)
        task.network.eval()
        with torch.no_grad():
            images = task.images()
        assert all(image.ndim == 2 and 0 <= image.min() < image.max() <= 1 for image in images.values())

    def test_attackers_that_are_not_there_are_named(self, protector, train, capsys):
        assert train(protector, "--attackers", "nobody") == ModelError.exit_code
        assert "'nobody'" in capsys.readouterr().err

    def test_data_without_scans_are_refused(self, protector, train, tmp_path, capsys):
        cubes_only = write_dataset(tmp_path / "cubes-only")
        assert train(protector, "--data", str(cubes_only)) == InputError.exit_code
        assert "no whole scans" in capsys.readouterr().err

    def test_context_that_does_not_fit_is_refused(self, protector, train, capsys):
        assert train(protector, "--set", "context=60") == InputError.exit_code
        assert "60 voxels of context" in capsys.readouterr().err

    @pytest.mark.parametrize("change", ["generator.output=image", "generator.trunk_filters=0", "budget.strength_hu=0"])
    def test_what_cannot_be_trained_is_refused(self, protector, train, change, capsys):
        assert train(protector, "--set", change) == InputError.exit_code
        assert change.partition("=")[0] in capsys.readouterr().err

    @pytest.mark.slow
    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), context=st.integers(1, 30), share=st.floats(0, 1))
    def test_every_target_has_its_crop_inside_the_scan(self, data, seed, context, share):
        scan = Dataset.open(data).scans("training")[0]
        targets = ScanTargets(scan, share, context)
        (slab,) = targets.draw(0, 1, np.random.default_rng(seed))
        assert all(0 <= part.start < part.stop <= size for part, size in zip(slab.box, scan.hu.shape, strict=True))
        expected = tuple(np.add(cube_shape(scan.spacing_kji), (0, 2 * context, 2 * context)))
        assert targets.hu(slab).shape == targets.allowed(slab, Budget()).shape == slab.shape == expected

    def test_repeated_pattern_is_what_the_penalty_sees(self):
        tile = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)
        noise = torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(0))
        assert repeated_power(tile.expand(4, 16, 16), 2) == pytest.approx(1.0)
        assert repeated_power(noise, 2) < 0.01
        assert repeated_power(torch.full((4, 17, 19), 0.5), 2) == pytest.approx(0.25), "a shift of the mean counts too"
        opposite = torch.tensor([0.5, -0.5]).view(2, 1, 1).expand(2, 16, 16)
        assert repeated_power(opposite, 2) == pytest.approx(0.25), "slices must not cancel each other"


class TestRecipes:
    @pytest.mark.parametrize("name", shipped_recipes())
    def test_every_shipped_recipe_is_one(self, name):
        recipe = load_recipe(name)
        assert issubclass(find_task(recipe.task), Task)
        assert build(type(recipe.config), plain(recipe.config)) == recipe.config

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"base_filter": 3}, "Unknown key 'base_filter'; did you mean 'base_filters'"),
            ({"training.patiance": 3}, "Unknown key 'training.patiance'; did you mean 'training.patience'"),
            ({"augmentation.varients": 3}, "did you mean 'augmentation.variants'"),
            ({"steps": 3}, "Unknown key 'steps'; did you mean 'training.steps'"),
            ({"zzz": 3}, "Unknown key 'zzz'; known are"),
            ({"base_filters": "many"}, "'base_filters' must be a whole number, not 'many'"),
            ({"base_filters": True}, "'base_filters' must be a whole number"),
            ({"base_filters": 0}, "'base_filters' must be at least 1, not 0"),
            ({"dropout": 1.5}, "'dropout' must be from 0 to 1"),
            ({"learning_rate": 0.0}, "'learning_rate' must be above 0"),
            ({"learning_rate": float("nan")}, "'learning_rate' must be a finite number"),
            ({"betas": [0.5]}, "'betas' must hold 2 values"),
            ({"betas": [0.5, 2]}, r"'betas\[1\]' must be from 0 to 1"),
            ({"role": "inject"}, "'role' must be one of 'injector', 'remover'"),
            ({"augmentation": 3}, "'augmentation' must be a table"),
            ({"training.keep": "best", "training.validate_every": 0}, "training: .* need validate_every"),
            ({"task": "atacker"}, "Unknown task 'atacker'; did you mean 'attacker'"),
            ({"base_filters.x": 1}, "'base_filters' is no table"),
        ],
    )
    def test_what_is_wrong_is_named(self, changes, message):
        with pytest.raises(InputError, match=message):
            load_recipe("injector", changes)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("task = ", "cannot be read"),
            ("[training]\nsteps = 1", "lacks 'task'"),
            ('task = "attacker"\nrole = "remover"\ntraining = 3', "'training' must be a table"),
            ('task = "attacker"\nrole = "remover"\n[training]\nsteps = 1', "lacks 'training.batch_size'"),
            ('task = "attacker"\n[training]\nsteps = 1\nbatch_size = 1', "lacks 'role'"),
            ('task = "engine"\n[training]\nsteps = 1\nbatch_size = 1', "Unknown task 'engine'"),
        ],
    )
    def test_a_file_that_is_no_recipe_is_refused(self, tmp_path, text, message):
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(InputError, match=message):
            load_recipe(tmp_path / "mine.toml")

    def test_a_wrong_name_is_told_the_nearest(self):
        with pytest.raises(InputError, match="did you mean 'injector'"):
            load_recipe("injecter")

    @pytest.mark.slow
    @given(st.integers(1, 10**6), st.floats(1e-9, 1e3), st.floats(0, 1), st.sampled_from(["random", "published"]))
    def test_changes_reach_the_configuration(self, filters, rate, dropout, kind):
        texts = (
            f"base_filters={filters}",
            f"learning_rate={rate!r}",
            f"dropout={dropout!r}",
            f"augmentation.kind={kind}",
        )
        config = load_recipe("injector", dict(parse_change(text) for text in texts)).config
        assert (config.base_filters, config.learning_rate, config.dropout) == (filters, rate, dropout)
        assert config.augmentation.kind == kind
        assert build(AttackerConfig, plain(config)) == config

    @pytest.mark.parametrize("text", ["steps", "=3", ""])
    def test_a_change_without_key_or_value_is_refused(self, text):
        with pytest.raises(InputError, match="key=value"):
            parse_change(text)

    def test_cards_of_the_shipped_models_fit_the_recipes(self):
        for role in ("injector", "remover"):
            config = load_recipe(role).config
            card = ModelCard.read(MODELS_FOLDER / "attackers" / config.name / f"{role}.json")
            assert card.kind == config.role
            assert card.architecture["config"] == {"base_filters": config.base_filters, "dropout": config.dropout}
            assert isinstance(card.figures["mean_absolute_error_hu"], float)
        config = load_recipe("mitsgan-small").config
        card = ModelCard.read(MODELS_FOLDER / "protectors" / f"{config.name}.json")
        assert card.budget == config.budget.to_dict()
        assert build(type(config.generator), card.architecture["config"]) == config.generator


class TestCommandLine:
    def test_figures_of_a_report_go_into_the_card(self, protector, tmp_path):
        texts = dict.fromkeys(("description", "limits", "command", "commit"), "")
        tables = {"architecture": {}, "data": {}, "training": {}, "figures": {"loss": 1.5}}
        card = ModelCard(name="tiny", kind="protector", seed=0, **texts, **tables)
        path = tmp_path / "models" / "protectors" / "tiny.safetensors"
        card = write_weights(path, {"weight": torch.zeros(1)}, card)
        report = tmp_path / "report.json"
        summary = {"rmse_hu": 5.0, "inject": {"targets": 3}}
        for digest, code in (("0" * 64, InputError.exit_code), (card.sha256, 0)):
            report.write_text(json.dumps({"scan": "X", "protector": {"sha256": digest}, "summary": summary}))
            assert main(["train", str(protector), "--out", str(tmp_path / "models"), "--figures", str(report)]) == code
        figures = ModelCard.read(path.with_suffix(".json")).figures
        assert figures["X"]["rmse_hu"] == 5.0
        assert "--targets 3" in figures["X"]["command"]
        assert figures["loss"] == 1.5, "what training measured stays"

    @pytest.mark.slow
    def test_an_installed_model_is_not_replaced_unless_asked_to(self, train, injector, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(weights_module, "MODELS_FOLDER", tmp_path / "models")
        assert train(injector) == 0, "none of this name is installed"
        (weights,) = (tmp_path / "models").rglob("*.safetensors")
        before = weights.read_bytes()
        assert train(injector, "--seed", "5", work="again") == OutputError.exit_code
        assert "--out" in capsys.readouterr().err
        assert weights.read_bytes() == before
        assert train(injector, "--seed", "5", work="again", out="mine") == 0
        assert train(injector, "--seed", "5", "--overwrite", work="again") == 0
        assert weights.read_bytes() != before

    def test_figures_are_for_protectors(self, injector, tmp_path, capsys):
        assert main(["train", str(injector), "--figures", str(tmp_path / "report.json")]) == InputError.exit_code
        assert "name a protector's recipe" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--data", "nowhere"], "nowhere holds no dataset.json"),
            ([], "--data is missing"),
            (["--data", "nowhere", "--threads", "0"], "--threads must be at least 1"),
            (["--data", "nowhere", "--set", "x"], "key=value"),
            (["--data", "nowhere", "--seed", "-1"], "training.seed"),
        ],
    )
    def test_wrong_options_are_one_line(self, injector, capsys, options, message):
        assert main(["train", str(injector), *options]) == InputError.exit_code
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line

    def test_an_output_that_cannot_be_written_is_found_before_training(self, injector, train, tmp_path, capsys):
        (tmp_path / "models").write_text("a file")
        assert train(injector) == OutputError.exit_code
        assert "models cannot be written" in capsys.readouterr().err
        assert not (tmp_path / "work").exists()

    def test_a_loss_that_is_not_finite_is_one_line(self, injector, train, tmp_path, capsys):
        assert train(injector, "--set", "l1_weight=1e300") == DivergedError.exit_code
        assert "Lower the learning rate" in capsys.readouterr().err
        assert not (tmp_path / "models").exists()

    def test_help_needs_no_torch(self):
        script = "import sys; sys.modules['torch'] = None\nfrom MITSGANTrainingLib.commandline import main\n"
        call = [sys.executable, "-c", f"{script}main(['train', '--help'])"]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        assert "RECIPE" in done.stdout
