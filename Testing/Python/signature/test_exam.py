"""A study signed as a whole: what its document says, what is found out, and what DCMTK thinks of it."""

from __future__ import annotations

import datetime
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import dicom_factory
import numpy as np
import pydicom
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.keys.signing_keys import new_signing_key
from MITSGANLib.signature.dicom.digital_signature import load_certificates, load_dicom_signer, sign_dataset
from MITSGANLib.signature.dicom.exam import DOCUMENT_NAME, ExamVerification, find_exam_document, sign_exam, verify_exam
from MITSGANLib.signature.signing import Signers, sign_scan
from MITSGANTrainingLib.commandline import main
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGLSLossless, generate_uid
from study_data import SLICES, STUDY, add_slice, change_voxel, edit, write_study
from tree_data import make_signer

CHANGED, NOT_CHECKED, UNKNOWN = 7, 3, 8
IMAGES = tuple(f"{series}/slice-{k:03d}" for series in ("lung", "soft") for k in range(SLICES))


@pytest.fixture(scope="module")
def signers(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("signers")
    keys = {"rsa": rsa.generate_private_key(65537, 2048), "ec": ec.generate_private_key(ec.SECP256R1())}
    return {name: make_signer(folder, name, key) for name, key in keys.items()}


@pytest.fixture
def study(tmp_path) -> Path:
    return write_study(tmp_path / "study")


@pytest.fixture
def signed(study, signers) -> Path:
    sign_exam(study, None, load_dicom_signer(*signers["rsa"]))
    return study


def checked(study: Path, signers: dict, document: Path | None = None) -> ExamVerification:
    return verify_exam(study, document or find_exam_document(study), load_certificates(signers["rsa"][1]))


MOVED = [-100, -120, 33.5]
# The structure set has no Series Number, so it is the first series of the document.
FIRST = "instance 1 of 3 in series {} of the document"
# What is done to a study, and what is found: the rows of the table in docs/hospital-it.md.
TAMPERING = {
    "one voxel": (lambda study: change_voxel(study / IMAGES[1]), {"changed": (IMAGES[1],)}),
    "another PatientID": (lambda study: edit(study / IMAGES[1], PatientID="43"), {"changed": (IMAGES[1],)}),
    "a moved position": (
        lambda study: edit(study / IMAGES[1], ImagePositionPatient=MOVED),
        {"changed": (IMAGES[1],)},
    ),
    "another SOP Instance UID": (
        lambda study: edit(study / IMAGES[3], SOPInstanceUID=generate_uid(prefix=None)),
        {"missing": (FIRST.format(3),), "extra": (IMAGES[3],)},
    ),
    "a missing slice": (lambda study: (study / IMAGES[0]).unlink(), {"missing": (FIRST.format(2),)}),
    "an added slice": (add_slice, {"extra": ("soft/one-more",)}),
    "a slice twice": (
        lambda study: shutil.copy(study / IMAGES[0], study / "lung" / "zz"),
        {"extra": ("lung/zz",)},
    ),
    "an added element": (lambda study: edit(study / "contours.dcm", StructureSetLabel="b"), {}),
    "another PatientName of a structure set": (
        lambda study: edit(study / "contours.dcm", PatientName="Another^One"),
        {"changed": ("contours.dcm",)},
    ),
    "a missing series": (
        lambda study: shutil.rmtree(study / "soft"),
        {"missing": tuple(f"instance {k} of 3 in series 3 of the document" for k in (1, 2, 3))},
    ),
    "a file cut off": (
        lambda study: (study / IMAGES[2]).write_bytes((study / IMAGES[2]).read_bytes()[:-40]),
        {"changed": (IMAGES[2],)},
    ),
}


ROWS = tuple(TAMPERING)[:6]


def edit_last_reference(document: Path) -> None:
    """Change one digit of the last UID in the references."""
    dataset = pydicom.dcmread(document)
    item = dataset.CurrentRequestedProcedureEvidenceSequence[-1].ReferencedSeriesSequence[-1].ReferencedSOPSequence[-1]
    item.ReferencedSOPInstanceUID = generate_uid(prefix=None)
    dataset.save_as(document)


def dcmsign(*arguments: object) -> int:
    return subprocess.run(["dcmsign", *map(str, arguments)], capture_output=True, check=False).returncode


def dcmsign_notices(study: Path, signers: dict) -> bool:
    """Whether any image that is there fails with DCMTK."""
    images = [file for folder in ("lung", "soft") for file in (study / folder).iterdir()]
    verify = ("--verify", "--require-sig", "--add-cert-file", signers["rsa"][1])
    return any(dcmsign(*verify, file) for file in images)


class TestDocument:
    def test_no_image_is_touched(self, study, signers):
        before = {file: file.read_bytes() for file in study.rglob("*") if file.is_file()}
        where, count = sign_exam(study, None, load_dicom_signer(*signers["rsa"]))
        assert (where, count) == (study / DOCUMENT_NAME, 7)
        assert {file: file.read_bytes() for file in study.rglob("*") if file.is_file() and file != where} == before

    def test_it_refers_to_every_instance_with_a_mac(self, signed):
        document = pydicom.dcmread(signed / DOCUMENT_NAME)
        title = document.ConceptNameCodeSequence[0]
        assert document.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.59"
        assert (title.CodeValue, title.CodingSchemeDesignator) == ("113035", "DCM")
        assert (document.StudyInstanceUID, document.PatientID, document.Modality) == (STUDY, "42", "KO")
        (evidence,) = document.CurrentRequestedProcedureEvidenceSequence
        items = [item for series in evidence.ReferencedSeriesSequence for item in series.ReferencedSOPSequence]
        files = [pydicom.dcmread(file) for file in signed.rglob("*") if file.is_file() and file.name != DOCUMENT_NAME]
        assert {item.ReferencedSOPInstanceUID for item in items} == {one.SOPInstanceUID for one in files}
        by_uid = {one.SOPInstanceUID: one for one in files}
        for item in items:
            (mac,) = item.ReferencedSOPInstanceMACSequence
            assert (mac.MACAlgorithm, len(mac.MAC)) == ("SHA256", 32)
            assert list(mac.DataElementsSigned) == [
                one.tag for one in by_uid[item.ReferencedSOPInstanceUID] if not one.tag.is_private
            ]
        content = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in document.ContentSequence]
        assert content == [item.ReferencedSOPInstanceUID for item in items]
        assert sorted(item.ValueType for item in document.ContentSequence) == ["COMPOSITE", *["IMAGE"] * 6]

    @pytest.mark.parametrize("kind", ["rsa", "ec"])
    def test_dcmtk_accepts_the_signature(self, study, signers, kind):
        if shutil.which("dcmsign") is None:
            pytest.skip("dcmsign is not installed; on Debian: apt-get install dcmtk")
        where, _ = sign_exam(study, None, load_dicom_signer(*signers[kind]))
        required = "--require-sr" if kind == "rsa" else "--require-sig"
        command = ["dcmsign", "--verify", required, "--add-cert-file", str(signers[kind][1]), str(where)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        edit(where, PatientID="43")
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0

    @pytest.mark.parametrize("tool", ["dsrdump", "dciodvfy"])
    def test_the_object_is_what_the_standard_asks_for(self, signed, tool):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; on Debian: apt-get install dcmtk dicom3tools")
        result = subprocess.run([tool, str(signed / DOCUMENT_NAME)], capture_output=True, text=True, check=False)
        said = result.stdout + result.stderr
        assert result.returncode == 0, said
        assert not [line for line in said.splitlines() if line.startswith(("Error", "E:"))]
        assert ("Key Object Selection Document" if tool == "dsrdump" else "KeyObjectSelectionDocument") in said

    @pytest.mark.slow
    @pytest.mark.parametrize("series", [(60,), (133,), (20, 17, 96), (300,)])
    def test_dcmtk_accepts_many_instances(self, tmp_path, signers, series):
        """Its buffer of 16 KiB is full several times; see ``dcmtk_blocks``."""
        if shutil.which("dcmsign") is None:
            pytest.skip("dcmsign is not installed; on Debian: apt-get install dcmtk")
        study = tmp_path / "study"
        for number, slices in enumerate(series):
            hu = dicom_factory.phantom_hu((slices, 4, 4))
            dicom_factory.ct_series(hu, study_uid=STUDY).write(study / str(number))
        where, _ = sign_exam(study, None, load_dicom_signer(*signers["rsa"]))
        verify = ("--verify", "--require-sr", "--add-cert-file", signers["rsa"][1], where)
        assert dcmsign(*verify) == 0
        assert len(checked(study, signers).intact) == sum(series)
        (study / "0" / "slice-001").unlink()
        (name,) = checked(study, signers).missing
        assert name.startswith(f"instance 2 of {series[0]} in series ")
        edit_last_reference(where)
        assert dcmsign(*verify) != 0
        assert checked(study, signers).is_changed


@pytest.mark.slow
class TestBesideOthers:
    """Who notices what: the table in docs/hospital-it.md."""

    @pytest.mark.parametrize("name", [name for name in ROWS if name != "an added slice"])
    def test_dcmsign_on_each_image(self, study, signers, name):
        if shutil.which("dcmsign") is None:
            pytest.skip("dcmsign is not installed; on Debian: apt-get install dcmtk")
        for image in IMAGES:
            dcmsign("--sign", *signers["rsa"], "--mac-sha256", study / image, study / image)
        TAMPERING[name][0](study)
        assert dcmsign_notices(study, signers) == (name != "a missing slice")

    def test_dcmsign_on_a_signed_slice_of_another_exam(self, study, signers):
        if shutil.which("dcmsign") is None:
            pytest.skip("dcmsign is not installed; on Debian: apt-get install dcmtk")
        add_slice(study)
        for image in (*IMAGES, "soft/one-more"):
            dcmsign("--sign", *signers["rsa"], "--mac-sha256", study / image, study / image)
        assert not dcmsign_notices(study, signers)

    @pytest.mark.parametrize("name", ROWS)
    def test_a_manifest_in_each_series(self, study, tmp_path, name):
        key, signed = new_signing_key(), tmp_path / "signed"
        for series in ("lung", "soft"):
            sign_scan(study / series, signed / series, Signers(key))
        TAMPERING[name][0](signed)
        codes = {main(["verify", str(signed / series)]) for series in ("lung", "soft")}
        assert codes == {CHANGED, UNKNOWN}


class TestVerification:
    def test_intact(self, signed, signers):
        found = checked(signed, signers)
        assert found.intact == ("contours.dcm", *IMAGES)
        assert (found.is_changed, found.is_checked, found.is_trusted) == (False, True, True)
        assert not found.notes

    @pytest.mark.parametrize("name", TAMPERING)
    def test_tampering_is_found_and_named(self, signed, signers, name):
        tamper, expected = TAMPERING[name]
        tamper(signed)
        found = checked(signed, signers)
        for kind in ("changed", "missing", "extra", "unchecked"):
            assert getattr(found, kind) == expected.get(kind, ())
        assert found.is_changed == bool(expected)
        if not expected:
            assert found.notes == ("Elements were added that no MAC covers: StructureSetLabel.",)
        said = "\n".join(found.summary()) + json.dumps(found.to_dict())
        assert not [value for value in (dicom_factory.PATIENT_NAME, "Another", STUDY) if value in said]

    def test_moved_and_renamed_files_are_the_same_instances(self, signed, signers, tmp_path):
        for number, file in enumerate(sorted(signed.rglob("slice-*"))):
            (tmp_path / "moved").mkdir(exist_ok=True)
            shutil.move(file, tmp_path / "moved" / f"IM{number}")
        shutil.copy(signed / "contours.dcm", tmp_path / "moved")
        assert len(checked(tmp_path / "moved", signers, signed / DOCUMENT_NAME).intact) == 7

    @pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, JPEGLSLossless])
    def test_other_encodings(self, tmp_path, signers, syntax):
        study = write_study(tmp_path / "study", syntax=syntax)
        sign_exam(study, None, load_dicom_signer(*signers["rsa"]))
        assert not checked(study, signers).is_changed
        edit(study / IMAGES[4], PatientID="43")
        assert checked(study, signers).changed == (IMAGES[4],)

    def test_an_image_that_was_compressed_since_cannot_be_checked(self, signed, signers):
        dataset = pydicom.dcmread(signed / IMAGES[0])
        dataset.compress(JPEGLSLossless, generate_instance_uid=False)
        dataset.save_as(signed / IMAGES[0])
        found = checked(signed, signers)
        assert (found.unchecked, found.is_changed, found.is_checked) == ((IMAGES[0],), False, False)

    def test_private_elements_and_signatures_of_images_are_no_change(self, signed, signers):
        dataset = pydicom.dcmread(signed / IMAGES[0])
        dataset.private_block(0x0011, "ARCHIVE", create=True).add_new(1, "LO", "filed")
        sign_dataset(dataset, load_dicom_signer(*signers["ec"]), datetime.datetime.now(datetime.UTC))
        dataset.save_as(signed / IMAGES[0])
        found = checked(signed, signers)
        assert not found.is_changed
        assert not found.notes

    def test_a_document_that_was_changed(self, signed, signers):
        """One that leaves an image out, so that its absence would not show."""
        document = pydicom.dcmread(signed / DOCUMENT_NAME)
        del document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        document.save_as(signed / DOCUMENT_NAME)
        found = checked(signed, signers)
        assert found.is_changed
        assert not found.is_checked

    def test_a_signature_that_leaves_the_references_out_is_none(self, signed, signers):
        document = pydicom.dcmread(signed / DOCUMENT_NAME)
        del document.DigitalSignaturesSequence, document.MACParametersSequence
        now = datetime.datetime.now(datetime.UTC)
        sign_dataset(document, load_dicom_signer(*signers["rsa"]), now, ("PatientID", "SOPInstanceUID"))
        document.save_as(signed / DOCUMENT_NAME)
        found = checked(signed, signers)
        assert (found.is_changed, found.is_checked, found.is_trusted) == (False, False, False)

    def test_a_mac_without_the_pixels_says_nothing(self, signed, signers):
        document = pydicom.dcmread(signed / DOCUMENT_NAME)
        series = document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[-1]
        mac = series.ReferencedSOPSequence[0].ReferencedSOPInstanceMACSequence[0]
        mac.DataElementsSigned = [tag for tag in mac.DataElementsSigned if tag != 0x7FE00010]
        document.save_as(signed / DOCUMENT_NAME)
        assert checked(signed, signers).unchecked == (IMAGES[3],)


