"""The command ``mitsgan``: what users type, what they get, and what they are told when it cannot be."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import dicom_factory
import numpy as np
import pytest
from MITSGANLib.attack import attacker as attacks
from MITSGANLib.errors import CancelledError, OutputError
from MITSGANLib.files import storage
from MITSGANLib.files.atomic import atomic_file
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.protection.inference import SliceNetwork
from MITSGANLib.protection.presets import DEFAULT_PROTECTOR, available_protectors
from MITSGANLib.scan import phantom as demo_command
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import lps_from_ras
from MITSGANLib.weights import DEFAULT_ATTACKER, MODELS_FOLDER, available_attackers, read_weights
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.data import sample_scan
from pydicom import Dataset


@pytest.fixture
def scan(tmp_path, phantom) -> Path:
    """The phantom as a file."""
    path = tmp_path / "scan.nrrd"
    save_volume(phantom.volume, path)
    return path


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """No test may fetch anything: the sample scan's cache is empty and its package client is cut off."""
    monkeypatch.setenv("MITSGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def voxel(kji: tuple[int, int, int]) -> str:
    return ",".join(str(index) for index in kji)


def as_derived(dataset: Dataset, _k: int) -> None:
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]


def as_color(dataset: Dataset, _k: int) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"


def blocks_of(text: str) -> dict[str, str]:
    """The lines about each series, by its modality."""
    blocks = re.split(r"(?m)^(?=\d+\. )", text)
    return {re.search(r"\[(\w+)\]", block).group(1): block for block in blocks if block}


