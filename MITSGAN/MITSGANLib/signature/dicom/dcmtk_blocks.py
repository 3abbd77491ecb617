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
    """The references of one item of the evidence sequence, by index.

    The first ``longer`` of them have a longer MAC, which fills the block.
    """

    references: list[int] = field(default_factory=list)
    longer: int = 0


def size_of(dataset: Dataset, tags: Sequence[int] | None = None) -> int:
    """How many bytes of a data set a signature covers."""
    return sum(map(len, byte_stream(dataset, sorted(dataset.keys()) if tags is None else tags)))


@dataclass(frozen=True)
class ReferenceSizes:
    """Sizes in bytes of what is to be laid out.

    :param references: of each reference with the tag of its item.
    :param series: number of each reference's series; those of one series stand together.
    :param series_uids: of the UID of each series.
    :param study_uid: of the UID of the study.
    :param longer: how much the longer MAC adds to a reference.
    """

    references: Sequence[int]
    series: Sequence[int]
    series_uids: Sequence[int]
    study_uid: int
    longer: int


# Of a content item: the sizes of what its sequence holds, of the values that follow, and of the value to add.
ContentItem = tuple[int, Sequence[int], int]


def lay_out(
    evidence: ReferenceSizes, content: Sequence[ContentItem], used: int, between: Callable[[Buffer], None]
) -> tuple[list[Chunk], set[int]]:
    """Spread references over items of the evidence sequence, and choose the content items that get another element.

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
    held = 0  # in the sequence of the last item

    def close(longer: int) -> None:
        chunks[-1].longer = min(max(0, longer), len(chunks[-1].references))
        buffer.inner(held + evidence.longer * chunks[-1].longer)
        buffer.leaf(evidence.study_uid)

    for k, (size, series) in enumerate(zip(evidence.references, evidence.series, strict=True)):
        begins_series = around + evidence.series_uids[series]
        more = size + begins_series * (k == 0 or evidence.series[k - 1] != series)
        if k == 0 or not buffer.holds(held + more):
            if k:
                close(-(-(BLOCK - buffer.used - held - reach) // evidence.longer))
            buffer.tag()
            buffer.begin()
            chunks.append(Chunk())
            held, more = 0, size + begins_series
        chunks[-1].references.append(k)
        held += more
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
