"""Protection of collections: the same tree out, every file accounted for, nothing done twice, nothing half written."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from dicom_factory import PATIENT_NAME, CTSeries, ct_series, phantom_hu, write_enhanced, write_structure_set
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from MITSGANLib.errors import InputError, ModelError, OutputError
from MITSGANLib.files.dicom.series import scan_files
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.files.volume_files import data_files
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANLib.scan.volume import PROTECTION, SIMULATED_ATTACK, CTVolume, ProcessingStep
from MITSGANTrainingLib.archives import collection, inventory, trees
from MITSGANTrainingLib.archives.collection import (
    Change,
    CollectionConfig,
    ProtectionReport,
    load_settings,
    measure_change,
    protect_collection,
)
from MITSGANTrainingLib.archives.inventory import RECORDS, SUMMARY, take_stock
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.workers import ItemOutcome, run_all
from pydicom import DataElement, Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage
from tree_data import contents, outputs, write_protector

SHAPE = (3, 40, 36)
SPACING = (8.0, 8.0, 2.5)  # mm: large voxels, so that the small phantom has the size of a body


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_protector(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(tmp_path, model):
    """Protect ``tmp_path/tree`` into ``tmp_path/out``."""

    def protect_tree(**changes: object) -> ProtectionReport:
        return protect_collection(CollectionConfig(**{**base(tmp_path, model), **changes}))

    return protect_tree


def base(folder: Path, model: str) -> dict[str, object]:
    return {"tree": folder / "tree", "out": folder / "out", "model": model, "device": "cpu"}


def series(seed: int = 0, **options: object) -> CTSeries:
    return ct_series(phantom_hu(SHAPE, seed), spacing=SPACING, **options)


def write_with_gap(folder: Path) -> Path:
    """A series without its second slice, which is returned in a place of its own."""
    second = ct_series(phantom_hu((5, *SHAPE[1:])), spacing=SPACING).write(folder)[1]
    return second.rename(folder.parent.parent / "second")


def scan(seed: int = 0) -> CTVolume:
    return CTVolume(phantom_hu(SHAPE, seed), spacing=SPACING)


def reasons(report: ProtectionReport) -> dict[str, str]:
    return {other.source: other.reason for other, _ in report.skipped}


def summary(out: Path) -> dict:
    return json.loads((out / SUMMARY).read_text())


class TestSameTree:
    @pytest.mark.slow
    def test_protected_images_take_the_places_of_their_originals(self, tmp_path, run):
        tree, out = tmp_path / "tree", tmp_path / "out"
        first, second = series(1, prefix="a"), series(2, prefix="b", order=(2, 0, 1))
        for one in (first, second):
            one.write(tree / "p1" / "mixed")
        series(3).write(tree / "p2" / "s" / "deep")
        write_enhanced(tree / "p3" / "enhanced", series(4), order=(2, 0, 1))
        save_volume(scan(5), tree / "files" / "scan.nii.gz")
        before = contents(tree)

        report = run()
        assert len(report.finished) == 5
        assert report.complete
        assert not report.failed
        assert not report.skipped
        assert contents(tree) == before
        assert outputs(out).keys() == before.keys()
        new = {}
        for name in (name for name in before if not name.endswith(".gz")):
            original, written = pydicom.dcmread(tree / name), pydicom.dcmread(out / name)
            assert written.StudyInstanceUID == original.StudyInstanceUID
            if "SourceImageSequence" in written:
                assert written.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
                assert written.ImagePositionPatient == original.ImagePositionPatient
            new.setdefault(original.SeriesInstanceUID, set()).add(written.SeriesInstanceUID)
        assert [len(uids) for uids in new.values()] == [1, 1, 1, 1]
        assert len(set.union(*new.values()) | new.keys()) == 8

    def test_voxels_are_those_of_a_single_protection(self, tmp_path, run, model):
        tree, out = tmp_path / "tree", tmp_path / "out"
        series().write(tree / "dicom")
        save_volume(scan(5), tree / "scan.mha")
        report = run(seed=4, strength_hu=9)
        protector = load_protector(model, strength_hu=9, seed=4)
        for record, _ in report.finished:
            expected = protect(load_volume(tree / record.source), model=protector, device="cpu")
            found = load_volume(out / record.source)
            np.testing.assert_array_equal(found.hu, expected.hu)
            assert found.same_geometry(expected)
            assert 0 < record.change.maximum_hu <= 9

    def test_a_series_over_two_folders_is_one(self, tmp_path, run):
        tree = tmp_path / "tree"
        paths = series().write(tree / "cd" / "a")
        (tree / "cd" / "b").mkdir()
        paths[1].rename(tree / "cd" / "b" / "middle")
        report = run()
        assert [(record.source, record.slices) for record, _ in report.finished] == [("cd", 3)]
        assert outputs(tmp_path / "out").keys() == contents(tree).keys()
        uids = {pydicom.dcmread(path).SeriesInstanceUID for path in (tmp_path / "out" / "cd").glob("?/*")}
        assert len(uids) == 1

    def test_copies_of_a_series_stay_copies(self, tmp_path, run):
        tree = tmp_path / "tree"
        series().write(tree / "a")
        shutil.copytree(tree / "a", tree / "b")
        report = run()
        assert [record.source for record, _ in report.finished] == ["a", "b"]
        assert outputs(tmp_path / "out").keys() == contents(tree).keys()

    def test_a_tree_may_be_given_relative_or_as_a_link(self, tmp_path, run, monkeypatch):
        series().write(tmp_path / "tree" / "a")
        (tmp_path / "link").symlink_to(tmp_path / "tree")
        monkeypatch.chdir(tmp_path)
        run(tree=Path("link"), out=Path("out"))
        assert outputs(tmp_path / "out").keys() == contents(tmp_path / "tree").keys()


class TestOthers:
    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        """One CT, and one of everything that is none; folders say what."""
        tree = tmp_path / "tree"
        series().write(tree / "ct")
        put("rt", tree / "plan")
        series(edit=lambda one, _: setattr(one, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])).write(
            tree / "scout"
        )
        series(edit=lambda one, _: setattr(one, "Modality", "PT")).write(tree / "pet")
        series(edit=lambda one, _: setattr(one, "RescaleType", "MGML")).write(tree / "iodine")
        series().write(tmp_path / "source")
        volume = load_volume(tmp_path / "source")
        save_volume(volume.with_hu(volume.hu, ProcessingStep(PROTECTION, "protect")), tree / "protected")
        save_volume(
            scan().with_hu(scan().hu, ProcessingStep(PROTECTION, "protect")), tree / "protected-file" / "a.nrrd"
        )
        save_volume(scan().with_hu(scan().hu, ProcessingStep(SIMULATED_ATTACK, "inject")), tree / "attack" / "a.nrrd")
        (tree / "label").mkdir()
        sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkUInt8), tree / "label" / "a.nrrd")
        (tree / "notes").mkdir()
        (tree / "notes" / "readme.txt").write_text("hello")
        (tree / "index").mkdir()
        write_dicomdir(tree / "index" / "DICOMDIR")
        return tree

    @pytest.mark.usefixtures("tree")
    def test_each_is_skipped_with_its_reason(self, tmp_path, run):
        report = run()
        assert [record.source for record, _ in report.finished] == ["ct"]
        assert not report.failed
        assert reasons(report) == {
            "plan/rt": "holds RT Structure Set, not CT images",
            "scout": "holds only localizer (scout) images",
            "pet": "has modality PT, not CT",
            "iodine": "has values of Rescale Type MGML, not HU",
            "protected": inventory.PROTECTED,
            "protected-file/a.nrrd": inventory.PROTECTED,
            "attack/a.nrrd": inventory.ATTACK,
            "label/a.nrrd": "has 8-bit values, a segmentation or a picture and not HU",
            "notes/readme.txt": inventory.NOT_READ,
            "index/DICOMDIR": inventory.INDEX,
        }
        assert outputs(tmp_path / "out").keys() == {f"ct/slice-00{k}" for k in range(3)}
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RECORDS, "ct", SUMMARY]

    def test_copies_are_unchanged_and_never_of_attacks_or_indexes(self, tree, tmp_path, run):
        write_with_gap(tree / "gap")
        report = run(others="copy")
        found, expected = outputs(tmp_path / "out"), contents(tree)
        left_out = {"attack/a.nrrd", "index/DICOMDIR", *(f"gap/slice-00{k}" for k in (0, 2, 3, 4))}
        assert found.keys() == expected.keys() - left_out
        for name, data in found.items():
            assert (data == expected[name]) == (not name.startswith("ct/"))
        assert {other.source for other, copied in report.skipped if not copied} == {"attack/a.nrrd", "index/DICOMDIR"}
        again = run(others="copy")
        assert outputs(tmp_path / "out") == found
        assert [earlier for _, earlier in again.finished] == [True]

    def test_localizers_within_a_series_are_left_out(self, tmp_path, run):
        def edit(dataset: Dataset, k: int) -> None:
            if k == 0:
                dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

        series(edit=edit).write(tmp_path / "tree")
        report = run()
        assert reasons(report) == {"slice-000": inventory.BESIDE_CT}
        assert outputs(tmp_path / "out").keys() == {"slice-001", "slice-002"}

    def test_links_pipes_and_circles_do_not_stop_it(self, tmp_path, run):
        tree = tmp_path / "tree"
        series().write(tree / "ct")
        series(1).write(tmp_path / "elsewhere")
        (tree / "circle").symlink_to(tree)
        for name in ("outside", "outside-again"):
            (tree / name).symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "back").symlink_to(tree)
        (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
        (tree / "broken").symlink_to(tmp_path / "nothing")
        (tree / "self").symlink_to(tree / "self")
        os.mkfifo(tree / "pipe")
        for path in (tmp_path / "elsewhere").glob("slice*"):
            (tree / path.name).symlink_to(path)
        report = run(others="copy")
        assert {record.source for record, _ in report.finished} == {".", "ct", "outside"}
        assert reasons(report) == {
            "circle": inventory.LINKED_FOLDER,
            "outside-again": inventory.LINKED_FOLDER,
            "outside/back": inventory.LINKED_FOLDER,
            "outside/round": inventory.LINKED_FOLDER,
            "broken": inventory.NOT_A_FILE,
            "self": inventory.NOT_A_FILE,
            "pipe": inventory.NOT_A_FILE,
        }

    @pytest.mark.parametrize(
        ("header", "names"),
        [
            ("ElementDataFile = a.raw\n", {"a.raw"}),
            ("ElementDataFile = LIST\na.raw\nb c.raw\n", {"a.raw", "b c.raw"}),
            ("data file: s%03d.raw 1 2 1\n", {"s001.raw", "s002.raw"}),
            ("ElementDataFile = LOCAL\n\0\1\2", set()),
            ("ElementDataFile =", set()),
            ("ElementDataFile = /etc/hostname", set()),
            ("nothing", set()),
        ],
    )
    def test_data_of_detached_headers_are_found(self, tmp_path, header, names):
        for name in ("a.raw", "b c.raw", "s001.raw", "s002.raw", "other.raw"):
            (tmp_path / name).touch()
        path = tmp_path / ("a.nhdr" if header.startswith("data") else "a.mhd")
        path.write_text(header)
        assert {file.name for file in data_files(path)} == names

    def test_unprotected_voxels_beside_a_header_are_not_copied(self, tmp_path, run):
        tree, out = tmp_path / "tree", tmp_path / "out"
        tree.mkdir()
        image = sitk.GetImageFromArray(phantom_hu(SHAPE))
        image.SetSpacing(SPACING)
        sitk.WriteImage(image, tree / "scan.mhd")
        assert (tree / "scan.raw").is_file()
        report = run(others="copy")
        assert not report.skipped
        assert (load_volume(out / "scan.mhd").hu != load_volume(tree / "scan.mhd").hu).any()
        assert not (out / "scan.raw").exists()
        assert run(others="copy").finished[0][1], "its own data file counts as finished"

    @pytest.mark.slow
    @given(
        st.dictionaries(
            st.sampled_from(["", "a", "a/b", "c"]),
            st.sets(st.sampled_from(["ct", "ct2", "scout", "rt", "text", "nrrd", "mhd", "label"]), max_size=5),
            min_size=1,
        )
    )
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_every_file_is_accounted_for_once(self, tmp_path_factory, folders):
        tree = tmp_path_factory.mktemp("tree")
        for folder, kinds in folders.items():
            for kind in kinds:
                put(kind, tree / folder)
        if not contents(tree):
            with pytest.raises(InputError, match="holds no files"):
                take_stock(tree)
            return
        stock = take_stock(tree)
        assert not stock.failures
        found = [file for one in (*stock.scans, *stock.others) for file in one.files]
        assert sorted(found) == sorted(contents(tree))
        kinds = [kind for kinds in folders.values() for kind in kinds]
        assert len(stock.scans) == sum(kind in ("ct", "ct2", "nrrd", "mhd") for kind in kinds)


def put(kind: str, folder: Path) -> None:
    """Write a small thing of a kind into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    small = CTVolume(phantom_hu((1, 4, 4)))
    if kind in ("ct", "ct2", "scout"):
        image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER" if kind == "scout" else "AXIAL"]
        edit = lambda one, _k: setattr(one, "ImageType", image_type)  # noqa: E731
        ct_series(phantom_hu((2, 4, 4)), prefix=kind, edit=edit).write(folder)
    elif kind == "rt":
        write_structure_set(folder / "rt", "1.2.3")
    elif kind == "text":
        (folder / "notes.txt").write_text("notes")
    elif kind == "label":
        sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkUInt8), folder / "label.nrrd")
    else:
        save_volume(small, folder / f"scan.{kind}")


