"""The MITSGAN module of 3D Slicer: protect a CT volume, and simulate an attack on it with and without protection.

What happens to voxels is in ``MITSGANLib``; this file holds the module's panel, its parameters and its self test.
"""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import qt
import slicer
import vtk
from MITSGANLib import models, slicer_bridge
from MITSGANLib.errors import CancelledError, DependencyError, InputError
from slicer import vtkMRMLMarkupsFiducialNode, vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

logger = logging.getLogger(__name__)


class MITSGAN(ScriptedLoadableModule):
    """Name, category and help of the module, as Slicer lists them."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MITSGAN")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Informatics")]
        self.parent.dependencies = ["Markups"]
        self.parent.contributors = ["MITSGAN contributors"]
        self.parent.helpText = _("""
Protects CT volumes against tampering by generative networks. A protected volume differs from its source by a few
Hounsfield units, meant to disturb a network that inserts or removes a tumor. The module can simulate such an attack on
your own scan, with and without the protection.
See <a href="{url}">{url}</a> for a tutorial and for what was measured.
""").format(url="https://github.com/MITSGAN/SlicerMITSGAN")
        self.parent.acknowledgementText = _("""
The method follows MITS-GAN (Pasqualino et al.); the simulated attack follows CT-GAN (Mirsky et al.).
""")


@parameterNodeWrapper
class MITSGANParameterNode:
    """What the user chose in the panel, saved with the scene.

    sourceVolume - The CT volume to protect.
    model - Name of the protection model.
    strengthHU - Largest change of a voxel in HU; 0 is the strength that the model was made for.
    protectedVolume - The protected version of the source volume.
    targetPoint - Point list whose last point is the target of the simulated attack.
    action - Whether the attack injects or removes a nodule.
    """

    sourceVolume: vtkMRMLScalarVolumeNode
    model: str = models.DEFAULT_PROTECTOR
    strengthHU: Annotated[float, WithinRange(0, 30)] = 0.0
    protectedVolume: vtkMRMLScalarVolumeNode
    targetPoint: vtkMRMLMarkupsFiducialNode
    action: Annotated[str, Choice(["inject", "remove"])] = "inject"


class MITSGANWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The module's panel."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._observedTarget = None

    def setup(self) -> None:
        """Build the panel when the user opens the module for the first time."""
        ScriptedLoadableModuleWidget.setup(self)

        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MITSGAN.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = MITSGANLogic()

        for protector in models.available_protectors():
            self.ui.modelComboBox.addItem(protector.name, protector.name)
            self.ui.modelComboBox.setItemData(self.ui.modelComboBox.count - 1, protector.description, qt.Qt.ToolTipRole)
        # One point is enough for a target; its coordinates are nothing a user edits here.
        self.ui.targetWidget.tableWidget().setVisible(False)
        self.ui.targetWidget.markupsPlaceWidget().placeMultipleMarkups = (
            slicer.qSlicerMarkupsPlaceWidget.ForcePlaceSingleMarkup
        )

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.ui.modelComboBox.connect("currentIndexChanged(int)", self.onModelChanged)
        self.ui.injectRadioButton.connect("toggled(bool)", self.onInjectToggled)
        self.ui.protectButton.connect("clicked(bool)", self.onProtectButton)
        self.ui.simulateAttackButton.connect("clicked(bool)", self.onSimulateAttackButton)

        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Called when the application closes and the module widget is destroyed."""
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the user opens a different module."""
        self.ui.targetWidget.markupsPlaceWidget().setPlaceModeEnabled(False)
        self.setParameterNode(None)

    def onReload(self) -> None:
        """Reload the library together with the module (developer mode)."""
        names = [name for name in sys.modules if name.partition(".")[0] == "MITSGANLib"]
        # Forgetting all of them first makes the order of import irrelevant: whichever comes first gets new neighbors.
        for name in names:
            del sys.modules[name]
        for name in names:
            importlib.import_module(name)
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, _caller, _event) -> None:
        """Let go of the parameter node, which is about to be reset."""
        self.setParameterNode(None)

    def onSceneEndClose(self, _caller, _event) -> None:
        """Take a new parameter node if the panel is open."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """Make sure that a parameter node exists, is observed and has a source volume if the scene has one."""
        self.setParameterNode(self.logic.getParameterNode())
        if not self._parameterNode.sourceVolume:
            self._parameterNode.sourceVolume = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")

    def setParameterNode(self, inputParameterNode: MITSGANParameterNode | None) -> None:
        """Show and observe a parameter node, or none."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
            self._observeTarget(None)
        self._parameterNode = inputParameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
            self._onParametersModified()

    def _onParametersModified(self, _caller=None, _event=None) -> None:
        # parameterNodeWrapper has no connector for radio buttons, nor for a combo box filled at run time.
        modelIndex = self.ui.modelComboBox.findData(self._parameterNode.model)
        self.ui.modelComboBox.setCurrentIndex(modelIndex)
        self.ui.modelDescriptionLabel.text = (
            self.ui.modelComboBox.itemData(modelIndex, qt.Qt.ToolTipRole) if modelIndex >= 0 else ""
        )
        self.ui.injectRadioButton.checked = self._parameterNode.action == "inject"
        self.ui.removeRadioButton.checked = self._parameterNode.action == "remove"
        self._observeTarget(self._parameterNode.targetPoint)
        self._checkCanApply()

    def _observeTarget(self, targetNode: vtkMRMLMarkupsFiducialNode | None) -> None:
        """Placing or deleting a point changes the point list, not the parameter node."""
        if targetNode is self._observedTarget:
            return
        markupsClass = slicer.vtkMRMLMarkupsNode
        for event in (
            markupsClass.PointPositionDefinedEvent,
            markupsClass.PointPositionUndefinedEvent,
            markupsClass.PointRemovedEvent,
        ):
            if self._observedTarget:
                self.removeObserver(self._observedTarget, event, self._checkCanApply)
            if targetNode:
                self.addObserver(targetNode, event, self._checkCanApply)
        self._observedTarget = targetNode

    def _checkCanApply(self, _caller=None, _event=None) -> None:
        """Enable each button when what it needs is there, and say in its tool tip what is missing."""
        parameters = self._parameterNode
        missing = "" if parameters.sourceVolume else _("Select a CT volume.")
        if not missing and self.ui.modelComboBox.currentIndex < 0:
            missing = _("Select a model.")
        self.ui.protectButton.enabled = not missing
        self.ui.protectButton.toolTip = missing or _("Compute a protected copy of the CT volume.")

        missing = ""
        if not parameters.sourceVolume:
            missing = _("Select a CT volume.")
        elif not parameters.protectedVolume or parameters.protectedVolume is parameters.sourceVolume:
            missing = _("Protect the CT volume, or select its protected version.")
        elif not parameters.targetPoint or parameters.targetPoint.GetNumberOfDefinedControlPoints() == 0:
            missing = _("Place a target point.")
        self.ui.simulateAttackButton.enabled = not missing
        self.ui.simulateAttackButton.toolTip = missing or _("Attack both volumes at the target point.")

    def onModelChanged(self, index: int) -> None:
        """Keep the model that the user chose."""
        if self._parameterNode and index >= 0:
            self._parameterNode.model = self.ui.modelComboBox.itemData(index)

    def onInjectToggled(self, inject: bool) -> None:
        """Keep the action that the user chose."""
        if self._parameterNode:
            self._parameterNode.action = "inject" if inject else "remove"

    def onProtectButton(self) -> None:
        """Protect the selected volume and show the result."""
        with slicer.util.tryWithErrorDisplay(_("Failed to protect the volume.")):
            self.ui.statusLabel.text = ""
            self._ensurePackages()
            parameters = self._parameterNode
            progressDialog = slicer.util.createProgressDialog(
                labelText=_("Protecting the volume..."), windowTitle="MITSGAN", windowModality=qt.Qt.WindowModal
            )
            slicer.app.processEvents()

            def showProgress(done: int, total: int) -> None:
                progressDialog.maximum = total
                progressDialog.value = done
                slicer.app.processEvents()
                if progressDialog.wasCanceled:
                    raise CancelledError(_("Canceled; no volume was created."))

            try:
                protectedNode = self.logic.protect(
                    parameters.sourceVolume, parameters.model, parameters.strengthHU or None, showProgress
                )
            except CancelledError as canceled:
                self.ui.statusLabel.text = str(canceled)
                return
            finally:
                progressDialog.close()

            parameters.protectedVolume = protectedNode
            slicer.util.setSliceViewerLayers(background=protectedNode)
            self.ui.statusLabel.text = _("Created {name}.").format(name=protectedNode.GetName())

    def onSimulateAttackButton(self) -> None:
        """Attack both volumes at the target point and show the results, the unprotected one in the background."""
        with slicer.util.tryWithErrorDisplay(_("Failed to simulate the attack.")):
            self.ui.statusLabel.text = ""
            self._ensurePackages()
        with slicer.util.tryWithErrorDisplay(_("Failed to simulate the attack."), waitCursor=True):
            parameters = self._parameterNode
            attackedNode, attackedProtectedNode = self.logic.simulateAttack(
                parameters.sourceVolume,
                parameters.protectedVolume,
                slicer_bridge.target_from_markups(parameters.targetPoint),
                parameters.action,
            )
            slicer.util.setSliceViewerLayers(
                background=attackedNode, foreground=attackedProtectedNode, foregroundOpacity=0
            )
            self.ui.statusLabel.text = _(
                "Created {background} (shown as background) and {foreground} (foreground). Fade between the two in the "
                "slice view controllers."
            ).format(background=attackedNode.GetName(), foreground=attackedProtectedNode.GetName())

    def _ensurePackages(self) -> None:
        """Offer to install what Slicer does not ship. Called on first use, because it may download a lot."""
        if any(importlib.util.find_spec(name) is None for name in ("torch", "torchvision")):
            try:
                import PyTorchUtils
            except ModuleNotFoundError as error:
                raise DependencyError(
                    _("Install the PyTorch extension in the Extensions Manager and restart Slicer.")
                ) from error
            if PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True) is None:
                raise DependencyError(_("PyTorch is needed and was not installed."))

        from slicer import packaging

        packaging.pip_ensure(packaging.load_requirements(self.resourcePath("requirements.txt")), requester="MITSGAN")


