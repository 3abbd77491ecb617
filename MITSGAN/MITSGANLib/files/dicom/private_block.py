"""The private block of MITSGAN: named entries of bytes within a DICOM object (PS3.5 7.8).

The block is reserved by Private Creator ``MITSGAN`` in group 7FE1. That group comes after Pixel Data (7FE0,0010), so
whoever reads headers alone never reads entries, however long. Values have VR OB, are of even length and defined length,
and hold no sequences: a receiver that knows nothing of them keeps them byte for byte in every transfer syntax, as OB or
as UN.

===================  ================  =========================================
element              name              value
===================  ================  =========================================
(7FE1,xx00 .. xx3F)  ``seal``          what restores the original, encrypted
(7FE1,xx40 .. xx7F)  ``manifest``      signed digests of the image
===================  ================  =========================================

xx is the block that the creator has in this object, mostly 10. An entry is 8 bytes with its length (big-endian) and the
bytes themselves, cut into elements of at most :data:`PART_BYTES`, which begin at the entry's first element.

An entry for a whole series of files is cut into one share a file by :func:`cut_shares`.

De-identification by PS3.15 takes private elements away, and with them all entries.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import InputError, OutputError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataset import PrivateBlock

    from .encoded import Element

CREATOR = "MITSGAN"
GROUP = 0x7FE1
FIRST_ELEMENT = {"seal": 0x00, "manifest": 0x40}
PARTS = 0x40
PART_BYTES = 1 << 22

_DAMAGED_SHARES = "Private data of MITSGAN in the DICOM files are damaged; get the series again from its source."
_LENGTH = struct.Struct(">Q")
_SHARE = struct.Struct(">II32s")  # index, number of shares, SHA-256 of the whole


def set_entry(dataset: Dataset, name: str, data: bytes) -> None:
    """Put an entry into a data set, in place of an earlier one of its name.

    :param name: one of :data:`FIRST_ELEMENT`.
    :raises OutputError: there are more bytes than the elements of an entry can hold (256 MiB).
    """
    value = _LENGTH.pack(len(data)) + data
    if len(value) > PARTS * PART_BYTES:
        raise OutputError(f"{len(data)} bytes are too many for one DICOM file; write the scan as .nrrd instead.")
    value += bytes(len(value) % 2)
    remove_entry(dataset, name)
    block = dataset.private_block(GROUP, CREATOR, create=True)
    for number, start in enumerate(range(0, len(value), PART_BYTES)):
        block.add_new(FIRST_ELEMENT[name] + number, "OB", value[start : start + PART_BYTES])


def entry_changes(dataset: Dataset, name: str, data: bytes) -> dict[int, Element | None]:
    """The elements that :func:`set_entry` changes in a data set; None for those that go."""
    before = {tag: dataset.get_item(tag) for tag in block_tags(dataset)}
    set_entry(dataset, name, data)
    after = {tag: dataset.get_item(tag) for tag in block_tags(dataset)}
    return {tag: after.get(tag) for tag in before | after if after.get(tag) is not before.get(tag)}


def get_entry(dataset: Dataset, name: str) -> bytes | None:
    """The bytes of an entry, or None where the data set has none of this name.

    :param name: one of :data:`FIRST_ELEMENT`.
    :raises InputError: parts of the entry are missing, or it is no bytes.
    """
    block = _block(dataset)
    offsets = _offsets(block, name)
    if not offsets:
        return None
    values = [block[offset].value for offset in offsets]
    if offsets == list(range(FIRST_ELEMENT[name], offsets[-1] + 1)) and all(isinstance(v, bytes) for v in values):
        value = b"".join(values)
        end = _LENGTH.size + int.from_bytes(value[: _LENGTH.size])
        if end <= len(value) <= end + 1:  # even length adds at most one byte
            return value[_LENGTH.size : end]
    raise InputError(f"The private entry '{name}' of a DICOM file is damaged; get the file again from its source.")


def remove_entry(dataset: Dataset, name: str) -> None:
    """Take an entry away, if it is there, and the block with the last one."""
    block = _block(dataset)
    if block is None:
        return
    for offset in _offsets(block, name):
        del block[offset]
    if not any(offset in block for offset in range(0x100)):
        del dataset[GROUP, block.block_start >> 8]


def remove_entries(dataset: Dataset) -> None:
    """Take all entries away, as from an object whose pixels become others."""
    for name in FIRST_ELEMENT:
        remove_entry(dataset, name)


def block_tags(dataset: Dataset) -> set[int]:
    """The tags of the group that holds the block, whoever's they are."""
    return {tag for tag in dataset.keys() if tag >> 16 == GROUP}  # noqa: SIM118 - iterating decodes elements


def cut_shares(data: bytes, count: int) -> list[bytes]:
    """``data`` in ``count`` shares of about the same size, one for each file of a series in its order.

    Each share knows its place and the SHA-256 of the whole.
    """
    size = -(-len(data) // count)
    digest = hashlib.sha256(data).digest()
    return [_SHARE.pack(index, count, digest) + data[index * size : (index + 1) * size] for index in range(count)]


def join_shares(shares: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """The whole of its shares, given in any order, and the place of each given share in the order of the series.

    :raises InputError: shares are missing, double, damaged, or of several wholes.
    """
    if not all(len(share) >= _SHARE.size for share in shares):
        raise InputError(_DAMAGED_SHARES)
    heads = [_SHARE.unpack_from(share) for share in shares]
    if not shares or len({head[1:] for head in heads}) != 1:
        raise InputError("The DICOM files are of several protected series; give those of one alone.")
    places, (count, digest) = [head[0] for head in heads], heads[0][1:]
    if len(set(places)) != len(places):
        raise InputError("Some DICOM files of the series are there twice; take the copies away.")
    # The count comes from the files: no list of that many before it is known to be true.
    if len(places) != count or max(places) >= count:
        raise InputError(
            f"{len(shares)} of the {count} DICOM files of the protected series are there; get all of them from their "
            "source."
        )
    data = b"".join(share[_SHARE.size :] for _, share in sorted(zip(places, shares, strict=True)))
    if hashlib.sha256(data).digest() != digest:
        raise InputError(_DAMAGED_SHARES)
    return data, places


def _block(dataset: Dataset) -> PrivateBlock | None:
    try:
        return dataset.private_block(GROUP, CREATOR)
    except KeyError:
        return None


def _offsets(block: PrivateBlock | None, name: str) -> list[int]:
    first = FIRST_ELEMENT[name]
    return [] if block is None else [offset for offset in range(first, first + PARTS) if offset in block]
