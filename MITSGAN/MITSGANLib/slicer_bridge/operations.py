"""What the module does with volume nodes: protect, attack, compare, measure, report.

Each operation reads what it needs from the nodes, computes without touching the scene, and adds its results when all is
done; whoever stops it finds the scene as it was. ``run`` runs ``work(report)``, in the panel in the background. A
report says how many steps are done, and of how many.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from ..errors import InputError
from ..files.storage import load_volume
from ..keys.key_files import Key
from ..measure.attack_effect import ComparedPair, Effect, measure_effect
from ..measure.lpips_distance import load_lpips
from ..measure.metrics import compare
from ..protection import protector
from ..protection.protector import recorded_protector, seconds_to_protect, watermark_alone
from ..runtime import devices
from ..scan.phantom import sample_phantom
from ..scan.targets import Target
from ..scan.volume import SIMULATED_ATTACK, CTVolume
from ..scan.windows import LUNG, MEDIASTINUM
from ..watermark.pattern import OPEN_KEY, watermark_key
from .differences import DEFAULT_THRESHOLD, REFERENCES, difference_node, differences
from .layout import VIEWS, set_window, show_in_ordinary_views
from .origin import steps_in_header
from .packages import FIGURES, NETWORKS, are_installed
from .privacy import path_kept_from_log, paths_kept_from_log
from .tables import figures_table, metrics_table, rmse_chart
from .volumes import (
    SOURCE_CHECKSUM_ATTRIBUTE,
    SYNTHETIC_ATTRIBUTE,
    image_from_volume,
    node_from_volume,
    require_ct,
    require_in_scene,
    scan_from_node,
    voxel_from_ras,
)

logger = logging.getLogger(__name__)

Run = Callable[[Callable[[Any], Any]], Any]


def run_here(work: Callable[[Any], Any]) -> Any:
    """The simplest ``run``: in this thread, now, and nobody hears how far it is."""
    return work(None)


def compute_here(work: Callable[[Any], Any], progress: Any) -> Any:
    """The simplest ``compute`` of a module's logic: in this thread, now."""
    return work(progress)


def operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operation a method of a module's logic, which takes ``progress`` in place of ``run``.

    The logic's ``compute`` says how the work is done. ``help`` of the method shows the docstring of the function.
    """

    @functools.wraps(function)
    def method(logic: Any, *arguments: Any, progress: Any = None, **options: Any) -> Any:
        return function(*arguments, run=lambda work: logic.compute(work, progress), **options)

    return method


def load_phantom(*, run: Run = run_here) -> slicer.vtkMRMLScalarVolumeNode:
    """A synthetic thorax with a nodule, made on this computer, as a new node that is shown."""
    node = node_from_volume(run(lambda _report: sample_phantom().volume), _("Synthetic thorax"))
    node.SetAttribute(SYNTHETIC_ATTRIBUTE, "true")
    set_window([node], LUNG)
    show_in_ordinary_views(node, fit=True)
    return node


def load_scan(
    path: Path,
    series: str | None = None,
    *,
    run: Run = run_here,
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new node with a scan on the disk, named after its file or folder; it knows what was done to it before.

    :param series: Series Instance UID, of several in a folder.
    :raises InputError: it cannot be read.
    """

    def work(report: Any) -> CTVolume:
        volume = load_volume(path, series, report)
        provenance = volume.provenance
        if provenance.steps or not provenance.dicom_files:
            return volume
        provenance = dataclasses.replace(provenance, steps=steps_in_header(Path(provenance.dicom_files[0])))
        return dataclasses.replace(volume, provenance=provenance)

    with paths_kept_from_log({path: _("the scan")}):
        volume = run(work)
    node = node_from_volume(volume, path.name)
    if path.is_file() and not volume.provenance.dicom_files:
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(path))
    return node


