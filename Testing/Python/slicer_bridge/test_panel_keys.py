"""The panel's section on keys and signatures, clicked through: sealed exports, the way back, and maps of changes."""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from __future__ import annotations

import dataclasses
import logging
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_factory import PATIENT_NAME, ct_series, phantom_hu
from MITSGANLib.files.storage import load_volume
from MITSGANLib.files.volume_files import read_file, write_file
from MITSGANLib.keys.key_files import Key, ScryptCost, passphrase_key, read_key_file, write_key_file
from MITSGANLib.keys.signing_keys import new_signing_key, save_signing_key
from MITSGANLib.scan.volume import PROTECTION, ProcessingStep, Provenance
from MITSGANLib.seal import container, sealing
from MITSGANLib.seal.sealing import restore, save_sealed

slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from MITSGANLib.slicer_bridge.volumes import node_from_volume
from panel_data import (
    PASSPHRASE,
    PATIENT,
    add_scan,
    choose,
    click_failing,
    everything_kept,
    hu,
    node_names,
    snapshot,
)


@pytest.fixture
def signing(tmp_path) -> tuple[Path, Path]:
    private = tmp_path / "signing.pem"
    return private, save_signing_key(new_signing_key(), private)


@pytest.fixture
def protected(panel, scan):
    """The panel with the small scan and its protected version."""
    add_scan(panel, scan.volume)
    panel.ui.protectButton.click()
    return panel._parameterNode.protectedVolume


@pytest.fixture
def export(panel, dialogs, protected, standin):  # noqa: ARG001
    """Export the protected volume with these keys chosen; the path of the file."""

    def export_file(path: Path, key: Path | None = None, signing: Path | None = None) -> Path:
        if key:
            choose(panel, dialogs, "keyFile", key)
        if signing:
            choose(panel, dialogs, "signingKey", signing)
        dialogs.answers = [path]
        panel.ui.exportFileButton.click()
        assert standin.errors == []
        assert path.is_file()
        return path

    return export_file


def tamper(path: Path) -> tuple[int, int, int]:
    """Change one voxel of a file by 1 HU."""
    volume = read_file(path)
    values = volume.hu.copy()
    values[5, 70, 40] += 1
    write_file(dataclasses.replace(volume, hu=values, provenance=Provenance("x")), path, overwrite=True)
    return 5, 70, 40


class TestKeyFiles:
    def test_a_new_key_file_is_private_and_chosen(self, panel, dialogs, folder, standin):
        dialogs.answers = [folder / "clinic"]
        panel.ui.newKeyButton.click()
        assert standin.errors == []
        path = folder / "clinic.key"
        key = read_key_file(path)
        if os.name == "posix":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert panel.ui.keyFileLineEdit.text == "clinic.key"
        assert f"Key {key.id} leads from exports back to the original" in panel.ui.proofsLabel.text
        assert "Keep a copy" in panel.ui.statusLabel.text
        panel.ui.forgetKeyButton.click()
        assert panel.ui.keyFileLineEdit.text == ""
        assert "not signed, and nothing leads back" in panel.ui.proofsLabel.text
        assert path.is_file()
        assert not panel.ui.forgetKeyButton.enabled

    @pytest.mark.parametrize("button", ["newKeyButton", "newSigningKeyButton"])
    def test_a_key_file_is_never_replaced(self, panel, dialogs, key_file, button):
        before = key_file.read_bytes()
        dialogs.answers = [key_file]
        click_failing(getattr(panel.ui, button), "never replaced")
        assert key_file.read_bytes() == before
        assert panel.ui.keyFileLineEdit.text == ""

    def test_a_new_signing_key_brings_its_public_key(self, panel, dialogs, folder):
        dialogs.answers = [folder / "me.pem"]
        panel.ui.newSigningKeyButton.click()
        assert panel.ui.signingKeyLineEdit.text == "me.pem"
        assert panel.ui.publicKeyLineEdit.text == "me.pub.pem"
        assert "Exports are signed; nothing leads back" in panel.ui.proofsLabel.text
        if os.name == "posix":
            assert stat.S_IMODE((folder / "me.pem").stat().st_mode) == 0o600

    @pytest.mark.parametrize("what", ["keyFile", "signingKey", "publicKey"])
    def test_what_is_no_key_is_refused_without_its_content_or_place(self, panel, dialogs, folder, standin, what):
        path = folder / "notes.txt"
        path.write_text("Very private words")
        dialogs.answers = [path]
        message = click_failing(getattr(panel.ui, f"{what}Button"))
        assert "the key file" in message
        said = "".join(standin.errors) + panel.ui.statusLabel.text
        for secret in ("private words", PATIENT, "notes.txt"):
            assert secret not in said
        assert getattr(panel.ui, f"{what}LineEdit").text == ""

    def test_a_key_that_others_may_read_is_remarked(self, panel, dialogs, key_file):
        if os.name != "posix":
            pytest.skip("this system has no such permissions")
        key_file.chmod(0o644)
        choose(panel, dialogs, "keyFile", key_file)
        assert "may read this key" in panel.ui.statusLabel.text

    def test_closing_a_dialog_changes_nothing(self, panel, dialogs, key_file):
        choose(panel, dialogs, "keyFile", key_file)
        for button in ("newKey", "keyFile", "newSigningKey", "signingKey", "publicKey"):
            dialogs.answers = [""]
            getattr(panel.ui, f"{button}Button").click()
        assert panel.ui.keyFileLineEdit.text == "clinic.key"
        assert panel.ui.signingKeyLineEdit.text == ""

    def test_a_passphrase_alone_is_said_to_seal_nothing(self, panel, dialogs, key_file):
        panel.ui.passphraseLineEdit.text = PASSPHRASE
        assert "alone does nothing" in panel.ui.proofsLabel.text
        choose(panel, dialogs, "keyFile", key_file)
        assert "leads from exports back" in panel.ui.proofsLabel.text


