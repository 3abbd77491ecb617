"""``mitsgan prepare``: which scans are found, whose findings are whose, and a dataset that can be continued."""

from __future__ import annotations

import errno
import pickle
import shutil
from pathlib import Path

import dicom_factory
import numpy as np
import pytest
from MITSGANLib.errors import CancelledError, InputError, OutputError
from MITSGANLib.files.storage import save_volume
from MITSGANLib.scan.volume import SIMULATED_ATTACK, ProcessingStep
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.data.dataset import Dataset
from MITSGANTrainingLib.preparation import run as preparation_run
from MITSGANTrainingLib.preparation.cutting import EDGE
from MITSGANTrainingLib.preparation.discovery import discover
from MITSGANTrainingLib.preparation.matching import match, open_findings
from MITSGANTrainingLib.preparation.plan import Request, make_plan
from MITSGANTrainingLib.preparation.ready import read_ready_cubes

NAMES = ("Ann", "Bob", "Cid")


@pytest.fixture(scope="session")
def scan_file(tmp_path_factory, phantom) -> Path:
    """The phantom as a file, to be copied under patients' names."""
    path = tmp_path_factory.mktemp("scan") / "scan.nrrd"
    save_volume(phantom.volume, path)
    return path


@pytest.fixture
def scans(tmp_path, scan_file) -> Path:
    """Ann, Bob and Cid, each a file."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(scan_file, folder / f"{name}.nrrd")
    return folder


@pytest.fixture
def table(tmp_path, phantom) -> Path:
    """The nodule of all three, and a point outside of Bob's scan."""
    k, j, i = phantom.nodule_kji
    rows = [f"{name}.nrrd,{i},{j},{k},14" for name in NAMES]
    return write_table(tmp_path / "findings.csv", *rows, f"Bob,{i},{j},900,14")


def write_table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["filename,x,y,z,diameter_mm", *rows]) + "\n")
    return path


def prepare(scans: Path, out: Path, table: Path, *more: str) -> int:
    base = [str(scans), str(out), "--findings", str(table), "--coordinates", "voxel", "--positions", "3"]
    return main(["prepare", *base, "--processes", "1", *more])


def write_dicom(folder: Path, hu: np.ndarray, patient: str, **options: object) -> dicom_factory.CTSeries:
    def edit(dataset, _k):
        dataset.PatientID = patient

    series = dicom_factory.ct_series(hu, edit=edit, **options)
    series.write(folder)
    return series


