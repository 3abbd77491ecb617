"""The keyed watermark in the panel: put in with a key file, checked, and shown where it is missing."""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from __future__ import annotations

import dataclasses
import json
import logging
import sys

import numpy as np
import pytest
from MITSGANLib.files.volume_files import read_file, write_file
from MITSGANLib.keys.key_files import Key, read_key_file, write_key_file
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import CTVolume, Provenance
from MITSGANLib.watermark.checking import Check, MissingRegion, check_watermark
from MITSGANLib.watermark.embedding import Watermark
from MITSGANLib.watermark.pattern import watermark_key
from MITSGANLib.watermark.places import Place
from MITSGANTrainingLib.commandline import main

slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from MITSGANLib.slicer_bridge.key_files import open_key
from MITSGANLib.slicer_bridge.layout import comparison_is_shown
from MITSGANLib.slicer_bridge.tables import table_text
from MITSGANLib.slicer_bridge.volumes import (
    PROTECTED_ATTRIBUTE,
    is_watermarked,
    node_from_volume,
    ras_from_voxel,
    source_of,
    volume_from_node,
)
from panel_data import (
    PASSPHRASE,
    add_scan,
    choose,
    click_failing,
    everything_kept,
    hu,
    node_names,
    opacities,
    ordinary_composites,
    place_target,
    snapshot,
    wait_until,
)

KEY = watermark_key(Key(bytes(range(32))))
LUNG = (8, 96, 113)
"""Slice, row and column in the middle of a lung of ``ct``."""
MISSING, UNTOLD = 1, 2


@pytest.fixture(scope="module")
def ct() -> CTVolume:
    """The right half of a thorax in the voxels of a clinical scan: a watermark is not found in large ones."""
    whole = thorax_phantom((16, 340, 404), (2.5, 0.9, 0.9), seed=5, noise_hu=24).volume
    return dataclasses.replace(whole, hu=whole.hu[:, 50:250, :200].copy())


@pytest.fixture(scope="module")
def marked(ct) -> CTVolume:
    return protect(ct, model=watermark_alone(KEY))


@pytest.fixture(scope="module")
def painted(marked) -> CTVolume:
    """The watermarked scan with 24 mm of lung copied to another place of it."""
    values = marked.hu.copy()
    values[4:12, 83:109, 100:126] = marked.hu[4:12, 91:117, 116:142]
    return marked.with_hu(values)


@pytest.fixture(scope="module")
def found(painted) -> Check:
    return check_watermark(painted, KEY)


@pytest.fixture
def keyed(panel, dialogs, key_file):
    """The panel with the key file chosen."""
    choose(panel, dialogs, "keyFile", key_file)
    return panel


def choose_watermark(panel) -> None:
    combo_box = panel.ui.modelComboBox
    combo_box.setCurrentIndex(combo_box.findData("watermark"))


def axial_heights() -> list[float]:
    """World z in mm of the ordinary axial views."""
    names = [composite.GetLayoutName() for composite in ordinary_composites()]
    views = [slicer.mrmlScene.GetSingletonNode(name, "vtkMRMLSliceNode") for name in names]
    return [view.GetSliceToRAS().GetElement(2, 3) for view in views if view.GetOrientation() == "Axial"]


