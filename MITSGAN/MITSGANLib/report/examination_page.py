"""An examination as one self-contained HTML page: the verdict, its limits, and pictures of each place."""

from __future__ import annotations

import base64
from pathlib import Path

from ..examination.verdict import ChangedPlace, Verdict, Voxel
from ..scan.volume import CTVolume
from ..scan.windows import LUNG, MEDIASTINUM
from .pictures import render_slice

_EDGE_MM = 64.0
_INCHES = 3.2
_MOST_PLACES = 24

_TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>MITSGAN examination: {{ title }}</title>
<style>
  :root { color-scheme: light dark; --line: #8884; }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
  .grid { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); }
  figure { margin: 0; } figure img { width: 100%; height: auto; background: #000; border-radius: 4px; }
  figcaption { font-size: .85rem; opacity: .85; }
</style></head><body>
<h1>{{ title }}: {{ verdict.outcome.value }}</h1>
<ul>{% for reason in verdict.reasons %}<li>{{ reason }}</li>{% endfor %}
{% for one in verdict.evidence %}<li>{{ one.kind }}: {{ one.text }}</li>{% endfor %}</ul>
<h2>What was examined</h2>
<ul>{% for kind, share in verdict.told %}<li>{{ kind }}: {{ "%.0f"|format(100 * share) }} % of the lungs can be told
about</li>{% endfor %}</ul>
{% if verdict.excluded %}<p>Would mostly have been listed there:</p>
<ul>{% for kind in verdict.excluded %}<li>{{ kind }}</li>{% endfor %}</ul>{% endif %}
<p>Not excluded:</p>
<ul>{% for kind in verdict.not_excluded %}<li>{{ kind }}</li>{% endfor %}</ul>
{% for place in places %}
<h2>Voxel {{ place.place.kji }}</h2>
<p>{{ place.place.words }}. LPS {{ place.place.lps_mm }} mm.</p>
<div class="grid">{% for caption, data in place.figures %}<figure><img alt="{{ caption }}"
src="data:image/png;base64,{{ data }}"><figcaption>{{ caption }}</figcaption></figure>{% endfor %}</div>
{% endfor %}
{% if left_out %}<p>{{ left_out }} more places are in the command's --json.</p>{% endif %}
</body></html>
"""


def render_examination(volume: CTVolume, verdict: Verdict, *, title: str) -> str:
    """The page as HTML with all pictures inside.

    :param title: what the scan is called; must not hold a patient's name.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    shown = verdict.places[:_MOST_PLACES]
    places = [{"place": place, "figures": _figures(volume, place)} for place in shown]
    left_out = len(verdict.places) - len(shown)
    return environment.from_string(_TEMPLATE).render(title=title, verdict=verdict, places=places, left_out=left_out)


def save_examination(volume: CTVolume, verdict: Verdict, path: Path, *, title: str) -> None:
    """Write the page; it appears whole or not at all. An older one is replaced."""
    from ..files.atomic import atomic_file

    html = render_examination(volume, verdict, title=title)
    with atomic_file(path, overwrite=True) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _figures(volume: CTVolume, place: ChangedPlace) -> list[tuple[str, str]]:
    found = [
        _figure(volume, place.kji, "This place, lung window", LUNG),
        _figure(volume, place.kji, "This place, mediastinal window", MEDIASTINUM),
    ]
    if place.source_kji is not None:
        found.append(_figure(volume, place.source_kji, "The other place that has the same noise", LUNG))
    return found


def _figure(volume: CTVolume, kji: Voxel, caption: str, window: object) -> tuple[str, str]:
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
    return f"{caption}: slice {k}, 64 mm", base64.b64encode(png).decode("ascii")
