"""TAFIM's model: one perturbation for all slices, fitted to each; any size; a bounded share of the change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.protection.tafim import TAFIM, TAFIMConfig, UNet

TINY = TAFIMConfig(base_filters=2, levels=2, tile=24)


@pytest.fixture(scope="module")
def tafim() -> TAFIM:
    torch.manual_seed(0)
    return TAFIM(TINY).eval().requires_grad_(False)


def slices(count: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, rows, columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class TestShape:
    @pytest.mark.slow
    @settings(max_examples=30, deadline=None)
    @given(rows=st.integers(1, 60), columns=st.integers(1, 60))
    def test_any_slice_gives_a_share_for_each_voxel(self, tafim, rows, columns):
        share = tafim(slices(2, rows, columns))
        assert share.shape == (2, 1, rows, columns)
        assert share.abs().max() <= 1

    def test_a_multiple_of_the_folding_is_not_padded(self, tafim):
        x = slices(1, 24, 24)
        expected = torch.tanh(tafim.unet(torch.cat([x, tafim.perturbation], dim=1)))
        assert torch.equal(tafim(x), expected)

    def test_default_sees_and_covers_a_whole_slice_of_ct(self):
        model = TAFIM()
        assert model.perturbation.shape == (1, 1, 512, 512)
        assert len(model.unet.down) == 5
        assert model.unet.down[-1][0].out_channels == 256


class TestGlobalPerturbation:
    def test_changes_the_output(self, tafim):
        other = TAFIM(TINY).eval()
        other.load_state_dict(tafim.state_dict())
        x = slices(1, 24, 24)
        before = other(x)
        other.perturbation.data.neg_()
        assert not torch.allclose(before, other(x))

    def test_is_the_same_for_all_slices_and_repeats_beyond_its_edge(self, tafim):
        share = tafim(torch.zeros(2, 1, 120, 120))
        assert torch.equal(share[0], share[1])
        # Away from the slice's border a tile of 24 gives what the next one gives, and half a tile on something else.
        tile, half = share[..., 48:60, 48:60], share[..., 48:60, 60:72]
        assert torch.allclose(tile, share[..., 48:60, 72:84], atol=1e-5)
        assert not torch.allclose(tile, half, atol=1e-3)

    def test_a_crop_meets_the_part_that_lies_there(self, tafim):
        """A crop far from all borders gives what the whole slice gives there, when it says where it comes from."""
        x = slices(1, 96, 96)
        whole = tafim(x)[..., 44:56, 40:52]
        at = tafim(x[..., 20:80, 16:76], corners=[(20, 16)])[..., 24:36, 24:36]
        elsewhere = tafim(x[..., 20:80, 16:76], corners=[(0, 0)])[..., 24:36, 24:36]
        assert torch.allclose(at, whole, atol=1e-5)
        assert not torch.allclose(elsewhere, whole, atol=1e-3)


class TestTraining:
    def test_gradient_reaches_the_perturbation_the_slices_and_every_weight(self):
        torch.manual_seed(0)
        model = TAFIM(TINY).train()
        x = slices(2, 24, 24).requires_grad_(True)
        model(x).square().sum().backward()
        assert x.grad.abs().sum() > 0
        assert model.perturbation.grad.abs().sum() > 0
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())

    def test_slices_do_not_mix(self, tafim):
        x = slices(4, 24, 24)
        assert torch.allclose(tafim(x), torch.cat([tafim(one[None]) for one in x]), atol=1e-5)

    def test_skips_carry_detail_past_the_folding(self):
        """With the deepest level cut off, the output still differs from voxel to voxel within a folded block."""
        torch.manual_seed(0)
        unet = UNet(1, 2, 2).eval().requires_grad_(False)
        for widen in unet.widen:
            widen.weight.zero_()
        detail = unet(slices(1, 16, 16))
        assert detail[0, 0, :4, :4].std() > 0
