"""Named byte strings with a few facts about them as one byte string, and a reader of such strings piece by piece."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import numpy as np

Values = TypeVar("Values", bytes, np.ndarray)

_LENGTH = struct.Struct(">I")


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


class Reader(Generic[Values]):
    """Takes bytes, or values of an array, one batch after the other."""

    def __init__(self, values: Values) -> None:
        self._values, self._start = values, 0

    def take(self, count: int) -> Values:
        """The next ``count`` of them."""
        self._start += count
        return self._values[self._start - count : self._start]
