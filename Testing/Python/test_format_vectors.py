"""Formats that must never change: signs, seals, manifests and voxels that were written down once.

A seal, a signature or a marked scan out there is read by every later version, or its owner loses the original. A red
test here is never mended by new data: the code is wrong, or the format needs a new version that reads the old one too.
How the data were made says ``vectors/make.py``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from MITSGANLib.budget.budget import Budget
from MITSGANLib.errors import InputError
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.files.volume_files import read_file
from MITSGANLib.keys.key_files import Key, read_key_file
from MITSGANLib.keys.signing_keys import fingerprint, load_public_key, raw_public_key
from MITSGANLib.measure.drill import Forgery, read_sheet
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.seal.change import unpack
from MITSGANLib.seal.container import open_container
from MITSGANLib.seal.sealing import restore
from MITSGANLib.signature.contents import read_contents_to_verify
from MITSGANLib.signature.manifest import read_manifest_file
from MITSGANLib.signature.study import find_study_manifest, verify_study
from MITSGANLib.signature.verification import find_manifest, verify_scan
from MITSGANLib.watermark.embedding import Watermark, recorded_watermark
from MITSGANLib.watermark.pattern import OPEN_KEY, UNCHECKERED, VERSION, Grid, ScanSigns, watermark_key

VECTORS = Path(__file__).resolve().parent / "vectors"
ORIGINAL, KEY_FILE, SIGNER = VECTORS / "original.nrrd", VECTORS / "key.txt", VECTORS / "signer.pub.pem"
KEY = Key(bytes(range(32)))
KEYS = {"open": OPEN_KEY, "keyed": watermark_key(KEY)}

FOLDERS = ["unversioned", "watermark-1", "watermark-2", "watermark-3"]
SCANS = [f"{folder}/{scan}" for folder in FOLDERS for scan in ("scan.nrrd", "series")]

# Over the values of original.nrrd, int16, little-endian.
ORIGINAL_SHA256 = "de9f4f49afe5fc4ce1183445930c9d427fdffc183b763c3d74019d83ca1cf866"
# Of the DICOM files that were protected, which are not kept here.
SERIES_SHA256 = {
    "unversioned": [
        "dd4aceca07c21a65ec0f606a40ea1d62f6a6d6fb31516b402bac6b808c783a5f",
        "3e07f5bdf6e188d1833f477116444e4c1a8a6a347af43369f761a9c229ee1e58",
        "73cebb26bf3f678e072d443b0de2983d21ad7a72de7bc52f4e63c31046b26607",
    ],
    "watermark-1": [
        "9d1a9a0472d5745c3b09fc6a5a219c1ee8cad924a547c3dd125ae637d7a666ed",
        "45776bab3ec8c59100c0f262ad43378f9bbe8199d630c0ca7b8231c45e8e83d8",
        "25d25d02035f9ddc00815d123ef1c7bfcb7f253d03697b210d39dbc1d5013573",
    ],
    "watermark-2": [
        "b465f58b8240442a16f18a7971053a0e8fe8f73ba58dcf55f65cfc71ece8f626",
        "5b4d09b2fb1bfcf3280133bcb63e5748f04b19994297a232a3ed3a5990a94324",
        "8cdd2a8bd8f35ba16420bd190a9c2405d1361fc88235010a7cecaa26dc7bdd37",
    ],
    "watermark-3": [
        "a947c015e7b4b8c9d6b82f8da64da5b3dc50c8581fe78615b1a68fd424804c43",
        "f7733dfc9a114f2ead178a8f96e6506e8205b24143066b4c6dea7bc03ad8d482",
        "7c61fae2b3500d228e6d73c91f6dbf6ea75dc878bfd95452555ee1492e7645f8",
    ],
}


def sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def voxels_sha256(hu: np.ndarray) -> str:
    return sha256([hu.astype("<i2").tobytes()])


# ---------------------------------------------------------------------- signs

# Grids by direction cosines, column by column along growing column, row and slice index.
GRIDS = {
    "straight": np.eye(3),
    "turned": np.diag([-1.0, -1.0, 1.0]),
    "rows turned, from top to bottom": np.diag([1.0, -1.0, -1.0]),
    "oblique": np.array([[0.96, 0.0, 0.28], [0.0, 1.0, 0.0], [-0.28, 0.0, 0.96]]),
}

SIGNS_SHA256 = {
    UNCHECKERED: {
        ("open", "straight"): "35f9210c694a1d06e8875c21d5ce7d3b3bd91eb71caa34150e1007649b230912",
        ("open", "turned"): "001a6b847b1467b954414f913b80f524854ae8a11312756b54719bc3c2a7885c",
        ("open", "rows turned, from top to bottom"): "02a2090e0ec98e3501de09f6a261c90f47196b8469aed9d48c9cf5d52a035b2f",
        ("open", "oblique"): "8c017d5820b071dae548bbff0161c622c279f6ce5c98ecfe475b922854a1e100",
        ("keyed", "straight"): "35b6d28bbeb7ffc01bce17b05d8cd0515291cc1cc0a3855fce5fa8a4f53fe47e",
        ("keyed", "turned"): "210d5c52a1c9df41609a7d3bff357a4f02c4b385065a963905585566390b554a",
        (
            "keyed",
            "rows turned, from top to bottom",
        ): "631d7c9e1ecf75f001f0d9285e10bba394cee5fb5f13906f799a7b0e20a3244e",
        ("keyed", "oblique"): "b158d920f4fbf29bee3eeb82662469cc6b62327f65c2aecc0b6a7b8ea6f37d48",
    },
    VERSION: {
        ("open", "straight"): "c69a13c4ec6361c5ffb45b24f52608ded77e27a8bd618fe12a5fd6afcfbd940b",
        ("open", "turned"): "0ba501e4c1374f60ec33a52a410301069c3952878449c5bb9019f5981f0f6748",
        ("open", "rows turned, from top to bottom"): "0ecdcf8bfcb8c13fe2e78974c03007e7639408896d0058af3e2a7ad1b2d83e8c",
        ("open", "oblique"): "e9caf1f3b9da0f549962b971b63b52cab98effb6ce47099ed8226bdc387aa75a",
        ("keyed", "straight"): "a28aafe43f1b006aad44da43cde833a5cb2602954faec1f702e58dbd2f565bf8",
        ("keyed", "turned"): "63abd36dc514b436429b49c8e4894fce2229cfe952c6715c91a4e4fe8d67129b",
        (
            "keyed",
            "rows turned, from top to bottom",
        ): "af31e4d36c472519fd3c2a4e0ec94c765c99e7b9a89b759061cd7447b18df0c8",
        ("keyed", "oblique"): "82fe0f85d3c30a1c6d11173cd72a82a6ae653a9ef77c66e71ad626e6707fed43",
    },
}


def plane_volume(direction: np.ndarray) -> CTVolume:
    """Four slices by integer arithmetic alone: a ramp from -1000 to 1113 HU, rough, and no multiple of a tile."""
    k, j, i = np.ogrid[:4, :43, :52]
    hu = (-1000 + 29 * j + 14 * i + 50 * k + (37 * i * j + 91 * j + 53 * k) % 61).astype(np.int16)
    return CTVolume(hu, (0.7, 0.8, 3.0), (-170.3, -150.1, 40.5), direction)


@pytest.mark.parametrize("version", SIGNS_SHA256)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KEYS)
def test_signs(kind, grid, version):
    volume = plane_volume(GRIDS[grid])
    signs = ScanSigns.of(volume, dataclasses.replace(KEYS[kind], version=version))
    found = [signs.of_slice(k, plane) for k, plane in enumerate(volume.hu)]
    assert sha256(plane.tobytes() for plane in found) == SIGNS_SHA256[version][kind, grid]


def test_turning_of_a_slice():
    plane = np.arange(6).reshape(2, 3)
    found = {name: Grid.of(plane_volume(direction)).turned(plane).tolist() for name, direction in GRIDS.items()}
    assert found == {
        "straight": [[0, 1, 2], [3, 4, 5]],
        "turned": [[5, 4, 3], [2, 1, 0]],
        "rows turned, from top to bottom": [[3, 4, 5], [0, 1, 2]],
        "oblique": [[0, 1, 2], [3, 4, 5]],
    }


# The versions that a watermark's seal records of its signs, and its scan's history of all of it; once there were none.
VERSIONS = {"unversioned": (None, None), "watermark-1": (1, 1), "watermark-2": (1, 2), "watermark-3": (2, 3)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_recorded_version(folder):
    scan = VECTORS / folder / "scan.nrrd"
    _, payload = open_container(scan.with_name("scan.nrrd.seal").read_bytes(), KEY)
    of_signs, of_watermark = VERSIONS[folder]
    assert unpack(payload)[0]["watermark"].get("version") == of_signs
    assert read_file(scan).provenance.steps[-1].parameters.get("watermark_version") == of_watermark


def test_todays_version():
    volume = plane_volume(np.eye(3))
    assert ScanSigns.of(volume, OPEN_KEY).to_dict()["version"] == 2
    assert protect(volume, model=watermark_alone(OPEN_KEY)).provenance.steps[-1].parameters["watermark_version"] == 3


def test_signs_of_an_unknown_version_are_refused():
    first, signs = (
        ScanSigns.of(plane_volume(np.eye(3)), dataclasses.replace(OPEN_KEY, version=version)) for version in (1, 2)
    )
    record = signs.to_dict()
    assert ScanSigns.from_dict(record) == signs
    assert ScanSigns.from_dict({name: value for name, value in first.to_dict().items() if name != "version"}) == first
    with pytest.raises(InputError, match="newer version of MITSGAN"):
        ScanSigns.from_dict(record | {"version": 3})


# ---------------------------------------------------------------------- voxels

# No vector holds a network's voxels. On one machine mitsgan-small gave the same bits with one thread and with two, but
# PyTorch chooses its kernels by the CPU, so another machine may round a change the other way. A watermark alone is bit
# for bit: the noise that bounds it is floating point, but lies at least 0.00007 HU from where a whole HU would flip.
BUDGET = Budget(strength_hu=10.0, lung=1.0, soft_tissue=0.1, bone=0.1, noise_share=0.15, in_lungs=1.0)
MARKS = {  # versions of the signs, and budgets
    "version 1": (UNCHECKERED, dataclasses.replace(BUDGET, in_lungs=None)),
    "version 2": (UNCHECKERED, BUDGET),
    "version 3": (VERSION, BUDGET),
    "without noise": (UNCHECKERED, Budget(strength_hu=8.0, lung=1.0, soft_tissue=0.3, bone=0.2)),
}
VOXELS_SHA256 = {
    ("open", "version 1"): "5ca813fdf4117fd2c282e8e4a1fe0802292f487e34db755c1d678b34d90d997f",
    ("open", "version 2"): "5c952fad55d82773828205ccec695b785a9b627ab8c38c04c68442c1a629e39a",
    ("open", "version 3"): "7c429b424e83e71eccb5b58c443864c53870f75475f084937e0970f7c521f4e4",
    ("open", "without noise"): "1ba9983d7a1942e62a09da4c0e439c8a87a518e51f95077121762ee6654d3ff2",
    ("keyed", "version 1"): "104667a6747529302c1b1edb402b2c98273a3204f1ab189cafd5a5da9906d4bb",
    ("keyed", "version 2"): "01b4ad03fdab33a5a10a833b5a46b5717bc889b281b32bf708bbc90a396b16d5",
    ("keyed", "version 3"): "b894acc08c5161cfa923ac162a1a6b1f8a987cde18e738e746da4c221e80cbf2",
    ("keyed", "without noise"): "480820a81a3ac2ccdb2e779adb2f829de7b7ae518be71733dc5c7ea72d27d156",
}


def watermark(kind: str, mark: str) -> Watermark:
    version, budget = MARKS[mark]
    return Watermark(dataclasses.replace(KEYS[kind], version=version), budget)


def mark_of(folder: str) -> str:
    return f"version {VERSIONS[folder][1] or 1}"


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("kind", KEYS)
def test_voxels_of_a_watermark(kind, mark):
    of = watermark(kind, mark)
    marked = protect(read_file(ORIGINAL), model=watermark_alone(of.key, of.budget))
    assert voxels_sha256(marked.hu) == VOXELS_SHA256[kind, mark]


@pytest.mark.parametrize("folder", FOLDERS)
def test_scans_hold_the_voxels_that_a_watermark_gives_today(folder):
    assert voxels_sha256(read_file(VECTORS / folder / "scan.nrrd").hu) == VOXELS_SHA256["keyed", mark_of(folder)]
    assert voxels_sha256(load_volume(VECTORS / folder / "series").hu) == VOXELS_SHA256["open", mark_of(folder)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_a_scan_was_marked_with(folder):
    found = recorded_watermark(read_file(VECTORS / folder / "scan.nrrd"), KEYS["keyed"])
    assert (found.key.version, found.budget) == MARKS[mark_of(folder)]


# ---------------------------------------------------------------------- seals


def test_key_file():
    assert read_key_file(KEY_FILE) == KEY
    assert KEY.id == "615e2c069b7c4677"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_sealed_file_is_restored(folder, tmp_path):
    restored = restore(VECTORS / folder / "scan.nrrd", tmp_path / "back.nrrd", read_key_file(KEY_FILE))
    assert restored.sha256 == ORIGINAL_SHA256
    original, back = read_file(ORIGINAL), read_file(tmp_path / "back.nrrd")
    assert voxels_sha256(back.hu) == voxels_sha256(original.hu) == ORIGINAL_SHA256
    assert (back.spacing, back.origin, back.provenance.steps) == (original.spacing, original.origin, ())
    np.testing.assert_array_equal(back.direction, original.direction)


@pytest.mark.parametrize("folder", FOLDERS)
def test_sealed_dicom_is_restored_byte_for_byte(folder, tmp_path):
    restored = restore(VECTORS / folder / "series", tmp_path / "back", read_key_file(KEY_FILE))
    files = [path.read_bytes() for path in sorted((tmp_path / "back").iterdir())]
    assert [sha256([data]) for data in files] == SERIES_SHA256[folder]
    assert (restored.format, restored.files, restored.sha256) == ("dicom", 3, sha256(files))


@pytest.mark.parametrize("scan", SCANS)
def test_another_key_restores_nothing(scan, tmp_path):
    with pytest.raises(InputError, match="not the one that this scan was sealed with"):
        restore(VECTORS / scan, tmp_path / Path(scan).name, Key(bytes(32)))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- signatures


@pytest.mark.parametrize("scan", SCANS)
def test_a_signed_scan_is_intact(scan):
    found = read_contents_to_verify(VECTORS / scan)
    signed = find_manifest(found)
    assert signed.manifest.fingerprint == fingerprint(raw_public_key(load_public_key(SIGNER)))
    assert verify_scan(found, signed).is_intact


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_changed_voxel_of_a_file_is_found(folder, tmp_path):
    volume = read_file(VECTORS / folder / "scan.nrrd")
    hu = volume.hu.copy()
    hu[1, 40, 8] += 1
    save_volume(volume.with_hu(hu), tmp_path / "scan.nrrd")
    found = verify_scan(
        read_contents_to_verify(tmp_path / "scan.nrrd"),
        read_manifest_file(VECTORS / folder / "scan.nrrd.manifest.json"),
    )
    assert [one.kind for one in found.discrepancies] == ["voxels"]
    assert list(found.changed_boxes()) == [(1, slice(32, 64), slice(0, 32))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_changed_voxel_of_dicom_is_found(folder, tmp_path):
    shutil.copytree(VECTORS / folder / "series", tmp_path / "series")
    path = tmp_path / "series" / "IM0003.dcm"
    dataset = pydicom.dcmread(path)
    pixels = bytearray(dataset.PixelData)
    pixels[0] ^= 1
    dataset.PixelData = bytes(pixels)
    dataset.save_as(path)
    scan = read_contents_to_verify(tmp_path / "series")
    found = verify_scan(scan, find_manifest(scan))
    assert [one.kind for one in found.discrepancies] == ["voxels"]
    assert list(found.changed_boxes()) == [(2, slice(0, 32), slice(0, 32))]


# -------------------------------------------------- manifests of studies, and answers


@pytest.mark.parametrize(("covers", "instances"), [("all", 3), ("pixels", 3)])
def test_manifests_of_a_study(tmp_path, covers, instances):
    manifest = find_study_manifest(VECTORS / "study-1" / f"{covers}.json")
    assert manifest.covers == covers
    assert manifest.fingerprint == fingerprint(raw_public_key(load_public_key(SIGNER)))
    study = tmp_path / "study"
    shutil.copytree(VECTORS / "watermark-1" / "series", study)
    assert [len(one.intact) for one in verify_study(study, manifest).series] == [instances]
    file = min(study.iterdir())
    dataset = pydicom.dcmread(file)
    dataset.PatientID = "another"
    dataset.save_as(file)
    assert verify_study(study, manifest).is_intact == (covers == "pixels")


def test_answer_sheet():
    sheet = read_sheet(VECTORS / "study-1" / "case-1.answers", KEY)
    assert (sheet.series_uid, sheet.name) == ("2.25.1", "case-1")
    assert sheet.forgeries == (Forgery("inject", (-40.5, 12.25, 45.5), (1, 36, 15), "ctgan-small", "ab" * 32),)