class TestFileExport:
    @pytest.mark.slow
    def test_without_keys_it_is_a_plain_file(self, export, protected, folder):
        path = export(folder / "out.nrrd")
        np.testing.assert_array_equal(read_file(path).hu, hu(protected))
        assert [file.name for file in folder.iterdir()] == ["out.nrrd"]

    @pytest.mark.slow
    def test_sealed_and_signed_it_restores_and_verifies(self, export, key_file, signing, folder, scan, standin):
        path = export(folder / "out.nrrd", key_file, signing[0])
        names = sorted(file.name for file in folder.iterdir())
        assert names == ["out.nrrd", "out.nrrd.manifest.json", "out.nrrd.seal"]
        restore(path, folder / "back.nrrd", read_key_file(key_file))
        back = read_file(folder / "back.nrrd")
        np.testing.assert_array_equal(back.hu, scan.volume.hu)
        assert back.same_geometry(scan.volume)
        assert standin.errors == []

    @pytest.mark.slow
    def test_a_replaced_file_leaves_neither_its_seal_nor_its_manifest(self, export, panel, key_file, signing, folder):
        """They would make an alarm of the new file."""
        path = export(folder / "out.nrrd", key_file, signing[0])
        panel.ui.forgetSigningKeyButton.click()
        export(path)
        assert sorted(file.name for file in folder.iterdir()) == ["out.nrrd", "out.nrrd.seal"]
        panel.ui.forgetKeyButton.click()
        export(path)
        assert [file.name for file in folder.iterdir()] == ["out.nrrd"]

    @pytest.mark.slow
    def test_the_file_that_the_scan_came_from_is_what_is_sealed(self, panel, dialogs, export, key_file, folder, scan):
        """Its type of values and its header come back, not only what Slicer shows of it."""
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(scan.volume.hu.astype(np.float64))
        image.SetSpacing(scan.volume.spacing)
        image.SetMetaData("protocol", "chest")
        sitk.WriteImage(image, folder / "scan.nrrd")
        node = add_scan(panel, dataclasses.replace(read_file(folder / "scan.nrrd")))
        store(node, folder / "scan.nrrd")
        panel.ui.protectButton.click()
        path = export(folder / "out.nrrd", key_file)
        restore(path, folder / "back.nrrd", read_key_file(key_file))
        back = sitk.ReadImage(folder / "back.nrrd")
        assert back.GetPixelID() == sitk.sitkFloat64
        assert back.GetMetaData("protocol") == "chest"

        before = (folder / "scan.nrrd").read_bytes()
        dialogs.answers = [folder / "scan.nrrd"]
        click_failing(panel.ui.exportFileButton, "never replaced")
        assert (folder / "scan.nrrd").read_bytes() == before

    @pytest.mark.slow
    @pytest.mark.usefixtures("protected")
    def test_a_name_without_a_known_suffix_is_explained(self, panel, dialogs, folder):
        dialogs.answers = [folder / "out.png"]
        click_failing(panel.ui.exportFileButton, "ends in .nrrd")
        assert list(folder.iterdir()) == []

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", ["writing", "sealing"])
    @pytest.mark.usefixtures("protected")
    def test_canceled_it_leaves_nothing(self, panel, dialogs, key_file, folder, monkeypatch, moment):
        ui = panel.ui
        choose(panel, dialogs, "keyFile", key_file)
        if moment == "writing":
            ui.protectProgressBar.valueChanged.connect(
                lambda _done: ui.exportFileButton.text == "Cancel" and ui.exportFileButton.click()
            )
        else:
            original = container.close_container

            def sealing_meanwhile(*arguments, **options):
                panel.panel.jobs.cancel()
                return original(*arguments, **options)

            monkeypatch.setattr(sealing, "close_container", sealing_meanwhile)
        dialogs.answers = [folder / "out.nrrd"]
        ui.exportFileButton.click()
        assert "Canceled" in ui.statusLabel.text
        assert list(folder.iterdir()) == []

    def test_a_simulated_attack_is_no_protected_volume(self, panel, scan):
        add_scan(panel, scan.volume)
        assert "Protect the scan first" in panel.ui.exportFileButton.toolTip
        step = ProcessingStep("simulated-attack", "x")
        attacked = node_from_volume(scan.volume.with_hu(scan.volume.hu + np.int16(1), step), "a")
        panel.ui.protectedVolumeSelector.setCurrentNode(attacked)
        assert not panel.ui.exportFileButton.enabled
        assert "Slicer's own Save" in panel.ui.exportFileButton.toolTip


