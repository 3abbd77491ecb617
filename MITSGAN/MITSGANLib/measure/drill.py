"""Drills: the sealed answer sheet of a simulated attack, and how well a reader found what it says.

A sheet is a container of AES-256-GCM (``seal.container``), so a reader who has the file learns nothing without the key,
and nobody can change it unnoticed. A scan without a forgery has a sheet, too: its headers look the same.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, reading
from ..keys.key_files import Key
from ..scan.targets import ACTIONS
from ..scan.volume import CTVolume, lps_from_ras
from ..seal.container import close_container, open_container

SUFFIX = ".answers"
# An attack replaces a cube of 32 mm: within half of that a reader has pointed at it.
TOLERANCE_MM = 16.0
LARGEST_FILE = 1 << 20
CONFIDENCE = 0.95

_KIND = "MITSGAN drill answers 1"
_POINTS = {"voxel": ("slice", "row", "column"), "lps": ("lps_x", "lps_y", "lps_z"), "ras": ("ras_x", "ras_y", "ras_z")}


@dataclass(frozen=True)
class Forgery:
    """What was done, and where: ``lps_mm`` in LPS, ``kji`` as (slice, row, column)."""

    action: str
    lps_mm: tuple[float, float, float]
    kji: tuple[int, int, int]
    attacker: str = ""
    attacker_sha256: str = ""


@dataclass(frozen=True)
class AnswerSheet:
    """The answers of one scan of a drill.

    ``name`` is that of its folder. ``spacing`` (mm), ``origin`` (LPS mm) and ``direction`` (nine numbers, row by row)
    are those of ``CTVolume``, to place a reader's voxels.
    """

    series_uid: str
    name: str
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]
    forgeries: tuple[Forgery, ...] = ()

    def voxel_to_lps(self, kji: Sequence[float]) -> np.ndarray:
        """LPS mm of a voxel (slice, row, column)."""
        grid = CTVolume(np.zeros((1, 1, 1), np.int16), self.spacing, self.origin, np.reshape(self.direction, (3, 3)))
        return grid.voxel_to_lps(kji)


@dataclass(frozen=True)
class Answer:
    """One place that a reader named in a scan: LPS mm; and what was done there, if they said so."""

    scan: str
    lps_mm: tuple[float, float, float]
    action: str = ""


@dataclass(frozen=True)
class DrillScore:
    """How a reader did.

    A forgery is *found* if an answer lies within ``tolerance_mm`` of it; each answer finds one at most, the nearest
    first. All other answers are false positives. ``distances_mm`` are those of the forgeries that were found.
    ``right_actions`` of ``named_actions`` are found forgeries of which the reader said rightly what was done.
    ``clean`` are scans without a forgery, ``called_clean`` those of them in which the reader named no place.
    """

    tolerance_mm: float
    scans: int
    forgeries: int
    found: int
    false_positives: int
    clean: int
    called_clean: int
    named_actions: int
    right_actions: int
    distances_mm: tuple[float, ...]

    @property
    def sensitivity(self) -> tuple[float, float, float] | None:
        """The share of forgeries found, with its 95 % interval (Clopper and Pearson 1934); None without forgeries."""
        return share(self.found, self.forgeries)

    @property
    def specificity(self) -> tuple[float, float, float] | None:
        """The share of scans without a forgery that were called so, with its interval; None without such scans."""
        return share(self.called_clean, self.clean)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        rates = {"sensitivity": self.sensitivity, "specificity": self.specificity}
        return {
            **asdict(self),
            **{name: rate and [round(value, 4) for value in rate] for name, rate in rates.items()},
            "false_positives_per_scan": round(self.false_positives / self.scans, 4),
            "confidence": CONFIDENCE,
        }


def share(part: int, whole: int) -> tuple[float, float, float] | None:
    """A share with the exact interval of Clopper and Pearson at :data:`CONFIDENCE`; None of nothing."""
    if not whole:
        return None
    from scipy.stats import binomtest

    interval = binomtest(part, whole).proportion_ci(CONFIDENCE, method="exact")
    return part / whole, float(interval.low), float(interval.high)


def seal_sheet(sheet: AnswerSheet, key: Key) -> bytes:
    """The bytes of a sheet's file."""
    return close_container(json.dumps(asdict(sheet)).encode(), {"kind": _KIND}, key)


def read_sheet(path: Path, key: Key) -> AnswerSheet:
    """Open an answer sheet.

    :raises InputError: it cannot be read, is none, or the key is another.
    """
    identity, payload = open_container(_content(path), key)
    try:
        if identity != {"kind": _KIND}:
            raise ValueError("another kind")
        values = json.loads(payload)
        forgeries = tuple(
            Forgery(**{**one, "lps_mm": tuple(one["lps_mm"]), "kji": tuple(one["kji"])})
            for one in values.pop("forgeries")
        )
        vectors = {name: tuple(map(float, values.pop(name))) for name in ("spacing", "origin", "direction")}
        return AnswerSheet(**values, **vectors, forgeries=forgeries)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("is no answer sheet of a drill", path=path, hint="give the .answers file") from error


