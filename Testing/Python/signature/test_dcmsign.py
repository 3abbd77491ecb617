"""DICOM's own digital signatures, against DCMTK's ``dcmsign``: what we sign it accepts, and what it signs we accept."""

from __future__ import annotations

import dataclasses
import datetime
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import dicom_factory
import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from MITSGANLib.errors import InputError
from MITSGANLib.keys.signing_keys import new_signing_key
from MITSGANLib.signature.contents import read_contents_to_verify
from MITSGANLib.signature.dicom import digital_signature
from MITSGANLib.signature.dicom.digital_signature import (
    SIGNED_KEYWORDS,
    DicomSigner,
    load_certificates,
    load_dicom_signer,
    sign_dataset,
    verify_dataset,
    verify_images,
)
from MITSGANLib.signature.signing import Signers, sign_scan
from MITSGANLib.signature.verification import manifest_within, verify_scan
from pydicom import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from tree_data import make_signer

LITTLE_ENDIAN = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)

needs_dcmsign = pytest.mark.skipif(
    shutil.which("dcmsign") is None, reason="dcmsign is not installed; on Debian: apt-get install dcmtk"
)


def certificate(name: str, key, issuer: tuple[str, object] | None = None, is_authority: bool = False):
    issuer_name, issuer_key = issuer or (name, key)
    builder = x509.CertificateBuilder(
        subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
        issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer_name)]),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=NOW - DAY,
        not_valid_after=NOW + DAY,
    ).add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """(private key, certificate) files for RSA and an elliptic curve."""
    folder = tmp_path_factory.mktemp("keys")
    made = {"rsa": rsa.generate_private_key(65537, 2048), "ec": ec.generate_private_key(ec.SECP256R1())}
    return {name: make_signer(folder, f"Test {name}", key) for name, key in made.items()}


def awkward(dataset: Dataset, _k: int) -> None:
    """What real headers have: numbers of two signs, odd and surplus padding, empty elements, nested sequences."""
    dataset.PixelPaddingValue = -2000
    dataset["PixelPaddingValue"].VR = "SS"
    dataset.SmallestImagePixelValue = -5
    dataset["SmallestImagePixelValue"].VR = "SS"
    dataset.PatientName = "Sömmering^Änne"
    dataset.InstitutionName = "Odd"
    dataset.ImageComments = "padded   "
    dataset.PatientBirthDate = ""
    reference = Dataset()
    reference.ReferencedSOPClassUID = "1.2.3"
    reference.PurposeOfReferenceCodeSequence = [Dataset(), Dataset()]
    dataset.ReferencedImageSequence = [reference]


def write(folder: Path, syntax: str) -> Path:
    return dicom_factory.ct_series(syntax=syntax, edit=awkward).write(folder)[0]


def write_enhanced(folder: Path, syntax: str) -> Path:
    return dicom_factory.write_enhanced(folder / "all", dicom_factory.ct_series(syntax=syntax), order=[2, 0, 1, 4, 3])


def sign(file: Path, key: tuple[Path, Path], keywords: tuple[str, ...] = SIGNED_KEYWORDS) -> Path:
    dataset = pydicom.dcmread(file)
    assert dataset.PatientName  # decoded, it will be encoded again
    sign_dataset(dataset, load_dicom_signer(*key), NOW, keywords)
    dataset.save_as(file)
    return file


