"""A whole DICOM file as bytes: where each element of its data set lies, and the file again with some of them replaced.

What nobody replaces is copied as it stands, whatever its VR, character set or length says, and even where it breaks the
standard: headers are foreign, and to decode and encode them again would damage those that are not what they claim.
Bytes behind the data set (files padded to blocks of a tape or a disk) are no part of it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset, FileDataset
    from pydicom.dataelem import RawDataElement
    from pydicom.dataset import FileMetaDataset

    Element = DataElement | RawDataElement

SOP_INSTANCE_UID, PIXEL_DATA = 0x00080018, 0x7FE00010
UNDEFINED_LENGTH = 0xFFFFFFFF
# Of what comes before it a data set holds nothing but a DICOMDIR's records (PS3.5 7.8 forbids the odd groups).
_FIRST_GROUP, _DIRECTORY_GROUP = 0x0008, 0x0004
# Of more than this no deflated file is inflated: Pixel Data have at most 4 GiB.
INFLATED_BYTES = 1 << 32
# What files are padded with, and what some programs of old systems put at their end.
_FILLERS = b"\x00\x20\xff\r\n\x1a"


@dataclass(frozen=True, eq=False)
class EncodedFile:
    """A DICOM file. Deflated data sets are held inflated.

    :param data: the bytes of the file.
    :param dataset: what they say, decoded by pydicom at first use of each element.
    :param spans: (tag, first byte, byte after the last) of each element of the data set, in the order of the file.
    """

    data: bytes
    dataset: FileDataset
    spans: tuple[tuple[int, int, int], ...]

    @classmethod
    def parse(cls, data: bytes) -> EncodedFile:
        """:raises Exception: the bytes are no DICOM or damaged; pydicom raises many types, none of them documented."""
        from pydicom import FileDataset
        from pydicom.charset import convert_encodings, default_encoding
        from pydicom.filereader import data_element_generator

        data, start, meta, preamble, is_little_endian = _data_set(data)
        is_implicit = not data[start + 4 : start + 6].isalpha() or not data[start + 4 : start + 6].isupper()
        decode_now(meta)
        _correct_syntax(meta, is_implicit, is_little_endian)
        stream = BytesIO(data)
        stream.seek(start)
        elements: dict[int, Element] = {}
        spans: list[tuple[int, int, int]] = []

        def is_behind(tag: int, vr: str | None, _length: int) -> bool:
            return _is_padding(tag, vr if not is_implicit else "", spans[-1][0] if spans else 0)

        for element in data_element_generator(stream, is_implicit, is_little_endian, is_behind):
            if element.is_raw and element.length not in (UNDEFINED_LENGTH, len(element.value or b"")):
                raise EOFError("the last element is cut off")
            # Where the tag of one element of the file meta information is damaged, the rest of it lands here.
            if element.tag.group < _FIRST_GROUP and element.tag.group != _DIRECTORY_GROUP:
                raise ValueError("the file meta information is damaged")
            end = stream.tell()
            spans.append((int(element.tag), start, end))
            elements[element.tag] = element
            start = end
        if len(data) - start < 8 and data[start:].strip(_FILLERS):
            raise EOFError("the last element is cut off")
        dataset = FileDataset(BytesIO(), elements, preamble, meta, is_implicit, is_little_endian)
        characters = dataset.get("SpecificCharacterSet")
        encodings = convert_encodings(characters) if characters else default_encoding
        dataset.set_original_encoding(is_implicit, is_little_endian, encodings)
        return cls(data, dataset, tuple(spans))

    def write(
        self, stream: BinaryIO, changes: Mapping[int, Element | None], meta: FileMetaDataset | None = None
    ) -> None:
        """Write the file with elements replaced, added, or (None) left out.

        Group Length (gggg,0000), which is retired, goes with the first change of its group. Elements come out in the
        order of their tags.

        :param meta: new file meta information, of an uncompressed transfer syntax in the encoding of the file; without
            it the file's own stays.
        """
        from pydicom.filewriter import write_file_meta_info
        from pydicom.uid import DeflatedExplicitVRLittleEndian

        meta = meta or self._own_meta()
        stream.write(self.dataset.preamble or bytes(128))
        stream.write(b"DICM")
        write_file_meta_info(stream, meta, enforce_standard=True)
        if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
            deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            stream.writelines(deflate.compress(piece) for piece in self._pieces(changes))
            rest = deflate.flush()
            stream.write(rest + bytes(len(rest) % 2))
            return
        stream.writelines(self._pieces(changes))

    def _own_meta(self) -> FileMetaDataset:
        meta = self.dataset.file_meta
        for name in ("SOPClassUID", "SOPInstanceUID"):
            if not meta.get(f"MediaStorage{name}"):
                setattr(meta, f"MediaStorage{name}", self.dataset[name].value)
        return meta

    def _pieces(self, changes: Mapping[int, Element | None]) -> Iterator[bytes | memoryview]:
        view, changed_groups = memoryview(self.data), {tag >> 16 for tag in changes}
        pieces = [
            (tag, view[start:end])
            for tag, start, end in self.spans
            if tag not in changes and (tag & 0xFFFF or tag >> 16 not in changed_groups)
        ]
        pieces += [(tag, element) for tag, element in changes.items() if element is not None]
        # In the order of their tags, which the standard asks for and damaged files lack: else what stands behind one
        # with too high a tag would land behind the pixels, where readers of headers do not look.
        for _, piece in sorted(pieces, key=lambda pair: pair[0]):
            if isinstance(piece, memoryview):
                yield piece
            else:
                yield from self._encoded(piece)

    def _encoded(self, element: Element) -> Iterator[bytes]:
        from pydicom.filebase import DicomBytesIO
        from pydicom.filewriter import write_data_element

        is_implicit, is_little_endian = self.dataset.original_encoding
        if element.tag == PIXEL_DATA:  # without the copies that pydicom makes
            order = "<" if is_little_endian else ">"
            yield struct.pack(f"{order}2H", element.tag.group, element.tag.element)
            yield b"" if is_implicit else element.VR.encode() + b"\0\0"
            yield struct.pack(f"{order}I", len(element.value))
            yield element.value
            return
        buffer = DicomBytesIO()
        buffer.is_implicit_VR, buffer.is_little_endian = is_implicit, is_little_endian
        write_data_element(buffer, element, self.dataset.original_character_set)
        yield buffer.getvalue()


def new_item(**values: Any) -> Dataset:
    """An item of a sequence, from its elements by keyword."""
    from pydicom import Dataset

    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def tags_of(keywords: Iterable[str | int]) -> list[int]:
    """The tags of elements, by their keywords."""
    from pydicom.tag import Tag

    return [Tag(keyword) for keyword in keywords]


def code_item(keyword: str) -> Dataset:
    """An item with a code of DICOM's own scheme (PS3.16), by its meaning, such as "ModifyingEquipment"."""
    from pydicom.sr.codedict import codes

    code = getattr(codes.DCM, keyword)
    return new_item(CodeValue=code.value, CodingSchemeDesignator=code.scheme_designator, CodeMeaning=code.meaning)