class TestRefusals:
    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda study: edit(study / IMAGES[0], StudyInstanceUID=generate_uid(prefix=None)), "2 studies"),
            (lambda study: edit(study / IMAGES[0], PatientID="43"), "2 patients"),
            (lambda study: [(study / name).unlink() for name in IMAGES], "no CT"),
            (lambda study: shutil.copy(study / IMAGES[0], study / "again"), "twice"),
            (lambda study: (study / IMAGES[0]).write_bytes((study / IMAGES[0]).read_bytes()[:600]), "damaged"),
            (lambda study: edit(study / "contours.dcm", SeriesInstanceUID=""), "Series Instance UID"),
        ],
    )
    def test_a_study_that_cannot_be_signed(self, study, signers, spoil, reason):
        spoil(study)
        with pytest.raises(InputError, match=reason) as caught:
            sign_exam(study, None, load_dicom_signer(*signers["rsa"]))
        assert "43" not in str(caught.value).replace(str(study), "")
        assert not (study / DOCUMENT_NAME).exists()

    def test_big_endian(self, tmp_path, signers):
        study = write_study(tmp_path / "study", syntax=ExplicitVRBigEndian)
        with pytest.raises(InputError, match="big-endian"):
            sign_exam(study, None, load_dicom_signer(*signers["rsa"]))

    def test_a_document_that_is_there(self, signed, signers):
        signer = load_dicom_signer(*signers["rsa"])
        for output in (None, signed / "second.dcm"):
            with pytest.raises(InputError, match="already"):
                sign_exam(signed, output, signer)
        first = (signed / DOCUMENT_NAME).read_bytes()
        assert sign_exam(signed, None, signer, overwrite=True)[1] == 7
        assert (signed / DOCUMENT_NAME).read_bytes() != first
        assert not checked(signed, signers).is_changed
        shutil.copy(signed / DOCUMENT_NAME, signed / "second.dcm")
        with pytest.raises(InputError, match="2 signed exams"):
            find_exam_document(signed)

    def test_an_image_is_never_overwritten(self, study, signers):
        before = (study / IMAGES[0]).read_bytes()
        with pytest.raises(OutputError, match="image of the exam"):
            sign_exam(study, study / IMAGES[0], load_dicom_signer(*signers["rsa"]), overwrite=True)
        assert (study / IMAGES[0]).read_bytes() == before

    def test_another_key_object_selection_is_an_instance(self, signed, signers):
        document = pydicom.dcmread(signed / DOCUMENT_NAME)
        document.ConceptNameCodeSequence[0].CodeValue = "113000"
        (signed / DOCUMENT_NAME).unlink()
        document.save_as(signed / "of-interest.dcm")
        assert sign_exam(signed, None, load_dicom_signer(*signers["rsa"]))[1] == 8
        assert not checked(signed, signers).is_changed