class TestProtect:
    def test_it_needs_a_key_file(self, panel, dialogs, key_file, ct):
        ui = panel.ui
        add_scan(panel, ct)
        assert ui.protectButton.enabled
        choose_watermark(panel)
        assert panel._parameterNode.model == "watermark"
        assert "stops no attack" in ui.modelDescriptionLabel.text
        assert "no network" in ui.deviceDescriptionLabel.text
        assert not ui.strengthSpinBox.enabled
        assert not ui.deviceComboBox.enabled
        assert not ui.protectButton.enabled
        assert "“Keys and signatures”" in ui.protectButton.toolTip
        assert ui.keysCollapsibleButton.text == "Keys and signatures", "the place that the tool tip names"
        ui.passphraseLineEdit.text = PASSPHRASE
        assert not ui.protectButton.enabled
        choose(panel, dialogs, "keyFile", key_file)
        assert ui.protectButton.enabled
        ui.forgetKeyButton.click()
        assert not ui.protectButton.enabled
        ui.modelComboBox.setCurrentIndex(0)
        assert ui.protectButton.enabled
        assert ui.strengthSpinBox.enabled

    def test_the_device_is_told_again_for_a_model(self, panel, ct):
        add_scan(panel, ct)
        choose_watermark(panel)
        panel.ui.modelComboBox.setCurrentIndex(0)
        wait_until(lambda: "s for this scan" in panel.ui.deviceDescriptionLabel.text)
        choose_watermark(panel)
        assert "no network" in panel.ui.deviceDescriptionLabel.text

    def test_the_result_is_a_protected_volume(self, keyed, ct, marked, monkeypatch, standin):
        ui, asked, progress = keyed.ui, [], []
        packaging = sys.modules["slicer.packaging"]
        monkeypatch.setattr(
            packaging, "pip_ensure", lambda wanted, requester: asked.append(([one.name for one in wanted], requester))
        )
        source = add_scan(keyed, ct)
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        source.SetAndObserveTransformNodeID(transform.GetID())
        choose_watermark(keyed)
        ui.passphraseLineEdit.text = PASSPHRASE
        ui.protectProgressBar.valueChanged.connect(lambda _done: progress.append(ui.protectProgressBar.format))
        ui.protectButton.click()
        assert standin.errors == []
        assert asked == [(["cryptography"], "MITSGAN")], "neither PyTorch nor networks"
        assert ui.passphraseLineEdit.text == PASSPHRASE, "it was not for this"
        assert any("of 16 slices" in words for words in progress)
        node = keyed._parameterNode.protectedVolume
        assert node.GetName() == "CT watermarked"
        assert node.GetAttribute(PROTECTED_ATTRIBUTE) == "true"
        assert source_of(node) is source
        assert is_watermarked(node)
        assert not is_watermarked(source)
        assert node.GetParentTransformNode() is transform
        np.testing.assert_array_equal(hu(node), marked.hu)
        assert keyed._parameterNode.checkedVolume is node
        assert "Created CT watermarked" in ui.statusLabel.text
        ui.sourceVolumeSelector.setCurrentNode(node)
        assert "carries a watermark" in ui.inspectionLabel.text

    @pytest.mark.slow
    def test_it_is_attacked_and_what_was_painted_shows(self, keyed, ct, pictures, standin):
        ui = keyed.ui
        add_scan(keyed, ct)
        choose_watermark(keyed)
        ui.protectButton.click()
        place_target(keyed, LUNG)
        ui.removeRadioButton.checked = True
        ui.simulateAttackButton.click()
        parameters = keyed._parameterNode
        assert parameters.checkedVolume is parameters.protectedAttacked
        ui.checkWatermarkButton.click()
        assert standin.errors == []
        assert "<b>watermark MISSING in" in ui.keysResultLabel.text
        assert "At the target: <b>MISSING</b>" in ui.keysResultLabel.text
        # 16 mm to each side are in-painted; a window with its middle there may lack the watermark.
        offsets = np.argwhere(hu(parameters.changeMap) == MISSING) - LUNG
        assert offsets.size
        assert (np.abs(offsets * (2.5, 0.9, 0.9)) < 16 + 10).all()
        assert not comparison_is_shown(), "the map is in the ordinary views"
        ui.keysCollapsibleButton.collapsed = False
        pictures.take("watermark")

        ui.checkedVolumeSelector.setCurrentNode(parameters.protectedVolume)
        ui.checkWatermarkButton.click()
        assert "CT watermarked: <b>watermark found</b>; no place stands out" in ui.keysResultLabel.text
        assert "At the target: there. " in ui.keysResultLabel.text
        assert parameters.changeMap is None
        assert node_names("vtkMRMLLabelMapVolumeNode") == []
        assert not ui.showChangesCheckBox.enabled

    def test_it_is_exported_but_not_reported_on(self, keyed, dialogs, ct, marked, folder, standin):
        ui = keyed.ui
        add_scan(keyed, ct)
        choose_watermark(keyed)
        ui.protectButton.click()
        place_target(keyed, LUNG)
        assert not ui.reportButton.enabled
        assert "A watermark does nothing" in ui.reportButton.toolTip
        ui.forgetKeyButton.click()
        dialogs.answers = [folder / "out.nrrd"]
        ui.exportFileButton.click()
        assert standin.errors == []
        np.testing.assert_array_equal(read_file(folder / "out.nrrd").hu, marked.hu)

    def test_canceled_it_leaves_nothing(self, keyed, ct):
        ui = keyed.ui
        add_scan(keyed, ct)
        choose_watermark(keyed)
        before = snapshot()
        ui.protectProgressBar.valueChanged.connect(
            lambda _done: ui.protectButton.text == "Cancel" and ui.protectButton.click()
        )
        ui.protectButton.click()
        assert "Canceled" in ui.statusLabel.text
        assert snapshot() == before
        assert keyed._parameterNode.protectedVolume is None