class MITSGANLogic(ScriptedLoadableModuleLogic):
    """Protection and simulated attacks on volume nodes, usable without the panel.

    ::

        logic = MITSGANLogic()
        protectedNode = logic.protect(volumeNode)
        attackedNode, attackedProtectedNode = logic.simulateAttack(volumeNode, protectedNode, ras, "inject")

    The packages in ``Resources/requirements.txt`` and PyTorch must be installed.
    """

    def getParameterNode(self) -> MITSGANParameterNode:
        """The module's parameter node in the scene, created when there is none."""
        return MITSGANParameterNode(super().getParameterNode())

    def protect(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        model: str = "default",
        strengthHU: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> vtkMRMLScalarVolumeNode:
        """Create a protected copy of a CT volume.

        :param volumeNode: the CT volume; it is not changed.
        :param model: name of a protection model.
        :param strengthHU: largest change of a voxel in HU; None is the strength that the model was made for.
        :param progress: called with the number of slices done and in all; may raise CancelledError to stop.
        :return: the new volume node, under the same transform and study as the source.
        """
        # Imports torch, which the panel may have installed only now.
        from MITSGANLib import protector

        volume = slicer_bridge.volume_from_node(volumeNode)
        protected = protector.protect(volume, model=model, strength_hu=strengthHU, progress=progress)
        logger.info(f"MITSGAN protected {volumeNode.GetID()} with model {model}")
        return slicer_bridge.node_from_volume(
            protected, _("{name} protected").format(name=volumeNode.GetName()), volumeNode
        )

    def simulateAttack(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        protectedNode: vtkMRMLScalarVolumeNode,
        ras: Sequence[float],
        action: str = "inject",
    ) -> tuple[vtkMRMLScalarVolumeNode, vtkMRMLScalarVolumeNode]:
        """Attack a CT volume and its protected version at the same voxel.

        :param volumeNode: the unprotected CT volume; it is not changed.
        :param protectedNode: its protected version; it is not changed.
        :param ras: target in world coordinates (RAS, mm).
        :param action: "inject" or "remove" a nodule.
        :return: new volume nodes with the attacked source and the attacked protected version.
        """
        from MITSGANLib.ctgan import attacker

        volume = slicer_bridge.volume_from_node(volumeNode)
        protected = slicer_bridge.volume_from_node(protectedNode)
        if not volume.same_geometry(protected):
            raise InputError(
                _("The protected volume does not match the CT volume; select the one that was computed from it.")
            )
        kji = slicer_bridge.voxel_from_ras(volumeNode, ras)
        # Both results before the first node, so that a failure leaves nothing behind.
        attacked = attacker.simulate_attack(volume, kji, action)
        attackedProtected = attacker.simulate_attack(protected, kji, action)
        logger.info(f"MITSGAN simulated an attack ({action}) on {volumeNode.GetID()} and {protectedNode.GetID()}")
        name = _("{name} nodule injected") if action == "inject" else _("{name} nodule removed")
        return (
            slicer_bridge.node_from_volume(attacked, name.format(name=volumeNode.GetName()), volumeNode),
            slicer_bridge.node_from_volume(attackedProtected, name.format(name=protectedNode.GetName()), protectedNode),
        )


class MITSGANTest(ScriptedLoadableModuleTest):
    """Self test on a synthetic thorax, run from the developer panel or by CTest."""

    def setUp(self) -> None:
        """Start from an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run all tests."""
        self.setUp()
        self.test_ProtectAndAttackPhantom()

    def test_ProtectAndAttackPhantom(self) -> None:
        """Protection and attack keep the geometry, follow the transform and mark their results."""
        from MITSGANLib.phantom import thorax_phantom

        self.delayDisplay("Creating the phantom")
        phantom = thorax_phantom()
        volumeNode = slicer_bridge.node_from_volume(phantom.volume, "Phantom")
        transformNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        transform = vtk.vtkTransform()
        transform.Translate(10, -20, 30)
        transform.RotateZ(15)
        transformNode.SetMatrixTransformToParent(transform.GetMatrix())
        volumeNode.SetAndObserveTransformNodeID(transformNode.GetID())
        ras = slicer_bridge.ras_from_voxel(volumeNode, phantom.nodule_kji)
        self.assertEqual(slicer_bridge.voxel_from_ras(volumeNode, ras), tuple(phantom.nodule_kji))

        if importlib.util.find_spec("torch") is None:
            self.delayDisplay("PyTorch is not installed: only the geometry was tested")
            return

        self.delayDisplay("Protecting the phantom")
        logic = MITSGANLogic()
        progress = []
        protectedNode = logic.protect(volumeNode, progress=lambda done, total: progress.append((done, total)))
        self.assertEqual(progress[-1][0], progress[-1][1])
        protected = slicer_bridge.volume_from_node(protectedNode)
        self.assertTrue(protected.same_geometry(phantom.volume))
        self.assertFalse((protected.hu == phantom.volume.hu).all())
        self.assertIs(protectedNode.GetParentTransformNode(), transformNode)
        self.assertEqual(protectedNode.GetAttribute(slicer_bridge.PROTECTED_ATTRIBUTE), "true")
        self.assertIsNone(protectedNode.GetAttribute(slicer_bridge.SIMULATED_ATTACK_ATTRIBUTE))

        self.delayDisplay("Simulating an attack")
        attackedNodes = logic.simulateAttack(volumeNode, protectedNode, ras, "remove")
        for sourceNode, attackedNode in zip((volumeNode, protectedNode), attackedNodes, strict=True):
            attacked = slicer_bridge.volume_from_node(attackedNode)
            self.assertTrue(attacked.same_geometry(phantom.volume))
            self.assertTrue(attacked.provenance.is_simulated_attack)
            self.assertFalse((attacked.hu == slicer_bridge.volume_from_node(sourceNode).hu).all())
            self.assertEqual(attackedNode.GetAttribute(slicer_bridge.SIMULATED_ATTACK_ATTRIBUTE), "true")
            self.assertIn(slicer_bridge.SIMULATED_ATTACK_MARK, attackedNode.GetName())

        self.delayDisplay("Test passed")
