"""Inference in parts: tiles cover what is needed, bits are those of whole slices, memory that is too small is met."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import CHOOSE_CPU, DependencyError
from MITSGANLib.protection import inference
from MITSGANLib.protection.generator import Generator, GeneratorConfig, draw_noise
from MITSGANLib.protection.inference import SliceInference, SliceNetwork, Tile, Tiling, hu_to_network, network_to_hu
from MITSGANLib.protection.proposer import Execution
from MITSGANLib.protection.tafim import TAFIM, TAFIMConfig
from MITSGANLib.runtime import devices

CONFIGS = {
    "paper": GeneratorConfig(trunk_filters=16),
    "public code": GeneratorConfig(16, noise_kernel=1, noise="uniform", first_batch_norm=False, last_kernel=1),
    "folded": GeneratorConfig(trunk_filters=16, output="residual", unshuffle=4),
    "on a grid": GeneratorConfig(trunk_filters=64, residual_blocks=1, output="residual", unshuffle=4, grid=2),
}


def trained_like(config: GeneratorConfig) -> Generator:
    """Random weights; batch norms that change what passes through them."""
    torch.manual_seed(5)
    network = Generator(config).train().requires_grad_(False)
    for _ in range(3):
        network(torch.rand(1, 1, 32, 32) * 2 - 1, torch.randn(1, 1, 32, 32))
    return network.eval()


def on_cpu(network: SliceNetwork, shape: tuple[int, int], *, fused: bool | None = None, **how: Any) -> SliceInference:
    return SliceInference(network, shape, Execution(device="cpu", **how), fused=fused)


def scan(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 1500, shape).astype(np.int16)


def allowed_in(hu: np.ndarray, rows: slice, columns: slice, change: int = 20) -> np.ndarray:
    allowed = np.zeros(hu.shape, np.int16)
    allowed[:, rows, columns] = change
    return allowed


def whole_change(network: Generator, hu: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """What the network says of each slice alone, computed as it is."""
    config = network.config
    noise = draw_noise(hu.shape[1:], config.noise, 0)
    with torch.no_grad():
        x = hu_to_network(torch.from_numpy(hu.copy()), config.hu_window).unsqueeze(1)
        output = torch.cat([network(one[None], noise) for one in x]).squeeze(1)
    return (
        network_to_hu(output, config.hu_window).numpy() - hu if config.output == "image" else output.numpy() * allowed
    )


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    rows, columns = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    needed = np.zeros((rows, columns), bool)
    for _ in range(draw(st.integers(0, 4))):
        top, left = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
        needed[top : draw(st.integers(top, rows)) + 1, left : draw(st.integers(left, columns)) + 1] = True
    return needed


class TestTiles:
    @settings(max_examples=60, deadline=None)
    @given(masks(), st.sampled_from([1, 2, 4, 5]), st.integers(0, 8), st.sampled_from([np.inf, 40_000, 20_000]))
    def test_cover_every_needed_voxel_once_with_their_margin(self, needed, multiple, folds, most):
        margin, covered = folds * multiple, np.zeros(needed.shape, int)
        for tile in Tiling(margin, 0.0, multiple).tiles(needed, most):
            covered[tile.wanted] += 1
            for part, wide, size in zip(tile.wanted, tile.wide, needed.shape, strict=True):
                assert 0 <= wide.start <= max(0, part.start // multiple * multiple - margin)
                assert min(size, -(-part.stop // multiple) * multiple + margin) <= wide.stop <= size
                assert wide.start % multiple == 0
                assert wide.stop % multiple == 0 or wide.stop == size
        assert covered.max(initial=0) <= 1
        assert (covered[needed] == 1).all()

    def test_nothing_needed_nothing_computed(self):
        assert Tiling(8, 0.0).tiles(np.zeros((64, 64), bool)) == []

    def test_leave_out_what_is_around_the_body(self):
        j, i = np.mgrid[:512, :512]
        body = ((j - 256) / 130) ** 2 + ((i - 256) / 200) ** 2 < 1
        assert sum(tile.size for tile in Tiling(8, 0.0).tiles(body, 60_000)) < 0.6 * body.size

    def test_are_no_larger_than_asked_for(self):
        tiles = Tiling(8, 0.0).tiles(np.ones((512, 512), bool), 60_000)
        assert max(tile.size for tile in tiles) <= 60_000
        assert len(Tiling(8, 0.0).tiles(np.ones((512, 512), bool))) == 1


class TestIdentity:
    @pytest.mark.parametrize("name", CONFIGS)
    @pytest.mark.parametrize(("rows", "columns"), [(slice(60, 90), slice(20, 200)), (slice(0, 290), slice(190, 287))])
    def test_parts_are_what_whole_slices_give(self, monkeypatch, name, rows, columns):
        """Bit for bit, but that a processor may choose another order of sums for another size.

        One did, an Intel Xeon with one thread and for one of the configurations: 0.007 % of the voxels by the last bit.
        """
        monkeypatch.setattr(inference, "CPU_LAYER_BYTES", 1_200_000)
        network = trained_like(CONFIGS[name])
        hu = scan((2, 290, 287))
        allowed = allowed_in(hu, rows, columns)
        change = on_cpu(network, hu.shape[1:]).change(hu, allowed)
        expected = whole_change(network, hu, allowed)
        difference = np.abs(change - expected)[:, rows, columns]
        assert difference.max() <= 4 * np.spacing(np.float32(np.abs(expected).max()))
        assert np.mean(difference > 0) < 1e-3
        assert np.ptp(expected[:, rows, columns]) > 0

    @pytest.mark.parametrize("shape", [(64, 64), (40, 300)])
    def test_small_and_narrow_slices_are_computed_whole(self, shape):
        network, hu = trained_like(CONFIGS["paper"]), scan((3, *shape))
        part = (slice(None), slice(5, 9), slice(7, 20))
        change = on_cpu(network, shape).change(hu, allowed_in(hu, *part[1:]))
        assert np.array_equal(change[part], whole_change(network, hu, np.ones_like(hu))[part])

    @pytest.mark.parametrize("name", CONFIGS)
    def test_fused_batch_norm_moves_it_by_rounding_errors_alone(self, name):
        network = trained_like(CONFIGS[name])
        hu = scan((1, 140, 130))
        allowed = allowed_in(hu, slice(None), slice(None))
        change = on_cpu(network, hu.shape[1:], fused=True).change(hu, allowed)
        difference = np.abs(change - whole_change(network, hu, allowed))
        assert 0 < difference.max() < 0.05

    def test_batches_give_what_single_slices_give(self):
        network, hu = trained_like(CONFIGS["folded"]), scan((5, 160, 150))
        allowed = allowed_in(hu, slice(10, 140), slice(10, 140))
        together = on_cpu(network, hu.shape[1:])
        alone = on_cpu(network, hu.shape[1:], batch_size=1)
        expected = np.concatenate([alone.change(hu[k : k + 1], allowed[k : k + 1]) for k in range(5)])
        assert np.array_equal(together.change(hu, allowed), expected)

    def test_slices_side_by_side_are_those_one_after_the_other(self):
        network, hu = trained_like(CONFIGS["folded"]), scan((7, 260, 250))
        allowed = allowed_in(hu, slice(10, 240), slice(10, 240))
        before = torch.get_num_threads()
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            try:
                found.append(on_cpu(network, hu.shape[1:]).change(hu, allowed))
                assert torch.get_num_threads() == threads
            finally:
                torch.set_num_threads(before)
        assert np.array_equal(*found)
        assert np.abs(found[0]).max() > 0

    def test_the_network_itself_stays_as_it_is(self):
        network, hu = trained_like(CONFIGS["paper"]), scan((1, 64, 64))
        before = {name: values.clone() for name, values in network.state_dict().items()}
        on_cpu(network, hu.shape[1:], fused=True).change(hu, np.ones_like(hu))
        after = network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(getattr(module, "inplace", False) for module in network.modules())

    def test_tafim_always_sees_whole_slices(self):
        torch.manual_seed(0)
        network, hu = TAFIM(TAFIMConfig(base_filters=2, levels=2, tile=48)).eval(), scan((2, 60, 50))
        allowed = allowed_in(hu, slice(20, 30), slice(20, 30))
        change = on_cpu(network, hu.shape[1:]).change(hu, allowed)
        with torch.no_grad():
            x = hu_to_network(torch.from_numpy(hu), network.config.hu_window).unsqueeze(1)
            expected = network(x).squeeze(1).numpy() * allowed
        assert np.allclose(change, expected, atol=1e-4)
        assert np.abs(change).max() > 0


class TestMemory:
    """A GPU is stood in for: what it would say of its memory is put in place of torch's answers."""

    @pytest.fixture
    def ready(self, monkeypatch):
        """``ready(fitting)`` is an inference on which more slices than ``fitting`` at a time are too many."""
        monkeypatch.setattr(torch.cuda, "device", nullcontext)

        def make(fitting: int, batch_size: int | None = 8) -> tuple[SliceInference, list[int]]:
            made = on_cpu(trained_like(CONFIGS["folded"]), (64, 64), batch_size=batch_size)
            tried, run = [], made.change_at_once

            def limited(hu: np.ndarray, allowed: np.ndarray) -> np.ndarray:
                tried.append(len(hu))
                if len(hu) > fitting:
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory")
                return run(hu, allowed)

            monkeypatch.setattr(made, "change_at_once", limited)
            return made, tried

        return make

    @pytest.mark.parametrize("fitting", [1, 2, 3, 8])
    def test_too_many_slices_become_fewer_with_the_same_result(self, ready, fitting):
        hu = scan((8, 64, 64))
        allowed = allowed_in(hu, slice(None), slice(None))
        plenty, _ = ready(8)
        limited, tried = ready(fitting)
        assert np.array_equal(limited.change(hu, allowed), plenty.change(hu, allowed))
        assert limited.batch_size <= fitting
        before = len(tried)
        limited.change(hu[: limited.batch_size], allowed[: limited.batch_size])
        assert len(tried) == before + 1, "what fitted is remembered"

    def test_not_even_one_slice_is_a_clear_error(self, ready):
        hu = scan((8, 64, 64))
        limited, tried = ready(0)
        with pytest.raises(DependencyError, match="too small for a single slice") as caught:
            limited.change(hu, np.ones_like(hu))
        assert caught.value.hint == CHOOSE_CPU
        assert tried == [8, 4, 2, 1]

    @pytest.mark.parametrize(("free", "expected"), [(10**12, inference.GPU_BATCH), (1_000_000, 7), (10, 1)])
    def test_the_first_batch_tells_how_many_fit(self, monkeypatch, free, expected):
        hu = scan((1, 64, 64))
        made = on_cpu(trained_like(CONFIGS["folded"]), (64, 64))
        made.finds_batch, made.batch_size = True, 1
        says = {"memory_allocated": 50_000, "memory_reserved": 50_000, "max_memory_allocated": 150_000}
        for name, answer in (says | {"mem_get_info": (free, 10**12), "reset_peak_memory_stats": None}).items():
            monkeypatch.setattr(torch.cuda, name, lambda _device, answer=answer: answer)
        made.change(hu, np.zeros_like(hu))
        assert made.batch_size == 1, "a slice without a body tells nothing"
        made.change(hu, np.ones_like(hu))
        assert made.batch_size == expected