def new_uid() -> str:
    """A new UID from random numbers (PS3.5 B.2)."""
    from pydicom.uid import generate_uid

    return generate_uid(prefix=None)


def raw_value(element: Element | None) -> bytes:
    """The bytes of a text as its file has them, without padding; empty where there is none.

    :raises TypeError: the element was decoded before.
    """
    if element is None:
        return b""
    if not element.is_raw:
        raise TypeError(f"{element.tag} was decoded before its bytes were asked for")
    return (element.value or b"").rstrip(b" \0")


def raw_element(keyword: str, vr: str, value: bytes, encoding: tuple[bool, bool]) -> RawDataElement:
    """An element that is written as these bytes, whatever the character set.

    :param encoding: whether VRs are implicit, and whether numbers are little-endian.
    """
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    value += b" " * (len(value) % 2)
    return RawDataElement(Tag(keyword), vr, len(value), value, 0, *encoding)


def decode_now(dataset: Dataset, may_go: Collection[str] = ()) -> None:
    """Let pydicom decode all elements. It else does so at first use, where nobody is prepared for what it raises.

    :param may_go: keywords of elements that are taken away where they are damaged.
    :raises Exception: another element is damaged (as pydicom raises it).
    """
    tags = tags_of(may_go)
    for tag in list(dataset.keys()):
        try:
            dataset[tag]
        except Exception:
            if tag not in tags:
                raise
            del dataset[tag]


def native_syntax(is_implicit: bool, is_little_endian: bool) -> str:
    """The uncompressed transfer syntax of an encoding."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian


def _data_set(data: bytes) -> tuple[bytes, int, FileMetaDataset, bytes | None, bool]:
    """The bytes, inflated if need be, the start of the data set, its file meta, its preamble, and its byte order."""
    from pydicom.filereader import read_dataset, read_partial
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    def at_once(_tag: int, _vr: str | None, _length: int) -> bool:
        return True

    def after_meta(tag: int, _vr: str | None, _length: int) -> bool:
        return tag >> 16 != 2

    stream = BytesIO(data)
    stream.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=after_meta)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        start = stream.tell()
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = inflate.decompress(data[start:], INFLATED_BYTES)
        if not inflate.eof:
            raise EOFError("the deflated data set is cut off or too long")
        head = read_partial(BytesIO(data[:start]), at_once, force=True)
        return data[:start] + inflated, start, head.file_meta, head.preamble, True
    stream.seek(0)
    head = read_partial(stream, at_once, force=True)
    return data, stream.tell(), head.file_meta, head.preamble, head.original_encoding[1]


def _correct_syntax(meta: FileMetaDataset, is_implicit: bool, is_little_endian: bool) -> None:
    """Let the transfer syntax say how the data set is encoded, where it is missing or says otherwise."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = meta.get("TransferSyntaxUID")
    if not syntax or syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        meta.TransferSyntaxUID = native_syntax(is_implicit, is_little_endian)


def _is_padding(tag: int, vr: str | None, last: int) -> bool:
    """Whether what looks like the header of an element is none.

    :param vr: "" where VRs are implicit, None for none that is known.
    :param last: tag of the element before.
    """
    if tag >> 16 in (0, 0xFFFF) or tag == 0x20202020:
        return True
    if last < PIXEL_DATA:
        return False
    return tag <= last if vr == "" else vr is None or not (len(vr) == 2 and vr.isalpha() and vr.isupper())
