"""What a comparison puts into the scene: a table, a chart, and a heatmap for each volume that differs."""

from __future__ import annotations

from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from ..measure.attack_effect import Effect
from .differences import difference_node
from .tables import metrics_table, rmse_chart


@dataclass(frozen=True)
class ComparisonNodes:
    """The nodes and figures of one comparison.

    :param heatmaps: by view: "protected" and "source attacked" against the source, "protected attacked" against the
        protected volume.
    """

    table: slicer.vtkMRMLTableNode
    chart: slicer.vtkMRMLPlotChartNode
    heatmaps: dict[str, slicer.vtkMRMLScalarVolumeNode]
    effect: Effect


def comparison_nodes(
    effect: Effect, volumes: dict[str, slicer.vtkMRMLScalarVolumeNode | None], threshold_hu: float
) -> ComparisonNodes:
    """Make the nodes in the scene.

    :param volumes: by the names of the views; the attacked ones may be missing.
    :param threshold_hu: differences that the heatmaps leave clear.
    """
    references = {"protected": "source", "source attacked": "source", "protected attacked": "protected"}
    heatmaps = {
        view: difference_node(
            volumes[reference],
            volumes[view],
            _("{name} difference").format(name=volumes[view].GetName()),
            threshold_hu=threshold_hu,
        )
        for view, reference in references.items()
        if volumes.get(view)
    }
    name = volumes["source"].GetName()
    return ComparisonNodes(
        metrics_table(effect.findings, _("{name} metrics").format(name=name), effect.watermark),
        rmse_chart(effect.rmse_by_slice, _("{name} change").format(name=name)),
        heatmaps,
        effect,
    )
