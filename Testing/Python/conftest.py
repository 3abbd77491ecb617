"""Fixtures for all tests. Nothing here touches the network; real CT is used where it is present."""

from __future__ import annotations

import functools
import gc
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from MITSGANLib.attack.attacker import Attacker
from MITSGANLib.attack.chain import Inpainter
from MITSGANLib.attack.equalization import Equalization
from MITSGANLib.attack.networks import CTGANConfig, CTGANGenerator
from MITSGANLib.scan.phantom import Phantom, thorax_phantom

REPOSITORY = Path(__file__).resolve().parents[2]

# While all test files are imported there is no garbage, and to look for it would take a third of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but never look at what was imported."""
    gc.freeze()
    gc.enable()


# No example is too slow: on a busy machine any may take longer than Hypothesis allows by default.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_configure() -> None:
    """Stand in for Slicer's translations, which slicer-core lacks: every text stays as it is."""
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = (lambda text: text), (lambda _context, text: text)
    sys.modules.setdefault("slicer.i18n", i18n)


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """Folder of real CT (``MITSGAN_CT``, else ``../shared/ct`` beside the checkout); the test is skipped without it."""
    folder = Path(os.environ.get("MITSGAN_CT") or REPOSITORY.parent / "shared" / "ct")
    if not (folder / "dicom").is_dir():
        pytest.skip(f"real CT is not at {folder}; set MITSGAN_CT to its folder")
    return folder


@pytest.fixture
def on_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seek no watermark on other grids: in a copy without one that takes seconds. ``test_regridding.py`` tests it."""
    monkeypatch.setattr("MITSGANLib.watermark.checking.find_regridding", lambda *_: None)


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    """A synthetic thorax, large enough for the attacker's 32 mm cube, small enough for tests."""
    return small_phantom()


@functools.cache
def small_phantom() -> Phantom:
    """As the fixture ``phantom``."""
    return thorax_phantom(shape=(48, 128, 128), spacing_kji=(2.5, 2.8, 2.8), seed=3)


@pytest.fixture(scope="session")
def untrained_attackers() -> dict[str, Attacker]:
    """An injector and a remover with random weights: every step of an attack, none of its quality."""
    return make_untrained_attackers()


def make_untrained_attackers() -> dict[str, Attacker]:
    """As the fixture ``untrained_attackers``."""
    phantom = small_phantom()
    equalization = Equalization.from_cubes(phantom.volume.hu[None])
    attackers = {}
    for seed, action in enumerate(("inject", "remove")):
        torch.manual_seed(seed)
        network = CTGANGenerator(CTGANConfig(base_filters=4)).eval().requires_grad_(False)
        attackers[action] = Attacker("untrained", action, Inpainter(network, equalization), digest="0" * 64)
    return attackers