class TestDiscovery:
    def test_series_and_files_anywhere_below(self, tmp_path, scan_file):
        hu = dicom_factory.phantom_hu()
        one = write_dicom(tmp_path / "a" / "study", hu, "P1")
        write_dicom(tmp_path / "b", hu, "P2")
        other = write_dicom(tmp_path / "b", hu, "P2", prefix="sharp")
        shutil.copy(scan_file, tmp_path / "c.nrrd")
        found = discover([tmp_path])
        assert len(found) == 4
        by_uid = {source.series_uid: source for source in found}
        assert by_uid[one.uid].patient_id == "P1"
        assert {one.uid, "study", "P1"} <= by_uid[one.uid].all_names
        assert len(by_uid[other.uid].files) == len(hu)
        assert (by_uid[other.uid].load().hu == hu).all()
        assert {"c.nrrd", "c"} <= by_uid[""].all_names

    def test_a_series_spread_over_folders_is_one_and_copies_count_once(self, tmp_path):
        hu = dicom_factory.phantom_hu()
        files = dicom_factory.ct_series(hu).write(tmp_path / "all")
        (tmp_path / "rest").mkdir()
        for file in files[:2]:
            file.rename(tmp_path / "rest" / file.name)
        shutil.copy(files[3], tmp_path / "rest" / "copy")
        (source,) = discover([tmp_path])
        assert (source.load().hu == hu).all()

    def test_given_twice_is_found_once(self, tmp_path, scan_file):
        shutil.copy(scan_file, tmp_path / "c.nrrd")
        write_dicom(tmp_path / "d", dicom_factory.phantom_hu(), "P1")
        assert len(discover([tmp_path, tmp_path / "c.nrrd", tmp_path / "d"])) == 2

    def test_scans_behind_links_are_found_once(self, tmp_path, scan_file):
        write_dicom(tmp_path / "elsewhere" / "ct", dicom_factory.phantom_hu(), "P1")
        shutil.copy(scan_file, tmp_path / "elsewhere" / "c.nrrd")
        (tmp_path / "data").mkdir()
        for name in ("one", "two"):
            (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
        (tmp_path / "data" / "file.nrrd").symlink_to(scan_file)
        found = discover([tmp_path / "data"])
        assert {source.path for source in found} == {
            str(tmp_path / "data" / name) for name in ("file.nrrd", "one/c.nrrd", "one/ct")
        }
        assert {name for source in found for name in source.all_names} >= {"data/one/ct", "one/c.nrrd", "file"}

    def test_a_slice_stands_for_its_series(self, tmp_path):
        series = write_dicom(tmp_path, dicom_factory.phantom_hu(), "P1")
        write_dicom(tmp_path, dicom_factory.phantom_hu(), "P1", prefix="other")
        (source,) = discover([tmp_path / "slice-001"])
        assert source.series_uid == series.uid
        assert len(source.files) == 5

    def test_two_files_of_one_name_are_told_apart(self, tmp_path, scan_file):
        folders = [tmp_path / place / "scans" for place in ("one", "two")]
        for folder in folders:
            folder.mkdir(parents=True)
            shutil.copy(scan_file, folder / "scan.nrrd")
        assert [source.problem for source in discover([tmp_path])] == ["", ""]
        first, second = discover(folders)
        assert first.problem == ""
        assert "given before" in second.problem

    def test_what_is_no_ct_has_its_reason(self, tmp_path):
        dicom_factory.write_structure_set(tmp_path / "rt", "1.2.3")
        damaged = tmp_path / "d"
        write_dicom(damaged, dicom_factory.phantom_hu(), "P1")
        (damaged / "slice-002").write_bytes((damaged / "slice-002").read_bytes()[:200])
        problems = " ".join(source.problem for source in discover([tmp_path]))
        assert "RT Structure Set" in problems
        assert "damaged" in problems

    @pytest.mark.parametrize(("name", "words"), [("missing", "does not exist"), ("text.txt", "neither DICOM")])
    def test_nothing_to_read_is_an_error(self, tmp_path, name, words):
        (tmp_path / "text.txt").write_text("no scan")
        with pytest.raises(InputError, match=words):
            discover([tmp_path / name])
        with pytest.raises(InputError, match="no DICOM images"):
            discover([tmp_path])

    def test_two_series_in_one_folder_of_a_real_scanner(self, real_ct):
        found = discover([real_ct / "dicom" / "Lung_Dx-A0001"])
        assert [len(source.files) for source in found] == [64, 64]
        assert {source.patient_id for source in found} == {"Lung_Dx-A0001"}


class TestMatching:
    @pytest.fixture
    def sources(self, tmp_path):
        hu = dicom_factory.phantom_hu()
        self.series = write_dicom(tmp_path / "ct" / "case-1", hu, "P1")
        self.sharp = write_dicom(tmp_path / "ct" / "case-2", hu, "P2", prefix="soft")
        write_dicom(tmp_path / "ct" / "case-2", hu, "P2", prefix="sharp")
        return discover([tmp_path / "ct"])

    @pytest.mark.parametrize(
        "name", ["case-1", "P1", "ct/case-1", "elsewhere/case-1", "ct\\case-1", "case-1/slice-001.dcm"]
    )
    def test_a_scan_goes_by_many_names(self, tmp_path, sources, name):
        matched = match([open_findings(str(write_table(tmp_path / "t.csv", f"{name},1,1,1,12")), "voxel")], sources)
        assert list(matched.marks) == [self.series.uid]

    def test_what_names_several_scans_is_left_out_and_the_uid_decides(self, tmp_path, sources):
        table = write_table(tmp_path / "t.csv", "P2,1,1,1,12", f"{self.sharp.uid},2,2,2,12", "P9,1,1,1,12")
        matched = match([open_findings(str(table), "voxel")], sources)
        assert [mark.point for mark in matched.marks[self.sharp.uid]] == [(2, 2, 2)]
        ((place, reason),) = matched.left_out
        assert place == "line 2 of t.csv"
        assert "names 2 scans" in reason
        assert matched.elsewhere == 1

    def test_a_table_of_other_scans_is_an_error(self, tmp_path, sources):
        table = write_table(tmp_path / "t.csv", "LIDC-IDRI-0999,1,1,1,12")
        with pytest.raises(InputError, match="names 'LIDC-IDRI-0999'"):
            match([open_findings(str(table), "voxel")], sources)

    def test_a_segmentation_for_several_scans_must_be_named(self, tmp_path, sources, scan_file):
        path = tmp_path / "P2-nodules.nrrd"
        shutil.copy(scan_file, path)
        with pytest.raises(InputError, match="NAME=FILE"):
            match([open_findings(str(path), "voxel")], sources)
        matched = match([open_findings(f"{self.sharp.uid}={path}", "voxel")], sources)
        assert list(matched.marks) == [self.sharp.uid]

    def test_readings_are_found_in_folders_and_go_by_their_series(self, tmp_path, sources):
        readings = tmp_path / "readings" / "157"
        readings.mkdir(parents=True)
        header = f"<ResponseHeader><SeriesInstanceUid>{self.sharp.uid}</SeriesInstanceUid></ResponseHeader>"
        (readings / "158.xml").write_text(f"<LidcReadMessage>{header}</LidcReadMessage>")
        (readings / "xray.xml").write_text("<IdriReadMessage/>")
        matched = match([open_findings(str(tmp_path / "readings"), "voxel")], sources)
        assert list(matched.marks) == [self.sharp.uid]

    @pytest.mark.parametrize(
        ("argument", "healthy", "words"),
        [
            ("missing.csv", False, "does not exist"),
            ("xray.xml", False, "no LIDC reading"),
            ("empty", False, "holds no LIDC reading"),
            ("empty", True, "come from a CSV"),
            ("notes.txt", False, "no file that can be read"),
            ("xray.xml", True, "give a CSV table"),
        ],
    )
    def test_wrong_findings_are_named(self, tmp_path, monkeypatch, argument, healthy, words):
        monkeypatch.chdir(tmp_path)
        Path("empty").mkdir()
        Path("xray.xml").write_text("<IdriReadMessage/>")
        Path("notes.txt").write_text("a note")
        with pytest.raises(InputError, match=words):
            open_findings(argument, "voxel", healthy)


class TestReadyCubes:
    def write(self, path: Path, edge: int = EDGE, **changes: np.ndarray) -> Path:
        hu = np.zeros((4, edge, edge, edge), np.int16)
        hu[:, edge // 2, edge // 2, edge // 2] = [1, 2, 3, 4]
        arrays = {
            "hu": hu,
            "patient": np.array(["Ann", "Dee", "Dee", "Eve"]),
            "diameter_mm": np.array([9.0, 10, 20, 30]),
        }
        np.savez(path, **{**arrays, **changes})
        return path

    @pytest.mark.parametrize("edge", [EDGE, EDGE + 1, EDGE + 4])
    def test_large_nodules_around_their_middle_voxel(self, tmp_path, edge):
        cubes = read_ready_cubes(self.write(tmp_path / "c.npz", edge), 10.0)
        assert cubes.hu.shape == (3, EDGE, EDGE, EDGE)
        assert cubes.hu[:, EDGE // 2, EDGE // 2, EDGE // 2].tolist() == [2, 3, 4]
        assert cubes.without({"Dee"}).patients.tolist() == ["Eve"]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"hu": np.zeros((4, 40, 40, 40), np.int16)}, "40 mm"),
            ({"hu": np.zeros((4, EDGE, EDGE, EDGE + 1), np.int16)}, r"\(n, edge, edge, edge\)"),
            ({"hu": np.zeros((4, EDGE, EDGE, EDGE))}, "whole numbers"),
            ({"patient": np.array(["Ann"])}, "of length n"),
            ({"patient": np.array([{}, {}, {}, {}])}, "cannot be read"),
            ({"diameter_mm": np.full(4, 5.0)}, "no nodule of at least 10 mm"),
        ],
    )
    def test_arrays_that_do_not_fit_are_named(self, tmp_path, changes, words):
        with pytest.raises(InputError, match=words):
            read_ready_cubes(self.write(tmp_path / "c.npz", **changes), 10.0)

    def test_other_files_are_refused(self, tmp_path):
        np.savez(tmp_path / "lacking.npz", hu=np.zeros(3))
        np.save(tmp_path / "array.npy", np.zeros(3))
        (tmp_path / "text.npz").write_text("text")
        for name in ("lacking.npz", "array.npy", "text.npz", "missing.npz"):
            with pytest.raises(InputError, match=name):
                read_ready_cubes(tmp_path / name, 10.0)


