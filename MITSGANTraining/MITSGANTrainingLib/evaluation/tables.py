"""The paper's tables from our measurements, beside the paper's own figures and with the controls it lacks.

A section holds the tables of one kind (one for each attacker and action) and says what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from . import notes, paper, statistics
from .layout import NONE, Cell, Column, ResultSection, Row, Table, cell_of
from .measure import ARMS, CLEAN, CT_LIKE, GAUSSIAN, METRICS, PROTECTED, AttackerChoice, Settings
from .protections import ProtectionArm

Pair = tuple[str, str]  # attacker and action
Observed = dict[int, list[float]]  # by patient
Value = Callable[[Mapping[str, Any]], float | None]  # of what was measured at one target, or of its verdicts by arm
Judged = Sequence[Mapping[str, Any]]  # of each place the verdicts by arm

_ROWS = {
    PROTECTED: "protected",
    GAUSSIAN: "Gaussian noise instead",
    CT_LIKE: "CT-like noise instead",
    CLEAN: "unprotected",
}
_METRIC_WORDS = {"rmse": "RMSE (HU)", "psnr": "PSNR (dB)", "lpips": "LPIPS", "ssim": "SSIM"}
_DIGITS = {"rmse": 2, "psnr": 2, "lpips": 3, "ssim": 4}
_FORGERY_COLUMNS = (
    Column("RMSE (HU)", "attack's own change"),
    Column("RMSE (HU)", "forgery moved"),
    Column("Share (%)", "forgery moved"),
    Column("Share, protection minus", "Gaussian noise"),
    Column("Share, protection minus", "CT-like noise"),
)
_SUCCESS_COLUMNS = (
    Column("Forgery (%)", "moved"),
    Column("Forensic judge", "AUC"),
    Column("Forensic judge (%)", "attacked, found"),
    Column("Forensic judge (%)", "untouched, alarm"),
    Column("Watermark check (%)", "attacked, found"),
    Column("Watermark check (%)", "untouched, alarm"),
    Column("Nodule judge (%)", "finding reached"),
    Column("Success (%)", "past the judges"),
    Column("Success (%)", "past all checks"),
    Column("Success (%)", "minus unprotected"),
    Column("Places", "that count"),
)


@dataclass(frozen=True)
class MeasuredAttack:
    """What was measured at the targets of one scan, with one protection, by one attacker's action.

    :param patient: number of the patient, from 1.
    :param result: as :mod:`measure` stored it.
    :param scene: number of the scan's scene, where it has several.
    """

    scan: str
    patient: int
    protection: str
    attacker: str
    action: str
    result: Mapping[str, Any]
    scene: int = 0


@dataclass(frozen=True)
class WholeScan:
    """What protection changed in one scan, all slices. ``protection`` names the attack too, where that matters."""

    scan: str
    patient: int
    protection: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """What the tables need to know of the evaluation.

    :param sweep: protections of Table 3, with what its columns are called.
    :param lpips: the network that measured LPIPS, or why it was not measured.
    :param judges: as :meth:`~.jury.Jury.describe` says it; None where success is not measured.
    :param failures: what could not be measured.
    """

    protections: tuple[ProtectionArm, ...]
    attackers: tuple[AttackerChoice, ...]
    actions: tuple[str, ...]
    sweep: tuple[tuple[str, str], ...]
    settings: Settings
    lpips: str
    judges: Mapping[str, Any] | None = None
    failures: tuple[str, ...] = ()

    @property
    def planted(self) -> dict[str, Any] | None:
        """Nodules planted for removals, as :meth:`~.planting.NoduleFile.describe` says it; None where none are."""
        return self.settings.nodules.describe() if self.settings.nodules else None


def build_sections(
    attacks: Sequence[MeasuredAttack], whole: Sequence[WholeScan], setup: Setup
) -> tuple[ResultSection, ...]:
    """All sections: the scan's own change, the paper's Tables 1 to 3, how far the forgery moved, and success."""
    pairs = [(attacker.name, action) for attacker in setup.attackers for action in setup.actions]
    reached = {pair: [one for one in attacks if (one.attacker, one.action) == pair] for pair in pairs}
    measured = {one.protection for one in attacks}
    names = [protection.name for protection in setup.protections if protection.name in measured]
    plain = [(name, name) for name in names]

    def tables(draw: Callable[..., Table], *options: Any) -> tuple[Table, ...]:
        return tuple(draw(pair, found, setup, *options) for pair, found in reached.items() if found)

    of_sweep = (notes.SWEEP, *paper.reading(3)) if setup.sweep else (notes.NO_SWEEP,)
    sections = (
        ("table-1", "Table 1: the whole image", (notes.IMAGE, *paper.reading(1)), tables(_image_table, 1, plain)),
        ("table-2", "Table 2: the tampered square", (notes.SQUARE, *paper.reading(2)), tables(_image_table, 2, plain)),
        (
            "table-3",
            "Table 3: the weight alpha of the paper's term",
            of_sweep,
            tables(_image_table, 3, setup.sweep) if setup.sweep else (),
        ),
        (
            "forgery",
            "How far the forgery moved",
            (notes.FORGERY, notes.FORGERY_STATISTICS),
            tables(_forgery_table, names),
        ),
        (
            "table-4",
            "Table 4: visibility and success",
            _success_notes(setup),
            tables(_success_table, names) if setup.judges else (),
        ),
    )
    common = ResultSection("common", "What holds for all tables", _common_notes(setup, attacks), ())
    return common, _change_section(whole, setup), *(ResultSection(*section) for section in sections)


def _common_notes(setup: Setup, attacks: Sequence[MeasuredAttack]) -> tuple[str, ...]:
    """What holds for all tables: data range, averages, controls, LPIPS, and what is missing."""
    patients = len({one.patient for one in attacks})
    counted = f"{_count(len({one.scan for one in attacks}), 'scan')} of {_count(patients, 'patient')}"
    if patients < 2:
        spread = f"{counted}: there is no confidence interval, which takes at least two patients."
    else:
        spread = (
            f"{counted}; each figure is the mean over patients of each one's own, in brackets its "
            f"{statistics.CONFIDENCE:.0%} percentile bootstrap interval over patients ({statistics.RESAMPLES} "
            f"resamples, seed {setup.settings.seed})."
        )
        if patients < 10:
            spread += " With so few patients the interval is too narrow."
    said = [
        f"PSNR and SSIM with a data range of {setup.settings.data_range_hu:g} HU. {spread}",
        notes.CONTROLS,
        f"LPIPS: {setup.lpips}",
    ]
    if setup.planted and "remove" in setup.actions:
        said.append(notes.PLANTED.format_map(setup.planted))
    kinds = {protection.kind for protection in setup.protections}
    said += [text for kind, text in notes.KINDS.items() if kind in kinds]
    absences = dict.fromkeys(
        f"{one.protection} ({reason.rstrip('.')})" for one in attacks for reason in one.result["absent"].values()
    )
    if absences:
        said.append(f"Without one or both noise controls: {'; '.join(absences)}.")
    if setup.failures:
        said.append(f"Not measured, so that columns may stand on different scans: {'; '.join(setup.failures)}.")
    return tuple(said)


def _image_table(
    pair: Pair, attacks: Sequence[MeasuredAttack], setup: Setup, number: int, names: Sequence[tuple[str, str]]
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

    def cell(name: str, image: str, metric: str) -> Cell:
        def value(record: Mapping[str, Any]) -> float | None:
            return record["against_clean"].get(image, {}).get(region, {}).get(metric)

        return _mean_cell(_observed(_of(name, attacks), value), _DIGITS[metric], setup.settings.seed)

    rows = []
    for metric in METRICS:
        for arm, words in _ROWS.items():
            cells = [cell(name, image.format(arm), metric) for image in images.values() for name, _ in names]
            # LPIPS that nobody measured is no row; the notes say why.
            if metric == "lpips" and all(cell.text == NONE for cell in cells):
                continue
            figures = [Cell(f"{value:.3f}", statistics.Estimate(value), published=True) for value in published[metric]]
            cells += figures if arm == PROTECTED else [Cell()] * len(figures)
            rows.append(Row((_METRIC_WORDS[metric], words), tuple(cells)))
    where = "whole slice of the target" if number == 1 else "32 mm square around the target on its slice"
    caption = f"{where}; {_attack_words(pair, attacks)}; data range {setup.settings.data_range_hu:g} HU"
    columns = (*(Column(group, words) for group in images for _, words in names), *theirs)
    corner = ("Metric", "Image compared with the real one")
    return Table(f"table-{number}-{pair[0]}-{pair[1]}", caption, corner, columns, tuple(rows))


def _forgery_table(pair: Pair, attacks: Sequence[MeasuredAttack], setup: Setup, names: Sequence[str]) -> Table:
    mean = partial(_mean_cell, digits=1, seed=setup.settings.seed)
    percent = partial(mean, within="median", factor=100.0)

    def cells(found: Sequence[MeasuredAttack], arm: str) -> tuple[Cell, ...]:
        def figure(key: str) -> Observed:
            return _observed(found, lambda record: record["forgery"].get(arm, {}).get(key))

        def lead(control: str) -> Observed:
            def difference(record: Mapping[str, Any]) -> float | None:
                return _less(*(record["forgery"].get(each, {}).get("share") for each in (PROTECTED, control)))

            return _observed(found, difference)

        leads = [percent(lead(control)) if arm == PROTECTED else Cell() for control in (GAUSSIAN, CT_LIKE)]
        return mean(figure("own")), mean(figure("moved")), percent(figure("share")), *leads

    own = _observed(_unprotected(attacks), lambda record: record["forgery"][CLEAN]["own"])
    rows = _rows_of_arms((mean(own), *[Cell()] * 4), attacks, names, cells)
    caption = f"middle 20 mm of the attacked cube; {_attack_words(pair, attacks)}"
    return Table(f"forgery-{pair[0]}-{pair[1]}", caption, ("Protection", "Image"), _FORGERY_COLUMNS, rows)


def _success_notes(setup: Setup) -> tuple[str, ...]:
    """What Table 4 means, or how to get it where nothing judged."""
    if not setup.judges:
        return (notes.NO_JUDGES,)
    judges = ", ".join(
        f"{question} judge '{judge['name']}' (threshold {judge['threshold']:.3f}, SHA-256 {judge['sha256'][:8]})"
        for question, judge in setup.judges.items()
    )
    bootstrap = {"confidence": statistics.CONFIDENCE, "resamples": statistics.PLACE_RESAMPLES}
    interval = notes.SUCCESS_INTERVAL.format(**bootstrap, seed=setup.settings.seed)
    return notes.SUCCESS, notes.SUCCESS_COUNT, f"Judges: {judges}. {interval}"


def _success_table(pair: Pair, attacks: Sequence[MeasuredAttack], setup: Setup, names: Sequence[str]) -> Table:
    cells = partial(_success_cells, seed=setup.settings.seed)
    rows = _rows_of_arms(cells(_unprotected(attacks), CLEAN), attacks, names, cells)
    caption = f"32 mm cube and the slices around its middle; {_attack_words(pair, attacks)}"
    return Table(f"table-4-{pair[0]}-{pair[1]}", caption, ("Protection", "Image"), _SUCCESS_COLUMNS, rows)


def _success_cells(attacks: Sequence[MeasuredAttack], arm: str, seed: int) -> tuple[Cell, ...]:
    """How far the attack on an arm shows, and whether it succeeds, as the judges see it."""
    places: dict[int, list[Mapping[str, Any]]] = {}  # by patient, of each place the verdicts by arm
    for one in attacks:
        judged = [record["judged"] for record in one.result["targets"]]
        places.setdefault(one.patient, []).extend(place for place in judged if place and arm in place)

    def by_place(figure: Callable[[Judged], statistics.PlaceFigure], digits: int, factor: float) -> Cell:
        found = statistics.estimate_by_place({patient: figure(own) for patient, own in places.items()}, seed)
        return cell_of(found.times(factor), digits)

    def percent(value: Value) -> Cell:
        return by_place(lambda own: statistics.share_of_places([value(place) for place in own]), 1, 100.0)

    def area(own: Judged) -> statistics.PlaceFigure:
        after, before = ([place[arm][f"forgery_{when}"] for place in own] for when in ("after", "before"))
        return statistics.area_of_places(after, before)

    def by_check(key: str) -> Cell:
        checked = any(key in place[arm] for own in places.values() for place in own)
        return percent(lambda place: float(place[arm][key])) if checked else Cell()

    def counted(verdict: Mapping[str, Any], key: str) -> float | None:
        return float(verdict[key]) if verdict["possible"] else None

    def past_all(verdict: Mapping[str, Any]) -> float | None:
        return 0.0 if verdict.get("check_found", False) and verdict["possible"] else counted(verdict, "succeeded")

    moved = _observed(attacks, lambda record: record["forgery"].get(arm, {}).get("share"))
    count = sum(place[arm]["possible"] for own in places.values() for place in own)
    return (
        _mean_cell(moved, 1, seed, within="median", factor=100.0),
        by_place(area, 2, 1.0),
        percent(lambda place: float(not place[arm]["unnoticed"])),
        percent(lambda place: float(place[arm]["alarm"])),
        by_check("check_found"),
        by_check("check_alarm"),
        percent(lambda place: counted(place[arm], "achieved")),
        percent(lambda place: counted(place[arm], "succeeded")),
        percent(lambda place: past_all(place[arm])),
        percent(lambda place: _less(past_all(place[arm]), past_all(place[CLEAN]))) if arm != CLEAN else Cell(),
        Cell(str(count)) if any(places.values()) else Cell(),
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
        values = _by_patient((w.patient, _whole_value(w.result, key)) for w in whole if w.protection == name)
        return _mean_cell(values, digits, setup.settings.seed)

    rows = [
        Row((name,), tuple(cell(name, key, digits) for key, (_, digits, _) in columns.items()))
        for name in dict.fromkeys(w.protection for w in whole)
    ]
    limits = Row(("our limit for what cannot be seen",), tuple(Cell(limit or NONE) for _, _, limit in columns.values()))
    caption = f"whole volume, all slices; data range {setup.settings.data_range_hu:g} HU"
    heads = tuple(column for column, _, _ in columns.values())
    table = Table("change", caption, ("Protection",), heads, (*rows, limits))
    nearby = any(protection.knows_the_attack for protection in setup.protections)
    explained = (notes.CHANGE, notes.CHANGE_NEARBY) if nearby else (notes.CHANGE,)
    return ResultSection("change", "What protection changes in the scan", explained, (table,) if rows else ())


def _whole_value(result: Mapping[str, Any], key: str) -> float | None:
    figures, noise = result["figures"], result["noise_hu"]
    if key == "rmse_per_noise":
        return figures["rmse"] / noise if noise else None
    value = figures.get(key)
    return abs(value) if key.startswith("mean_bias") and value is not None else value


def _rows_of_arms(
    unprotected: tuple[Cell, ...],
    attacks: Sequence[MeasuredAttack],
    names: Sequence[str],
    cells: Callable[[Sequence[MeasuredAttack], str], tuple[Cell, ...]],
) -> tuple[Row, ...]:
    """The row of the unprotected scan, and one for each protection and arm that has a figure."""
    rows = [Row((name, _ROWS[arm]), cells(_of(name, attacks), arm)) for name in names for arm in ARMS]
    known = [row for row in rows if any(cell.text != NONE for cell in row.cells)]
    return Row(("none", _ROWS[CLEAN]), unprotected), *known


def _of(protection: str, attacks: Sequence[MeasuredAttack]) -> list[MeasuredAttack]:
    return [one for one in attacks if one.protection == protection]


def _unprotected(attacks: Sequence[MeasuredAttack]) -> list[MeasuredAttack]:
    """Each scan's scene once: the attack on the clean scan is the same with whatever protection it stands beside."""
    return list({(one.scan, one.scene): one for one in attacks}.values())


