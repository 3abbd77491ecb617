"""An examination as one self-contained HTML page: the verdict, its limits, and pictures of each place."""

from __future__ import annotations

from pathlib import Path

from ..examination.verdict import ChangedPlace, Verdict, Voxel
from ..scan.volume import CTVolume
from ..scan.windows import LUNG, MEDIASTINUM
from .html import PagePicture, render_page, save_page
from .pictures import render_slice

_EDGE_MM = 64.0
_INCHES = 3.2
_MOST_PLACES = 24


def render_examination(volume: CTVolume, verdict: Verdict, *, title: str) -> str:
    """The page as HTML with all pictures inside.

    :param title: what the scan is called; must not hold a patient's name.
    """
    shown = verdict.places[:_MOST_PLACES]
    return render_page(
        "examination.html.j2",
        title=title,
        verdict=verdict,
        places=[(place, _figures(volume, place)) for place in shown],
        left_out=len(verdict.places) - len(shown),
    )


def save_examination(volume: CTVolume, verdict: Verdict, path: Path, *, title: str) -> None:
    """Write the page; it appears whole or not at all. An older one is replaced."""
    save_page(render_examination(volume, verdict, title=title), path)


def _figures(volume: CTVolume, place: ChangedPlace) -> list[PagePicture]:
    found = [
        _figure(volume, place.kji, "This place, lung window", LUNG),
        _figure(volume, place.kji, "This place, mediastinal window", MEDIASTINUM),
    ]
    if place.source_kji is not None:
        found.append(_figure(volume, place.source_kji, "The other place that has the same noise", LUNG))
    return found


def _figure(volume: CTVolume, kji: Voxel, caption: str, window: object) -> PagePicture:
    k = min(max(kji[0], 0), volume.shape[0] - 1)
    low = [max(0, int(at - _EDGE_MM / 2 / mm)) for at, mm in zip(kji[1:], volume.spacing_kji[1:], strict=True)]
    high = [int(at + _EDGE_MM / 2 / mm) + 1 for at, mm in zip(kji[1:], volume.spacing_kji[1:], strict=True)]
    png = render_slice(
        volume.hu[k, low[0] : high[0], low[1] : high[1]],
        window=window,
        title=f"slice {k}",
        spacing=volume.spacing_kji[1:],
        direction=volume.direction,
        crosshair=(kji[1] - low[0], kji[2] - low[1]),
        picture_inches=_INCHES,
    )
    return PagePicture(png, f"{caption}: slice {k}, 64 mm")
