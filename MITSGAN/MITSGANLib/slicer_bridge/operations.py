"""What the module does with volume nodes: protect, attack, compare, export, report. The panel's logic calls these.

Each operation reads what it needs from the nodes, computes without touching the scene, and adds its results when all is
done; whoever stops it finds the scene as it was. ``compute`` runs ``work(progress)``, given both: the panel passes one
that works in the background and keeps the application responsive.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from ..errors import InputError, OutputError
from ..files.volume_files import SUFFIXES, format_of
from ..measure.attack_effect import ComparedPair
from ..scan.volume import CTVolume
from ..scan.windows import LUNG, MEDIASTINUM
from .comparison import ComparisonNodes, comparison_nodes
from .dicom_source import dicom_files_of, with_dicom_source
from .keys_and_seals import Locks, file_behind, new_output, save_locked, stale_companions
from .layout import VIEWS, set_window, show_in_ordinary_views
from .privacy import path_kept_from_log
from .tables import metrics_table
from .volumes import (
    SYNTHETIC_ATTRIBUTE,
    ct_from_node,
    is_simulated_attack,
    node_from_volume,
    require_in_scene,
    source_of,
    volume_from_node,
    voxel_from_ras,
)

logger = logging.getLogger(__name__)

Compute = Callable[[Callable[[Any], Any], Any], Any]


def compute_here(work: Callable[[Any], Any], progress: Any) -> Any:
    """The simplest ``compute``: in this thread, now."""
    return work(progress)


def load_phantom(progress: Any = None, compute: Compute = compute_here) -> slicer.vtkMRMLScalarVolumeNode:
    """A synthetic thorax with a nodule, made on this computer, as a new node that is shown."""

    def work(_report: Any) -> CTVolume:
        from ..scan.phantom import thorax_phantom

        return thorax_phantom().volume

    node = node_from_volume(compute(work, progress), _("Synthetic thorax"))
    node.SetAttribute(SYNTHETIC_ATTRIBUTE, "true")
    set_window([node], LUNG)
    show_in_ordinary_views(node, fit=True)
    return node


def describe_device(device: str, model: Any, volume: CTVolume | None) -> tuple[str, float | None]:
    """What networks run on, in words, and about how many seconds protecting ``volume`` takes there.

    :raises DependencyError: when the device is not there; nothing falls back silently.
    """
    from ..runtime import devices

    where = devices.resolve_device(device)
    words = devices.describe_device(where)
    if volume is None:
        return words, None
    from ..protection.duration import seconds_to_protect

    return words, seconds_to_protect(volume, model, where)


def protect_node(
    node: slicer.vtkMRMLScalarVolumeNode,
    model: Any,
    strength_hu: float | None,
    *,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    compute: Compute = compute_here,
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new node with the protected copy of a CT volume, under the same transform and study as the source."""
    volume = ct_from_node(node)

    def work(report: Any) -> CTVolume:
        # Imports torch, which the panel may have installed only now.
        from ..protection import protector

        # Slice by slice, the same voxels as in batches: on a CPU a batch is long enough to be felt.
        return protector.protect(
            volume, model=model, strength_hu=strength_hu, device=device, batch_size=1, progress=report
        )

    protected = compute(work, progress)
    require_in_scene(node)
    logger.info("MITSGAN protected %s", node.GetID())
    return node_from_volume(protected, _("{name} protected").format(name=node.GetName()), node)


def attack_nodes(
    source_node: slicer.vtkMRMLScalarVolumeNode,
    protected_node: slicer.vtkMRMLScalarVolumeNode,
    ras: Sequence[float],
    action: str,
    attacker: Any,
    *,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    compute: Compute = compute_here,
) -> tuple[slicer.vtkMRMLScalarVolumeNode, slicer.vtkMRMLScalarVolumeNode]:
    """New nodes with the attacked source and the attacked protected volume, both forged at the same voxel.

    :param ras: target in world coordinates (RAS, mm).
    """
    scans = _pair(source_node, protected_node)
    kji = voxel_from_ras(source_node, ras)

    def work(report: Any) -> list[CTVolume]:
        from ..attack.attacker import simulate_attack

        ready = _attacker(attacker, action)
        attacked = []
        for scan in scans:
            if report:
                report(len(attacked), len(scans))
            attacked.append(simulate_attack(scan, kji, action, attacker=ready, device=device))
        return attacked

    results = compute(work, progress)
    require_in_scene(source_node, protected_node)
    logger.info("MITSGAN simulated an attack (%s) on %s, %s", action, source_node.GetID(), protected_node.GetID())
    name = _("{name} nodule injected") if action == "inject" else _("{name} nodule removed")
    source_attacked, protected_attacked = (
        node_from_volume(attacked, name.format(name=node.GetName()), node)
        for attacked, node in zip(results, (source_node, protected_node), strict=True)
    )
    return source_attacked, protected_attacked


