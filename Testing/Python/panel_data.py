"""What the panel's tests do as a user would: select, click, answer dialogs, take pictures.

``MITSGAN_PANEL_PICTURES`` names a folder that pictures of the panel at each step are written to.
"""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from __future__ import annotations

import os
import sys
import time
import zipfile
from pathlib import Path

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
vtk = pytest.importorskip("vtk", reason="VTK needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from MITSGANLib.slicer_bridge.layout import VIEWS
from MITSGANLib.slicer_bridge.volumes import node_from_volume, ras_from_voxel
from PySide6 import QtGui, QtWidgets

ROOT = Path(__file__).resolve().parents[2]
PATIENT = "DOE^JANE"
PATIENCE_SECONDS = 60


PASSPHRASE = "correct horse battery"


def add_scan(panel, volume, name="CT"):
    node = node_from_volume(volume, name)
    panel.ui.volumeSelector.setCurrentNode(node)
    wait_until(lambda: panel.panel.inspection is not None)
    return node


def wait_until(condition):
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        slicer.app.processEvents()
        time.sleep(0.002)


def place_target(panel, kji):
    """Press the button, then put a point where a click in a slice view would."""
    panel.ui.placeTargetButton.click()
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    assert "Click" in panel.ui.targetDescriptionLabel.text
    parameters = panel._parameterNode
    ras = ras_from_voxel(parameters.sourceVolume, kji)
    # Slicer takes a click only in views that show the list.
    views = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    display = parameters.targetPoint.GetDisplayNode()
    assert [node.GetName() for node in views if not display.IsDisplayableInView(node.GetID())] == []
    assert slicer.app.applicationLogic().GetSelectionNode().GetActivePlaceNodeID() == parameters.targetPoint.GetID()
    parameters.targetPoint.AddControlPointWorld(vtk.vtkVector3d(ras))
    interaction.SetCurrentInteractionMode(interaction.ViewTransform)
    wait_until(lambda: parameters.targetPoint.GetNumberOfControlPoints() == 1)


def click_failing(button, error=""):
    """Click a button whose slot raises, and give the text of what it raised: Qt hands that to ``sys.excepthook``."""
    raised = []
    hook, sys.excepthook = sys.excepthook, lambda _kind, value, _trace: raised.append(str(value))
    try:
        button.click()
    finally:
        sys.excepthook = hook
    assert len(raised) == 1
    assert error in raised[0]
    return raised[0]


def node_names(class_name="vtkMRMLScalarVolumeNode"):
    return sorted(node.GetName() for node in slicer.util.getNodesByClass(class_name))


def snapshot():
    """What is in the scene, to see whether anything was left behind."""
    scene = slicer.mrmlScene
    return sorted(scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes()))


def hu(node):
    return slicer.util.arrayFromVolume(node)


def attack(panel, scan):
    panel.ui.protectButton.click()
    place_target(panel, scan.nodule_kji)
    panel.ui.removeRadioButton.checked = True
    panel.ui.simulateAttackButton.click()
    return panel._parameterNode


def composites():
    views = {view.tag: name for name, view in VIEWS.items()}
    return {
        views[node.GetLayoutName()]: node
        for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
        if node.GetLayoutName() in views
    }


def composed(view):
    """The image that Slicer's pipeline composes for a view of the comparison."""
    logics = slicer.app.layoutManager().mrmlSliceLogics()
    (logic,) = (one for one in logics if one.GetSliceNode().GetLayoutName() == VIEWS[view].tag)
    connection = logic.GetImageDataConnection()
    connection.GetProducer().Update()
    return connection.GetProducer().GetOutputDataObject(connection.GetIndex())


def caption(view):
    """What stands in the image of a view of the comparison, and whether a key of colors does."""
    (renderer,) = slicer.app.layoutManager().sliceWidget(VIEWS[view].tag).sliceView().renderWindow().GetRenderers()
    props = {prop.GetObjectName(): prop for prop in renderer.GetViewProps()}
    assert len(props) == renderer.GetViewProps().GetNumberOfItems(), "nothing is written twice"
    return props["MITSGAN.Caption"].GetInput(), bool(props["MITSGAN.ColorKey"].GetVisibility())


