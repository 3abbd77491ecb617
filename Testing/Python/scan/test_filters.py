"""Filters that stand in for SciPy's and NumPy's give what those give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.scan.filters import box_means, enlarged
from scipy import ndimage

EDGES = st.integers(1, 9)


@pytest.mark.parametrize("beyond", ["reflect", "constant", "nearest"])
@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(EDGES, EDGES, EDGES), size=st.tuples(EDGES, EDGES, EDGES), seed=st.integers(0, 9))
def test_means_are_those_of_scipy_bit_for_bit(beyond, shape, size, seed):
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    assert np.array_equal(box_means(values, size, beyond), ndimage.uniform_filter(values, size, mode=beyond))
    assert np.array_equal(
        box_means(values[0], size[1:], beyond), ndimage.uniform_filter(values[0], size[1:], mode=beyond)
    )


@given(st.tuples(EDGES, EDGES, EDGES), st.integers(1, 5), st.data())
def test_blocks_are_enlarged_to_the_scan(blocks, edge, data):
    values = np.random.default_rng(0).integers(0, 9, blocks)
    shape = (blocks[0], *(edge * size - data.draw(st.integers(0, edge - 1)) for size in blocks[1:]))
    expected = values.repeat(edge, axis=1).repeat(edge, axis=2)[:, : shape[1], : shape[2]]
    assert np.array_equal(enlarged(values, edge, shape), expected)
