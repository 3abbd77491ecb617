"""DICOM's own digital signatures (PS3.3 C.12.1.1.3, PS3.15 Annex C): RSA or ECDSA with the signer's X.509 certificate.

A signature covers listed elements of one image (see ``byte_stream``), and the item of the signature itself, without
certificate, signature and time stamp.

It is bound to the bytes of one encoding: compressing or decompressing the image breaks it. The manifest (see
``manifest``) is bound to HU and survives that; it also says where, and notices missing images. This signature is
understood by others, such as DCMTK's ``dcmsign``.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...files.dicom.encoded import new_item, new_uid, tags_of
from ...files.dicom.headers import quiet_pydicom, read_dataset
from ...keys.signing_keys import fingerprint, load_pem_private_key, read_pem
from . import byte_stream

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.x509 import Certificate
    from pydicom import Dataset

CERTIFICATE_TYPE = "X509_1993_SIG"
# MD5 and SHA-1 are of the standard too, but collisions of theirs are known. RIPEMD-160 is what dcmsign takes where it
# is not told otherwise; nobody can make another image to a signature over it, but we sign with SHA-256.
RIPEMD160 = "RIPEMD160"
MAC_ALGORITHMS = {RIPEMD160: "ripemd160", "SHA256": "sha256", "SHA384": "sha384", "SHA512": "sha512"}
# What RFC 8017 9.2 puts before a digest of RIPEMD-160 in an RSA signature; its identifier is 1.3.36.3.2.1.
_RIPEMD160_DIGEST_INFO = bytes.fromhex("3021300906052b2403020105000414")
MINIMUM_RSA_BITS, MINIMUM_CURVE_BITS = 2048, 224

# What the Creator RSA profile (PS3.15 C.2) asks for in a CT, and what else places the image, gives its pixels their HU
# or says whose they are; in the order of their tags. Elements that an image lacks are left out.
SIGNED_KEYWORDS = tuple(
    """
    ImageType InstanceCreationDate InstanceCreationTime SOPClassUID SOPInstanceUID StudyDate AcquisitionDate
    ContentDate AcquisitionDateTime StudyTime AcquisitionTime ContentTime AccessionNumber Modality Manufacturer
    InstitutionName InstitutionAddress StationName InstitutionalDepartmentName
    InstitutionalDepartmentTypeCodeSequence ManufacturerModelName ReferencedWaveformSequence ReferencedImageSequence
    ReferencedInstanceSequence DerivationDescription SourceImageSequence AnatomicRegionSequence
    PrimaryAnatomicStructureSequence IrradiationEventUID SourceIrradiationEventSequence
    ReferencedImageEvidenceSequence ReferencedRawDataSequence SourceImageEvidenceSequence PixelPresentation
    VolumetricProperties VolumeBasedCalculationTechnique AcquisitionContrast DerivationCodeSequence
    ReferencedPresentationStateSequence PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex
    BodyPartExamined ScanOptions SliceThickness KVP DeviceSerialNumber DeviceUID GantryID UDISequence
    SoftwareVersions SpatialResolution FocalSpots DateOfLastCalibration TimeOfLastCalibration PatientPosition
    ContentQualification AcquisitionDuration ApplicableSafetyStandardAgency ApplicableSafetyStandardDescription
    ExposureTimeInms XRayTubeCurrentInmA ExposureInmAs MultienergyCTAcquisition AcquisitionProtocolName
    AcquisitionProtocolDescription StudyInstanceUID SeriesInstanceUID AcquisitionNumber InstanceNumber
    PatientOrientation ImagePositionPatient ImageOrientationPatient FrameOfReferenceUID Laterality ImageLaterality
    SOPInstanceUIDOfConcatenationSource ImagesInAcquisition ImageComments ConcatenationUID InConcatenationNumber
    InConcatenationTotalNumber ConcatenationFrameOffsetNumber DimensionOrganizationType SamplesPerPixel
    PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns PixelSpacing PixelAspectRatio
    BitsAllocated BitsStored HighBit PixelRepresentation SmallestImagePixelValue LargestImagePixelValue
    PixelPaddingValue PixelPaddingRangeLimit QualityControlImage BurnedInAnnotation RecognizableVisualFeatures
    RescaleIntercept RescaleSlope RescaleType ICCProfile ColorSpace LossyImageCompression LossyImageCompressionRatio
    LossyImageCompressionMethod RepresentativeFrameNumber PixelDataProviderURL RealWorldValueMappingSequence
    SourceInstanceSequence PatientOrientationCodeSequence PatientGantryRelationshipCodeSequence
    GraphicAnnotationSequence ContentLabel ContentDescription ContentCreatorName
    ContentCreatorIdentificationCodeSequence IconImageSequence PresentationLUTShape IsocenterPosition
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ExtendedOffsetTable ExtendedOffsetTableLengths
    PixelData
    """.split()  # noqa: SIM905 - as literals they would fill a hundred lines
)
# Overlay planes (PS3.3 C.9.2) repeat in the even groups from 6000 to 601E.
_OVERLAY_GROUPS = range(0x6000, 0x6020, 2)

# What a signature adds to an image.
SIGNATURE_KEYWORDS = ("MACParametersSequence", "DigitalSignaturesSequence")

# Current Requested Procedure Evidence Sequence: what a Key Object Selection refers to.
REFERENCES = 0x0040A375

_NOT_IN_MAC = ("CertificateOfSigner", "Signature", "CertifiedTimestampType", "CertifiedTimestamp")


@dataclass(frozen=True)
class DicomSigner:
    """A private key, RSA of at least 2048 bits or on an elliptic curve, and the X.509 certificate of its public key."""

    private_key: RSAPrivateKey | EllipticCurvePrivateKey
    certificate: Certificate


@dataclass(frozen=True)
class SignatureReport:
    """What one digital signature of one image says.

    ``status`` is ``valid``, ``changed`` (the image is not what was signed) or ``unusable`` (``text`` says why it cannot
    be judged). ``fingerprint`` is the SHA-256 of the certificate, ``trusted`` whether it is one of those that were
    given or issued by one of them, ``covers_pixels`` whether Pixel Data are among the signed elements, and
    ``covers_references`` whether the references of a Key Object Selection are.
    """

    uid: str
    status: str
    text: str
    subject: str = ""
    fingerprint: str = ""
    trusted: bool = False
    covers_pixels: bool = False
    covers_references: bool = False

    @property
    def signer(self) -> str:
        """Who signed, for a person."""
        trust = "trusted" if self.trusted else "unknown"
        return f"signer {self.subject}, {trust}, certificate {self.fingerprint}"


@dataclass(frozen=True)
class ImageSignatures:
    """The signatures of the images of a scan, by file."""

    reports: Mapping[Path, tuple[SignatureReport, ...]]

    @property
    def signed(self) -> tuple[Path, ...]:
        """Images with any signature."""
        return tuple(path for path, reports in self.reports.items() if reports)

    @property
    def changed(self) -> tuple[Path, ...]:
        """Images that are not what was signed."""
        return tuple(path for path, reports in self.reports.items() if any(r.status == "changed" for r in reports))

    @property
    def all_valid(self) -> bool:
        """Whether every image has a valid signature over its pixels, and none that is not."""
        return not self.changed and all(any(map(_covers, reports)) for reports in self.reports.values())

    @property
    def all_signed(self) -> bool:
        """Whether every image has a signature of any kind, valid or not."""
        return all(self.reports.values())

    @property
    def all_trusted(self) -> bool:
        """Whether every image has a valid signature over its pixels by someone trusted."""
        return all(any(_covers(report) and report.trusted for report in reports) for reports in self.reports.values())

    def summary(self) -> list[str]:
        """What to tell a person; empty where no image is signed."""
        if not self.signed:
            return []
        valid = sum(any(map(_covers, reports)) for reports in self.reports.values())
        lines = [f"{valid} of {len(self.reports)} images have a valid one over their pixels."]
        signers = {(one.subject, one.fingerprint): one for reports in self.reports.values() for one in reports}
        lines += [report.signer for report in signers.values() if report.fingerprint]
        if self.changed:
            lines.append(f"{len(self.changed)} images were CHANGED, such as {self.changed[0].name}.")
        reasons = {r.text for reports in self.reports.values() for r in reports if r.status == "unusable"}
        return [*lines, *sorted(reasons)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready reports by file."""
        return {str(path): [dataclasses.asdict(report) for report in reports] for path, reports in self.reports.items()}


