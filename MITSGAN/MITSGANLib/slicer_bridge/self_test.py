"""The module's self test, run inside Slicer from the developer panel or by CTest; without any download."""

# Run by Slicer, whose tests are unittest's.
# ruff: noqa: PT009

from __future__ import annotations

import tempfile
import unittest
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

from ..errors import CancelledError
from ..files.volume_files import read_file, write_file
from ..keys.key_files import Key
from ..scan import phantom
from ..scan.volume import CTVolume, ProcessingStep
from . import volumes
from .key_files import make_key_file, make_signing_key_file, open_key, open_proofs
from .layout import VIEWS, restore_layout, show_comparison
from .origin import ScanOnDisk
from .packages import are_installed


def protect_and_attack(test: unittest.TestCase, logic: Any) -> None:
    """Protection and attack keep the geometry, follow the transform and mark their results."""
    test.delayDisplay("Creating the phantom")
    case = phantom.thorax_phantom()
    volume_node = volumes.node_from_volume(case.volume, "Phantom")
    transform_node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform = vtk.vtkTransform()
    transform.Translate(10, -20, 30)
    transform.RotateZ(15)
    transform_node.SetMatrixTransformToParent(transform.GetMatrix())
    volume_node.SetAndObserveTransformNodeID(transform_node.GetID())
    ras = volumes.ras_from_voxel(volume_node, case.nodule_kji)
    test.assertEqual(volumes.voxel_from_ras(volume_node, ras), tuple(case.nodule_kji))

    if not are_installed("torch", "safetensors", "lpips"):
        test.delayDisplay("PyTorch or another package is not installed: only the geometry was tested")
        return

    test.delayDisplay("Protecting the phantom")
    progress = []
    protected_node = logic.protect(volume_node, progress=lambda done, total: progress.append((done, total)))
    test.assertEqual(progress[-1][0], progress[-1][1])
    protected = volumes.volume_from_node(protected_node)
    test.assertTrue(protected.same_geometry(case.volume))
    test.assertFalse((protected.hu == case.volume.hu).all())
    test.assertIs(protected_node.GetParentTransformNode(), transform_node)
    test.assertEqual(protected_node.GetAttribute(volumes.PROTECTED_ATTRIBUTE), "true")
    test.assertIsNone(protected_node.GetAttribute(volumes.SIMULATED_ATTACK_ATTRIBUTE))

    test.delayDisplay("Simulating an attack")
    attacked_nodes = logic.simulateAttack(volume_node, protected_node, ras, "remove")
    for source_node, attacked_node in zip((volume_node, protected_node), attacked_nodes, strict=True):
        attacked = volumes.volume_from_node(attacked_node)
        test.assertTrue(attacked.same_geometry(case.volume))
        test.assertTrue(attacked.provenance.is_simulated_attack)
        test.assertFalse((attacked.hu == volumes.volume_from_node(source_node).hu).all())
        test.assertEqual(attacked_node.GetAttribute(volumes.SIMULATED_ATTACK_ATTRIBUTE), "true")
        test.assertIn(volumes.SIMULATED_ATTACK_MARK, attacked_node.GetName())

    test.delayDisplay("Comparing the volumes")
    comparison = logic.compare(volume_node, protected_node, attacked_nodes, attacker="default")
    test.assertEqual(sorted(comparison.heatmaps), ["protected", "protected attacked", "source attacked"])
    test.assertTrue(comparison.table.GetNumberOfRows() > 0)
    test.assertEqual(comparison.chart.GetNumberOfPlotSeriesNodes(), 2)
    show_comparison(
        dict(zip(VIEWS, (volume_node, protected_node, *attacked_nodes), strict=True)),
        heatmaps=comparison.heatmaps,
        target_ras=ras,
        table=comparison.figures,
        chart=comparison.chart,
    )
    restore_layout()

    test.delayDisplay("Canceling")
    nodes = slicer.mrmlScene.GetNumberOfNodes()

    def cancel(_done: int, _total: int) -> None:
        raise CancelledError("enough")

    with suppress(CancelledError):
        logic.protect(volume_node, progress=cancel)
    test.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), nodes)

    test.delayDisplay("Test passed")


