"""Answer sheets that open with their key alone, and scores that can be computed by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from MITSGANLib.errors import InputError
from MITSGANLib.keys.key_files import generate_key
from MITSGANLib.measure.drill import Answer, AnswerSheet, Forgery, read_answers, read_sheet, score, seal_sheet, share

KEY = generate_key()
GRID = {"spacing": (0.5, 0.5, 2.0), "origin": (-100.0, -80.0, 10.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}


def sheet(uid: str, *forgeries: Forgery) -> AnswerSheet:
    return AnswerSheet(uid, f"case-{uid}", **GRID, forgeries=forgeries)


ADDED = Forgery("inject", (0.0, 0.0, 50.0), (20, 160, 200), "ctgan", "ab")
ERASED = Forgery("remove", (-40.0, 0.0, 50.0), (20, 160, 120), "ctgan", "ab")
CASES = (sheet("1", ADDED), sheet("2", ERASED), sheet("3"), sheet("4"))


class TestSheet:
    def test_it_opens_with_its_key_alone(self, tmp_path):
        path = tmp_path / "case-1.answers"
        path.write_bytes(seal_sheet(CASES[0], KEY))
        assert read_sheet(path, KEY) == CASES[0]
        assert b"inject" not in path.read_bytes()
        with pytest.raises(InputError):
            read_sheet(path, generate_key())

    @given(st.data())
    def test_a_changed_byte_is_an_error(self, tmp_path_factory, data):
        content = bytearray(seal_sheet(CASES[0], KEY))
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path = tmp_path_factory.mktemp("sheet") / "x.answers"
        path.write_bytes(content)
        with pytest.raises(InputError):
            read_sheet(path, KEY)


class TestAnswers:
    @pytest.mark.parametrize(
        "text",
        [
            "scan,slice,row,column,action\ncase-1,20,160,200,inject\n2,20,160,120,\n",
            "\ufeffScan;Slice;Row;Column;Action\r\ncase-1;20;160;200;inject\r\n2;20;160;120;\r\n",
            "scan,lps_x,lps_y,lps_z,action\n1,0,0,50,inject\ncase-2,-40,0,50,\n",
            "scan,ras_x,ras_y,ras_z,action\n1,0,0,50,inject\ncase-2,40,0,50,\n",
            json.dumps(
                [
                    {"scan": "1", "slice": 20, "row": 160, "column": 200, "action": "inject"},
                    {"scan": "2", "lps_x": -40, "lps_y": 0, "lps_z": 50},
                ]
            ),
        ],
        ids=["voxels", "a spreadsheet's", "lps", "ras", "json"],
    )
    def test_every_form_says_the_same(self, tmp_path, text):
        path = tmp_path / "answers"
        path.write_text(text, encoding="utf-8")
        answers = read_answers(path, CASES)
        assert answers == [Answer("1", (0.0, 0.0, 50.0), "inject"), Answer("2", (-40.0, 0.0, 50.0))]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("scan,slice,row,column\nother,1,2,3\n", "answer 1 a scan"),
            ("scan,slice,row\n1,1,2\n", "answer 1 no place"),
            ("scan,slice,row,column\n1,1,2,3\n1,1,2,nan\n", "answer 2 no place"),
            ("scan,slice,row,column,action\n1,1,2,3,blur\n", "unknown action"),
            ('{"scan": 1}', "no list"),
            ("[1]", "no list"),
            ("[" * 100000, "neither"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, text, words):
        path = tmp_path / "answers"
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_answers(path, CASES)

    def test_no_answers_are_answers(self, tmp_path):
        path = tmp_path / "answers"
        path.write_text("scan,slice,row,column\n")
        assert read_answers(path, CASES) == []


class TestScore:
    def test_by_hand(self):
        answers = [
            Answer("1", (3.0, 4.0, 50.0), "remove"),  # found at 5 mm, but the wrong way
            Answer("1", (6.0, 8.0, 50.0)),  # the same forgery again
            Answer("2", (0.0, 0.0, 50.0), "remove"),  # 40 mm off
            Answer("3", (0.0, 0.0, 50.0)),  # nothing there
        ]
        result = score(CASES, answers)
        assert (result.scans, result.forgeries, result.found, result.false_positives) == (4, 2, 1, 3)
        assert (result.clean, result.called_clean) == (2, 1)
        assert (result.named_actions, result.right_actions) == (1, 0)
        assert result.distances_mm == (5.0,)
        assert result.sensitivity == pytest.approx((0.5, 0.0126, 0.9874), abs=1e-4)
        assert json.loads(json.dumps(result.to_dict()))["false_positives_per_scan"] == 0.75

    @given(st.lists(st.tuples(st.sampled_from("1234"), st.tuples(*[st.floats(-200, 200)] * 3)), max_size=12))
    def test_every_answer_finds_or_is_false(self, places):
        result = score(CASES, [Answer(scan, place) for scan, place in places])
        assert result.found + result.false_positives == len(places)
        assert all(distance <= result.tolerance_mm for distance in result.distances_mm)

    def test_nobody_answered(self):
        result = score(CASES, [])
        assert (result.found, result.false_positives, result.called_clean) == (0, 0, 2)
        assert score([CASES[2]], []).sensitivity is None

    def test_a_sheet_twice_is_an_error(self):
        for sheets in ((CASES[0], CASES[0]), ()):
            with pytest.raises(InputError):
                score(sheets, [])

    def test_exact_intervals(self):
        """Clopper and Pearson's own bounds: none of ten lies below 1 - 0.025^(1/10)."""
        assert share(0, 10) == pytest.approx((0, 0, 1 - 0.025**0.1))
        assert share(10, 10) == pytest.approx((1, 0.025**0.1, 1))