class TestCheck:
    def test_it_needs_a_volume_and_a_key_file(self, panel, dialogs, key_file, ct):
        ui = panel.ui
        assert not ui.checkWatermarkButton.enabled
        assert "Select a CT volume" in ui.checkWatermarkButton.toolTip
        node = add_scan(panel, ct)
        # Without a key there is the open watermark to look for, but not in a volume that says that it has another.
        assert ui.checkWatermarkButton.enabled
        marked = protect(volume_from_node(node), model=watermark_alone(KEY))
        keyed = node_from_volume(marked, "marked", node)
        panel._parameterNode.checkedVolume = keyed
        ui.passphraseLineEdit.text = PASSPHRASE
        assert not ui.checkWatermarkButton.enabled
        assert "key file" in ui.checkWatermarkButton.toolTip
        choose(panel, dialogs, "keyFile", key_file)
        assert ui.checkWatermarkButton.enabled

    @pytest.mark.slow
    def test_without_a_key_the_open_one_is_sought(self, panel, ct, standin):
        ui = panel.ui
        node = add_scan(panel, ct)
        ui.checkWatermarkButton.click()
        assert standin.errors == []
        assert "no open watermark found" in ui.keysResultLabel.text
        marked = protect(volume_from_node(node), model=watermark_alone())
        panel._parameterNode.checkedVolume = node_from_volume(marked, "marked", node)
        ui.checkWatermarkButton.click()
        assert standin.errors == []
        assert "watermark found" in ui.keysResultLabel.text

    @pytest.mark.slow
    def test_what_was_painted_is_named_and_shown(self, keyed, painted, found, standin):
        ui = keyed.ui
        node = add_scan(keyed, painted, "CT from <the> archive")
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        node.SetAndObserveTransformNodeID(transform.GetID())
        ui.checkWatermarkButton.click()
        assert standin.errors == []
        text = ui.keysResultLabel.text
        assert text.startswith("CT from &lt;the&gt; archive: <b>watermark MISSING in 1 place</b>")
        (region,) = found.regions
        k, j, i = region.kji
        assert f"slice {k}, row {j}, column {i}: " in text
        assert "At the target" not in text
        labels = keyed._parameterNode.changeMap
        assert labels.GetName() == "Missing watermark"
        assert labels.GetParentTransformNode() is transform
        values = hu(labels)
        assert values.shape == painted.shape
        np.testing.assert_array_equal(values == MISSING, found.class_volume().hu == 2)
        assert values[0, 0, 0] == 0, "in air nothing is expected"
        assert (values == UNTOLD).any()
        for composite in ordinary_composites():
            assert composite.GetLabelVolumeID() == labels.GetID()
            assert composite.GetBackgroundVolumeID() == node.GetID()
        assert axial_heights() == [pytest.approx(ras_from_voxel(node, region.kji)[2])]
        assert opacities() == [0.4]
        ui.showChangesCheckBox.checked = False
        assert opacities() == [0.0]
        colors = labels.GetDisplayNode().GetColorNode()
        assert colors.GetColorName(MISSING) == "watermark missing"
        alphas = [colors.GetLookupTable().GetTableValue(value)[3] for value in range(3)]
        assert alphas[0] == 0 < alphas[UNTOLD] < alphas[MISSING]

    @pytest.mark.slow
    def test_another_check_replaces_the_map(self, keyed, painted):
        add_scan(keyed, painted)
        for _ in range(2):
            keyed.ui.checkWatermarkButton.click()
            assert len(node_names("vtkMRMLLabelMapVolumeNode")) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("which", ["another key", "unmarked"])
    def test_without_this_keys_watermark_nothing_is_shown(self, panel, dialogs, key_file, ct, marked, tmp_path, which):
        if which == "another key":
            key_file = tmp_path / "other.key"
            write_key_file(Key(bytes(32)), key_file)
        choose(panel, dialogs, "keyFile", key_file)
        add_scan(panel, marked if which == "another key" else ct)
        place_target(panel, LUNG)
        panel.ui.checkWatermarkButton.click()
        # The volume of the other key says that its watermark has a key.
        words = "no watermark of this key found.</b>" if which == "another key" else "no watermark found</b>, neither"
        assert f"CT: <b>{words}" in panel.ui.keysResultLabel.text
        assert "At the target" not in panel.ui.keysResultLabel.text
        assert panel._parameterNode.changeMap is None

    def test_a_key_file_that_is_gone_is_explained_without_its_place(self, keyed, key_file, marked, standin):
        node = add_scan(keyed, marked)
        key_file.rename(key_file.with_name("gone"))
        before = snapshot()
        click_failing(keyed.ui.checkWatermarkButton, "the key file cannot be read")
        choose_watermark(keyed)
        click_failing(keyed.ui.protectButton, "the key file cannot be read")
        assert snapshot() == before
        assert "clinic.key" not in "".join(standin.errors)
        assert str(key_file.parent) not in "".join(standin.errors)
        assert keyed._parameterNode.sourceVolume is node

    @pytest.mark.slow
    def test_canceled_it_leaves_what_was_there(self, keyed, painted):
        ui = keyed.ui
        add_scan(keyed, painted)
        ui.checkWatermarkButton.click()
        before = snapshot()
        ui.keysProgressBar.valueChanged.connect(
            lambda _done: ui.checkWatermarkButton.text == "Cancel" and ui.checkWatermarkButton.click()
        )
        ui.checkWatermarkButton.click()
        assert "Canceled" in ui.statusLabel.text
        assert snapshot() == before
        assert ui.checkWatermarkButton.text == "Check watermark"

    @pytest.mark.slow
    def test_closing_the_scene_stops_it(self, keyed, painted, standin):
        ui = keyed.ui
        add_scan(keyed, painted)
        ui.keysProgressBar.valueChanged.connect(lambda done: done > 0 and slicer.mrmlScene.Clear(False))
        ui.checkWatermarkButton.click()
        assert standin.errors == []
        assert ui.keysResultLabel.text == ""
        assert keyed._parameterNode.changeMap is None
        assert keyed._parameterNode.checkedVolume is None

    def test_the_volume_to_check_follows_the_selected_one(self, keyed, ct, marked):
        parameters = keyed._parameterNode
        first = add_scan(keyed, ct, "First")
        assert parameters.checkedVolume is first
        other = node_from_volume(marked, "Other")
        keyed.ui.checkedVolumeSelector.setCurrentNode(other)
        keyed.onParametersModified()
        assert parameters.checkedVolume is other, "the user's choice stands"
        slicer.mrmlScene.RemoveNode(other)
        assert parameters.checkedVolume is first
        second = add_scan(keyed, ct, "Second")
        assert parameters.checkedVolume is second
        slicer.mrmlScene.RemoveNode(second)
        assert parameters.sourceVolume is parameters.checkedVolume is None, "the first may be of another patient"
        keyed.ui.sourceVolumeSelector.setCurrentNode(first)
        assert parameters.checkedVolume is first
        slicer.mrmlScene.RemoveNode(first)
        assert parameters.sourceVolume is parameters.checkedVolume is None
        assert keyed.ui.checkedVolumeSelector.currentNode() is None

    @pytest.mark.slow
    def test_choices_wait_for_the_work(self, keyed, painted):
        enabled = []
        ui = keyed.ui
        add_scan(keyed, painted)
        ui.keysProgressBar.valueChanged.connect(
            lambda _done: enabled.extend(one.enabled for one in (ui.checkedVolumeSelector, ui.keyFileButton))
        )
        ui.checkWatermarkButton.click()
        assert enabled
        assert not any(enabled)
        assert ui.checkedVolumeSelector.enabled


