"""The README's table of threats, row by row: what seal and signature do against each, and what they do not.

What the perturbation does against in-painting is measured, not tested; see docs/research/protection.md. The
watermark's column is tested in test_watermark.py: painting, copied lung, other formats, lossy copies, and another key.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from dicom_factory import PATIENT_NAME, CTSeries, ct_series, phantom_hu
from MITSGANLib.attack.attacker import simulate_attack
from MITSGANLib.files.dicom.private_block import get_entry, set_entry
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.keys.signing_keys import load_signing_key
from MITSGANLib.signature.contents import read_contents_to_verify
from MITSGANLib.signature.dicom.digital_signature import DicomSigner, verify_images
from MITSGANLib.signature.signing import Signers, sign_scan
from MITSGANTrainingLib.commandline import main
from pydicom import Dataset
from pydicom.uid import JPEG2000, JPEGLSLossless, RLELossless
from tree_data import contents, write_protector

INTACT, REFUSED, CHANGED, UNKNOWN = 0, 3, 7, 8
SHAPE, SPACING = (4, 40, 70), (6.0, 8.0, 2.5)


def series(seed: int = 0, **options: object) -> CTSeries:
    return ct_series(phantom_hu(SHAPE, seed), spacing=SPACING, **options)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory) -> Path:
    """A clinic's keys, a scan ``original``, and ``protected``: that scan protected, sealed and signed."""
    folder = tmp_path_factory.mktemp("clinic")
    model = write_protector(folder)
    series().write(folder / "original")
    assert main(["keygen", str(folder / "seal.key")]) == 0
    assert main(["keygen", "--signing", str(folder / "sign.pem")]) == 0
    keys = ["--key", str(folder / "seal.key"), "--sign", str(folder / "sign.pem")]
    assert main(["protect", str(folder / "original"), str(folder / "protected"), "--model", model, *keys]) == 0
    return folder


@pytest.fixture
def copy(clinic, tmp_path) -> Path:
    """A copy of the protected scan, as somebody received it."""
    return Path(shutil.copytree(clinic / "protected", tmp_path / "copy"))


def verify(scan: Path, clinic: Path, *more: str) -> int:
    return main(["verify", str(scan), "--public-key", str(clinic / "sign.pub.pem"), *more])


def restore(scan: Path, out: Path, key: Path) -> int:
    return main(["restore", str(scan), str(out), "--key", str(key)])


def edit(folder: Path, change: Callable[[Dataset], None]) -> None:
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        change(dataset)
        dataset.save_as(file)


def set_value(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


def test_in_painting_is_found_and_localized(clinic, tmp_path, phantom, untrained_attackers):
    scan = tmp_path / "scan.nrrd"
    save_volume(phantom.volume, scan)
    assert main(["sign", str(scan), "--key", str(clinic / "sign.pem")]) == 0
    assert verify(scan, clinic) == INTACT
    forged = simulate_attack(phantom.volume, (24, 64, 40), "remove", attacker=untrained_attackers["remove"])
    save_volume(forged, scan, overwrite=True)
    assert verify(scan, clinic, "--map", str(tmp_path / "map.nrrd")) == CHANGED
    is_marked = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "map.nrrd")) != 0
    is_forged = forged.hu != phantom.volume.hu
    assert is_marked[is_forged].all()
    assert is_marked.mean() < 0.1


def test_copy_paste_is_found_and_localized_and_not_restored(clinic, copy, tmp_path, capsys):
    def paste(dataset: Dataset) -> None:
        stored = dataset.pixel_array.copy()
        stored[2:8, 40:46] = stored[18:24, 10:16]
        dataset.PixelData = stored.tobytes()

    file = sorted(copy.iterdir())[1]
    dataset = pydicom.dcmread(file)
    paste(dataset)
    dataset.save_as(file)
    capsys.readouterr()
    assert verify(copy, clinic) == CHANGED
    assert "slice 1, rows 0-31, columns 32-63" in capsys.readouterr().out
    assert restore(copy, tmp_path / "back", clinic / "seal.key") == REFUSED
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("keyword", "value", "named"),
    [
        ("PatientID", "43", "PatientID"),
        ("PatientName", "Another^One", "PatientName"),
        ("StudyDate", "20200101", "StudyDate"),
        ("PixelSpacing", ["8.1", "6"], "spacing"),
        ("ImageOrientationPatient", ["-1", "0", "0", "0", "-1", "0"], "orientation"),
    ],
)
def test_edits_of_headers_that_identify_or_place_the_scan_are_named(clinic, copy, capsys, keyword, value, named):
    edit(copy, set_value(keyword, value))
    capsys.readouterr()
    assert verify(copy, clinic) == CHANGED
    text = capsys.readouterr().out
    assert named in text
    assert "Another" not in text


@pytest.mark.slow
@pytest.mark.parametrize(("keyword", "is_covered"), [("WindowCenter", False), ("ImageComments", True)])
def test_of_other_headers_dicoms_own_signature_covers_some(clinic, tmp_path, keyword, is_covered):
    key, day = ec.generate_private_key(ec.SECP256R1()), datetime.timedelta(days=1)
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Clinic")]), datetime.datetime.now(datetime.UTC)
    certificate = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - day, now + day
    ).sign(key, hashes.SHA256())
    signers = Signers(load_signing_key(clinic / "sign.pem"), DicomSigner(key, certificate))
    edit(Path(shutil.copytree(clinic / "protected", tmp_path / "in")), set_value(keyword, "40"))
    sign_scan(tmp_path / "in", tmp_path / "signed", signers)
    assert verify(tmp_path / "signed", clinic) == INTACT
    edit(tmp_path / "signed", set_value(keyword, "300"))
    assert verify(tmp_path / "signed", clinic) == (CHANGED if is_covered else INTACT)
    # Without it, neither is noticed.
    edit(tmp_path / "signed", lambda dataset: dataset.pop("DigitalSignaturesSequence"))
    assert verify(tmp_path / "signed", clinic) == INTACT


