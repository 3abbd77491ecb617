"""Exchange between MRML volume nodes and :class:`CTVolume`.

MRML geometry is RAS in mm, that of ``CTVolume`` is LPS in mm; the two differ in the sign of x and y. A volume node may
lie under a chain of transforms: its own IJKToRAS matrix then ends in the coordinates of the innermost transform, and
world coordinates, where the user clicks, are at the far end of the chain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from ..errors import CancelledError, InputError, TargetError
from ..files.volume_files import SLICER_PADDING_FIELD, steps_to_text
from ..scan import plausibility
from ..scan.volume import (
    HU_MAX,
    HU_MIN,
    PROTECTION,
    SIMULATED_ATTACK,
    CTVolume,
    Provenance,
    VolumeWarning,
    lps_from_ras,
)
from .origin import STEPS_ATTRIBUTE, declared_padding_hu, steps_of, unreadable

PADDING_ATTRIBUTE = SLICER_PADDING_FIELD
PROTECTED_ATTRIBUTE = "MITSGAN.Protected"
SIMULATED_ATTACK_ATTRIBUTE = "MITSGAN.SimulatedAttack"
SIMULATED_ATTACK_MARK = "simulated attack"
SYNTHETIC_ATTRIBUTE = "MITSGAN.Synthetic"
DIFFERENCE_ATTRIBUTE = "MITSGAN.DifferenceLimitHU"
# Of the voxels that a protected volume was made from: the source's node may show others by now.
SOURCE_CHECKSUM_ATTRIBUTE = "MITSGAN.SourceCRC32"
# The node that a result was computed from; a node reference, so that it survives saving and renaming.
SOURCE_ROLE = "MITSGAN.Source"
# Of labels and view bars of whatever shows a simulated attack; orange is no color of an anatomical plane in Slicer.
SIMULATED_ATTACK_COLOR = (0.85, 0.35, 0.0)

_LPS_FROM_RAS = np.diag((-1.0, -1.0, 1.0))
_MOST_SLANT = 0.02  # cosine of the angle of two axes; a tilt of 1.1 degrees


def volume_from_node(node: slicer.vtkMRMLScalarVolumeNode) -> CTVolume:
    """The CT scan held by a volume node, with a copy of its voxels.

    The geometry is the node's own, before any parent transform, so that a result computed from it can be put under the
    same transform; a ``parent-transform`` warning in the provenance says that there is one. Steps that
    :func:`node_from_volume` recorded are restored, therefore a simulated attack stays marked as one.

    :raises InputError: when the node holds no scalar voxels, or values that are not whole HU in the int16 range.
    """
    volume = _own_voxels(node)
    return dataclasses.replace(volume, hu=volume.hu.copy())


def _own_voxels(node: slicer.vtkMRMLScalarVolumeNode) -> CTVolume:
    """:func:`volume_from_node` without the copy where the voxels are int16."""
    _require_scalar_volume(node)
    directions = vtk.vtkMatrix4x4()
    node.GetIJKToRASDirectionMatrix(directions)
    direction = slicer.util.arrayFromVTKMatrix(directions)[:3, :3]
    if np.abs(direction.T @ direction - np.eye(3)).max() > _MOST_SLANT:
        raise InputError(
            _(
                'The slices form a slanted stack, as with a tilted gantry. Load the series again with "acquisition '
                'geometry regularization" (Application Settings, DICOM).'
            )
        )
    return CTVolume(
        hu=_exact_int16(slicer.util.arrayFromVolume(node)),
        spacing=node.GetSpacing(),
        origin=lps_from_ras(node.GetOrigin()),
        direction=_LPS_FROM_RAS @ direction,
        provenance=_provenance_from_node(node),
    )


def scan_from_node(node: slicer.vtkMRMLScalarVolumeNode) -> CTVolume:
    """What may be a CT scan, in no time; :func:`require_ct` copies its voxels, and tells whether it is one.

    Until then the voxels are the node's own: they live on without it, and change with it.

    :raises InputError: when the node is a difference map, and as :func:`volume_from_node`.
    """
    if node is not None and node.GetAttribute(DIFFERENCE_ATTRIBUTE):
        raise InputError(_("The selected volume is a difference map, not a CT scan; select the scan itself."))
    return _own_voxels(node)


def require_ct(volume: CTVolume) -> CTVolume:
    """A copy of a scan, once its voxels are believable HU; it looks at each of them, so let it work in the background.

    What was noticed (cut-off body, thick slices, ...) is added to the warnings of the provenance.

    :raises InputError: with the reason, in the words that the readers of files use.
    """
    warnings = (
        *plausibility.check_hounsfield(volume.hu, volume.provenance.padding_hu),
        *plausibility.grid_warnings(volume.shape[0], volume.spacing),
    )
    provenance = dataclasses.replace(volume.provenance, warnings=(*volume.provenance.warnings, *warnings))
    return dataclasses.replace(volume, hu=volume.hu.copy(), provenance=provenance)


def image_from_volume(volume: CTVolume, kind: int = vtk.VTK_SHORT) -> vtk.vtkImageData:
    """A copy of a scan's voxels for a node; half a second for 600 slices, so made in the background.

    :param kind: VTK's number of a type of scalars that holds all values.
    """
    image = vtk.vtkImageData()
    image.SetDimensions(*reversed(volume.shape))
    image.AllocateScalars(kind, 1)
    vtk_to_numpy(image.GetPointData().GetScalars()).reshape(volume.shape)[:] = volume.hu
    return image


def node_from_volume(
    volume: CTVolume,
    name: str,
    source_node: slicer.vtkMRMLScalarVolumeNode | None = None,
    image: vtk.vtkImageData | None = None,
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new volume node in the scene that shows ``volume``.

    The result of a simulated attack is marked in its name and attributes. What tells of any step is saved as NRRD,
    whose header keeps the attributes. File paths and DICOM identifiers of the provenance are not written to the node:
    they may name a patient.

    :param name: name of the node; a number is appended when it is taken.
    :param source_node: the node that ``volume`` was computed from; see :func:`source_of`. Display settings, parent
        transform and place in the subject hierarchy are taken from it.
    :param image: of :func:`image_from_volume`; None makes it.
    """
    scene, provenance = slicer.mrmlScene, volume.provenance
    if provenance.is_simulated_attack and SIMULATED_ATTACK_MARK not in name.casefold():
        name = f"{name} ({SIMULATED_ATTACK_MARK})"

    # Complete before it enters the scene, so that no observer ever sees a half-written volume.
    node = slicer.vtkMRMLScalarVolumeNode()
    node.SetName(free_name(name))
    set_grid(node, volume)
    _write_provenance(node, provenance)
    node.SetAndObserveImageData(image or image_from_volume(volume))

    scene.AddNode(node)
    source_display = source_node.GetDisplayNode() if source_node is not None else None
    if source_display is not None:
        # Instead of a default one, which takes longer than all else to find a window for the voxels; and a fixed window
        # keeps both volumes comparable by eye.
        display = slicer.vtkMRMLScalarVolumeDisplayNode()
        display.SetAutoWindowLevel(False)
        scene.AddNode(display)
        display.SetWindowLevel(source_display.GetWindow(), source_display.GetLevel())
        display.SetInterpolate(source_display.GetInterpolate())
        display.SetAndObserveColorNodeID(source_display.GetColorNodeID())
        node.SetAndObserveDisplayNodeID(display.GetID())
    node.CreateDefaultDisplayNodes()
    if provenance.is_simulated_attack:
        node.GetDisplayNode().SetColor(SIMULATED_ATTACK_COLOR)
    if provenance.steps:
        storage = scene.AddNewNodeByClass("vtkMRMLNRRDStorageNode")
        node.SetAndObserveStorageNodeID(storage.GetID())
    if source_node is not None:
        node.SetAndObserveTransformNodeID(source_node.GetTransformNodeID())
        _place_beside(source_node, node)
        node.SetNodeReferenceID(SOURCE_ROLE, source_node.GetID())
    return node