class TestWords:
    @pytest.fixture
    def said(self, panel):  # noqa: ARG002 - the panel brings qt
        from MITSGANLib.slicer_bridge.panel import sentences

        return sentences.about_watermark

    def test_a_lossy_copy_is_told_as_such(self, said, found):
        degraded = dataclasses.replace(found, gain=0.3, regions=())
        text = said("CT", degraded, degraded.at(LUNG))
        assert "30% of it is left" in text
        assert "stands out" not in text
        assert "At the target" in text

    def test_many_places_are_cut_short(self, said, found):
        region = MissingRegion((1, 2, 3), (0, 0, 0), (5, 7.2, 7.2), -0.1)
        text = said("CT", dataclasses.replace(found, regions=(region,) * 9), None)
        assert "MISSING in 9 places" in text
        assert "slice 1, row 2, column 3: about 5 × 7 × 7 mm, 0% of it is left" in text
        assert "and 3 more" in text

    def test_what_cannot_be_checked_is_said(self, said, found):
        nothing = dataclasses.replace(found, regions=(), classes=np.zeros_like(found.classes))
        text = said("CT", nothing, Place(LUNG, 9.0, 0.1, 0.7))
        assert "no place stands out" in text
        assert "Place a target" not in text, "there is one"
        assert "Place a target" in said("CT", nothing, None)
        assert "0% of the marked tissue can be checked" in text
        assert "the watermark is too weak: voxels are large" in text
        assert "At the target: cannot be told" in text


