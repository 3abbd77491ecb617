"""``mitsgan examine``: exit codes, outputs and refusals, on phantoms with noise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import forgeries
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_factory import ct_series, phantom_hu
from MITSGANLib.files.storage import save_volume
from MITSGANLib.keys.key_files import read_key_file
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.pattern import watermark_key
from MITSGANTrainingLib.commandline import main

NOTHING_FOUND, REFUSED, NOT_WRITTEN, CHANGED, CANNOT_TELL = 0, 3, 4, 7, 8

pytestmark = pytest.mark.usefixtures("on_its_grid")


@pytest.fixture(scope="module")
def volume() -> CTVolume:
    return thorax_phantom(shape=(26, 200, 200), spacing_kji=(3.0, 1.5, 1.5), seed=3, noise_hu=20.0).volume


@pytest.fixture(scope="module")
def place(volume: CTVolume) -> tuple[int, int, int]:
    return lung_positions(volume, 1, 4, margin_mm=30.0)[0]


@pytest.fixture(scope="module")
def files(volume: CTVolume, place: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``scan.nrrd``; ``painted.nrrd``; ``water.nrrd`` without lungs; ``cut.nrrd``, of which half is missing."""
    folder = tmp_path_factory.mktemp("copies")
    save_volume(volume, folder / "scan.nrrd")
    rng = np.random.default_rng(0)
    save_volume(forgeries.forge(volume, [place], lambda v, k: forgeries.paint(v, k, 0, rng)), folder / "painted.nrrd")
    water = np.random.default_rng(0).normal(0, 20, (8, 64, 64))
    water[:, :8] = -1000
    save_volume(CTVolume(water.astype(np.int16)), folder / "water.nrrd")
    whole = (folder / "scan.nrrd").read_bytes()
    (folder / "cut.nrrd").write_bytes(whole[: len(whole) // 2])
    return folder


def examine(*words: object) -> int:
    return main(["examine", *map(str, words)])


@pytest.mark.slow
def test_what_was_painted_is_told_mapped_and_pictured(files, place, tmp_path, capsys):
    voxel = ",".join(map(str, place))
    outputs = ("--map", tmp_path / "map.nrrd", "--page", tmp_path / "page.html", "--json", tmp_path / "found.json")
    assert examine(files / "painted.nrrd", "--voxel", voxel, *outputs) == CHANGED
    said = capsys.readouterr().out
    assert "Verdict: changed." in said
    assert "not excluded:" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["verdict"] == "changed"
    assert found["place"]["strength"] >= 1
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "map.nrrd")))[place] == 2
    assert "<img" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_an_untouched_copy_has_nothing_found(files, capsys):
    assert examine(files / "scan.nrrd") == NOTHING_FOUND
    assert "Verdict: nothing found." in capsys.readouterr().out


@pytest.mark.slow
def test_where_nothing_can_be_told_it_does_not_end_as_if_all_were_well(files, capsys):
    assert examine(files / "water.nrrd") == CANNOT_TELL
    assert "no lungs" in capsys.readouterr().out


@pytest.mark.slow
def test_a_signed_copy_is_intact_and_a_changed_one_is_not(files, tmp_path, capsys):
    assert main(["keygen", "--signing", str(tmp_path / "sign.pem")]) == 0
    assert (
        main(["sign", str(files / "scan.nrrd"), str(tmp_path / "signed.nrrd"), "--key", str(tmp_path / "sign.pem")])
        == 0
    )
    trust = ("--public-key", tmp_path / "sign.pub.pem")
    capsys.readouterr()
    assert examine(tmp_path / "signed.nrrd", *trust) == 0
    assert "Verdict: intact (signed)." in capsys.readouterr().out
    # By whom is not known without the key, so that the voxels have to speak.
    assert examine(tmp_path / "signed.nrrd") == NOTHING_FOUND
    assert "unknown signer" in capsys.readouterr().out
    assert examine(files / "painted.nrrd", "--manifest", tmp_path / "signed.nrrd.manifest.json", *trust) == CHANGED
    assert "not what was signed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["another scan", "another geometry", "fewer slices"])
