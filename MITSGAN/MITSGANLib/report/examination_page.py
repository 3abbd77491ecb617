"""An examination as one self-contained HTML page: the verdict, its limits, and pictures of each place."""

from __future__ import annotations

from pathlib import Path

from ..examination.verdict import ChangedPlace, Verdict, Voxel
from ..scan.volume import CTVolume
from ..scan.windows import LUNG, MEDIASTINUM, Window
from .html import PagePicture, save_page
from .pictures import Look, render_slice

_EDGE_MM = 64.0
_INCHES = 3.2
_MOST_PLACES = 24


def save_examination(volume: CTVolume, verdict: Verdict, path: Path, *, title: str) -> None:
    """Write the page as HTML with all pictures inside; see :func:`.html.save_page`.

    :param title: what the scan is called; must not hold a patient's name.
    """
    shown = verdict.places[:_MOST_PLACES]
    save_page(
        path,
        "examination.html.j2",
        title=title,
        verdict=verdict,
        places=[(place, _figures(volume, place)) for place in shown],
        left_out=len(verdict.places) - len(shown),
    )


def _figures(volume: CTVolume, place: ChangedPlace) -> list[PagePicture]:
    found = [
        _figure(volume, place.kji, "This place, lung window", LUNG),
        _figure(volume, place.kji, "This place, mediastinal window", MEDIASTINUM),
    ]
    if place.source_kji is not None:
        found.append(_figure(volume, place.source_kji, "The other place that has the same noise", LUNG))
    return found


def _figure(volume: CTVolume, kji: Voxel, caption: str, window: Window) -> PagePicture:
    k, in_plane, mm = min(max(kji[0], 0), volume.shape[0] - 1), kji[1:], volume.spacing_kji[1:]
    box = [
        slice(max(0, int(a - _EDGE_MM / 2 / n)), int(a + _EDGE_MM / 2 / n) + 1)
        for a, n in zip(in_plane, mm, strict=True)
    ]
    crosshair = tuple(at - part.start for at, part in zip(in_plane, box, strict=True))
    look = Look(f"slice {k}", window, mm, volume.direction, crosshair=crosshair, picture_inches=_INCHES)
    return PagePicture(render_slice(volume.hu[k, *box], look), f"{caption}: slice {k}, 64 mm")
