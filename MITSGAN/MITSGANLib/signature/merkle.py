"""Hash trees as in RFC 6962 (section 2.1): one SHA-256 for a list of records, and short proofs that one is in it.

So every DICOM file of a series can carry the proof for its own slice instead of the digests of all the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

DIGEST_BYTES = 32
_LEAF, _NODE = b"\x00", b"\x01"


def merkle_root(records: Sequence[bytes]) -> bytes:
    """The root of the tree over one or more records in their order."""
    return _levels(records)[-1][0]


def merkle_paths(records: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """For each record the siblings on the way from its leaf to the root, leaf first (RFC 6962 2.1.1)."""
    levels = _levels(records)
    paths = []
    for index in range(len(records)):
        places = [(level, (index >> depth) ^ 1) for depth, level in enumerate(levels[:-1])]
        paths.append(tuple(level[place] for level, place in places if place < len(level)))
    return paths


def root_from_path(record: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """The root of a tree of ``count`` records in which ``record`` has place ``index``; None if the path is unfit."""
    if not 0 <= index < count:
        return None
    node, siblings = _hash(_LEAF, record), list(path)
    while count > 1:
        # The last node of an odd level has no sibling and moves up as it is.
        if index ^ 1 < count:
            if not siblings:
                return None
            sibling = siblings.pop(0)
            node = _hash(_NODE, sibling, node) if index & 1 else _hash(_NODE, node, sibling)
        index, count = index >> 1, (count + 1) >> 1
    return None if siblings else node


def _levels(records: Sequence[bytes]) -> list[list[bytes]]:
    """All levels of the tree from the leaves to the root."""
    levels = [[_hash(_LEAF, record) for record in records]]
    while len(below := levels[-1]) > 1:
        pairs = [below[place : place + 2] for place in range(0, len(below), 2)]
        levels.append([_hash(_NODE, *pair) if len(pair) == 2 else pair[0] for pair in pairs])
    return levels


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()