def free_name(name: str) -> str:
    """A name for a new node: with a number where there is a node of that name."""
    # The scene numbers also names of which the node is gone.
    return slicer.mrmlScene.GenerateUniqueName(name) if slicer.mrmlScene.GetFirstNodeByName(name) else name


def set_grid(node: slicer.vtkMRMLVolumeNode, volume: CTVolume) -> None:
    """Give a node spacing, origin and directions of a scan."""
    directions = np.eye(4)
    directions[:3, :3] = _LPS_FROM_RAS @ volume.direction
    node.SetIJKToRASDirectionMatrix(slicer.util.vtkMatrixFromArray(directions))
    node.SetSpacing(volume.spacing)
    node.SetOrigin(lps_from_ras(volume.origin))


def own_colors(node: slicer.vtkMRMLVolumeNode) -> slicer.vtkMRMLColorTableNode | None:
    """The colors that :func:`add_colors` made for a map; None for a scan, which shares its gray with all others."""
    colors = node.GetDisplayNode().GetColorNode() if node.GetDisplayNode() else None
    return colors if colors and colors.GetName() == f"{node.GetName()} colors" else None


def add_colors(node: slicer.vtkMRMLVolumeNode, count: int, *, hidden: bool) -> slicer.vtkMRMLColorTableNode:
    """A new table of colors that belongs to a map alone.

    :param hidden: from editors; a scene file keeps no colors of those that are.
    """
    colors = slicer.vtkMRMLColorTableNode()
    colors.SetTypeToUser()
    colors.SetName(f"{node.GetName()} colors")
    colors.SetHideFromEditors(hidden)
    colors.SetNumberOfColors(count)
    return slicer.mrmlScene.AddNode(colors)


