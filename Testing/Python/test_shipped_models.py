"""The shipped models on a real scan they were not trained on: the protector's fidelity, the attacker's strength.

The limits are those that a reader of the model card relies on; what the models achieve is printed by ``mitsgan demo``.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from MITSGANLib.attack.attacker import simulate_attack, tampered_box
from MITSGANLib.budget.body import body_mask, lung_share
from MITSGANLib.budget.budget import allowed_in_slices, apply_change
from MITSGANLib.files.storage import load_volume
from MITSGANLib.protection.inference import SliceInference
from MITSGANLib.protection.proposer import Execution
from MITSGANLib.protection.protector import load_protector, protect
from MITSGANLib.runtime import devices
from MITSGANLib.scan.lungs import lung_mask, nodule_like_positions
from MITSGANLib.scan.volume import CTVolume


@pytest.fixture(scope="module")
def scan(real_ct) -> CTVolume:
    """Forty-one slices of RIDER-Pilot-0117: 33 mm, just enough for the attacker's cube."""
    whole = load_volume(real_ct / "nrrd" / "RIDER-Pilot-0117.nrrd")
    return dataclasses.replace(whole, hu=whole.hu[30:71])


@pytest.fixture(scope="module")
def protected(scan) -> CTVolume:
    return protect(scan)


@pytest.mark.slow
def test_change_is_within_the_cards_budget_and_shifts_no_tissue(scan, protected):
    change = protected.hu.astype(int) - scan.hu
    ready = load_protector()
    lung = lung_mask(scan)
    body = body_mask(scan.hu, None, scan.spacing_kji)
    soft = body & (scan.hu > 0) & (scan.hu < 100)
    share = np.stack([lung_share(plane, mask, scan.spacing_kji) for plane, mask in zip(scan.hu, body, strict=True)])
    assert np.abs(change).max() <= ready.strength_hu
    in_soft = sum(np.ceil(b.strength_hu * b.soft_tissue) for b in (ready.budget, ready.watermark.budget))
    assert np.abs(change[soft & (share == 0)]).max() <= in_soft
    in_lungs = np.ceil(ready.budget.strength_hu * ready.budget.soft_tissue) + ready.watermark.budget.strength_hu
    assert np.abs(change[soft]).max() <= in_lungs
    assert abs(change[lung].mean()) < 2
    assert abs(change[soft].mean()) < 1


@pytest.mark.slow
def test_a_part_of_the_series_is_protected_as_within_the_whole(scan, protected):
    """Slices far from the cut; near it the body mask may differ by its own definition of a slice's surroundings."""
    part = protect(dataclasses.replace(scan, hu=scan.hu[10:30], origin=tuple(scan.voxel_to_lps((10, 0, 0)))))
    difference = np.abs(part.hu.astype(int) - protected.hu[10:30])
    assert np.mean(difference > 1) < 1e-3


@pytest.mark.slow
def test_the_remover_takes_a_bright_structure_away(scan):
    target = nodule_like_positions(scan, 1, margin_mm=16)[0]
    attacked = simulate_attack(scan, target, "remove")
    box = tampered_box(scan, target)
    middle = tuple(slice((s.start + s.stop) // 2 - 3, (s.start + s.stop) // 2 + 4) for s in box)
    assert scan.hu[middle].mean() > -500
    assert attacked.hu[middle].mean() < scan.hu[middle].mean() - 150


@pytest.mark.slow
def test_half_precision_moves_the_default_by_at_most_1_hu(scan, monkeypatch):
    """The arithmetic of a GPU on a CPU, which does not choose it by itself: same numbers, other order of sums."""
    monkeypatch.setattr(devices, "may_use_half", lambda precision, _device: precision != "float32")
    ready, hu = load_protector(), scan.hu[20:22]
    allowed = allowed_in_slices(hu, ready.budget, scan.spacing_kji)
    found = {}
    for precision in ("auto", "float32"):
        execution = Execution(strength_hu=ready.budget.strength_hu, device="cpu", precision=precision)
        network = SliceInference(ready.proposer, hu.shape[1:], execution, fused=True)
        found[network.precision] = apply_change(hu, network.change(hu, allowed), allowed).astype(int)
    assert np.abs(found["float32"] - hu).max() >= 2
    assert np.abs(found["half"] - found["float32"]).max() <= 1
