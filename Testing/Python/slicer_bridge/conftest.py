"""Fixtures of the panel's tests: the module in a stand-in for the application, small scans, keys, dialogs.

What needs Slicer is imported by the fixtures: a test file without Slicer skips itself before it uses any.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch
from MITSGANLib.attack import attacker
from MITSGANLib.budget.budget import Budget
from MITSGANLib.keys.key_files import Key, write_key_file
from MITSGANLib.measure import attack_effect
from MITSGANLib.protection import protector
from MITSGANLib.protection.generator import Generator, GeneratorConfig
from MITSGANLib.scan.phantom import Phantom
from remembered import Memory, scan_and_deeds, scan_and_history


@pytest.fixture
def standin(monkeypatch):
    """Slicer's names in place; slots and observers must not have raised in the end."""
    from slicer_standin import StandIn

    standin = StandIn(monkeypatch)
    yield standin
    standin.close()
    assert standin.raised == []


@pytest.fixture
def module(standin):
    """The module file, as the application would import it."""
    from panel_data import ROOT

    return standin.load(ROOT / "MITSGAN" / "MITSGAN.py")


@pytest.fixture(scope="session")
def load_untrained():
    """In place of ``load_protector``."""
    torch.manual_seed(11)
    generator = Generator(GeneratorConfig(trunk_filters=8, output="residual", unshuffle=2)).eval()

    def load_protector(_name="default", *, strength_hu=None, seed=0):
        return protector.Protector("untrained", generator, Budget(strength_hu=strength_hu or 12.0), seed, "ab" * 32)

    return load_protector


@pytest.fixture
def models(monkeypatch, load_untrained, untrained_attackers):
    """Networks of random weights in place of the installed ones: every step of the story, none of its quality."""
    monkeypatch.setattr(protector, "load_protector", load_untrained)
    monkeypatch.setattr(attacker, "load_attacker", lambda _name, action: untrained_attackers[action])


@pytest.fixture(scope="session")
def memory(load_untrained) -> Memory:
    """What these networks made of which scans, in any test: the panel is the subject, and protects the same ones."""

    def protecting(volume, *, model="default", **options):
        # Other models are of one test alone.
        is_ours = isinstance(model, str) and protector.load_protector is load_untrained
        return (scan_and_history(volume), model, *sorted(options.items())) if is_ours else None

    def measuring(*volumes, lpips, **options):
        if not isinstance(options.get("attacker"), str | None):
            return None
        return (*map(scan_and_deeds, volumes), lpips is None, attack_effect.NOISE_SEEDS, *sorted(options.items()))

    memory = Memory()
    memory.protect = memory.of(protector.protect, protecting)
    memory.measure_effect = memory.of(attack_effect.measure_effect, measuring)
    return memory


@pytest.fixture
def panel(standin, module, request, monkeypatch, on_its_grid):  # noqa: ARG001
    """The module's widget, opened, with untrained models."""
    from slicer_standin import run_in_lockstep

    request.getfixturevalue("models")
    memory = request.getfixturevalue("memory")
    monkeypatch.setattr(protector, "protect", memory.protect)
    monkeypatch.setattr("MITSGANLib.slicer_bridge.operations.measure_effect", memory.measure_effect)
    # The tests' clicks follow each other faster than any user's, and come when the bar shows something new.
    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.jobs.DOUBLE_CLICK_SECONDS", 0)
    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.jobs.PROGRESS_SECONDS", 0)
    # Noise is drawn twice, not five times: half of what measuring takes.
    monkeypatch.setattr("MITSGANLib.measure.attack_effect.NOISE_SEEDS", (0, 1))
    # Nobody waits for answers that are there.
    monkeypatch.setattr("MITSGANLib.runtime.background.INTERVAL_SECONDS", 0.005)
    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.jobs.INQUIRY_MILLISECONDS", 2)
    monkeypatch.setattr("MITSGANLib.slicer_bridge.panel.jobs.run_in_background", run_in_lockstep)
    widget = standin.open_panel(module)
    yield widget
    widget.cleanup()
    widget.parent.close()


@pytest.fixture
def loaded(panel, scan):
    """The panel with the small scan selected, under a transform as after a registration."""
    import slicer
    import vtk
    from panel_data import add_scan

    node = add_scan(panel, scan.volume)
    transform = vtk.vtkTransform()
    transform.Translate(10, -20, 30)
    transform.RotateZ(15)
    transform_node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform_node.SetMatrixTransformToParent(transform.GetMatrix())
    node.SetAndObserveTransformNodeID(transform_node.GetID())
    return panel


@pytest.fixture(scope="module")
def scan(phantom):
    """Sixteen slices of the phantom around its nodule."""
    k, j, i = phantom.nodule_kji
    volume = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[k - 8 : k + 8])
    return Phantom(volume, (8, j, i), phantom.nodule_diameter_mm)


@pytest.fixture
def pictures(panel, tmp_path):
    """Takes pictures of the panel, into a folder that may be looked at."""
    from panel_data import Pictures

    return Pictures(panel, Path(os.environ.get("MITSGAN_PANEL_PICTURES") or tmp_path))


@pytest.fixture
def dialogs(module, monkeypatch):  # noqa: ARG001 - the module brings qt
    """File dialogs that the test answers."""
    from panel_data import Dialogs

    dialogs = Dialogs()
    monkeypatch.setattr(sys.modules["qt"], "QFileDialog", dialogs)
    return dialogs


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder named after a patient, as users have them."""
    from panel_data import PATIENT

    path = tmp_path / PATIENT
    path.mkdir()
    return path


@pytest.fixture
def key_file(tmp_path) -> Path:
    """A key file, always of the same key."""
    write_key_file(Key(bytes(range(32))), tmp_path / "clinic.key")
    return tmp_path / "clinic.key"
