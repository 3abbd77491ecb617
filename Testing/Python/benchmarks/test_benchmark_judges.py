"""The benchmark of judges: every figure is there, and areas between two sets of places are areas."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from evaluation_data import small_scan
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_data import SQUARES, write_judge
from MITSGANLib.judges.judge import load_judge
from MITSGANTrainingLib.training.judge import area_under_curve

scores = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def benchmark(script) -> ModuleType:
    return script("judges")


@settings(deadline=None, max_examples=30)
@given(yes=scores, no=scores, data=st.data())
def test_a_place_that_counts_twice_is_as_two_places(benchmark, yes, no, data):
    count = len(yes) + len(no)
    times = np.array(data.draw(st.lists(st.integers(1, 3), min_size=count, max_size=count)))
    expected = area_under_curve(np.repeat(yes, times[: len(yes)]), np.repeat(no, times[len(yes) :]))
    assert benchmark.area_between(yes, no).of(times[None].astype(float))[0] == pytest.approx(expected)


@pytest.mark.slow
def test_every_figure_of_both_kinds_of_judges(benchmark, tmp_path, untrained_attackers):
    write_judge(tmp_path, "n")
    write_judge(tmp_path, "f", "forgery", "SquaresNetwork", SQUARES)
    judges = [load_judge(name, tmp_path) for name in "nf"]
    found = benchmark.judge_scan(small_scan(), judges, list(untrained_attackers.values()), 4)
    for judge, scan in zip(judges, found, strict=True):
        rows = list(benchmark.lines(judge, [scan]))
        words = " ".join(rows)
        wanted = {
            "nodule": ("planted against lung", "planted against structure"),
            "forgery": ("injected by untrained against lung", "removed by untrained against planted"),
        }[judge.question]
        for kind in (*wanted, "says yes: removed by untrained", "flipped, noise", "flipped, protected"):
            assert kind in words
        assert all(row.count("|") == 5 for row in rows)