class TestCommands:
    @pytest.fixture
    def words(self, signers) -> list[str]:
        return ["--exam", "--dicom-key", str(signers["rsa"][0]), "--certificate", str(signers["rsa"][1])]

    @pytest.mark.slow
    def test_round_trip(self, study, signers, words, capsys):
        assert main(["sign", str(study), *words]) == 0
        assert "7 instances" in capsys.readouterr().out
        trust = ["--certificate", str(signers["rsa"][1])]
        assert main(["verify", str(study), *trust]) == 0
        assert capsys.readouterr().out.startswith("Intact")
        assert main(["verify", str(study)]) == UNKNOWN
        assert "unknown signer" in capsys.readouterr().out
        (study / IMAGES[4]).unlink()
        assert main(["verify", str(study), *trust, "--json", "-"]) == CHANGED
        result = json.loads(capsys.readouterr().out)
        assert result["verdict"] == "changed"
        assert len(result["exam"]["missing"]) == 1
        assert main(["verify", str(study), *trust]) == CHANGED
        said = capsys.readouterr().out
        assert said.startswith("CHANGED")
        assert "missing: instance 2 of 3" in said

    def test_a_document_elsewhere(self, study, signers, words, tmp_path, capsys):
        assert main(["sign", str(study), str(tmp_path / "exam.dcm"), *words]) == 0
        assert not (study / DOCUMENT_NAME).exists()
        where = ["--manifest", str(tmp_path / "exam.dcm")]
        assert main(["verify", str(study), *where, "--certificate", str(signers["rsa"][1])]) == 0
        document = pydicom.dcmread(tmp_path / "exam.dcm")
        del document.DigitalSignaturesSequence
        document.save_as(tmp_path / "exam.dcm")
        capsys.readouterr()
        assert main(["verify", str(study), *where]) == NOT_CHECKED
        assert "no signature" in capsys.readouterr().out

    def test_what_does_not_go_together(self, study, signers, words, capsys):
        for wrong in (
            ["--exam"],
            words[:3],
            [*words, "--key", "clinic.pem"],
            [*words, "--series", "1.2"],
            [],
        ):
            with pytest.raises(SystemExit) as stopped:
                main(["sign", str(study), *wrong])
            assert stopped.value.code == 2
        swapped = [*words[:3], "--certificate", str(signers["ec"][1])]
        assert main(["sign", str(study), *swapped]) == 3
        assert "another key" in capsys.readouterr().err
        assert main(["sign", str(study), *words]) == 0
        with pytest.raises(SystemExit):
            main(["verify", str(study), "--map", str(study.parent / "map.nrrd")])

    def test_one_series_of_a_signed_exam(self, study, words, capsys):
        assert main(["sign", str(study), *words]) == 0
        series = pydicom.dcmread(study / IMAGES[0]).SeriesInstanceUID
        assert main(["verify", str(study), "--series", series]) == NOT_CHECKED
        assert "not signed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("storescu") is None, reason="storescu is not installed; it is in Debian's dcmtk")