def source_of(node: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The node that ``node`` was computed from; None for a scan as loaded, or when that node is gone."""
    return node.GetNodeReference(SOURCE_ROLE)


def origin_of(node: slicer.vtkMRMLVolumeNode) -> slicer.vtkMRMLVolumeNode:
    """The scan as loaded that ``node`` was computed from in one or more steps; itself for such a scan."""
    source = source_of(node)
    return node if source is None else origin_of(source)


def is_scan(node: slicer.vtkMRMLNode) -> bool:
    """Whether a node is a scalar volume, no label map or vector volume, and no result of this library."""
    # Those derive from the scalar volume node, hence the exact class.
    return node.GetClassName() == "vtkMRMLScalarVolumeNode" and source_of(node) is None


def first_scan() -> slicer.vtkMRMLScalarVolumeNode | None:
    """The scene's first scan, in the sense of :func:`is_scan`; None when there is none."""
    return next(filter(is_scan, slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), None)


def results_of(node: slicer.vtkMRMLScalarVolumeNode) -> list[slicer.vtkMRMLScalarVolumeNode]:
    """Protected volumes that were computed from ``node`` directly, oldest first."""
    return [
        other
        for other in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        if other.GetAttribute(PROTECTED_ATTRIBUTE) == "true" and source_of(other) is node
    ]


def remove_result(node: slicer.vtkMRMLNode) -> None:
    """Take a node that this library made out of the scene, with what belongs to it alone."""
    scene = node.GetScene()
    if scene is None:
        return
    own: list[slicer.vtkMRMLNode | None] = []
    if node.IsA("vtkMRMLPlotChartNode"):
        series = [node.GetNthPlotSeriesNode(index) for index in range(node.GetNumberOfPlotSeriesNodes())]
        own = [*series, *{one.GetTableNode() for one in series}]
    elif node.IsA("vtkMRMLVolumeNode"):
        own = [own_colors(node)]
    if node.IsA("vtkMRMLDisplayableNode"):
        own += [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        own.append(node.GetStorageNode())
    for other in [node, *own]:
        if other is not None and other.GetScene() is scene:
            scene.RemoveNode(other)


def history_of(node: slicer.vtkMRMLScalarVolumeNode) -> Provenance:
    """The steps that led to a node's voxels, as it, or the file behind it, tells them, and nothing else."""
    return Provenance(steps=steps_of(node))


def is_simulated_attack(node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether a node says that it holds, or was computed from, a simulated attack."""
    return node.GetAttribute(SIMULATED_ATTACK_ATTRIBUTE) == "true" or history_of(node).is_simulated_attack


def is_protected(node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether a node says that it, or what it was computed from, was protected."""
    return history_of(node).last(PROTECTION) is not None


def is_watermarked_alone(node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether a node says that a watermark was put into its voxels, and no model's change."""
    return watermark_kind(node) is not None and not any("model" in step.parameters for step in steps_of(node))


def watermark_kind(node: slicer.vtkMRMLScalarVolumeNode) -> str | None:
    """The kind of the last watermark in a node, as it says: "open", "keyed", or None without one."""
    kinds = [step.parameters["watermark"] for step in steps_of(node) if "watermark" in step.parameters]
    return str(kinds[-1]) if kinds else None


def same_scan(one: CTVolume, other: CTVolume) -> bool:
    """Whether two scans have the same voxels on the same grid, to 0.05 mm."""
    return one.shape == other.shape and one.same_geometry(other, 0.05) and np.array_equal(one.hu, other.hu)


def require_in_scene(*nodes: slicer.vtkMRMLNode) -> None:
    """Stop where work in the background has left the user time to close the scene.

    :raises CancelledError: a node is no longer in the scene.
    """
    if any(node.GetScene() is not slicer.mrmlScene for node in nodes):
        raise CancelledError(_("Canceled: the volume was removed from the scene."))


def voxel_from_ras(node: slicer.vtkMRMLScalarVolumeNode, ras: Sequence[float]) -> tuple[int, int, int]:
    """(slice, row, column) of the voxel whose center is nearest to a world RAS point in mm.

    The point passes through every transform above the node, linear or not.

    :raises TargetError: when the point lies outside the volume.
    """
    _require_scalar_volume(node)
    own_ras = _transform_between(None, node.GetParentTransformNode()).TransformPoint(tuple(ras))
    to_ijk = vtk.vtkMatrix4x4()
    node.GetRASToIJKMatrix(to_ijk)
    i, j, k = (int(np.floor(value + 0.5)) for value in to_ijk.MultiplyPoint((*own_ras, 1.0))[:3])
    columns, rows, slices = node.GetImageData().GetDimensions()
    if not (0 <= i < columns and 0 <= j < rows and 0 <= k < slices):
        raise TargetError(_("The point lies outside the volume; place it on a structure inside the scan."))
    return k, j, i


def ras_from_voxel(node: slicer.vtkMRMLScalarVolumeNode, kji: Sequence[float]) -> tuple[float, float, float]:
    """World RAS point in mm of the center of voxel (slice, row, column), through every transform above the node."""
    _require_scalar_volume(node)
    k, j, i = kji
    to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(to_ras)
    own_ras = to_ras.MultiplyPoint((i, j, k, 1.0))[:3]
    return tuple(_transform_between(node.GetParentTransformNode(), None).TransformPoint(own_ras))


def _require_scalar_volume(node: slicer.vtkMRMLScalarVolumeNode | None) -> None:
    # Label maps and vector volumes derive from the scalar volume node, hence the exact class.
    if node is None or node.GetClassName() != "vtkMRMLScalarVolumeNode":
        raise InputError(_("Select a scalar volume: label maps, vector volumes and other data are not CT scans."))
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        raise InputError(_("The selected volume holds no voxels; load the scan again."))
    if image.GetNumberOfScalarComponents() != 1:
        raise InputError(_("The selected volume has several values per voxel; a CT scan has one."))


def _exact_int16(values: np.ndarray) -> np.ndarray:
    """``values`` as int16; InputError when that would change any of them."""
    if values.dtype == np.int16:
        return values
    # A NaN anywhere makes both comparisons false.
    if values.min() >= HU_MIN and values.max() <= HU_MAX:
        hu = values.astype(np.int16)
        # Whole numbers within the range are exact; comparing each cost half of the time at which Slicer stands still.
        if values.dtype.kind in "iu" or np.array_equal(hu, values):
            return hu
    raise InputError(
        _(
            "The selected volume holds {type} values that are not whole HU between {low} and {high}; load the original "
            "CT scan, or round it with the Cast Scalar Volume module (type short)."
        ).format(type=values.dtype, low=HU_MIN, high=HU_MAX)
    )


def _transform_between(
    source: slicer.vtkMRMLTransformNode | None, target: slicer.vtkMRMLTransformNode | None
) -> vtk.vtkGeneralTransform:
    """Map from the coordinates under ``source`` to those under ``target``; None is the world."""
    transform = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, transform)
    return transform


def _provenance_from_node(node: slicer.vtkMRMLScalarVolumeNode) -> Provenance:
    text = _("The volume lies under a transform; positions in this copy are those before that transform.")
    warnings = (VolumeWarning("parent-transform", text),) if node.GetParentTransformNode() else ()
    padding = node.GetAttribute(PADDING_ATTRIBUTE)
    try:
        padding_hu = int(padding) if padding else declared_padding_hu(node)
    except ValueError as error:
        raise unreadable(PADDING_ATTRIBUTE) from error
    return Provenance(
        source=node.GetName() or "",
        format="MRML",
        series_instance_uid=_series_instance_uid(node),
        padding_hu=padding_hu,
        warnings=warnings,
        steps=steps_of(node),
    )


def _write_provenance(node: slicer.vtkMRMLScalarVolumeNode, provenance: Provenance) -> None:
    if provenance.steps:
        node.SetAttribute(STEPS_ATTRIBUTE, steps_to_text(provenance.steps))
    if provenance.padding_hu is not None:
        node.SetAttribute(PADDING_ATTRIBUTE, str(provenance.padding_hu))
    # These two repeat what the steps say in a form that node selectors can filter by and a person can read.
    for kind, attribute in ((PROTECTION, PROTECTED_ATTRIBUTE), (SIMULATED_ATTACK, SIMULATED_ATTACK_ATTRIBUTE)):
        if provenance.last(kind):
            node.SetAttribute(attribute, "true")


def _series_instance_uid(node: slicer.vtkMRMLScalarVolumeNode) -> str | None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node)
    if item == hierarchy.GetInvalidItemID():
        return None
    return hierarchy.GetItemUID(item, slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMUIDName()) or None


def _place_beside(source_node: slicer.vtkMRMLScalarVolumeNode, node: slicer.vtkMRMLScalarVolumeNode) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    source_item = hierarchy.GetItemByDataNode(source_node)
    if source_item == hierarchy.GetInvalidItemID():
        return
    parent = hierarchy.GetItemParent(source_item)
    item = hierarchy.GetItemByDataNode(node)
    # The application lists a new node by itself; a scene without the application does not.
    if item == hierarchy.GetInvalidItemID():
        hierarchy.CreateItem(parent, node)
    else:
        hierarchy.SetItemParent(item, parent)
