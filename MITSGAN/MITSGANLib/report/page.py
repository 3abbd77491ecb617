"""The demonstration as one self-contained HTML page: pictures, tables, definitions, and what was not measured."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..measure.attack_effect import (
    ATTACK_ON_PROTECTED_PAIR,
    ATTACK_PAIR,
    CLEAN,
    FORGERY_PAIR,
    INTO_ORIGINAL,
    NOISE,
    NOISE_SEEDS,
    PROTECTED,
    PROTECTION_PAIR,
    ForgeryEffect,
)
from ..measure.metrics import Metric
from ..scan.regions import Region
from .demonstration import Demonstration, TargetResult
from .html import PagePicture, PageTable, save_page
from .pictures import Look, difference_overlay, render_slice, rmse_bars

_ZOOM_MM = 64.0
# Four pictures or three heatmaps stand in a row; drawn at that size their text stays readable and the page small.
_SMALL_INCHES, _HEATMAP_INCHES = 3.2, 4.2
_PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "pydicom", "scikit-image", "lpips")
_PAIR_TITLES = {
    PROTECTION_PAIR: "Protected vs clean",
    ATTACK_PAIR: "Clean, attacked vs clean",
    ATTACK_ON_PROTECTED_PAIR: "Protected, attacked vs protected",
    FORGERY_PAIR: "Protected, attacked vs clean, attacked",
}
_ARM_TITLES = {
    "clean": "Clean",
    "protected": "Protected",
    "clean attacked": "Clean, attacked",
    "protected attacked": "Protected, attacked",
    "noise attacked": "Noise, attacked",
}
_BLINDED = (
    "Where it fails on the protected scan, and what is painted from that succeeds in the original, protection misled "
    "the judges; for the eye the nodule is there"
)


def save_report(demonstration: Demonstration, path: Path, *, title: str, synthetic: bool = False) -> None:
    """Write the report as HTML with all pictures inside; see :func:`.html.save_page`.

    :param title: what the scan is called in the report; must not hold a patient's name.
    :param synthetic: whether the scan is a phantom, which the report then says on top.
    """
    save_page(
        path,
        "report.html.j2",
        summary=_summary(demonstration),
        demo=demonstration,
        title=title,
        synthetic=synthetic,
        whole_table=_whole_table(demonstration),
        whole_figures=_whole_figures(demonstration),
        rmse_figure=_rmse_figure(demonstration),
        effect_table=_effect_table(demonstration),
        targets=[_target(demonstration, result) for result in demonstration.targets],
        versions={"MITSGAN": __version__, "Python": platform.python_version()}
        | {package: _version(package) for package in _PACKAGES},
    )


def _summary(demo: Demonstration) -> str:
    figures = demo.summary()
    first = f"Protection with {demo.protector.title} changed the scan by RMSE {figures['rmse_hu']:.1f} HU"
    if figures["noise_hu"]:
        first += f"; the scan's own noise is {figures['noise_hu']:.1f} HU (standard deviation in soft tissue)"
    sentences = [first]
    for action in ("inject", "remove"):
        if action in figures:
            found = figures[action]
            places = "1 place" if found["targets"] == 1 else f"{found['targets']} places"
            shares = (_percent(found[f"median_share_changed_by_{arm}"]) for arm in ("protection", "noise"))
            draws = found["noise_draws"] and " (from {} to {})".format(*map(_percent, found["noise_draws"]))
            sentences.append(
                "At {}, protection changed what the attacker forged ({}) by {} of the attack's own change "
                "(median); noise of the same size by {}{}".format(places, action, *shares, draws or "")
            )
            if found["succeeded"]:
                arms = {
                    CLEAN: "unprotected",
                    PROTECTED: "protected",
                    INTO_ORIGINAL: "painted from the protected scan into the original",
                    NOISE: "with noise",
                }
                counts = (f"{arms[arm]} {hits} of {count}" for arm, (hits, count) in found["succeeded"].items())
                sentences.append(f"For the judges, the attack ({action}) succeeds {', '.join(counts)} times")
                if INTO_ORIGINAL in found["succeeded"]:
                    sentences.append(_BLINDED)
    if "watermark" in figures:
        found = figures["watermark"]
        alarms = found["missing_before"]
        sentences.append(
            f"The watermark check shows the forgery at {found['missing_after_attack']} of {found['places']} attacked "
            f"places, and raised {alarms or 'no'} alarm{'s' * (alarms > 1)} there before"
        )
    return ". ".join(sentences) + "."


def _whole_table(demo: Demonstration) -> PageTable:
    rows = [
        (_metric_name(name, metric), _value(metric) + _worst(metric))
        for name, metric in demo.whole.metrics.items()
        if metric.value is not None
    ]
    if demo.noise_estimate.sd_hu:
        rows.append(("RMSE / scan noise", f"{demo.whole.rmse.value / demo.noise_estimate.sd_hu:.2f}"))
    reasons = sorted(
        {f"{_metric_name(m.name, m)}: {m.reason}." for m in demo.whole.metrics.values() if m.value is None}
    )
    return PageTable(("Metric (worst slice)", "Protected"), tuple(rows), tuple(reasons))


def _effect_table(demo: Demonstration) -> PageTable:
    header = (
        "Target",
        "Attack changed the clean scan",
        "Forgery changed by protection",
        f"Forgery changed by noise, median and range of {len(NOISE_SEEDS)} draws",
        "Attack succeeds: unprotected, protected, painted from protected into the original, with noise",
        "Watermark left: before the attack, after",
        "Forgery shows",
    )
    rows = tuple(
        (
            f"{r.target.action}, slice {r.target.kji[0]}, row {r.target.kji[1]}, column {r.target.kji[2]}",
            f"{r.effect.forgery.own.rmse.value:.1f} HU",
            f"{r.effect.forgery.moved[PROTECTED].rmse.value:.1f} HU ({_percent(r.effect.forgery.share(PROTECTED))})",
            _noise_cell(r.effect.forgery),
            _success_cell(r),
            *_watermark_cells(r),
        )
        for r in demo.targets
    )
    return PageTable(header, rows)


def _noise_cell(forgery: ForgeryEffect) -> str:
    shares = forgery.noise_shares
    return f"{_percent(forgery.share(NOISE))} ({_percent(shares[0])} to {_percent(shares[-1])})" if shares else "–"


def _success_cell(result: TargetResult) -> str:
    arms = [result.effect.succeeded(arm) for arm in (CLEAN, PROTECTED, INTO_ORIGINAL, NOISE)]
    if None in arms:
        return "nothing to reach" if result.effect.verdicts else "–"
    *once, (hits, draws) = arms
    return ", ".join(["yes" if arm[0] else "no" for arm in once] + [f"{hits} of {draws}"])


def _watermark_cells(result: TargetResult) -> tuple[str, str]:
    if result.watermark is None:
        return "–", "–"
    left = ", ".join(f"{max(place.seen / max(place.expected, 1e-9), 0):.0%}" for place in result.watermark)
    after = result.watermark[1]
    return left, ("yes" if after.is_missing else "no") if after.can_tell else "cannot be told"


def _whole_figures(demo: Demonstration) -> list[PagePicture]:
    worst = demo.whole.rmse.worst_slice.slice
    clean, protected = demo.clean.hu[worst], demo.protected.hu[worst]
    shown = render_slice(protected, _look(demo, title=f"Protected, slice {worst}"))
    change = difference_overlay(clean, protected, _look(demo, title=f"Protected − clean, slice {worst}"))
    return [
        PagePicture(shown, "The slice that the protection changed most"),
        PagePicture(change, "Signed change in HU over the clean slice"),
    ]


def _rmse_figure(demo: Demonstration) -> PagePicture:
    rmse = demo.whole.rmse
    values, worst = [value or 0.0 for value in rmse.per_slice], rmse.worst_slice.slice
    bars = rmse_bars(values, marked=[worst], title="RMSE of the protection by slice")
    return PagePicture(bars, "RMSE in HU of every slice; the worst one is marked")


def _target(demo: Demonstration, result: TargetResult) -> dict[str, Any]:
    k, j, i = result.target.kji
    verb = "Inject a nodule" if result.target.action == "inject" else "Remove a structure"
    zoom, inner = _zoom(demo, result)
    slices = result.slices

    def picture(arm: str, part: tuple[slice, ...], square: Region) -> PagePicture:
        look = _look(demo, title=_ARM_TITLES[arm], square=square, picture_inches=_SMALL_INCHES)
        words = "Simulated attack, not a patient's image" if arm.endswith("attacked") else ""
        return PagePicture(render_slice(slices[arm][part], look), words)

    def difference(one: str, other: str) -> bytes:
        title = f"{_ARM_TITLES[other]} − {_ARM_TITLES[one].lower()}"
        look = _look(demo, title=title, square=inner, picture_inches=_HEATMAP_INCHES)
        return difference_overlay(slices[one][zoom], slices[other][zoom], look, limit_hu=round(limit, -1))

    pairs = (
        ("clean", "clean attacked", "What the attack changes on the clean scan"),
        ("clean attacked", "protected attacked", "How protection changes the forgery"),
        ("clean attacked", "noise attacked", "How noise of equal RMSE changes the forgery"),
    )
    change = np.subtract(slices["clean attacked"][zoom], slices["clean"][zoom], dtype=np.float32)
    limit = max(10.0, float(np.percentile(np.abs(change), 99.5)))
    whole, square = ("clean", "protected", "clean attacked", "protected attacked"), result.effect.places.square
    return {
        "title": f"{verb} at slice {k}, row {j}, column {i}",
        "reason": f"Why here: {result.target.reason}.",
        "slices": [picture(arm, (), square) for arm in whole],
        "squares": [picture(arm, zoom, inner) for arm in (whole[0], *whole[2:], "noise attacked")],
        "heatmaps": [PagePicture(difference(one, other), caption) for one, other, caption in pairs],
        "table": _pairs_table(result),
    }


def _pairs_table(result: TargetResult) -> PageTable:
    pairs = {pair: result.effect.in_middle(pair) for pair in _PAIR_TITLES}
    names = pairs[PROTECTION_PAIR].metrics
    rows = [
        (_metric_name(name, metric), *(_value(comparison.metrics[name]) for comparison in pairs.values()))
        for name, metric in names.items()
        if any(comparison.metrics[name].value is not None for comparison in pairs.values())
    ]
    # The reasons for what is missing stand at the first table.
    return PageTable(("In the middle 20 mm", *_PAIR_TITLES.values()), tuple(rows))


def _look(demo: Demonstration, **rest: Any) -> Look:
    return Look(spacing=demo.clean.spacing_kji[1:], direction=demo.clean.direction, **rest)


def _zoom(demo: Demonstration, result: TargetResult) -> tuple[tuple[slice, slice], Region]:
    """Rows and columns of 64 mm around the target, and the attacked square within them."""
    rows, columns = (
        slice(max(round(at - _ZOOM_MM / 2 / mm), 0), min(round(at + _ZOOM_MM / 2 / mm), size))
        for at, mm, size in zip(result.target.kji[1:], demo.clean.spacing_kji[1:], demo.clean.shape[1:], strict=True)
    )
    s, j, i = result.effect.places.square, rows.start, columns.start
    return (rows, columns), dataclasses.replace(s, j0=s.j0 - j, j1=s.j1 - j, i0=s.i0 - i, i1=s.i1 - i)


def _metric_name(name: str, metric: Metric) -> str:
    words = {
        "rmse": "RMSE",
        "psnr": "PSNR",
        "ssim": "SSIM",
        "lpips": "LPIPS",
        "max_abs_difference": "Largest difference",
        "mean_bias": "Mean bias",
    }
    unit = f" ({metric.unit})" if metric.unit not in ("", "1") else ""
    window = f", {metric.window.name} window" if metric.window and name != "lpips" else ""
    return f"{words.get(name.split('_')[0] if metric.window else name, name)}{window}{unit}"


def _value(metric: Metric) -> str:
    return "–" if metric.value is None else _number(metric.value, metric.name)


def _worst(metric: Metric) -> str:
    worst = metric.worst_slice
    return f" ({_number(worst.value, metric.name)} in {worst.slice})" if worst else ""


def _number(value: float, name: str) -> str:
    digits = 4 if "ssim" in name or name == "lpips" else 1 if name == "psnr" else 2
    return f"{round(value, digits) + 0.0:.{digits}f}"  # adding 0 turns -0.00 into 0.00


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
