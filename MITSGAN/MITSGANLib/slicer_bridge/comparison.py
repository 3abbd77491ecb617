"""What a comparison puts into the scene: a table, a chart, and a heatmap for each volume that differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from ..measure.attack_effect import Effect
from .differences import DEFAULT_THRESHOLD, REFERENCES, Difference, difference_node
from .tables import figures_table, metrics_table, rmse_chart


@dataclass(frozen=True)
class ComparisonNodes:
    """The nodes and figures of one comparison.

    :param table: every metric with its definition.
    :param figures: the few that answer the question, in plain words.
    :param heatmaps: by view, see :data:`~MITSGANLib.slicer_bridge.differences.REFERENCES`.
    """

    table: slicer.vtkMRMLTableNode
    figures: slicer.vtkMRMLTableNode
    chart: slicer.vtkMRMLPlotChartNode
    heatmaps: dict[str, slicer.vtkMRMLScalarVolumeNode]
    effect: Effect


def comparison_nodes(
    effect: Effect,
    differences: Mapping[str, Difference],
    volumes: Mapping[str, slicer.vtkMRMLScalarVolumeNode],
    threshold: float = DEFAULT_THRESHOLD,
) -> ComparisonNodes:
    """Make the nodes in the scene.

    :param differences, volumes: by the names of the views; the attacked ones may be missing.
    :param threshold: share of a heatmap's full color up to which nothing is colored.
    """
    heatmaps = {
        view: difference_node(
            shown,
            _("{name} difference").format(name=volumes[view].GetName()),
            volumes[REFERENCES[view]],
            threshold=threshold,
        )
        for view, shown in differences.items()
    }
    name = volumes["source"].GetName()
    return ComparisonNodes(
        metrics_table(effect.findings, _("{name} metrics").format(name=name), effect.watermark),
        figures_table(effect, _("{name} figures").format(name=name)),
        rmse_chart(effect.rmse_by_slice, _("{name} change").format(name=name)),
        heatmaps,
        effect,
    )
