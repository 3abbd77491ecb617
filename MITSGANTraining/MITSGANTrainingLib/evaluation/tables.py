"""The paper's tables from our measurements, beside the paper's own figures and with the controls it lacks.

A section holds the tables of one kind (one for each attacker and action) and says what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from . import notes, paper
from .layout import (
    NONE,
    ROWS,
    Cell,
    Column,
    ResultSection,
    Row,
    Table,
    attack_words,
    mean_cell,
    observations,
    unprotected,
)
from .measure import ARMS, CLEAN, CT_LIKE, GAUSSIAN, METRICS, PROTECTED
from .outcomes import MeasuredAttack, Setup, WholeScan
from .statistics import Estimate, Observation
from .success_table import success_section

Names = Sequence[tuple[str, str]]

_METRIC_WORDS = {"rmse": "RMSE (HU)", "psnr": "PSNR (dB)", "lpips": "LPIPS", "ssim": "SSIM"}
_DIGITS = {"rmse": 2, "psnr": 2, "lpips": 3, "ssim": 4}


def build_sections(
    attacks: Sequence[MeasuredAttack], whole: Sequence[WholeScan], setup: Setup
) -> tuple[ResultSection, ...]:
    """All sections: the scan's own change, the paper's Tables 1 to 3, how far the forgery moved, and success."""
    pairs = [(attacker, action) for attacker in setup.attackers for action in setup.actions]
    by_pair = {pair: [f for f in attacks if (f.attacker, f.action) == pair] for pair in pairs}
    measured = {one.protection for one in attacks}
    names = [protection.name for protection in setup.protections if protection.name in measured]
    plain = tuple((name, name) for name in names)
    reached = {pair: found for pair, found in by_pair.items() if found}

    def images(number: int, protections: Names) -> tuple[Table, ...]:
        return tuple(_image_table(number, pair, found, protections, setup) for pair, found in reached.items())

    sweep = (notes.SWEEP, *paper.reading(3)) if setup.sweep else (notes.NO_SWEEP,)
    return (
        ResultSection("common", "What holds for all tables", notes.common_notes(setup, _absences(attacks)), ()),
        _change_section(whole, setup),
        ResultSection("table-1", "Table 1: the whole image", (notes.IMAGE, *paper.reading(1)), images(1, plain)),
        ResultSection("table-2", "Table 2: the tampered square", (notes.SQUARE, *paper.reading(2)), images(2, plain)),
        ResultSection(
            "table-3",
            "Table 3: the weight alpha of the paper's term",
            sweep,
            images(3, setup.sweep) if setup.sweep else (),
        ),
        ResultSection(
            "forgery",
            "How far the forgery moved",
            (notes.FORGERY, notes.FORGERY_STATISTICS),
            tuple(_forgery_table(pair, found, names, setup) for pair, found in reached.items()),
        ),
        success_section(by_pair, names, setup),
    )


def _absences(attacks: Sequence[MeasuredAttack]) -> tuple[str, ...]:
    """Which protections lack a control in a scan, and why."""
    lacking = dict.fromkeys(
        (one.protection, reason.rstrip(".")) for one in attacks for reason in one.result["absent"].values()
    )
    return tuple(f"{protection} ({reason})" for protection, reason in lacking)


def _image_table(
    number: int, pair: tuple[str, str], attacks: Sequence[MeasuredAttack], names: Names, setup: Setup
) -> Table:
    """The paper's Table 1, 2 or 3; ``names`` are protections with what their columns are called."""
    region = "slice" if number == 1 else "square"
    images = {"Tampered": "{} attacked"} if number == 3 else {"Real": "{}", "Tampered": "{} attacked"}
    published = (paper.TABLE_1, paper.TABLE_2, paper.TABLE_3)[number - 1]
    theirs = (
        [Column("Paper, MITS-GAN T.", f"alpha {alpha:g}") for alpha in paper.ALPHAS]
        if number == 3
        else [Column(f"Paper, {'real' if n < 2 else 'tampered'}", name) for n, name in enumerate(paper.COLUMNS)]
    )
    rows = []
    for metric in METRICS:
        for arm, words in ROWS.items():
            cells = [
                mean_cell(_image_values(attacks, name, image.format(arm), region, metric), _DIGITS[metric], setup.seed)
                for image in images.values()
                for name, _ in names
            ]
            # LPIPS that nobody measured is no row; the notes say why.
            if metric == "lpips" and all(cell.text == NONE for cell in cells):
                continue
            figures = [Cell(f"{value:.3f}", Estimate(value), published=True) for value in published[metric]]
            cells += figures if arm == PROTECTED else [Cell()] * len(figures)
            rows.append(Row((_METRIC_WORDS[metric], words), tuple(cells)))
    where = "whole slice of the target" if number == 1 else "32 mm square around the target on its slice"
    return Table(
        f"table-{number}-{pair[0]}-{pair[1]}",
        f"{where}; {attack_words(pair, attacks)}; data range {setup.data_range_hu:g} HU",
        ("Metric", "Image compared with the real one"),
        (*(Column(group, words) for group in images for _, words in names), *theirs),
        tuple(rows),
    )


def _forgery_table(
    pair: tuple[str, str], attacks: Sequence[MeasuredAttack], names: Sequence[str], setup: Setup
) -> Table:
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
        return observations(attacks, name, lambda record: record["forgery"].get(arm, {}).get(key))

    def lead(name: str, arm: str) -> list[Observation]:
        def difference(record: Mapping[str, Any]) -> float | None:
            ours, control = (record["forgery"].get(each, {}).get("share") for each in (PROTECTED, arm))
            return None if ours is None or control is None else ours - control

        return observations(attacks, name, difference)

    own = observations(unprotected(attacks), None, lambda record: record["forgery"][CLEAN]["own"])
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
        f"middle 20 mm of the attacked cube; {attack_words(pair, attacks)}",
        ("Protection", "Image"),
        columns,
        tuple(rows),
    )


def _change_section(whole: Sequence[WholeScan], setup: Setup) -> ResultSection:
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

    # LPIPS that nobody measured is no column; the notes say why.
    if all(_whole_value(one.result, "lpips") is None for one in whole):
        del columns["lpips"]

    def cell(name: str, key: str, digits: int) -> Cell:
        values = [Observation(w.patient, _whole_value(w.result, key)) for w in whole if w.protection == name]
        return mean_cell(values, digits, setup.seed)

    rows = [
        Row((name,), tuple(cell(name, key, digits) for key, (_, digits, _) in columns.items()))
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
    nearby = any(protection.knows_the_attack for protection in setup.protections)
    explained = (notes.CHANGE, notes.CHANGE_NEARBY) if nearby else (notes.CHANGE,)
    return ResultSection(key, "What protection changes in the scan", explained, (table,) if rows else ())


def _whole_value(result: Mapping[str, Any], key: str) -> float | None:
    figures, noise = result["figures"], result["noise_hu"]
    if key == "rmse_per_noise":
        return figures["rmse"] / noise if noise else None
    value = figures.get(key)
    return abs(value) if key.startswith("mean_bias") and value is not None else value


def _image_values(
    attacks: Sequence[MeasuredAttack], protection: str, image: str, region: str, metric: str
) -> list[Observation]:
    return observations(
        attacks, protection, lambda record: record["against_clean"].get(image, {}).get(region, {}).get(metric)
    )
