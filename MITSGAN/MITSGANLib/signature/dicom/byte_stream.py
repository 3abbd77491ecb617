"""The bytes of DICOM elements that a digital signature covers (PS3.3 C.12.1.1.3.1.1).

Explicit VR Little Endian, each element as it stands in a file, but sequences and their items, and the fragments of
compressed pixels, without their lengths, since these may be written in several ways.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ...errors import InputError
from ...files.dicom.encoded import PIXEL_DATA

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataelem import DataElement, RawDataElement

_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_WORD_SIZES = {
    **dict.fromkeys(("US", "SS", "OW", "AT"), 2),
    **dict.fromkeys(("UL", "SL", "FL", "OL", "OF"), 4),
    **dict.fromkeys(("FD", "OD", "SV", "UV", "OV"), 8),
}
_TEXT_VRS = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UR", "UT")
_PADDING = {**dict.fromkeys(_TEXT_VRS, b" "), "UI": b"\x00"}


class ByteStreamError(InputError):
    """Elements cannot be encoded for a signature: of unknown VR, or no longer in the encoding that was signed."""


def byte_stream(dataset: Dataset, tags: Iterable[int], encapsulated: bool = False) -> Iterator[bytes]:
    """The bytes of listed elements, in their order in the data set, as a signature covers them.

    :param encapsulated: whether Pixel Data of this data set are compressed.
    :raises ByteStreamError: an element has an unknown VR.
    """
    for tag in sorted(tags):
        if tag in dataset:
            yield from _element_bytes(dataset, tag, encapsulated and tag == PIXEL_DATA)


def is_signable(dataset: Dataset, tag: int) -> bool:
    """Whether a signature may cover an element: its VR, and those of all elements within it, are known."""
    try:
        for _ in byte_stream(dataset, [tag], dataset.file_meta.TransferSyntaxUID.is_encapsulated):
            pass
    except ByteStreamError:
        return False
    return True


def mac_syntax(dataset: Dataset) -> str:
    """The transfer syntax whose bytes are signed: that of compressed pixels, or Explicit VR Little Endian."""
    from pydicom.uid import ExplicitVRLittleEndian

    syntax = dataset.file_meta.TransferSyntaxUID
    return syntax if syntax.is_encapsulated else ExplicitVRLittleEndian


def require_same_encoding(dataset: Dataset, signed: str) -> None:
    """Refuse a data set that was compressed or decompressed since.

    :param signed: the transfer syntax that was signed.
    :raises ByteStreamError: its pixels are in another encoding now.
    """
    actual = dataset.file_meta.TransferSyntaxUID
    if signed.is_encapsulated != actual.is_encapsulated or (signed.is_encapsulated and signed != actual):
        raise ByteStreamError(
            f"It was made over the encoding {signed.name}, and the image is now in {actual.name}: it cannot be checked."
        )


def _element_bytes(dataset: Dataset, tag: int, encapsulated: bool) -> Iterator[bytes]:
    from pydicom.encaps import generate_fragments
    from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

    vr = _vr(dataset, tag)
    if vr == "UN":
        raise ByteStreamError("A signed element has an unknown value representation, which no signature may cover.")
    start = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr == "SQ":
        yield start + b"\x00\x00"
        for item in dataset[tag].value:
            yield _ITEM
            signable = [inner for inner in item.keys() if inner & 0xFFFF]  # noqa: SIM118
            yield from byte_stream(item, signable)
        yield _SEQUENCE_END
    elif encapsulated:
        yield start + b"\x00\x00"
        for fragment in generate_fragments(dataset[tag].value):
            yield _ITEM
            yield fragment
        yield _SEQUENCE_END
    else:
        element = dataset.get_item(tag)
        value = _stored(element, vr) if element.is_raw else _encoded(element, vr, dataset)
        is_long = vr in EXPLICIT_VR_LENGTH_32
        yield start + (struct.pack("<HI", 0, len(value)) if is_long else struct.pack("<H", len(value)))
        yield value


def _vr(dataset: Dataset, tag: int) -> str:
    """The VR of an element in explicit encoding; UN where it is unknown."""
    from pydicom.datadict import dictionary_VR

    element = dataset.get_item(tag)
    vr = element.VR
    if vr is None:
        try:
            vr = dictionary_VR(tag)
        except KeyError:
            return "UN"
    if " or " not in vr:
        return vr
    if vr == "US or SS":
        return "SS" if dataset.get("PixelRepresentation") == 1 else "US"
    return "OW"


def _stored(element: RawDataElement, vr: str) -> bytes:
    """The value of an element as its file has it, in little-endian bytes of even number."""
    value = element.value or b""
    if vr in _PADDING:
        # Padding is no part of a value (PS3.5 6.2), and writers differ in how much they leave.
        value = value.rstrip(b"\x00" + _PADDING[vr])
        return value + _PADDING[vr] * (len(value) % 2)
    if not element.is_little_endian and vr in _WORD_SIZES:
        import numpy as np

        value = np.frombuffer(value, f"V{_WORD_SIZES[vr]}").view(f">u{_WORD_SIZES[vr]}")
        value = value.astype(value.dtype.newbyteorder("<")).tobytes()
    return even(value)


def _encoded(element: DataElement, vr: str, dataset: Dataset) -> bytes:
    """The value of a decoded or set element, as it will be written."""
    from pydicom.charset import convert_encodings
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_data_element
    from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_data_element(buffer, element, convert_encodings(dataset.get("SpecificCharacterSet") or "ISO_IR 6"))
    return buffer.getvalue()[12 if vr in EXPLICIT_VR_LENGTH_32 else 8 :]


def even(data: bytes) -> bytes:
    """Bytes of even number, as every value has (PS3.5 7.1.1)."""
    return data + bytes(len(data) % 2)