class TestHalfPrecision:
    """On a CPU, which is not allowed to choose it: the arithmetic is a GPU's, but for the order of sums."""

    @pytest.fixture(autouse=True)
    def as_on_a_gpu(self, monkeypatch):
        monkeypatch.setattr(devices, "may_use_half", lambda precision, _device: precision != "float32")

    @pytest.mark.parametrize(("strength", "expected"), [(18.0, "half"), (4000.0, "float32")])
    def test_chosen_where_the_probe_finds_it_safe(self, strength, expected):
        network = trained_like(CONFIGS["folded"])
        made = on_cpu(network, (64, 64), strength_hu=strength)
        assert made.precision == expected

    @pytest.mark.slow
    def test_an_image_generator_stays_with_float32(self):
        """Half precision knows a slice only to 1 or 2 HU, so it cannot be within 1 HU."""
        assert on_cpu(trained_like(CONFIGS["paper"]), (64, 64)).precision == "float32"

    def test_results_are_within_1_hu_of_float32(self):
        network, hu = trained_like(CONFIGS["folded"]), scan((2, 64, 64))
        allowed = allowed_in(hu, slice(None), slice(None), change=18)
        half, full = (
            on_cpu(network, (64, 64), strength_hu=18.0, precision=precision) for precision in ("half", "float32")
        )
        difference = np.abs(half.change(hu, allowed) - full.change(hu, allowed))
        assert 0 < difference.max() < 1

    def test_what_half_precision_cannot_hold_is_computed_in_float32(self):
        network, hu = trained_like(CONFIGS["folded"]), scan((1, 64, 64))
        network.trunk[1].weight.mul_(1e6)  # the first batch norm brings it back, but half precision is lost before
        network.trunk[2].running_var.mul_(1e12)
        network.trunk[2].running_mean.mul_(1e6)
        allowed = np.full(hu.shape, 18, np.int16)
        half, full = (on_cpu(network, (64, 64), precision=precision) for precision in ("half", "float32"))
        assert half.precision == "half"
        assert np.array_equal(half.change(hu, allowed), full.change(hu, allowed))
        assert on_cpu(network, (64, 64), strength_hu=1.0).precision == "float32"


def test_a_tile_knows_its_wanted_part():
    tile = Tile((slice(10, 20), slice(30, 50)), (slice(2, 28), slice(22, 58)))
    assert tile.size == 26 * 36
    assert tile.inner == (slice(8, 18), slice(8, 28))
    picture = np.arange(60 * 60).reshape(60, 60)
    assert np.array_equal(picture[tile.wide][tile.inner], picture[tile.wanted])