def describe_device(device: str, model: Any, volume: CTVolume | None) -> tuple[str, float | None]:
    """What networks run on, in words, and about how many seconds protecting ``volume`` takes there.

    :raises DependencyError: when the device is not there; nothing falls back silently.
    """
    devices.load_torch()
    where = devices.resolve_device(device)
    seconds = None if volume is None else seconds_to_protect(volume, model, where)
    return devices.describe_device(where), seconds


def protect_node(
    node: slicer.vtkMRMLScalarVolumeNode,
    model: Any = "default",
    strength_hu: float | None = None,
    *,
    device: str = "auto",
    name: str | None = None,
    run: Run = run_here,
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new node with the protected copy of a CT volume, under the same transform and study as the source.

    :param model: name of a protection model, or a Protector.
    :param strength_hu: largest change of a voxel in HU; None is the strength that the model was made for.
    :param device: "auto", "cpu", "cuda" or "mps".
    :param name: of the new node; None for that of the source and "protected".
    """
    volume = scan_from_node(node)

    def work(report: Any) -> tuple[CTVolume, vtk.vtkImageData, str]:
        # Slice by slice, the same voxels as in batches: on a CPU a batch is long enough to be felt.
        scan = require_ct(volume)
        protected = protector.protect(
            scan, model=model, strength_hu=strength_hu, device=device, batch_size=1, progress=report
        )
        return protected, image_from_volume(protected), _checksum(scan)

    protected, image, checksum = run(work)
    require_in_scene(node)
    logger.info("MITSGAN protected %s", node.GetID())
    made = node_from_volume(protected, name or _("{name} protected").format(name=node.GetName()), node, image)
    made.SetAttribute(SOURCE_CHECKSUM_ATTRIBUTE, checksum)
    return made


def watermark_node(
    node: slicer.vtkMRMLScalarVolumeNode,
    key: Key | None = None,
    *,
    run: Run = run_here,
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new node with the watermarked copy of a CT volume, under the same transform and study as the source.

    :param key: None for the open watermark, which anyone can find.
    :raises InputError: the node is no CT, or the key a passphrase.
    """
    name = _("{name} watermarked").format(name=node.GetName())
    protector = watermark_alone(OPEN_KEY if key is None else watermark_key(key))
    return protect_node(node, protector, name=name, run=run)


def attack_nodes(
    source_node: slicer.vtkMRMLScalarVolumeNode,
    protected_node: slicer.vtkMRMLScalarVolumeNode,
    ras: Sequence[float],
    action: str = "inject",
    attacker: Any = "default",
    *,
    device: str = "auto",
    replaces: Sequence[slicer.vtkMRMLScalarVolumeNode | None] = (),
    run: Run = run_here,
) -> tuple[slicer.vtkMRMLScalarVolumeNode, slicer.vtkMRMLScalarVolumeNode]:
    """New nodes with the attacked source and the attacked protected volume, both forged at the same voxel.

    :param ras: target in world coordinates (RAS, mm).
    :param attacker: name of an installed attacker, a folder of attacker files, or an Attacker.
    :param replaces: results of an earlier attack, whose names those of this one take; remove them once they are no
        longer displayed.
    """
    read, kji = _reader(source_node, protected_node), voxel_from_ras(source_node, ras)

    def work(report: Any) -> list[tuple[CTVolume, vtk.vtkImageData]]:
        from ..attack.attacker import simulate_attack

        attacked, scans, ready = [], read(), _attacker(attacker, action)
        for scan in scans:
            if report:
                report(len(attacked), 2)
            result = simulate_attack(scan, kji, action, attacker=ready, device=device)
            attacked.append((result, image_from_volume(result)))
        return attacked

    results = run(work)
    require_in_scene(source_node, protected_node)
    logger.info("MITSGAN simulated an attack (%s) on %s, %s", action, source_node.GetID(), protected_node.GetID())
    for node in filter(None, replaces):
        node.SetName(_("{name} before").format(name=node.GetName()))
    name = _("{name} nodule injected by {by}") if action == "inject" else _("{name} nodule removed by {by}")
    nodes = []
    for (attacked, image), node in zip(results, (source_node, protected_node), strict=True):
        by = attacked.provenance.last(SIMULATED_ATTACK).parameters["attacker"]
        nodes.append(node_from_volume(attacked, name.format(name=node.GetName(), by=by), node, image))
    return tuple(nodes)


def prepare_measuring() -> bool:
    """Import what :func:`compare_nodes` needs, which takes two seconds; whether it is installed."""
    if not are_installed(*NETWORKS, *FIGURES):
        return False
    load_lpips()
    return True


@dataclass(frozen=True)
class ComparisonNodes:
    """The nodes and figures of one comparison."""

    table: slicer.vtkMRMLTableNode  # every metric with its definition
    figures: slicer.vtkMRMLTableNode  # the few that answer the question, in plain words
    chart: slicer.vtkMRMLPlotChartNode
    heatmaps: dict[str, slicer.vtkMRMLScalarVolumeNode]  # by view, see differences.REFERENCES
    effect: Effect


def compare_nodes(
    source_node: slicer.vtkMRMLScalarVolumeNode,
    protected_node: slicer.vtkMRMLScalarVolumeNode,
    attacked_nodes: Sequence[slicer.vtkMRMLScalarVolumeNode] = (),
    *,
    attacker: Any = None,
    device: str = "auto",
    threshold: float = DEFAULT_THRESHOLD,
    run: Run = run_here,
) -> ComparisonNodes:
    """Measure protection and attack; table, chart and heatmaps are new nodes.

    :param attacked_nodes: the attacked source and the attacked protected volume, or none.
    :param attacker: who attacked, to attack noise of the same RMSE as a control; None leaves the control out.
    :param threshold: share of a heatmap's full color up to which nothing is colored.
    """
    read, attacked = _reader(source_node, protected_node), [scan_from_node(node) for node in attacked_nodes]

    def work(report: Any) -> Any:
        volumes = [*read(), *map(require_ct, attacked)]
        effect = measure_effect(*volumes, attacker=attacker, device=device, lpips=load_lpips(), progress=report)
        return effect, differences(dict(zip(VIEWS, volumes, strict=False)))

    effect, shown = run(work)
    nodes = (source_node, protected_node, *attacked_nodes)
    require_in_scene(*nodes)
    by_view, name = dict(zip(VIEWS, nodes, strict=False)), source_node.GetName()
    heatmaps = {
        view: difference_node(
            difference,
            _("{name} difference").format(name=by_view[view].GetName()),
            by_view[REFERENCES[view]],
            threshold=threshold,
        )
        for view, difference in shown.items()
    }
    return ComparisonNodes(
        metrics_table(effect.comparisons, _("{name} metrics").format(name=name), effect.watermark),
        figures_table(effect, _("{name} figures").format(name=name)),
        rmse_chart(effect.rmse_by_slice, _("{name} change").format(name=name)),
        heatmaps,
        effect,
    )


def measure_nodes(
    reference_node: slicer.vtkMRMLScalarVolumeNode,
    other_node: slicer.vtkMRMLScalarVolumeNode,
    *,
    run: Run = run_here,
) -> slicer.vtkMRMLTableNode:
    """A new table node of how far a CT volume is from a reference on the same grid, with definitions."""
    scans = scan_from_node(reference_node), scan_from_node(other_node)
    windows = (LUNG, MEDIASTINUM)
    comparison = run(lambda report: compare(*map(require_ct, scans), windows=windows, progress=report))
    require_in_scene(reference_node, other_node)
    pair = ComparedPair(f"{other_node.GetName()} − {reference_node.GetName()}", comparison)
    return metrics_table([pair], _("{name} evaluation").format(name=other_node.GetName()))


def save_report(
    source_node: slicer.vtkMRMLScalarVolumeNode,
    protected_node: slicer.vtkMRMLScalarVolumeNode,
    ras: Sequence[float],
    path: str | Path,
    action: str = "inject",
    attacker: Any = "default",
    *,
    model: Any = None,
    attacked_nodes: Sequence[slicer.vtkMRMLScalarVolumeNode] = (),
    effect: Effect | None = None,
    device: str = "auto",
    run: Run = run_here,
) -> None:
    """Write the report of the demonstration for this scan and target.

    :param protected_node: its voxels are measured, and it says what model, strength and seed they are of.
    :param model: a Protector to use instead of the installed one that the protected node names.
    :param attacked_nodes, effect: the attacked source and protected volume, and what :func:`compare_nodes` measured of
        all four, if that was at this target; else it is all done once more.
    :param run: also hears the stage, before the steps done and in all.
    """
    path, read, kji = Path(path), _reader(source_node, protected_node), voxel_from_ras(source_node, ras)
    is_measured = effect and effect.attack and (effect.attack.kji, effect.attack.action) == (kji, action)
    attacked_scans = [scan_from_node(node) for node in attacked_nodes] if is_measured else []
    synthetic = source_node.GetAttribute(SYNTHETIC_ATTRIBUTE) == "true"

    def work(report: Any) -> None:
        from ..report import page as reports
        from ..report.demonstration import demonstrate

        volume, protected = read()
        demonstration = demonstrate(
            volume,
            [Target(action, kji, "chosen by the user")],
            model or recorded_protector(protected),
            [_attacker(attacker, action)],
            protected=None if model else protected,
            measured=(effect, *map(require_ct, attacked_scans)) if attacked_scans else None,
            device=device,
            progress=report,
        )
        # The node's name may be a patient's, so the report has its own.
        reports.save_report(demonstration, path, title="Scan in 3D Slicer", synthetic=synthetic)

    with path_kept_from_log(path):
        run(work)
    logger.info("MITSGAN wrote a report on %s", source_node.GetID())


def _attacker(attacker: Any, action: str) -> Any:
    from ..attack.attacker import Attacker, load_attacker

    return attacker if isinstance(attacker, Attacker) else load_attacker(attacker, action)


def _checksum(scan: CTVolume) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(scan.hu)):08x}"