def seal_and_sign(test: unittest.TestCase, logic: Any) -> None:
    """A sealed and signed file gives back the original, and shows the one voxel that was changed."""
    if not are_installed("cryptography"):
        test.delayDisplay("The package cryptography is not installed: keys were not tested")
        return
    test.delayDisplay("Sealing and signing")
    hu = np.random.default_rng(0).integers(-1000, 400, (8, 64, 64)).astype(np.int16)
    original = CTVolume(hu, spacing=(5.0, 5.0, 2.5))
    protected = original.with_hu(hu + np.int16(1), ProcessingStep("protection", "self test"))
    volume_node = volumes.node_from_volume(original, "Original")
    protected_node = volumes.node_from_volume(protected, "Protected", volume_node)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_key_file(folder / "self.key")
        make_signing_key_file(folder / "self.pem")
        proofs = open_proofs(folder / "self.key", folder / "self.pem", "")
        path = folder / "protected.nrrd"
        logic.exportFile(protected_node, path, volume_node, proofs=proofs)

        test.delayDisplay("Restoring")
        scan = ScanOnDisk(path)
        key = open_key(folder / "self.key", "")
        _restored, restored_node = logic.restoreOriginal(scan, folder / "restored.nrrd", key, name="Restored")
        test.assertTrue((slicer.util.arrayFromVolume(restored_node) == hu).all())

        test.delayDisplay("Verifying")
        forged = read_file(path)
        loaded_node = volumes.node_from_volume(forged, "Signed")
        loaded_node.AddDefaultStorageNode()
        loaded_node.GetStorageNode().SetFileName(str(path))
        examined = logic.examine(loaded_node, None, folder / "self.pub.pem")
        test.assertEqual(examined.verdict.outcome.value, "intact (signed)")
        values = forged.hu.copy()
        values[5, 40, 10] += 1
        write_file(CTVolume(values, forged.spacing, forged.origin, forged.direction), path, overwrite=True)
        slicer.util.updateVolumeFromArray(loaded_node, values)
        examined = logic.examine(loaded_node)
        test.assertEqual(examined.verdict.outcome.value, "changed")
        labels = slicer.util.arrayFromVolume(logic.showExamined(examined, loaded_node))
        test.assertEqual(np.argwhere(labels)[0].tolist(), [5, 32, 0])
        test.assertEqual(int(np.count_nonzero(labels)), 32 * 32)
    test.delayDisplay("Test passed")


def watermark_and_check(test: unittest.TestCase, logic: Any) -> None:
    """A watermark is missing where the scan was painted over, and nowhere else."""
    if not are_installed("cryptography"):
        test.delayDisplay("The package cryptography is not installed: watermarks were not tested")
        return
    test.delayDisplay("Watermarking")
    # The voxels of a clinical scan: those of the other phantom are too large for a watermark.
    case = phantom.thorax_phantom((12, 340, 404), (2.5, 0.9, 0.9), seed=5, noise_hu=24)
    volume_node = volumes.node_from_volume(case.volume, "CT")
    # Always the same key, so that this test always sees the same.
    key = Key(bytes(range(32)))
    marked_node = logic.watermark(volume_node, key)
    test.assertEqual(marked_node.GetAttribute(volumes.PROTECTED_ATTRIBUTE), "true")

    test.delayDisplay("Painting")
    marked = volumes.volume_from_node(marked_node)
    hu, lung = marked.hu.copy(), (6, 146, 113)
    hu[1:11, 128:164, 95:131] = marked.hu[1:11, 136:172, 111:147]
    painted_node = volumes.node_from_volume(marked.with_hu(hu), "Painted")

    test.delayDisplay("Examining")
    intact = logic.examine(marked_node, key)
    test.assertTrue(intact.is_keyed)
    test.assertEqual(intact.verdict.places, ())
    examined = logic.examine(painted_node, key)
    test.assertLess(float(np.abs(np.subtract(examined.verdict.places[0].kji, lung) * (2.5, 0.9, 0.9)).max()), 10.0)
    change_map = logic.showExamined(examined, painted_node)
    test.assertEqual(int(slicer.util.arrayFromVolume(change_map)[lung]), 1)
    test.delayDisplay("Test passed")