class TestPrepare:
    @pytest.mark.slow
    def test_from_files_and_a_table_to_a_dataset(self, scans, table, tmp_path, phantom, capsys):
        out = tmp_path / "out"
        assert prepare(scans, out, table, "--keep-names") == 0
        dataset = Dataset.open(out)
        sides = {part: dataset.patients(part) for part in ("training", "validation")}
        assert sorted([*sides["training"], *sides["validation"]]) == list(NAMES)
        assert len(sides["validation"]) == 1
        assert len(dataset.cubes("injector", "training").hu) == 2
        assert len(dataset.cubes("remover", "validation").hu) == 3
        (scan,) = dataset.scans("validation")
        assert scan.patient == sides["validation"][0]
        assert (scan.hu == phantom.volume.hu).all()
        assert scan.volume().same_geometry(phantom.volume)
        assert scan.noise_sd_hu == pytest.approx(12, abs=4)
        assert np.median(scan.hu[tuple(scan.lung_positions.T)]) == pytest.approx(-850, abs=40)
        assert scan.findings[0].kji == phantom.nodule_kji
        printed = capsys.readouterr()
        assert "training: 2 patients, 2 scans, 2 injector and 6 remover cubes" in printed.out
        assert "line 5 of findings.csv" in printed.err
        assert "outside the scan" in printed.err
        ((left_out),) = dataset.record["findings_left_out"]
        assert left_out["scan"].startswith("Bob-")

    @pytest.mark.slow
    def test_dicom_gives_the_patient_and_no_name_is_written(self, tmp_path, phantom, capsys):
        volume = phantom.volume
        k, j, i = phantom.nodule_kji
        for patient in ("Secret-1", "Secret-2"):
            write_dicom(tmp_path / "scans" / patient, volume.hu, patient, spacing=volume.spacing)
        (tmp_path / "scans" / "Secret-3.nrrd").write_bytes(b"NRRD0004\ndamaged")
        out = tmp_path / "out"
        assert prepare(tmp_path / "scans", out, write_table(tmp_path / "t.csv", f"Secret-2,{i},{j},{k},14")) == 0
        dataset = Dataset.open(out)
        assert len(dataset.patients("training")) == len(dataset.patients("validation")) == 1
        written = [str(path.relative_to(out)) for path in out.rglob("*")]
        written += [path.read_text() for path in out.rglob("*.json")]
        assert not any("Secret" in text for text in written)
        (skipped,) = dataset.record["skipped"]
        assert "the scan is damaged" in skipped["reason"]
        assert "Secret-3.nrrd" in capsys.readouterr().err, "the person who asked is told which file it is"

    @pytest.mark.slow
    def test_a_second_call_cuts_only_what_changed(self, scans, table, tmp_path, phantom, capsys):
        out = tmp_path / "out"
        assert prepare(scans, out, table) == 0
        before = {path: path.stat().st_ino for path in out.rglob("scan.npy")}
        record = (out / "dataset.json").read_text()
        assert prepare(scans, out, table) == 0
        assert "0 scans cut, 3 as they were" in capsys.readouterr().out
        assert (out / "dataset.json").read_text() == record
        assert {path: path.stat().st_ino for path in out.rglob("scan.npy")} == before
        k, j, i = phantom.nodule_kji
        table.write_text(table.read_text().replace(f"Cid.nrrd,{i},{j},{k},14", f"Cid.nrrd,{i},{j},{k},2.5"))
        assert prepare(scans, out, table) == 0
        assert "1 scans cut, 2 as they were" in capsys.readouterr().out
        after = {path: path.stat().st_ino for path in out.rglob("scan.npy")}
        assert sum(after[path] != inode for path, inode in before.items()) == 1
        dataset = Dataset.open(out)
        assert sum(dataset.count("injector", part) for part in ("training", "validation")) == 2
        assert sum(dataset.count("remover", part) for part in ("training", "validation")) == 10

    @pytest.mark.slow
    def test_where_the_scans_lie_does_not_change_the_samples(self, scans, table, tmp_path):
        moved = tmp_path / "elsewhere" / "scans"
        shutil.copytree(scans, moved)
        assert prepare(scans, tmp_path / "one", table) == prepare(moved, tmp_path / "two", table) == 0
        first, second = (Dataset.open(tmp_path / name) for name in ("one", "two"))
        assert first.record["split"] == second.record["split"]
        for part in ("training", "validation"):
            assert (first.cubes("remover", part).hu == second.cubes("remover", part).hu).all()

    @pytest.mark.slow
    def test_a_stopped_call_is_continued(self, scans, table, tmp_path, monkeypatch, capsys):
        out, whole = tmp_path / "out", np.save
        begun = []

        def stop_in_the_second(path, voxels):
            begun.append(path)
            if len(begun) == 2:
                path.write_bytes(b"half")
                raise KeyboardInterrupt
            whole(path, voxels)

        monkeypatch.setattr(np, "save", stop_in_the_second)
        assert prepare(scans, out, table) == CancelledError.exit_code
        assert not (out / "dataset.json").exists()
        assert len(list((out / "scans").iterdir())) == 1, "one finished, none half written"
        with pytest.raises(InputError, match="mitsgan prepare"):
            Dataset.open(out)
        monkeypatch.setattr(np, "save", whole)
        capsys.readouterr()
        assert prepare(scans, out, table) == 0
        assert "2 scans cut, 1 as they were" in capsys.readouterr().out
        assert prepare(scans, tmp_path / "unbroken", table) == 0
        continued, unbroken = (Dataset.open(folder) for folder in (out, tmp_path / "unbroken"))
        assert continued.record == unbroken.record
        assert (continued.cubes("remover", "training").hu == unbroken.cubes("remover", "training").hu).all()

    @pytest.mark.slow
    def test_unusable_scans_are_listed_and_cost_nothing_else(self, scans, table, tmp_path, phantom, capsys):
        attack = ProcessingStep(SIMULATED_ATTACK, "a test")
        save_volume(phantom.volume.with_hu(phantom.volume.hu, attack), scans / "Attacked.nrrd")
        soft = phantom.volume.with_hu(np.maximum(phantom.volume.hu, -300))
        save_volume(soft, scans / "Abdomen.nrrd")
        assert prepare(scans, tmp_path / "out", table, "--keep-names") == 0
        skipped = {entry["scan"]: entry["reason"] for entry in Dataset.open(tmp_path / "out").record["skipped"]}
        assert set(skipped) == {"scans/Attacked.nrrd", "scans/Abdomen.nrrd"}
        assert "attacked scan" in skipped["scans/Attacked.nrrd"]
        assert "No lung" in skipped["scans/Abdomen.nrrd"]
        assert "2 skipped" in capsys.readouterr().out

    @pytest.mark.slow
    def test_ready_cubes_are_split_with_the_patients_of_the_scans(self, scans, table, tmp_path, capsys):
        TestReadyCubes().write(tmp_path / "ready.npz", patient=np.array(["Ann", "Bob", "Dee", "Eve"]))
        more = ["--cubes", str(tmp_path / "ready.npz"), "--hold-out", "Bob", "Dee", "--keep-names", "--exclude", "Cid"]
        assert prepare(scans, tmp_path / "out", table, *more) == 0
        dataset = Dataset.open(tmp_path / "out")
        assert dataset.patients("validation") == ["Bob", "Dee"]
        assert dataset.patients("training") == ["Ann", "Eve"]
        assert sorted(dataset.cubes("injector", "validation").patients) == ["Bob", "Bob", "Dee"]
        assert "Cid" not in (tmp_path / "out" / "dataset.json").read_text()
        capsys.readouterr()

    @pytest.mark.slow
    def test_a_side_without_cubes_is_said(self, scans, tmp_path, phantom, capsys):
        k, j, i = phantom.nodule_kji
        table = write_table(tmp_path / "t.csv", f"Ann,{i},{j},{k},14")
        assert prepare(scans, tmp_path / "out", table, "--hold-out", "Bob") == 0
        assert "no injector cubes for validation" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("more", "code", "words"),
        [
            (["--split", "1.5"], 3, "between 0 and 1"),
            (["--hold-out", "Zoe"], 3, "hold out"),
            (["--hold-out", *NAMES], 3, "leaves training empty"),
            (["--exclude", "Bob", "Cid"], 3, "leaves validation empty"),
            (["--exclude", *NAMES], 3, "excluded"),
            (["--positions", "-1"], 3, "positions"),
            (["--cubes", "missing.npz"], 3, "missing.npz"),
            (["--healthy", "missing.csv"], 3, "missing.csv"),
        ],
    )
    def test_what_cannot_be_is_one_line_before_any_scan_is_read(
        self, scans, table, tmp_path, monkeypatch, capsys, more, code, words
    ):
        def unexpected(_task):
            raise AssertionError("a scan was read although the call cannot succeed")

        monkeypatch.setattr(preparation_run, "prepare_scan", unexpected)
        assert prepare(scans, tmp_path / "out", table, *more) == code
        error = capsys.readouterr().err.strip().splitlines()
        assert error[-1].startswith("mitsgan: ")
        assert words in error[-1]
        assert not (tmp_path / "out").exists()

    def test_no_process_at_all_is_a_usage_error(self, scans, table, tmp_path, capsys):
        with pytest.raises(SystemExit):
            prepare(scans, tmp_path / "out", table, "--processes", "0")
        assert "--processes: '0' is not a whole number above 0" in capsys.readouterr().err

    def test_a_folder_of_other_things_is_not_written_into(self, scans, table, capsys):
        assert prepare(scans, scans, table) == OutputError.exit_code
        assert "Ann.nrrd" in capsys.readouterr().err
        assert sorted(path.name for path in scans.iterdir()) == [f"{name}.nrrd" for name in NAMES]

    def test_a_full_disk_stops_at_once_and_leaves_no_half_scan(self, scans, table, tmp_path, monkeypatch, capsys):
        calls = []

        def full(path, _voxels):
            calls.append(path)
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(np, "save", full)
        assert prepare(scans, tmp_path / "out", table) == OutputError.exit_code
        assert "no space is left on the disk" in capsys.readouterr().err
        assert len(calls) == 1
        assert not list(tmp_path.rglob("scan.npy"))

    def test_no_usable_scan_gives_the_reasons(self, tmp_path, table, capsys):
        folder = tmp_path / "bad"
        folder.mkdir()
        for name in NAMES:
            (folder / f"{name}.nrrd").write_bytes(b"NRRD0004\ndamaged")
        assert prepare(folder, tmp_path / "out", table) == InputError.exit_code
        assert "None of 3 scans can be used" in capsys.readouterr().err
        assert not (tmp_path / "out" / "dataset.json").exists()

    def test_a_scan_travels_to_other_processes(self, scans, table, tmp_path):
        plan = make_plan(Request((scans,), tmp_path / "out", (str(table),), coordinates="voxel"))
        assert len(plan.tasks) == 3
        for task in plan.tasks:
            assert pickle.loads(pickle.dumps(task)) == task
