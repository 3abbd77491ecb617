"""The watermark on volume nodes: put in with a key, looked for, and shown where it is missing.

As in ``operations``, nothing enters the scene before all is computed. A key is used for one job and kept nowhere.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from .change_map import LEGEND_MISSING, LEGEND_UNTOLD, change_map_node, show_changes, watermark_legend
from .operations import Compute, compute_here, protect_node
from .volumes import ct_from_node, require_in_scene

if TYPE_CHECKING:
    from ..keys.key_files import Key
    from ..scan.volume import CTVolume
    from ..watermark.checking import Check

logger = logging.getLogger(__name__)


def watermark_node(
    node: slicer.vtkMRMLScalarVolumeNode,
    key: Key,
    *,
    progress: Callable[[int, int], None] | None = None,
    compute: Compute = compute_here,
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new node with the watermarked copy of a CT volume, under the same transform and study as the source.

    :raises InputError: the node is no CT, or the key a passphrase.
    """
    from ..protection.protector import watermark_alone
    from ..watermark.pattern import watermark_key

    name = _("{name} watermarked").format(name=node.GetName())
    return protect_node(node, watermark_alone(watermark_key(key)), name=name, progress=progress, compute=compute)


def check_watermark_of_node(
    node: slicer.vtkMRMLScalarVolumeNode,
    key: Key | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    compute: Compute = compute_here,
) -> Check:
    """Look for a watermark everywhere in a CT volume.

    :param key: None for the open watermark, which the default protection leaves.
    :param progress: called with 0 of 0 after the last slice: adding up takes a while more, nobody knows how long.
    :raises InputError: the node is no CT, or the key a passphrase.
    """
    volume = ct_from_node(node)

    def work(report: Any) -> Check:
        from ..watermark.checking import check_watermark
        from ..watermark.pattern import OPEN_KEY, watermark_key

        def in_slices(done: int, total: int) -> None:
            if report:
                report(*((done, total) if done < total else (0, 0)))

        return check_watermark(volume, OPEN_KEY if key is None else watermark_key(key), progress=in_slices)

    check = compute(work, progress)
    require_in_scene(node)
    logger.info("MITSGAN checked the watermark of %s", node.GetID())
    return check


def show_missing_watermark(
    check: Check, node: slicer.vtkMRMLScalarVolumeNode, *, visible: bool = True
) -> slicer.vtkMRMLLabelMapVolumeNode | None:
    """Lay a map over the volume that was checked, and go to the largest place; None where nothing is missing."""
    if not check.regions:
        return None
    change_map = change_map_node(_labels(check), node, watermark_legend())
    show_changes(change_map, node, visible=visible, kji=check.regions[0].kji)
    return change_map


def _labels(check: Check) -> CTVolume:
    from ..watermark.checking import ALTERED, UNKNOWN

    # Where no watermark belongs, as in air, there is nothing to tell.
    untold = (check.classes == UNKNOWN) & (check.expected[0] > 0)
    shown = np.where(check.classes == ALTERED, LEGEND_MISSING, np.where(untold, LEGEND_UNTOLD, 0)).astype(np.uint8)
    return dataclasses.replace(check, classes=shown).class_volume()
