"""Figures of ``mitsgan demo`` reports, written into the card of the protector that they measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from MITSGANLib import weights
from MITSGANLib.errors import InputError
from MITSGANLib.files.atomic import atomic_file

from .run import commit


def record_figures(folder: Path, name: str, reports: Sequence[Path]) -> Path:
    """Write the summaries of reports into the card of protector ``name``, by scan; the weights stay as they are.

    :param folder: folder of models.
    :raises InputError: when a report was made with other weights, or is none.
    :raises ModelError: when there is no such card.
    """
    path = folder / "protectors" / f"{name}.json"
    card = weights.ModelCard.read(path)
    figures = dict(card.figures)
    for report in reports:
        try:
            record = json.loads(report.read_text(encoding="utf-8"))
            digest, scan, summary = record["protector"]["sha256"], record["scan"], record["summary"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{report} is no report of mitsgan demo; give its report.json.") from error
        if digest != card.sha256:
            raise InputError(f"{report} was made with other weights than {path}; run mitsgan demo again.")
        targets = summary["inject"]["targets"]
        figures[scan] = {"command": f"mitsgan demo SCAN --targets {targets}", "commit": commit(), **summary}
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(dataclasses.replace(card, figures=figures).to_json(), encoding="utf-8")
    return path