def _attack_words(pair: Pair, attacks: Sequence[MeasuredAttack]) -> str:
    """For captions: the attack and at how many places."""
    places = sum(len(found.result["targets"]) for found in _unprotected(attacks))
    return f"attack: {pair[1]} by {pair[0]} at {_count(places, 'place')}"


def _count(number: int, word: str) -> str:
    """Such as "1 scan" or "2 scans"."""
    return f"{number} {word}" + ("" if number == 1 else "s")


def _less(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _observed(attacks: Sequence[MeasuredAttack], value: Value) -> Observed:
    return _by_patient((one.patient, value(record)) for one in attacks for record in one.result["targets"])


def _by_patient(values: Iterable[tuple[int, float | None]]) -> Observed:
    found: Observed = {}
    for patient, value in values:
        if value is not None:
            found.setdefault(patient, []).append(value)
    return found


def _mean_cell(
    observed: Observed,
    digits: int,
    seed: int,
    within: Literal["mean", "median"] = "mean",
    factor: float = 1.0,
) -> Cell:
    """The mean over patients with its interval, times ``factor``; arguments as of :func:`.estimate`."""
    scaled = {patient: [factor * value for value in values] for patient, values in observed.items()}
    return cell_of(statistics.estimate(scaled, within=within, seed=seed), digits)