@pytest.mark.slow
def test_nothing_of_the_key_outlives_a_click(panel, dialogs, ct, tmp_path, standin, caplog):
    caplog.set_level(logging.DEBUG)
    vault = tmp_path / "the-vault"
    vault.mkdir()
    dialogs.answers = [vault / "clinic.key"]
    panel.ui.newKeyButton.click()
    add_scan(panel, ct)
    choose_watermark(panel)
    panel.ui.protectButton.click()
    hu(panel._parameterNode.protectedVolume)[4:12, 83:109, 100:126] -= 40
    panel.ui.checkWatermarkButton.click()
    (tmp_path / "saved").mkdir()
    kept = everything_kept(panel, standin, caplog, tmp_path / "saved")
    assert "CT watermarked" in kept, "the scene was saved"
    key = read_key_file(vault / "clinic.key")
    assert key.id in panel.ui.proofsLabel.text
    words = (vault / "clinic.key").read_text().split()
    for secret in ("the-vault", "clinic.key", words[1], key.id, key.secret.hex(), watermark_key(key).secret.hex()):
        assert secret not in kept


@pytest.mark.slow
def test_the_logic_alone_does_what_the_command_line_does(standin, module, ct, key_file, tmp_path, capsys):  # noqa: ARG001
    logic = module.MITSGANLogic()
    write_file(ct, tmp_path / "ct.nrrd")
    words = ["protect", tmp_path / "ct.nrrd", tmp_path / "marked.nrrd", "--model", "none", "--watermark", key_file]
    assert main([str(word) for word in words]) == 0
    node = node_from_volume(read_file(tmp_path / "ct.nrrd"), "CT")
    key = open_key(key_file, "")
    marked = logic.watermark(node, key)
    np.testing.assert_array_equal(hu(marked), read_file(tmp_path / "marked.nrrd").hu)

    values = hu(marked)
    values[4:12, 83:109, 100:126] = values[4:12, 91:117, 116:142].copy()
    check = logic.checkWatermark(marked, key)
    painted = dataclasses.replace(volume_from_node(marked), provenance=Provenance())
    write_file(painted, tmp_path / "painted.nrrd")
    capsys.readouterr()
    words = ["check", tmp_path / "painted.nrrd", "--watermark", key_file, "--json", "-"]
    assert main([str(word) for word in words]) == 7
    said = json.loads(capsys.readouterr().out)
    ours = json.loads(json.dumps(check.to_dict()))
    assert {name: said[name] for name in ours} == ours

    with pytest.raises(Exception, match="key file"):
        logic.watermark(node, open_key(None, PASSPHRASE))


