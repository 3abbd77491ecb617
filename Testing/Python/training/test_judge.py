"""Training of judges: samples without mix-ups, a threshold that holds, models that load."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib import weights
from MITSGANLib.attack.attacker import simulate_attack
from MITSGANLib.errors import CancelledError, InputError
from MITSGANLib.judges.judge import THRESHOLD, Sight, load_judge
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.data.cubes import CubeSet
from MITSGANTrainingLib.data.dataset import Dataset, Part
from MITSGANTrainingLib.data.nodules import Nodules, plant_nodule
from MITSGANTrainingLib.preparation.cutting import EDGE
from MITSGANTrainingLib.training import forgery_samples
from MITSGANTrainingLib.training.engine import Step
from MITSGANTrainingLib.training.forgery_samples import (
    ForgedScan,
    Forger,
    ForgerySampling,
    ForgerySource,
    Variations,
)
from MITSGANTrainingLib.training.inputs import Inputs
from MITSGANTrainingLib.training.judge import JudgeTask
from MITSGANTrainingLib.training.nodule_samples import (
    CubeDraw,
    NoduleSampling,
    NoduleSource,
    split_nodules,
    training_nodules,
)
from MITSGANTrainingLib.training.recipes import load_recipe
from MITSGANTrainingLib.training.samples import Disturbance, Disturbances, disturb
from training_data import (
    LUNG_HU,
    NODULE_HU,
    balls,
    same,
    write_nodule_dataset,
    write_nodules,
    write_untrained_attackers,
)
from training_rivals import terminate_in

CPU = torch.device("cpu")
NODULE = """
task = "judge"
name = "tiny"
[plain]
filters = 2
[nodule]
file = "nodules.npz"
[training]
steps = 4
batch_size = 4
validate_every = 2
images_every = 4
save_every = 2
keep = "best"
"""
FORGERY = """
task = "judge"
name = "tiny-forensic"
[view]
kind = "squares"
edge = 24
slices = 3
[squares]
filters = 2
border = 4
[forgery]
attackers = ["untrained"]
lung_places = 2
structure_places = 1
jitter = 2
[training]
steps = 2
batch_size = 4
validate_every = 2
"""


def lung(count: int) -> CubeSet:
    """Cubes of one value."""
    return CubeSet(np.full((count, EDGE, EDGE, EDGE), LUNG_HU, np.int16), np.full(count, "lung"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, phantom) -> Path:
    return write_nodule_dataset(tmp_path_factory.mktemp("data") / "dataset", phantom.volume)


@pytest.fixture(scope="module")
def source() -> NoduleSource:
    """Three nodules and four places of lung without any noise."""
    nodules = Nodules(balls(3, 0, 7.0), np.zeros((3, 3)), np.full(3, 7.0), np.array(["a", "b", "c"]))
    return NoduleSource(nodules, lung(4), lung(2), 32, NoduleSampling(disturbances=Disturbances(0.0, 0.0, 0.0, 0.0)))


@pytest.fixture
def train(tmp_path, data, untrained_attackers):
    """``train(text, *options)`` runs the command line on the small dataset, into folders of this test."""
    write_untrained_attackers(tmp_path / "models", untrained_attackers)

    def run(text: str, *options: str, work: str = "work", out: str = "models") -> int:
        recipe = tmp_path / "tiny.toml"
        recipe.write_text(text)
        fixed = ["--data", str(data), "--work", str(tmp_path / work), "--out", str(tmp_path / out), "--device", "cpu"]
        return main(["train", str(recipe), *fixed, "--threads", "1", "--no-logs", *options])

    return run


def task_of(text: str, data: Path, folder: Path, changes: dict | None = None) -> JudgeTask:
    path = folder / "recipe.toml"
    path.write_text(text)
    recipe = load_recipe(path, changes)
    return JudgeTask(recipe.config, recipe.training, Inputs(Dataset.open(data), CPU, models=folder / "models"))


def places_of(task: JudgeTask, part: Part) -> ForgerySource:
    """The forged places of one side of the dataset, as the task takes them, from the same cache."""
    sampling, config = task.config.forgery, task.config
    attackers = task.inputs.load_attackers(sampling.attackers)
    given = (config.view, sampling, attackers, config.held_out, task.training.seed)
    return ForgerySource.of(task.inputs.data, part, *given)


def middle_of(views: torch.Tensor) -> torch.Tensor:
    """Mean HU of the middle 4 mm of each cube."""
    return views[:, 14:18, 14:18, 14:18].mean(dim=(1, 2, 3))


class TestCubes:
    @pytest.mark.slow
    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_a_nodule_is_in_the_middle_exactly_where_the_answer_is_yes(self, source, seed):
        drawn = source.draw(12, np.random.default_rng(seed))
        assert sum(one.yes for one in drawn) == 6
        views = source.views(drawn)
        assert views.shape == (12, 32, 32, 32)
        bright = middle_of(views) > (LUNG_HU + NODULE_HU) / 2
        assert bright.tolist() == [one.yes for one in drawn]

    def test_the_same_drawing_gives_the_same_voxels(self, source):
        drawn = source.draw(4, np.random.default_rng(5))
        assert torch.equal(source.views(drawn), source.views(drawn))
        assert drawn == source.draw(4, np.random.default_rng(5))

    def test_planted_and_erased_take_their_surroundings_from_the_other_side(self, source):
        noisy = {group.name: group.views[:, :6].std() for group in source.groups()}
        assert noisy["planted"] < 1, "planted nodules lie in the noise-free lung"
        assert min(noisy["nodule"], noisy["erased"]) > 10

    def test_cubes_that_are_not_moved_are_as_they_were(self, source):
        still = CubeDraw("nodule", 1, 0, (False,) * 3, 0.0, 1.0, (0.0,) * 3, Disturbance())
        middle = slice(EDGE // 2 - 16, EDGE // 2 + 16)
        views = source.views([still]).numpy()
        assert np.allclose(views[0], balls(3, 0, 7.0)[1][middle, middle, middle], atol=0.01)

    def test_every_nodule_validates_in_the_middle(self, source):
        groups = {group.name: group for group in source.groups()}
        assert {name for name, group in groups.items() if group.yes} == {"nodule", "planted"}
        assert (middle_of(torch.from_numpy(groups["nodule"].views).float()) > -200).all()
        assert len(groups["nodule"].views) == 3
        assert groups["nodule"].patients.tolist() == ["a", "b", "c"]

    def test_no_place_is_beside_a_nodule_that_fills_the_cube(self):
        large = Nodules(balls(1, 0, 14.0), np.zeros((1, 3)), np.full(1, 14.0), np.array(["a"]))
        source = NoduleSource(large, lung(2), lung(0), 32, NoduleSampling())
        kinds = {one.kind for one in source.draw(200, np.random.default_rng(0))}
        assert kinds == {"nodule", "planted", "healthy", "spot", "erased"}

    def test_without_any_kind_there_is_nothing_to_learn(self):
        nodules = Nodules(balls(1, 0), np.zeros((1, 3)), np.full(1, 5.0), np.array(["a"]))
        nothing = NoduleSampling(healthy=0.0, spot=0.0, structure=0.0, beside=0.0, erased=0.0)
        with pytest.raises(InputError, match="at least one"):
            NoduleSource(nodules, lung(1), lung(0), 32, nothing)


class TestNodules:
    def test_masks_say_where_the_middle_is(self, tmp_path):
        mask = np.zeros((1, EDGE, EDGE, EDGE), bool)
        mask[0, 24:27, 27:30, 20:23] = True
        write_nodules(tmp_path / "n.npz", ["a"], mask=mask)
        assert training_nodules(tmp_path / "n.npz").centers.tolist() == [[0, 3, -4]]

    @pytest.mark.parametrize("arrays", [{"hu": np.zeros((1, 20, 20, 20))}, {"hu": np.zeros((1, 60))}])
    def test_cubes_that_are_too_small_are_refused(self, tmp_path, arrays):
        write_nodules(tmp_path / "n.npz", ["a"], **arrays)
        with pytest.raises(InputError, match="at least 51"):
            training_nodules(tmp_path / "n.npz")

    def test_a_file_without_its_arrays_is_refused(self, tmp_path):
        np.savez(tmp_path / "n.npz", hu=balls(1, 0))
        with pytest.raises(InputError, match="with hu, patient and diameter_mm"):
            training_nodules(tmp_path / "n.npz")

    def test_patients_stay_on_their_side_and_held_out_ones_on_none(self, data):
        split = split_nodules(training_nodules(data / "nodules.npz"), Dataset.open(data), ["a", "patient-1"])
        training, validation = (set(split[part].patients.tolist()) for part in ("training", "validation"))
        assert not training & validation
        assert "patient-0" in training
        assert "patient-2" in validation
        assert training | validation == {"patient-0", "patient-2", *"bcdefghij"}
        assert len(validation) == 3, "patient-2 and a fifth of the nine that the dataset does not name"

    @pytest.mark.slow
    def test_what_is_held_out_is_never_seen(self, data, tmp_path):
        held_out = ["patient-1", "a", "b"]
        task = task_of(NODULE, data, tmp_path, {"held_out": held_out})
        given = (task.config.view.edge, task.config.nodule, held_out)
        sources = {part: NoduleSource.of(task.inputs.data, part, *given) for part in ("training", "validation")}
        seen = {name for source in sources.values() for group in source.groups() for name in group.patients.tolist()}
        assert seen == {"patient-0", "patient-2", *"cdefghij"}
        described = {part: source.described() for part, source in sources.items()}
        assert task.product().data == described | {"sources": "not stated"}


class TestForgeries:
    def test_forged_views_show_what_the_attack_makes(self, data, untrained_attackers, tmp_path, phantom):
        (scan,) = Dataset.open(data).scans("training")
        attackers, view = list(untrained_attackers.values()), Sight("squares", 24, 3)
        places = scan.lung_positions[:2]
        views = Forger(attackers, view, tmp_path).views(scan, places)
        assert views.shape == (3, 2, 3, 24, 24)
        for number, attacker in enumerate([None, *attackers]):
            for place, found in zip(places, views[number], strict=True):
                volume = phantom.volume
                if attacker:
                    volume = simulate_attack(volume, place, attacker.action, attacker=attacker, device="cpu")
                assert np.array_equal(found, view.cut(volume.hu, volume.spacing_kji, place))
        assert len(list(tmp_path.iterdir())) == 1

    def test_what_is_cached_is_not_made_again(self, data, untrained_attackers, tmp_path, monkeypatch):
        (scan,) = Dataset.open(data).scans("training")
        given, place = (list(untrained_attackers.values()), Sight("squares", 24, 3), tmp_path), scan.lung_positions[:1]
        variations = Variations(per_place=1)
        first = Forger(*given, variations, 1).views(scan, place)
        monkeypatch.setattr(forgery_samples, "attack_patch", None)
        assert np.array_equal(first, Forger(*given, variations, 1).views(scan, place))
        for other in ((variations, 2), (None, 1), (Variations(per_place=2), 1)):
            with pytest.raises(TypeError):
                Forger(*given, *other).views(scan, place)

    def test_nodules_are_planted_in_the_last_places_before_the_attack(self, data, untrained_attackers, tmp_path):
        (scan,) = Dataset.open(data).scans("training")
        nodules = Nodules(balls(1, 0), np.zeros((1, 3)), np.full(1, 5.0), np.array(["a"]))
        attacker, view = untrained_attackers["remove"], Sight("squares", 24, 3)
        places = scan.lung_positions[:2]
        forger = Forger([attacker], view, tmp_path)
        views, plain = forger.views(scan, places, nodules), forger.views(scan, places)
        assert np.array_equal(views[:, 0], plain[:, 0]), "what is planted is gone before the next place, and after it"
        volume = plant_nodule(scan.volume(), tuple(places[1]), nodules.hu[0], 5.0)
        assert np.array_equal(views[0, 1], view.cut(volume.hu, volume.spacing_kji, places[1]))
        volume = simulate_attack(volume, places[1], "remove", attacker=attacker, device="cpu")
        assert np.array_equal(views[1, 1], view.cut(volume.hu, volume.spacing_kji, places[1]))

    @pytest.mark.slow
    def test_planted_places_validate_apart(self, data, untrained_attackers, tmp_path):
        write_untrained_attackers(tmp_path / "models", untrained_attackers)
        changes = {"forgery.nodules": "nodules.npz", "forgery.nodule_places": 3}
        task = task_of(FORGERY, data, tmp_path, {"forgery.cache": str(tmp_path / "cache"), **changes})
        groups = {group.name: group.views for group in places_of(task, "validation").groups()}
        counts = {name: len(views) for name, views in groups.items()}
        assert counts["untouched with nodule"] == counts["untrained remove with nodule"] == 3
        assert counts["untouched"] == 3
        middles = {name: views[:, 1, 10:14, 10:14].mean() for name, views in groups.items()}
        assert middles["untouched with nodule"] > middles["untouched"] + 100

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), data_=st.data())
    def test_a_variation_keeps_the_place(self, seed, data_):
        hu = np.random.default_rng(1).normal(LUNG_HU, 30, (20, 24, 22)).astype(np.int16)
        kji = tuple(data_.draw(st.integers(0, size - 1)) for size in hu.shape)
        hu[kji] = 3000
        variations = Variations(reach=(3, 40), sharpness=0.5, noise_hu=10.0)
        part, inside = variations.apply(hu, kji, np.random.default_rng(seed))
        assert part.dtype == np.int16
        assert np.unravel_index(part.argmax(), part.shape) == inside

    def test_a_variation_that_changes_nothing_is_the_scan(self):
        hu = np.random.default_rng(1).integers(-1000, 400, (9, 9, 9)).astype(np.int16)
        variations = Variations(reach=(3, 3), sharpness=0.0, noise_hu=0.0)
        part, inside = variations.apply(hu, (4, 1, 7), np.random.default_rng(0))
        assert np.array_equal(part, hu[1:8, :5, 4:])
        assert inside == (3, 1, 3)

    @pytest.mark.slow
    def test_untouched_and_forged_are_balanced_and_never_mixed_up(self):
        stored = np.random.default_rng(0).integers(-1000, 400, (3, 5, 3, 28, 28)).astype(np.int16)
        sampling = ForgerySampling(jitter=2, disturbances=Disturbances(0.0, 0.0, 0.0, 0.0))
        names = ("untouched", "a", "b")
        source = ForgerySource([ForgedScan("patient", stored)], names, Sight("squares", 24, 3), sampling)
        drawn = source.draw(40, np.random.default_rng(0))
        assert sum(one.yes for one in drawn) == 20
        assert {one.version for one in drawn} == {0, 1, 2}
        for one, view in zip(drawn, source.views(drawn).numpy(), strict=True):
            version = stored[one.version, one.place][:, one.start[1] :, one.start[2] :][:, :24, :24]
            assert np.array_equal(np.sort(view, axis=None), np.sort(version, axis=None))

    @pytest.mark.slow
    def test_training_scans_are_varied_and_validation_scans_are_not(self, data, untrained_attackers, tmp_path):
        write_untrained_attackers(tmp_path / "models", untrained_attackers)
        task = task_of(FORGERY, data, tmp_path, {"forgery.cache": str(tmp_path / "cache")})
        training, validation = (places_of(task, part) for part in ("training", "validation"))
        (group,) = [group for group in validation.groups() if group.name == "untouched"]
        (scan,) = Dataset.open(data).scans("validation")
        place = scan.lung_positions[0]
        assert np.array_equal(group.views[0], Sight("squares", 24, 3).cut(scan.hu, scan.spacing_kji, place))
        assert len(training) == 2 * len(validation), "of scans that are the same"


class TestDisturbances:
    @settings(max_examples=10, deadline=None)
    @given(
        noise=st.floats(1, 20), coarse=st.floats(0, 1), elsewhere=st.floats(0, 1), offset=st.floats(-20, 20),
        seed=st.integers(0, 2**62),
    )  # fmt: skip
    def test_noise_is_as_strong_as_drawn_where_it_should_be(self, noise, coarse, elsewhere, offset, seed):
        views = torch.full((1, 8, 32, 32), float(LUNG_HU))
        views[:, :, 16:] = NODULE_HU
        drawn = Disturbance(noise_hu=noise, coarse=coarse, elsewhere=elsewhere, offset_hu=offset, seed=seed)
        change = disturb(views, [drawn]) - views - offset
        assert change[:, :, :16].std().item() == pytest.approx(noise, rel=0.15)
        assert change[:, :, 16:].std().item() == pytest.approx(noise * elsewhere, rel=0.15, abs=1e-3)

    def test_nothing_drawn_changes_nothing(self):
        views = torch.from_numpy(balls(1, 0)).float()
        assert torch.allclose(disturb(views, [Disturbance()]), views, atol=1e-3)


@pytest.fixture(scope="module")
def judge_task(data, tmp_path_factory) -> JudgeTask:
    """A task of the small dataset, for what does not change it."""
    return task_of(NODULE, data, tmp_path_factory.mktemp("task"))


class TestTask:
    @pytest.mark.slow
    def test_train_py_makes_a_judge_that_loads(self, train, tmp_path):
        assert train(NODULE) == 0
        path = tmp_path / "models" / "judges" / "tiny.safetensors"
        judge = load_judge("tiny", tmp_path / "models")
        card = weights.ModelCard.read(path.with_suffix(".json"))
        assert (judge.question, judge.threshold) == ("nodule", card.figures["threshold"])
        assert 0 <= card.figures["area_under_curve"] <= 1
        assert str(tmp_path) not in path.with_suffix(".json").read_text()
        assert judge.score_views(balls(1, 0)[:, 9:41, 9:41, 9:41]).shape == (1,)

    @pytest.mark.slow
    def test_train_py_makes_a_forgery_judge(self, train, tmp_path):
        assert train(FORGERY, "--set", f"forgery.cache={tmp_path / 'cache'}") == 0
        assert load_judge("tiny-forensic", tmp_path / "models").view == Sight("squares", 24, 3)
        card = weights.ModelCard.read(tmp_path / "models" / "judges" / "tiny-forensic.json")
        assert {"false_alarms untouched", "found untrained inject", "found untrained remove"} <= set(card.figures)
        assert "untrained-inject" in card.training["inputs"]

    @pytest.mark.slow
    def test_a_resumed_run_equals_an_unbroken_one(self, train, tmp_path, monkeypatch):
        assert train(NODULE, work="whole", out="a") == 0
        terminate_in(monkeypatch, JudgeTask, 2)
        assert train(NODULE, work="parts", out="b") == CancelledError.exit_code
        monkeypatch.undo()
        assert train(NODULE, work="parts", out="b") == 0
        assert same(*(torch.load(tmp_path / work / "last.pt", weights_only=True) for work in ("whole", "parts")))
        whole, parts = (tmp_path / out / "judges" / "tiny.safetensors" for out in "ab")
        assert whole.read_bytes() == parts.read_bytes()

    @pytest.mark.slow
    def test_it_learns_to_tell_balls_from_lung(self, data, tmp_path):
        """A few steps must bring the loss well below that of an answer by lot, log 2."""
        task = task_of(NODULE, data, tmp_path, {"plain.filters": 4, "learning_rate": 1e-2})
        task.network.train()
        optimizer = task.learners["judge"].optimizer
        for number in range(20):
            torch.manual_seed(number)
            (loss,) = task.losses(task.draw(Step(number, 0, 8)), {"judge": task.network})
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
        task.network.eval()
        with torch.no_grad():
            figures = task.validate()
        assert figures["loss"] < 0.6
        assert figures["area_under_curve"] > 0.9

    @pytest.mark.slow
    @settings(max_examples=20, deadline=None)
    @given(share=st.floats(0, 1), seed=st.integers(0, 100))
    def test_the_threshold_keeps_false_alarms_below_the_share(self, judge_task, share, seed):
        task, rng, given = copy.copy(judge_task), np.random.default_rng(seed), []

        def score_views(views: np.ndarray) -> np.ndarray:
            given.append(np.round(rng.random(len(views)), 1))
            return given[-1]

        task.config = dataclasses.replace(task.config, false_alarms=share)
        task.judge = lambda **_: SimpleNamespace(score_views=score_views)
        figures = task.validate()
        threshold = figures[THRESHOLD]
        groups = [name for name in figures if name.startswith(("found ", "false_alarms ")) and "noise" not in name]
        assert len(given) == 2 * len(groups), "every group as it is, in their order, and then with noise"
        others = [values for name, values in zip(groups, given, strict=False) if name.startswith("false_alarms ")]
        reached = np.mean([np.mean(values >= threshold) for values in others])
        assert reached <= share + 1e-9
        lower = max((v for values in others for v in values if v < threshold), default=None)
        if lower is not None:
            assert np.mean([np.mean(values >= lower) for values in others]) > share, "no lower threshold would do"

    def test_sample_images_are_images(self, judge_task):
        (image,) = judge_task.images().values()
        assert image.ndim == 2
        assert 0 <= image.min() < image.max() <= 1

    @pytest.mark.parametrize(
        ("text", "change", "message"),
        [
            (NODULE, "residual.filters=2", "one of the tables"),
            (NODULE, "forgery.jitter=2", "either the table"),
            (NODULE, "view.kind=squares", "view.kind must be 'cube'"),
            (FORGERY, "view.kind=cube", "goes with view.kind"),
            (NODULE, "nodule.file=nothing.npz", "nothing.npz cannot be read"),
            (NODULE, "nodule.fil=x", "did you mean 'nodule.file'"),
        ],
    )
    def test_what_cannot_be_trained_is_refused(self, train, text, change, message, capsys):
        assert train(text, "--set", change) == InputError.exit_code
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        "name", ["judge-nodule-plain", "judge-nodule-residual", "judge-nodule-planes", "judge-forensic"]
    )
    def test_shipped_recipes_hold_the_reported_scans_out(self, name):
        config = load_recipe(name).config
        assert {"LIDC-IDRI-0001", "RIDER-Pilot-0117"} <= set(config.held_out)
        assert (config.forgery is None) == name.startswith("judge-nodule")
