"""Packages that Slicer does not ship: one question that names them, and what each answer leads to."""

# What needs Slicer is imported after it is known to be there.
# ruff: noqa: E402

from __future__ import annotations

import sys
import types

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core needs system OpenGL libraries", exc_type=ImportError)
pytest.importorskip("PySide6.QtWidgets", reason="Qt needs system OpenGL libraries", exc_type=ImportError)

from MITSGANLib.slicer_bridge import packages
from MITSGANLib.slicer_bridge.volumes import watermark_kind
from panel_data import attack, choose, click_failing, node_names


@pytest.fixture
def absent(monkeypatch, standin):
    """The packages that cannot be imported; what is installed is taken out of this set."""
    names = set()
    monkeypatch.setattr(packages, "are_installed", lambda *asked: not names & set(asked))
    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.protect.are_installed", packages.are_installed)
    ensure = standin.packaging.pip_ensure

    def install(requirements, **options):
        ensure(requirements, **options)
        imported = {package.name: name for name, package in packages.known_packages().items()}
        names.difference_update(imported[one.name] for one in requirements)

    monkeypatch.setattr(standin.packaging, "pip_ensure", install)
    return names


@pytest.fixture
def extension(monkeypatch, absent):
    """The PyTorch extension; how it was asked to install."""
    asked = []

    def install_torch(**options):
        asked.append(options)
        absent.discard("torch")
        return types.ModuleType("torch")

    module = types.ModuleType("PyTorchUtils")
    module.PyTorchUtilsLogic = lambda: types.SimpleNamespace(installTorch=install_torch)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)
    return asked


@pytest.mark.slow
def test_the_question_names_what_is_missing_why_and_how_large(loaded, standin, absent, extension):
    absent.update({"torch", "safetensors", "cryptography", "lpips"})
    standin.message_box.press = "Install"
    loaded.ui.protectButton.click()
    assert standin.errors == []
    (question,) = standin.message_box.asked
    for words in ("PyTorch, about 250 MB", "safetensors, about 1 MB", "cryptography, about 4 MB: keys, watermarks"):
        assert words in question
    assert "Only watermark and signatures (no PyTorch)" in question
    assert "lpips" not in question, "only measuring needs it"
    assert extension == [{"forceComputationBackend": None}]
    assert standin.ensured == ["cryptography", "safetensors"]
    assert loaded._parameterNode.protectedVolume.GetName() == "CT protected"
    loaded.ui.protectButton.click()
    assert len(standin.message_box.asked) == 1, "once"


@pytest.mark.slow
def test_without_pytorch_there_is_the_watermark(loaded, standin, absent):
    absent.update({"torch", "safetensors", "cryptography"})
    standin.message_box.press = "Only watermark"
    loaded.ui.protectButton.click()
    assert standin.errors == []
    assert standin.ensured == ["cryptography"]
    parameters = loaded._parameterNode
    assert parameters.model == "watermark"
    assert watermark_kind(parameters.protectedVolume) == "open"
    loaded.ui.protectButton.click()
    assert len(standin.message_box.asked) == 1


def test_declined_packages_are_no_error(loaded, standin, absent):
    absent.update({"torch", "safetensors"})
    before = node_names()
    loaded.ui.protectButton.click()
    assert standin.errors == []
    assert "packages are needed" in loaded.ui.statusLabel.text
    assert standin.ensured == []
    assert node_names() == before


@pytest.mark.slow
def test_an_attack_has_no_other_way_and_measuring_asks_for_its_own(loaded, scan, standin, absent, extension):
    attack(loaded, scan)
    absent.update({"torch", "safetensors", "lpips"})
    loaded.ui.simulateAttackButton.click()
    (question,) = standin.message_box.asked
    assert "Only watermark" not in question
    assert "lpips" not in question
    absent.difference_update({"torch", "safetensors"})
    loaded.ui.compareButton.click()
    assert "lpips, about" in standin.message_box.asked[-1]
    assert "PyTorch" not in standin.message_box.asked[-1]
    assert extension == []


@pytest.mark.parametrize("what", ["keyFile", "newKey", "newSigningKey"])
def test_keys_need_one_small_package(panel, dialogs, key_file, tmp_path, standin, absent, what):
    absent.update({"torch", "cryptography"})
    choose(panel, dialogs, what, key_file if what == "keyFile" else tmp_path / "new.key")
    assert standin.errors == []
    assert "packages are needed" in panel.ui.statusLabel.text
    assert panel.ui.keyFileLineEdit.text == panel.ui.signingKeyLineEdit.text == ""
    assert not (tmp_path / "new.key").exists()
    standin.message_box.press = "Install"
    choose(panel, dialogs, "keyFile", key_file)
    assert standin.ensured == ["cryptography"]
    assert panel.ui.keyFileLineEdit.text == "clinic.key"


@pytest.mark.usefixtures("extension")
def test_offline_it_says_so(loaded, standin, absent, monkeypatch):
    def fail(_requirements, **_options):
        raise RuntimeError("pip: no route to host /home/someone")

    monkeypatch.setattr(standin.packaging, "pip_ensure", fail)
    absent.update({"safetensors"})
    standin.message_box.press = "Install"
    message = click_failing(loaded.ui.protectButton, "safetensors could not be installed. Check the connection")
    assert "someone" not in message
    assert message in loaded.ui.statusLabel.text


def test_without_the_extension_the_user_learns_where_pytorch_comes_from(loaded, standin, absent, monkeypatch):
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    absent.update({"torch"})
    standin.message_box.press = "Install"
    click_failing(loaded.ui.protectButton, "PyTorch extension: install it in the Extensions Manager")
    assert "work without" in loaded.ui.statusLabel.text


@pytest.mark.slow
def test_the_cpu_can_be_forced(loaded, standin, absent, extension):
    absent.update({"torch"})
    loaded.ui.deviceComboBox.setCurrentIndex(loaded.ui.deviceComboBox.findData("cpu"))
    standin.message_box.press = "Install"
    loaded.ui.protectButton.click()
    assert extension == [{"forceComputationBackend": "cpu"}]


def test_an_older_slicer_is_told_what_is_missing(loaded, standin, absent, monkeypatch):
    monkeypatch.delattr(slicer, "packaging")
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)
    absent.update({"safetensors"})
    standin.message_box.press = "Install"
    click_failing(loaded.ui.protectButton, "5.12 or later")


def test_a_torch_without_torchvision_is_not_given_another(absent):
    absent.update({"torchvision", "lpips"})
    assert packages.missing(packages.FIGURES) == []
    absent.discard("torchvision")
    assert packages.missing(packages.FIGURES) == ["lpips"]


def test_the_device_line_says_what_is_missing(panel, scan, absent):
    from panel_data import add_scan

    absent.update({"cryptography"})
    add_scan(panel, scan.volume)
    assert "not installed yet" in panel.ui.deviceDescriptionLabel.text
    assert panel.ui.protectButton.enabled


def test_models_for_research_are_for_developers(panel, module, standin, monkeypatch):
    names = [panel.ui.modelComboBox.itemData(index) for index in range(panel.ui.modelComboBox.count)]
    assert names == ["default", "strong", "watermark"]
    monkeypatch.setattr(module.MITSGANWidget, "developerMode", True)
    other = standin.open_panel(module)
    names = [other.ui.modelComboBox.itemData(index) for index in range(other.ui.modelComboBox.count)]
    assert {"paper", "block-ai"} <= set(names)
    other.cleanup()