@pytest.mark.slow
@pytest.mark.parametrize("carries", ["nothing", "its own manifest", "the manifest of the patient's scan"])
def test_another_scan_under_this_patients_name_is_found(clinic, tmp_path, carries):
    series(seed=5).write(tmp_path / "replay")
    if carries == "its own manifest":
        signers = Signers(load_signing_key(clinic / "sign.pem"))
        sign_scan(tmp_path / "replay", tmp_path / "signed", signers)
        shutil.rmtree(tmp_path / "replay")
        (tmp_path / "signed").rename(tmp_path / "replay")
        assert verify(tmp_path / "replay", clinic) == INTACT
    genuine = [pydicom.dcmread(file) for file in sorted((clinic / "protected").iterdir())]
    for file, real in zip(sorted((tmp_path / "replay").iterdir()), genuine, strict=True):
        dataset = pydicom.dcmread(file)
        for element in real:
            if element.tag.group < 0x0028:
                dataset[element.tag] = element
        if carries == "the manifest of the patient's scan":
            set_entry(dataset, "manifest", get_entry(real, "manifest"))
        dataset.save_as(file)
    expected = REFUSED if carries == "nothing" else CHANGED
    assert verify(tmp_path / "replay", clinic) == expected


def test_a_replay_of_a_whole_signed_scan_is_not_found(clinic, tmp_path):
    """Nothing in it is false but that it is shown for another."""
    series(seed=5).write(tmp_path / "other")
    signed = tmp_path / "signed"
    assert main(["sign", str(tmp_path / "other"), str(signed), "--key", str(clinic / "sign.pem")]) == 0
    assert verify(signed, clinic) == INTACT


@pytest.mark.slow
def test_tampering_before_protection_is_signed_and_restored_as_it_is(clinic, tmp_path):
    forged = phantom_hu(SHAPE)
    forged[1, 10:16, 10:16] = 60
    paths = ct_series(forged, spacing=SPACING).write(tmp_path / "forged")
    keys = ["--key", str(clinic / "seal.key"), "--sign", str(clinic / "sign.pem")]
    model = str(clinic / "tiny.safetensors")
    assert main(["protect", str(tmp_path / "forged"), str(tmp_path / "out"), "--model", model, *keys]) == 0
    assert verify(tmp_path / "out", clinic) == INTACT
    assert restore(tmp_path / "out", tmp_path / "back", clinic / "seal.key") == 0
    assert [path.read_bytes() for path in paths] == [p.read_bytes() for p in sorted((tmp_path / "back").iterdir())]


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless, None])
def test_lossless_compression_and_another_format_are_no_alarm(clinic, copy, tmp_path, syntax):
    if syntax:
        edit(copy, lambda dataset: dataset.compress(syntax, generate_instance_uid=False))
        assert verify(copy, clinic) == INTACT
        assert restore(copy, tmp_path / "back", clinic / "seal.key") == 0
        return
    save_volume(load_volume(copy), tmp_path / "copy.nii.gz")
    assert verify(tmp_path / "copy.nii.gz", clinic, "--manifest", str(copy)) == INTACT


def test_lossy_compression_is_an_alarm_and_in_the_way_of_the_original(clinic, copy, tmp_path):
    """It is a change of voxels like any other, however well it is meant."""
    compress = {"encoding_plugin": "pylibjpeg", "j2k_cr": [5], "generate_instance_uid": False}
    edit(copy, lambda dataset: dataset.compress(JPEG2000, **compress))
    assert verify(copy, clinic) == CHANGED
    assert restore(copy, tmp_path / "back", clinic / "seal.key") == REFUSED


def test_anyone_can_read_a_sealed_scan_but_not_its_seal(clinic):
    protected, original = load_volume(clinic / "protected"), load_volume(clinic / "original")
    assert 0 < np.abs(protected.hu.astype(int) - original.hu).max() <= 12, "the scan is there to be read"
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in (clinic / "original").iterdir()]
    seals = b"".join(get_entry(pydicom.dcmread(file), "seal") for file in sorted((clinic / "protected").iterdir()))
    for secret in (PATIENT_NAME, *uids, (clinic / "seal.key").read_text().split()[1]):
        assert secret.encode() not in seals


def test_without_the_key_there_is_no_way_back(clinic, copy, tmp_path, monkeypatch):
    assert main(["keygen", str(tmp_path / "new.key")]) == 0
    before = contents(tmp_path)
    assert restore(copy, tmp_path / "back", tmp_path / "new.key") == REFUSED
    assert restore(copy, tmp_path / "back", tmp_path / "lost.key") == REFUSED
    monkeypatch.setenv("GUESS", "correct horse battery")
    assert main(["restore", str(copy), str(tmp_path / "back"), "--passphrase-env", "GUESS"]) == REFUSED
    assert contents(tmp_path) == before
    assert restore(copy, tmp_path / "back", clinic / "seal.key") == 0


def test_a_forger_who_signs_is_unknown(clinic, copy, tmp_path):
    edit(copy, set_value("PatientID", "43"))
    assert main(["keygen", "--signing", str(tmp_path / "forger.pem")]) == 0
    assert main(["sign", str(copy), str(tmp_path / "forged"), "--key", str(tmp_path / "forger.pem")]) == 0
    assert verify(tmp_path / "forged", clinic, "--json", str(tmp_path / "result.json")) == UNKNOWN
    assert json.loads((tmp_path / "result.json").read_text())["verdict"] == "intact, unknown signer"
    assert not verify_images(read_contents_to_verify(tmp_path / "forged").files).signed
