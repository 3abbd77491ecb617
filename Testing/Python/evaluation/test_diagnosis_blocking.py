"""What protection does to diagnosis networks: fair places, exact restoration, honest figures, and the command."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mark_data import balls, tiny_mark, write_mark, write_mark_dataset, write_mark_models
from MITSGANLib import weights
from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.files.storage import save_volume
from MITSGANLib.judges.judge import load_judge
from MITSGANLib.protection.generator import Generator, GeneratorConfig
from MITSGANLib.protection.protector import Protector
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.embedding import Watermark
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.commands.diagnose import nodules_to_plant
from MITSGANTrainingLib.data.dataset import Dataset
from MITSGANTrainingLib.data.nodules import Nodules
from MITSGANTrainingLib.evaluation import diagnosis_blocking as blocking
from MITSGANTrainingLib.evaluation.diagnosis_blocking import (
    BLOCKED,
    CLEAN,
    NOISE,
    PROTECTED,
    PROTECTED_NOISE,
    RESTORED,
    UNBLOCKED,
    Answers,
    BlockingCase,
    answers,
    cube_case,
    make_arms,
    protected_voxels,
    rmse_hu,
    scan_case,
)
from MITSGANTrainingLib.training import nodule_samples
from MITSGANTrainingLib.training.nodule_samples import split_nodules, training_nodules
from MITSGANTrainingLib.training.samples import Group

CONFIG = GeneratorConfig(trunk_filters=4, residual_blocks=1, output="residual", unshuffle=2, grid=2)
CUBE = slice(1, 49)


def network(seed: int) -> Generator:
    torch.manual_seed(seed)
    made = Generator(CONFIG).eval().requires_grad_(False)
    made.trunk[-3].weight.mul_(20)
    return made


def lung(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(-850, 20, (count, 48, 48, 48)).astype(np.int16)


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    cubes = balls(3, 0)[:, CUBE, CUBE, CUBE]
    return [
        Group("nodule", True, cubes, np.array(["a", "b", "c"])),
        Group("healthy", False, lung(6, 1), np.repeat("d", 6)),
        Group("beside", False, lung(1, 2), np.array(["a"])),
    ]


@pytest.fixture(scope="module")
def case(groups) -> BlockingCase:
    return cube_case(groups)


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    return [load_judge("mine", write_mark_models(tmp_path_factory.mktemp("judges")))]


@pytest.fixture(scope="module")
def mark() -> Protector:
    return Protector("mark", tiny_mark(), Budget(strength_hu=40.0, soft_tissue=0.5), digest="1")


@pytest.fixture(scope="module")
def default() -> Protector:
    return Protector("small", network(2), Budget(strength_hu=30.0, noise_share=0.5), digest="2", watermark=Watermark())


@pytest.fixture(scope="module")
def arms(case, mark, default):
    return make_arms(case, mark, default, unblock=lambda hu: hu - np.int16(1), draws=2, device="cpu")


def answers_of(said: np.ndarray, yes: np.ndarray, patients: np.ndarray, before: np.ndarray) -> Answers:
    places = tuple((n, 0, 0) for n in range(len(yes)))
    case = BlockingCase("places", CTVolume(np.zeros((1, 1, 1), np.int16)), places, yes, patients)
    return Answers("mine", BLOCKED, case, said[None], before)


class TestPlaces:
    def test_as_many_without_a_nodule_as_with(self, case):
        assert (case.yes.sum(), (~case.yes).sum()) == (3, 3)
        assert case.patients.tolist() == ["a", "b", "c", "d", "d", "a"], "groups without take turns"
        assert case.volume.shape == (6 * 48, 48, 48)

    def test_fewer_are_spread_over_all_patients(self, groups):
        fewer = cube_case(groups, 2)
        assert fewer.yes.tolist() == [True, True, False, False]
        assert fewer.patients.tolist() == ["a", "c", "d", "a"]
        assert cube_case(groups, 9).yes.sum() == 3

    @pytest.mark.slow
    def test_each_place_is_the_middle_of_its_cube(self, case, groups, judges):
        view = judges[0].view
        expected = groups[0].views[1][8:40, 8:40, 8:40]
        np.testing.assert_allclose(view.cut(case.volume.hu, (1, 1, 1), case.places[1]), expected, atol=0.01)

    def test_where_places_without_are_fewer_places_with_are_left_out(self, groups):
        few = cube_case([groups[0], groups[2]])
        assert few.yes.tolist() == [True, False]

    @pytest.mark.parametrize("kept", [slice(0, 1), slice(1, 3)])
    def test_one_side_alone_is_refused(self, groups, kept):
        with pytest.raises(InputError, match="prepare more"):
            cube_case(groups[kept])

    @pytest.mark.slow
    def test_nodules_are_planted_into_scans_far_from_the_other_places(self, phantom):
        nodules = Nodules(balls(2, 0), np.zeros((2, 3)), np.full(2, 5.0), np.array(["a", "b"]))
        found = scan_case("scan 1", phantom.volume, nodules, 2, seed=0)
        spacing = np.array(phantom.volume.spacing_kji)
        assert found.yes.sum() == (~found.yes).sum() >= 1
        for kji in np.array(found.places)[~found.yes]:
            others = [other for other in found.places if other != tuple(kji)]
            assert all(np.abs((kji - other) * spacing).max() >= 34 for other in others)
        for kji, yes in zip(found.places, found.yes, strict=True):
            if yes:
                assert found.volume.hu[kji] > phantom.volume.hu[kji] + 200
            else:
                assert found.volume.hu[kji] == phantom.volume.hu[kji]


@pytest.mark.slow
class TestArms:
    def test_the_key_gives_back_every_voxel(self, arms):
        assert np.array_equal(arms[RESTORED][0].hu, arms[CLEAN][0].hu)
        assert not np.array_equal(arms[BLOCKED][0].hu, arms[CLEAN][0].hu)

    def test_the_mark_stays_within_its_budget(self, arms, mark):
        clean, marked = (arms[arm][0].hu.astype(int) for arm in (CLEAN, BLOCKED))
        assert (np.abs(marked - clean) <= mark.budget.fraction(clean) * mark.budget.strength_hu + 1e-6).all()

    def test_each_cube_has_a_mark_of_its_own(self, case, mark):
        """Two equal cubes: neither the other nor a judge's place is known, and the seeds differ."""
        twice = np.concatenate([case.volume.hu[:48]] * 2)
        pair = dataclasses.replace(case, volume=CTVolume(twice), places=case.places[:2])
        seen = []
        marked = protected_voxels(pair, mark, "cpu", lambda done, total: seen.append((done, total))).hu
        assert seen == [(48, 96), (96, 96)]
        assert not np.array_equal(marked[:48], marked[48:])
        assert not np.array_equal(marked[:48], twice[:48])

    def test_a_share_of_the_noise_bounds_the_default_protection(self, arms):
        assert 0 < rmse_hu(arms, PROTECTED) < 0.5 * 20

    @pytest.mark.parametrize(("arm", "noise"), [(BLOCKED, NOISE), (PROTECTED, PROTECTED_NOISE)])
    def test_noise_has_the_rmse_of_what_it_stands_beside(self, arms, arm, noise):
        assert rmse_hu(arms, noise) == pytest.approx(rmse_hu(arms, arm), rel=0.02)
        assert len(arms[noise]) == 2
        assert not np.array_equal(*(volume.hu for volume in arms[noise]))

    def test_the_removal_network_is_asked_about_the_marked_scan(self, arms):
        assert np.array_equal(arms[UNBLOCKED][0].hu, arms[BLOCKED][0].hu - 1)

    @pytest.mark.slow
    def test_a_key_that_does_not_restore_is_no_result(self, case, mark, default, monkeypatch):
        monkeypatch.setattr(
            blocking, "load_volume", lambda _path: dataclasses.replace(case.volume, hu=case.volume.hu + 1)
        )
        monkeypatch.setattr(blocking, "save_sealed", lambda *_: None)
        monkeypatch.setattr(blocking, "restore", lambda *_: None)
        with pytest.raises(InputError, match="did not give back"):
            make_arms(case, mark, default, draws=1, device="cpu")

    def test_a_trained_judge_is_right_on_clean_cubes_and_as_right_on_restored_ones(self, case, arms, judges):
        found = {one.arm: one for one in answers(case, arms, judges)}
        assert found[CLEAN].accuracy().value == 1
        assert np.array_equal(found[RESTORED].said, found[CLEAN].said)
        assert found[RESTORED].changed().value == 0