def store(node, path: Path) -> None:
    """As if Slicer had loaded the node from this file."""
    node.AddDefaultStorageNode()
    node.GetStorageNode().SetFileName(str(path))


class TestRestore:
    @pytest.mark.slow
    def test_the_original_comes_back_beside_and_into_the_scene(self, panel, dialogs, export, key_file, folder, scan):
        path = export(folder / "out.nrrd", key_file)
        suggested = folder / "out-restored.nrrd"
        dialogs.answers = [path, suggested]
        panel.ui.restoreButton.click()
        assert dialogs.asked[-1][1] == str(suggested)
        assert "bit for bit" in panel.ui.keysResultLabel.text
        np.testing.assert_array_equal(read_file(suggested).hu, scan.volume.hu)
        node = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[-1]
        assert node.GetName() == "Restored scan"
        np.testing.assert_array_equal(hu(node), scan.volume.hu)
        assert panel.ui.statusLabel.text.startswith("Wrote")

    @pytest.mark.slow
    def test_a_volume_loaded_from_a_sealed_file_needs_no_choice(self, panel, dialogs, export, key_file, folder, scan):
        path = export(folder / "out.nrrd", key_file)
        slicer.mrmlScene.Clear(False)
        assert panel.ui.keyFileLineEdit.text == "clinic.key", "the key is the user's, not the scene's"
        node = add_scan(panel, read_file(path), "CT back from the archive")
        store(node, path)
        dialogs.answers = [folder / "back.nrrd"]
        panel.ui.restoreButton.click()
        np.testing.assert_array_equal(read_file(folder / "back.nrrd").hu, scan.volume.hu)
        assert "CT back from the archive restored" in node_names()

    @pytest.mark.slow
    def test_a_key_is_needed_and_the_right_one(self, panel, dialogs, export, key_file, folder, standin, tmp_path):
        path = export(folder / "out.nrrd", key_file)
        panel.ui.forgetKeyButton.click()
        assert not panel.ui.restoreButton.enabled
        assert "Choose the key file" in panel.ui.restoreButton.toolTip
        write_key_file(Key(bytes(32)), tmp_path / "other.key")
        choose(panel, dialogs, "keyFile", tmp_path / "other.key")
        dialogs.answers = [path, folder / "back.nrrd"]
        before, nodes = sorted(folder.iterdir()), snapshot()
        click_failing(panel.ui.restoreButton, "not the one that this scan was sealed with")
        assert sorted(folder.iterdir()) == before
        assert snapshot() == nodes
        assert PATIENT not in "".join(standin.errors)

    @pytest.mark.slow
    def test_a_missing_seal_is_named_without_the_patient(self, panel, dialogs, export, key_file, folder, standin):
        path = export(folder / "out.nrrd", key_file)
        Path(f"{path}.seal").unlink()
        dialogs.answers = [path, folder / "back.nrrd"]
        message = click_failing(panel.ui.restoreButton, "its seal was left behind")
        assert "--seal" not in message, "the panel has no options"
        assert PATIENT not in "".join(standin.errors)
        assert "out.nrrd" not in "".join(standin.errors)

    def test_a_passphrase_opens_and_is_forgotten(self, panel, dialogs, folder, scan, standin, caplog, tmp_path):
        caplog.set_level(logging.DEBUG)
        write_file(scan.volume, folder / "scan.nrrd")
        original = read_file(folder / "scan.nrrd")
        changed = original.with_hu(original.hu + np.int16(1), ProcessingStep(PROTECTION, "x"))
        save_sealed(changed, original, folder / "out.nrrd", passphrase_key(PASSPHRASE), cost=ScryptCost(2, 1, 1))
        field = panel.ui.passphraseLineEdit
        assert field.echoMode == field.EchoMode.NoEcho
        assert not panel.ui.restoreButton.enabled
        field.text = "wrong one, this"
        assert panel.ui.restoreButton.enabled
        dialogs.answers = [folder / "out.nrrd", folder / "back.nrrd"]
        click_failing(panel.ui.restoreButton, "passphrase is not the one")
        assert field.text == "", "also where it did not open"
        field.text = PASSPHRASE
        dialogs.answers = [folder / "out.nrrd", folder / "back.nrrd"]
        panel.ui.restoreButton.click()
        np.testing.assert_array_equal(read_file(folder / "back.nrrd").hu, scan.volume.hu)
        assert field.text == ""
        (tmp_path / "saved").mkdir()
        assert PASSPHRASE not in everything_kept(panel, standin, caplog, tmp_path / "saved")

    def test_the_passphrase_does_not_outlive_the_panel_or_the_scene(self, panel):
        for leave in (panel.exit, lambda: slicer.mrmlScene.Clear(False)):
            panel.enter()
            panel.ui.passphraseLineEdit.text = PASSPHRASE
            leave()
            assert panel.ui.passphraseLineEdit.text == ""

    def test_canceled_it_leaves_nothing(self, panel, dialogs, key_file, folder, monkeypatch):
        from MITSGANLib.seal import sealing

        sealed_series(folder, key_file)
        choose(panel, dialogs, "keyFile", key_file)
        original = sealing.restore

        def restoring_meanwhile(*arguments, **options):
            panel.panel.jobs.cancel()
            return original(*arguments, **{**options, "progress": None})

        monkeypatch.setattr("MITSGANLib.slicer_bridge.export.restore", restoring_meanwhile)
        before, nodes = sorted(folder.iterdir()), snapshot()
        dialogs.answers = [one_of(folder / "sealed"), folder]
        panel.ui.restoreButton.click()
        assert "Canceled" in panel.ui.statusLabel.text
        assert sorted(folder.iterdir()) == before
        assert snapshot() == nodes


