"""The benchmark of not knowing the place: places of a region, and what attacks come to at known ones and near them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from evaluation_data import small_scan
from judge_data import SQUARES, write_judge
from MITSGANLib.budget.budget import Budget
from MITSGANLib.judges.judge import load_judge
from MITSGANLib.judges.jury import Jury
from MITSGANLib.scan.lungs import lung_mask, lung_positions


@pytest.fixture(scope="module")
def benchmark(script) -> ModuleType:
    return script("places")


def test_a_region_is_of_different_places_around_its_middle(benchmark):
    scan = small_scan()
    lung = lung_mask(scan)
    middle = lung_positions(scan, 1, 0, margin_mm=28, mask=lung)[0]
    places = benchmark.region(scan, lung, middle, 12, 3)
    assert places[0] == middle
    assert len(set(places)) == 12
    away = np.abs(np.subtract(places, middle)) * np.array(scan.spacing_kji)
    assert away.max() <= benchmark.REACH_MM
    assert all(lung[kji] for kji in places)
    assert places == benchmark.region(scan, lung, middle, 12, 3)


@pytest.mark.slow
def test_each_row_counts_the_places_of_its_kind(benchmark, tmp_path, untrained_attackers):
    write_judge(tmp_path, "n")
    write_judge(tmp_path, "f", "forgery", "SquaresNetwork", SQUARES)
    jury = Jury(*(load_judge(name, tmp_path) for name in "nf"))
    scan = small_scan()
    lung = lung_mask(scan)
    middle = lung_positions(scan, 1, 0, margin_mm=28, mask=lung)[0]
    places = benchmark.region(scan, lung, middle, 4, 3)
    rows = {}
    benchmark.Bench(untrained_attackers["inject"], jury, Budget(8.0), 1).add(rows, scan, places[:2], places[2:])
    assert list(rows) == [benchmark.NONE, benchmark.NOISE, benchmark.KNOWN, benchmark.NEAR]
    assert all(len(row.moved) == len(row.succeeded) == 2 for row in rows.values())
    assert rows[benchmark.NONE].moved == [0, 0]
    assert min(*rows[benchmark.NOISE].moved, *rows[benchmark.KNOWN].moved) > 0
    assert rows[benchmark.KNOWN].moved != rows[benchmark.NOISE].moved
    assert all(" of 2" in row.cells()[1] or row.cells()[1] == "-" for row in rows.values())
