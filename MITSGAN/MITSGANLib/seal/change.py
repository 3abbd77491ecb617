"""A compact, exact description of how far 16-bit voxels lie from others: what protection changed.

The change of a voxel is coded given what both sides know already: its change in the slice before, and in which kind of
tissue the protected voxel lies. Of a scan with a watermark both sides also know each voxel's sign: changes are coded
times their sign, given whether the slice before has the same, which takes the default protection from 17 % of the scan
to 7 %. For each such context a table ranks the changes by how often they occur; a voxel is coded as its rank, mostly 0.
Ranks of contexts that are about equally sure are put together, so that each of a few streams is of one kind. bzip2
brings those near their entropy in which hardly anything but 0 occurs; of the others LZMA makes less, by 4 to 8 % of the
whole, since it looks at the rank before. All is integer arithmetic without rounding: the same on every machine.

Changes outside -63..63, which nobody would call imperceptible, are coded as an exception and stand in a stream
of their own, so any change at all is described exactly, if less compactly.
"""

from __future__ import annotations

import bz2
import functools
import json
import lzma
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from ..errors import InputError
from ..watermark.pattern import ScanSigns

# Limits in HU between classes of tissue, fine where the change that a budget allows depends on the HU (see ``budget``).
# These and the numbers below are part of the format: with others, earlier seals do not open.
TISSUE_LIMITS_HU = (-1000, -960, -950, -940, -930, -920, -500, -475, -450, -425, -400, -375, -350, -325, -300, 200)

_LARGEST = 63
_EXCEPTION = 2 * _LARGEST + 1
_SYMBOLS = _EXCEPTION + 1
_CONTEXTS = (len(TISSUE_LIMITS_HU) + 1) * _SYMBOLS  # twice as many where signs are known
_STREAMS = 16

_LENGTH = struct.Struct(">I")
_XZ_MARK = b"\xfd7zXZ"
# Four bits of the rank before and no positions as context; hardly a search for repetitions, which took three times as
# long for another 2 %. These are no part of the format.
_LZMA = {
    "id": lzma.FILTER_LZMA2,
    "dict_size": 1 << 20,
    "lc": 4,
    "pb": 0,
    "mf": lzma.MF_HC3,
    "nice_len": 64,
    "depth": 1,
}


class Slices(Sequence[np.ndarray]):
    """Slices made when they are asked for: only the last one is in memory.

    :param make: gives slice ``k`` of ``count``, (rows, columns).
    """

    def __init__(self, count: int, make: Callable[[int], np.ndarray]) -> None:
        self._count, self._make = count, functools.lru_cache(maxsize=1)(make)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> np.ndarray:
        if not 0 <= k < self._count:
            raise IndexError(k)
        return self._make(k)


def slice_signs(record: Mapping[str, Any] | None, hu: Sequence[np.ndarray]) -> Sequence[np.ndarray] | None:
    """The signs of each protected slice, int8 (rows, columns); None where a record holds none.

    What they derive from, the positions of the slices too, lies in the seal, encrypted: whoever can restore the
    original can also tell the signs of this one scan.

    :param record: of ``ScanSigns.to_dict``.
    :param hu: int16 HU of each slice, as it is protected.
    """
    signs = None if record is None else ScanSigns.from_dict(record)
    if signs is None or len(signs.depths) != len(hu):
        return None
    return Slices(len(hu), lambda k: signs.of_slice(k, hu[k]))


def encode_change(
    original: Sequence[np.ndarray],
    protected: Sequence[np.ndarray],
    hu: Sequence[np.ndarray],
    signs: Sequence[np.ndarray] | None = None,
) -> bytes:
    """Describe how to get ``original`` back from ``protected``. Each slice is asked for twice, in order.

    :param original: for each slice, int16 or uint16 (rows, columns).
    :param protected: of the same shape and type.
    :param hu: for each slice, the HU of the protected voxels (rows, columns), int16; any values do, good ones make the
        description short.
    :param signs: for each slice those of the watermark, int8 of the same shape: -1 or another number; None without one.
    """
    counts = np.zeros((_CONTEXTS * (1 if signs is None else 2), _SYMBOLS), np.int64)
    for context, symbols, _ in _contexts(original, protected, hu, signs):
        cells = context.astype(np.int64) * _SYMBOLS + symbols
        counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
    ranked = np.argsort(-counts, axis=1, kind="stable").astype(np.uint8)
    rank_of = np.argsort(ranked, axis=1, kind="stable").astype(np.uint8)
    stream_of = _sureness(counts)
    streams: list[list[np.ndarray]] = [[] for _ in range(_STREAMS)]
    exceptions = []
    for context, symbols, change in _contexts(original, protected, hu, signs):
        ranks = rank_of[context, symbols]
        for number, places in enumerate(_places(stream_of[context])):
            streams[number].append(ranks[places])
        exceptions.append(change[symbols == _EXCEPTION].astype("<i2"))
    parts = {str(number): stream for number, stream in enumerate(streams)}
    parts |= {"ranked": [ranked], "stream_of": [stream_of], "exceptions": exceptions}
    shape = (len(protected), *protected[0].shape)
    return pack({"shape": shape}, {name: _compressed(part) for name, part in parts.items()})


