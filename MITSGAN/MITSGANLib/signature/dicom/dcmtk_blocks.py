"""References laid out such that DCMTK checks a signature over any number of them.

DCMTK (``dcmsign``) feeds a digest through a buffer of 16 KiB. Each time that is full, it asks the sequences that are
open again whether they may be signed. The question walks their items, and the cursor that it leaves at the end is the
one that encoding goes on from. So what is left of a sequence *within an item of a top-level sequence* is dropped. Read
in ``DcmItem::writeSignatureFormat`` and ``DcmSequenceOfItems::containsUnknownVR`` of DCMTK 3.6.7 and 3.7.0. Nothing is
lost where the buffer is full between such sequences.

So each of them is kept within one block: references are spread over several items of the evidence sequence, and where
a gap is left that holds no further reference, it is filled: by MACs of SHA-512 in place of SHA-256, or by Observation
UIDs of content items, all as the standard has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .byte_stream import byte_stream

if TYPE_CHECKING:
    from pydicom import Dataset

BLOCK = 16384
# Bytes in the stream: a tag with its length; that of a sequence, which DCMTK writes only where 12 are free; the tag of
# an item, or of the end of a sequence.
_HEAD, _SEQUENCE_HEAD, _SEQUENCE_NEED, _TAG = 8, 8, 12, 4
ITEM_BYTES, SEQUENCE_BYTES = _TAG, _SEQUENCE_HEAD + _TAG
_SPARE = _SEQUENCE_NEED - _SEQUENCE_HEAD
_MOST_EXTRA = 8


@dataclass
class Buffer:
    """How much of DCMTK's buffer is used at a place of the stream."""

    used: int = 0

    def leaf(self, value: int, head: int = _HEAD) -> None:
        """Pass an element that is no sequence, of ``value`` bytes; its value may lie in two blocks."""
        self._tag(head, head)
        self.used += value
        while self.used > BLOCK:
            self.used -= BLOCK

    def tag(self) -> None:
        """Pass the tag of an item, or of the end of a sequence."""
        self._tag(_TAG, _TAG)

    def begin(self) -> None:
        """Pass the tag of a sequence."""
        self._tag(_SEQUENCE_NEED, _SEQUENCE_HEAD)

    def holds(self, size: int) -> bool:
        """Whether ``size`` bytes of a sequence, after its tag, lie in one block."""
        return self.used + size + _SPARE <= BLOCK

    def inner(self, size: int) -> None:
        """Pass what is in a sequence that the block holds, and its end."""
        self.used += size
        self.tag()

    def elements(self, dataset: Dataset, tags: Sequence[int]) -> None:
        """Pass elements of a data set whose sequences hold no sequences."""
        from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

        for tag in sorted(tags):
            element = dataset[tag]
            if element.VR != "SQ":
                head = _HEAD + 4 * (element.VR in EXPLICIT_VR_LENGTH_32)
                self.leaf(size_of(dataset, [tag]) - head, head)
                continue
            self.begin()
            for item in element.value:
                self.tag()
                self.elements(item, list(item.keys()))
            self.tag()

    def _tag(self, needed: int, written: int) -> None:
        if BLOCK - self.used < needed:
            self.used = 0
        self.used += written


@dataclass
class Chunk:
    """The references of one item of the evidence sequence: indices into the references, series by series.

    ``longer`` are those whose MAC is longer, which fills the block.
    """

    series: list[list[int]] = field(default_factory=list)
    longer: set[int] = field(default_factory=set)


def size_of(dataset: Dataset, tags: Sequence[int] | None = None) -> int:
    """How many bytes of a data set a signature covers."""
    return sum(map(len, byte_stream(dataset, sorted(dataset.keys()) if tags is None else tags)))


@dataclass(frozen=True)
class ReferenceSizes:
    """Sizes in bytes of what is to be laid out: of each reference with the tag of its item, series by series; of the
    UIDs of each series and of the study; and by how much the longer MAC makes a reference longer.
    """

    references: Sequence[Sequence[int]]
    series_uids: Sequence[int]
    study_uid: int
    longer: int


# Of a content item: the sizes of what its sequence holds, of the values that follow, and of the value to add.
ContentItem = tuple[int, Sequence[int], int]


def lay_out(
    evidence: ReferenceSizes, content: Sequence[ContentItem], used: int, between: Callable[[Buffer], None]
) -> tuple[list[Chunk], set[int]]:
    """Spread references over items of the evidence sequence, and choose the content items that get one more element.

    Where references are so large, and so few in a block, that they cannot fill it, DCMTK finds no way through.

    :param used: of the buffer at the evidence sequence.
    :param between: passes what lies between that sequence and the first content item.
    """
    for extra in range(_MOST_EXTRA):
        buffer = Buffer(used)
        buffer.begin()
        chunks = _evidence_chunks(evidence, buffer, extra)
        buffer.tag()
        between(buffer)
        chosen = _items_to_lengthen(content, buffer.used)
        if _first_torn(content, buffer.used, chosen) is None:
            break
    return chunks, chosen


def _evidence_chunks(evidence: ReferenceSizes, buffer: Buffer, extra: int) -> list[Chunk]:
    """:param extra: how many of the last references get a longer MAC, which moves all that follows."""
    # An item, and a sequence with its end, around the references of a series.
    around = _TAG + _SEQUENCE_HEAD + _TAG + _HEAD
    # Within these the boundary has to come: the end, the UID of the study, and the tags of the next item.
    reach = _TAG + _HEAD + evidence.study_uid + _TAG + _SEQUENCE_NEED - 1
    chunks: list[Chunk] = []
    sizes: list[int] = []

    def begin() -> None:
        buffer.tag()
        buffer.begin()
        chunks.append(Chunk())
        sizes.clear()

    def close(longer: int) -> None:
        known = [k for part in chunks[-1].series for k in part]
        chunks[-1].longer = set(known[: max(0, longer)])
        buffer.inner(sum(sizes) + evidence.longer * len(chunks[-1].longer))
        buffer.leaf(evidence.study_uid)

    begin()
    index = 0
    for references, uid in zip(evidence.references, evidence.series_uids, strict=True):
        is_open = False
        for size in references:
            more = size if is_open else size + around + uid
            if sizes and not buffer.holds(sum(sizes) + more):
                close(-(-(BLOCK - buffer.used - sum(sizes) - reach) // evidence.longer))
                begin()
                is_open, more = False, size + around + uid
            if not is_open:
                chunks[-1].series.append([])
                is_open = True
            chunks[-1].series[-1].append(index)
            sizes.append(more)
            index += 1
    close(extra)
    return chunks


def _items_to_lengthen(items: Sequence[ContentItem], used: int) -> set[int]:
    chosen: set[int] = set()
    while (torn := _first_torn(items, used, chosen)) is not None:
        free = [k for k in range(torn) if k not in chosen]
        if not free:
            break
        chosen.add(free[-1])
    return chosen


def _first_torn(items: Sequence[ContentItem], used: int, chosen: set[int]) -> int | None:
    """The first item whose sequence lies in two blocks."""
    buffer = Buffer(used)
    for k, (size, values, more) in enumerate(items):
        buffer.tag()
        buffer.begin()
        if not buffer.holds(size):
            return k
        buffer.inner(size)
        for value in (*values, *([more] if k in chosen else [])):
            buffer.leaf(value)
    return None