def write_dicomdir(path: Path) -> None:
    """The head of a DICOMDIR, without records."""
    dataset = Dataset()
    dataset.FileSetID = "CD"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.preamble = bytes(128)
    dataset.save_as(path, enforce_file_format=True)


class TestFailures:
    def test_they_are_listed_and_do_not_stop_the_rest(self, tmp_path, run):
        tree, out = tmp_path / "tree", tmp_path / "out"
        series(1).write(tree / "good")
        write_with_gap(tree / "gap")
        series(3, prefix="x").write(tree / "damaged")
        (tree / "damaged" / "cut").write_bytes((tree / "good" / "slice-000").read_bytes()[:400])
        series(4, edit=lambda one, _: one.__delattr__("RescaleSlope")).write(tree / "no-slope")
        (tree / "bad.nrrd").write_text("nothing")
        save_volume(CTVolume(np.abs(phantom_hu(SHAPE))), tree / "not-hu.nrrd")
        report = run()
        assert [record.source for record, _ in report.finished] == ["good"]
        found = {failure.source: failure.reason for failure in report.failed}
        words = {
            "gap": "missing",
            "damaged": "cut in damaged",
            "damaged/cut": "damaged",
            "no-slope": "Rescale Slope",
            "bad.nrrd": "damaged",
            "not-hu.nrrd": "not Hounsfield",
        }
        assert found.keys() == words.keys()
        for source, word in words.items():
            assert word in found[source]
            assert str(tmp_path) not in found[source], "paths are relative"
        assert outputs(out).keys() == {f"good/slice-00{k}" for k in range(3)}
        assert sorted(path.name for path in out.iterdir()) == [RECORDS, "good", SUMMARY]
        assert {row["source"] for row in summary(out)["failed"]} == words.keys()

    def test_unreadable_folders_and_files_are_listed(self, tmp_path, run):
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        tree = tmp_path / "tree"
        series().write(tree / "good")
        series().write(tree / "locked")
        (tree / "file").write_text("secret")
        (tree / "locked").chmod(0)
        (tree / "file").chmod(0)
        try:
            report = run()
        finally:
            (tree / "locked").chmod(0o700)
        assert {failure.source for failure in report.failed} == {"locked", "file"}
        assert len(report.finished) == 1

    def test_repaired_scans_are_taken_up(self, tmp_path, run):
        second = write_with_gap(tmp_path / "tree" / "s")
        assert len(run().failed) == 1
        second.rename(tmp_path / "tree" / "s" / "slice-001")
        report = run()
        assert not report.failed
        assert report.finished[0][1] is False

    def test_too_little_memory_on_the_device_is_explained(self, tmp_path, run, monkeypatch):
        def full(*_args: object, **_kwargs: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        series().write(tmp_path / "tree")
        monkeypatch.setattr(collection, "protect", full)
        (failure,) = run().failed
        assert "fewer processes" in failure.reason

    def test_a_worker_with_another_model_is_refused(self, tmp_path, run, model, monkeypatch):
        protector, settings = load_settings(model)
        loaded = iter([(protector, settings), (protector, {**settings, "model_sha256": "0" * 64})])
        monkeypatch.setattr(collection, "load_settings", lambda *_: next(loaded))
        series().write(tmp_path / "tree")
        assert "differs on this machine" in run().failed[0].reason
        assert not outputs(tmp_path / "out")


class TestResume:
    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        tree = tmp_path / "tree"
        for number in range(2):
            series(number).write(tree / f"s{number}")
        save_volume(scan(2), tree / "scan.nrrd")
        return tree

    @pytest.fixture
    def worked_on(self, tmp_path, monkeypatch) -> list[str]:
        """Sources of the scans that are protected."""
        sources = []

        def noted(read):
            def load(given: object, **options: str) -> CTVolume:
                sources.append(Path(options.get("source", given)).relative_to(tmp_path / "tree").as_posix())
                return read(given, **options)

            return load

        for name in ("load_volume", "read_series"):
            monkeypatch.setattr(trees, name, noted(getattr(trees, name)))
        return sources

    @pytest.mark.usefixtures("tree")
    def test_finished_scans_are_left_as_they_are(self, tmp_path, run, worked_on):
        first = run()
        before = outputs(tmp_path / "out")
        worked_on.clear()
        second = run()
        assert worked_on == []
        assert outputs(tmp_path / "out") == before
        assert [earlier for _, earlier in second.finished] == [True] * 3
        assert second.change == first.change
        assert summary(tmp_path / "out")["counts"]["protected_by_an_earlier_run"] == 3

    def test_touched_scans_are_left_and_changed_ones_redone(self, tree, tmp_path, run, worked_on):
        run()
        before = outputs(tmp_path / "out")
        worked_on.clear()
        for path in tree.rglob("*"):
            os.utime(path, ns=(1, 1))
        hu = scan(2).hu.copy()
        hu[1, 20, 18] += 1
        save_volume(scan(2).with_hu(hu), tree / "scan.nrrd", overwrite=True)
        report = run()
        assert worked_on == ["scan.nrrd"]
        after = outputs(tmp_path / "out")
        assert {name for name in after if after[name] != before[name]} == {"scan.nrrd"}
        assert sum(earlier for _, earlier in report.finished) == 2
        worked_on.clear()
        assert all(earlier for _, earlier in run().finished)
        assert worked_on == []

    @pytest.mark.parametrize("changes", [{"seed": 1}, {"strength_hu": 5.0}, {"redo": True}])
    @pytest.mark.usefixtures("tree")
    def test_other_settings_redo_all(self, run, worked_on, changes):
        run()
        worked_on.clear()
        report = run(**changes)
        assert sorted(worked_on) == ["s0", "s1", "scan.nrrd"]
        assert not any(earlier for _, earlier in report.finished)

    @pytest.mark.usefixtures("tree")
    def test_missing_or_cut_outputs_and_broken_records_are_redone(self, tmp_path, run, worked_on):
        out = tmp_path / "out"
        run()
        whole = outputs(out)
        (out / "s0" / "slice-001").unlink()
        (out / "scan.nrrd").write_bytes(b"")
        for path in (out / RECORDS).glob("*.json"):
            if json.loads(path.read_text())["source"] == "s1":
                path.write_text("{")
        worked_on.clear()
        run()
        assert sorted(worked_on) == ["s0", "s1", "scan.nrrd"]
        assert outputs(out).keys() == whole.keys()

    def test_headers_are_read_again_only_in_folders_that_changed(self, tree, run, monkeypatch):
        first = run(others="copy")
        read = []

        def noted(folder: Path, files: list[Path], progress: object) -> object:
            read.append(folder.name)
            return scan_files(folder, files, progress)

        monkeypatch.setattr(inventory, "scan_files", noted)
        again = run(others="copy")
        assert read == []
        assert [record for record, _ in again.finished] == [record for record, _ in first.finished]
        path = tree / "s1" / "slice-001"
        status = path.stat()
        changed = path.read_bytes()[:-2] + b"\1\0"
        path.write_bytes(changed)  # as long as before, and its time is set back
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert [record.source for record, earlier in run(others="copy").finished if not earlier] == ["s1"]
        assert read == ["s1"]

    @pytest.mark.usefixtures("tree")
    @pytest.mark.parametrize("kept", ["", "{", "[1]", '[1, "x"]\n["s0"]\n', '{"a": 1}\n'])
    def test_what_is_kept_of_headers_may_be_damaged(self, tmp_path, run, kept):
        run()
        (tmp_path / "out" / RECORDS / trees.KEPT).write_text(kept)
        assert [earlier for _, earlier in run().finished] == [True] * 3

    def test_a_slice_that_is_gone_goes_from_the_output(self, tree, tmp_path, run):
        run()
        (tree / "s0" / "slice-002").unlink()
        run()
        assert outputs(tmp_path / "out").keys() == contents(tree).keys()
        assert len({pydicom.dcmread(path).SeriesInstanceUID for path in (tmp_path / "out" / "s0").iterdir()}) == 1

    def test_a_scan_that_is_gone_is_named_and_left(self, tree, tmp_path, run):
        run()
        shutil.rmtree(tree / "s0")
        report = run()
        assert report.left_over == ["s0"]
        assert len(list((tmp_path / "out" / "s0").iterdir())) == 3

    @pytest.mark.slow
    @pytest.mark.usefixtures("tree")
    def test_a_record_cannot_remove_files_elsewhere(self, tmp_path, run):
        run()
        precious = tmp_path / "precious"
        precious.write_text("mine")
        for path in (tmp_path / "out" / RECORDS).glob("*.json"):
            record = json.loads(path.read_text())
            path.write_text(json.dumps({**record, "outputs": {"../precious": 4}}))
        run(seed=3)
        assert precious.read_text() == "mine"

    @pytest.mark.parametrize(
        ("module", "moment"), [(collection, "protect"), (collection, "save_protected"), (trees, "write_record")]
    )
    def test_stopping_keeps_what_is_finished_and_nothing_half_done(
        self, tree, tmp_path, run, monkeypatch, module, moment
    ):
        out, original, calls = tmp_path / "out", getattr(module, moment), []

        def stopped_at_the_second(*args: object, **kwargs: object) -> object:
            calls.append(moment)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        monkeypatch.setattr(module, moment, stopped_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run()
        assert not list(out.rglob("*.partial"))
        assert summary(out)["complete"] is False
        assert summary(out)["counts"]["protected"] == 1
        for folder in out.glob("s?"):
            assert len(list(folder.iterdir())) == 3, "a series is whole or not there"
        monkeypatch.setattr(module, moment, original)
        report = run()
        assert sum(earlier for _, earlier in report.finished) == 1
        assert outputs(out).keys() == contents(tree).keys()
        assert summary(out)["complete"] is True

    @pytest.mark.slow
    @pytest.mark.usefixtures("tree")
    def test_outputs_of_a_run_that_did_not_write_them_down_do_not_count(self, tmp_path, run, monkeypatch):
        run()
        before = load_volume(tmp_path / "out" / "s0").hu

        def killed(*_args: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(trees, "write_record", killed)
            with pytest.raises(KeyboardInterrupt):
                run(seed=1)
        assert (load_volume(tmp_path / "out" / "s0").hu != before).any()
        report = run()
        assert [record.source for record, earlier in report.finished if not earlier] == ["s0"]
        np.testing.assert_array_equal(load_volume(tmp_path / "out" / "s0").hu, before)

    def test_leavings_of_a_killed_run_are_removed(self, tree, tmp_path, run):
        out = tmp_path / "out"
        for name in ("s0/.slice-000.0a1b2c3d.partial", ".scan.nrrd.0a1b2c3d.partial"):
            (out / name / "series").mkdir(parents=True)
        (out / RECORDS).mkdir()
        run()
        assert not list(out.rglob("*.partial"))
        assert outputs(out).keys() == contents(tree).keys()


class TestRefusals:
    @pytest.mark.parametrize("out", ["tree", "tree/out", ".", "link/out"])
    def test_output_and_tree_within_each_other(self, tmp_path, run, out):
        series().write(tmp_path / "tree")
        (tmp_path / "link").symlink_to(tmp_path / "tree")
        before = contents(tmp_path)
        with pytest.raises(OutputError, match="within each other"):
            run(out=tmp_path / out)
        assert contents(tmp_path) == before

    def test_an_output_with_something_else(self, tmp_path, run):
        series().write(tmp_path / "tree")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        with pytest.raises(OutputError, match="new or empty"):
            run()
        with pytest.raises(OutputError, match="is a file"):
            run(out=tmp_path / "out" / "mine")

    @pytest.mark.parametrize("make", [False, True])
    def test_a_tree_that_is_missing_or_empty(self, tmp_path, run, make):
        if make:
            (tmp_path / "tree" / "empty").mkdir(parents=True)
        with pytest.raises(InputError, match="holds no files" if make else "not a folder"):
            run()
        assert not (tmp_path / "out").exists()

    def test_an_unknown_model_before_anything_is_made(self, tmp_path, run):
        series().write(tmp_path / "tree")
        with pytest.raises(ModelError, match="none-such"):
            run(model="none-such")
        assert not (tmp_path / "out").exists()

    def test_too_small_a_disk_before_anything_is_made(self, tmp_path, run, monkeypatch):
        series().write(tmp_path / "tree")
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OutputError, match=r"needs [1-9]\d*\.\d kB, and only 1\.0 kB are free"):
            run()
        assert not (tmp_path / "out").exists()

    def test_a_disk_that_fills_up_meanwhile(self, tmp_path, run, monkeypatch):
        for number in range(3):
            series(number).write(tmp_path / "tree" / f"s{number}")
        usage, asked = shutil.disk_usage(tmp_path), []

        def shrinking(_: Path) -> object:
            asked.append(1)
            return usage._replace(free=0 if len(asked) == 3 else usage.free)

        monkeypatch.setattr(shutil, "disk_usage", shrinking)
        report = run()
        assert [failure.source for failure in report.failed] == ["s1"]
        assert "free" in report.failed[0].reason
        assert len(report.finished) == 2

    def test_two_runs_at_once(self, tmp_path, run):
        from filelock import FileLock

        series().write(tmp_path / "tree")
        (tmp_path / "out" / RECORDS).mkdir(parents=True)
        with FileLock(tmp_path / "out" / RECORDS / "lock"), pytest.raises(OutputError, match="Another run"):
            run()
        assert len(run().finished) == 1


class TestChange:
    @pytest.mark.slow
    @given(st.data())
    def test_parts_pool_to_the_whole(self, data):
        shape = data.draw(st.tuples(st.integers(2, 5), st.integers(1, 4), st.integers(1, 4)))
        hu = st.integers(-32768, 32767)
        before, after = (CTVolume(data.draw(arrays(np.int16, shape, elements=hu))) for _ in range(2))
        cut = data.draw(st.integers(1, shape[0] - 1))
        parts = [
            measure_change(
                dataclasses.replace(before, hu=before.hu[part]), dataclasses.replace(after, hu=after.hu[part])
            )
            for part in (slice(0, cut), slice(cut, None))
        ]
        whole = measure_change(before, after)
        assert parts[0] + parts[1] == whole
        difference = after.hu.astype(float) - before.hu
        assert whole.rmse_hu == pytest.approx(np.sqrt(np.mean(difference**2)))
        assert whole.maximum_hu == np.abs(difference).max()
        assert whole.changed == np.count_nonzero(difference)

    def test_nothing_has_no_rmse(self):
        assert Change().to_dict()["rmse_hu"] is None


class TestWorkers:
    @pytest.mark.slow
    def test_a_dask_scheduler_gives_the_same_voxels(self, tmp_path, run):
        distributed = pytest.importorskip("distributed")
        for number in range(3):
            series(number).write(tmp_path / "tree" / "mixed" / str(number // 2))
        run(out=tmp_path / "alone")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
        ) as cluster:
            report = run(scheduler=cluster.scheduler_address)
        assert not report.failed
        alone, spread = outputs(tmp_path / "alone"), outputs(tmp_path / "out")
        assert alone.keys() == spread.keys()
        for name in alone:
            one, other = (pydicom.dcmread(tmp_path / out / name).pixel_array for out in ("alone", "out"))
            np.testing.assert_array_equal(one, other)

    @pytest.mark.slow
    @pytest.mark.parametrize(("how", "processes"), [(signal.SIGTERM, 2), (signal.SIGKILL, 1)])
    def test_a_run_that_was_stopped_or_killed_continues(self, tmp_path, run, how, processes):
        """Wherever the signal falls: whole series or none, and the next run does only the rest."""
        tree, out = tmp_path / "tree", tmp_path / "out"
        for number in range(24):
            series(number, prefix=f"n{number:02d}").write(tree / f"s{number % 3}")
        command = [sys.executable, "-m", "MITSGANTrainingLib.commandline", "protect", tree, out, "--collection"]
        command = [*command, "--processes", str(processes), "--model", "none", "--device", "cpu"]
        stopped = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while stopped.poll() is None and not list((out / RECORDS).glob("*.json")):
            time.sleep(0.01)
        stopped.send_signal(how)
        _, error = stopped.communicate(timeout=60)
        assert stopped.returncode in (0, 130, -signal.SIGKILL), error
        finished = len(list((out / RECORDS).glob("*.json")))
        assert finished >= 1
        if how == signal.SIGTERM:
            assert not list(out.rglob("*.partial"))
        whole = [name[: name.index("-")] for name in outputs(out) if ".partial" not in name]
        assert {whole.count(name) for name in whole} == {3}
        report = run(model="none")
        assert len(report.finished) == 24
        assert sum(earlier for _, earlier in report.finished) == finished
        assert outputs(out).keys() == contents(tree).keys()
        assert not list(out.rglob("*.partial"))

    @pytest.mark.slow
    def test_two_real_runs_on_one_output_do_not_collide(self, tmp_path):
        """Started together: the one that is late says so and writes nothing; what the other wrote is whole."""
        tree, out = tmp_path / "tree", tmp_path / "out"
        for number in range(12):
            series(number, prefix=f"n{number:02d}").write(tree / f"s{number % 3}")
        command = [sys.executable, "-m", "MITSGANTrainingLib.commandline", "protect", tree, out, "--collection"]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        runs = [subprocess.Popen([*command, "--model", "none", "--overwrite"], **pipes) for _ in range(2)]
        ends = {run.returncode: error for run, (_, error) in [(run, run.communicate(timeout=300)) for run in runs]}
        # Where the machine is busy one may end before the other begins.
        assert set(ends) in ({0, OutputError.exit_code}, {0}), ends
        assert "Another run of this command" in ends.get(OutputError.exit_code, "Another run of this command")
        assert outputs(out).keys() == contents(tree).keys()
        assert not list(out.rglob("*.partial"))
        summary = json.loads((out / SUMMARY).read_text())
        assert (summary["complete"], len(summary["protected"])) == (True, 12)

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [[], ["--collection"], ["--collection", "--processes", "2"]])
    def test_a_watermark_alone_needs_no_torch(self, tmp_path, options):
        for number in range(2):
            series(number, prefix=f"n{number}").write(tmp_path / "tree" / f"s{number}")
        (tmp_path / "torch.py").write_text("raise ImportError('torch is imported')")
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        source = tmp_path / "tree" if options else tmp_path / "tree" / "s0"
        command = [sys.executable, "-m", "MITSGANTrainingLib.commandline", "protect", source, tmp_path / "out"]
        done = subprocess.run(
            [*command, "--model", "none", *options],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        assert len(list((tmp_path / "out").rglob("*-00?" if options else "*.dcm"))) == (6 if options else 3)

    @pytest.mark.slow
    def test_a_killed_dask_worker_loses_nothing(self, tmp_path, run):
        """A scheduler and two workers as processes; the files are those of a run without them."""
        pytest.importorskip("distributed")
        tree = tmp_path / "tree"
        for number in range(6):
            series(number, prefix=f"n{number}").write(tree / f"s{number % 2}")
        with dask_cluster(tmp_path) as (address, workers):
            lines: list[dict] = []

            def tell(line: dict) -> None:
                lines.append(line)
                if len(lines) == 2:  # the run has begun, and a scan is done
                    workers[0].kill()

            config = CollectionConfig(**base(tmp_path, "none"), scheduler=address)
            report = protect_collection(config, tell=tell)
        assert (len(report.finished), report.failed, report.complete) == (6, [], True)
        assert not list((tmp_path / "out").rglob("*.partial"))
        run(out=tmp_path / "alone", model="none")
        assert outputs(tmp_path / "out").keys() == contents(tree).keys()
        for name in contents(tree):
            assert timeless(tmp_path / "out" / name) == timeless(tmp_path / "alone" / name)


@contextmanager
def dask_cluster(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """The address of a Dask scheduler, and two workers of it, each a process."""
    file, python = folder / "scheduler.json", [sys.executable, "-m"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    options = ["--scheduler-file", file, "--no-dashboard", "--host", "127.0.0.1"]
    processes = [
        subprocess.Popen([*python, "distributed.cli.dask_scheduler", *options, "--port", "0"], env=environment, **quiet)
    ]
    options = [*options, "--no-nanny", "--nthreads", "1", "--local-directory", folder / "dask"]
    try:
        for _ in range(2):
            processes.append(
                subprocess.Popen([*python, "distributed.cli.dask_worker", *options], env=environment, **quiet)
            )
        while not file.is_file() or not file.stat().st_size:
            assert processes[0].poll() is None
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        from distributed import Client

        with Client(address, timeout=60) as client:
            client.wait_for_workers(2, timeout=120)
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def timeless(path: Path) -> dict:
    """A derived image without what no two runs have in common: its new UIDs, and when it was made."""
    dataset = pydicom.dcmread(path)
    new = {dataset.SOPInstanceUID, dataset.SeriesInstanceUID}

    def drop(within: Dataset, element: DataElement) -> None:
        if element.VR in ("DA", "TM", "DT") or (element.VR == "UI" and str(element.value) in new):
            del within[element.tag]

    dataset.walk(drop)
    return dataset.to_json_dict()


def test_files_that_may_have_been_slices_are_named(tmp_path, run):
    for path in series().write(tmp_path / "tree" / "s"):
        path.rename(path.with_suffix(".dcm"))
    (tmp_path / "tree" / "s" / "slice-003.dcm").touch()
    report = run()
    ((other, _),) = report.skipped
    assert (other.source, other.reason) == ("s/slice-003.dcm", inventory.LOST)


def test_series_without_uids_need_a_person(tmp_path, run):
    def without(dataset: Dataset, _k: int) -> None:
        dataset.StudyInstanceUID = ""

    def nameless(dataset: Dataset, _k: int) -> None:
        del dataset.SeriesInstanceUID

    series(edit=without).write(tmp_path / "tree" / "a")
    ct_series(phantom_hu((1, *SHAPE[1:])), edit=nameless).write(tmp_path / "tree" / "b")
    report = run()
    assert not report.finished
    assert {one.source: one.reason.partition(",")[0] for one in report.failed} == {
        "a": "The series lacks a Study Instance UID",
        "b/slice-000": "b/slice-000 has no Series Instance UID",
    }


def test_a_file_that_contradicts_itself_needs_a_person(tmp_path, run):
    """It is CT; a label map beside it is not."""
    image = sitk.GetImageFromArray(phantom_hu(SHAPE))
    image.SetDirection([1, 0, 0, 0, 1, 0.5, 0, 0, 0.75**0.5])
    (tmp_path / "tree").mkdir()
    sitk.WriteImage(image, tmp_path / "tree" / "slanted.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPE, np.uint8)), tmp_path / "tree" / "labels.nrrd")
    report = run()
    assert [one.source for one in report.failed] == ["slanted.nrrd"]
    assert [other.source for other, _ in report.skipped] == ["labels.nrrd"]


def test_no_text_of_a_header_is_in_the_summary(tmp_path, run, monkeypatch):
    """Not even where the program fails in a way that nobody foresaw."""
    series(edit=lambda dataset, _k: setattr(dataset, "PatientComments", "SECRET9")).write(tmp_path / "tree" / "s")

    def fail(*_arguments: object, **_options: object) -> None:
        raise ValueError("Unexpected b'SECRET9' of (0010,4000)")

    monkeypatch.setattr("pydicom.filewriter.write_dataset", fail)
    report = run()
    assert len(report.failed) == 1
    assert "SECRET9" not in (tmp_path / "out" / SUMMARY).read_text()


class TestCommand:
    @pytest.fixture
    def arguments(self, tmp_path, model) -> list[str]:
        return ["protect", str(tmp_path / "tree"), str(tmp_path / "out"), "--collection", "--model", model]

    def test_summary_as_text_and_json(self, tmp_path, arguments, capsys):
        series().write(tmp_path / "tree" / "s")
        (tmp_path / "tree" / "note.txt").touch()
        record = tmp_path / "record.json"
        assert main([*arguments, "--json", str(record)]) == 0
        text = capsys.readouterr().out
        assert "Protected 1 scan (3 slices)" in text
        assert f"skipped  1 file: {inventory.NOT_READ}" in text
        result = json.loads(record.read_text())
        assert result["counts"] == {
            "protected": 1,
            "protected_by_an_earlier_run": 0,
            "failed": 0,
            "skipped_files": 1,
            "copied_files": 0,
        }
        assert result["slices"] == 3
        assert 0 < result["change"]["rmse_hu"] <= 12
        assert f"RMSE {result['change']['rmse_hu']:.2f} HU" in text
        assert summary(tmp_path / "out")["protected"] == result["protected"]

    @pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
    def test_a_line_for_each_scan_while_it_runs(self, tmp_path, arguments, capsys, processes):
        series(1).write(tmp_path / "tree" / "good")
        write_with_gap(tmp_path / "tree" / "bad")
        (tmp_path / "tree" / "note.txt").touch()
        arguments = [*arguments, "--json-lines", "-", "--processes", processes]

        def lines() -> tuple[int, list[dict]]:
            code = main(arguments)
            return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

        code, found = lines()
        assert code == 3
        assert [line["event"] for line in found] == ["begin", "scan", "scan", "scan", "end"]
        assert found[0] == {"event": "begin", "command": "protect", "done": 1, "total": 3}
        scans = {line["source"]: line for line in found[1:-1]}
        assert {name: (line["outcome"], line["exit_code"]) for name, line in scans.items()} == {
            "good": ("protected", 0),
            "bad": ("failed", 3),
            "note.txt": ("skipped", 0),
        }
        assert scans["bad"]["reason"].startswith("1 slice is missing")
        assert scans["good"]["change"]["maximum_hu"] > 0
        assert [line["done"] for line in found[1:-1]] == [1, 2, 3]
        assert found[-2]["seconds_left"] == 0
        assert (found[-1]["exit_code"], found[-1]["complete"], found[-1]["counts"]["protected"]) == (3, True, 1)
        _, again = lines()
        assert {line["source"]: line.get("earlier") for line in again[1:-1]}["good"] is True

    def test_lines_are_written_to_a_file_of_their_own(self, tmp_path, arguments, capsys):
        series(1).write(tmp_path / "tree" / "good")
        (tmp_path / "mine").write_text("precious")
        assert main([*arguments, "--json-lines", str(tmp_path / "mine")]) == 4
        assert "give --json-lines another name" in capsys.readouterr().err
        for _ in range(2):
            assert main([*arguments, "--json-lines", str(tmp_path / "lines")]) == 0
        assert [json.loads(line)["event"] for line in (tmp_path / "lines").open()] == ["begin", "scan", "end"]

    def test_some_failed_is_exit_code_3(self, tmp_path, arguments, capsys):
        series(1).write(tmp_path / "tree" / "good")
        write_with_gap(tmp_path / "tree" / "bad")
        assert main(arguments) == 3
        assert "FAILED   bad: 1 slice is missing" in capsys.readouterr().out

    def test_no_patient_in_what_is_said_and_written_down(self, tmp_path, arguments, capsys):
        series(1, description="Secret^Patient").write(tmp_path / "tree" / "a")
        write_with_gap(tmp_path / "tree" / "b")
        put("rt", tmp_path / "tree")
        assert main([*arguments, "--verbose"]) == 3
        captured = capsys.readouterr()
        written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*.json"))
        assert PATIENT_NAME.split("^")[0] not in captured.out + captured.err + written.decode()

    def test_no_patient_in_logs_of_other_processes(self, tmp_path, arguments, monkeypatch, caplog):
        """They begin with the logging of pydicom as it comes, which quotes odd values."""
        logger = logging.getLogger("pydicom")
        monkeypatch.setattr(logger, "level", logger.level)

        def elsewhere(function: Callable, items: list, **_: object) -> Iterator[ItemOutcome]:
            logger.setLevel(logging.NOTSET)
            yield from run_all(function, items)

        monkeypatch.setattr(trees, "run_all", elsewhere)
        uid = DataElement("FrameOfReferenceUID", "UI", "Secret", validation_mode=pydicom.config.IGNORE)
        series(edit=lambda one, _: one.add(uid)).write(tmp_path / "tree")
        with caplog.at_level(logging.DEBUG):
            assert main(arguments) == 0
        assert "Secret" not in caplog.text

    def test_names_that_are_no_text_are_shown_with_question_marks(self, tmp_path, arguments, capsys):
        folder = os.fsdecode(b"M\xfcller\x1b[31m")
        write_with_gap(tmp_path / "tree" / folder)
        series(1).write(tmp_path / "tree" / f"{folder}2")
        assert main(arguments) == 3
        assert "FAILED   M?ller?[31m: " in capsys.readouterr().out
        assert {row["source"] for row in summary(tmp_path / "out")["protected"]} == {f"{folder}2"}

    @pytest.mark.parametrize(
        ("extra", "words"),
        [
            (["--series", "1.2"], "leave one of them out"),
            (["--processes", "0"], "above 0"),
            (["--processes", "2", "--scheduler", "tcp://x:1"], "not allowed with"),
        ],
    )
    def test_wrong_usage(self, arguments, capsys, extra, words):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, *extra])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err

    @pytest.mark.parametrize("extra", [["--processes", "2"], ["--scheduler", "tcp://x:1"]])
    def test_options_of_collections_need_the_collection(self, tmp_path, capsys, extra):
        with pytest.raises(SystemExit) as stop:
            main(["protect", str(tmp_path), str(tmp_path / "out"), *extra])
        assert stop.value.code == 2
        assert "add --collection" in capsys.readouterr().err

    def test_stopping_says_how_to_continue(self, tmp_path, arguments, monkeypatch, capsys):
        def stop(*_args: object, **_kwargs: object) -> None:
            raise KeyboardInterrupt

        series().write(tmp_path / "tree")
        monkeypatch.setattr(collection, "protect", stop)
        assert main(arguments) == 130
        assert "the same command continues" in capsys.readouterr().err
        assert not outputs(tmp_path / "out")


@pytest.mark.slow
def test_real_scans_of_a_mixed_folder(real_ct, tmp_path, run):
    """Two series of eight slices each, mixed in one folder as they came."""
    tree = tmp_path / "tree"
    tree.mkdir()
    by_series: dict[str, list[tuple[float, Path]]] = {}
    for path in (real_ct / "dicom" / "Lung_Dx-A0001").glob("*.dcm"):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        by_series.setdefault(header.SeriesInstanceUID, []).append((header.ImagePositionPatient[2], path))
    for members in by_series.values():
        for _, path in sorted(members)[30:33]:
            (tree / path.name).symlink_to(path)
    report = run()
    assert [(record.source, record.slices) for record, _ in report.finished] == [(".", 3), (".", 3)]
    assert outputs(tmp_path / "out").keys() == contents(tree).keys()
    assert all(record.change.maximum_hu > 0 for record, _ in report.finished)