class Pictures:
    """Pictures of the panel at 400 px, light and dark, and of the comparison."""

    def __init__(self, panel, folder):
        self.panel, self.folder = panel, folder
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, name):
        application, parent = QtWidgets.QApplication.instance(), self.panel.parent
        application.setStyle("Fusion")
        light = QtGui.QPalette(QtGui.QColor(239, 239, 239))
        for theme, palette in (("light", light), ("dark", dark_palette())):
            parent.setPalette(palette)
            self.panel.panel.changed()
            # A label that wraps gets its height from the second round of layout.
            for width in (401, 400, 400):
                parent.setFixedWidth(width)
                application.processEvents()
                parent.setFixedHeight(parent.layout().heightForWidth(400))
            assert parent.layout().minimumSize().width() <= 400, "squeezed rows hide text"
            picture = parent.grab()
            assert picture.width() == 400
            assert picture.save(str(self.folder / f"{name}-{theme}.png"))

    def take_comparison(self, name):
        """The four images, as they are seen beside a panel of 400 px on a screen of 1280."""
        rows = vtk.vtkImageAppend()
        rows.SetAppendAxis(1)
        for pair in (("source attacked", "protected attacked"), ("source", "protected")):
            row = vtk.vtkImageAppend()
            for view in pair:
                row.AddInputData(self._render(view))
            row.Update()
            rows.AddInputData(row.GetOutput())
        writer = vtk.vtkPNGWriter()
        writer.SetInputConnection(rows.GetOutputPort())
        writer.SetFileName(str(self.folder / f"{name}.png"))
        writer.Write()

    def _render(self, view):
        image = composed(view)
        window = slicer.app.layoutManager().sliceWidget(VIEWS[view].tag).sliceView().renderWindow()
        window.SetSize(*image.GetDimensions()[:2])
        mapper, actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
        mapper.SetInputData(image)
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        actor.SetMapper(mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        (renderer,) = window.GetRenderers()
        renderer.AddViewProp(actor)
        window.Render()
        taken = vtk.vtkWindowToImageFilter()
        taken.SetInput(window)
        taken.ReadFrontBufferOff()
        taken.Update()
        renderer.RemoveViewProp(actor)
        return taken.GetOutput()


def dark_palette():
    palette = QtGui.QPalette(QtGui.QColor(53, 53, 53))
    role = QtGui.QPalette.ColorRole
    for which, color in ((role.Base, (35, 35, 35)), (role.Highlight, (42, 130, 218))):
        palette.setColor(which, QtGui.QColor(*color))
    for which in (role.Text, role.WindowText, role.ButtonText):
        palette.setColor(QtGui.QPalette.ColorGroup.Disabled, which, QtGui.QColor(130, 130, 130))
    return palette


class Dialogs:
    """File dialogs that the user answers one after the other; what they were asked is kept."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.asked: list[tuple] = []

    def _answer(self, *arguments: object) -> str:
        self.asked.append(arguments[1:])
        return str(self.answers.pop(0))

    getOpenFileName = getSaveFileName = getExistingDirectory = _answer  # noqa: N815 - Qt's names


def choose(panel, dialogs, what: str, path: Path) -> None:
    """Press the button that chooses ``what`` and answer its dialog."""
    dialogs.answers = [path]
    getattr(panel.ui, f"{what}Button").click()


def ordinary_composites():
    tags = {view.tag for view in VIEWS.values()}
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return [node for node in nodes if node.GetLayoutName() not in tags]


def opacities() -> list[float]:
    """Opacities of label maps in the ordinary views, each value once."""
    return sorted({composite.GetLabelOpacity() for composite in ordinary_composites()})


def everything_kept(panel, standin, caplog, folder: Path) -> str:
    """What outlives a click: the scene as it is saved, the log and the messages, which Slicer logs, and the titles."""
    scene = slicer.mrmlScene
    scene.SetURL(str(folder / "scene.mrml"))
    for node in slicer.util.getNodesByClass("vtkMRMLStorableNode"):
        if node.GetSaveWithScene() and node.GetDefaultStorageNodeClassName():
            node.AddDefaultStorageNode()
            storage = node.GetStorageNode()
            storage.SetFileName(str(folder / f"{node.GetID()}.{storage.GetDefaultWriteFileExtension()}"))
            storage.WriteData(node)
    assert scene.Commit()
    scene.SetRootDirectory(str(folder))
    assert scene.WriteToMRB(str(folder / "scene.mrb"), None)
    with zipfile.ZipFile(folder / "scene.mrb") as bundle:
        saved = [bundle.read(name).decode("latin-1") for name in bundle.namelist()]
        saved += bundle.namelist()
    saved += [path.read_bytes().decode("latin-1") for path in folder.iterdir() if path.is_file()]
    titles = [panel.parent.windowTitle, panel.ui.keysCollapsibleButton.text]
    return "\n".join([*saved, *standin.errors, caplog.text, *titles])