def compare_nodes(
    source_node: slicer.vtkMRMLScalarVolumeNode,
    protected_node: slicer.vtkMRMLScalarVolumeNode,
    attacked_nodes: Sequence[slicer.vtkMRMLScalarVolumeNode],
    *,
    attacker: Any,
    device: str = "auto",
    threshold_hu: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    compute: Compute = compute_here,
) -> ComparisonNodes:
    """Measure protection and attack; table, chart and heatmaps are new nodes.

    :param attacked_nodes: the attacked source and the attacked protected volume, or none.
    :param attacker: who attacked, to attack noise of the same RMSE as a control; None leaves the control out.
    """
    scans = [*_pair(source_node, protected_node), *(volume_from_node(node) for node in attacked_nodes)]

    def work(report: Any) -> Any:
        from ..measure.attack_effect import measure_effect
        from ..measure.lpips_distance import load_lpips

        return measure_effect(*scans, attacker=attacker, device=device, lpips=load_lpips(), progress=report)

    effect = compute(work, progress)
    nodes = (source_node, protected_node, *attacked_nodes)
    require_in_scene(*nodes)
    return comparison_nodes(effect, dict(zip(VIEWS, nodes, strict=False)), threshold_hu)


def measure_nodes(
    reference_node: slicer.vtkMRMLScalarVolumeNode,
    other_node: slicer.vtkMRMLScalarVolumeNode,
    *,
    progress: Callable[[int, int], None] | None = None,
    compute: Compute = compute_here,
) -> slicer.vtkMRMLTableNode:
    """A new table node of how far a CT volume is from a reference on the same grid, with definitions."""
    reference, other = ct_from_node(reference_node), ct_from_node(other_node)

    def work(report: Any) -> Any:
        from ..measure.metrics import compare

        return compare(reference, other, windows=(LUNG, MEDIASTINUM), progress=report)

    comparison = compute(work, progress)
    require_in_scene(reference_node, other_node)
    finding = ComparedPair(f"{other_node.GetName()} − {reference_node.GetName()}", comparison)
    return metrics_table([finding], _("{name} evaluation").format(name=other_node.GetName()))


def exportable_files(
    protected_node: slicer.vtkMRMLScalarVolumeNode, source_node: slicer.vtkMRMLScalarVolumeNode | None
) -> tuple[Path, ...]:
    """The original DICOM files that an export takes its headers from.

    :param source_node: where they are, if the protected node does not know its source.
    :raises OutputError: with the reason, when the volume is not to be exported or did not come from DICOM.
    """
    if is_simulated_attack(protected_node):
        raise OutputError(
            _("A simulated attack is never exported as DICOM, so that it cannot pass for a patient's scan.")
        )
    return dicom_files_of(source_of(protected_node) or source_node or protected_node)


def export_dicom(
    protected_node: slicer.vtkMRMLScalarVolumeNode,
    folder: Path,
    source_node: slicer.vtkMRMLScalarVolumeNode | None,
    locks: Locks | None = None,
    *,
    progress: Callable[..., None] | None = None,
    compute: Compute = compute_here,
) -> Path:
    """Write a protected volume as a derived DICOM series that keeps the headers of its source.

    :param folder: an empty or new folder; in a folder with other files a new one is made.
    :param locks: seals and signs it.
    :return: the folder that holds the series.
    """
    files = exportable_files(protected_node, source_node)
    volume = volume_from_node(protected_node)
    folder = free_folder(folder, "protected") if folder.is_dir() and any(folder.iterdir()) else folder

    volume = with_dicom_source(volume, files)

    with path_kept_from_log(folder), new_output(folder) as new:
        compute(lambda report: save_locked(volume, volume, new, locks or Locks(), report), progress)
    logger.info("MITSGAN exported %s as DICOM", protected_node.GetID())
    return folder