class TestOpen:
    """The default protection leaves the open watermark, and the comparison says what it shows."""

    @pytest.fixture
    def attacked(self, panel, ct, monkeypatch):
        from MITSGANLib.protection import protector

        plain = protector.load_protector

        def load_protector(*args, **kwargs):
            return dataclasses.replace(plain(*args, **kwargs), watermark=Watermark())

        monkeypatch.setattr(protector, "load_protector", load_protector)
        add_scan(panel, ct)
        panel.ui.protectButton.click()
        place_target(panel, LUNG)
        panel.ui.removeRadioButton.checked = True
        panel.ui.simulateAttackButton.click()
        return panel

    @pytest.mark.slow
    def test_the_comparison_says_that_the_forgery_shows(self, attacked, standin):
        ui, parameters = attacked.ui, attacked._parameterNode
        assert parameters.checkedVolume is parameters.protectedAttacked
        ui.compareButton.click()
        assert standin.errors == []
        assert "The forgery shows:" in ui.summaryLabel.text
        text = table_text(parameters.metricsTable)
        assert "watermark left" in text
        assert "watermark expected" in text

    def test_no_key_is_needed_to_check_it(self, attacked, standin):
        ui = attacked.ui
        ui.checkWatermarkButton.click()
        assert standin.errors == []
        assert "At the target: <b>MISSING</b>" in ui.keysResultLabel.text
        assert ui.reportButton.enabled

    @pytest.mark.slow
    def test_a_chosen_key_does_not_hide_it_in_a_volume_that_says_nothing(self, panel, dialogs, key_file, ct, marked):
        """As one from DICOM or from a file."""
        choose(panel, dialogs, "keyFile", key_file)
        for volume, words in (
            (protect(ct, model=watermark_alone()), "It is the open watermark"),
            (marked, "It is the watermark of your key"),
        ):
            add_scan(panel, dataclasses.replace(volume, provenance=Provenance("file")))
            panel.ui.checkWatermarkButton.click()
            assert "watermark found" in panel.ui.keysResultLabel.text
            assert words in panel.ui.keysResultLabel.text

    @pytest.mark.slow
    def test_a_chosen_key_is_not_looked_for_where_the_volume_has_the_open_one(self, attacked, dialogs, key_file):
        choose(attacked, dialogs, "keyFile", key_file)
        attacked.ui.checkWatermarkButton.click()
        assert "no watermark of this key" not in attacked.ui.keysResultLabel.text
        assert "watermark MISSING" in attacked.ui.keysResultLabel.text


def test_pictures_of_the_sections(keyed, ct, pictures):
    add_scan(keyed, ct)
    choose_watermark(keyed)
    keyed.ui.keysCollapsibleButton.collapsed = False
    pictures.take("watermark-chosen")
