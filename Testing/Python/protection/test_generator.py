"""The generator and discriminator: the paper's shapes, the public code's variant, fixed window, seeded noise."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.protection.generator import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    draw_noise,
    for_inference,
)
from MITSGANLib.protection.inference import hu_to_network, network_to_hu
from torch import nn


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


class TestPaper:
    def test_noise_net_has_five_convolutions_with_batch_norm_and_relu(self):
        layers = list(Generator().noise_net.layers)
        assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 5

    def test_trunk_is_convolution_three_residual_blocks_convolution(self):
        generator = Generator()
        trunk = convolutions(generator.trunk)
        assert len(trunk) == 1 + 3 * 2 + 1
        assert trunk[0].in_channels == 2, "slice and shaped noise are concatenated, not added"
        assert trunk[-1].out_channels == 1

    def test_discriminator_has_eight_convolutions_and_gives_a_likelihood(self):
        discriminator = Discriminator().eval()
        assert len(convolutions(discriminator)) == 8
        with torch.inference_mode():
            likelihood = discriminator(torch.randn(2, 1, 512, 512))
        assert likelihood.shape == (2,)
        assert ((likelihood > 0) & (likelihood < 1)).all()

    def test_first_batch_norm_of_the_discriminator_is_an_option(self):
        def norms(config: DiscriminatorConfig) -> int:
            return sum(isinstance(module, nn.BatchNorm2d) for module in Discriminator(config).modules())

        assert norms(DiscriminatorConfig(first_batch_norm=True)) == norms(DiscriminatorConfig()) + 1


# The released code where it differs from the paper.
PUBLIC_CODE = GeneratorConfig(noise_kernel=1, noise="uniform", first_batch_norm=False, last_kernel=1)


class TestPublicCode:
    def test_layers_and_parameters(self):
        generator = Generator(PUBLIC_CODE)
        assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions(generator.noise_net)] == [
            (1, 2, 1), (2, 4, 1), (4, 4, 1), (4, 2, 1), (2, 1, 1)
        ]  # fmt: skip
        trunk = convolutions(generator.trunk)
        assert (trunk[0].bias is not None, trunk[-1].kernel_size) == (True, (1, 1))
        # 2*64*9+64, six 64*64*9 with batch norm of 64, 64+1; and the Noise Net: counted by hand from its description.
        trunk_parameters = 2 * 64 * 9 + 64 + 6 * (64 * 64 * 9 + 2 * 64) + 64 + 1
        noise_parameters = (2 + 8 + 16 + 8 + 2) + 2 * (2 + 4 + 4 + 2 + 1)
        assert sum(p.numel() for p in generator.parameters()) == trunk_parameters + noise_parameters

    def test_noise_is_uniform(self):
        noise = draw_noise((64, 64), PUBLIC_CODE.noise, seed=0)
        assert noise.min() >= 0
        assert noise.max() <= 1


@pytest.mark.parametrize(
    "config",
    [
        GeneratorConfig(trunk_filters=8),
        dataclasses.replace(PUBLIC_CODE, trunk_filters=8),
        GeneratorConfig(trunk_filters=8, output="residual", unshuffle=2),
    ],
)
class TestForward:
    @pytest.mark.parametrize("shape", [(32, 48), (33, 47)])
    def test_output_has_the_slices_shape_and_range(self, config, shape):
        generator = Generator(config).eval()
        with torch.inference_mode():
            output = generator(torch.rand(3, 1, *shape) * 2 - 1, draw_noise(shape, config.noise, 0))
        assert output.shape == (3, 1, *shape)
        assert output.abs().max() <= 1

    def test_batches_do_not_mix_slices(self, config):
        torch.manual_seed(0)
        generator = Generator(config).eval()
        slices, noise = torch.rand(4, 1, 32, 32), draw_noise((32, 32), config.noise, 0)
        with torch.inference_mode():
            together = generator(slices, noise)
            alone = torch.cat([generator(one.unsqueeze(0), noise) for one in slices])
        assert torch.allclose(together, alone, atol=1e-5)

    def test_gradient_reaches_slice_and_every_weight(self, config):
        torch.manual_seed(0)
        generator = Generator(config).train()
        slices = torch.rand(2, 1, 32, 32, requires_grad=True)
        generator(slices, draw_noise((32, 32), config.noise, 0)).square().sum().backward()
        assert slices.grad.abs().sum() > 0
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in generator.parameters())


class TestInference:
    CONFIGS = (
        GeneratorConfig(trunk_filters=8),
        dataclasses.replace(PUBLIC_CODE, trunk_filters=8),
        GeneratorConfig(trunk_filters=8, output="residual", unshuffle=4, residual_blocks=1),
        GeneratorConfig(trunk_filters=8, output="residual", unshuffle=4, residual_blocks=0, grid=2),
    )

    @pytest.mark.parametrize(("config", "margin"), [*zip(CONFIGS[:3], (8, 7, 16), strict=True)])
    def test_margin_is_as_far_as_a_voxel_is_felt(self, config, margin):
        torch.manual_seed(0)
        generator = Generator(config).eval()
        slices = torch.rand(1, 1, 64, 64, requires_grad=True)
        part = slice(32, 32 + config.unshuffle)
        generator(slices, draw_noise((64, 64), config.noise, 0))[..., part, part].sum().backward()
        felt = torch.nonzero(slices.grad[0, 0].abs().sum(dim=1))
        assert generator.margin == margin
        assert (felt.min(), felt.max()) == (32 - margin, 31 + config.unshuffle + margin)

    @pytest.mark.parametrize("config", CONFIGS)
    def test_the_copy_for_inference_answers_bit_for_bit(self, config):
        torch.manual_seed(0)
        generator = Generator(config)
        slices, noise = torch.rand(2, 1, 36, 40), draw_noise((36, 40), config.noise, 0)
        generator(slices, noise)  # moves the statistics of batch norm away from 0 and 1
        generator.eval()
        copy, fused = for_inference(generator), for_inference(generator, fused=True)
        with torch.inference_mode():
            expected = generator(slices, noise)
            assert torch.equal(copy(slices, noise), expected)
            assert torch.allclose(fused(slices, noise), expected, atol=1e-5)
        assert any(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())

    def test_the_copy_leaves_the_original_trainable(self):
        generator = Generator(GeneratorConfig(trunk_filters=4)).train()
        names = list(generator.state_dict())
        for_inference(generator, fused=True)
        assert generator.training
        assert list(generator.state_dict()) == names
        slices, noise = torch.rand(1, 1, 16, 16), draw_noise((16, 16), "gaussian", 0)
        generator(slices, noise).sum().backward()
        assert all(p.grad is not None for p in generator.parameters())


class TestRange:
    @settings(max_examples=50, deadline=None)
    @given(st.floats(-1024, 3071))
    def test_window_round_trip(self, hu):
        window = GeneratorConfig().hu_window
        value = hu_to_network(torch.tensor([hu]), window)
        assert -1 <= value.item() <= 1
        assert network_to_hu(value, window).item() == pytest.approx(hu, abs=0.01)

    def test_equal_hu_look_equal_in_every_scan(self):
        window = GeneratorConfig().hu_window
        narrow, wide = torch.tensor([-100.0, 40.0, 100.0]), torch.tensor([-2000.0, 40.0, 4000.0])
        assert hu_to_network(narrow, window)[1] == hu_to_network(wide, window)[1]


class TestNoise:
    def test_seed_decides(self):
        assert torch.equal(draw_noise((16, 16), "gaussian", 7), draw_noise((16, 16), "gaussian", 7))
        assert not torch.equal(draw_noise((16, 16), "gaussian", 7), draw_noise((16, 16), "gaussian", 8))

    def test_drawing_leaves_the_global_generator_alone(self):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        draw_noise((16, 16), "gaussian", 7)
        assert torch.equal(torch.rand(3), expected)
