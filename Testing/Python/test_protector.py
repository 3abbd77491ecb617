"""Protection of a scan: bounded, integer, inside the body, seeded, the same for parts and wholes, cancellable."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from MITSGANLib.budget import Budget, body_mask
from MITSGANLib.errors import CancelledError, ModelError
from MITSGANLib.generator import Generator, GeneratorConfig
from MITSGANLib.protector import Protector, protect
from MITSGANLib.volume import PROTECTION, CTVolume, Provenance


def untrained(output: str = "residual", seed: int = 0, **budget: float) -> Protector:
    torch.manual_seed(11)
    generator = Generator(GeneratorConfig(trunk_filters=8, output=output, unshuffle=2)).eval()
    return Protector("untrained", generator, Budget(**budget), seed, digest="ab" * 32)


@pytest.fixture(scope="module")
def protected(phantom) -> CTVolume:
    return protect(phantom.volume, model=untrained(strength_hu=12.0))


class TestBound:
    def test_changes_something_but_nothing_beyond_the_strength(self, phantom, protected):
        change = protected.hu.astype(int) - phantom.volume.hu
        assert protected.hu.dtype == np.int16
        assert 1 <= np.abs(change).max() <= 12

    @pytest.mark.parametrize("output", ["image", "residual"])
    @pytest.mark.parametrize("strength", [0.0, 1.0, 3.5, 40.0])
    def test_holds_for_every_strength_and_kind_of_generator(self, phantom, output, strength):
        volume = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[20:24])
        result = protect(volume, model=untrained(output, strength_hu=strength))
        assert np.abs(result.hu.astype(int) - volume.hu).max() <= strength

    def test_outside_the_body_stays(self, phantom, protected):
        outside = ~body_mask(phantom.volume.hu, None, phantom.volume.spacing_kji)
        assert outside.any()
        assert (protected.hu[outside] == phantom.volume.hu[outside]).all()

    def test_padding_stays(self):
        from MITSGANLib.phantom import thorax_phantom

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


class TestDeterminism:
    def test_same_seed_same_voxels_other_seed_other_voxels(self, phantom, protected):
        again = protect(phantom.volume, model=untrained(strength_hu=12.0))
        other = protect(phantom.volume, model=untrained(seed=1, strength_hu=12.0))
        assert (again.hu == protected.hu).all()
        assert (other.hu != protected.hu).any()

    @pytest.mark.parametrize("batch_size", [1, 7, 100])
    def test_batch_size_does_not_matter(self, phantom, protected, batch_size):
        result = protect(phantom.volume, model=untrained(strength_hu=12.0), batch_size=batch_size)
        # Convolutions may sum in another order; after rounding to whole HU that shows in a few voxels, by 1 HU.
        difference = np.abs(result.hu.astype(int) - protected.hu)
        assert difference.max() <= 1
        assert np.mean(difference > 0) < 1e-3


class TestFailure:
    def test_cancel_raises_and_returns_nothing(self, phantom):
        seen = []

        def cancel(done: int, total: int) -> None:
            seen.append((done, total))
            raise CancelledError("stop")

        with pytest.raises(CancelledError):
            protect(phantom.volume, model=untrained(), progress=cancel)
        assert seen == [(4, phantom.volume.shape[0])]

    def test_progress_reaches_the_end(self, phantom):
        seen = []
        protect(phantom.volume, model=untrained(), batch_size=20, progress=lambda *step: seen.append(step))
        assert seen == [(20, 48), (40, 48), (48, 48)]

    def test_nan_from_the_network_is_refused(self, phantom):
        broken = untrained()
        next(broken.generator.trunk.parameters()).data.fill_(float("nan"))
        with pytest.raises(ModelError, match="NaN"):
            protect(phantom.volume, model=broken)

    def test_provenance_of_the_source_is_kept(self, phantom):
        volume = dataclasses.replace(phantom.volume, provenance=Provenance(source="x", series_instance_uid="1.2.3"))
        assert protect(volume, model=untrained()).provenance.series_instance_uid == "1.2.3"
