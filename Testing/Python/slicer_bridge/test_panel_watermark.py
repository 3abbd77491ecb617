"""The keyed watermark in the panel: put in with a key file, checked, and shown where it is missing."""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
from MITSGANLib.files.volume_files import read_file
from MITSGANLib.keys.key_files import Key, read_key_file
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.watermark.checking import Check, check_watermark
from MITSGANLib.watermark.embedding import Watermark
from MITSGANLib.watermark.pattern import watermark_key

slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from MITSGANLib.slicer_bridge.tables import table_text
from MITSGANLib.slicer_bridge.volumes import (
    PROTECTED_ATTRIBUTE,
    is_watermarked_alone,
    source_of,
    watermark_kind,
)
from panel_data import (
    PASSPHRASE,
    add_scan,
    choose,
    everything_kept,
    hu,
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
    @pytest.mark.slow
    def test_it_takes_the_key_that_is_chosen_and_else_the_open_one(self, panel, dialogs, key_file, ct):
        ui = panel.ui
        add_scan(panel, ct)
        assert ui.protectButton.enabled
        choose_watermark(panel)
        assert panel._parameterNode.model == "watermark"
        assert "no attack is stopped" in ui.modelDescriptionLabel.text
        assert "no network" in ui.deviceDescriptionLabel.text
        assert not ui.strengthSpinBox.enabled
        assert not ui.deviceComboBox.enabled
        ui.protectButton.click()
        assert watermark_kind(panel._parameterNode.protectedVolume) == "open"
        assert "Protected (open watermark)" in ui.stateLabel.text
        choose(panel, dialogs, "keyFile", key_file)
        ui.protectButton.click()
        assert watermark_kind(panel._parameterNode.protectedVolume) == "keyed"
        assert "Protected (watermark with a key)" in ui.stateLabel.text
        ui.modelComboBox.setCurrentIndex(0)
        assert ui.strengthSpinBox.enabled

    @pytest.mark.slow
    def test_the_device_is_told_again_for_a_model(self, panel, ct):
        add_scan(panel, ct)
        choose_watermark(panel)
        panel.ui.modelComboBox.setCurrentIndex(0)
        panel.ui.advancedCollapsibleButton.collapsed = False
        wait_until(lambda: "s for this scan" in panel.ui.deviceDescriptionLabel.text)
        choose_watermark(panel)
        assert "no network" in panel.ui.deviceDescriptionLabel.text

    @pytest.mark.slow
    def test_the_result_is_a_protected_volume(self, keyed, ct, marked, standin):
        ui, progress = keyed.ui, []
        source = add_scan(keyed, ct)
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        source.SetAndObserveTransformNodeID(transform.GetID())
        choose_watermark(keyed)
        ui.passphraseLineEdit.text = PASSPHRASE
        ui.protectProgressBar.valueChanged.connect(lambda _done: progress.append(ui.protectProgressBar.format))
        ui.protectButton.click()
        assert standin.errors == []
        assert ui.passphraseLineEdit.text == PASSPHRASE, "it was not for this"
        assert any("of 16 slices" in words for words in progress)
        node = keyed._parameterNode.protectedVolume
        assert node.GetName() == "CT watermarked"
        assert node.GetAttribute(PROTECTED_ATTRIBUTE) == "true"
        assert source_of(node) is source
        assert is_watermarked_alone(node)
        assert watermark_kind(source) is None
        assert node.GetParentTransformNode() is transform
        np.testing.assert_array_equal(hu(node), marked.hu)
        assert keyed._parameterNode.volume is node
        assert "Created CT watermarked" in ui.statusLabel.text

    @pytest.mark.slow
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

    @pytest.mark.slow
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
    panel.ui.examineButton.click()
    (tmp_path / "saved").mkdir()
    kept = everything_kept(panel, standin, caplog, tmp_path / "saved")
    assert "CT watermarked" in kept, "the scene was saved"
    key = read_key_file(vault / "clinic.key")
    assert key.id in panel.ui.proofsLabel.text
    words = (vault / "clinic.key").read_text().split()
    for secret in ("the-vault", "clinic.key", words[1], key.id, key.secret.hex(), watermark_key(key).secret.hex()):
        assert secret not in kept


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
        assert parameters.volume is parameters.protectedAttacked
        ui.compareButton.click()
        assert standin.errors == []
        assert "The forgery shows:" in ui.summaryLabel.text
        text = table_text(parameters.metricsTable)
        assert "watermark left" in text
        assert "watermark expected" in text


@pytest.mark.slow
def test_pictures_of_the_sections(keyed, ct, pictures):
    add_scan(keyed, ct)
    choose_watermark(keyed)
    keyed.ui.keysCollapsibleButton.collapsed = False
    pictures.take("watermark-chosen")