@pytest.mark.parametrize(("proposed", "accepted"), [("-xe", "+xe"), ("-xi", "+xi")])
def test_a_signed_exam_sent_to_an_archive(signed, signers, tmp_path, proposed, accepted):
    """Stored by DCMTK's storescp on loopback, in the encoding of the files or another: all is intact there."""
    archive = tmp_path / "archive"
    archive.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with subprocess.Popen(["storescp", accepted, "-od", archive, port]) as server:
        try:
            send = ["storescu", proposed, "+sd", "+r", "127.0.0.1", port, signed]
            for _ in range(100):  # the server takes a moment to listen
                if subprocess.run(send, capture_output=True, check=False).returncode == 0:
                    break
                time.sleep(0.1)
        finally:
            server.terminate()
    assert len(list(archive.iterdir())) == 8
    found = checked(archive, signers)
    assert (len(found.intact), found.is_changed, found.is_checked, found.is_trusted) == (7, False, True, True)


@pytest.mark.slow
def test_no_byte_of_the_document_can_be_changed_unnoticed(signed, signers):
    """Whatever byte is flipped, the verdict is not "intact" where the references are not the signed ones."""
    file = signed / DOCUMENT_NAME
    whole, kinds = file.read_bytes(), set()
    evidence = pydicom.dcmread(file).CurrentRequestedProcedureEvidenceSequence
    for place in np.random.default_rng(0).integers(132, len(whole), 60).tolist():
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
        try:
            found = checked(signed, signers, file)
        except InputError:
            kinds.add("refused")
            continue
        is_intact = not found.is_changed and found.is_checked and found.is_trusted
        kinds.add("intact" if is_intact else "noticed")
        assert not is_intact or pydicom.dcmread(file).CurrentRequestedProcedureEvidenceSequence == evidence
    assert "noticed" in kinds


def test_a_damaged_document_is_an_error(signed, signers):
    broken = Dataset()
    document = pydicom.dcmread(signed / DOCUMENT_NAME)
    document.CurrentRequestedProcedureEvidenceSequence = [broken]
    document.save_as(signed / DOCUMENT_NAME)
    with pytest.raises(InputError, match="damaged"):
        checked(signed, signers)


def test_both_series_have_images_of_their_own(study):
    """What the table of tampering takes for granted."""
    pixels = [pydicom.dcmread(study / name).pixel_array for name in IMAGES]
    assert not any(np.array_equal(a, b) for n, a in enumerate(pixels) for b in pixels[:n])
