"""What an evaluation leaves: one JSON with everything, tables as Markdown, LaTeX and CSV, figures as PNG and SVG.

Nothing here holds a path or a patient's identity; scans go by the names that the evaluation gave them.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from MITSGANLib import __version__
from MITSGANLib.files.atomic import atomic_folder

from ..training.run import commit
from .figures import as_png, as_svg
from .layout import CSV_COLUMNS, ResultSection, to_csv_rows, to_latex, to_markdown
from .scans import Case
from .tables import MeasuredAttack, Setup, WholeScan

REPORT = "evaluation.json"
_ATTACK = ("scan", "patient", "protection", "attacker", "action")
_MEASUREMENT_COLUMNS = (*_ATTACK, "k", "j", "i", "image", "region", "figure", "value")


def to_record(
    setup: Setup,
    cases: Sequence[Case],
    attacks: Sequence[MeasuredAttack],
    whole: Sequence[WholeScan],
    sections: Sequence[ResultSection],
) -> dict[str, Any]:
    """Everything as JSON: what it was measured with, every target, every table with its definitions."""
    settings = setup.settings
    return {
        "made_by": {
            "mitsgan": __version__,
            "commit": commit(),
            "measurement": settings.measurement,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "settings": {
            "seed": settings.seed,
            "actions": list(setup.actions),
            "data_range_hu": settings.data_range_hu,
            "lpips": setup.lpips,
            "device": settings.device,
            "judges": dict(setup.judges) if setup.judges else None,
            "planted": setup.planted,
        },
        "scans": [
            {
                "name": case.name,
                "patient": case.patient,
                "sha256": case.subject.digest,
                "shape": list(case.subject.shape),
                "spacing_kji_mm": list(case.subject.spacing_kji),
                "noise_hu": case.subject.noise_hu,
                "targets": [
                    {**_plain(target), "scene": number}
                    for number, scene in enumerate(case.subject.scenes)
                    for target in scene.targets
                ],
                "left_out": [{**_plain(target), "reason": reason} for target, reason in case.subject.skipped],
            }
            for case in cases
        ],
        "failures": list(setup.failures),
        "protections": [protection.describe() for protection in setup.protections],
        "attackers": [{"name": a.name, "sha256": dict(a.digests)} for a in setup.attackers],
        "whole_scans": [_flat(one) for one in whole],
        "measurements": [_flat(one) for one in attacks],
        "sections": [_plain(section) for section in sections],
    }


def _flat(found: MeasuredAttack | WholeScan) -> dict[str, Any]:
    """Whose it is beside what was measured."""
    return {**{name: value for name, value in vars(found).items() if name != "result"}, **found.result}


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as JSON holds them; what has a form of its own gives it."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {name: _plain(one) for name, one in vars(value).items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def write_results(
    folder: Path,
    sections: Sequence[ResultSection],
    figures: Mapping[str, tuple[Figure, str]],
    record: Mapping[str, Any],
) -> None:
    """All files in one folder, which appears whole and replaces an older one.

    :param figures: figure and caption by file name.
    :raises OutputError: when it cannot be written.
    """
    pictures = [(f"{name}.png", caption) for name, (_, caption) in figures.items()]
    with atomic_folder(folder, overwrite=True) as temporary:
        for name, (figure, _) in figures.items():
            (temporary / f"{name}.png").write_bytes(as_png(figure))
            (temporary / f"{name}.svg").write_bytes(as_svg(figure))
        (temporary / "tables.md").write_text(to_markdown("Evaluation", sections, pictures), encoding="utf-8")
        (temporary / "tables.tex").write_text(to_latex(sections), encoding="utf-8")
        _write_csv(temporary / "tables.csv", CSV_COLUMNS, to_csv_rows(sections))
        _write_csv(temporary / "measurements.csv", _MEASUREMENT_COLUMNS, _measurement_rows(record))
        (temporary / REPORT).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _measurement_rows(record: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """One row for each figure at each target.

    The forgery's own and moved are RMSE in HU, its share a ratio; judges' scores are from 0 to 1, verdicts 0 or 1.
    """
    for found in record["measurements"]:
        for target in found["targets"]:
            start = (*(found[key] for key in _ATTACK), *target["kji"])
            for image, regions in target["against_clean"].items():
                for region, figures in regions.items():
                    for name, value in figures.items():
                        yield (*start, image, region, name, value)
            for arm, figures in target["forgery"].items():
                for name, value in figures.items():
                    yield (*start, f"{arm} attacked", "middle", f"forgery {name}", value)
            for arm, figures in (target["judged"] or {}).items():
                for name, value in figures.items():
                    yield (*start, f"{arm} attacked", "cube", name, int(value) if isinstance(value, bool) else value)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
