"""One manifest of a study: what is found, by series and instance; and what is left of it after de-identification."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import dicom_factory
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.files.storage import load_volume, save_volume
from MITSGANLib.keys.signing_keys import new_signing_key, save_signing_key
from MITSGANLib.signature.envelope import ManifestError
from MITSGANLib.signature.manifest import manifest_path
from MITSGANLib.signature.signing import Signers, sign_scan
from MITSGANLib.signature.study import (
    SeriesResult,
    StudyVerification,
    find_study_manifest,
    read_study_manifest,
    sign_study,
    verify_study,
)
from MITSGANTrainingLib.commandline import main
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid
from study_data import SLICES, STUDY, add_slice, change_voxel, edit, write_study

INTACT, NOT_SIGNED, CHANGED, UNKNOWN = 0, 3, 7, 8


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> bytes:
    """The manifest of a signed study."""
    study = write_study(tmp_path_factory.mktemp("any") / "study", 9)
    sign_study(study, None, KEY)
    return manifest_path(study).read_bytes()


@pytest.fixture
def study(tmp_path) -> Path:
    return write_study(tmp_path / "study", 9)


KEY = new_signing_key()


@pytest.fixture
def signed(study) -> Path:
    sign_study(study, None, KEY)
    return study


@pytest.fixture
def pixels(study) -> Path:
    sign_study(study, None, KEY, pixels_only=True)
    return study


def checked(study: Path, beside: Path | None = None) -> StudyVerification:
    return verify_study(study, find_study_manifest(beside or study))


def by_series(verification: StudyVerification) -> dict[str, dict[str, tuple[str, ...]]]:
    """What differs, series by series."""
    kinds = ("changed", "missing", "extra")
    found = {
        one.name[:8]: {kind: getattr(one, kind) for kind in kinds if getattr(one, kind)} for one in verification.series
    }
    return {name: kinds for name, kinds in found.items() if kinds} | (
        {"extra": verification.extra} if verification.extra else {}
    )


MOVED = [-100, -120, 33.5]
# What is done; what a manifest of all finds; what one of pixels does.
TAMPERING: dict[str, tuple[Callable[[Path], object], dict, dict]] = {
    "one voxel": (
        lambda study: change_voxel(study / "lung" / "slice-001"),
        {"series 1": {"changed": ("lung/slice-001",)}},
        {"series 1": {"changed": ("lung/slice-001",)}},
    ),
    "another PatientID": (
        lambda study: edit(study / "lung" / "slice-001", PatientID="43"),
        {"series 1": {"changed": ("lung/slice-001",)}},
        {},
    ),
    "a moved position": (
        lambda study: edit(study / "lung" / "slice-001", ImagePositionPatient=MOVED),
        {"series 1": {"changed": ("lung/slice-001",)}},
        {"series 1": {"missing": ("slice 2 of 3",)}, "extra": ("lung/slice-001",)},
    ),
    "another SOP Instance UID": (
        lambda study: edit(study / "soft" / "slice-000", SOPInstanceUID=generate_uid(prefix=None)),
        {"series 2": {"missing": ("instance 1 of 3",)}, "extra": ("soft/slice-000",)},
        {},
    ),
    "a missing slice": (
        lambda study: (study / "lung" / "slice-000").unlink(),
        {"series 1": {"missing": ("instance 1 of 3",)}},
        {"series 1": {"missing": ("slice 1 of 3",)}},
    ),
    "an added slice": (add_slice, {"extra": ("soft/one-more",)}, {"extra": ("soft/one-more",)}),
    "a slice twice": (
        lambda study: shutil.copy(study / "lung" / "slice-000", study / "lung" / "zz"),
        {"series 1": {"extra": ("lung/zz",)}},
        {"extra": ("lung/zz",)},
    ),
    "a missing series": (
        lambda study: shutil.rmtree(study / "soft"),
        {"series 2": {"missing": tuple(f"instance {k} of 3" for k in (1, 2, 3))}},
        {"series 2": {"missing": tuple(f"slice {k} of 3" for k in (1, 2, 3))}},
    ),
    "a changed structure set": (
        lambda study: edit(study / "contours.dcm", PatientName="Another^One"),
        {"series 3": {"changed": ("contours.dcm",)}},
        {},
    ),
    "an added series": (
        lambda study: dicom_factory.ct_series(study_uid=STUDY).write(study / "new"),
        {"extra": tuple(f"new/slice-{k:03d}" for k in range(5))},
        {"extra": tuple(f"new/slice-{k:03d}" for k in range(5))},
    ),
    "a file cut off": (
        lambda study: (study / "lung" / "slice-002").write_bytes((study / "lung" / "slice-002").read_bytes()[:-40]),
        {"series 1": {"changed": ("lung/slice-002",)}},
        {"series 1": {"missing": ("slice 3 of 3",)}, "extra": ("lung/slice-002",)},
    ),
}


class TestManifest:
    def test_no_file_is_touched(self, study):
        before = {file: file.read_bytes() for file in study.rglob("*") if file.is_file()}
        manifest, where = sign_study(study, None, KEY)
        assert where == manifest_path(study)
        assert [len(instances) for instances in manifest.series] == [3, 3, 1]
        assert {file: file.read_bytes() for file in study.rglob("*") if file.is_file()} == before

    def test_intact(self, signed):
        result = checked(signed)
        assert result.is_intact
        assert result.series[0] == SeriesResult("series 1 of 3", tuple(f"lung/slice-{k:03d}" for k in range(3)))

    @pytest.mark.parametrize("name", TAMPERING)
    def test_what_is_found(self, signed, name):
        TAMPERING[name][0](signed)
        assert by_series(checked(signed)) == TAMPERING[name][1]

    @pytest.mark.parametrize("name", TAMPERING)
    def test_what_a_manifest_of_pixels_finds(self, pixels, name):
        TAMPERING[name][0](pixels)
        assert by_series(checked(pixels)) == TAMPERING[name][2]

    @pytest.mark.parametrize("before", [ExplicitVRLittleEndian, JPEGLSLossless])
    @pytest.mark.parametrize("after", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless])
    @pytest.mark.parametrize("bits", [12, 16])
    def test_lossless_compression_is_no_change(self, tmp_path, before, after, bits):
        study = write_study(tmp_path / "study", 9, syntax=before, bits=bits, signed=False)
        sign_study(study, None, KEY)
        for file in study.glob("*/slice-*"):
            dataset = pydicom.dcmread(file)
            if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
                dataset.decompress(generate_instance_uid=False)
            if after.is_encapsulated:
                dataset.compress(after, generate_instance_uid=False)
                dataset.save_as(file)
            else:
                dataset.file_meta.TransferSyntaxUID = after
                pydicom.dcmwrite(file, dataset, implicit_vr=after.is_implicit_VR, little_endian=True)
        result = checked(study)
        assert result.is_intact, result.summary()

    def test_another_study_is_said_to_be_one(self, signed, tmp_path):
        other = tmp_path / "other"
        dicom_factory.ct_series().write(other)
        result = checked(other, signed)
        assert not result.is_intact
        assert "Study Instance UID" in result.notes[0]

    def test_an_added_element_is_named(self, signed):
        edit(signed / "lung" / "slice-000", ImageComments="new")
        assert checked(signed).is_intact
        assert "ImageComments" in checked(signed).notes[0]

    def test_a_manifest_of_pixels_names_nobody(self, pixels):
        text = manifest_path(pixels).read_text()
        payload = json.loads(text)["envelope"]["payload"]
        import base64

        content = json.loads(base64.b64decode(payload))
        assert set(content) == {"covers", "created", "public_key", "salt", "series", "study", "tag_lists", "tool"}
        assert (content["study"], content["tag_lists"]) == ("", [])
        assert [len(instances) for instances in content["series"]] == [3, 3]

    @settings(max_examples=80)
    @given(st.data())
    def test_a_changed_manifest_is_an_error(self, manifest, data):
        content = bytearray(manifest)
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 6))
        with pytest.raises(ManifestError):
            read_study_manifest(bytes(content))

    def test_it_is_not_replaced_unasked(self, signed):
        with pytest.raises(OutputError):
            sign_study(signed, None, KEY)
        sign_study(signed, None, KEY, overwrite=True)

    def test_a_folder_without_ct_is_refused(self, tmp_path):
        (tmp_path / "in").mkdir()
        dicom_factory.write_structure_set(tmp_path / "in" / "contours.dcm", STUDY)
        with pytest.raises(InputError):
            sign_study(tmp_path / "in", None, KEY)


def deidentify(source: Path, target: Path) -> Path:
    """A usual profile (PS3.15 Table E.1-1, as many tools have it): UIDs replaced consistently, names and dates gone,
    private elements, signatures and descriptions gone.
    """
    uids: dict[str, str] = {}

    def replaced(uid: str) -> str:
        return uids.setdefault(uid, generate_uid(prefix=None))

    def clean(_dataset: Dataset, element: pydicom.DataElement) -> None:
        if element.VR == "UI" and not element.keyword.endswith(("ClassUID", "SyntaxUID")):
            element.value = replaced(str(element.value))
        elif element.VR in ("PN", "DA", "TM", "DT"):
            element.value = ""

    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        dataset = pydicom.dcmread(file)
        dataset.remove_private_tags()
        for keyword in ("DigitalSignaturesSequence", "MACParametersSequence", "ContributingEquipmentSequence"):
            if keyword in dataset:
                del dataset[keyword]
        dataset.walk(clean)
        dataset.PatientID, dataset.AccessionNumber, dataset.PatientIdentityRemoved = "site-1", "", "YES"
        for keyword in ("SeriesDescription", "DerivationDescription"):
            if keyword in dataset:
                del dataset[keyword]
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        where = target / file.relative_to(source)
        where.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(where)
    return target


@pytest.fixture
def keys(tmp_path) -> Path:
    save_signing_key(KEY, tmp_path / "site.pem")
    return tmp_path / "site.pub.pem"


class TestDeidentified:
    def test_the_sites_manifest_verifies_at_the_core_lab(self, study, keys, tmp_path, capsys):
        manifest = tmp_path / "site.manifest.json"
        assert main(["sign", str(study), str(manifest), "--pixels-only", "--key", str(tmp_path / "site.pem")]) == 0
        copy = deidentify(study, tmp_path / "copy")
        words = ["--manifest", str(manifest), "--public-key", str(keys)]
        assert main(["verify", str(copy), *words]) == INTACT
        text = capsys.readouterr().out
        assert "series 2 of 2: 3 intact" in text
        assert "no CT images: 1 file" in text
        change_voxel(copy / "soft" / "slice-001")
        assert main(["verify", str(copy), *words]) == CHANGED
        assert "changed: soft/slice-001" in capsys.readouterr().out

    def test_a_manifest_of_all_does_not(self, signed, tmp_path, capsys):
        copy = deidentify(signed, tmp_path / "copy")
        assert main(["verify", str(copy), "--manifest", str(manifest_path(signed))]) == CHANGED
        assert "Study Instance UID is not the signed one" in capsys.readouterr().out

    def test_verify_says_what_is_left(self, study, tmp_path, capsys):
        sign_scan(study / "lung", tmp_path / "signed", Signers(KEY))
        copy = deidentify(tmp_path / "signed", tmp_path / "copy")
        assert main(["verify", str(copy)]) == NOT_SIGNED
        said = capsys.readouterr().err
        assert "de-identified" in said
        for word in ("--pixels-only", "mitsgan examine", "pixels and geometry"):
            assert word in said

    def test_a_series_manifest_says_how_to_compare_without_headers(self, study, keys, tmp_path, capsys):
        sign_scan(study / "lung", None, Signers(KEY))
        copy, beside = deidentify(study / "lung", tmp_path / "copy"), str(manifest_path(study / "lung"))
        assert main(["verify", str(copy), "--manifest", beside]) == CHANGED
        assert "--deidentified compares voxels" in capsys.readouterr().out
        words = ["--manifest", beside, "--deidentified", "--public-key", str(keys)]
        assert main(["verify", str(copy), *words]) == INTACT

    @pytest.mark.slow
    def test_examine_still_reads_the_watermark(self, tmp_path, capsys):
        hu = dicom_factory.phantom_hu((24, 96, 96))
        dicom_factory.ct_series(hu, spacing=(0.8, 0.8, 1.0)).write(tmp_path / "in")
        assert main(["protect", str(tmp_path / "in"), str(tmp_path / "protected"), "--model", "none"]) == 0
        copy = deidentify(tmp_path / "protected", tmp_path / "copy")
        capsys.readouterr()
        main(["examine", str(copy)])
        assert "watermark" in capsys.readouterr().out
        assert main(["check", str(copy)]) == 0
        assert "Watermark found" in capsys.readouterr().out

    def test_dcmodify(self, study, tmp_path):
        if shutil.which("dcmodify") is None:
            pytest.skip("dcmodify is not installed; on Debian: apt-get install dcmtk")
        manifest = tmp_path / "site.manifest.json"
        sign_study(study, manifest, KEY, pixels_only=True)
        files = [str(file) for file in study.glob("*/slice-*")]
        words = [
            "-nb",
            "-imt",
            "-gin",
            "-gse",
            "-gst",
            "-ep",
            "-m",
            "0010,0010=",
            "-m",
            "0010,0020=x",
            "-ea",
            "(0008,0020)",
        ]
        subprocess.run(["dcmodify", *words, *files], check=True, capture_output=True)
        assert verify_study(study, find_study_manifest(manifest)).is_intact


class TestCommands:
    @pytest.mark.slow
    def test_sign_and_verify(self, study, keys, tmp_path, capsys):
        assert main(["sign", str(study), "--study", "--key", str(tmp_path / "site.pem")]) == 0
        assert "7 instances in 3 series" in capsys.readouterr().out
        assert main(["verify", str(study), "--public-key", str(keys)]) == INTACT
        assert main(["verify", str(study)]) == UNKNOWN
        record = tmp_path / "record.json"
        shutil.rmtree(study / "soft")
        assert main(["verify", str(study), "--json", str(record)]) == CHANGED
        result = json.loads(record.read_text())
        assert result["study"]["series"][1]["missing"] == [f"instance {k} of 3" for k in (1, 2, 3)]
        assert dicom_factory.PATIENT_NAME.split("^")[0] not in capsys.readouterr().out

    @pytest.mark.usefixtures("keys")
    @pytest.mark.parametrize(
        "words", [("--study", "--exam"), ("--study", "--series", "1.2"), ("--pixels-only",), ("--study",)]
    )
    def test_options_that_do_not_fit(self, study, tmp_path, words):
        key = () if words in (("--pixels-only",), ("--study",)) else ("--key", str(tmp_path / "site.pem"))
        with pytest.raises(SystemExit):
            main(["sign", str(study), *words, *key])

    def test_a_map_is_of_one_series(self, signed, tmp_path):
        with pytest.raises(SystemExit):
            main(["verify", str(signed), "--map", str(tmp_path / "map.nrrd")])

    def test_one_series_of_a_signed_study_can_be_asked_for(self, signed):
        uid = pydicom.dcmread(signed / "lung" / "slice-000").SeriesInstanceUID
        assert main(["verify", str(signed), "--series", uid]) == NOT_SIGNED


def test_enhanced_ct_is_covered_frame_by_frame(tmp_path):
    series = dicom_factory.ct_series()
    (tmp_path / "study").mkdir()
    dicom_factory.write_enhanced(tmp_path / "study" / "all", series, order=[2, 0, 1, 4, 3])
    manifest, _ = sign_study(tmp_path / "study", tmp_path / "pixels.json", KEY, pixels_only=True)
    assert [len(instances) for instances in manifest.series] == [5]
    assert verify_study(tmp_path / "study", manifest).is_intact
    single = series.write(tmp_path / "single")
    assert verify_study(tmp_path / "single", manifest).is_intact
    single[2].unlink()
    assert by_series(verify_study(tmp_path / "single", manifest)) == {"series 1": {"missing": ("slice 1 of 5",)}}


def test_protection_is_a_change(pixels, tmp_path):
    volume = load_volume(pixels / "lung")
    save_volume(volume.with_hu(volume.hu + np.int16(1)), tmp_path / "copy")
    result = verify_study(tmp_path / "copy", find_study_manifest(pixels))
    assert len(result.series[0].changed) == SLICES
