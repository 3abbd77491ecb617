"""``mitsgan sign``, ``verify`` and ``protect --sign``: what users type, what they get, and what they are told."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import dicom_factory
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from MITSGANLib.errors import OutputError
from MITSGANLib.files.dicom.headers import quiet_pydicom
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.keys.signing_keys import new_signing_key, save_signing_key
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.commands import verify
from pydicom.uid import JPEGLSLossless

CHANGED, UNKNOWN = 7, 8
SHAPE = (4, 40, 70)


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("key") / "clinic.pem"
    save_signing_key(new_signing_key(), path)
    return path


@pytest.fixture
def public(key) -> Path:
    return key.with_name("clinic.pub.pem")


@pytest.fixture
def scan(tmp_path) -> Path:
    dicom_factory.ct_series(dicom_factory.phantom_hu(SHAPE)).write(tmp_path / "scan")
    return tmp_path / "scan"


@pytest.fixture
def signed(scan, tmp_path, key, capsys) -> Path:
    assert main(["sign", str(scan), str(tmp_path / "signed"), "--key", str(key)]) == 0
    capsys.readouterr()
    return tmp_path / "signed"


@pytest.fixture(scope="module")
def thorax(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("thorax") / "scan.nrrd"
    save_volume(thorax_phantom(shape=(8, 96, 96), spacing_kji=(2.5, 3.7, 3.7), seed=3).volume, path)
    return path


def change_one_voxel(folder: Path) -> None:
    file = sorted(folder.iterdir())[2]
    dataset = pydicom.dcmread(file)
    stored = dataset.pixel_array.copy()
    stored[35, 69] += 1
    dataset.PixelData = stored.tobytes()
    dataset.save_as(file)


class TestVerify:
    def test_intact(self, signed, public, capsys):
        assert main(["verify", str(signed), "--public-key", str(public)]) == 0
        assert capsys.readouterr().out.startswith(f"Intact, signed by {public}")

    @pytest.mark.parametrize("pinned", [False, True])
    def test_signed_by_somebody_else(self, signed, tmp_path, pinned, capsys):
        other = save_signing_key(new_signing_key(), tmp_path / "other.pem")
        arguments = ["--public-key", str(other)] if pinned else []
        assert main(["verify", str(signed), *arguments, "--json", str(tmp_path / "result.json")]) == UNKNOWN
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["verdict"] == "intact, unknown signer"
        assert f"Intact, but signed by an unknown key {result['manifest']['signer']}" in capsys.readouterr().out

    def test_changed(self, signed, public, tmp_path, capsys):
        change_one_voxel(signed)
        arguments = ["--public-key", str(public), "--map", str(tmp_path / "map.nrrd"), "--json", "-"]
        assert main(["verify", str(signed), *arguments]) == CHANGED
        result = json.loads(capsys.readouterr().out)
        assert result["verdict"] == "changed"
        assert result["manifest"]["changed_tiles"] == [{"slice": 2, "rows": [32, 40], "columns": [64, 70]}]
        image = sitk.ReadImage(str(tmp_path / "map.nrrd"))
        labels = sitk.GetArrayFromImage(image)
        assert np.argwhere(labels).min(axis=0).tolist() == [2, 32, 64]
        assert image.GetSpacing() == pytest.approx(load_volume(signed).spacing)
        assert "changed tile" in image.GetMetaData("MITSGAN_steps")

    @pytest.mark.parametrize("failing", ["map", "json"])
    def test_a_disk_that_is_full_keeps_the_verdict_from_nobody(self, signed, tmp_path, capsys, monkeypatch, failing):
        def full(*_: object, **__: object) -> None:
            raise OutputError("No space left on the disk for it.")

        change_one_voxel(signed)
        monkeypatch.setattr(*((verify, "write_file") if failing == "map" else (verify.shared, "write_json")), full)
        written = ["--map", str(tmp_path / "map.nrrd"), "--json", str(tmp_path / "result.json")]
        assert main(["verify", str(signed), *written]) == 4
        assert capsys.readouterr().out.startswith("CHANGED")
        assert not (tmp_path / "result.json").exists()

    def test_the_scan_is_not_replaced_by_its_map(self, tmp_path, capsys):
        (tmp_path / "scan.nrrd").write_text("a scan")
        words = [str(tmp_path / "scan.nrrd"), "--map", str(tmp_path / "scan.nrrd"), "--overwrite"]
        assert main(["verify", *words]) == 4
        assert "the source itself" in capsys.readouterr().err
        assert (tmp_path / "scan.nrrd").read_text() == "a scan"

    def test_a_map_that_is_there_is_refused_before_the_scan_is_read(self, signed, tmp_path, capsys, monkeypatch):
        (tmp_path / "map.nrrd").write_text("mine")
        monkeypatch.setattr(verify, "read_contents_to_verify", Mock(side_effect=AssertionError("read")))
        assert main(["verify", str(signed), "--map", str(tmp_path / "map.nrrd")]) == 4
        assert "already exists; choose another name or add --overwrite." in capsys.readouterr().err
        assert (tmp_path / "map.nrrd").read_text() == "mine"

    def test_changed_in_words(self, signed, public, capsys):
        change_one_voxel(signed)
        assert main(["verify", str(signed), "--public-key", str(public)]) == CHANGED
        text = capsys.readouterr().out
        assert text.startswith("CHANGED")
        assert "1 tile of 32 x 32 pixels in slice 2" in text
        assert "slice 2, rows 32-39, columns 64-69" in text

    def test_many_tiles_are_counted(self, thorax, key, public, tmp_path, capsys):
        scan = tmp_path / "scan.nrrd"
        shutil.copy(thorax, scan)
        assert main(["sign", str(scan), "--key", str(key)]) == 0
        volume = load_volume(thorax)
        hu = volume.hu.copy()
        hu[3:5, 16:64:32, 16::32] += 1
        save_volume(volume.with_hu(hu), scan, overwrite=True)
        capsys.readouterr()
        assert main(["verify", str(scan), "--public-key", str(public)]) == CHANGED
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  tile ")]
        assert len(lines) == 9
        assert lines[0].endswith("slice 3, rows 0-31, columns 0-31")
        assert "4 more" in lines[-1]

    def test_a_forger_who_signs_again_is_unknown(self, signed, public, tmp_path):
        change_one_voxel(signed)
        save_signing_key(new_signing_key(), tmp_path / "forger.pem")
        assert main(["sign", str(signed), str(tmp_path / "forged"), "--key", str(tmp_path / "forger.pem")]) == 0
        assert main(["verify", str(tmp_path / "forged"), "--public-key", str(public)]) == UNKNOWN

    def test_not_signed(self, scan, capsys):
        assert main(["verify", str(scan)]) == 3
        assert "not signed" in capsys.readouterr().err

    def test_deidentified_copy(self, signed, public, capsys):
        for file in signed.iterdir():
            dataset = pydicom.dcmread(file)
            dataset.PatientName, dataset.PatientID = "Anonymous", "A1"
            dataset.save_as(file)
        assert main(["verify", str(signed), "--public-key", str(public)]) == CHANGED
        text = capsys.readouterr().out
        assert "PatientName" in text
        assert "Anonymous" not in text
        assert main(["verify", str(signed), "--public-key", str(public), "--deidentified"]) == 0

    def test_from_dicom_to_a_file_with_the_manifest(self, scan, tmp_path, key, public, capsys):
        assert main(["sign", str(scan), "--key", str(key)]) == 0
        manifest = tmp_path / "scan.manifest.json"
        assert str(manifest) in capsys.readouterr().out
        assert main(["verify", str(scan), "--public-key", str(public)]) == 0
        save_volume(load_volume(scan), tmp_path / "moved.nii.gz")
        arguments = ["verify", str(tmp_path / "moved.nii.gz"), "--public-key", str(public)]
        assert main([*arguments, "--manifest", str(manifest)]) == 0
        assert "32-bit" in capsys.readouterr().out
        assert main(arguments) == 3
        manifest.write_bytes(manifest.read_bytes().replace(b"A", b"B", 1))
        assert main([*arguments, "--manifest", str(manifest)]) == CHANGED
        assert "altered" in capsys.readouterr().err

    def test_a_copy_in_another_format_against_the_files_that_carry_the_manifest(self, signed, scan, tmp_path, public):
        volume = load_volume(signed)
        save_volume(volume, tmp_path / "copy.nrrd")
        arguments = ["verify", str(tmp_path / "copy.nrrd"), "--public-key", str(public), "--manifest"]
        assert main([*arguments, str(signed)]) == 0
        hu = volume.hu.copy()
        hu[1, 2, 3] += 1
        save_volume(volume.with_hu(hu), tmp_path / "copy.nrrd", overwrite=True)
        assert main([*arguments, str(signed)]) == CHANGED
        assert main([*arguments, str(scan)]) == 3

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["{signed}", "--map", "folder"], 4, "label map"),
            (["{signed}", "--public-key", "missing.pem"], 3, "missing.pem"),
            (["{signed}", "--public-key", "{key}"], 3, "public key"),
            (["{signed}", "--manifest", "{key}"], 7, "manifest"),
            (["{signed}", "--certificate", "{key}"], 3, "certificate"),
            (["missing"], 3, "missing"),
        ],
    )
    def test_what_cannot_be_is_one_line_and_a_code(
        self, signed, key, tmp_path, monkeypatch, capsys, arguments, code, words
    ):
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        assert main(["verify", *(one.format(signed=signed, key=key) for one in arguments)]) == code
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("mitsgan: ")
        assert words in error
        assert sorted(tmp_path.rglob("*")) == before


class TestSign:
    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["{scan}", "out", "--key", "missing.pem"], 3, "missing.pem"),
            (["{scan}", "out", "--key", "missing.pem", "--collection"], 3, "missing.pem"),
            (["{scan}", "{scan}", "--key", "{key}"], 4, "never overwritten"),
            (["{scan}", "out.nrrd", "--key", "{key}"], 4, "exists"),
            (["{scan}", "--key", "{public}"], 3, "private key"),
            (["{scan}", "--key", "{key}", "--dicom-key", "{key}", "--certificate", "{key}"], 3, "certificate"),
        ],
    )
    def test_what_cannot_be(self, scan, key, public, tmp_path, monkeypatch, capsys, arguments, code, words):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "out.nrrd").mkdir()
        (tmp_path / "out.nrrd" / "kept").write_bytes(b"")
        before = sorted(tmp_path.rglob("*"))
        assert main(["sign", *(one.format(scan=scan, key=key, public=public) for one in arguments)]) == code
        assert words in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before

    def test_a_locked_key(self, scan, tmp_path, monkeypatch, capsys):
        save_signing_key(new_signing_key(), tmp_path / "locked.pem", b"correct horse")
        monkeypatch.setenv("PASSPHRASE", "correct horse")
        assert main(["sign", str(scan), "--key", str(tmp_path / "locked.pem")]) == 3
        error = capsys.readouterr().err
        assert "locked by a passphrase" in error
        assert "--" not in error, "sign and protect name the option differently"
        assert main(["sign", str(scan), "--key", str(tmp_path / "locked.pem"), "--passphrase-env", "PASSPHRASE"]) == 0

    @pytest.mark.skipif(os.name != "posix", reason="files have no such permissions here")
    @pytest.mark.parametrize("mode", [0o600, 0o640])
    def test_a_key_that_others_may_read_is_remarked(self, scan, thorax, key, tmp_path, capsys, mode):
        shutil.copy(key, tmp_path / "my.pem")
        (tmp_path / "my.pem").chmod(mode)
        assert main(["sign", str(scan), "--key", str(tmp_path / "my.pem")]) == 0
        out = str(tmp_path / "out.nrrd")
        assert main(["protect", str(thorax), out, "--model", "none", "--sign", str(tmp_path / "my.pem")]) == 0
        assert capsys.readouterr().err.count("chmod 600") == (0 if mode == 0o600 else 2)

    def test_neither_patient_nor_key_reach_output_or_log(self, scan, key, tmp_path, capsys, caplog):
        caplog.set_level(logging.DEBUG)
        file = min(scan.iterdir())
        dataset = pydicom.dcmread(file)
        with quiet_pydicom():
            dataset.PatientBirthDate = "not a date"
            dataset.save_as(file)
        assert main(["sign", str(scan), str(tmp_path / "signed"), "--key", str(key), "--verbose"]) == 0
        assert main(["verify", str(tmp_path / "signed"), "--verbose"]) == UNKNOWN
        captured = capsys.readouterr()
        text = captured.out + captured.err + caplog.text
        secret = "".join(key.read_text().splitlines()[1:-1])
        for word in ("Secret", "not a date", secret):
            assert word not in text


class TestProtect:
    @pytest.mark.slow
    def test_sealed_signed_verified_and_restored(self, thorax, key, public, tmp_path):
        assert main(["keygen", str(tmp_path / "seal.key")]) == 0
        out = tmp_path / "protected.nrrd"
        arguments = ["--key", str(tmp_path / "seal.key"), "--sign", str(key), "--json", str(tmp_path / "result.json")]
        assert main(["protect", str(thorax), str(out), *arguments]) == 0
        assert json.loads((tmp_path / "result.json").read_text())["signed"]
        assert main(["verify", str(out), "--public-key", str(public)]) == 0
        assert main(["restore", str(out), str(tmp_path / "restored.nrrd"), "--key", str(tmp_path / "seal.key")]) == 0
        assert (load_volume(tmp_path / "restored.nrrd").hu == load_volume(thorax).hu).all()

    @pytest.mark.slow
    def test_dicom_sealed_then_signed_can_still_be_restored(self, scan, key, public, tmp_path):
        assert main(["keygen", str(tmp_path / "seal.key")]) == 0
        out, seal = str(tmp_path / "protected"), ["--key", str(tmp_path / "seal.key")]
        assert main(["protect", str(scan), out, *seal, "--sign", str(key)]) == 0
        assert main(["verify", out, "--public-key", str(public)]) == 0
        assert main(["restore", out, str(tmp_path / "restored"), *seal]) == 0
        assert (load_volume(tmp_path / "restored").hu == load_volume(scan).hu).all()

    @pytest.mark.slow
    def test_what_is_replaced_leaves_neither_its_seal_nor_its_manifest(self, thorax, key, tmp_path):
        """They would make an alarm of the new file."""
        assert main(["keygen", str(tmp_path / "seal.key")]) == 0
        arguments = ["protect", str(thorax), str(tmp_path / "out" / "scan.nrrd")]
        assert main([*arguments, "--key", str(tmp_path / "seal.key"), "--sign", str(key)]) == 0
        assert len(list((tmp_path / "out").iterdir())) == 3
        assert main([*arguments, "--sign", str(key), "--overwrite"]) == 0
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == ["scan.nrrd", "scan.nrrd.manifest.json"]
        assert main([*arguments, "--overwrite"]) == 0
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan.nrrd"]

    def test_a_key_that_cannot_sign_stops_it_before_anything_is_written(self, thorax, public, tmp_path):
        out = tmp_path / "protected.nrrd"
        assert main(["protect", str(thorax), str(out), "--sign", str(public)]) == 3
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_dicom_signatures_alone(scan, tmp_path, key, public, capsys):
    """What verify says of DICOM's own signatures, beside a manifest and without one."""
    import subprocess

    dicom_key, certificate, out = tmp_path / "k.pem", tmp_path / "c.pem", tmp_path / "signed"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=Clinic"
    subprocess.run([*command.split(), "-keyout", dicom_key, "-out", certificate], check=True, capture_output=True)
    keys = ["--key", str(key), "--dicom-key", str(dicom_key), "--certificate", str(certificate)]
    assert main(["sign", str(scan), *keys]) == 4
    assert main(["sign", str(scan), str(out), *keys]) == 0
    assert main(["verify", str(out), "--public-key", str(public), "--certificate", str(certificate)]) == 0
    assert "4 of 4 images" in capsys.readouterr().out
    for file in out.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.remove_private_tags()
        dataset.save_as(file)
    assert main(["verify", str(out), "--certificate", str(certificate)]) == 0
    assert "missing images were not noticed" in capsys.readouterr().out
    assert main(["verify", str(out)]) == UNKNOWN
    packed = Path(shutil.copytree(out, tmp_path / "packed"))
    for file in packed.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(JPEGLSLossless, generate_instance_uid=False)
        dataset.save_as(file)
    capsys.readouterr()
    # Packing without loss is no change, but such signatures do not survive it.
    arguments, result = ["verify", str(packed), "--certificate", str(certificate)], tmp_path / "result.json"
    assert main([*arguments, "--json", str(result)]) == 3
    assert json.loads(result.read_text())["verdict"] == "cannot be checked"
    assert "cannot be checked" in capsys.readouterr().out
    dataset = pydicom.dcmread(file)
    del dataset.DigitalSignaturesSequence
    dataset.save_as(file)
    assert main(arguments) == CHANGED
    change_one_voxel(out)
    assert main(["verify", str(out), "--certificate", str(certificate)]) == CHANGED
    assert "1 images were CHANGED" in capsys.readouterr().out
