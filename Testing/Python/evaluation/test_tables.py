"""Tables in the paper's layout and figures: what stands where, and that it reads in every format."""

from __future__ import annotations

import csv
import dataclasses
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from MITSGANTrainingLib.evaluation import paper
from MITSGANTrainingLib.evaluation.figures import Example, as_png, as_svg, attacks_figure, changes_figure
from MITSGANTrainingLib.evaluation.layout import CSV_COLUMNS, to_csv_rows, to_latex, to_markdown
from MITSGANTrainingLib.evaluation.measure import AttackerChoice, Settings
from MITSGANTrainingLib.evaluation.protections import ProtectionArm
from MITSGANTrainingLib.evaluation.tables import MeasuredAttack, Setup, WholeScan, build_sections

NAMES = ("first_&_model", "second")


def record(shift: float) -> dict:
    """One target; every figure is its own number, so that a mixed-up cell shows."""
    images = ("protected", "gaussian", "ct-like")
    base = {name: 10.0 * n for n, name in enumerate(("rmse", "psnr", "lpips", "ssim"), start=1)}
    against = {}
    for n, image in enumerate([*images, "clean attacked", *(f"{image} attacked" for image in images)]):
        for region, more in (("slice", 0.0), ("square", 100.0)):
            values = {name: value + n + more + shift for name, value in base.items()}
            against.setdefault(image, {})[region] = {**values, "lpips": None}
    forgery = {arm: {"own": 50.0, "moved": 5.0 * n, "share": 0.1 * n} for n, arm in enumerate(images, start=1)}
    return {
        "action": "inject",
        "kji": [1, 2, 3],
        "against_clean": against,
        "forgery": {"clean": {"own": 50.0}} | forgery,
        "judged": None,
    }


def judged(arm: str, number: int, possible: bool = True) -> dict:
    """A verdict: unprotected attacks reach the finding and pass, protected ones pass at even places alone."""
    passes = arm == "clean" or number % 2 == 0
    verdict = {"possible": possible, "achieved": True, "unnoticed": passes, "alarm": arm == "gaussian"}
    scores = {"forgery_before": 0.5, "forgery_after": 0.4 if passes else 0.9, "nodule_before": 0.0, "nodule_after": 1.0}
    return {**scores, **verdict, "succeeded": passes if possible else None}


def measured(patient: int, protection: str, shifts: tuple[float, ...], absent: dict | None = None) -> MeasuredAttack:
    result = {"targets": [record(shift) for shift in shifts], "absent": absent or {}}
    return MeasuredAttack(f"scan {patient}", patient, protection, "them", "inject", result)


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup(
        protections=tuple(ProtectionArm("network", name, 0, alpha=0.4) for name in NAMES),
        attackers=(AttackerChoice("them", "", {}),),
        actions=("inject", "remove"),
        sweep=((NAMES[0], "alpha 0.4"),),
        settings=Settings(),
        lpips="not measured: no weights.",
    )


@pytest.fixture(scope="module")
def sections(setup):
    attacks = [measured(patient, name, (0.0, 2.0 * patient)) for name in NAMES for patient in (1, 2)]
    figures = {"rmse": 5.0, "rmse_worst_slice": 7.0, "psnr_worst_slice": 55.0, "mean_bias_worst_slice": -0.5}
    whole = [WholeScan(f"scan {n}", n, name, {"figures": figures, "noise_hu": 20.0}) for name in NAMES for n in (1, 2)]
    return {section.key: section for section in build_sections(attacks, whole, setup)}


def cell(section, row: tuple[str, str], column: tuple[str, str]) -> str:
    (table,) = section.tables
    number = [(c.group, c.name) for c in table.columns].index(column)
    return next(r.cells[number].text for r in table.rows if r.labels == row)