def one_of(folder: Path) -> Path:
    """A file of a folder."""
    return min(folder.iterdir())


def sealed_series(folder: Path, key_file: Path) -> list[Path]:
    """A series in ``folder/original`` and its sealed version in ``folder/sealed``."""
    paths = ct_series(phantom_hu((6, 40, 40))).write(folder / "original")
    original = load_volume(folder / "original")
    changed = original.hu.copy()
    changed[:, 18:22, 18:22] += 2
    changed = original.with_hu(changed, ProcessingStep(PROTECTION, "x"))
    save_sealed(changed, original, folder / "sealed", read_key_file(key_file))
    return paths


class TestDicom:
    @pytest.fixture
    def from_database(self, panel, standin, folder):
        """A volume that Slicer loaded from its DICOM database, protected."""
        paths = ct_series(phantom_hu((6, 40, 40))).write(folder / "original")
        standin.dicomDatabase.files = {path.name: path for path in paths}
        original = load_volume(folder / "original")
        node = add_scan(panel, dataclasses.replace(original, provenance=Provenance("scan")))
        node.SetAttribute("DICOM.instanceUIDs", " ".join(path.name for path in paths))
        panel.ui.protectButton.click()
        return paths

    @pytest.mark.slow
    def test_an_export_is_sealed_and_signed_and_comes_back_byte_for_byte(
        self, panel, dialogs, from_database, key_file, signing, folder, standin
    ):
        choose(panel, dialogs, "keyFile", key_file)
        choose(panel, dialogs, "signingKey", signing[0])
        choose(panel, dialogs, "publicKey", signing[1])
        dialogs.answers = [folder / "export"]
        panel.ui.exportDicomButton.click()
        assert standin.errors == []
        dialogs.answers = [one_of(folder / "export"), folder]
        panel.ui.restoreButton.click()
        assert standin.errors == []
        restored = sorted((folder / "export-restored-1").iterdir())
        assert [path.read_bytes() for path in restored] == [path.read_bytes() for path in from_database]
        assert "6 files, bit for bit" in panel.ui.keysResultLabel.text
        assert panel._parameterNode.volume.GetName() == "Restored scan"
        dialogs.answers = [one_of(folder / "export"), folder]
        panel.ui.restoreButton.click()
        assert (folder / "export-restored-2").is_dir(), "nothing is replaced"

    @pytest.mark.slow
    def test_a_volume_from_the_database_is_found_among_other_series(self, panel, dialogs, key_file, folder, standin):
        paths = sealed_series(folder, key_file)
        for path in (folder / "sealed").iterdir():
            path.rename(folder / "original" / path.name)
        files = {path.name: path for path in (folder / "original").glob("IM*")}
        standin.dicomDatabase.files = files
        sealed = [pydicom.dcmread(path) for path in files.values()]
        node = add_scan(panel, load_volume(folder / "original", sealed[0].SeriesInstanceUID))
        node.SetAttribute("DICOM.instanceUIDs", " ".join(files))
        panel.onParametersModified()
        choose(panel, dialogs, "keyFile", key_file)
        (folder / "out").mkdir()
        dialogs.answers = [folder / "out"]
        panel.ui.restoreButton.click()
        assert standin.errors == []
        restored = sorted((folder / "out" / "original-restored-1").iterdir())
        assert [path.read_bytes() for path in restored] == [path.read_bytes() for path in paths]

    def test_the_original_is_not_put_into_the_protected_series(self, panel, dialogs, key_file, folder):
        sealed_series(folder, key_file)
        choose(panel, dialogs, "keyFile", key_file)
        dialogs.answers = [one_of(folder / "sealed"), folder / "sealed"]
        click_failing(panel.ui.restoreButton, "cannot lie within the protected scan")
        assert len(list((folder / "sealed").iterdir())) == 6

    def test_errors_name_neither_folder_nor_file_nor_patient(self, panel, dialogs, key_file, folder, standin, caplog):
        caplog.set_level(logging.DEBUG)
        sealed_series(folder, key_file)
        broken = folder / "sealed" / f"{PATIENT}.dcm"
        sorted((folder / "sealed").iterdir())[2].rename(broken)
        broken.write_bytes(broken.read_bytes()[:2000])
        choose(panel, dialogs, "keyFile", key_file)
        dialogs.answers = [one_of(folder / "sealed"), folder]
        message = click_failing(panel.ui.restoreButton)
        assert "a file of the protected scan" in message
        for name in (PATIENT, PATIENT_NAME.split("^")[0], "sealed/"):
            assert name not in "".join(standin.errors) + caplog.text