class TestInfo:
    def test_file(self, scan, phantom, capsys):
        assert main(["info", str(scan), "--json", "-"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["volume"]["shape"] == list(phantom.volume.shape)
        assert result["volume"]["hu_minimum"] == phantom.volume.hu.min()
        assert result["volume"]["noise"]["sd_hu"] == pytest.approx(12, abs=4)

    def test_text_names_size_range_and_noise(self, scan, phantom, capsys):
        assert main(["info", str(scan)]) == 0
        text = capsys.readouterr().out
        assert "48 slices, 128 rows, 128 columns" in text
        assert f"{phantom.volume.hu.min()} to {phantom.volume.hu.max()}" in text
        assert "noise" in text

    def test_mixed_folder_is_listed_as_two_series(self, real_ct, capsys):
        assert main(["info", str(real_ct / "dicom" / "Lung_Dx-A0001"), "--json", "-"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert [series["image_count"] for series in result["series"]] == [64, 64]
        assert {series["kernel"] for series in result["series"]} == {"B", "L"}
        assert "volume" not in result

    @pytest.mark.parametrize("name", ["bad.nrrd", "bad.dcm"])
    def test_what_cannot_be_read_at_all_is_exit_code_3(self, tmp_path, capsys, name):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + b"garbage" * 9)
        assert main(["info", str(tmp_path / name)]) == 3
        assert "not usable" in capsys.readouterr().out

    def test_each_series_has_its_own_lines_beneath_it(self, tmp_path, capsys):
        hu = dicom_factory.phantom_hu()
        cut_off = np.where(hu < -980, 40, hu).astype(np.int16)
        series = dicom_factory.ct_series(cut_off, edit=as_derived)
        series.write(tmp_path)
        dicom_factory.write_structure_set(tmp_path / "plan", series.study_uid)
        assert main(["info", str(tmp_path)]) == 0
        text = capsys.readouterr().out
        blocks = blocks_of(text)
        ct, other = blocks["CT"], blocks["RTSTRUCT"]
        for word in ("voxels", "spacing", "origin", "HU  ", "noise", "warning  truncated-field-of-view"):
            assert word in ct
            assert word not in other
        assert "not usable" in other
        assert "derived" not in text

    @pytest.mark.slow
    def test_many_series_begin_with_a_summary(self, tmp_path, capsys):
        for k in range(23):
            dicom_factory.ct_series(dicom_factory.phantom_hu((2, 12, 10)), description=f"d{k}").write(tmp_path / str(k))
        bad = dicom_factory.ct_series(edit=as_color)
        bad.write(tmp_path / "bad")
        series = dicom_factory.ct_series()
        dicom_factory.write_structure_set(tmp_path / "plan", series.study_uid)
        assert main(["info", str(tmp_path)]) == 0
        text = capsys.readouterr().out
        assert text.startswith("25 series: 23 usable CT (46 images)\n   1 not usable")
        assert "others: 1 RTSTRUCT" in text
        assert len(text.splitlines()) < 40
        uid = load_volume(tmp_path / "7").provenance.series_instance_uid
        assert main(["info", str(tmp_path), "--series", uid]) == 0
        assert "   HU       " in capsys.readouterr().out


class TestProtect:
    @pytest.mark.slow
    def test_file_to_file(self, scan, tmp_path, phantom, capsys):
        out, record = tmp_path / "out.nrrd", tmp_path / "record.json"
        assert main(["protect", str(scan), str(out), "--strength-hu", "7", "--json", str(record)]) == 0
        result = json.loads(record.read_text())
        protected = load_volume(out)
        change = np.abs(protected.hu.astype(int) - phantom.volume.hu)
        assert 0 < change.max() <= 7
        assert result["change"]["maximum_hu"] == change.max()
        assert result["strength_hu"] == 7
        assert result["budget"]["strength_hu"] + result["watermark"]["budget"]["strength_hu"] == pytest.approx(7)
        assert protected.same_geometry(phantom.volume)
        assert protected.provenance.steps[-1].parameters["model_sha256"] == result["model_sha256"]
        assert "RMSE" in capsys.readouterr().out

    @pytest.mark.slow
    def test_same_call_same_bytes_of_voxels(self, scan, tmp_path):
        outputs = [tmp_path / "a.nrrd", tmp_path / "b.nrrd"]
        for out in outputs:
            assert main(["protect", str(scan), str(out), "--seed", "5", "--device", "cpu"]) == 0
        first, second = (load_volume(out).hu for out in outputs)
        assert (first == second).all()

    @pytest.mark.slow
    def test_real_dicom_becomes_a_derived_series(self, real_ct, tmp_path):
        """A slab of the real scan, so that the test takes seconds; the whole scan goes through the same code."""
        import pydicom

        source = tmp_path / "source"
        source.mkdir()
        for file in sorted((real_ct / "dicom" / "LIDC-IDRI-0028").glob("*.dcm"))[60:68]:
            (source / file.name).symlink_to(file)
        out = tmp_path / "protected"
        assert main(["protect", str(source), str(out)]) == 0
        before, after = load_volume(source), load_volume(out)
        assert after.same_geometry(before, tolerance_mm=1e-6)
        assert (after.hu != before.hu).any()
        originals = {str(pydicom.dcmread(file).SOPInstanceUID) for file in source.iterdir()}
        written = pydicom.dcmread(next(out.glob("*.dcm")))
        assert list(written.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert str(written.SOPInstanceUID) not in originals
        assert str(written.SourceImageSequence[0].ReferencedSOPInstanceUID) in originals

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["missing.nrrd", "out.nrrd"], 3, "missing.nrrd"),
            (["{scan}", "out.jpg"], 4, ".jpg"),
            (["{scan}", "{scan}"], 4, "source"),
            (["{scan}", "folder"], 4, "DICOM"),
            (["{scan}", "out.nrrd", "--model", "none-such"], 5, "none-such"),
            (["{scan}", "out.nrrd", "--strength-hu", "-3"], 3, "strength"),
            (["{scan}", "out.nrrd", "--strength-hu", "nan"], 3, "strength"),
            (["{scan}", "out.nrrd", "--device", "cuda"], 6, "GPU"),
        ],
    )
    def test_what_cannot_be_is_one_line_and_a_code(self, scan, tmp_path, monkeypatch, capsys, arguments, code, words):
        import torch

        if "cuda" in arguments and torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        monkeypatch.chdir(tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        assert main(["protect", *(argument.format(scan=scan) for argument in arguments)]) == code
        error = capsys.readouterr().err.strip().splitlines()
        assert error[-1].startswith("mitsgan: ")
        assert words in error[-1]
        assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before

    def test_output_is_checked_before_the_long_work(self, scan, tmp_path, monkeypatch):
        def unexpected(*_args: object, **_kwargs: object) -> None:
            raise AssertionError("the scan was processed although its result cannot be written")

        monkeypatch.setattr(SliceNetwork, "propose", unexpected)
        assert main(["protect", str(scan), str(tmp_path / "folder")]) == OutputError.exit_code

    @pytest.mark.slow
    def test_stopping_leaves_nothing(self, scan, tmp_path, monkeypatch, capsys):
        def stopped(*_args: object, **_kwargs: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(storage.volume_files, "write_file", stopped)
        assert main(["protect", str(scan), str(tmp_path / "out.nrrd")]) == CancelledError.exit_code
        assert [path.name for path in tmp_path.iterdir()] == ["scan.nrrd"]
        assert "nothing was left half written" in capsys.readouterr().err

    def test_verbose_adds_the_trace(self, tmp_path, capsys):
        assert main(["info", str(tmp_path / "missing.nrrd"), "--verbose"]) == 3
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.slow
    def test_full_disk_leaves_nothing(self, scan, tmp_path, monkeypatch, capsys):
        import errno

        def full(*_args: object, **_kwargs: object) -> None:
            with atomic_file(tmp_path / "out.nrrd") as temporary:
                temporary.write_bytes(b"some")
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(storage.volume_files, "write_file", full)
        assert main(["protect", str(scan), str(tmp_path / "out.nrrd")]) == 4
        assert "space" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["scan.nrrd"]

    def test_what_lies_beside_a_series_is_said_and_copied_where_asked(self, tmp_path, capsys):
        series = dicom_factory.ct_series()
        series.write(tmp_path / "in")
        dicom_factory.write_structure_set(tmp_path / "in" / "plan", series.study_uid)
        (tmp_path / "in" / "sub").mkdir()
        (tmp_path / "in" / "sub" / "notes.txt").write_text("mine")
        (tmp_path / "in" / "IM0001.dcm").write_text("named as the new slices are")
        arguments = ["protect", str(tmp_path / "in"), "--model", "none"]
        assert main([*arguments, str(tmp_path / "out")]) == 0
        text = capsys.readouterr().out
        assert "beside   1 RTSTRUCT: not rewritten" in text
        assert "--others copy" in text
        assert len(list((tmp_path / "out").iterdir())) == 5
        assert main([*arguments, str(tmp_path / "all"), "--others", "copy", "--json", str(tmp_path / "r.json")]) == 0
        assert "copied   3 other files, unchanged" in capsys.readouterr().out
        assert json.loads((tmp_path / "r.json").read_text())["left_behind"] == [
            {"modality": "RTSTRUCT", "files": 1, "refers": False}
        ]
        for name, copy in {"plan": "plan", "sub/notes.txt": "sub/notes.txt", "IM0001.dcm": "other-IM0001.dcm"}.items():
            assert (tmp_path / "all" / copy).read_bytes() == (tmp_path / "in" / name).read_bytes()
        assert load_volume(tmp_path / "all").shape == (5, 12, 10)

    def test_copying_others_is_for_folders(self, scan, tmp_path, capsys):
        with pytest.raises(SystemExit):
            main(["protect", str(scan), str(tmp_path / "out.nrrd"), "--others", "copy"])
        assert "must be folders" in capsys.readouterr().err

    def test_derived_is_said_to_whoever_protects(self, tmp_path, capsys):
        dicom_factory.ct_series(edit=as_derived).write(tmp_path / "in")
        assert main(["protect", str(tmp_path / "in"), str(tmp_path / "out"), "--model", "none"]) == 0
        assert "warning: derived:" in capsys.readouterr().err
        assert main(["check", str(tmp_path / "out")]) in (0, 3, 7, 8)
        assert "derived" not in capsys.readouterr().err

    @pytest.mark.parametrize("place", ["out.nrrd", "out"])
    def test_places_are_tried_before_the_work(self, tmp_path, monkeypatch, capsys, place):
        dicom_factory.ct_series().write(tmp_path / "in")
        (tmp_path / "file").write_text("no folder")

        def never(*_args: object, **_options: object) -> None:
            raise AssertionError

        monkeypatch.setattr("MITSGANTrainingLib.commands.protect.protect", never)
        assert main(["protect", str(tmp_path / "in"), str(tmp_path / "file" / place), "--model", "none"]) == 4
        json_place = str(tmp_path / "file" / "result.json")
        good = str(tmp_path / place)
        assert main(["protect", str(tmp_path / "in"), good, "--model", "none", "--json", json_place]) == 4
        assert "cannot be written" in capsys.readouterr().err

    def test_the_strength_is_named_as_it_was_given(self, scan, tmp_path, capsys):
        assert main(["protect", str(scan), str(tmp_path / "out.nrrd"), "--strength-hu", "-3"]) == 3
        assert "from 0 to 4095 HU, not -3." in capsys.readouterr().err


class TestJson:
    def test_a_result_never_replaces_what_is_no_result(self, scan, tmp_path, capsys):
        key, before = tmp_path / "clinic.key", scan.read_bytes()
        assert main(["keygen", str(key)]) == 0
        secret = key.read_bytes()
        out = str(tmp_path / "out.nrrd")
        for words, place in (
            (["info", str(scan)], scan),
            (["protect", str(scan), out, "--model", "none", "--key", str(key)], key),
            (["protect", str(scan), out, "--model", "none"], out),
            (["info", str(scan)], key),
        ):
            assert main([*words, "--json", str(place)]) == 4
            assert "--json" in capsys.readouterr().err
        assert (scan.read_bytes(), key.read_bytes()) == (before, secret)
        assert not Path(out).exists()

    def test_an_earlier_result_is_replaced(self, scan, tmp_path):
        record = tmp_path / "record.json"
        record.write_text('{"input": "another"}')
        assert main(["info", str(scan), "--json", str(record)]) == 0
        assert json.loads(record.read_text())["input"] == str(scan)


class TestAttack:
    @pytest.mark.parametrize("kind", ["voxel", "lps", "ras"])
    def test_every_way_to_name_the_target_hits_the_same_voxel(self, scan, tmp_path, phantom, kind):
        lps = phantom.volume.voxel_to_lps(phantom.nodule_kji)
        point = {"voxel": phantom.nodule_kji, "lps": lps, "ras": lps_from_ras(lps)}[kind]
        record = tmp_path / "record.json"
        text = ",".join(str(value) for value in point)
        out = tmp_path / "attacked.nrrd"
        words = ["--action", "remove", f"--{kind}", text, "--json", str(record)]
        assert main(["attack", str(scan), str(out), *words]) == 0
        assert json.loads(record.read_text())["target_kji"] == list(phantom.nodule_kji)
        attacked = load_volume(out)
        assert attacked.provenance.is_simulated_attack
        assert (attacked.hu != phantom.volume.hu).any()

    @pytest.mark.parametrize("text", ["-60,40,-120", "-.5,40,-120", "60,-40,120"])
    def test_a_point_may_begin_with_a_minus(self, scan, tmp_path, capsys, text):
        assert main(["attack", str(scan), str(tmp_path / "out.nrrd"), "--action", "inject", "--ras", text]) == 3
        assert "outside" in capsys.readouterr().err

    def test_an_option_is_no_point(self, scan, tmp_path, capsys):
        with pytest.raises(SystemExit):
            main(["attack", str(scan), str(tmp_path / "out.nrrd"), "--ras", "--action", "inject"])
        assert "--ras: expected one argument" in capsys.readouterr().err

    def test_equals_the_library(self, scan, tmp_path, phantom):
        out = tmp_path / "attacked.nrrd"
        target = voxel(phantom.nodule_kji)
        assert main(["attack", str(scan), str(out), "--action", "inject", f"--voxel={target}", "--device", "cpu"]) == 0
        expected = attacks.simulate_attack(phantom.volume, phantom.nodule_kji, "inject", device="cpu")
        assert (load_volume(out).hu == expected.hu).all()

    def test_dicom_is_refused_before_reading(self, scan, tmp_path, capsys):
        arguments = ["attack", str(scan), str(tmp_path / "folder"), "--action", "inject", "--voxel", "24,60,40"]
        assert main(arguments) == 4
        assert "never written as DICOM" in capsys.readouterr().err
        assert not (tmp_path / "folder").exists()

    def test_an_attacked_file_cannot_be_laundered_into_dicom(self, tmp_path):
        source = tmp_path / "dicom"
        dicom_factory.ct_series().write(source)
        volume = load_volume(source)
        attacked = volume.with_hu(volume.hu.copy(), attacked_step())
        with pytest.raises(OutputError, match="simulated attack"):
            save_volume(attacked, tmp_path / "out")

    @pytest.mark.parametrize(("target", "words"), [("900,1,1", "outside"), ("0,60,60", "border"), ("24,8,8", "air")])
    def test_bad_targets_are_explained(self, scan, tmp_path, capsys, target, words):
        out = tmp_path / "attacked.nrrd"
        assert main(["attack", str(scan), str(out), "--action", "inject", "--voxel", target]) == 3
        assert words in capsys.readouterr().err
        assert not out.exists()

    def test_a_malformed_target_is_a_usage_error(self, scan, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["attack", str(scan), "out.nrrd", "--action", "inject", "--voxel", "1,2"])
        assert stop.value.code == 2
        assert "three numbers" in capsys.readouterr().err


def attacked_step():
    from MITSGANLib.scan.volume import SIMULATED_ATTACK, ProcessingStep

    return ProcessingStep(SIMULATED_ATTACK, "SIMULATED ATTACK")


class TestCompare:
    @pytest.mark.slow
    def test_figures_and_heatmaps(self, scan, tmp_path, phantom, capsys):
        hu = phantom.volume.hu.copy()
        hu[30, 60:64, 40:44] += 10
        other, record, maps = tmp_path / "other.nrrd", tmp_path / "r.json", tmp_path / "maps"
        save_volume(phantom.volume.with_hu(hu), other)
        arguments = ["compare", str(scan), str(other), "--voxel", "30,62,42", "--json", str(record)]
        assert main([*arguments, "--heatmaps", str(maps)]) == 0
        result = json.loads(record.read_text())
        whole = result["whole"]["metrics"]
        assert whole["rmse"]["value"] == pytest.approx(10 * np.sqrt(16 / hu.size))
        assert whole["rmse"]["worst_slice"]["slice"] == 30
        assert whole["max_abs_difference"]["value"] == 10
        assert result["whole"]["data_range_hu"] == 4096
        assert result["square"]["metrics"]["mean_bias"]["value"] > whole["mean_bias"]["value"] > 0
        assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in result["heatmaps"])
        text = capsys.readouterr().out
        assert "worst slice 30" in text
        names = [line.split()[0] for line in text.partition("whole volume")[2].splitlines() if line.startswith("  ")]
        assert sorted(names) == sorted(result["whole"]["metrics"]), "each figure is printed once"

    @pytest.mark.slow
    def test_another_geometry_is_refused(self, scan, tmp_path, phantom, capsys):
        from dataclasses import replace

        other = tmp_path / "other.nrrd"
        save_volume(replace(phantom.volume, spacing=(1.0, 1.0, 1.0)), other)
        assert main(["compare", str(scan), str(other)]) == 3
        assert "differ" in capsys.readouterr().err


class TestDemo:
    @pytest.mark.slow
    def test_offline_it_uses_the_phantom_and_says_so(self, tmp_path, monkeypatch, capsys):
        small = thorax_phantom
        monkeypatch.setattr(
            demo_command,
            "thorax_phantom",
            lambda seed: small(shape=(48, 128, 128), spacing_kji=(2.5, 2.8, 2.8), seed=seed),
        )
        monkeypatch.chdir(tmp_path)
        assert main(["demo", "--targets", "1"]) == 0
        captured = capsys.readouterr()
        assert "could not be fetched" in captured.err
        html = (tmp_path / "mitsgan-demo" / "report.html").read_text(encoding="utf-8")
        assert "Synthetic scan" in html
        assert 'src="http' not in html, "the report must be self-contained"
        assert html.count("data:image/png;base64,") >= 2 * 10
        record = json.loads((tmp_path / "mitsgan-demo" / "report.json").read_text())
        assert {target["action"] for target in record["targets"]} == {"inject", "remove"}
        for target in record["targets"]:
            assert target["attack_rmse_hu"] > 0
            assert set(target["relative_forgery_change"]) == {"protected", "noise"}
            assert len(target["noise_draws"]) > 2
        assert record["whole"]["metrics"]["rmse"]["value"] > 0

    def test_a_cached_sample_scan_is_not_fetched_again(self, tmp_path):
        folder = tmp_path / "cache" / sample_scan.NAME
        folder.mkdir(parents=True)
        for number in range(sample_scan.SLICES):
            (folder / f"{number}.dcm").touch()
        assert sample_scan.fetch_sample_scan() == folder


class TestEntryPoints:
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
    @pytest.mark.parametrize("words", [(), ("--json", "-")])
    def test_standard_output_that_is_full_is_said(self, scan, words, monkeypatch, capsys):
        with Path("/dev/full").open("w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert main(["info", str(scan), *words]) == OutputError.exit_code
        assert "standard output cannot be written: no space is left" in capsys.readouterr().err

    def test_a_process_without_standard_output_does_its_work(self, scan, tmp_path, monkeypatch):
        """As under a supervisor that closes it, or with ``>&-``."""
        monkeypatch.setattr(sys, "stdout", None)
        assert main(["info", str(scan), "--json", str(tmp_path / "info.json")]) == 0
        assert json.loads((tmp_path / "info.json").read_text())["series"]
        assert main(["info", str(scan), "--json", "-"]) == 0

    def test_shipped_models_are_whole(self):
        """Every card reads, every file has its card's SHA-256, and all of it stays small."""
        total = attackers = 0
        for path in sorted(MODELS_FOLDER.rglob("*.safetensors")):
            _, card = read_weights(path)
            assert card.command, path
            assert card.data, path
            total += path.stat().st_size
            attackers += path.stat().st_size if "attackers" in path.parts else 0
        assert attackers < 25e6
        assert total < 30e6
        assert {card.name for card in available_protectors()} >= {DEFAULT_PROTECTOR}
        assert DEFAULT_ATTACKER in available_attackers()