class TestPaper:
    def test_the_column_alpha_1_is_table_2(self):
        at_one = paper.ALPHAS.index(1.0)
        tampered = paper.COLUMNS.index("MITS-GAN T.")
        for metric, values in paper.TABLE_3.items():
            assert values[at_one] == paper.TABLE_2[metric][tampered]

    def test_ranges_that_rmse_and_psnr_imply_are_those_named(self):
        implied = [
            rmse * 10 ** (psnr / 20)
            for table in (paper.TABLE_1, paper.TABLE_2)
            for rmse, psnr in zip(table["rmse"], table["psnr"], strict=True)
        ]
        assert f"from {min(implied):.0f} to {max(implied):.0f}" in paper.reading(1)[1]

    def test_the_square_that_table_1_would_need(self):
        image = np.full((512, 512), 169.481**2)
        image[:32, :32] = 50.565**2
        rest = 169.481**2 * 512**2 - image.sum()
        image[:32, :32] = 1647**2
        assert np.sqrt((image.sum() + rest) / 512**2) == pytest.approx(198.253, abs=0.05)
        assert "an RMSE of 1647 in the square" in paper.reading(1)[1]

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_every_table_is_read(self, number):
        meaning, unclear = paper.reading(number)
        assert "real image" in meaning or "same pairs" in meaning
        assert "data range" in unclear


class TestLayout:
    def test_metrics_stand_as_in_the_paper_without_lpips_that_nobody_measured(self, sections):
        (table,) = sections["table-1"].tables
        assert list(dict.fromkeys(row.labels[0] for row in table.rows)) == ["RMSE (HU)", "PSNR (dB)", "SSIM"]
        groups = list(dict.fromkeys(column.group for column in table.columns))
        assert groups == ["Real", "Tampered", "Paper, real", "Paper, tampered"]
        (whole,) = sections["change"].tables
        assert "LPIPS" not in {column.group for column in whole.columns}

    def test_cells_are_means_over_patients_with_intervals(self, sections):
        # Patient 1 has shifts 0 and 2, patient 2 has 0 and 4: means 1 and 2.
        text = cell(sections["table-1"], ("RMSE (HU)", "protected"), ("Real", "second"))
        assert text == "11.50 [11.00, 12.00]"
        text = cell(sections["table-2"], ("PSNR (dB)", "CT-like noise instead"), ("Tampered", "second"))
        assert text.startswith("127.50 ")

    def test_the_unprotected_control_stands_beside_every_protection(self, sections):
        for name in NAMES:
            row = ("RMSE (HU)", "unprotected")
            assert cell(sections["table-1"], row, ("Tampered", name)).startswith("14.50")
            assert cell(sections["table-1"], row, ("Real", name)) == "–"

    def test_the_papers_figures_stand_in_the_protected_rows_alone(self, sections):
        column = ("Paper, tampered", "MITS-GAN T.")
        assert cell(sections["table-2"], ("SSIM", "protected"), column) == "0.740"
        assert cell(sections["table-2"], ("SSIM", "unprotected"), column) == "–"
        assert cell(sections["table-3"], ("RMSE (HU)", "protected"), ("Paper, MITS-GAN T.", "alpha 0.6")) == "81.920"
        assert cell(sections["table-3"], ("RMSE (HU)", "protected"), ("Tampered", "alpha 0.4")).startswith("115.50")

    def test_leads_over_noise_are_paired_differences(self, sections):
        text = cell(sections["forgery"], ("second", "protected"), ("Share, protection minus", "CT-like noise"))
        assert text.startswith("-20.0")
        assert cell(sections["forgery"], ("none", "unprotected"), ("RMSE (HU)", "attack's own change")).startswith(
            "50.0"
        )

    def test_change_of_the_scan_and_its_limits(self, sections):
        section = sections["change"]
        (table,) = section.tables
        rows = {row.labels[0]: [c.text for c in row.cells] for row in table.rows}
        assert rows["second"][:3] == ["5.00 [5.00, 5.00]", "7.00 [7.00, 7.00]", "0.25 [0.25, 0.25]"]
        assert "≤ 8" in rows["our limit for what cannot be seen"]

    def test_one_patient_has_no_interval_and_the_notes_say_so(self, setup):
        found = {s.key: s for s in build_sections([measured(1, NAMES[0], (0.0,))], [], setup)}
        assert cell(found["table-1"], ("RMSE (HU)", "protected"), ("Real", NAMES[0])) == "10.00"
        assert any("no confidence interval" in note for note in found["common"].notes)
        assert len(found["table-1"].tables[0].columns) == 6, "a protection without measurements has no columns"

    def test_without_a_sweep_the_reason_stands_there(self, setup):
        found = build_sections([measured(1, NAMES[0], (0.0,))], [], dataclasses.replace(setup, sweep=()))
        section = next(section for section in found if section.key == "table-3")
        assert not section.tables
        assert "--sweep" in section.notes[0]

    def test_missing_controls_are_explained(self, setup):
        attacks = [measured(1, NAMES[0], (0.0,), absent={"ct-like": "too little soft tissue."})]
        common = build_sections(attacks, [], setup)[0]
        assert any(f"{NAMES[0]} (too little soft tissue)." in note for note in common.notes)

    def test_every_caption_names_region_and_attack(self, sections):
        for section in sections.values():
            for table in section.tables:
                assert any(word in table.caption for word in ("slice", "volume", "cube"))
                assert section.key == "change" or "attack: inject by them at 4 places" in table.caption
                assert section.key == "forgery" or "data range 4096 HU" in table.caption


