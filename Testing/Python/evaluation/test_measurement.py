"""The evaluation's figures are those that were recorded for the version of its measurement."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from evaluation_data import RECORDED, small_evaluation

HINT = (
    "An evaluation measures other figures than before. Where that is meant, raise MEASUREMENT in evaluation/cache.py, "
    "so that no table mixes the two, and record the new figures: python Testing/Python/evaluation_data.py"
)
# Other CPUs round otherwise, and a rounded voxel may then be 1 HU off. Choices are never near: they must be the same.
RELATIVE, ABSOLUTE = 1e-3, 1e-4


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(one, f"{name}/{key}")
    else:
        yield name, value


def differences(found: Any, recorded: Any) -> list[str]:
    """What differs by more than rounding, by path."""
    ours, theirs = dict(flat(found)), dict(flat(recorded))
    wrong = [f"{name}: only on one side" for name in ours.keys() ^ theirs.keys()]
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name], theirs[name]
        near = type(a) is type(b) is float and math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        if not near and (a != b or type(a) is not type(b)):
            wrong.append(f"{name}: {a} instead of {b}")
    return wrong


@pytest.mark.slow
def test_an_evaluation_measures_what_was_recorded(tmp_path, untrained_attackers):
    found = json.loads(json.dumps(small_evaluation(tmp_path, untrained_attackers)))
    assert len(found["measurements"]) == 4, "a network and a watermark alone, each with both actions"
    assert RECORDED.is_file(), HINT
    wrong = differences(found, json.loads(RECORDED.read_text(encoding="utf-8")))
    assert not wrong, f"{HINT}\n" + "\n".join(wrong[:20])


def test_a_figure_that_moves_is_seen():
    recorded = {"a": [{"rmse": 12.5, "succeeded": True, "reason": "x"}]}
    assert differences({"a": [{"rmse": 12.501, "succeeded": True, "reason": "x"}]}, recorded) == []
    assert len(differences({"a": [{"rmse": 12.52, "succeeded": True, "reason": "x"}]}, recorded)) == 1
    assert len(differences({"a": [{"rmse": 12.5, "succeeded": False, "reason": "x"}]}, recorded)) == 1
    assert len(differences({"a": [{"rmse": 12.5, "succeeded": True}]}, recorded)) == 1
