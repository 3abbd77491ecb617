"""Planted nodules and verdicts: removals have something to remove, and every arm is judged at every place."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import small_plan, small_scan, write_tiny_protector
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_data import SQUARES, write_judge
from MITSGANLib import weights
from MITSGANLib.attack.attacker import load_attacker, simulate_attack
from MITSGANLib.errors import InputError
from MITSGANLib.files.storage import save_volume
from MITSGANLib.judges.jury import Jury
from MITSGANLib.scan.targets import choose_targets
from MITSGANLib.scan.volume import CTVolume
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.data.nodules import FADE_MM, Nodules
from MITSGANTrainingLib.evaluation import evaluate as evaluating
from MITSGANTrainingLib.evaluation import measure as measuring
from MITSGANTrainingLib.evaluation.evaluate import Evaluation, EvaluationPlan, evaluate
from MITSGANTrainingLib.evaluation.planting import SYNTHETIC, NoduleFile, Plant, draw_scenes, planted
from MITSGANTrainingLib.evaluation.scans import ScanRequest, ScanSource, inspect
from training_data import write_untrained_attackers

ARMS = {"clean", "protected", "gaussian", "ct-like"}


@pytest.fixture(scope="module")
def nodules() -> Nodules:
    return NoduleFile.of(SYNTHETIC).read()


@pytest.fixture(scope="module")
def scan() -> CTVolume:
    return small_scan()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, untrained_attackers) -> Path:
    """A scan, a protector, attackers and two judges."""
    made = tmp_path_factory.mktemp("success")
    save_volume(small_scan(), made / "scan.nrrd")
    write_tiny_protector(made / "tiny.safetensors")
    write_untrained_attackers(made, untrained_attackers)
    write_judge(made, "n", figures={"threshold": 0.5})
    write_judge(made, "f", "forgery", "SquaresNetwork", SQUARES, figures={"threshold": 0.5})
    return made


def plan(folder: Path, output: Path, **changes: object) -> EvaluationPlan:
    return small_plan(folder, output, **{"targets": 2, **changes})


@pytest.fixture(scope="module")
def finished(folder) -> Evaluation:
    return evaluate(plan(folder, folder / "finished", pictures=1))


def targets(record: dict, action: str) -> list[dict]:
    return [target for found in record["measurements"] if found["action"] == action for target in found["targets"]]


class TestPlanting:
    def test_those_that_come_with_the_program_can_be_removed(self, nodules):
        assert len(nodules.hu) == 12
        assert (nodules.radii <= 10).all()
        half = nodules.hu.shape[1] // 2
        assert (nodules.radii + FADE_MM + np.abs(nodules.centers).max(axis=1) < half + 1).all()
        middles = nodules.hu[:, half - 1 : half + 2, half - 1 : half + 2, half - 1 : half + 2].mean(axis=(1, 2, 3))
        assert (middles > -100).all(), "soft tissue"
        assert (nodules.hu[:, 0].mean(axis=(1, 2)) < -800).all(), "lung around it"

    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 1000), count=st.integers(1, 8))
    def test_no_two_plants_of_a_scene_disturb_each_other(self, nodules, scan, seed, count):
        scenes = draw_scenes(scan, count, nodules, seed)
        assert scenes == draw_scenes(scan, count, nodules, seed)
        assert len({plant.kji for scene in scenes for plant in scene.plants}) == count
        for scene in scenes:
            assert [target.kji for target in scene.targets] == [plant.kji for plant in scene.plants]
            places = np.array([plant.kji for plant in scene.plants]) * scan.spacing_kji
            apart = np.abs(places[:, None] - places).max(axis=-1)[~np.eye(len(places), dtype=bool)]
            assert (apart >= 16 + 10 + FADE_MM).all(), "an attack would read another's nodule"

    def test_scenes_take_what_finds_room_in_them(self, nodules, scan):
        first, *others = draw_scenes(scan, 8, nodules, 0)
        assert len(first.plants) >= 3
        assert all(len(scene.plants) <= len(first.plants) for scene in others)

    def test_all_nodules_take_their_turn(self, nodules, scan):
        numbers = [plant.nodule for scene in draw_scenes(scan, 14, nodules, 0) for plant in scene.plants]
        assert sorted(numbers[:12]) == list(range(12))
        assert len(set(numbers[12:])) == 2

    @settings(max_examples=20, deadline=None)
    @given(flips=st.tuples(*[st.booleans()] * 3), turns=st.integers(0, 3))
    def test_a_turned_nodule_still_has_its_middle_in_the_place(self, flips, turns):
        cube = np.full((27, 27, 27), -900, np.int16)
        cube[13 + 2, 13 - 1, 13 + 3] = 100
        odd = Nodules(cube[None], np.array([[2.0, -1.0, 3.0]]), np.array([4.0]), np.array(["a"]))
        volume = CTVolume(np.full((28, 40, 40), -900, np.int16))
        made = planted(volume, [Plant((14, 20, 21), 0, flips, turns)], odd)
        assert np.argwhere(made.hu > 0).tolist() == [[14, 20, 21]]

    def test_a_scene_without_plants_is_the_scan(self, nodules):
        volume = small_scan()
        assert planted(volume, (), nodules) is volume
        assert planted(volume, draw_scenes(volume, 1, nodules, 0)[0].plants, nodules).provenance.is_simulated_attack

    def test_files_without_a_nodule_to_remove_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            NoduleFile.of(tmp_path / "none.npz")
        cubes = np.full((1, 51, 51, 51), -900, np.int16)
        np.savez(tmp_path / "large.npz", hu=cubes, patient=["a"], diameter_mm=[30.0])
        with pytest.raises(InputError, match="below 20 mm"):
            NoduleFile.of(tmp_path / "large.npz")
        np.savez(tmp_path / "small.npz", hu=cubes, patient=["a"], diameter_mm=[9.0])
        file = NoduleFile.of(tmp_path / "small.npz")
        assert file.describe()["nodules"] == 1
        with pytest.raises(InputError, match="has changed"):
            dataclasses.replace(file, digest="0" * 64).read()


class TestPlaces:
    def inspection(self, folder: Path, **changes: object) -> ScanRequest:
        source = ScanSource(str(folder / "scan.nrrd"))
        wanted = ScanRequest(source, ("inject", "remove"), None, 3, 5, NoduleFile.of(SYNTHETIC))
        return dataclasses.replace(wanted, **changes)

    def test_injections_come_first_and_removals_at_plants(self, folder):
        subject = inspect(self.inspection(folder))
        first, *others = subject.scenes
        assert not first.plants
        assert {target.action for target in first.targets} == {"inject"}
        assert sum(len(scene.targets) for scene in others) == 3
        assert all(target.action == "remove" for scene in others for target in scene.targets)
        assert "planted" in others[0].targets[0].reason

    @pytest.mark.slow
    def test_without_nodules_structures_of_the_scan_are_removed(self, folder):
        subject = inspect(self.inspection(folder, nodules=None))
        (scene,) = subject.scenes
        assert scene.targets == choose_targets(small_scan(), 3, 5)

    def test_nothing_is_planted_where_nothing_is_removed(self, folder):
        (scene,) = inspect(self.inspection(folder, actions=("inject",))).scenes
        assert not scene.plants

    @pytest.mark.slow
    def test_places_of_the_user_are_left_as_they_are(self, folder, tmp_path):
        given = tmp_path / "targets.csv"
        given.write_text("scan,action,k,j,i\nscan,remove,14,70,85\n")
        result = evaluate(plan(folder, tmp_path / "out", targets_file=str(given), judges=("none",)))
        assert result.record["settings"]["planted"] is None
        assert [found["scene"] for found in result.record["measurements"]] == [0]


@pytest.mark.slow
class TestVerdicts:
    def test_every_arm_is_judged_at_every_place(self, finished):
        for action in ("inject", "remove"):
            found = targets(finished.record, action)
            assert len(found) == 2
            for target in found:
                assert set(target["judged"]) == ARMS
                possible = {verdict["possible"] for verdict in target["judged"].values()}
                assert len(possible) == 1, "all arms count the same places"

    def test_verdicts_agree_with_an_attack_by_hand(self, folder, finished, nodules):
        jury = Jury.load([folder / "judges" / f"{name}.safetensors" for name in "nf"])
        attacker = load_attacker(str(folder / "attackers" / "untrained"), "remove")
        found = next(m for m in finished.record["measurements"] if m["action"] == "remove")
        (target, *_) = found["targets"]
        subject = inspect(
            ScanRequest(ScanSource(str(folder / "scan.nrrd")), ("remove",), None, 2, 0, NoduleFile.of(SYNTHETIC))
        )
        plants = next(scene.plants for scene in subject.scenes for p in scene.plants if list(p.kji) == target["kji"])
        clean = planted(small_scan(), plants, nodules)
        attacked = simulate_attack(clean, target["kji"], "remove", attacker=attacker, device="cpu")
        before, after = jury.look([clean.hu, attacked.hu], clean.spacing_kji, target["kji"])
        assert target["judged"]["clean"] == pytest.approx(jury.verdict("remove", before, after).to_dict(), abs=1e-6)

    def test_what_is_removed_is_there_before(self, finished):
        """The attack's own change of a planted nodule is far above that of an empty place."""
        assert all(target["forgery"]["clean"]["own"] > 100 for target in targets(finished.record, "remove"))

    def test_table_4_stands_in_every_format(self, finished):
        section = next(section for section in finished.sections if section.key == "table-4")
        assert [table.key for table in section.tables] == ["table-4-untrained-inject", "table-4-untrained-remove"]
        for table in section.tables:
            labels = [row.labels for row in table.rows]
            assert labels == [
                ("none", "unprotected"),
                *(("tiny", w) for w in ("protected", "Gaussian noise instead", "CT-like noise instead")),
            ]
        assert "## Table 4" in (finished.results / "tables.md").read_text()
        assert "table-4-untrained-remove" in (finished.results / "tables.tex").read_text()
        with (finished.results / "tables.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["table"].startswith("table-4")]
        assert {"AUC", "past the judges", "past all checks"} <= {row["column"] for row in rows}
        with (finished.results / "measurements.csv").open() as file:
            figures = {row["figure"]: row["value"] for row in csv.DictReader(file) if row["region"] == "cube"}
        assert {"nodule_before", "nodule_after", "forgery_before", "forgery_after"} < set(figures)
        assert figures["unnoticed"] in ("0", "1")
        settings_ = json.loads((finished.results / "evaluation.json").read_text())["settings"]
        assert settings_["judges"]["nodule"]["name"] == "n"
        assert settings_["planted"]["nodules"] == 12

    def test_pictures_of_planted_nodules_say_so(self, finished):
        assert "planted nodule" in (finished.results / "figure-6-untrained.svg").read_text()

    @pytest.mark.slow
    def test_another_threshold_is_another_verdict(self, folder, tmp_path, finished):
        again = plan(folder, finished.results.parent, pictures=1)
        assert evaluate(again).attacked == 0
        write_judge(tmp_path, "n", figures={"threshold": 0.4})
        judges = (str(tmp_path / "judges" / "n.safetensors"), again.judges[1])
        result = evaluate(dataclasses.replace(again, actions=("inject",), judges=judges))
        assert result.attacked == 2

    @pytest.mark.slow
    def test_the_change_of_a_scan_is_measured_without_plants(self, folder, tmp_path, finished):
        alone = evaluate(plan(folder, tmp_path / "out", actions=("remove",)))
        keys = ("rmse", "max_abs_difference", "rmse_worst_slice")
        found, expected = (study_.record["whole_scans"][0]["figures"] for study_ in (alone, finished))
        assert [found[key] for key in keys] == [expected[key] for key in keys]


class TestAbsence:
    @pytest.mark.slow
    def test_without_judges_the_rest_is_measured_and_the_reason_said(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(evaluating, "available_judges", list)
        notes: list[str] = []
        result = evaluate(plan(folder, tmp_path / "out", actions=("inject",), judges=(), targets=1), note=notes.append)
        assert any("mitsgan train judge-forensic" in note for note in notes)
        assert targets(result.record, "inject")[0]["judged"] is None
        assert result.record["settings"]["judges"] is None
        assert "mitsgan train judge-nodule-residual" in " ".join((result.results / "tables.md").read_text().split())

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            (["--judges", "nobody"], 5, "nobody"),
            (["--nodules", "nowhere.npz"], 3, "nowhere.npz"),
        ],
    )
    def test_what_is_named_must_be_there(self, folder, tmp_path, capsys, options, code, words):
        arguments = ["evaluate", str(folder / "scan.nrrd"), str(tmp_path / "out"), *options]
        named = [
            "--protectors",
            str(folder / "tiny.safetensors"),
            "--attackers",
            str(folder / "attackers" / "untrained"),
        ]
        assert main([*arguments, *named]) == code
        assert words in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_worker_refuses_other_judges(self, folder):
        sources = tuple(str(folder / "judges" / f"{name}.safetensors") for name in "nf")
        with pytest.raises(InputError, match="judges have changed"):
            measuring.Settings(device="cpu", judges=sources, jury={}).load_jury()
        assert weights.ModelCard.read(folder / "judges" / "n.json").kind == "judge of nodule"