class TestSuccess:
    @pytest.fixture(scope="class")
    @classmethod
    def table(cls, setup):
        judges = {q: {"name": q, "sha256": "0" * 64, "threshold": 0.5} for q in ("nodule", "forgery")}
        attacks = [measured(patient, name, (0.0,) * 6) for name in NAMES for patient in (1, 2)]
        for found in attacks:
            for number, target in enumerate(found.result["targets"]):
                arms = ("clean", "protected", "gaussian", "ct-like")
                target["judged"] = {arm: judged(arm, number, possible=number < 4) for arm in arms}
        sections = build_sections(attacks, [], dataclasses.replace(setup, judges=judges))
        return next(section for section in sections if section.key == "table-4")

    def test_each_arm_stands_beside_the_unprotected_attack(self, table):
        success = ("Success (%)", "past the judges")
        assert cell(table, ("none", "unprotected"), success) == "100.0 [100.0, 100.0]"
        assert cell(table, ("second", "protected"), success).startswith("50.0 [")
        assert cell(table, ("second", "protected"), ("Success (%)", "minus unprotected")).startswith("-50.0 [")
        assert cell(table, ("none", "unprotected"), ("Success (%)", "minus unprotected")) == "–"
        assert cell(table, (NAMES[0], "protected"), ("Places", "that count")) == "8"
        # Without a watermark no check is asked.
        assert cell(table, ("second", "protected"), ("Success (%)", "past all checks")).startswith("50.0 [")
        assert cell(table, ("second", "protected"), ("Watermark check (%)", "attacked, found")) == "–"

    def test_the_forensic_judge_is_asked_at_all_places(self, table):
        # Half of the attacked places lie above all untouched ones, half below.
        assert cell(table, ("second", "protected"), ("Forensic judge", "AUC")).startswith("0.50 [")
        assert cell(table, ("none", "unprotected"), ("Forensic judge", "AUC")) == "0.00 [0.00, 0.00]"
        assert cell(table, ("second", "protected"), ("Forensic judge (%)", "attacked, found")).startswith("50.0 [")
        assert cell(table, ("second", "Gaussian noise instead"), ("Forensic judge (%)", "untouched, alarm")).startswith(
            "100.0"
        )
        assert cell(table, ("second", "CT-like noise instead"), ("Forensic judge (%)", "untouched, alarm")).startswith(
            "0.0"
        )

    def test_forgeries_moved_as_in_their_own_table(self, table):
        assert cell(table, ("second", "protected"), ("Forgery (%)", "moved")).startswith("10.0 ")
        assert cell(table, ("none", "unprotected"), ("Forgery (%)", "moved")) == "–"

    def test_judges_and_thresholds_are_named(self, table):
        assert "forgery judge 'forgery' (threshold 0.500, SHA-256 00000000)" in table.notes[2]

    def test_without_judges_it_says_how_to_train_them(self, sections):
        assert not sections["table-4"].tables
        assert "mitsgan train judge-forensic" in sections["table-4"].notes[0]


