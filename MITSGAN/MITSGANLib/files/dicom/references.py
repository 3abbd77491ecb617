"""What lies beside a series and refers to it: structure sets, doses, segmentations, reports.

A derived series has new UIDs, so these still refer to the original one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...errors import reading
from .headers import Header
from .series import DicomScan

# Modalities of objects that are made of references to others; images of other modalities hold none worth the reading.
REFERRING = frozenset("DOC FID KO PLAN PR REG RTDOSE RTPLAN RTRECORD RTSTRUCT RWV SEG SR".split())  # noqa: SIM905
# References stand in headers. Of long contours and of pixels no more is read.
SEARCHED_BYTES = 1 << 25
_UID = re.compile(rb"[0-9][0-9.]{5,63}")


@dataclass(frozen=True)
class LeftBehind:
    """Objects of one modality beside a series.

    :param refers: whether any of them names the series, an image of it, or its frame of reference.
    """

    modality: str
    files: tuple[Path, ...]
    refers: bool


def left_behind(scan: DicomScan, uid: str) -> tuple[LeftBehind, ...]:
    """What a scan holds besides the series ``uid``, by modality, those first that refer to it.

    :raises InputError: a file cannot be read.
    """
    chosen = next(series for series in scan.series if series.uid == uid)
    others = [header for series in scan.series if series is not chosen for header in series.headers]
    others += [header for header in chosen.left_out if not header.is_ct_image]
    by_modality: dict[str, list[Header]] = defaultdict(list)
    for header in others:
        by_modality[header.text("Modality") or "unknown"].append(header)
    # The UIDs by which an object may refer to the series.
    keywords = ("SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    names = {header.text(word).encode() for header in chosen.images for word in keywords} - {b""}
    found = []
    for modality, headers in by_modality.items():
        files = tuple(header.path for header in headers)
        refers = modality in REFERRING and any(not names.isdisjoint(_uids(file)) for file in files)
        found.append(LeftBehind(modality, files, refers))
    return tuple(sorted(found, key=lambda one: (not one.refers, one.modality)))


def _uids(path: Path) -> Iterable[bytes]:
    """All that looks like a UID in the bytes of a file, in whichever element and item it stands."""
    with reading(path), path.open("rb") as file:
        return _UID.findall(file.read(SEARCHED_BYTES))