def load_dicom_signer(key: Path, certificate: Path, passphrase: bytes | None = None) -> DicomSigner:
    """Read a private key and its certificate, both PEM.

    :raises InputError: a file is missing or of another kind, the key is too short, or the two do not belong together.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    private_key = load_pem_private_key(key, passphrase)
    (signer_certificate, *_) = load_certificates(certificate)
    if not isinstance(private_key, RSAPrivateKey | EllipticCurvePrivateKey):
        raise InputError(
            "is no RSA or elliptic curve key, which DICOM's signatures need", path=key, hint="make one with openssl"
        )
    if isinstance(private_key, RSAPrivateKey) and private_key.key_size < MINIMUM_RSA_BITS:
        raise InputError(
            f"has only {private_key.key_size} bits", path=key, hint=f"make a key of {MINIMUM_RSA_BITS} bits or more"
        )
    if private_key.public_key() != signer_certificate.public_key():
        raise InputError(
            "is the certificate of another key than the one given", path=certificate, hint="give the one made for it"
        )
    return DicomSigner(private_key, signer_certificate)


def load_certificates(path: Path) -> list[Certificate]:
    """The certificates of a PEM file.

    :raises InputError: the file is missing or holds none.
    """
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(read_pem(path))
    except ValueError as error:
        raise InputError(
            "holds no X.509 certificate in PEM form", path=path, hint="give a .pem or .crt file"
        ) from error


def sign_dataset(
    dataset: Dataset, signer: DicomSigner, time: datetime.datetime, keywords: Sequence[str | int] = SIGNED_KEYWORDS
) -> None:
    """Add a digital signature over those elements of ``keywords`` that a data set has, and its overlays.

    Earlier signatures stay.

    :param dataset: an image as read from its file, with ``file_meta``; it must be written in the same transfer syntax.
    :param time: when it is signed, with a time zone.
    :raises ByteStreamError: the pixels are big-endian, which DICOM's signatures cannot name.
    """
    if not dataset.file_meta.TransferSyntaxUID.is_little_endian:
        raise byte_stream.ByteStreamError(
            "A big-endian image cannot carry a DICOM signature; convert it to little-endian first."
        )
    wanted = set(tags_of(keywords))
    tags = sorted(tag for tag in dataset.keys() if tag in wanted or tag.group in _OVERLAY_GROUPS)  # noqa: SIM118
    tags = [tag for tag in tags if byte_stream.is_signable(dataset, tag)]
    used = {int(item.MACIDNumber) for name in SIGNATURE_KEYWORDS for item in dataset.get(name) or []}
    number = next(number for number in range(1 << 16) if number not in used)
    parameters = new_item(
        MACIDNumber=number,
        MACCalculationTransferSyntaxUID=byte_stream.mac_syntax(dataset),
        MACAlgorithm="SHA256",
        DataElementsSigned=tags,
    )
    item = new_item(
        MACIDNumber=number,
        DigitalSignatureUID=new_uid(),
        DigitalSignatureDateTime=time.strftime("%Y%m%d%H%M%S.%f%z"),
        CertificateType=CERTIFICATE_TYPE,
    )
    mac = _mac(dataset, tags, item, "SHA256")
    item.CertificateOfSigner = byte_stream.even(_der(signer.certificate))
    item.Signature = byte_stream.even(_sign(signer, mac))
    dataset.MACParametersSequence = [*(dataset.get("MACParametersSequence") or []), parameters]
    dataset.DigitalSignaturesSequence = [*(dataset.get("DigitalSignaturesSequence") or []), item]


def verify_dataset(dataset: Dataset, trusted: Sequence[Certificate] = ()) -> tuple[SignatureReport, ...]:
    """Check every digital signature in the main data set of an image; damage of any kind ends in a report.

    :param dataset: an image as read from its file, with ``file_meta``.
    :param trusted: certificates of signers, or of authorities that issue them.
    """
    with quiet_pydicom():
        try:
            items = list(dataset.get("DigitalSignaturesSequence") or [])
            parameters = {int(item.MACIDNumber): item for item in dataset.get("MACParametersSequence") or []}
        except Exception:  # noqa: BLE001 - pydicom meets damage with many exception types
            return (SignatureReport("", "unusable", "The signatures are damaged."),)
        reports = []
        for item in items:
            try:
                reports.append(_judge(dataset, item, parameters, trusted))
            except Exception as error:  # noqa: BLE001 - foreign bytes go through pydicom and DER, which raise anything
                text = str(error) if isinstance(error, InputError) else "The signature is damaged."
                reports.append(SignatureReport(_text(item, "DigitalSignatureUID"), "unusable", text))
        return tuple(reports)


def verify_images(paths: Sequence[Path], trusted: Sequence[Certificate] = ()) -> ImageSignatures:
    """Check every digital signature in the main data sets of DICOM files.

    :raises InputError: a file cannot be read.
    """
    return ImageSignatures({path: verify_dataset(read_dataset(path), trusted) for path in paths})


def signed_tags(item: Dataset) -> list[int]:
    """The tags that an item lists as signed."""
    signed = item.DataElementsSigned
    return [int(tag) for tag in ([signed] if isinstance(signed, int) else signed)]


def certificate_fingerprint(certificate: Certificate) -> str:
    """The SHA-256 of a certificate."""
    return fingerprint(_der(certificate))


def _mac(dataset: Dataset, tags: Sequence[int], item: Dataset, algorithm: str) -> bytes:
    digest = hashlib.new(MAC_ALGORITHMS[algorithm])
    signed = set(item.keys()) - set(tags_of(_NOT_IN_MAC))
    image = byte_stream.byte_stream(dataset, tags, dataset.file_meta.TransferSyntaxUID.is_encapsulated)
    for piece in itertools.chain(image, byte_stream.byte_stream(item, signed)):
        digest.update(piece)
    return digest.digest()


def _judge(
    dataset: Dataset, item: Dataset, parameters: dict[int, Dataset], trusted: Sequence[Certificate]
) -> SignatureReport:
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509 import load_der_x509_certificate

    chosen = parameters[int(item.MACIDNumber)]
    algorithm = str(chosen.MACAlgorithm)
    try:
        hashlib.new(MAC_ALGORITHMS[algorithm])
    except (KeyError, ValueError) as error:  # of RIPEMD-160, which some builds of OpenSSL leave out
        raise InputError(f"It uses {algorithm}, which is not accepted here; sign with SHA256 or longer.") from error
    if item.CertificateType != CERTIFICATE_TYPE:
        raise InputError(f"Its certificate is of type {_text(item, 'CertificateType')}, not {CERTIFICATE_TYPE}.")
    byte_stream.require_same_encoding(dataset, chosen.MACCalculationTransferSyntaxUID)
    certificate = load_der_x509_certificate(_der_sequence(item.CertificateOfSigner))
    tags = signed_tags(chosen)
    report = SignatureReport(
        uid=_text(item, "DigitalSignatureUID"),
        status="valid",
        text="The image is what was signed.",
        subject=_printable(certificate.subject.rfc4514_string()),
        fingerprint=certificate_fingerprint(certificate),
        trusted=_is_trusted(certificate, trusted, str(item.DigitalSignatureDateTime)),
        covers_pixels=byte_stream.PIXEL_DATA in tags and byte_stream.PIXEL_DATA in dataset,
        covers_references=REFERENCES in tags and REFERENCES in dataset,
    )
    try:
        _check(certificate, bytes(item.Signature), _mac(dataset, tags, item, algorithm), algorithm)
    except InvalidSignature:
        return dataclasses.replace(report, status="changed", text="The image or its signature was changed.")
    return report


def _covers(report: SignatureReport) -> bool:
    return report.status == "valid" and report.covers_pixels


def _sign(signer: DicomSigner, mac: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
    from cryptography.hazmat.primitives.hashes import SHA256

    prehashed = utils.Prehashed(SHA256())
    if isinstance(signer.private_key, ec.EllipticCurvePrivateKey):
        return signer.private_key.sign(mac, ec.ECDSA(prehashed))
    return signer.private_key.sign(mac, padding.PKCS1v15(), prehashed)


def _check(certificate: Certificate, signature: bytes, mac: bytes, algorithm: str) -> None:
    """
    :raises InvalidSignature: the signature is not of this MAC.
    :raises InputError: the key is of a kind or size that is not accepted.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

    key = certificate.public_key()
    # The package knows no RIPEMD-160; of a digest that is ready it asks for the size alone, which SHA-1 shares.
    kind = utils.Prehashed(hashes.SHA1() if algorithm == RIPEMD160 else getattr(hashes, algorithm)())
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MINIMUM_RSA_BITS:
        # As long as the modulus; a zero byte follows where that is odd (PS3.5 8.1).
        size = (key.key_size + 7) // 8
        if signature[size:] == b"\x00":
            signature = signature[:size]
        if algorithm != RIPEMD160:
            key.verify(signature, mac, padding.PKCS1v15(), kind)
        elif key.recover_data_from_signature(signature, padding.PKCS1v15(), None) != _RIPEMD160_DIGEST_INFO + mac:
            raise InvalidSignature
    elif isinstance(key, ec.EllipticCurvePublicKey) and key.key_size >= MINIMUM_CURVE_BITS:
        key.verify(_der_sequence(signature), mac, ec.ECDSA(kind))
    else:
        raise InputError(
            "Its key is not accepted: neither RSA of at least 2048 bits nor on an elliptic curve of at least 224."
        )


