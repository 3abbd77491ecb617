"""Training: cubes without mix-ups, splits by patient, exact resume, gradients that reach the protector."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from MITSGANLib import models
from MITSGANLib.budget import Budget
from MITSGANLib.ctgan.attacker import load_attacker
from MITSGANLib.errors import InputError
from MITSGANLib.generator import GeneratorConfig
from MITSGANTrainingLib import recipes
from MITSGANTrainingLib.attacker_training import AttackerTraining, train_attacker
from MITSGANTrainingLib.checkpoints import load_checkpoint, save_checkpoint
from MITSGANTrainingLib.cubes import CubeSet, augment, cut_lung_cubes, load_nodule_cubes
from MITSGANTrainingLib.protector_training import ProtectorTraining, _repeated_power, train_protector
from MITSGANTrainingLib.training_commandline import main

TINY = AttackerTraining(base_filters=2, steps=4, batch_size=2, variants_per_cube=2, report_every=2)


@pytest.fixture(scope="module")
def cubes() -> CubeSet:
    rng = np.random.default_rng(0)
    hu = rng.normal(-850, 60, (6, 40, 40, 40)).astype(np.int16)
    hu[:, 12:28, 12:28, 12:28] = 20
    return CubeSet(hu, np.array([f"patient-{n // 2}" for n in range(6)]))


class TestCubes:
    def test_split_keeps_patients_apart(self, cubes):
        training, validation = cubes.split(1 / 3, seed=0)
        assert set(training.patients).isdisjoint(validation.patients)
        assert len(training.hu) + len(validation.hu) == 6

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_an_empty_side_is_refused(self, cubes, share):
        with pytest.raises(InputError, match="without cubes"):
            cubes.split(share, seed=0)

    def test_augmentation_is_seeded_and_begins_with_the_cube_itself(self, cubes):
        first, second = (augment(cubes, 3, seed=1) for _ in range(2))
        assert (first == second).all()
        assert first.shape == (18, 32, 32, 32)
        assert (first[::3] == cubes.hu[:, 4:36, 4:36, 4:36]).all()
        assert (augment(cubes, 3, seed=2) != first).any()

    def test_unshifted_variants_keep_the_nodule_in_the_middle(self, cubes):
        samples = augment(cubes, 8, seed=1, shifted_share=0.0)
        assert (samples[:, 14:18, 14:18, 14:18] > -200).all()

    def test_lung_cubes_are_centered_on_lung_at_1_mm(self, phantom):
        lung = cut_lung_cubes(phantom.volume, "phantom", 5, seed=0)
        assert lung.hu.shape[1:] == (40, 40, 40)
        assert np.median(lung.hu[:, 18:22, 18:22, 18:22]) == pytest.approx(-850, abs=80)

    def test_known_nodules_are_avoided(self, phantom):
        everywhere = np.ones(phantom.volume.shape, dtype=bool)
        with pytest.raises(InputError, match="avoid"):
            cut_lung_cubes(phantom.volume, "phantom", 5, seed=0, avoid=everywhere)

    def test_nodule_file_without_its_arrays_is_named(self, tmp_path):
        np.savez(tmp_path / "cubes.npz", hu=np.zeros((1, 4, 4, 4), np.int16))
        with pytest.raises(InputError, match="patient"):
            load_nodule_cubes(tmp_path / "cubes.npz")

    def test_real_nodules_are_of_the_asked_size(self, real_ct):
        nodules = load_nodule_cubes(real_ct / "nodule_cubes.npz", minimum_mm=10)
        with np.load(real_ct / "nodule_cubes.npz") as data:
            assert len(nodules.hu) == np.count_nonzero(data["diameter_mm"] >= 10) > 50
        assert "LIDC-IDRI-0001" not in nodules.patients, "results are reported on this scan"


class TestAttackerTraining:
    def test_a_resumed_run_equals_an_unbroken_one(self, cubes, tmp_path):
        whole = train_attacker(cubes, TINY, tmp_path / "whole")
        stopped = _StopAfter(2)
        with pytest.raises(KeyboardInterrupt):
            stopped.run(lambda: train_attacker(cubes, TINY, tmp_path / "parts"))
        parts = train_attacker(cubes, TINY, tmp_path / "parts")
        for name, values in whole.generator.state_dict().items():
            assert torch.equal(values, parts.generator.state_dict()[name]), name
        assert whole.figures == parts.figures

    def test_it_learns(self, cubes, tmp_path):
        """Thirty steps on six cubes must at least bring the masked middle nearer than an untrained network has it."""
        short = train_attacker(cubes, dataclasses.replace(TINY, steps=1, report_every=100), tmp_path / "short")
        longer = train_attacker(
            cubes, dataclasses.replace(TINY, steps=30, report_every=100, learning_rate=2e-3), tmp_path / "long"
        )
        assert longer.figures["l1_input_units"] < 0.9 * short.figures["l1_input_units"]

    def test_another_configuration_does_not_resume(self, cubes, tmp_path):
        train_attacker(cubes, TINY, tmp_path)
        with pytest.raises(InputError, match="another configuration"):
            train_attacker(cubes, dataclasses.replace(TINY, seed=1), tmp_path)


class _StopAfter:
    """Runs training and interrupts it right after the checkpoint of a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def run(self, work) -> None:
        from MITSGANTrainingLib import attacker_training

        original = attacker_training.save_checkpoint

        def save_and_stop(path, state, config, step):
            original(path, state, config, step)
            if step == self.step:
                raise KeyboardInterrupt

        attacker_training.save_checkpoint = save_and_stop
        try:
            work()
        finally:
            attacker_training.save_checkpoint = original


