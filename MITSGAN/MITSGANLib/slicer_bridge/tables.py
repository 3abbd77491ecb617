"""Figures as nodes of Slicer's own kinds: the metrics table, and the plot of the change in each slice."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from ..measure import attack_effect
from ..scan.windows import LUNG
from ..watermark.checking import Place

COLUMNS = ("Compared", "Region", "Metric", "Value", "Unit", "Worst slice", "Worst value", "Definition")
FIGURE_COLUMNS = ("What", "Value", "Meaning")
_SLICE_COLUMN = "Slice"
_HEADROOM = 1.4
_SERIES_COLORS = ((0.10, 0.45, 0.85), (0.85, 0.35, 0.0), (0.45, 0.65, 0.15))


def metrics_table(
    pairs: Sequence[attack_effect.ComparedPair], name: str, watermark: Place | None = None
) -> slicer.vtkMRMLTableNode:
    """A new table node with one row for each metric of each pair; where there is no figure, the reason.

    :param watermark: what is left of it at the target after the attack, for two rows more.
    """
    rows = [row for pair in pairs for row in _rows(pair)]
    rows += _watermark_rows(watermark) if watermark else []
    return _text_table(COLUMNS, rows, name)


def _text_table(columns: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> slicer.vtkMRMLTableNode:
    node = slicer.vtkMRMLTableNode()
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    for index, title in enumerate(columns):
        column = vtk.vtkStringArray()
        column.SetName(title)
        for row in rows:
            column.InsertNextValue(row[index])
        node.AddColumn(column)
    node.SetUseColumnTitleAsColumnHeader(True)
    node.SetLocked(True)
    return slicer.mrmlScene.AddNode(node)


def figures_table(effect: attack_effect.Effect, name: str) -> slicer.vtkMRMLTableNode:
    """A new table node of the few figures that answer what protection and attack did, in plain words."""
    return _text_table(FIGURE_COLUMNS, [*_protection_rows(effect), *_attack_rows(effect.attack)], name)


def _protection_rows(effect: attack_effect.Effect) -> Iterator[tuple[str, str, str]]:
    rmse, most, noise = effect.protection.rmse.value, effect.protection.max_abs_difference, effect.noise_sd_hu
    words = _("{ratio:.2f} of the scan's noise").format(ratio=rmse / noise) if noise else ""
    words = words or _("root mean square of all voxels")
    yield _("Protection changed the scan by"), _("{rmse:.1f} HU").format(rmse=rmse), words
    words = _("one voxel, in slice {k}").format(k=most.worst_slice.slice)
    yield _("Largest change by protection"), _("{most:.0f} HU").format(most=most.value), words
    likeness = next((metric for metric in effect.protection.windowed_ssim if metric.window is LUNG), None)
    if likeness and likeness.value is not None:
        value = _("{value:.4f}").format(value=likeness.value)
        yield _("Likeness to the original"), value, _("1 is the same (SSIM, lung window)")


def _attack_rows(effect: attack_effect.AttackEffect | None) -> Iterator[tuple[str, str, str]]:
    if effect is None or not effect.forgery.own.rmse.value:
        return
    forgery, share, shares = effect.forgery, _("{share:.1%}"), effect.forgery.noise_shares
    change = _("{attack:.0f} HU").format(attack=forgery.own.rmse.value)
    yield _("The attack changed what it forged by"), change, _("in the 20 mm that the network makes up")
    moved = share.format(share=forgery.share(attack_effect.PROTECTED))
    yield _("Protection moved the forgery by"), moved, _("of the attack's own change")
    if shares:
        words = _("from {low:.1%} to {high:.1%} in {count} draws")
        words = words.format(low=shares[0], high=shares[-1], count=len(shares))
        yield _("Noise of the same size moved it by"), share.format(share=forgery.share(attack_effect.NOISE)), words
    tried = (attack_effect.CLEAN, attack_effect.PROTECTED, attack_effect.INTO_ORIGINAL, attack_effect.NOISE)
    arms = [effect.succeeded(arm) for arm in tried]
    if None not in arms:
        (original, _one), (protected, _one), (painted, _one), (noisy, draws) = arms
        outcome = {0: _("fails"), 1: _("succeeds")}
        words = _("on the original it {outcome}, with noise {noisy} of {draws} times; two small networks judge")
        words = words.format(outcome=outcome[original], noisy=noisy, draws=draws)
        yield _("On the protected scan the attack"), outcome[protected], words
        if painted > protected:
            words = _("so protection misleads the judges; for the eye the nodule is there")
            yield _("What it painted there, in the original,"), outcome[painted], words
    place = effect.watermark
    if place is not None:
        left = _("{share:.0%}").format(share=max(place.seen / place.expected, 0)) if place.can_tell else "–"
        if place.is_missing:
            words = _("the forgery shows")
        else:
            words = _("the forgery does not show") if place.can_tell else _("too weak there to tell")
        yield _("Watermark left at the forgery"), left, words


def table_text(node: slicer.vtkMRMLTableNode, separator: str = "\t") -> str:
    """The table as lines of text, the titles first. Cells that hold the separator or quotes are quoted as in CSV."""
    table = node.GetTable()
    columns = range(table.GetNumberOfColumns())
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(table.GetColumnName(column) for column in columns)
    for row in range(table.GetNumberOfRows()):
        writer.writerow(node.GetCellText(row, column) for column in columns)
    return text.getvalue()


def rmse_chart(rmse_by_slice: Mapping[str, Sequence[float]], name: str) -> slicer.vtkMRMLPlotChartNode:
    """A new chart node of RMSE in HU over the slice index (0-based), one line for each entry, and its table."""
    scene = slicer.mrmlScene
    table = slicer.vtkMRMLTableNode()
    table.SetName(scene.GenerateUniqueName(f"{name} values"))
    slices = max((len(values) for values in rmse_by_slice.values()), default=0)
    for title, values in ((_SLICE_COLUMN, np.arange(slices)), *rmse_by_slice.items()):
        column = numpy_to_vtk(np.asarray(values, dtype=np.float64), deep=True)
        column.SetName(title)
        table.AddColumn(column)
    scene.AddNode(table)
    chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", scene.GenerateUniqueName(name))
    chart.SetTitle(_("Change by slice"))
    chart.SetXAxisTitle(_("Slice index"))
    chart.SetYAxisTitle(_("RMSE (HU)"))
    chart.SetLegendVisibility(len(rmse_by_slice) > 1)
    # Room for the legend, which would hide the peak.
    most = max((value for values in rmse_by_slice.values() for value in values), default=0.0)
    chart.SetYAxisRangeAuto(False)
    chart.SetYAxisRange(0.0, _HEADROOM * most or 1.0)
    names = {attack_effect.PROTECTION_PAIR: _("by the protection"), attack_effect.ATTACK_PAIR: _("by the attack")}
    for index, title in enumerate(rmse_by_slice):
        series = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", names.get(title, title))
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName(_SLICE_COLUMN)
        series.SetYColumnName(title)
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        # Only a marker can be clicked.
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle)
        series.SetMarkerSize(5)
        series.SetColor(_SERIES_COLORS[index % len(_SERIES_COLORS)])
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    return chart


def slice_of_point(series_node: slicer.vtkMRMLPlotSeriesNode, point: int) -> int:
    """The slice index that a point of a chart made by :func:`rmse_chart` stands for."""
    column = series_node.GetTableNode().GetTable().GetColumnByName(_SLICE_COLUMN)
    return int(column.GetValue(point))


def _rows(pair: attack_effect.ComparedPair) -> list[tuple[str, ...]]:
    comparison = pair.comparison
    return [
        (
            pair.compared,
            comparison.region.name,
            metric.name,
            _text(metric.value),
            metric.unit,
            str(metric.worst_slice.slice) if metric.worst_slice else "",
            _text(metric.worst_slice.value) if metric.worst_slice else "",
            metric.definition if metric.value is not None else f"no value: {metric.reason}",
        )
        for metric in comparison.metrics.values()
    ]


def _watermark_rows(place: Place) -> list[tuple[str, ...]]:
    where = f"{place.window_mm:.0f} mm around the target"
    definition = (
        "of the open watermark, in the window that shows a loss most, in standard deviations of what chance gives; "
        f"missing where it falls short by more than {place.threshold:.1f}"
    )
    figures = (
        ("watermark left", place.seen, "what is left "),
        ("watermark expected", place.expected, "what would be "),
    )
    return [
        (attack_effect.ATTACK_ON_PROTECTED_PAIR, where, name, _text(value), "sd", "", "", words + definition)
        for name, value, words in figures
    ]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
