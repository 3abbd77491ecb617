"""Table 4: does the attack show, and does it succeed? As the judges see it, with and without protection and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import notes
from .layout import (
    NONE,
    ROWS,
    Cell,
    Column,
    ResultSection,
    Row,
    Table,
    attack_words,
    cell_of,
    mean_cell,
    observations,
    unprotected,
)
from .measure import ARMS, CLEAN
from .outcomes import MeasuredAttack, Setup
from .statistics import CONFIDENCE, PLACE_RESAMPLES, PlaceFigure, area_of_places, estimate_by_place, share_of_places

Judged = Mapping[str, Mapping[str, Any]]  # verdicts at one place by arm

_COLUMNS = (
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


def success_section(
    by_pair: Mapping[tuple[str, str], Sequence[MeasuredAttack]], names: Sequence[str], setup: Setup
) -> ResultSection:
    """A table for each attacker and action, or how to get one where nothing judged."""
    title = "Table 4: visibility and success"
    if not setup.judges:
        return ResultSection("table-4", title, (notes.NO_JUDGES,), ())
    judges = ", ".join(
        f"{question} judge '{judge['name']}' (threshold {judge['threshold']:.3f}, SHA-256 {judge['sha256'][:8]})"
        for question, judge in setup.judges.items()
    )
    interval = notes.SUCCESS_INTERVAL.format(confidence=CONFIDENCE, resamples=PLACE_RESAMPLES, seed=setup.seed)
    tables = tuple(_table(pair, found, names, setup) for pair, found in by_pair.items() if found)
    return ResultSection(
        "table-4", title, (notes.SUCCESS, notes.SUCCESS_COUNT, f"Judges: {judges}. {interval}"), tables
    )


def _table(pair: tuple[str, str], attacks: Sequence[MeasuredAttack], names: Sequence[str], setup: Setup) -> Table:
    rows = [_row(("none", ROWS[CLEAN]), CLEAN, unprotected(attacks), setup.seed)]
    for name in names:
        of_protection = [one for one in attacks if one.protection == name]
        found = [_row((name, ROWS[arm]), arm, of_protection, setup.seed) for arm in ARMS]
        rows += [row for row in found if any(cell.text != NONE for cell in row.cells)]
    return Table(
        f"table-4-{pair[0]}-{pair[1]}",
        f"32 mm cube and the slices around its middle; {attack_words(pair, attacks)}",
        ("Protection", "Image"),
        _COLUMNS,
        tuple(rows),
    )


def _row(labels: tuple[str, str], arm: str, attacks: Sequence[MeasuredAttack], seed: int) -> Row:
    places: dict[int, list[Judged]] = {}
    for one in attacks:
        judged = [record["judged"] for record in one.result["targets"]]
        places.setdefault(one.patient, []).extend(place for place in judged if place and arm in place)

    def by_place(figure: Callable[[Sequence[Judged]], PlaceFigure], digits: int, factor: float = 1.0) -> Cell:
        found = estimate_by_place({patient: figure(own) for patient, own in places.items()}, seed)
        return cell_of(found.times(factor), digits)

    def percent(value: Callable[[Judged], float | None]) -> Cell:
        return by_place(lambda own: share_of_places([value(place) for place in own]), 1, 100.0)

    def area(own: Sequence[Judged]) -> PlaceFigure:
        return area_of_places(*([place[arm][f"forgery_{when}"] for place in own] for when in ("after", "before")))

    def past_all(verdict: Mapping[str, Any]) -> float | None:
        if not verdict["possible"]:
            return None
        return float(verdict["succeeded"] and not verdict.get("check_found", False))

    def lead(place: Judged) -> float | None:
        ours, theirs = past_all(place[arm]), past_all(place[CLEAN])
        return None if ours is None or theirs is None else ours - theirs

    def by_check(key: str) -> Cell:
        checked = any(f"check_{key}" in place[arm] for own in places.values() for place in own)
        return percent(lambda place: float(place[arm][f"check_{key}"])) if checked else Cell()

    def counted(verdict: Mapping[str, Any], key: str) -> float | None:
        return float(verdict[key]) if verdict["possible"] else None

    moved = observations(attacks, None, lambda record: record["forgery"].get(arm, {}).get("share"))
    count = sum(place[arm]["possible"] for own in places.values() for place in own)
    return Row(
        labels,
        (
            mean_cell(moved, 1, seed, within="median", factor=100.0),
            by_place(area, 2),
            percent(lambda place: float(not place[arm]["unnoticed"])),
            percent(lambda place: float(place[arm]["alarm"])),
            by_check("found"),
            by_check("alarm"),
            percent(lambda place: counted(place[arm], "achieved")),
            percent(lambda place: counted(place[arm], "succeeded")),
            percent(lambda place: past_all(place[arm])),
            percent(lead) if arm != CLEAN else Cell(),
            Cell(str(count)) if any(places.values()) else Cell(),
        ),
    )
