"""All of the library that imports ``slicer``: what the panel shows, as MRML nodes, and back.

``volumes`` exchanges volume nodes and :class:`~MITSGANLib.volume.CTVolume`, ``inspection`` says whether a node looks
like CT, ``dicom_source`` finds the original files of a node, ``differences`` makes heatmap overlays, ``tables`` the
metrics table and the plot, ``comparison`` all of these together, ``layout`` the views, ``targets`` the clicked point.
``operations`` is what the module does with nodes, ``packages`` what it installs, ``panel`` the parts of its panel.
Nothing here imports ``qt``.
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
from .operations import (
    attack_nodes,
    compare_nodes,
    compute_here,
    describe_device,
    export_dicom,
    exportable_files,
    load_phantom,
    protect_node,
    save_report,
)
from .packages import ensure_packages
from .tables import Finding, metrics_table, rmse_chart, slice_of_point, table_text
from .targets import (
    has_target,
    interaction_node,
    is_placing,
    keep_last_point,
    new_target_list,
    start_placing,
    stop_placing,
    target_events,
    target_from_markups,
)
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
    "attack_nodes",
    "compare_nodes",
    "comparison_is_shown",
    "comparison_nodes",
    "compute_here",
    "ct_from_node",
    "describe_device",
    "dicom_files_of",
    "difference_node",
    "ensure_packages",
    "export_dicom",
    "exportable_files",
    "first_scan",
    "has_target",
    "inspect_node",
    "interaction_node",
    "is_placing",
    "is_simulated_attack",
    "jump_to_slice",
    "keep_last_point",
    "load_phantom",
    "metrics_table",
    "new_target_list",
    "node_from_volume",
    "plot_view_node",
    "protect_node",
    "ras_from_voxel",
    "register_layout",
    "remove_result",
    "restore_layout",
    "results_of",
    "rmse_chart",
    "save_report",
    "set_difference_threshold",
    "set_window",
    "show_comparison",
    "show_heatmaps",
    "show_volume",
    "slice_of_point",
    "source_of",
    "start_placing",
    "stop_placing",
    "table_text",
    "target_events",
    "target_from_markups",
    "volume_from_node",
    "voxel_from_ras",
    "with_dicom_source",
]
