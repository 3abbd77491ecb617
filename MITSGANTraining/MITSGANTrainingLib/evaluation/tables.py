"""The paper's tables from our measurements, beside the paper's own figures and with the controls it lacks.

A section holds the tables of one kind (one for each attacker and action) and says what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from . import notes, paper
from .layout import NONE, ROWS, Cell, Column, Row, Section, Table, attack_words, mean_cell, observations, unprotected
from .measure import ARMS, CLEAN, CT_LIKE, GAUSSIAN, METRICS, PROTECTED
from .outcomes import Outcome, Setup, WholeScan
from .statistics import Estimate, Observation
from .success_table import success_section

_METRIC_WORDS = {"rmse": "RMSE (HU)", "psnr": "PSNR (dB)", "lpips": "LPIPS", "ssim": "SSIM"}
_DIGITS = {"rmse": 2, "psnr": 2, "lpips": 3, "ssim": 4}


def build_sections(findings: Sequence[Outcome], whole: Sequence[WholeScan], setup: Setup) -> tuple[Section, ...]:
    """All sections: the scan's own change, the paper's Tables 1 to 3, how far the forgery moved, and success."""
    pairs = [(attacker, action) for attacker in setup.attackers for action in setup.actions]
    by_pair = {pair: [f for f in findings if (f.attacker, f.action) == pair] for pair in pairs}
    measured = {finding.protection for finding in findings}
    names = [protection.name for protection in setup.protections if protection.name in measured]
    return (
        Section("common", "What holds for all tables", notes.common_notes(setup, _absences(findings)), ()),
        _change_section(whole, setup),
        Section(
            "table-1",
            "Table 1: the whole image",
            (notes.IMAGE, *notes.paper_notes(1)),
            tuple(_image_table(1, "slice", pair, by_pair[pair], names, setup) for pair in pairs if by_pair[pair]),
        ),
        Section(
            "table-2",
            "Table 2: the tampered square",
            (notes.SQUARE, *notes.paper_notes(2)),
            tuple(_image_table(2, "square", pair, by_pair[pair], names, setup) for pair in pairs if by_pair[pair]),
        ),
        Section(
            "table-3",
            "Table 3: the weight alpha of the paper's term",
            (notes.SWEEP, *notes.paper_notes(3)) if setup.sweep else (notes.NO_SWEEP,),
            tuple(_sweep_table(pair, by_pair[pair], setup) for pair in pairs if by_pair[pair]) if setup.sweep else (),
        ),
        _forgery_section(by_pair, names, setup),
        success_section(by_pair, names, setup),
    )


def _absences(findings: Sequence[Outcome]) -> tuple[str, ...]:
    """Which protections lack a control in a scan, and why."""
    lacking = dict.fromkeys(
        (finding.protection, reason.rstrip(".")) for finding in findings for reason in finding.result["absent"].values()
    )
    return tuple(f"{protection} ({reason})" for protection, reason in lacking)


def _image_table(
    number: int, region: str, pair: tuple[str, str], findings: Sequence[Outcome], names: Sequence[str], setup: Setup
) -> Table:
    published = paper.TABLE_1 if number == 1 else paper.TABLE_2
    columns = (
        *(Column("Real", name) for name in names),
        *(Column("Tampered", name) for name in names),
        *(Column("Paper, real", name) for name in paper.COLUMNS[:2]),
        *(Column("Paper, tampered", name) for name in paper.COLUMNS[2:]),
    )
    rows = []
    for metric in METRICS:
        for arm, words in ROWS.items():
            ours = [
                mean_cell(_image_values(findings, name, image, region, metric), _DIGITS[metric], setup.seed)
                for image in (arm, f"{arm} attacked")
                for name in names
            ]
            theirs = [_published(value) if arm == PROTECTED else Cell() for value in published[metric]]
            rows.append(Row((_METRIC_WORDS[metric], words), (*ours, *theirs)))
    return Table(
        f"table-{number}-{pair[0]}-{pair[1]}",
        f"{_where(region)}; {attack_words(pair, findings)}; data range {setup.data_range_hu:g} HU",
        ("Metric", "Image compared with the real one"),
        columns,
        tuple(rows),
    )


def _sweep_table(pair: tuple[str, str], findings: Sequence[Outcome], setup: Setup) -> Table:
    columns = (
        *(Column("Tampered", words) for _, words in setup.sweep),
        *(Column("Paper, MITS-GAN T.", f"alpha {alpha:g}") for alpha in paper.ALPHAS),
    )
    rows = []
    for metric in METRICS:
        for arm, words in ROWS.items():
            ours = [
                mean_cell(
                    _image_values(findings, name, f"{arm} attacked", "square", metric), _DIGITS[metric], setup.seed
                )
                for name, _ in setup.sweep
            ]
            theirs = [_published(value) if arm == PROTECTED else Cell() for value in paper.TABLE_3[metric]]
            rows.append(Row((_METRIC_WORDS[metric], words), (*ours, *theirs)))
    return Table(
        f"table-3-{pair[0]}-{pair[1]}",
        f"{_where('square')}; {attack_words(pair, findings)}; data range {setup.data_range_hu:g} HU",
        ("Metric", "Image compared with the real one"),
        columns,
        tuple(rows),
    )


def _forgery_section(
    by_pair: Mapping[tuple[str, str], Sequence[Outcome]], names: Sequence[str], setup: Setup
) -> Section:
    return Section(
        "forgery",
        "How far the forgery moved",
        (notes.FORGERY, notes.FORGERY_STATISTICS),
        tuple(_forgery_table(pair, found, names, setup) for pair, found in by_pair.items() if found),
    )


def _forgery_table(pair: tuple[str, str], findings: Sequence[Outcome], names: Sequence[str], setup: Setup) -> Table:
    columns = (
        Column("RMSE (HU)", "attack's own change"),
        Column("RMSE (HU)", "forgery moved"),
        Column("Share (%)", "forgery moved"),
        Column("Share, protection minus", "Gaussian noise"),
        Column("Share, protection minus", "CT-like noise"),
    )
    value = partial(mean_cell, seed=setup.seed)
    percent = partial(value, digits=1, within="median", factor=100.0)

    def figure(name: str, arm: str, key: str) -> list[Observation]:
        return observations(findings, name, lambda record: record["forgery"].get(arm, {}).get(key))

    def lead(name: str, arm: str) -> list[Observation]:
        def difference(record: Mapping[str, Any]) -> float | None:
            ours, control = (record["forgery"].get(each, {}).get("share") for each in (PROTECTED, arm))
            return None if ours is None or control is None else ours - control

        return observations(findings, name, difference)

    own = observations(unprotected(findings), None, lambda record: record["forgery"][CLEAN]["own"])
    rows = [Row(("none", ROWS[CLEAN]), (value(own, 1), *[Cell()] * 4))]
    for name in names:
        for arm in ARMS:
            leads = [percent(lead(name, control)) if arm == PROTECTED else Cell() for control in (GAUSSIAN, CT_LIKE)]
            measured = [value(figure(name, arm, key), 1) for key in ("own", "moved")]
            row = Row((name, ROWS[arm]), (*measured, percent(figure(name, arm, "share")), *leads))
            if any(cell.text != NONE for cell in row.cells):
                rows.append(row)
    return Table(
        f"forgery-{pair[0]}-{pair[1]}",
        f"middle 20 mm of the attacked cube; {attack_words(pair, findings)}",
        ("Protection", "Image"),
        columns,
        tuple(rows),
    )


def _change_section(whole: Sequence[WholeScan], setup: Setup) -> Section:
    columns = {
        "rmse": (Column("RMSE (HU)", "all slices"), 2, ""),
        "rmse_worst_slice": (Column("RMSE (HU)", "worst slice"), 2, "≤ 8"),
        "rmse_per_noise": (Column("RMSE / noise", "all slices"), 2, "≤ 0.32"),
        "psnr_worst_slice": (Column("PSNR (dB)", "worst slice"), 1, "≥ 54"),
        "max_abs_difference": (Column("Largest change (HU)", "any voxel"), 0, "≤ 30"),
        "mean_bias_worst_slice": (Column("Mean change (HU)", "worst slice"), 2, "≤ 1"),
        "ssim_lung_worst_tile": (Column("SSIM, worst tile", "lung window"), 3, "≥ 0.98"),
        "ssim_mediastinum_worst_tile": (Column("SSIM, worst tile", "mediastinal window"), 3, "≥ 0.98"),
        "lpips": (Column("LPIPS", "8 slices"), 3, ""),
    }
    rows = [
        Row(
            (name,),
            tuple(
                mean_cell(
                    [Observation(w.patient, _whole_value(w.result, key)) for w in whole if w.protection == name],
                    digits,
                    setup.seed,
                )
                for key, (_, digits, _) in columns.items()
            ),
        )
        for name in dict.fromkeys(w.protection for w in whole)
    ]
    limits = Row(("our limit for what cannot be seen",), tuple(Cell(limit or NONE) for _, _, limit in columns.values()))
    key = "change"
    table = Table(
        key,
        f"whole volume, all slices; data range {setup.data_range_hu:g} HU",
        ("Protection",),
        tuple(column for column, _, _ in columns.values()),
        (*rows, limits),
    )
    gradient = any(protection.knows_the_attack for protection in setup.protections)
    explained = (notes.CHANGE, notes.CHANGE_GRADIENT) if gradient else (notes.CHANGE,)
    return Section(key, "What protection changes in the scan", explained, (table,) if rows else ())


def _whole_value(result: Mapping[str, Any], key: str) -> float | None:
    figures, noise = result["figures"], result["noise_hu"]
    if key == "rmse_per_noise":
        return figures["rmse"] / noise if noise else None
    value = figures.get(key)
    return abs(value) if key.startswith("mean_bias") and value is not None else value


def _image_values(
    findings: Sequence[Outcome], protection: str, image: str, region: str, metric: str
) -> list[Observation]:
    return observations(
        findings, protection, lambda record: record["against_clean"].get(image, {}).get(region, {}).get(metric)
    )


def _published(value: float) -> Cell:
    return Cell(f"{value:.3f}", Estimate(value), published=True)


def _where(region: str) -> str:
    return {"slice": "whole slice of the target", "square": "32 mm square around the target on its slice"}[region]
