"""A drill from end to end: marked DICOM, sealed answers, a reader's score."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import dicom_factory
import numpy as np
import pydicom
import pytest
from MITSGANLib.errors import OutputError
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.keys.key_files import generate_key, write_key_file
from MITSGANTrainingLib.commandline import main
from pydicom import Dataset

pytestmark = pytest.mark.slow

TARGET = (20, 60, 45)
WORDS = ("--voxel", "20,60,45", "--device", "cpu")


def add_details(dataset: Dataset, _k: int, long: bool = False) -> None:
    dataset.StudyDescription = "Chest CT"
    dataset.AccessionNumber, dataset.StudyID = "A123", "7"
    dataset.OtherPatientIDs = "also-secret"
    if long:
        dataset.SeriesDescription = "d" * 64
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, "1.2.3"
    dataset.ReferencedImageSequence = [item]


def write_scan(folder: Path, **options: object) -> Path:
    edit = partial(add_details, long=options.pop("long", False))
    series = dicom_factory.ct_series(
        dicom_factory.phantom_hu((40, 120, 100)), spacing=(0.8, 0.8, 1.0), edit=edit, **options
    )
    series.write(folder)
    return folder


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "drill.key"
    write_key_file(generate_key(), path)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scan") / "in")


@pytest.fixture(scope="module")
def drill(tmp_path_factory, scan, key) -> Path:
    """A folder with a forged and a clean case."""
    folder = tmp_path_factory.mktemp("drill")
    for name, words in (("case-1", ("--action", "inject", *WORDS)), ("case-2", ("--action", "none"))):
        assert main(["attack", str(scan), str(folder / name), "--drill", "--key", str(key), *words]) == 0
    return folder


def headers(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


class TestSeries:
    @pytest.mark.parametrize("case", ["case-1", "case-2"])
    def test_every_image_is_marked(self, drill, scan, case):
        before = headers(scan)
        for dataset in headers(drill / case):
            assert dataset.SyntheticData == "YES"
            assert dataset.ImageType[0] == "DERIVED"
            assert dataset.SeriesDescription == "SIMULATED Chest 2.5"
            assert dataset.StudyDescription == "SIMULATED Chest CT"
            assert dataset.ImageComments.startswith("SIMULATED")
            assert (str(dataset.PatientName), dataset.AccessionNumber) == ("SIMULATED^Drill", "")
            assert dataset.PatientID.startswith("SIMULATED-")
            text = str(dataset)
            old = {str(one[k].value) for one in before for k in ("SOPInstanceUID", "SeriesInstanceUID")}
            old |= {str(before[0].StudyInstanceUID), str(before[0].FrameOfReferenceUID), "1.2.3", "also-secret"}
            assert not [uid for uid in old if f" {uid}\n" in text or f": {uid}" in text]

    def test_headers_do_not_tell_the_forged_from_the_clean(self, drill):
        """Save what differs between any two drills: UIDs and times."""
        own = ("UID", "Time", "Date", "PixelData", "PatientID")
        for forged, clean in zip(headers(drill / "case-1"), headers(drill / "case-2"), strict=True):
            assert set(forged.keys()) == set(clean.keys())
            for element in forged:
                if not element.keyword.endswith(own) and element.VR != "SQ":
                    assert element.value == clean[element.tag].value, element.keyword
            words = str(forged).lower()
            assert not [word for word in ("inject", "ctgan", "target", "20, 60, 45") if word in words]

    def test_only_the_forgery_differs_in_the_pixels(self, drill, scan):
        before, forged = load_volume(scan), load_volume(drill / "case-1")
        changed = np.argwhere(before.hu != forged.hu)
        assert len(changed)
        assert np.abs(changed - TARGET).max() <= 28  # a cube of 32 mm, which is 40 voxels, with its seam
        assert np.array_equal(load_volume(drill / "case-2").hu, before.hu)

    def test_it_stays_a_simulated_attack(self, drill, tmp_path):
        volume = load_volume(drill / "case-2")
        assert volume.provenance.is_simulated_attack
        with pytest.raises(OutputError, match="simulated attack"):
            save_volume(volume, tmp_path / "out")
        save_volume(volume, tmp_path / "out.nrrd")
        assert load_volume(tmp_path / "out.nrrd").provenance.is_simulated_attack
        assert main(["protect", str(drill / "case-2"), str(tmp_path / "p"), "--model", "none"]) == 4

    @pytest.mark.parametrize("tool", ["dciodvfy"])
    def test_the_standard_has_nothing_against_it(self, drill, scan, tool):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; on Debian: apt-get install dicom3tools")

        def errors(folder: Path) -> set[str]:
            said = subprocess.run([tool, str(min(folder.iterdir()))], capture_output=True, text=True, check=False)
            # It does not know Synthetic Data, which the standard has had since 2022.
            return {line for line in said.stderr.splitlines() if line.startswith("Error") and "0x001c" not in line}

        assert errors(drill / "case-1") <= errors(scan)

    def test_a_long_description_gives_way_to_the_mark(self, tmp_path, key):
        scan = write_scan(tmp_path / "in", long=True)
        words = ("--drill", "--key", str(key), "--action", "none")
        assert main(["attack", str(scan), str(tmp_path / "out"), *words]) == 0
        assert {one.SeriesDescription for one in headers(tmp_path / "out")} == {"SIMULATED"}

    def test_enhanced_ct(self, tmp_path, key):
        series = dicom_factory.ct_series(dicom_factory.phantom_hu((40, 120, 100)), spacing=(0.8, 0.8, 1.0))
        dicom_factory.write_enhanced(tmp_path / "in", series, order=list(range(40)))
        words = ("--drill", "--key", str(key), "--action", "remove", *WORDS)
        assert main(["attack", str(tmp_path / "in"), str(tmp_path / "out"), *words]) == 0
        (dataset,) = headers(tmp_path / "out")
        assert (dataset.SyntheticData, dataset.ImageType[0]) == ("YES", "DERIVED")
        assert str(pydicom.dcmread(tmp_path / "in").SOPInstanceUID) not in str(dataset)


class TestRefusals:
    def test_dicom_without_drill(self, scan, tmp_path, capsys):
        assert main(["attack", str(scan), str(tmp_path / "out"), "--action", "inject", *WORDS]) == 4
        assert "never written as DICOM" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "words",
        [
            ("--drill", "--action", "none"),
            ("--drill", "--key", "KEY", "--action", "none", *WORDS),
            ("--drill", "--key", "KEY", "--action", "inject"),
            ("--action", "none"),
            ("--key", "KEY", "--action", "inject", *WORDS),
        ],
    )
    def test_options_that_do_not_fit(self, scan, tmp_path, key, words):
        words = [str(key) if word == "KEY" else word for word in words]
        with pytest.raises(SystemExit) as stop:
            main(["attack", str(scan), str(tmp_path / "out"), *words])
        assert stop.value.code == 2
        assert not (tmp_path / "out").exists()

    def test_files_and_drills_are_no_drills(self, drill, tmp_path, key, phantom):
        save_volume(phantom.volume, tmp_path / "scan.nrrd")
        words = ("--drill", "--key", str(key), "--action", "none")
        assert main(["attack", str(tmp_path / "scan.nrrd"), str(tmp_path / "out"), *words]) == 4
        assert main(["attack", str(drill / "case-1"), str(tmp_path / "out"), *words]) == 3
        assert main(["attack", str(tmp_path / "scan.nrrd"), str(tmp_path / "out.nrrd"), *words]) == 4
        assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.nrrd"]

    def test_nothing_is_replaced_unasked(self, drill, scan, key):
        before = (drill / "case-1.answers").read_bytes()
        words = ("--drill", "--key", str(key), "--action", "none")
        assert main(["attack", str(scan), str(drill / "case-1"), *words]) == 4
        assert (drill / "case-1.answers").read_bytes() == before


class TestScore:
    def test_a_reader_who_finds_it(self, drill, key, tmp_path, capsys):
        answers, record = tmp_path / "reader.csv", tmp_path / "score.json"
        answers.write_text("scan,slice,row,column,action\ncase-1,20,60,50,inject\n")
        sheets = [str(drill / f"case-{k}.answers") for k in (1, 2)]
        assert main(["drill", "score", str(answers), *sheets, "--key", str(key), "--json", str(record)]) == 0
        result = json.loads(record.read_text())
        assert (result["found"], result["forgeries"], result["false_positives"]) == (1, 1, 0)
        assert (result["clean"], result["called_clean"], result["distances_mm"]) == (1, 1, [4.0])
        text = capsys.readouterr().out
        assert "1 of 1 forgeries found (100%, 95 % interval 3% to 100%)" in text
        assert "1 of 1 clean scans called clean" in text

    def test_a_full_disk_keeps_the_score_from_nobody(self, drill, key, tmp_path, monkeypatch, capsys):
        answers, record = tmp_path / "reader.csv", tmp_path / "score.json"
        answers.write_text("scan,slice,row,column\n")
        sheets = [str(drill / f"case-{k}.answers") for k in (1, 2)]

        def full(*_args: object, **_kwargs: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        assert main(["drill", "score", str(answers), *sheets, "--key", str(key), "--json", str(record)]) == 4
        said = capsys.readouterr()
        assert "0 of 1 forgeries found" in said.out
        assert "no space is left" in said.err
        assert [path.name for path in tmp_path.iterdir()] == ["reader.csv"]

    def test_stopping_leaves_nothing(self, drill, key, tmp_path, monkeypatch, capsys):
        answers, record = tmp_path / "reader.csv", tmp_path / "score.json"
        answers.write_text("scan,slice,row,column\n")

        def stop(*_args: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("MITSGANTrainingLib.commands.drill.score", stop)
        words = ["drill", "score", str(answers), str(drill / "case-1.answers"), "--key", str(key)]
        assert main([*words, "--json", str(record)]) == 130
        assert capsys.readouterr().out == ""
        assert [path.name for path in tmp_path.iterdir()] == ["reader.csv"]

    def test_the_wrong_key_tells_nothing(self, drill, tmp_path, capsys):
        other, answers = tmp_path / "other.key", tmp_path / "reader.csv"
        write_key_file(generate_key(), other)
        answers.write_text("scan,slice,row,column\n")
        assert main(["drill", "score", str(answers), str(drill / "case-1.answers"), "--key", str(other)]) == 3
        assert capsys.readouterr().out == ""