class TestCheckpoints:
    def test_damaged_file_is_named(self, tmp_path):
        (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
        with pytest.raises(InputError, match="unreadable"):
            load_checkpoint(tmp_path / "checkpoint.pt", {}, {})

    def test_a_failed_write_keeps_the_last_checkpoint(self, tmp_path, monkeypatch):
        from MITSGANLib.errors import OutputError

        path, layer = tmp_path / "checkpoint.pt", torch.nn.Linear(2, 2)
        save_checkpoint(path, {"layer": layer}, {"a": 1}, 5)

        def full(*_args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OutputError, match="space"):
            save_checkpoint(path, {"layer": layer}, {"a": 1}, 6)
        assert load_checkpoint(path, {"layer": layer}, {"a": 1}) == 5
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


class TestProtectorTraining:
    def test_every_weight_moves_and_the_run_resumes(self, phantom, untrained_attackers, tmp_path):
        config = ProtectorTraining(
            generator=GeneratorConfig(trunk_filters=4, output="residual", unshuffle=2),
            budget=Budget(strength_hu=20.0),
            steps=3,
            targets_per_step=1,
            context=4,
            positions_per_volume=50,
            report_every=1,
        )
        attackers = list(untrained_attackers.values())
        untouched = train_protector(
            [phantom.volume], attackers, dataclasses.replace(config, steps=0), tmp_path / "zero"
        )
        trained = train_protector([phantom.volume], attackers, config, tmp_path / "run")
        again = train_protector([phantom.volume], attackers, config, tmp_path / "run")
        before, after = dict(untouched.named_parameters()), dict(trained.named_parameters())
        still = [name for name in before if torch.equal(before[name], after[name])]
        assert not still, "the loss does not reach these weights"
        assert all(torch.equal(after[name], values) for name, values in again.named_parameters())

    def test_repeated_pattern_is_what_the_penalty_sees(self):
        tile = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)
        noise = torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(0))
        assert _repeated_power(tile.expand(4, 16, 16), 2) == pytest.approx(1.0)
        assert _repeated_power(noise, 2) < 0.01
        assert _repeated_power(torch.full((4, 17, 19), 0.5), 2) == pytest.approx(0.25), "a shift of the mean counts too"
        opposite = torch.tensor([0.5, -0.5]).view(2, 1, 1).expand(2, 16, 16)
        assert _repeated_power(opposite, 2) == pytest.approx(0.25), "slices must not cancel each other"


class TestRecipes:
    def test_train_py_makes_a_model_that_loads(self, real_ct, tmp_path, monkeypatch):
        """The public entry point, on real cubes, for two steps of a tiny width."""
        tiny = dataclasses.replace(TINY, validation_share=0.1)
        monkeypatch.setattr(recipes, "INJECTOR_TRAINING", tiny)
        out = tmp_path / "models"
        arguments = [
            "injector",
            "--data",
            str(real_ct),
            "--work",
            str(tmp_path / "work"),
            "--out",
            str(out),
            "--steps",
            "2",
        ]
        assert main(arguments) == 0
        folder = out / "attackers" / recipes.ATTACKER
        card = json.loads((folder / "injector.json").read_text())
        assert card["training"]["steps"] == 2
        assert card["figures"]["mean_absolute_error_hu"] > 0
        assert load_attacker(folder, "inject").digest == card["sha256"]

    def test_figures_of_a_report_go_into_the_card(self, tmp_path):
        out = tmp_path / "models"
        card = models.ModelCard(
            name=recipes.PROTECTOR, kind="protector", description="", architecture={}, data={}, training={}, figures={},
            limits="", seed=0, command="", commit="",
        )  # fmt: skip
        path = out / "protectors" / f"{recipes.PROTECTOR}.safetensors"
        card = models.write_weights(path, {"weight": torch.zeros(1)}, card)
        report = tmp_path / "report.json"
        summary = {"rmse_hu": 5.0, "inject": {"targets": 3}}
        for digest, code in (("0" * 64, InputError.exit_code), (card.sha256, 0)):
            report.write_text(json.dumps({"scan": "X", "protector": {"sha256": digest}, "summary": summary}))
            assert main(["protector", "--out", str(out), "--figures", str(report)]) == code
        figures = models.ModelCard.read(path.with_suffix(".json")).figures
        assert figures["X"]["rmse_hu"] == 5.0
        assert "--targets 3" in figures["X"]["command"]

    def test_missing_data_is_one_line(self, tmp_path, capsys):
        assert main(["injector", "--data", str(tmp_path / "none"), "--work", str(tmp_path)]) == InputError.exit_code
        assert "nodule_cubes.npz" in capsys.readouterr().err

    def test_scans_that_results_are_reported_on_are_not_trained_on(self, real_ct):
        assert set(recipes.training_scans(real_ct)).isdisjoint({"LIDC-IDRI-0001", "RIDER-Pilot-0117"})

    def test_cards_of_the_shipped_models_fit_the_recipes(self):
        for role, config in (("injector", recipes.INJECTOR_TRAINING), ("remover", recipes.REMOVER_TRAINING)):
            card = models.ModelCard.read(models.MODELS_FOLDER / "attackers" / recipes.ATTACKER / f"{role}.json")
            assert card.training == json.loads(json.dumps(dataclasses.asdict(config)))
            assert isinstance(card.figures["mean_absolute_error_hu"], float)
        card = models.ModelCard.read(models.MODELS_FOLDER / "protectors" / f"{recipes.PROTECTOR}.json")
        assert card.budget == recipes.PROTECTOR_TRAINING.budget.to_dict()
