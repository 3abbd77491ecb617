"""In-painters of other families: what they keep, what they depend on, and that they load as CT-GAN's do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib import weights
from MITSGANLib.attack.attacker import Attacker, build_generator, load_attacker, own_tensors, simulate_attack
from MITSGANLib.attack.chain import MASK, Inpainter, blended_injection, mask_center
from MITSGANLib.attack.equalization import Equalization
from MITSGANLib.attack.inpainters import FlowConfig, FlowInpainter, UNetConfig
from MITSGANLib.attack.networks import CTGANConfig
from MITSGANLib.errors import ModelError

CONFIGS = {
    "UNetInpainter": UNetConfig(filters=4, groups=2),
    "FlowInpainter": FlowConfig(filters=4, groups=2, steps=2),
}
MIDDLE = (..., MASK, MASK, MASK)


@pytest.fixture(params=sorted(CONFIGS))
def network(request) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_generator(CONFIGS[request.param])[1].eval()


def cubes(count: int, seed: int = 0) -> torch.Tensor:
    """Equalized cubes with their middle set to 0."""
    return mask_center(torch.rand(count, 1, 32, 32, 32, generator=torch.Generator().manual_seed(seed)) - 0.5)


def write(folder: Path, generator: torch.nn.Module, equalization: Equalization, **changes: object) -> Path:
    """An injector as a folder of attacker files, its card with changes."""
    name, config = type(generator).__name__, dataclasses.asdict(generator.config)
    fields = {
        "name": "mine",
        "kind": "injector",
        "architecture": {"class": name, "config": config},
        **dict.fromkeys(("description", "limits", "command", "commit"), ""),
        **{key: {} for key in ("data", "training", "figures")},
        "seed": 0,
    }
    card = weights.ModelCard(**fields | changes)
    weights.write_weights(folder / "injector.safetensors", own_tensors(generator, equalization), card)
    return folder


class TestNetworks:
    def test_the_middle_is_painted_and_the_shell_handed_on(self, network):
        x = cubes(2)
        with torch.no_grad():
            y = network(x)
        assert y.shape == x.shape
        assert torch.equal(mask_center(y), x)
        assert y[MIDDLE].std() > 0

    def test_a_cube_becomes_the_same_whatever_stands_beside_it(self, network):
        x = cubes(3)
        with torch.no_grad():
            assert torch.allclose(network(x)[1:2], network(x[1:2]), atol=1e-5)

    @pytest.mark.slow
    def test_the_shell_decides_what_is_painted_and_a_gradient_reaches_all_of_it(self, network):
        x = cubes(1).requires_grad_()
        network(x)[MIDDLE].square().sum().backward()
        shell = mask_center(torch.ones_like(x)) > 0
        assert (x.grad[shell] != 0).float().mean() > 0.9

    @pytest.mark.slow
    def test_the_half_precision_file_gives_the_same_attack(self, network, tmp_path, phantom):
        equalization = Equalization.from_cubes(phantom.volume.hu[None])
        loaded = load_attacker(write(tmp_path, network, equalization), "inject")
        expected = Attacker("mine", "inject", Inpainter(network, equalization))
        attacked = [
            simulate_attack(phantom.volume, phantom.nodule_kji, "inject", attacker=one).hu.astype(int)
            for one in (loaded, expected)
        ]
        changed = attacked[1] != phantom.volume.hu
        assert changed.sum() > 50
        assert np.percentile(np.abs(attacked[0] - attacked[1])[changed], 90) <= 3

    def test_a_class_that_is_no_inpainter_is_refused(self, tmp_path, phantom, network):
        equalization = Equalization.from_cubes(phantom.volume.hu[None])
        folder = write(tmp_path, network, equalization, architecture={"class": "PlainNetwork", "config": {}})
        with pytest.raises(ModelError, match="PlainNetwork, not an in-painter"):
            load_attacker(folder, "inject")

    def test_every_family_has_its_own_name(self):
        names = [build_generator(config)[0] for config in (*CONFIGS.values(), CTGANConfig(2))]
        assert names == ["UNetInpainter", "FlowInpainter", "CTGANGenerator"]


class TestFlow:
    def test_other_noise_paints_another_middle(self):
        network = FlowInpainter(CONFIGS["FlowInpainter"]).eval()
        x, start = cubes(1), torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            assert not torch.allclose(network(x)[MIDDLE], network.complete(x, start)[MIDDLE], atol=1e-3)

    @settings(max_examples=6, deadline=None)
    @given(steps=st.integers(1, 6), value=st.floats(-0.5, 0.5))
    def test_it_arrives_where_the_network_points(self, steps, value):
        """With a network that always names the same end, any number of steps ends there."""
        network = FlowInpainter(dataclasses.replace(CONFIGS["FlowInpainter"], steps=steps))
        network.end = lambda x, *_where: torch.full_like(x, value)
        assert torch.allclose(network(cubes(2))[MIDDLE], torch.tensor(value), atol=1e-5)

    def test_times_rise_from_0_in_equal_steps(self):
        network, seen = FlowInpainter(FlowConfig(filters=4, groups=2, steps=4)), []
        network.end = lambda x, _state, time: seen.append(time.tolist()) or x
        network(cubes(2))
        assert seen == [[0.0, 0.0], [0.25, 0.25], [0.5, 0.5], [0.75, 0.75]]

    def test_the_noise_is_kept_with_the_weights(self):
        first, second = (FlowInpainter(CONFIGS["FlowInpainter"]) for _ in range(2))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.start, second.start)


class TestBlending:
    def test_lung_forged_as_it_was_stays(self):
        clean = torch.full((2, 32, 32, 32), -850.0)
        assert torch.allclose(blended_injection(clean, clean).float(), clean)

    def test_nothing_becomes_darker_and_dense_tissue_comes_out_in_the_middle(self):
        clean = -850 + 40 * torch.randn(1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
        forged = clean - 100
        forged[:, 12:20, 12:20, 12:20] = 30
        blended = blended_injection(forged, clean)
        assert (blended >= clean).all()
        assert (blended[:, 13:19, 13:19, 13:19] > -100).all()
        assert torch.allclose(blended[:, :10].float(), clean[:, :10], atol=10)