def _is_trusted(certificate: Certificate, trusted: Sequence[Certificate], time: str) -> bool:
    """Whether a certificate was given as trusted or issued by one that was, and was valid when it signed."""
    from pydicom.valuerep import DT

    signed_at = DT(time)
    if signed_at.tzinfo is None:
        signed_at = signed_at.replace(tzinfo=datetime.UTC)
    if not certificate.not_valid_before_utc <= signed_at <= certificate.not_valid_after_utc:
        return False
    return any(certificate == one or _is_issued_by(certificate, one) for one in trusted)


def _is_issued_by(certificate: Certificate, authority: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509 import BasicConstraints, ExtensionNotFound

    try:
        if not authority.extensions.get_extension_for_class(BasicConstraints).value.ca:
            return False
        certificate.verify_directly_issued_by(authority)
    except (ExtensionNotFound, InvalidSignature, TypeError, ValueError):
        return False
    return True


def _der(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _der_sequence(data: bytes) -> bytes:
    """A DER structure without the zero byte that an OB element of odd length is padded with (PS3.5 8.1)."""
    head = io.BytesIO(data)
    head.read(1)
    length = head.read(1)[0]
    if length & 0x80:
        length = int.from_bytes(head.read(length & 0x7F), "big")
    end = head.tell() + length
    return data[:end] if data[end:] == b"\x00" else data


def _text(item: Dataset, keyword: str) -> str:
    try:
        value = str(item.get(keyword) or "")
    except Exception:  # noqa: BLE001 - see verify_dataset
        return ""
    return _printable(value)


def _printable(text: str) -> str:
    """Foreign text for terminals and logs."""
    return "".join(c for c in text if c.isprintable())[:128]
