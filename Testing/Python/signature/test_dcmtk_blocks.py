"""References lie in blocks as DCMTK needs them, whatever their sizes: an account of its buffer, byte by byte."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from MITSGANLib.signature.dicom.dcmtk_blocks import BLOCK, Buffer, Chunk, ReferenceSizes, lay_out, size_of
from pydicom import Dataset

LONGER = 32
BETWEEN = 60
even_sizes = st.integers(5, 32).map(lambda half: 2 * half)


class Stream:
    """What DCMTK writes, one thing after the other; ``torn`` says whether it ran full within a nested sequence."""

    def __init__(self, used: int) -> None:
        self.used, self.torn, self.depth = used, False, 0

    def write(self, needed: int, size: int) -> None:
        if BLOCK - self.used < needed:
            self.full()
        self.used += size

    def element(self, size: int) -> None:
        self.write(8, 8)
        while self.used + size > BLOCK:
            size -= BLOCK - self.used
            self.full()
        self.used += size

    def full(self) -> None:
        self.used = 0
        self.torn |= self.depth > 0


def write_chunk(stream: Stream, chunk: Chunk, evidence: ReferenceSizes) -> None:
    longer = chunk.references[: chunk.longer]
    stream.write(4, 4)
    stream.write(12, 8)
    stream.depth += 1
    for number, references in groupby(chunk.references, key=lambda k: evidence.series[k]):
        stream.write(4, 4)
        stream.write(12, 8)
        for k in references:
            stream.write(4, 4)
            stream.element(evidence.references[k] - 12 + LONGER * (k in longer))
        stream.write(4, 4)
        stream.element(evidence.series_uids[number])
    stream.depth -= 1
    stream.write(4, 4)
    stream.element(evidence.study_uid)


@pytest.mark.slow
@given(
    counts=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    sizes=st.lists(st.integers(120, 300).map(lambda half: 2 * half), min_size=1, max_size=5),
    uids=even_sizes,
    observation=st.integers(20, 22).map(lambda half: 2 * half),
    used=st.integers(0, 4096),  # the header of a document has hardly more
)
def test_no_nested_sequence_lies_in_two_blocks(counts, sizes, uids, observation, used):
    total = sum(counts)
    one_by_one = [sizes[k % len(sizes)] for k in range(total)]
    series = [number for number, count in enumerate(counts) for _ in range(count)]
    evidence = ReferenceSizes(one_by_one, series, [uids] * len(counts), uids, LONGER)
    content = [(46 + uids, (8, 6), observation)] * total
    chunks, chosen = lay_out(evidence, content, used, lambda buffer: buffer.leaf(BETWEEN))
    stream = Stream(used)
    stream.write(12, 8)
    for chunk in chunks:
        write_chunk(stream, chunk, evidence)
    stream.write(4, 4)
    stream.element(BETWEEN)
    for k, (size, values, more) in enumerate(content):
        stream.write(4, 4)
        stream.write(12, 8)
        stream.depth += 1
        stream.element(size - 8)
        stream.depth -= 1
        stream.write(4, 4)
        for value in (*values, *([more] if k in chosen else [])):
            stream.element(value)
    assert not stream.torn
    assert [k for chunk in chunks for k in chunk.references] == list(range(total))
    assert len(chosen) <= 4 * (1 + sum(size + 58 + uids for size, *_ in content) // BLOCK)


def test_what_fits_stays_in_one_item():
    evidence = ReferenceSizes([500] * 10 + [600] * 5, [0] * 10 + [1] * 5, [50, 50], 50, LONGER)
    chunks, chosen = lay_out(evidence, [], 1000, lambda _buffer: None)
    assert chunks == [Chunk(list(range(15)))]
    assert not chosen


def test_a_buffer_passes_what_a_signature_covers():
    dataset, inner = Dataset(), Dataset()
    inner.CodeValue, inner.CodingSchemeDesignator = "113035", "DCM"
    dataset.PatientID, dataset.ConceptNameCodeSequence, dataset.TextValue = "42", [inner], "long"
    buffer = Buffer()
    buffer.elements(dataset, list(dataset.keys()))
    assert buffer.used == size_of(dataset)
