"""Protection of a scan: bounded, integer, inside the body, seeded, the same for parts and wholes, cancellable."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from MITSGANLib.budget.body import body_mask
from MITSGANLib.budget.budget import Budget, Surroundings, allowed_in_slices, apply_change
from MITSGANLib.errors import CancelledError, DependencyError, ModelError
from MITSGANLib.protection import inference
from MITSGANLib.protection.generator import Generator, GeneratorConfig, draw_noise
from MITSGANLib.protection.inference import hu_to_network, network_to_hu
from MITSGANLib.protection.presets import (
    DEFAULT_PROTECTOR,
    PRESETS,
    available_protectors,
    choice,
    choices,
    load_proposer,
)
from MITSGANLib.protection.protector import Protector, load_protector, protect, watermark_alone
from MITSGANLib.protection.tafim import TAFIM, TAFIMConfig
from MITSGANLib.scan.volume import PROTECTION, CTVolume, Provenance
from MITSGANLib.watermark.embedding import Watermark
from MITSGANLib.watermark.pattern import OPEN_KEY
from MITSGANLib.weights import DEFAULT_ATTACKER, MODELS_FOLDER, ModelCard, half_precision, write_weights


def untrained(output: str = "residual", seed: int = 0, **budget: float) -> Protector:
    """``output`` of a generator, or "tafim" for the rival's model."""
    torch.manual_seed(11)
    if output == "tafim":
        network = TAFIM(TAFIMConfig(base_filters=2, levels=2, tile=48)).eval()
    else:
        network = Generator(GeneratorConfig(trunk_filters=8, output=output, unshuffle=2)).eval()
    return Protector("untrained", network, Budget(**budget), seed, digest="ab" * 32)


@pytest.fixture(scope="module")
def protected(phantom) -> CTVolume:
    return protect(phantom.volume, model=untrained(strength_hu=12.0))


class TestBound:
    def test_changes_something_but_nothing_beyond_the_strength(self, phantom, protected):
        change = protected.hu.astype(int) - phantom.volume.hu
        assert protected.hu.dtype == np.int16
        assert 1 <= np.abs(change).max() <= 12

    @pytest.mark.parametrize("output", ["image", "residual", "tafim"])
    @pytest.mark.parametrize("strength", [0.0, 1.0, 3.5, 40.0])
    def test_holds_for_every_strength_and_kind_of_network(self, phantom, output, strength):
        volume = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[20:24])
        result = protect(volume, model=untrained(output, strength_hu=strength))
        assert np.abs(result.hu.astype(int) - volume.hu).max() <= strength

    def test_an_image_generator_comes_through_whole_where_the_strength_allows_it(self, phantom):
        """As in MITS-GAN's paper: the slice is what the network says, but for air, saturated voxels and their sides."""
        volume = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[20:22])
        free = untrained("image", strength_hu=4095.0, soft_tissue=1.0, bone=1.0)
        with torch.no_grad():
            free.proposer.trunk[-2].weight.zero_()
            free.proposer.trunk[-2].bias.fill_(-0.45)
        low, high = free.proposer.config.hu_window
        painted = (np.tanh(-0.45) + 1) / 2 * (high - low) + low
        result = protect(volume, model=free)
        mask = body_mask(volume.hu, None, volume.spacing_kji)
        soft = mask & (volume.hu > 0) & (volume.hu < 200)
        assert soft.any()
        assert np.abs(result.hu[soft] - painted).max() <= 0.5 + 1e-3
        assert (result.hu[~mask] == volume.hu[~mask]).all()

    def test_outside_the_body_stays(self, phantom, protected):
        outside = ~body_mask(phantom.volume.hu, None, phantom.volume.spacing_kji)
        assert outside.any()
        assert (protected.hu[outside] == phantom.volume.hu[outside]).all()

    @pytest.mark.slow
    def test_padding_stays(self):
        from MITSGANLib.scan.phantom import thorax_phantom

        padded = thorax_phantom(shape=(16, 96, 96), seed=1, padding=True).volume
        assert padded.provenance.padding_hu is not None
        result = protect(padded, model=untrained(strength_hu=30.0))
        was_padding = padded.hu == padded.provenance.padding_hu
        assert was_padding.any()
        assert ((result.hu == padded.provenance.padding_hu) == was_padding).all()

    def test_geometry_stays_and_the_step_is_recorded(self, phantom, protected):
        assert protected.same_geometry(phantom.volume)
        step = protected.provenance.steps[-1]
        assert step.kind == PROTECTION
        assert step.parameters["seed"] == 0
        assert step.parameters["strength_hu"] == 12.0
        assert step.parameters["model_sha256"] == "ab" * 32
        assert not protected.provenance.is_simulated_attack

    @pytest.mark.slow
    def test_the_change_of_both_stays_within_what_both_are_allowed(self, phantom):
        ready = dataclasses.replace(untrained(strength_hu=6.0), watermark=Watermark())
        around = Surroundings.of(phantom.volume.hu, phantom.volume.spacing_kji)
        alone = protect(phantom.volume, model=dataclasses.replace(ready, watermark=None))
        both = protect(phantom.volume, model=ready)
        assert (np.abs(both.hu.astype(int) - alone.hu) <= around.allowed(alone.hu, ready.watermark.budget)).all()
        assert (both.hu != alone.hu).any()
        assert both.provenance.steps[-1].parameters["watermark"] == "open"
        assert np.abs(both.hu.astype(int) - phantom.volume.hu).max() <= ready.strength_hu

    def test_a_watermark_alone_needs_no_network(self, phantom):
        marked = protect(phantom.volume, model="none")
        assert load_protector("none") == watermark_alone(OPEN_KEY)
        assert marked.provenance.steps[-1].parameters.items() >= Watermark().to_dict().items()
        assert 0 < np.abs(marked.hu.astype(int) - phantom.volume.hu).max() <= Watermark().budget.strength_hu