class TestFigures:
    @settings(max_examples=30, deadline=None)
    @given(data=st.data(), count=st.integers(2, 12), patients=st.integers(1, 5))
    def test_accuracy_and_changes_are_shares(self, data, count, patients):
        yes = np.arange(count) % 2 == 0
        draw = [np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count))) for _ in range(2)]
        found = answers_of(draw[0], yes, np.arange(count) % patients, draw[1])
        accuracy, changed = found.accuracy(), found.changed()
        right = draw[0] == yes
        assert accuracy.value == pytest.approx((right[yes].mean() + right[~yes].mean()) / 2)
        for one in (accuracy, changed):
            assert 0 <= one.low <= one.high <= 1
        assert answers_of(draw[0], yes, yes, draw[0]).changed().value == 0

    def test_who_always_says_yes_is_right_by_half(self):
        yes = np.arange(6) < 3
        found = answers_of(np.ones(6, bool), yes, np.arange(6), yes)
        assert found.accuracy().value == 0.5
        assert found.changed().value == 0.5

    def test_places_of_one_patient_go_together(self):
        """Ten places that agree are no more than one where they are one patient's."""
        yes = np.tile([True, False], 20)
        said = np.where(np.arange(40) < 20, yes, ~yes)
        apart, together = (
            answers_of(said, yes, patients, yes).accuracy() for patients in (np.arange(40), np.arange(40) // 20)
        )
        assert (together.low, together.high) == (0, 1)
        assert apart.high - apart.low < 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom):
    """A dataset, a judge, the mark as a file, a scan, and a few of its slices."""
    root = tmp_path_factory.mktemp("command")
    write_mark_dataset(root / "dataset", phantom.volume)
    write_mark_models(root)
    digest = load_judge("mine", root).digest
    write_mark(root / "mark.safetensors", tiny_mark(passes=1, false_mm=64.0), training={"inputs": {"mine": digest}})
    small = {"class": "Generator", "config": dataclasses.asdict(CONFIG)}
    texts = dict.fromkeys(("description", "limits", "command", "commit"), "")
    card = weights.ModelCard(
        "small", "protector", architecture=small, data={}, training={}, figures={}, seed=0,
        budget=Budget(strength_hu=40.0).to_dict(), **texts,
    )  # fmt: skip
    weights.write_weights(root / "small.safetensors", weights.half_precision(network(2)), card)
    half = slice(0, 64)  # the right lung
    for name, part in (("scan", (slice(16, 32), slice(None), half)), ("thin", slice(23, 25))):
        save_volume(dataclasses.replace(phantom.volume, hu=phantom.volume.hu[part]), root / f"{name}.nrrd")
    return root