def dcmsign(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(["dcmsign", *map(str, arguments)], capture_output=True, text=True, check=False)


def without_padding(value: bytes) -> bytes:
    """A DER sequence of less than 64 KiB without the zero byte that may follow it; it may end with one of its own."""
    head = {0x81: 3, 0x82: 4}.get(value[1], 2)
    return value[: head + int.from_bytes(value[2:head] or value[1:2], "big")]


def status(file: Path) -> list[str]:
    return [report.status for report in verify_dataset(pydicom.dcmread(file))]


@needs_dcmsign
class TestAgainstDcmsign:
    @pytest.mark.parametrize("kind", ["rsa", "ec"])
    @pytest.mark.parametrize("syntax", LITTLE_ENDIAN)
    @pytest.mark.parametrize("make", [write, write_enhanced])
    def test_it_accepts_ours_and_we_accept_its(self, tmp_path, keys, kind, syntax, make):
        key, cert = keys[kind]
        file = make(tmp_path / "ours", syntax)
        theirs = tmp_path / "theirs.dcm"
        assert dcmsign("--sign", key, cert, "--mac-sha256", file, theirs).returncode == 0
        (report,) = verify_dataset(pydicom.dcmread(theirs), load_certificates(cert))
        assert (report.status, report.trusted, report.covers_pixels) == ("valid", True, True)
        sign(file, keys[kind])
        # The Creator RSA profile asks for the elements that PS3.15 C.2 lists.
        required = "--require-creator" if kind == "rsa" else "--require-sig"
        result = dcmsign("--verify", required, "--add-cert-file", cert, file)
        assert result.returncode == 0, result.stderr

    @pytest.mark.parametrize("mac", ["sha384", "sha512"])
    def test_its_other_digests(self, tmp_path, keys, mac):
        file = write(tmp_path, ExplicitVRLittleEndian)
        dcmsign("--sign", *keys["rsa"], f"--mac-{mac}", "-t", "PixelData", "-t", "ReferencedImageSequence", file, file)
        assert status(file) == ["valid"]

    @pytest.mark.parametrize("kind", ["rsa", "ec"])
    def test_the_digest_that_it_takes_by_itself(self, tmp_path, keys, kind):
        file = write(tmp_path, ExplicitVRLittleEndian)
        assert dcmsign("--sign", *keys[kind], file, file).returncode == 0
        dataset = pydicom.dcmread(file)
        (report,) = verify_dataset(dataset, load_certificates(keys[kind][1]))
        assert (report.status, report.trusted, report.covers_pixels) == ("valid", True, True)
        dataset.PatientID = "43"
        assert verify_dataset(dataset)[0].status == "changed"

    def test_its_signature_of_big_endian_files(self, tmp_path, keys):
        file = write(tmp_path, ExplicitVRBigEndian)
        assert dcmsign("--sign", *keys["rsa"], "--mac-sha256", file, tmp_path / "signed").returncode == 0
        assert status(tmp_path / "signed") == ["valid"]

    def test_a_second_signature_beside_the_first(self, tmp_path, keys):
        file = write(tmp_path, ExplicitVRLittleEndian)
        dcmsign("--sign", *keys["rsa"], "--mac-sha256", file, file)
        sign(file, keys["ec"])
        assert status(file) == ["valid", "valid"]
        authorities = [argument for _, cert in keys.values() for argument in ("--add-cert-file", cert)]
        assert dcmsign("--verify", "--require-sig", *authorities, file).returncode == 0

    def test_both_notice_a_changed_pixel(self, tmp_path, keys):
        file = sign(write(tmp_path, ExplicitVRLittleEndian), keys["rsa"])
        dataset = pydicom.dcmread(file)
        dataset.PixelData = bytes([dataset.PixelData[0] ^ 1]) + dataset.PixelData[1:]
        dataset.save_as(file)
        assert status(file) == ["changed"]
        assert dcmsign("--verify", "--add-cert-file", keys["rsa"][1], file).returncode != 0

    def test_a_weak_digest_is_not_accepted(self, tmp_path, keys):
        file = write(tmp_path, ExplicitVRLittleEndian)
        dcmsign("--sign", *keys["rsa"], "--mac-sha1", file, file)
        (report,) = verify_dataset(pydicom.dcmread(file))
        assert report.status == "unusable"
        assert "SHA1" in report.text


@pytest.mark.skipif(shutil.which("storescu") is None, reason="storescu is not installed; it is in Debian's dcmtk")
@needs_dcmsign
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
def test_signed_series_sent_to_an_archive(tmp_path, keys, syntax):
    """Stored by DCMTK's storescp on loopback: the manifest within and DICOM's own signatures are still right."""
    dicom_factory.ct_series(dicom_factory.phantom_hu((3, 40, 40)), syntax=syntax).write(tmp_path / "scan")
    sign_scan(tmp_path / "scan", tmp_path / "signed", Signers(new_signing_key(), load_dicom_signer(*keys["ec"])))
    (tmp_path / "archive").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Proposed and accepted: JPEG-LS lossless, or Explicit VR Little Endian.
    proposed, accepted = ("-xt", "+xt") if syntax.is_encapsulated else ("-xe", "+xe")
    with subprocess.Popen(["storescp", accepted, "-od", tmp_path / "archive", port]) as server:
        try:
            send = ["storescu", proposed, "+sd", "127.0.0.1", port, tmp_path / "signed"]
            for _ in range(100):  # the server takes a moment to listen
                if subprocess.run(send, capture_output=True, check=False).returncode == 0:
                    break
                time.sleep(0.1)
        finally:
            server.terminate()
    received = sorted((tmp_path / "archive").iterdir())
    assert len(received) == 3
    scan = read_contents_to_verify(tmp_path / "archive")
    assert verify_scan(scan, manifest_within(scan)).is_intact
    assert verify_images(received, load_certificates(keys["ec"][1])).all_trusted
    assert dcmsign("--verify", "--require-sig", "--add-cert-file", keys["ec"][1], received[0]).returncode == 0


class TestOurs:
    @pytest.mark.parametrize("keyword", ["PatientName", "ImagePositionPatient", "RescaleSlope", "SOPInstanceUID"])
    def test_a_signed_header_counts_and_another_does_not(self, tmp_path, keys, keyword):
        file = sign(write(tmp_path, ExplicitVRLittleEndian), keys["ec"])
        dataset = pydicom.dcmread(file)
        dataset.SeriesDescription = "another"
        dataset.save_as(file)
        assert status(file) == ["valid"]
        del dataset[keyword]
        dataset.save_as(file)
        assert status(file) == ["changed"]

    @pytest.mark.parametrize("part", ["Signature", "CertificateOfSigner"])
    def test_every_byte_of_signature_and_certificate_counts(self, tmp_path, keys, part):
        """Some bytes of a certificate may be flipped: those its issuer signed, which only trust in it asks about."""
        trusted = load_certificates(keys["ec"][1])
        dataset = pydicom.dcmread(sign(write(tmp_path, ExplicitVRLittleEndian), keys["ec"], ("PatientID",)))
        item = dataset.DigitalSignaturesSequence[0]
        value = without_padding(item[part].value)
        for place in range(len(value)):
            item[part].value = value[:place] + bytes([value[place] ^ 0x11]) + value[place + 1 :]
            (report,) = verify_dataset(dataset, trusted)
            assert report.status != "valid" or (part == "CertificateOfSigner" and not report.trusted)
        item[part].value = value
        assert verify_dataset(dataset, trusted)[0].trusted

    @pytest.mark.parametrize("is_padded", [True, False])
    def test_a_certificate_that_ends_with_a_zero_byte(self, tmp_path, is_padded):
        """One in 256 does, and one of odd length is followed by another zero, which is no part of it."""
        key = ec.generate_private_key(ec.SECP256R1())
        for number in range(100_000):
            signer = DicomSigner(key, certificate(f"{number:0{5 + number % 2}d}", key))
            der = signer.certificate.public_bytes(serialization.Encoding.DER)
            if der[-1] == 0 and len(der) % 2 == is_padded:
                break
        dataset = pydicom.dcmread(write(tmp_path, ExplicitVRLittleEndian))
        sign_dataset(dataset, signer, NOW, ("PatientID",))
        assert without_padding(dataset.DigitalSignaturesSequence[0].CertificateOfSigner) == der
        assert verify_dataset(dataset, [signer.certificate])[0].trusted

    def test_ripemd160_with_rsa(self, tmp_path, keys, monkeypatch):
        """The package cryptography has no such signatures, so this one is made by hand (RFC 8017 8.2.1 and 9.2)."""

        signer = load_dicom_signer(*keys["rsa"])

        def sign_by_hand(mac: bytes, *_scheme: object) -> bytes:
            numbers, info = signer.private_key.private_numbers(), "3021300906052b2403020105000414"
            padded = b"\x00\x01" + b"\xff" * (256 - 3 - 15 - 20) + b"\x00" + bytes.fromhex(info) + mac
            number = pow(int.from_bytes(padded, "big"), numbers.d, numbers.public_numbers.n)
            return number.to_bytes(256, "big")

        monkeypatch.setitem(digital_signature.MAC_ALGORITHMS, "SHA256", "ripemd160")
        file = write(tmp_path, ExplicitVRLittleEndian)
        dataset = pydicom.dcmread(file)
        sign_dataset(dataset, dataclasses.replace(signer, private_key=SimpleNamespace(sign=sign_by_hand)), NOW)
        dataset.save_as(file)
        dataset = pydicom.dcmread(file)
        monkeypatch.undo()
        # The name of the digest is not signed.
        dataset.MACParametersSequence[0].MACAlgorithm = "RIPEMD160"
        (report,) = verify_dataset(dataset, load_certificates(keys["rsa"][1]))
        assert (report.status, report.trusted) == ("valid", True)
        dataset.PatientID = "43"
        assert verify_dataset(dataset)[0].status == "changed"
        monkeypatch.setattr(digital_signature.hashlib, "new", Mock(side_effect=ValueError("unsupported hash type")))
        (report,) = verify_dataset(dataset)
        assert report.status == "unusable"
        assert "RIPEMD160" in report.text

    @pytest.mark.parametrize("bits", [2048, 2056])
    def test_a_signature_of_odd_length(self, tmp_path, bits):
        key = rsa.generate_private_key(65537, bits)
        signer = DicomSigner(key, certificate("Odd", key))
        dataset = pydicom.dcmread(write(tmp_path, ExplicitVRLittleEndian))
        sign_dataset(dataset, signer, NOW)
        assert verify_dataset(dataset, [signer.certificate])[0].status == "valid"
        dataset.PatientID = "43"
        assert verify_dataset(dataset, [signer.certificate])[0].status == "changed"

    @pytest.mark.parametrize("damage", ["MACIDNumber", "CertificateType", "DigitalSignatureDateTime", "Signature"])
    def test_a_missing_part_is_a_report(self, tmp_path, keys, damage):
        dataset = pydicom.dcmread(sign(write(tmp_path, ExplicitVRLittleEndian), keys["ec"]))
        del dataset.DigitalSignaturesSequence[0][damage]
        assert verify_dataset(dataset)[0].status == "unusable"
        del dataset.MACParametersSequence
        assert verify_dataset(dataset)[0].status == "unusable"

    def test_another_compression_cannot_be_checked_and_says_so(self, tmp_path, keys):
        dataset = pydicom.dcmread(sign(write(tmp_path, ExplicitVRLittleEndian), keys["ec"]))
        dataset.compress(RLELossless, generate_instance_uid=False)
        (report,) = verify_dataset(dataset)
        assert report.status == "unusable"
        assert "RLE" in report.text

    def test_big_endian_is_refused(self, tmp_path, keys):
        with pytest.raises(InputError, match="big-endian"):
            sign(write(tmp_path, ExplicitVRBigEndian), keys["ec"])

    def test_trust(self, tmp_path, keys):
        authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        authority = certificate("Authority", authority_key, is_authority=True)
        impostor = certificate("Authority", ec.generate_private_key(ec.SECP256R1()), is_authority=True)
        no_authority = certificate("Authority", authority_key)
        signer = DicomSigner(key, certificate("Signer", key, ("Authority", authority_key)))
        dataset = pydicom.dcmread(write(tmp_path, ExplicitVRLittleEndian))
        sign_dataset(dataset, signer, NOW)

        def is_trusted(*certificates: x509.Certificate) -> bool:
            (report,) = verify_dataset(dataset, certificates)
            assert report.status == "valid"
            return report.trusted

        assert is_trusted(authority)
        assert is_trusted(signer.certificate)
        assert not is_trusted()
        assert not is_trusted(impostor, no_authority, *load_certificates(keys["ec"][1]))

    def test_signed_after_the_certificate_expired(self, tmp_path, keys):
        dataset = pydicom.dcmread(write(tmp_path, ExplicitVRLittleEndian))
        sign_dataset(dataset, load_dicom_signer(*keys["ec"]), NOW + 2 * DAY)
        (report,) = verify_dataset(dataset, load_certificates(keys["ec"][1]))
        assert (report.status, report.trusted) == ("valid", False)

    def test_key_and_certificate_must_belong_together(self, keys):
        with pytest.raises(InputError, match="another key"):
            load_dicom_signer(keys["ec"][0], keys["rsa"][1])
        with pytest.raises(InputError, match="certificate"):
            load_dicom_signer(keys["ec"][0], keys["ec"][0])

    def test_a_series_of_which_one_image_is_not_signed(self, tmp_path, keys):
        files = dicom_factory.ct_series().write(tmp_path)
        for file in files:
            sign(file, keys["ec"])
        trusted = load_certificates(keys["ec"][1])
        signatures = verify_images(files, trusted)
        assert signatures.all_valid
        assert signatures.all_trusted
        dataset = pydicom.dcmread(files[2])
        del dataset.DigitalSignaturesSequence
        dataset.save_as(files[2])
        signatures = verify_images(files, trusted)
        assert not signatures.all_valid
        assert len(signatures.signed) == 4
        assert "4 of 5" in signatures.summary()[0]