class TestSecrets:
    @pytest.mark.slow
    @pytest.mark.usefixtures("protected")
    def test_a_locked_signing_key_asks_for_its_passphrase(self, panel, dialogs, folder, tmp_path):
        private = tmp_path / "locked.pem"
        save_signing_key(new_signing_key(), private, PASSPHRASE.encode())
        choose(panel, dialogs, "signingKey", private)
        dialogs.answers = [folder / "out.nrrd"]
        click_failing(panel.ui.exportFileButton, "type its passphrase")
        assert list(folder.iterdir()) == []
        panel.ui.passphraseLineEdit.text = PASSPHRASE
        dialogs.answers = [folder / "out.nrrd"]
        panel.ui.exportFileButton.click()
        assert (folder / "out.nrrd.manifest.json").is_file()
        assert panel.ui.passphraseLineEdit.text == ""

    @pytest.mark.slow
    @pytest.mark.usefixtures("protected")
    def test_nothing_of_keys_outlives_a_click(self, panel, dialogs, tmp_path, standin, caplog):
        """Neither key nor place, neither in the saved scene nor in the log, after all that the section can do."""
        caplog.set_level(logging.DEBUG)
        vault = tmp_path / "the-vault"
        vault.mkdir()
        dialogs.answers = [vault / "clinic.key", vault / "me.pem"]
        panel.ui.newKeyButton.click()
        panel.ui.newSigningKeyButton.click()
        dialogs.answers = [tmp_path / "out.nrrd"]
        panel.ui.exportFileButton.click()
        tamper(tmp_path / "out.nrrd")
        store(add_scan(panel, read_file(tmp_path / "out.nrrd"), "Back"), tmp_path / "out.nrrd")
        panel.ui.examineButton.click()
        dialogs.answers = [tmp_path / "out.nrrd", tmp_path / "back.nrrd"]
        click_failing(panel.ui.restoreButton, "not as it was when it was sealed")
        (vault / "clinic.key").rename(vault / "gone.key")
        dialogs.answers = [tmp_path / "out.nrrd", tmp_path / "back.nrrd"]
        click_failing(panel.ui.restoreButton, "cannot be read")

        (tmp_path / "saved").mkdir()
        kept = everything_kept(panel, standin, caplog, tmp_path / "saved")
        assert "MITSGAN signed" not in kept
        assert "MITSGANParameterNode" not in kept
        assert "Changes since signing" in kept, "the scene was saved"
        key, private = (vault / "gone.key").read_text(), (vault / "me.pem").read_text()
        for secret in ("the-vault", "clinic.key", "me.pem", key.split()[1], private.splitlines()[1]):
            assert secret not in kept

    def test_choices_are_not_stored_in_settings_or_parameters(self, panel, dialogs, key_file):
        node = panel._parameterNode.parameterNode
        before = {name: node.GetParameter(name) for name in node.GetParameterNames()}
        choose(panel, dialogs, "keyFile", key_file)
        panel.ui.passphraseLineEdit.text = PASSPHRASE
        assert {name: node.GetParameter(name) for name in node.GetParameterNames()} == before
        module_file = Path(sys.modules["MITSGAN"].__file__)
        for path in (module_file, *(module_file.parent / "MITSGANLib" / "slicer_bridge").rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            assert "settings()" not in source
            assert "QSettings" not in source


def test_restoring_says_what_is_missing(panel):
    assert not panel.ui.restoreButton.enabled
    assert "Choose the key file" in panel.ui.restoreButton.toolTip


@pytest.mark.slow
def test_choices_wait_for_the_work(panel, export, key_file, folder):
    enabled = []

    def meanwhile(_done: int) -> None:
        enabled.extend(
            widget.enabled for widget in (panel.ui.keyFileButton, panel.ui.passphraseLineEdit, panel.ui.examineButton)
        )

    panel.ui.protectProgressBar.valueChanged.connect(meanwhile)
    export(folder / "out.nrrd", key_file)
    assert enabled
    assert not any(enabled)
    assert panel.ui.keyFileButton.enabled


@pytest.mark.slow
def test_pictures_of_the_section(panel, dialogs, export, key_file, signing, folder, pictures):
    export(folder / "out.nrrd", key_file, signing[0])
    choose(panel, dialogs, "publicKey", signing[1])
    panel.ui.keysCollapsibleButton.collapsed = False
    pictures.take("keys")