class TestFormats:
    def test_markdown_tables_are_rectangular(self, sections):
        text = to_markdown("Title", list(sections.values()), [("figure.png", "A caption")])
        blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
        assert len(blocks) == 5
        for block in blocks:
            assert len({line.count("|") for line in block}) == 1
        assert "![A caption](figure.png)" in text
        assert max(len(line) for line in text.splitlines() if not line.startswith(("|", "!["))) <= 120

    def test_latex_rows_fit_their_columns(self, sections):
        text = to_latex(list(sections.values()))
        assert r"first\_\&\_model" in text
        for block in text.split("\\begin{tabular}{")[1:]:
            width = len(block.split("}", 1)[0])
            body = block.split("\\end{tabular}")[0].replace(r"\&", "").replace(r"\\{\scriptsize", "{")
            lines = [line for line in body.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
            assert len(lines) >= 2
            assert {line.count("&") + 1 for line in lines} == {width}
        assert text.count("{") == text.count("}")
        assert "–" not in text

    def test_csv_holds_numbers_with_their_source(self, sections):
        file = io.StringIO()
        csv.writer(file).writerows([CSV_COLUMNS, *to_csv_rows(list(sections.values()))])
        rows = list(csv.DictReader(io.StringIO(file.getvalue())))
        assert {row["source"] for row in rows} == {"measured", "paper"}
        for row in rows:
            float(row["value"])
            assert (row["source"] == "paper") == (row["patients"] == "")
        found = [r for r in rows if r["table"] == "table-1-them-inject" and r["column"] == "second"]
        assert {r["image"] for r in found} >= {"protected", "unprotected"}


def stored(seed: int, *, controls: bool = True, direction: np.ndarray | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arms = ("clean", "protected", "gaussian", "ct-like") if controls else ("clean", "protected")
    images = [*arms, *(f"{arm} attacked" for arm in arms)]
    return {
        **{image: rng.integers(-900, 100, (60, 50)).astype(np.int16) for image in images},
        "square": np.array([20, 36, 10, 30]),
        "kji": np.array([3, 28, 20]),
        "spacing_kji": np.array([2.5, 2.0, 1.6]),
        "direction": np.eye(3) if direction is None else direction,
    }


class TestFigures:
    @pytest.fixture
    def examples(self):
        return [Example(f"inject, scan {n}, slice 3", {"a": stored(n), "b": stored(n, controls=False)}) for n in (1, 2)]

    @pytest.mark.slow
    def test_attacks(self, examples):
        figure = attacks_figure(examples, "them")
        pictures = [axes for axes in figure.axes if axes.images]
        # Per target: the slice, and before and after: clean, two protections, two controls.
        assert len(pictures) == 2 * (1 + 2 * 5)
        svg = as_svg(figure)
        assert svg == as_svg(attacks_figure(examples, "them"))
        words = "".join(ET.fromstring(svg).itertext())
        for expected in ("SIMULATED ATTACKS", "lung window", "32 mm", "CT-like noise", "as of a", "before attack"):
            assert expected in words
        assert as_png(figure).startswith(b"\x89PNG")

    @pytest.mark.slow
    def test_changes_share_one_color_range_and_name_their_size(self, examples):
        figure = changes_figure(examples)
        pictures = [axes for axes in figure.axes if axes.images]
        assert len(pictures) == 2 * 4
        assert len({axes.images[0].norm.vmax for axes in pictures}) == 1
        first = examples[0].slices["a"]
        rmse = np.sqrt(np.mean((first["protected"].astype(float) - first["clean"]) ** 2))
        assert f"RMSE {rmse:.1f}" in pictures[0].get_title()
        assert as_png(figure).startswith(b"\x89PNG")

    def test_without_any_control_there_are_no_columns_for_them(self):
        figure = changes_figure([Example("remove", {"b": stored(1, controls=False)})])
        assert len([axes for axes in figure.axes if axes.images]) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("flips", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
    def test_slices_stand_as_radiologists_expect(self, flips):
        """The patient's right on the left, anterior up, and the frame around the same anatomy, whatever the order."""
        slices = stored(1, direction=np.diag([*flips, 1.0]))
        slices["clean"][...] = -1000
        slices["clean"][20:36, 10:30] = 0
        figure = attacks_figure([Example("inject", {"a": slices})], "them")
        axes = next(axes for axes in figure.axes if axes.images)
        shown = np.asarray(axes.images[0].get_array())
        across, down = flips
        assert (shown == np.asarray(axes.images[0].get_array()).max()).sum() == 16 * 20
        frame = axes.lines[0].get_xydata()
        (x0, y0), (x1, y1) = frame.min(axis=0), frame.max(axis=0)
        bright = np.argwhere(shown == shown.max())
        assert tuple(bright.min(axis=0) - 0.5) == (y0, x0)
        assert tuple(bright.max(axis=0) + 0.5) == (y1, x1)
        assert (x0 == 9.5) == (across == 1)
        assert (y0 == 19.5) == (down == 1)
