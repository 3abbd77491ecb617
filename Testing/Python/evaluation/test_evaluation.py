"""Evaluation from end to end: every arm, its controls, the cache, failures, and what results may not hold."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import dicom_factory
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from evaluation_data import small_plan, small_scan, write_tiny_protector
from MITSGANLib.attack.attacker import attack_patch, simulate_attack
from MITSGANLib.errors import CancelledError, InputError, OutputError
from MITSGANLib.files.storage import save_volume
from MITSGANLib.scan.cubes import PatchedScan
from MITSGANLib.scan.regions import regions_at
from MITSGANLib.scan.targets import Target
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.evaluation import evaluate as evaluating
from MITSGANTrainingLib.evaluation import measure as measuring
from MITSGANTrainingLib.evaluation.cache import MEASUREMENT, Cache
from MITSGANTrainingLib.evaluation.evaluate import Evaluation, EvaluationPlan, evaluate
from MITSGANTrainingLib.evaluation.measure import ARMS, MeasuringJob, Settings
from MITSGANTrainingLib.evaluation.protections import ProtectionArm, read_protections
from MITSGANTrainingLib.evaluation.scans import Case, ScanRequest, ScanSource, inspect, scan_names
from MITSGANTrainingLib.evaluation.targets import GivenTarget
from training_data import write_untrained_attackers


class World:
    """Files of a small evaluation."""

    def __init__(self, folder: Path, attackers: dict) -> None:
        self.folder = folder
        self.scan, self.other = folder / "Doe^Jane.nrrd", folder / "second.nrrd"
        save_volume(small_scan(), self.scan)
        save_volume(small_scan(seed=4), self.other)
        self.protector = write_tiny_protector(folder / "tiny.safetensors", alpha=0.4)
        write_untrained_attackers(folder, attackers)
        self.attacker = folder / "attackers" / "untrained"

    def plan(self, output: Path, **changes: object) -> EvaluationPlan:
        return small_plan(self.folder, output, **{"scans": (str(self.scan),), "judges": ("none",), **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory, untrained_attackers) -> World:
    return World(tmp_path_factory.mktemp("world"), untrained_attackers)


@pytest.fixture(scope="module")
def finished(world) -> Evaluation:
    """Two scans, one protection, both actions."""
    return evaluate(world.plan(world.folder / "finished", scans=(str(world.scan), str(world.other)), pictures=1))


def measurements(record: dict) -> list[dict]:
    return [{k: v for k, v in found.items() if k != "seconds"} for found in record["measurements"]]


class TestAttack:
    @pytest.mark.slow
    @pytest.mark.parametrize("action", ["inject", "remove"])
    def test_the_patch_is_all_that_the_whole_attack_changes(self, untrained_attackers, action):
        """Far from the place that the touch-up copies noise from, upon it, and at the least distance to the border."""
        volume = small_scan()
        source = tuple(int(size * part) for size, part in zip(volume.shape, (0.5, 0.43, 0.27), strict=True))
        scan = torch.from_numpy(np.array(volume.hu))
        for kji in ((14, 70, 85), source, (7, 40, 40)):
            attacker = untrained_attackers[action]
            whole = simulate_attack(volume, kji, action, attacker=attacker, device="cpu").hu
            where, values = attack_patch(scan, kji, volume.spacing_kji, attacker)
            pasted = np.array(volume.hu)
            pasted[where] = values
            assert (pasted == whole).all()
            attacked = PatchedScan(volume.hu, where, values)
            middle = regions_at(volume, kji).middle
            for box in (middle.index, np.s_[kji[0] : kji[0] + 1, 0:128, 0:128], np.s_[0:28, 0:3, 0:3]):
                assert (attacked[box] == whole[box]).all()

    @pytest.mark.slow
    def test_the_scan_is_left_alone(self, untrained_attackers):
        volume = small_scan()
        scan = torch.from_numpy(np.array(volume.hu))
        attack_patch(scan, (14, 70, 85), volume.spacing_kji, untrained_attackers["remove"])
        assert (scan.numpy() == volume.hu).all()


@pytest.mark.slow
class TestResults:
    def test_every_arm_is_measured_at_every_target(self, finished):
        found = finished.record["measurements"]
        assert len(found) == 4
        assert {(m["scan"][:6], m["action"]) for m in found} == {
            (s, a) for s in ("scan 1", "scan 2") for a in ("inject", "remove")
        }
        for measured in found:
            (target,) = measured["targets"]
            images = {*ARMS, *(f"{arm} attacked" for arm in ("clean", *ARMS))}
            assert set(target["against_clean"]) == images
            assert set(target["forgery"]) == {"clean", *ARMS}
            for arm in ARMS:
                forgery = target["forgery"][arm]
                assert forgery["share"] == pytest.approx(forgery["moved"] / target["forgery"]["clean"]["own"])

    def test_controls_have_the_protections_rmse_in_the_slice(self, finished):
        for measured in finished.record["measurements"]:
            rmse = {arm: measured["targets"][0]["against_clean"][arm]["slice"]["rmse"] for arm in ARMS}
            assert rmse["protected"] > 0.5
            assert rmse["gaussian"] == pytest.approx(rmse["protected"], rel=0.02)
            assert rmse["ct-like"] == pytest.approx(rmse["protected"], rel=0.02)

    def test_figures_agree_with_an_attack_by_hand(self, finished, untrained_attackers):
        measured = next(m for m in finished.record["measurements"] if m["action"] == "inject")
        (target,) = measured["targets"]
        clean = small_scan()
        attacked = simulate_attack(clean, target["kji"], "inject", attacker=untrained_attackers["inject"], device="cpu")
        # The files keep weights in half precision, so the last digits differ.
        square = regions_at(clean, target["kji"]).square
        change = (attacked.hu.astype(float) - clean.hu)[square.index]
        found = target["against_clean"]["clean attacked"]["square"]["rmse"]
        assert found == pytest.approx(np.sqrt(np.mean(change**2)), rel=0.02)

    def test_files(self, finished):
        names = {path.name for path in finished.results.iterdir()}
        figures = {f"{stem}.{kind}" for stem in ("figure-6-untrained", "figure-7") for kind in ("png", "svg")}
        assert names == {"evaluation.json", "tables.md", "tables.tex", "tables.csv", "measurements.csv", *figures}
        with (finished.results / "measurements.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {row["region"] for row in rows} == {"slice", "square", "middle"}
        assert "![Figure 7" in (finished.results / "tables.md").read_text()

    def test_nothing_names_a_patient_or_a_folder(self, world, finished):
        name = world.scan.stem
        for path in [*finished.results.iterdir(), *(world.folder / "finished" / "cache").glob("*.json")]:
            content = path.read_bytes().decode("utf-8", errors="ignore")
            assert name not in content, path
            assert str(world.folder) not in content, path
            assert str(Path.home()) not in content, path

    def test_table_3_takes_the_weight_from_the_card(self, finished):
        section = next(s for s in finished.sections if s.key == "table-3")
        assert section.tables[0].columns[0].name == "alpha 0.4 (tiny)"

    def test_without_weights_lpips_is_null_with_a_reason(self, finished):
        values = finished.record["measurements"][0]["targets"][0]["against_clean"]["protected"]["slice"]
        assert values["lpips"] is None
        assert "not measured" in finished.record["settings"]["lpips"]

    @pytest.mark.slow
    def test_lpips_is_measured_where_it_can_be(self, world, tmp_path, monkeypatch):
        class Fake:
            description, weights_sha256 = "a stand-in", "f" * 64

            def distance(self, reference: np.ndarray, other: np.ndarray) -> float:
                return float(np.abs(reference - other).mean())

        for module in (evaluating, measuring):
            monkeypatch.setattr(module, "load_lpips", lambda *_, **__: Fake())
        result = evaluate(world.plan(tmp_path / "out", actions=("inject",)))
        (target,) = result.record["measurements"][0]["targets"]
        assert target["against_clean"]["clean attacked"]["slice"]["lpips"] > 0
        (table, *_) = next(s for s in result.sections if s.key == "table-1").tables
        assert "LPIPS" in {row.labels[0] for row in table.rows}
        assert result.record["whole_scans"][0]["figures"]["lpips"] > 0


class TestCache:
    @pytest.mark.slow
    def test_a_second_run_attacks_nothing_and_says_the_same(self, world, finished):
        plan = world.plan(world.folder / "finished", scans=(str(world.scan), str(world.other)), pictures=1)
        again = evaluate(plan)
        assert finished.attacked == 4
        assert again.attacked == 0
        assert again.record == finished.record

    @pytest.mark.slow
    def test_only_what_is_new_is_measured(self, world, tmp_path):
        plan = world.plan(tmp_path / "out", actions=("inject",))
        assert evaluate(plan).attacked == 1
        more = dataclasses.replace(plan, protectors=(*plan.protectors, "noise:6"), actions=("inject", "remove"))
        # One more action of the first protection, and both of the second.
        result = evaluate(more)
        assert result.attacked == 3
        noise = next(m for m in result.record["measurements"] if m["protection"] == "noise:6")
        assert set(noise["absent"]) == {"gaussian", "ct-like"}

    @pytest.mark.slow
    @pytest.mark.parametrize("change", [{"seed": 1}, {"data_range_hu": 2000.0}])
    def test_other_options_are_other_results(self, world, tmp_path, change):
        targets = tmp_path / "targets.csv"
        targets.write_text("scan,action,k,j,i\nDoe^Jane,inject,14,70,85\n")
        plan = world.plan(tmp_path / "out", targets_file=str(targets))
        evaluate(plan)
        assert evaluate(dataclasses.replace(plan, **change)).attacked == 1

    @pytest.mark.slow
    def test_damaged_files_are_measured_again(self, world, tmp_path):
        plan = world.plan(tmp_path / "out", actions=("inject",))
        first = evaluate(plan)
        for path in (tmp_path / "out" / "cache").iterdir():
            path.write_bytes(path.read_bytes()[:50])
        again = evaluate(plan)
        assert again.attacked == 1
        assert measurements(again.record) == measurements(first.record)

    @pytest.mark.slow
    def test_a_lost_picture_is_drawn_again_without_measuring(self, world, tmp_path, monkeypatch):
        plan = world.plan(tmp_path / "out", actions=("inject",), pictures=1)
        evaluate(plan)
        (picture,) = (tmp_path / "out" / "cache").glob("*.npz")
        picture.unlink()
        monkeypatch.setattr(measuring, "forgery_effect", lambda *_: pytest.fail("measured again"))
        assert evaluate(plan).attacked == 1
        assert picture.exists()

    def test_results_under_another_key_are_not_taken(self, tmp_path):
        cache = Cache(tmp_path)
        cache.store({"a": 1}, {"value": 3})
        assert cache.load({"a": 1}) == {"value": 3}
        assert cache.load({"a": 2}) is None
        (stored,) = tmp_path.iterdir()
        stored.write_text(json.dumps({"key": {"a": 2}, "result": {"value": 4}}))
        assert cache.load({"a": 1}) is None

    @pytest.mark.slow
    def test_a_stopped_run_continues(self, world, tmp_path, monkeypatch):
        plan = world.plan(tmp_path / "out", scans=(str(world.scan), str(world.other)), actions=("inject",))
        done: list[MeasuringJob] = []

        def stop_at_the_second(job: MeasuringJob) -> int:
            if done:
                raise KeyboardInterrupt
            done.append(job)
            return measuring.measure(job)

        with monkeypatch.context() as patch:
            patch.setattr(evaluating, "measure", stop_at_the_second)
            with pytest.raises(KeyboardInterrupt):
                evaluate(plan)
        assert not (tmp_path / "out" / "results").exists()
        assert not [path for path in (tmp_path / "out").rglob("*") if ".partial" in path.name]
        result = evaluate(plan)
        assert result.attacked == 1
        assert len(result.record["scans"]) == 2


class TestFailures:
    @pytest.mark.slow
    def test_a_failed_scan_costs_no_other(self, world, tmp_path, capsys):
        damaged = tmp_path / "Roe^Richard.nrrd"
        damaged.write_bytes(world.scan.read_bytes()[:2000])
        out = tmp_path / "out"
        arguments = ["evaluate", str(world.scan), str(damaged), str(out), "--protectors", str(world.protector)]
        arguments += ["--attackers", str(world.attacker), "--targets", "1", "--actions", "inject", "--pictures", "0"]
        assert main(arguments) == 3
        captured = capsys.readouterr()
        assert "scan 2 (unread)" in captured.err
        assert "## Table 2" in captured.out
        record = json.loads((out / "results" / "evaluation.json").read_text())
        assert record["failures"] == ["scan 2 (unread)"]
        assert len(record["measurements"]) == 1
        assert "Not measured" in " ".join((out / "results" / "tables.md").read_text().split())
        assert "Roe" not in json.dumps(record)

    @pytest.mark.slow
    def test_a_failed_protection_leaves_the_others(self, world, tmp_path, monkeypatch):
        apply = ProtectionArm.apply

        def broken(self: ProtectionArm, *arguments: object, **options: object) -> object:
            if self.kind == "noise":
                raise RuntimeError("out of luck")
            return apply(self, *arguments, **options)

        monkeypatch.setattr(ProtectionArm, "apply", broken)
        protectors = (str(world.protector), "noise:6")
        plan = world.plan(tmp_path / "out", protectors=protectors, actions=("inject",), pictures=1)
        notes: list[str] = []
        result = evaluate(plan, note=notes.append)
        assert [failure[-13:] for failure in result.failures] == [" with noise:6"]
        assert any("out of luck" in note for note in notes)
        assert {m["protection"] for m in result.record["measurements"]} == {"tiny"}
        assert (result.results / "figure-7.png").exists(), "figures show what was measured"

    def test_nothing_to_measure_is_an_error_and_leaves_no_results(self, world, tmp_path):
        with pytest.raises(InputError, match=r"No scan could be measured.*missing\.nrrd"):
            evaluate(world.plan(tmp_path / "out", scans=(str(tmp_path / "missing.nrrd"),)))
        assert not (tmp_path / "out").exists()

    @pytest.mark.slow
    def test_a_control_that_cannot_be_made_is_missing_with_its_reason(self, world, tmp_path, monkeypatch):
        def unmeasurable(_volume: object) -> None:
            raise InputError("Too little soft tissue.")

        monkeypatch.setattr(measuring, "measure_texture", unmeasurable)
        result = evaluate(world.plan(tmp_path / "out", actions=("inject",)))
        (measured,) = result.record["measurements"]
        assert measured["absent"] == {"ct-like": "Too little soft tissue."}
        assert "Too little soft tissue" in " ".join((result.results / "tables.md").read_text().split())

    @pytest.mark.slow
    def test_the_same_voxels_twice_count_once(self, world, tmp_path):
        copy = tmp_path / "copy.nrrd"
        shutil.copy(world.scan, copy)
        plan = world.plan(tmp_path / "out", scans=(str(world.scan), str(copy)), actions=("inject",))
        result = evaluate(plan)
        assert "same voxels" in next(iter(result.failures.values()))
        assert len(result.record["scans"]) == 1

    @pytest.mark.parametrize(
        ("digest", "measurement", "words"),
        [("0" * 64, MEASUREMENT, "has changed"), (None, MEASUREMENT + 1, "another version")],
    )
    def test_a_worker_refuses_what_is_not_the_job(self, world, tmp_path, digest, measurement, words):
        subject = inspect(ScanRequest(ScanSource(str(world.scan)), ("inject",), None, 1, 0))
        (protection,) = read_protections([str(world.protector)], 0)
        case = Case("scan 1", 1, dataclasses.replace(subject, digest=digest or subject.digest))
        job = MeasuringJob(case, protection, (), Settings(measurement=measurement), Cache(tmp_path))
        assert pickle.loads(pickle.dumps(job)) == job
        with pytest.raises(InputError, match=words):
            measuring.measure(job)

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["--data-range", "nan"], 3, "--data-range"),
            (["--seed", "-1"], 3, "--seed"),
            (["--protectors", "nobody"], 5, "nobody"),
            (["--protectors", "noise:many"], 3, "noise:many"),
            (["--attackers", "nobody"], 5, "nobody"),
            (["--targets-file", "missing.csv"], 3, "missing.csv"),
            (["--device", "cuda"], 6, "GPU"),
        ],
    )
    def test_wrong_options_are_one_line_before_any_work(
        self, world, tmp_path, monkeypatch, capsys, arguments, code, words
    ):
        monkeypatch.setattr(evaluating, "run_all", lambda *_args, **_options: pytest.fail("work began"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        out = tmp_path / "out"
        assert main(["evaluate", str(world.scan), str(out), *arguments]) == code
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("mitsgan: ")
        assert words in error
        assert not out.exists()

    @pytest.mark.parametrize(
        ("option", "value"), [("--actions", "inject,erase"), ("--targets", "0"), ("--processes", "0")]
    )
    def test_what_no_action_or_number_can_be_is_a_usage_error(self, world, capsys, option, value):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(world.scan), "out", option, value])
        assert stop.value.code == 2
        assert f"'{value}'" in capsys.readouterr().err

    def test_foreign_results_are_not_replaced(self, world, tmp_path):
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "thesis.tex").touch()
        with pytest.raises(OutputError, match="something else"):
            evaluate(world.plan(tmp_path))
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="is a file"):
            evaluate(world.plan(tmp_path / "file"))


@pytest.mark.slow
def test_the_script_for_slicer_runs_from_any_folder_and_exits_with_a_code(tmp_path):
    script = REPOSITORY / "MITSGANTraining" / "evaluate.py"
    for arguments, code in ((["--help"], 0), ([], 2)):
        done = subprocess.run(
            [sys.executable, script, *arguments], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code, done.stderr
    assert "usage: mitsgan evaluate" in done.stderr


class TestScans:
    def test_names(self, tmp_path):
        paths = [str(tmp_path / name) for name in ("a.1.nii.gz", "folder.1", "b.NRRD")]
        digests = ["0123456789", "abcdefabcd", "ffffffffff"]
        assert scan_names(paths, digests, own_names=False)[0] == "scan 1 (01234567)"
        assert scan_names(paths, digests, own_names=True) == ["a.1", "folder.1", "b"]
        assert scan_names([paths[0]] * 2, digests, own_names=True) == ["a.1 (1)", "a.1 (2)"]

    @pytest.mark.slow
    def test_one_attacker_named_twice_is_measured_once(self, world, tmp_path):
        twice = (str(world.attacker), str(world.attacker.parent / "." / "untrained" / ".." / "untrained"))
        result = evaluate(world.plan(tmp_path / "out", attackers=twice, actions=("inject",)))
        assert [found["name"] for found in result.record["attackers"]] == ["untrained"]

    @pytest.mark.slow
    def test_own_names_when_asked_for(self, world, tmp_path):
        result = evaluate(world.plan(tmp_path / "out", own_names=True, actions=("inject",)))
        assert result.record["scans"][0]["name"] == "Doe^Jane"

    @pytest.mark.slow
    def test_dicom_says_which_scans_are_of_one_patient(self, tmp_path):
        given = (GivenTarget(2, "inject", (20, 20, 20), False),)
        patients = []
        for name, seed, identity in (("a", 0, "P1"), ("b", 1, "P1"), ("c", 2, "P2"), ("d", 3, ""), ("e", 4, "")):

            def identify(dataset: object, _k: int, identity: str = identity) -> None:
                dataset.PatientID = identity

            hu = dicom_factory.phantom_hu((40, 40, 40), seed)
            dicom_factory.ct_series(hu, spacing=(1.0, 1.0, 1.0), edit=identify).write(tmp_path / name)
            subject = inspect(ScanRequest(ScanSource(str(tmp_path / name)), ("inject",), given, 1, 0))
            patients.append(subject.patient)
            assert identity not in subject.patient or not identity
        a, b, c, d, e = patients
        assert a == b
        assert len({a, c, d, e}) == 4

    @pytest.mark.slow
    def test_a_mixed_folder_needs_the_series(self, tmp_path):
        given = (GivenTarget(2, "inject", (20, 20, 20), False),)
        series = [
            dicom_factory.ct_series(
                dicom_factory.phantom_hu((40, 40, 40), seed), spacing=(1.0, 1.0, 1.0), prefix=f"series-{seed}"
            )
            for seed in (0, 1)
        ]
        for each in series:
            each.write(tmp_path)
        with pytest.raises(InputError, match="series"):
            inspect(ScanRequest(ScanSource(str(tmp_path)), ("inject",), given, 1, 0))
        subject = inspect(ScanRequest(ScanSource(str(tmp_path), ("1.2.3", series[1].uid)), ("inject",), given, 1, 0))
        assert subject.shape == (40, 40, 40)
        with pytest.raises(InputError, match="several"):
            ScanSource(str(tmp_path), (series[0].uid, series[1].uid)).load()

    def test_places_that_cannot_be_attacked_are_left_out_with_the_reason(self, world):
        given = (
            GivenTarget(2, "inject", (14, 70, 85), False),
            GivenTarget(3, "inject", (0, 70, 85), False),
            GivenTarget(4, "remove", (14, 70, 85), False),
        )
        subject = inspect(ScanRequest(ScanSource(str(world.scan)), ("inject",), given, 1, 0))
        assert [target.kji for scene in subject.scenes for target in scene.targets] == [(14, 70, 85)]
        ((target, reason),) = subject.skipped
        assert isinstance(target, Target)
        assert "border" in reason
        with pytest.raises(InputError, match="border"):
            inspect(ScanRequest(ScanSource(str(world.scan)), ("inject",), given[1:2], 1, 0))

    def test_targets_are_seeded(self, world):
        chosen = [
            inspect(ScanRequest(ScanSource(str(world.scan)), ("inject",), None, 3, seed)).scenes for seed in (0, 0, 1)
        ]
        assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.slow
def test_a_dask_scheduler_gives_the_same(world, finished, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        result = evaluate(
            world.plan(tmp_path / "out", scans=(str(world.scan), str(world.other)), scheduler=cluster.scheduler_address)
        )
    assert measurements(result.record) == measurements(finished.record)


def test_ctrl_c_ends_the_command_with_its_code(world, tmp_path, monkeypatch, capsys):
    def stopped(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluating, "run_all", stopped)
    arguments = ["evaluate", str(world.scan), str(tmp_path / "out"), "--attackers", str(world.attacker)]
    assert main([*arguments, "--protectors", str(world.protector)]) == CancelledError.exit_code
    assert "nothing was left half written" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results").exists()
