"""Digests of what a signature holds fast: the HU of every tile, and the headers that say whose scan it is.

Every manifest has a random salt of its own that keys all digests. So equal tiles, and equal patients, look unlike in
two manifests, and tables of digests prepared beforehand are useless.

The salt stands in the manifest, because anyone shall be able to check it. Whoever has a manifest could therefore try
guesses, and names and birth dates are easily guessed. So headers are keyed also by the Study Instance UID, stretched by
scrypt: a manifest alone, without the DICOM files, gives nothing to compare guesses with unless that UID is known
or guessed as well. Some scanners make theirs of serial number and time; treat a manifest as confidential as the scan.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..files.dicom.headers import quiet_pydicom

if TYPE_CHECKING:
    from pydicom import Dataset

TILE = 32  # pixels
DIGEST_BYTES = SALT_BYTES = 32

STUDY = "StudyInstanceUID"
# One value in the whole series. Who, which examination, and how the body lies in it.
SERIES_KEYWORDS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "AcquisitionDate",
    "BodyPartExamined",
    "Laterality",
    "PatientPosition",
)
# Image Type, because DERIVED and ORIGINAL say whether this is what the scanner saw; the last three, because viewers
# hide padding and invert MONOCHROME1.
IMAGE_KEYWORDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "InstanceNumber",
    "ImageType",
    "PhotometricInterpretation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
)

_SCRYPT = {"n": 1 << 14, "r": 8, "p": 1}

Headers = Mapping[str, str]


@dataclass(frozen=True)
class HeaderDigests:
    """Digests of the headers of a series: of its Study Instance UID, and by keyword of :data:`SERIES_KEYWORDS`."""

    study: bytes
    series: Mapping[str, bytes]


def tile_grid(rows: int, columns: int) -> tuple[int, int]:
    """How many tiles a slice has along rows and columns; those at the end may be smaller than :data:`TILE`."""
    return -(-rows // TILE), -(-columns // TILE)


def tile_digests(hu: np.ndarray, salt: bytes) -> np.ndarray:
    """The keyed BLAKE2b digest of every tile of a slice.

    :param hu: int16 (rows, columns) in HU.
    :returns: uint8 (tile rows, tile columns, 32).
    """
    rows, columns = hu.shape
    words = hu.astype("<i2", copy=False)
    digests = b"".join(
        hashlib.blake2b(
            words[j : j + TILE, i : i + TILE].tobytes(), key=salt, person=b"MITSGAN tile v1", digest_size=DIGEST_BYTES
        ).digest()
        for j in range(0, rows, TILE)
        for i in range(0, columns, TILE)
    )
    return np.frombuffer(digests, np.uint8).reshape(*tile_grid(rows, columns), DIGEST_BYTES)


def read_headers(dataset: Dataset) -> dict[str, str]:
    """The signed headers of an image in a form that does not depend on character set, padding or empty elements."""
    with quiet_pydicom():
        return {keyword: _normal(dataset, keyword) for keyword in (STUDY, *SERIES_KEYWORDS, *IMAGE_KEYWORDS)}


class HeaderKey:
    """Digests of headers, keyed by the salt of a manifest and one Study Instance UID; see the module's docstring."""

    def __init__(self, salt: bytes, study: str) -> None:
        self._key = hashlib.scrypt(study.encode(), salt=salt, dklen=DIGEST_BYTES, **_SCRYPT)

    def headers(self, images: Sequence[Headers]) -> HeaderDigests:
        """The digests of a series from the headers of its images."""
        series = {keyword: self.series(keyword, (one[keyword] for one in images)) for keyword in SERIES_KEYWORDS}
        return HeaderDigests(self.study, series)

    @property
    def study(self) -> bytes:
        """The digest that tells whether this Study Instance UID is the signed one."""
        return self._digest(STUDY, "")

    def series(self, keyword: str, values: Iterable[str]) -> bytes:
        """The digest of the different values that an element has in a series, one as a rule."""
        return self._digest(keyword, *sorted(set(values)))

    def image(self, headers: Headers) -> bytes:
        """The digest of the elements that are an image's own."""
        return self._digest("image", *(headers[keyword] for keyword in IMAGE_KEYWORDS))

    def uid(self, value: str) -> bytes:
        """The digest of a UID of a series or an instance."""
        return self._digest("uid", value)

    def instance(self, pieces: Iterable[bytes]) -> bytes:
        """The digest of what a manifest of a study covers of an instance."""
        return keyed_digest(self._key, b"MITSGAN instance v1", pieces)

    def _digest(self, *parts: str) -> bytes:
        # Lengths keep the parts apart, whatever they hold.
        message = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
        return hmac.digest(self._key, b"MITSGAN header v1" + message, "sha256")


def keyed_digest(key: bytes, context: bytes, pieces: Iterable[bytes]) -> bytes:
    """HMAC-SHA256 of bytes that come in pieces, for one use of a key."""
    mac = hmac.new(key, context, "sha256")
    for piece in pieces:
        mac.update(piece)
    return mac.digest()


def _normal(dataset: Dataset, keyword: str) -> str:
    """An element as text; empty and missing are the same, since archives fill in and leave out empty elements."""
    from pydicom.multival import MultiValue

    try:
        value = dataset.get(keyword)
        parts = list(value) if isinstance(value, MultiValue) else [value]
        text = "\\".join("" if part is None else str(part).strip(" \0") for part in parts)
        if text and keyword in ("InstanceNumber", "PixelPaddingValue", "PixelPaddingRangeLimit"):
            # Some writers give 63536 where signed pixels hold -2000.
            text = str(int(text) % (1 << 16) if keyword.startswith("Pixel") else int(text))
    except Exception:  # noqa: BLE001 - pydicom decodes at first use, and meets damage with anything
        return "\ufffd unreadable"
    if keyword == "PatientName":
        # Components at the end may be left out (PS3.5 6.2.1).
        text = "=".join(group.rstrip("^ ") for group in text.split("=")).rstrip("=")
    return unicodedata.normalize("NFC", text).encode("utf-8", "replace").decode()