def decode_change(
    description: bytes,
    protected: Sequence[np.ndarray],
    hu: Sequence[np.ndarray],
    signs: Sequence[np.ndarray] | None = None,
) -> Iterator[np.ndarray]:
    """The slices of the original, of the shape and type of ``protected``, from :func:`encode_change`'s description.

    :raises InputError: the description is of voxels of another shape.
    """
    facts, parts = unpack(description)
    if tuple(facts["shape"]) != (len(protected), *protected[0].shape):
        raise InputError("The seal is of a scan of another size; give the scan that it belongs to.")
    data = {name: _expanded(part) for name, part in parts.items()}
    ranked = np.frombuffer(data["ranked"], np.uint8).reshape(-1, _SYMBOLS)
    stream_of = np.frombuffer(data["stream_of"], np.uint8)
    exceptions, *streams = (BytesIO(data[name]) for name in ("exceptions", *map(str, range(_STREAMS))))
    before, sign_before = np.zeros(protected[0].size, np.int16), None
    for k, plane in enumerate(protected):
        sign = _sign(signs, k)
        context = _context(hu[k], before, sign, sign_before)
        ranks = np.empty(plane.size, np.uint8)
        for stream, places in zip(streams, _places(stream_of[context]), strict=True):
            ranks[places] = np.frombuffer(stream.read(places.size), np.uint8)
        symbols = ranked[context, ranks]
        change = symbols.astype(np.int16) - np.int16(_LARGEST)
        is_exception = symbols == _EXCEPTION
        change[is_exception] = np.frombuffer(exceptions.read(2 * np.count_nonzero(is_exception)), "<i2")
        if sign is not None:
            change *= sign
        yield (plane.view(np.uint16) + change.view(np.uint16).reshape(plane.shape)).view(plane.dtype)
        before, sign_before = change, sign


def _contexts(
    original: Sequence[np.ndarray],
    protected: Sequence[np.ndarray],
    hu: Sequence[np.ndarray],
    signs: Sequence[np.ndarray] | None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Context, symbol and change of the voxels of each slice, one-dimensional; times their sign where it is known."""
    before, sign_before = np.zeros(protected[0].size, np.int16), None
    for k, plane in enumerate(protected):
        sign = _sign(signs, k)
        # Modulo 2^16, so that no difference overflows.
        change = (original[k].view(np.uint16) - plane.view(np.uint16)).view(np.int16).ravel()
        signed = change if sign is None else change * sign
        yield _context(hu[k], before, sign, sign_before), _symbols(signed), signed
        before, sign_before = change, sign


def _sign(signs: Sequence[np.ndarray] | None, k: int) -> np.ndarray | None:
    """1 or -1 for each voxel of a slice, int16; -32768 times either is itself, modulo 2^16."""
    return None if signs is None else np.where(signs[k].ravel() < 0, np.int16(-1), np.int16(1))


def _context(hu: np.ndarray, before: np.ndarray, sign: np.ndarray | None, sign_before: np.ndarray | None) -> np.ndarray:
    context = np.searchsorted(np.array(TISSUE_LIMITS_HU, np.int16), hu.ravel(), side="right")
    if sign is None:
        return context * _SYMBOLS + _symbols(before)
    is_same = np.zeros(sign.shape, bool) if sign_before is None else sign == sign_before
    return (2 * context + is_same) * _SYMBOLS + _symbols(before * sign)


def _symbols(change: np.ndarray) -> np.ndarray:
    is_usual = (change >= -_LARGEST) & (change <= _LARGEST)
    return np.where(is_usual, change + np.int16(_LARGEST), np.int16(_EXCEPTION)).astype(np.uint8)


def _sureness(counts: np.ndarray) -> np.ndarray:
    """The stream of each context, uint8: from its share of voxels without the most frequent change, in steps of 2^1.5.

    Decided here alone and stored, so its floating point need not be the same elsewhere.
    """
    missed = (counts.sum(axis=1) - counts.max(axis=1) + 0.5) / (counts.sum(axis=1) + 1)
    return np.clip(np.floor(-1.5 * np.log2(missed)), 0, _STREAMS - 1).astype(np.uint8)


def _places(stream: np.ndarray) -> list[np.ndarray]:
    """The places of each stream's voxels, in order."""
    order = np.argsort(stream, kind="stable")
    return np.split(order, np.cumsum(np.bincount(stream, minlength=_STREAMS))[:-1])


def _compressed(part: Sequence[np.ndarray]) -> bytes:
    """By bzip2 or LZMA, whichever is shorter; without a checksum, because the seal is authenticated."""
    packers = (bz2.BZ2Compressor(), lzma.LZMACompressor(lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=[_LZMA]))
    packed = (
        b"".join([*(packer.compress(np.ascontiguousarray(piece)) for piece in part), packer.flush()])
        for packer in packers
    )
    return min(packed, key=len)


def _expanded(part: bytes) -> bytes:
    return lzma.decompress(part) if part.startswith(_XZ_MARK) else bz2.decompress(part)


def pack(facts: Mapping[str, Any], parts: Mapping[str, bytes]) -> bytes:
    """``facts`` (JSON-ready) and ``parts``, to be taken apart by :func:`unpack`."""
    sizes = {name: len(part) for name, part in parts.items()}
    head = json.dumps({"facts": dict(facts), "sizes": sizes}, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([_LENGTH.pack(len(head)), head, *parts.values()])


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What :func:`pack` was given. Not for data that is not authenticated."""
    start = _LENGTH.size
    end = start + _LENGTH.unpack_from(data)[0]
    head = json.loads(data[start:end])
    parts = {}
    for name, size in head["sizes"].items():
        parts[name] = data[end : end + size]
        end += size
    return head["facts"], parts
