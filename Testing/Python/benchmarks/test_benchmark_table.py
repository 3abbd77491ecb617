"""The table of the default protection: shares by scan, attacker and action, goals, limits, and what was missed."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def table(script):
    return script("protection_table")


def place(unprotected: bool, protected: bool, found: bool, moved: float = 0.1, possible: bool = True) -> dict:
    """A target as an evaluation records it: whether the attack succeeds past the judges, and what the check says."""
    scores = {"forgery_before": 0.2, "forgery_after": 0.9, "possible": possible}
    clean = {**scores, "succeeded": unprotected}
    arms = {"clean": clean, "gaussian": clean, "ct-like": clean}
    arms["protected"] = {**scores, "succeeded": protected, "check_found": found, "check_alarm": False}
    return {"judged": arms, "forgery": {"protected": {"share": moved}}}


def measurement(targets: list[dict], attacker: str = "ctgan-small", scan: str = "a", action: str = "inject") -> dict:
    return {"attacker": attacker, "action": action, "scan": scan, "protection": "default", "targets": targets}


def test_shares_are_of_the_places_where_the_attack_is_possible(table):
    hidden, shown, failed = place(True, True, False, 0.3), place(True, True, True), place(False, False, True)
    targets = [hidden, shown, shown, failed, place(True, True, False, possible=False), {"judged": None}]
    (row,) = table.effect_rows([measurement(targets)])
    assert row["places"] == 5
    assert row["unprotected"]["value"] == pytest.approx(3 / 4)
    assert row["past_judges"]["value"] == pytest.approx(3 / 4)
    assert row["past_check"]["value"] == pytest.approx(1 / 4)
    assert row["noise"]["gaussian"]["value"] == pytest.approx(3 / 4)
    assert row["check_found"]["value"] == pytest.approx(3 / 5)
    assert row["check_alarm"]["value"] == 0
    assert row["moved_median"] == 0.1
    assert row["area_protected"] == 1.0


def test_scenes_of_a_scan_are_put_together_and_scans_kept_apart(table):
    measurements = [
        measurement([place(True, True, True)]),
        measurement([place(False, False, True)]),
        measurement([place(True, True, True)], scan="b"),
    ]
    rows = table.effect_rows(measurements)
    found = [(row["scan"], row["places"], row["unprotected"]["value"]) for row in rows]
    # Of all scans the mean over scans, as no scan counts for more because it has more places.
    assert found == [("a", 2, 0.5), ("b", 1, 1.0), ("all 2", 3, 0.75)]


def test_a_goal_that_is_missed_says_so_and_held_out_attackers_have_their_own(table):
    # 2 of 4 succeed unprotected, 1 of 4 past all: more than a tenth, no more than half.
    targets = [place(True, True, False), place(True, True, True), *[place(False, False, True)] * 2]
    trained, held_out = (
        "".join(next(table.effect_lines(table.effect_rows([measurement(targets)], out))))
        for out in ((), ["ctgan-small"])
    )
    assert "at most 5.0 %: **missed**" in trained
    assert "at most 25.0 %: kept" in held_out
    assert "(held out)" in held_out
    nothing = table.effect_lines(table.effect_rows([measurement([place(False, False, True)] * 2)]))
    assert next(nothing)[-1] == "nothing succeeded"
    impossible = table.effect_lines(table.effect_rows([measurement([place(True, True, True, possible=False)])]))
    assert next(impossible)[-1] == "no place counts"


def test_the_report_holds_every_figure(table):
    def figure(value: float, passed: bool) -> dict:
        return {"unit": "HU", "limit": 8.0, "sense": "at most", "value": value, "passed": passed}

    way = {"cpu_s": 0.25, "floor_arithmetic_s": 0.125, "floor_bytes_s": 0.0625}
    keys = (
        "both_as_mitsgan_runs_them",
        "both_naive",
        "ours_against_naive_paper",
        "ours_with_watermark_against_naive_paper",
    )
    one_slice = {
        "ways": {
            "paper, naive": {**way, "cpu_s": 1.0},
            "paper, as mitsgan runs it": way,
            "small, as mitsgan runs it": way,
        },
        "default_against_paper": dict(zip(keys, (31.0, 32.0, 83.0, 49.0), strict=True)),
        "watermark_cpu_s": 0.017,
    }
    rows, bound = (
        table.effect_rows([measurement([one] * 2)]) for one in (place(True, True, True), place(True, False, False, 2.0))
    )
    speed = {
        "slices": 133,
        "one_slice": one_slice,
        "commands": [{"wall_s": wall, "cpu_s": 16.9} for wall in (19.0, 13.2, 12)],
    }
    results = {
        "model": "default",
        "scans": ["a"],
        "effect": {"commit": "a" * 40, "rows": rows, "bound": bound},
        "fidelity": {
            "commit": "c" * 40 + " with local changes",
            "scans": {"a": {"figures": {"rmse": figure(1.93, True), "other": figure(9.0, False)}}},
        },
        "speed": {
            "commit": "b" * 40,
            "machine": {"cpu": "cpu", "threads": 2, "torch": "2", "load_average": 0.1},
            "scans": {"a": speed},
        },
    }
    text = table.to_markdown(results)
    for words in (
        "| 1.93 |",
        "**9, missed**",
        "**0.0 %**",
        "| 31 |",
        "| 32 |",
        "| 83 |",
        "| 49 |",
        "| 4.0 |",
        "0.250 s",
    ):
        assert words in text
    assert "13.2 (19.0, 13.2, 12.0); 16.9, 133 slices" in text
    assert "effect at aaaaaaa, fidelity at ccccccc with local changes, speed at bbbbbbb" in text
    assert "upper bound" in text
    assert "200 %" in text
    alone = table.to_markdown({name: results[name] for name in ("model", "scans", "effect")})
    assert "upper bound" in alone
    assert alone.startswith("Model `default`; effect at aaaaaaa.\n")
    assert "fidelity" not in alone
    assert "speed" not in alone


def test_parts_are_measured_anew_and_the_others_kept(table, tmp_path, monkeypatch, capsys):
    def measure(options) -> dict:
        return {"model": options.model, "scans": ["scan"], **{part: f"new {part}" for part in options.parts}}

    monkeypatch.setattr(table.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(table, "measure", measure)
    monkeypatch.setattr(table, "to_markdown", lambda results: f"{results['effect']}, {results['speed']}\n")
    arguments = ["scan.nrrd", "--out", str(tmp_path), "--threads", "1"]
    assert table.main(arguments) == 0
    kept = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps({**kept, "effect": "old effect"}))
    capsys.readouterr()
    assert table.main([*arguments, "--parts", "speed"]) == 0
    assert capsys.readouterr().out == (tmp_path / "table.md").read_text() == "old effect, new speed\n"


def test_parts_of_other_scans_or_models_are_not_mixed(table, tmp_path, monkeypatch):
    kept = {"model": "default", "scans": ["a"], "effect": 1, "fidelity": 1, "speed": 1}
    (tmp_path / "table.json").write_text(json.dumps(kept))
    monkeypatch.setattr(table.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(table, "measure", lambda _options: pytest.fail("nothing was to be measured"))
    common = ["--out", str(tmp_path), "--parts", "speed"]
    with pytest.raises(SystemExit, match=r"of scans \['a'\], not \['b'\]"):
        table.main(["b.nrrd", *common])
    with pytest.raises(SystemExit, match="of model default, not strong"):
        table.main(["a.nrrd", *common, "--model", "strong"])
    with pytest.raises(SystemExit, match="same name"):
        table.main(["a.nrrd", "x/a.nii", *common])
    assert json.loads((tmp_path / "table.json").read_text()) == kept