def read_answers(path: Path, sheets: Iterable[AnswerSheet]) -> list[Answer]:
    """Read what a reader answered: CSV with a line of names, or a JSON list of objects with the same names.

    Each is one place: ``scan`` (the name of the folder, or its Series Instance UID), and ``slice``, ``row`` and
    ``column``, or ``lps_x``, ``lps_y`` and ``lps_z``, or ``ras_x``, ``ras_y`` and ``ras_z``; ``action`` may say
    ``inject`` or ``remove``.

    :raises InputError: it cannot be read, or a line names no scan of the sheets or no place.
    """
    by_name = {name: sheet for sheet in sheets for name in (sheet.name, sheet.series_uid)}
    return [_answer(row, f"answer {number}", path, by_name) for number, row in enumerate(_rows(path), 1)]


def score(sheets: Sequence[AnswerSheet], answers: Iterable[Answer], tolerance_mm: float = TOLERANCE_MM) -> DrillScore:
    """Compare a reader's answers with the sheets; see :class:`DrillScore`.

    :raises InputError: there are no sheets, or two of one scan.
    """
    if len({sheet.series_uid for sheet in sheets}) < max(1, len(sheets)):
        raise InputError("The answer sheets name a scan twice, or there are none; give each sheet once.")
    given: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        given[answer.scan].append(answer)
    distances, false_positives, named, right = [], 0, 0, 0
    for sheet in sheets:
        left, hidden = given[sheet.series_uid], sheet.forgeries
        pairs = itertools.product(range(len(hidden)), range(len(left)))
        taken: set[int] = set()
        found: set[int] = set()
        for distance, i, k in sorted((math.dist(hidden[i].lps_mm, left[k].lps_mm), i, k) for i, k in pairs):
            if distance > tolerance_mm or i in found or k in taken:
                continue
            found.add(i)
            taken.add(k)
            distances.append(round(distance, 2))
            named += bool(left[k].action)
            right += left[k].action == hidden[i].action
        false_positives += len(left) - len(taken)
    clean = [sheet for sheet in sheets if not sheet.forgeries]
    return DrillScore(
        tolerance_mm=tolerance_mm,
        scans=len(sheets),
        forgeries=sum(len(sheet.forgeries) for sheet in sheets),
        found=len(distances),
        false_positives=false_positives,
        clean=len(clean),
        called_clean=sum(not given[sheet.series_uid] for sheet in clean),
        named_actions=named,
        right_actions=right,
        distances_mm=tuple(distances),
    )


def _content(path: Path) -> bytes:
    with reading(path, "check its name"):
        if path.stat().st_size > LARGEST_FILE:
            raise InputError("is too large", path=path, hint="check its name")
        return path.read_bytes()


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = _content(path).decode("utf-8-sig")
        if text.lstrip()[:1] in ("[", "{"):
            rows = json.loads(text)
        else:
            delimiter = ";" if ";" in text.split("\n", 1)[0] else ","  # as spreadsheets of many countries write it
            rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True))
    except (UnicodeDecodeError, ValueError, csv.Error, RecursionError) as error:
        raise InputError("is neither CSV nor JSON", path=path, hint="save the answers as CSV") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError("holds no list of answers", path=path, hint="give one line, or one object, for each place")
    return [{str(name).strip().lower(): value for name, value in row.items()} for row in rows]


def _answer(row: Mapping[str, Any], place: str, path: Path, by_name: Mapping[str, AnswerSheet]) -> Answer:
    sheet = by_name.get(str(row.get("scan", "")).strip())
    if sheet is None:
        raise InputError(
            f"names in {place} a scan that is in no answer sheet", path=path, hint="write the name of its folder"
        )
    action = str(row.get("action") or "").strip().lower()
    if action and action not in ACTIONS:
        raise InputError(
            f"has in {place} an unknown action", path=path, hint=f"write {' or '.join(ACTIONS)}, or nothing"
        )
    for kind, names in _POINTS.items():
        try:
            point = [float(row[name]) for name in names]
        except (KeyError, TypeError, ValueError):
            continue
        if all(map(math.isfinite, point)):
            lps = {"voxel": sheet.voxel_to_lps, "lps": np.asarray, "ras": lps_from_ras}[kind](point)
            return Answer(sheet.series_uid, tuple(map(float, lps)), action)
    raise InputError(f"has in {place} no place", path=path, hint="write slice,row,column or lps_x,lps_y,lps_z")
