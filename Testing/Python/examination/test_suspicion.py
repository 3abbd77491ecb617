"""What several witnesses say together, and what the sharpest filter shows of signs and foreign noise."""

from __future__ import annotations

import forgeries
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from MITSGANLib.examination.blocks import Blocks
from MITSGANLib.examination.suspicion import (
    COARSE_NOISE,
    FOREIGN,
    NOISE,
    WATERMARK,
    Suspicion,
    asked_limit,
    of_foreign_noise,
    of_watermark,
    strength,
    together,
)
from MITSGANLib.examination.whitened import whiten
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.embedding import Watermark

KINDS = (WATERMARK, NOISE, COARSE_NOISE, FOREIGN)


def scores_at(volume: CTVolume, kji: tuple[int, int, int]) -> dict[str, float]:
    """Scores of each kind of evidence at a place."""
    blocks = Blocks.of(volume)
    whitened = whiten(blocks, Watermark())
    found = [look(blocks, whitened) for look in (of_foreign_noise, of_watermark)]
    return {one.kind: float(one.score[blocks.block_of(kji)]) for one in found}


def test_two_witnesses_that_nearly_suffice_suffice_together():
    assert strength({WATERMARK: 0.8, FOREIGN: 0.7}) >= 1
    assert strength({WATERMARK: 0.5, NOISE: 0.5, FOREIGN: 0.5}) < 0.9


def test_one_witness_in_two_ways_counts_once():
    assert strength({NOISE: 0.8, COARSE_NOISE: 0.8}) == pytest.approx(0.8)


def test_other_evidence_counts_by_itself():
    assert strength({WATERMARK: 0.5, "copied tissue": 2.0}) == 2.0
    assert strength({}) == 0.0


@given(st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4))
def test_maps_say_of_each_block_what_is_said_of_a_place(values):
    told = np.ones((1, 1, 1), bool)
    maps = [
        Suspicion(kind, np.full((1, 1, 1), value, np.float32), told) for kind, value in zip(KINDS, values, strict=True)
    ]
    assert together(maps)[0, 0, 0] == pytest.approx(strength(dict(zip(KINDS, values, strict=True))), abs=1e-4)


@given(st.integers(0, 2**32 - 1))
def test_few_places_of_a_scan_are_an_alarm(seed):
    near = np.abs(np.random.default_rng(seed).normal(0, 0.25, (4, 40, 40)))
    lungs = np.ones(near.shape, bool)
    limit = asked_limit(near, lungs)
    assert np.mean(near >= limit) < 0.03
    near[:, :8, :8] = 2.0  # what was forged in one place hides nothing in another
    assert asked_limit(near, lungs) < 1.1 * limit


@pytest.mark.slow
def test_the_watermark_is_there_where_it_was_put_and_missing_where_it_was_painted_over(scan, marked, place):
    blocks = Blocks.of(marked)
    assert whiten(blocks, Watermark()).gain > 0.7
    assert whiten(Blocks.of(scan), Watermark()).gain == 0
    rng = np.random.default_rng(0)
    forged = forgeries.forge(marked, [place], lambda v, k: forgeries.paint(v, k, 0, rng))
    assert scores_at(forged, place)[WATERMARK] > 0.5
    assert scores_at(marked, place)[WATERMARK] < 0.2


@pytest.mark.slow
def test_white_noise_as_strong_as_the_scans_own_is_foreign(scan, place):
    rng = np.random.default_rng(0)
    forged = forgeries.forge(scan, [place], lambda v, k: forgeries.paint(v, k, 20, rng))
    before = scores_at(scan, place)
    assert before[FOREIGN] < 0.2
    assert scores_at(forged, place)[FOREIGN] > 0.5


def test_without_lungs_there_is_nothing_to_learn_from(scan):
    water = scan.with_hu(np.zeros(scan.shape, np.int16))
    assert whiten(Blocks.of(water), Watermark()) is None