class TestDeterminism:
    @pytest.mark.slow
    def test_same_seed_same_voxels_other_seed_other_voxels(self, phantom, protected):
        again = protect(phantom.volume, model=untrained(strength_hu=12.0))
        other = protect(phantom.volume, model=untrained(seed=1, strength_hu=12.0))
        assert (again.hu == protected.hu).all()
        assert (other.hu != protected.hu).any()

    @pytest.mark.slow
    @pytest.mark.parametrize("batch_size", [1, 7, 100])
    def test_batch_size_does_not_matter(self, phantom, protected, batch_size):
        result = protect(phantom.volume, model=untrained(strength_hu=12.0), batch_size=batch_size)
        assert (result.hu == protected.hu).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("output", ["residual", "image"])
    def test_a_part_of_a_series_gives_what_the_whole_gives(self, phantom, output):
        ready, part = untrained(output, strength_hu=12.0), slice(17, 30)
        few = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[part])
        assert (protect(few, model=ready).hu == protect(phantom.volume, model=ready).hu[part]).all()

    @pytest.mark.parametrize("output", ["residual", "image"])
    def test_parts_of_slices_give_what_the_network_says_of_whole_ones(self, phantom, output, monkeypatch):
        """Tiles around the body, against the network as it is, on each slice as it is."""
        monkeypatch.setattr(inference, "CPU_LAYER_BYTES", 100_000)
        ready = untrained(output, strength_hu=50.0, soft_tissue=1.0)
        volume = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[20:24])
        config = ready.proposer.config
        noise = draw_noise(volume.shape[1:], config.noise, ready.seed)
        allowed = allowed_in_slices(volume.hu, ready.budget, volume.spacing_kji)
        with torch.no_grad():
            slices = hu_to_network(torch.from_numpy(volume.hu.copy()), config.hu_window).unsqueeze(1)
            said = torch.cat([ready.proposer(one[None], noise) for one in slices]).squeeze(1)
        image = network_to_hu(said, config.hu_window).numpy()
        change = image - volume.hu if output == "image" else said.numpy() * allowed
        result = protect(volume, model=ready)
        assert (result.hu == apply_change(volume.hu, change, allowed)).all()
        assert (result.hu != volume.hu).any()


class TestFailure:
    @pytest.mark.slow
    def test_memory_that_is_too_small_for_a_batch_gives_the_same_voxels(self, phantom, protected, monkeypatch):
        run = inference.SliceInference.change_at_once

        def limited(network: inference.SliceInference, hu: np.ndarray, allowed: np.ndarray) -> np.ndarray:
            if len(hu) > 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return run(network, hu, allowed)

        monkeypatch.setattr(inference.SliceInference, "change_at_once", limited)
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
        seen = []
        result = protect(
            phantom.volume,
            model=untrained(strength_hu=12.0),
            batch_size=16,
            progress=lambda done, _total: seen.append(done),
        )
        assert (result.hu == protected.hu).all()
        assert seen[:3] == [16, 18, 20], "the smaller batch is kept"

    def test_half_precision_without_a_gpu_is_refused(self, phantom):
        with pytest.raises(DependencyError, match="GPU"):
            protect(phantom.volume, model=untrained(), device="cpu", precision="half")

    def test_cancel_raises_and_returns_nothing(self, phantom):
        seen = []

        def cancel(done: int, total: int) -> None:
            seen.append((done, total))
            raise CancelledError("stop")

        with pytest.raises(CancelledError):
            protect(phantom.volume, model=untrained(), batch_size=4, progress=cancel)
        assert seen == [(4, phantom.volume.shape[0])]

    @pytest.mark.slow
    def test_progress_reaches_the_end(self, phantom):
        seen = []
        protect(phantom.volume, model=untrained(), batch_size=20, progress=lambda *step: seen.append(step))
        assert seen == [(20, 48), (40, 48), (48, 48)]

    def test_nan_from_the_network_is_refused(self, phantom):
        broken = untrained()
        next(broken.proposer.trunk.parameters()).data.fill_(float("nan"))
        with pytest.raises(ModelError, match="NaN"):
            protect(phantom.volume, model=broken)

    def test_provenance_of_the_source_is_kept(self, phantom):
        volume = dataclasses.replace(phantom.volume, provenance=Provenance(source="x", series_instance_uid="1.2.3"))
        assert protect(volume, model=untrained()).provenance.series_instance_uid == "1.2.3"


