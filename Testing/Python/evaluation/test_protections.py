"""What --protectors may name, and what decides the voxels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from evaluation_data import write_tiny_protector
from MITSGANLib.errors import InputError, ModelError
from MITSGANLib.scan.lungs import lung_positions
from MITSGANTrainingLib.evaluation.protections import read_protection, read_protections


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return str(write_tiny_protector(tmp_path_factory.mktemp("model") / "tiny.safetensors", alpha=0.4))


@pytest.mark.parametrize(
    ("word", "kind", "amount", "steps"),
    [
        ("noise:8", "noise", 8, 0),
        ("ct-noise:2.5", "ct-noise", 2.5, 0),
        ("gradient:20@18", "gradient", 18, 20),
        ("search:75@60", "search", 60, 75),
        ("mitsgan-small", "network", None, 0),
        ("mitsgan-small@6", "network", 6, 0),
    ],
)
def test_forms(word, kind, amount, steps):
    found = read_protection(word, seed=3)
    assert (found.kind, found.amount_hu, found.steps, found.seed) == (kind, amount, steps, 3)
    assert found.name == word
    assert found.budget.get("strength_hu", amount) == (amount or 30)


@pytest.mark.slow
def test_none_is_the_watermark_alone(phantom):
    found, weaker = read_protection("none", 0), read_protection("none@6", 0)
    assert (found.name, weaker.name, found.alpha) == ("watermark", "watermark@6", None)
    assert found.watermark["strength_hu"] > weaker.watermark["strength_hu"] == 6
    protected = weaker.apply(phantom.volume, targets=(), attacker=None, device="cpu")
    assert 0 < np.abs(np.subtract(protected.hu, phantom.volume.hu, dtype=int)).max() <= 6


@pytest.mark.parametrize(
    "word",
    [
        *("noise:", "noise:0", "noise:-3", "noise:nan", "ct-noise:many"),
        *("gradient:5", "gradient:0@3", "gradient:x@3", "gradient:3@"),
        *("search", "search@60", "search:5", "search:0@60"),
        *("mitsgan-small@", "mitsgan-small@-1", "mitsgan-small@1e9"),
    ],
)
def test_malformed_words_are_input_errors(word):
    with pytest.raises(InputError):
        read_protection(word, 0)


@pytest.mark.parametrize("word", ["no-such-model", "missing.safetensors", "nois:8"])
def test_unknown_models_are_model_errors(word):
    with pytest.raises(ModelError):
        read_protection(word, 0)


def test_a_file_with_its_card(weights, tmp_path):
    found = read_protection(weights, 0)
    assert (found.name, found.alpha) == ("tiny", 0.4)
    assert weights not in repr(found.describe())
    odd = tmp_path / "someone@home"
    shutil.copytree(Path(weights).parent, odd)
    assert read_protection(str(odd / "tiny.safetensors"), 0).describe() == found.describe()
    assert read_protection(f"{weights}@7", 0).budget["strength_hu"] == 7


def test_alpha_is_found_at_any_depth(tmp_path):
    nested = write_tiny_protector(tmp_path / "a.safetensors", training={"task": {"loss": {"paper_weight": 0.7}}})
    none = write_tiny_protector(tmp_path / "b.safetensors", training={"task": {"steps": 3}})
    assert read_protection(str(nested), 0).alpha == 0.7
    assert read_protection(str(none), 0).alpha is None


def test_the_same_model_in_two_places_is_one_protection(weights, tmp_path):
    for suffix in ("safetensors", "json"):
        shutil.copy(weights.replace("safetensors", suffix), tmp_path / f"copy.{suffix}")
    words = [weights, str(tmp_path / "copy.safetensors"), f"{weights}@12", "noise:3", "noise:3.0", weights]
    found = read_protections(words, 0)
    assert [protection.name for protection in found] == ["tiny", "noise:3"]


def test_two_models_of_one_name_are_told_apart(weights, tmp_path):
    other = write_tiny_protector(tmp_path / "tiny.safetensors", alpha=1.0, seed=5)
    first, second = read_protections([weights, str(other)], 0)
    assert first.name != second.name
    assert first.name.startswith("tiny (")


def test_noise_has_the_size_asked_for(phantom):
    for word in ("noise:5", "ct-noise:5"):
        protected = read_protection(word, 1).apply(phantom.volume, targets=(), attacker=None, device="cpu")
        change = protected.hu.astype(float) - phantom.volume.hu
        assert np.sqrt(np.mean(change[change != 0] ** 2)) == pytest.approx(5, rel=0.1)


def test_signed_gradients_change_the_target_alone(phantom, untrained_attackers):
    kji = phantom.nodule_kji
    protection = read_protection("gradient:1@9", 0)
    protected = protection.apply(phantom.volume, targets=[kji], attacker=untrained_attackers["remove"], device="cpu")
    change = np.abs(protected.hu.astype(int) - phantom.volume.hu)
    assert 0 < change.max() <= 9
    far = np.argwhere(change) - kji
    assert np.abs(far * phantom.volume.spacing_kji).max() <= 17


@pytest.mark.slow
def test_a_search_stays_around_the_targets_and_within_the_noise(phantom, untrained_attackers):
    (kji,) = lung_positions(phantom.volume, 1, 0)
    protection = read_protection("search:1@60", 0)
    protected = protection.apply(phantom.volume, targets=[kji], attacker=untrained_attackers["inject"], device="cpu")
    change = np.abs(protected.hu.astype(int) - phantom.volume.hu)
    assert 0 < change.max() <= 60
    far = np.argwhere(change) - kji
    # Places lie within 8 mm, and what the attacker reads around them 17 mm and, rounded, 3 voxels farther.
    assert (np.abs(far) <= 3 + 25 / np.array(phantom.volume.spacing_kji)).all()
    assert protection.knows_the_attack
    assert protection.needs_noise_controls