def export_file(
    protected_node: slicer.vtkMRMLScalarVolumeNode,
    path: Path,
    source_node: slicer.vtkMRMLScalarVolumeNode,
    locks: Locks | None = None,
    *,
    progress: Callable[..., None] | None = None,
    compute: Compute = compute_here,
) -> None:
    """Write a protected volume as NRRD, NIfTI or MetaImage, by suffix; a file that exists is replaced.

    The seal restores the file that the source was loaded from, where it is still there; else the source's HU.

    :param source_node: what is sealed, if the protected node does not know its source.
    :param locks: seals and signs it; seal and manifest lie beside it.
    :raises OutputError: the suffix is of no such format, or the file is the source's own.
    """
    source_node = source_of(protected_node) or source_node
    if format_of(path) is None:
        raise OutputError(_("Give the file a name that ends in {suffixes}.").format(suffixes=", ".join(SUFFIXES)))
    own = file_behind(source_node)
    if own is not None and path.exists() and path.samefile(own):
        raise OutputError(_("The file of the CT volume itself is never replaced; choose another name."))
    source, protected = _pair(source_node, protected_node)

    with path_kept_from_log(path), new_output(path, overwrite=True) as new:
        compute(lambda report: save_locked(protected, source, new, locks or Locks(), report, own), progress)
    # Those of a file that was replaced are not of this one.
    for beside in stale_companions(path, locks or Locks()):
        beside.unlink(missing_ok=True)
    logger.info("MITSGAN exported %s as a file", protected_node.GetID())


def free_folder(parent: Path, name: str) -> Path:
    """A folder in ``parent`` that does not exist: ``name-1`` or the next number that is free."""
    return next(path for number in range(1, 10000) if not (path := parent / f"{name}-{number}").exists())


def save_report(
    source_node: slicer.vtkMRMLScalarVolumeNode,
    protected_node: slicer.vtkMRMLScalarVolumeNode,
    ras: Sequence[float],
    path: Path,
    action: str,
    attacker: Any,
    *,
    model: Any = None,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
    compute: Compute = compute_here,
) -> None:
    """Write the report of the demonstration for this scan and target; protection and attack are run once more.

    :param protected_node: says which model, strength and seed to use; the same voxels come out.
    :param model: a Protector to use instead of the installed one that the protected node names.
    :param progress: called with the stage, steps done and in all.
    """
    volume, protected = _pair(source_node, protected_node)
    kji = voxel_from_ras(source_node, ras)
    synthetic = source_node.GetAttribute(SYNTHETIC_ATTRIBUTE) == "true"

    def work(report: Any) -> None:
        from ..protection.recorded_protector import protector_of
        from ..report import page as reports
        from ..report.demonstration import demonstrate
        from ..runtime import devices
        from ..scan.targets import Target

        demonstration = demonstrate(
            volume,
            [Target(action, kji, "chosen by the user")],
            model or protector_of(protected),
            [_attacker(attacker, action)],
            device=device,
            device_words=devices.describe_device(devices.resolve_device(device)),
            progress=report,
        )
        # The node's name may be a patient's, so the report has its own.
        reports.save_report(demonstration, path, title="Scan in 3D Slicer", synthetic=synthetic)

    with path_kept_from_log(path):
        compute(work, progress)
    logger.info("MITSGAN wrote a report on %s", source_node.GetID())


def _attacker(attacker: Any, action: str) -> Any:
    from ..attack.attacker import Attacker, load_attacker

    return attacker if isinstance(attacker, Attacker) else load_attacker(attacker, action)


def _pair(
    source_node: slicer.vtkMRMLScalarVolumeNode, protected_node: slicer.vtkMRMLScalarVolumeNode
) -> list[CTVolume]:
    source, protected = ct_from_node(source_node), ct_from_node(protected_node)
    if (
        not source.same_geometry(protected)
        or source_node.GetParentTransformNode() is not protected_node.GetParentTransformNode()
    ):
        raise InputError(
            _("The protected volume does not match the CT volume; select the one that was computed from it.")
        )
    return [source, protected]