def test_a_copy_that_is_not_what_was_signed_is_changed_and_harms_no_file(volume, tmp_path, capsys, kind):
    """Against the manifest of a scan: another one, one that lies elsewhere, and one of which slices are missing."""
    volume = dataclasses.replace(volume, hu=volume.hu[:8])  # the signature says all
    copies = {
        "another scan": volume.with_hu(volume.hu[::-1].copy()),
        "another geometry": dataclasses.replace(volume, spacing=(1.4, 1.4, 3.0)),
        "fewer slices": dataclasses.replace(volume, hu=volume.hu[:-4]),
    }
    assert main(["keygen", "--signing", str(tmp_path / "sign.pem")]) == 0
    signing = ["--key", str(tmp_path / "sign.pem")]
    save_volume(volume, tmp_path / "scan.nrrd")
    assert main(["sign", str(tmp_path / "scan.nrrd"), str(tmp_path / "signed.nrrd"), *signing]) == 0
    save_volume(copies[kind], tmp_path / "copy.nrrd")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    manifest = ("--manifest", tmp_path / "signed.nrrd.manifest.json")
    assert examine(tmp_path / "copy.nrrd", *manifest, "--map", tmp_path / "signed.nrrd") == NOT_WRITTEN
    capsys.readouterr()
    assert examine(tmp_path / "copy.nrrd", *manifest) == CHANGED
    assert "not what was signed" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_a_foreign_watermark_cannot_be_told(volume, tmp_path, capsys):
    """Marked with one key and examined with another: no verdict of what is missing, and no key in the words."""
    for name in ("own.key", "other.key"):
        assert main(["keygen", str(tmp_path / name)]) == 0
    own = watermark_key(read_key_file(tmp_path / "own.key"))
    save_volume(protect(volume, model=watermark_alone(own)), tmp_path / "marked.nrrd")
    capsys.readouterr()
    assert examine(tmp_path / "marked.nrrd", "--watermark", tmp_path / "other.key") == CANNOT_TELL
    said = capsys.readouterr().out
    assert "the watermark that should be there was not found" in said
    assert not any(line in said for line in (tmp_path / "other.key").read_text().split())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("cut.nrrd",), REFUSED),
        (("missing.nrrd",), REFUSED),
        (("scan.nrrd", "--voxel", "0,0,9999"), REFUSED),
        (("scan.nrrd", "--manifest", "water.nrrd"), CHANGED),  # a forged manifest, as verify has it
        (("scan.nrrd", "--map", "scan.nrrd"), NOT_WRITTEN),
        (("scan.nrrd", "--map", "a folder"), NOT_WRITTEN),
        (("scan.nrrd", "--page", "painted.nrrd"), NOT_WRITTEN),
        (("scan.nrrd", "--page", "scan.nrrd", "--overwrite"), NOT_WRITTEN),
    ],
)
def test_bad_input_is_refused_before_the_work_and_nothing_is_overwritten(files, monkeypatch, words, code):
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    monkeypatch.chdir(files)
    assert examine(*words) == code
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


@pytest.mark.parametrize(("damage", "told"), [("cut", "damaged or incomplete"), ("missing", "1 slice is missing")])
def test_a_truncated_series_is_refused_with_what_is_wrong(tmp_path, capsys, damage, told):
    files = ct_series(phantom_hu((6, 40, 70)), spacing=(6.0, 8.0, 2.5)).write(tmp_path / "copy")
    whole = files[3].read_bytes()
    files[3].unlink()
    if damage == "cut":
        files[3].write_bytes(whole[: len(whole) // 2])
    assert examine(tmp_path / "copy", "--map", tmp_path / "map.nrrd") == REFUSED
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["an edit", "another signer"])
def test_a_forged_manifest_does_not_make_a_changed_copy_genuine(files, tmp_path, capsys, by):
    for name in ("sign", "forger"):
        assert main(["keygen", "--signing", str(tmp_path / f"{name}.pem")]) == 0
    key = tmp_path / ("sign.pem" if by == "an edit" else "forger.pem")
    assert main(["sign", str(files / "painted.nrrd"), str(tmp_path / "signed.nrrd"), "--key", str(key)]) == 0
    manifest = tmp_path / "signed.nrrd.manifest.json"
    if by == "an edit":
        record = json.loads(manifest.read_text())
        record["envelope"]["payload"] = f"A{record['envelope']['payload'][1:]}"
        manifest.write_text(json.dumps(record))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    trust = ("--public-key", tmp_path / "sign.pub.pem")
    assert examine(files / "painted.nrrd", "--manifest", manifest, *trust) == CHANGED
    said = "".join(capsys.readouterr())
    assert ("damaged" if by == "an edit" else "by an unknown signer") in said
    assert "intact" not in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
