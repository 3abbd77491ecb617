"""All of the library that imports ``slicer``: what the panel shows, as MRML nodes, and back.

``volumes`` exchanges volume nodes and :class:`~MITSGANLib.volume.CTVolume`, ``inspection`` says whether a node looks
like CT, ``dicom_source`` finds the original files of a node, ``differences`` makes heatmap overlays, ``tables`` the
metrics table and the plot, ``comparison`` all of these together, ``layout`` the views. Nothing here imports ``qt``.
"""

from .comparison import ComparisonNodes, comparison_nodes
from .dicom_source import dicom_files_of, with_dicom_source
from .differences import difference_node, set_difference_threshold
from .inspection import Inspection, inspect_node
from .layout import (
    COMPARISON_LAYOUT,
    VIEWS,
    comparison_is_shown,
    jump_to_slice,
    plot_view_node,
    register_layout,
    restore_layout,
    set_window,
    show_comparison,
    show_heatmaps,
    show_volume,
)
from .tables import Finding, metrics_table, rmse_chart, slice_of_point, table_text
from .volumes import (
    DIFFERENCE_ATTRIBUTE,
    PADDING_ATTRIBUTE,
    PROTECTED_ATTRIBUTE,
    SIMULATED_ATTACK_ATTRIBUTE,
    SIMULATED_ATTACK_COLOR,
    SIMULATED_ATTACK_MARK,
    STEPS_ATTRIBUTE,
    SYNTHETIC_ATTRIBUTE,
    ct_from_node,
    first_scan,
    is_simulated_attack,
    node_from_volume,
    ras_from_voxel,
    remove_result,
    results_of,
    source_of,
    target_from_markups,
    volume_from_node,
    voxel_from_ras,
)

__all__ = [
    "COMPARISON_LAYOUT",
    "DIFFERENCE_ATTRIBUTE",
    "PADDING_ATTRIBUTE",
    "PROTECTED_ATTRIBUTE",
    "SIMULATED_ATTACK_ATTRIBUTE",
    "SIMULATED_ATTACK_COLOR",
    "SIMULATED_ATTACK_MARK",
    "STEPS_ATTRIBUTE",
    "SYNTHETIC_ATTRIBUTE",
    "VIEWS",
    "ComparisonNodes",
    "Finding",
    "Inspection",
    "comparison_is_shown",
    "comparison_nodes",
    "ct_from_node",
    "dicom_files_of",
    "difference_node",
    "first_scan",
    "inspect_node",
    "is_simulated_attack",
    "jump_to_slice",
    "metrics_table",
    "node_from_volume",
    "plot_view_node",
    "ras_from_voxel",
    "register_layout",
    "remove_result",
    "restore_layout",
    "results_of",
    "rmse_chart",
    "set_difference_threshold",
    "set_window",
    "show_comparison",
    "show_heatmaps",
    "show_volume",
    "slice_of_point",
    "source_of",
    "table_text",
    "target_from_markups",
    "volume_from_node",
    "voxel_from_ras",
    "with_dicom_source",
]