@pytest.fixture
def weights(tmp_path):
    """``weights(network)`` writes a network with a card, and gives the path."""

    def write(network: Generator | TAFIM, kind: str = "", budget: dict | None = None, **config: object):
        card = ModelCard(
            name="own",
            kind="protector",
            description="",
            architecture={
                "class": kind or type(network).__name__,
                "config": {**dataclasses.asdict(network.config), **config},
            },
            data={},
            training={},
            figures={},
            limits="",
            seed=0,
            command="",
            commit="",
            budget={"strength_hu": 9.0} if budget is None else budget,
        )
        path = tmp_path / "anywhere" / "own.safetensors"
        path.parent.mkdir(exist_ok=True)
        write_weights(path, half_precision(network), card)
        return path

    return write


class TestLoading:
    @pytest.mark.parametrize("output", ["residual", "image", "tafim"])
    def test_a_file_anywhere_protects_as_the_network_in_it(self, phantom, weights, output):
        network = untrained(output).proposer
        with torch.no_grad():  # so that storing in half precision loses nothing
            for values in network.state_dict().values():
                values.copy_(values.half())
        path = weights(network)
        volume = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[20:23])
        loaded = load_protector(path)
        assert (loaded.name, loaded.budget.strength_hu) == ("own", 9.0)
        expected = protect(volume, model=dataclasses.replace(untrained(), proposer=network, budget=loaded.budget))
        assert (protect(volume, model=str(path)).hu == expected.hu).all()
        assert (expected.hu != volume.hu).any()

    def test_strength_replaces_the_cards(self, weights):
        assert load_protector(weights(untrained().proposer), strength_hu=4).budget == Budget(strength_hu=4.0)

    def test_installed_ones_are_known_by_name(self):
        assert load_protector("default").name == DEFAULT_PROTECTOR
        with pytest.raises(ModelError, match=DEFAULT_PROTECTOR):
            load_protector("no-such-model")

    def test_presets_are_installed_protectors_at_a_strength(self):
        default, strong, paper = (load_protector(name) for name in ("default", "strong", "paper"))
        assert strong.digest == default.digest != paper.digest
        again = default.at_strength(strong.strength_hu)
        assert strong.budget.to_dict() == pytest.approx(again.budget.to_dict())
        assert strong.watermark.budget.to_dict() == pytest.approx(again.watermark.budget.to_dict())
        assert strong.strength_hu == 3 * default.strength_hu
        assert default.watermark.is_open
        assert paper.watermark is None
        weak = load_protector("strong", strength_hu=12)
        assert weak.budget.strength_hu + weak.watermark.budget.strength_hu == pytest.approx(12)

    @pytest.mark.slow
    @given(strength=st.floats(0.1, 200))
    def test_network_and_watermark_are_scaled_together(self, strength):
        default = load_protector("default")
        scaled = default.at_strength(strength)
        assert scaled.strength_hu == pytest.approx(strength)
        ratio = strength / default.strength_hu
        assert scaled.budget.noise_share == pytest.approx(ratio * default.budget.noise_share)
        assert scaled.watermark.budget.noise_share == pytest.approx(ratio * default.watermark.budget.noise_share)

    def test_every_protector_is_offered_once(self):
        offered = choices()
        assert list(offered)[: len(PRESETS)] == list(PRESETS)
        assert {card.name for card in offered.values()} == {card.name for card in available_protectors()}
        for card in available_protectors():
            assert offered[choice(card.name)].name == card.name

    def test_a_name_is_not_a_way_out_of_the_models_folder(self, tmp_path, weights):
        weights(untrained().proposer)
        folder = tmp_path / "models"
        (folder / "protectors").mkdir(parents=True)
        with pytest.raises(ModelError, match="no protector"):
            load_proposer("../../anywhere/own", folder)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(ModelError, match="check the path"):
            load_protector(tmp_path / "none.safetensors")

    def test_an_attacker_is_no_protector(self):
        path = MODELS_FOLDER / "attackers" / DEFAULT_ATTACKER / "injector.safetensors"
        with pytest.raises(ModelError, match="not a protector"):
            load_protector(path)

    @pytest.mark.parametrize(
        "changes",
        [
            {"config": {"tile": 7}},
            {"config": {"tile": "large"}},
            {"config": {"unknown": 1}},
            {"kind": "Generator"},
            {"budget": {"strength": 3.0}},
            {"budget": {"strength_hu": -3.0}},
        ],
    )
    def test_a_card_that_does_not_fit_is_refused(self, weights, changes):
        changes = dict(changes)
        path = weights(untrained("tafim").proposer, **changes.pop("config", {}), **changes)
        with pytest.raises(ModelError, match="own"):
            load_protector(path)


def test_the_seed_does_not_matter_to_tafim(phantom):
    """Its perturbation is learned, not drawn."""
    volume = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[20:22])
    first, second = (
        protect(volume, model=dataclasses.replace(untrained("tafim", strength_hu=20.0), seed=seed)) for seed in (0, 1)
    )
    assert (first.hu == second.hu).all()