def _reader(
    source_node: slicer.vtkMRMLScalarVolumeNode, protected_node: slicer.vtkMRMLScalarVolumeNode
) -> Callable[[], Iterable[CTVolume]]:
    """A function for the background that gives copies of a volume and its protected version, one after the other.

    :raises InputError: as :func:`matching_scans`. The function itself: as ``require_ct``, and if the scan's voxels are
        not those that the protected version was made from.
    """
    scans = matching_scans(source_node, protected_node)
    # None where it was not made here.
    checksum = protected_node.GetAttribute(SOURCE_CHECKSUM_ATTRIBUTE)

    def read() -> Iterable[CTVolume]:
        if checksum and _checksum(scans[0]) != checksum:
            raise InputError(
                _(
                    "The scan shows other voxels than when it was protected, as another frame of a sequence does. Show "
                    "those, or protect again."
                )
            )
        return map(require_ct, scans)

    return read


def matching_scans(
    source_node: slicer.vtkMRMLScalarVolumeNode, protected_node: slicer.vtkMRMLScalarVolumeNode
) -> list[CTVolume]:
    """The scans of a volume and its protected version; whether they are CT, ``require_ct`` tells.

    :raises InputError: the two do not lie on the same grid.
    """
    source, protected = scan_from_node(source_node), scan_from_node(protected_node)
    if (
        not source.same_geometry(protected)
        or source_node.GetParentTransformNode() is not protected_node.GetParentTransformNode()
    ):
        raise InputError(
            _("The protected volume does not match the CT volume; select the one that was computed from it.")
        )
    return [source, protected]