@pytest.fixture
def diagnose(folder):
    def run(output, *options):
        fixed = ["--model", str(folder / "mark.safetensors"), "--default", str(folder / "small.safetensors")]
        judge = ["--judges", str(folder / "judges" / "mine.safetensors"), "--nodules", "nodules.npz"]
        arguments = [str(folder / "dataset"), str(output), *fixed, *judge, "--device", "cpu", "--noise", "1"]
        return main(["diagnose", *arguments, *options])

    return run


class TestCommand:
    @pytest.mark.slow
    def test_it_prints_and_writes_the_same_report_of_cubes_and_scans(self, diagnose, folder, tmp_path, capsys):
        assert diagnose(tmp_path / "report", "--scans", str(folder / "scan.nrrd"), "--places", "1") == 0
        text, said = (tmp_path / "report" / "diagnose.md").read_text(), capsys.readouterr().out
        assert text in said
        assert "white box" in text
        assert "45.83" in text
        record = json.loads((tmp_path / "report" / "diagnose.json").read_text())
        assert list(record["cases"]) == ["cubes", "scan 1"]
        cubes = record["cases"]["cubes"]
        assert cubes["nodules"] == cubes["healthy"] > 0
        found = {one["arm"]: one for one in cubes["networks"]}
        assert UNBLOCKED not in found
        assert found[RESTORED]["accuracy"] == found[CLEAN]["accuracy"]
        assert record["black_boxes"] == []
        assert str(tmp_path) not in json.dumps(record)
        assert "scan.nrrd" not in json.dumps(record) + said

    def test_nodules_of_the_validation_side_are_planted_where_there_are_any(self, folder, monkeypatch):
        data = Dataset.open(folder / "dataset")
        theirs = split_nodules(training_nodules(folder / "dataset" / "nodules.npz"), data, ["a"])["validation"]
        found = nodules_to_plant(data, "nodules.npz", ["a"])
        assert set(found.patients) == set(theirs.patients) != set()
        monkeypatch.setattr(nodule_samples, "split_nodules", lambda *_: {"validation": theirs.of([])})
        drawn = nodules_to_plant(data, "nodules.npz", [])
        assert np.array_equal(drawn.hu, nodules_to_plant(data, "", []).hu)
        assert not set(drawn.patients) & set(theirs.patients)

    @pytest.mark.parametrize(
        ("options", "code", "message"),
        [
            (["--judges", "forensic"], InputError.exit_code, "not asked about nodules"),
            (["--model", "no-such-model"], 5, "no protector"),
        ],
    )
    def test_what_cannot_be_measured_is_refused(self, diagnose, tmp_path, options, code, message, capsys):
        assert diagnose(tmp_path / "report", *options) == code
        assert message in capsys.readouterr().err
        assert not (tmp_path / "report").exists()

    def test_no_noise_at_all_is_wrong_usage(self, diagnose, tmp_path, capsys):
        with pytest.raises(SystemExit):
            diagnose(tmp_path / "report", "--noise", "0")
        assert "'0' is not a whole number above 0" in capsys.readouterr().err

    def test_an_older_report_stays(self, diagnose, tmp_path):
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "mine").write_text("")
        assert diagnose(tmp_path / "report") == OutputError.exit_code
        assert [path.name for path in (tmp_path / "report").iterdir()] == ["mine"]

    @pytest.mark.slow
    def test_protect_says_what_the_mark_is(self, folder, tmp_path, capsys):
        arguments = ["protect", str(folder / "thin.nrrd")]
        mark = ["--model", str(folder / "mark.safetensors"), "--device", "cpu"]
        assert main([*arguments, str(tmp_path / "a.nrrd"), *mark]) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "mislead diagnosis" in line]
        assert "--key" in line
        assert main(["keygen", str(tmp_path / "key")]) == 0
        assert main([*arguments, str(tmp_path / "b.nrrd"), *mark, "--key", str(tmp_path / "key")]) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "mislead diagnosis" in line]
        assert "--key" not in line
        mark[1] = str(folder / "small.safetensors")
        assert main([*arguments, str(tmp_path / "c.nrrd"), *mark]) == 0
        assert "mislead" not in capsys.readouterr().err
