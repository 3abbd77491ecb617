"""The differentiable chain gives the voxels of the published pipeline and lets gradients through."""

from __future__ import annotations

import ctgan_reference
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.attack.chain import Inpainter, forge_cube, tamper
from MITSGANLib.attack.equalization import Equalization
from MITSGANLib.attack.networks import CTGANConfig, CTGANGenerator
from MITSGANLib.scan.cubes import Patch, rescale
from scipy import ndimage


def paste(volume: torch.Tensor, patch: Patch) -> torch.Tensor:
    """A float64 copy of the scan with the patch in it."""
    result = volume.double().clone()
    result[patch.slices] = patch.values
    return result


def lung_like_scan(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Parenchyma around -860 HU with noise, and smooth vessels up to 400 HU; int16."""
    rng = np.random.default_rng(seed)
    noise, structure = (ndimage.gaussian_filter(rng.standard_normal(shape), sigma) for sigma in (0.8, 2.5))
    vessels = np.clip(structure / structure.std() - 0.8, 0, None)
    return np.clip(-860 + 45 * noise / noise.std() + 800 * vessels, -1020, 400).astype(np.int16)


@pytest.fixture(scope="module")
def equalization() -> Equalization:
    return Equalization.from_cubes(np.stack([lung_like_scan((32, 32, 32), seed) for seed in range(6)]))


class VividGenerator(torch.nn.Module):
    """An untrained generator with its answer amplified and brightened, so that the attack is strong."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = CTGANGenerator(CTGANConfig(base_filters=4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * self.inner(x) + 0.4


@pytest.fixture(scope="module")
def network() -> VividGenerator:
    return VividGenerator().eval().requires_grad_(False)


class TestAgainstThePublishedPipeline:
    @pytest.mark.slow
    @pytest.mark.parametrize("action", ["inject", "remove"])
    @pytest.mark.parametrize(
        ("spacing", "center"),
        [
            ((2.5, 0.7, 0.7), (26, 70, 75)),
            ((1.25, 0.68, 0.68), (30, 61, 80)),
            ((1.0, 1.0, 1.0), (28, 40, 90)),
            ((2.0, 0.6, 0.9), (3, 10, 130)),  # the cube leaves the scan on three sides
            ((0.8, 0.65, 0.65), (29, 66, 39)),  # the cube covers the place the noise is copied from
        ],
    )
    def test_same_voxels_with_the_same_generator(self, equalization, network, spacing, center, action):
        scan = lung_like_scan((60, 150, 145))

        def numpy_generator(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return network(torch.from_numpy(x).float()[None, None])[0, 0].double().numpy()

        expected = ctgan_reference.attack(
            scan,
            center,
            spacing,
            numpy_generator,
            (equalization.bins, equalization.cdf),
            (equalization.mean, equalization.minimum, equalization.maximum),
            action,
        )
        volume = torch.from_numpy(scan)
        with torch.no_grad():
            patch = tamper(volume, center, spacing, Inpainter(network, equalization), action)
            ours = paste(volume, patch).numpy()
        assert np.abs(expected - scan).max() > 200, "the attack must change something for this to mean anything"
        assert np.abs(ours - expected).max() < 0.1

    @pytest.mark.slow
    def test_overflow_repair_equals_the_sequential_one(self):
        """A generator that answers bone everywhere drives voxels above 2000 HU, neighbors included."""
        rng = np.random.default_rng(5)
        table = Equalization(np.linspace(-1000, 3000, 50), np.linspace(0, 1, 50), 0.5, 0.0, 1.0)
        answer = rng.uniform(-0.5, 0.5, (32, 32, 32))
        scan = lung_like_scan((48, 48, 48))
        expected = ctgan_reference.attack(
            scan, (24, 24, 24), (1, 1, 1), lambda _: answer, (table.bins, table.cdf), (0.5, 0.0, 1.0), "remove"
        )
        inpainter = Inpainter(lambda x: torch.from_numpy(answer).float().expand_as(x), table)
        patch = tamper(torch.from_numpy(scan), (24, 24, 24), (1, 1, 1), inpainter, "remove")
        assert np.abs(paste(torch.from_numpy(scan), patch).numpy() - expected).max() < 1e-2


class TestGeometry:
    def test_a_wrong_axis_would_show(self, equalization):
        """The identity generator pastes back what it got outside the mask, so a swapped axis cannot hide."""
        scan = lung_like_scan((50, 90, 100))
        inpainter = Inpainter(lambda x: x, equalization)
        forged = forge_cube(torch.from_numpy(scan), (25, 40, 55), (1.0, 1.0, 1.0), inpainter)
        original = scan[forged.slices].astype(float)
        shell = np.ones((32, 32, 32), dtype=bool)
        shell[6:26, 6:26, 6:26] = False
        shell &= (original > -980) & (original < 300)  # beyond, the table is flat and cannot be inverted
        assert forged.start == (9, 24, 39)
        assert np.abs(forged.values.numpy() - original)[shell].max() < 1.0

    def test_only_the_neighborhood_of_the_target_changes(self, equalization, network):
        scan = torch.from_numpy(lung_like_scan((70, 120, 120)))
        patch = tamper(scan, (35, 60, 60), (1, 1, 1), Inpainter(network, equalization), "remove")
        changed = np.argwhere((paste(scan, patch) - scan).abs().detach().numpy() > 0)
        edge = int(32 * 1.3)
        assert changed.min(axis=0) == pytest.approx([35 - edge // 2, 60 - edge // 2, 60 - edge // 2], abs=1)
        assert changed.max(axis=0) == pytest.approx([35 + edge // 2, 60 + edge // 2, 60 + edge // 2], abs=1)

    @pytest.mark.parametrize("spacing", [3.0, 5.0])
    def test_thick_slices_reach_32_mm_where_the_published_code_fails(self, equalization, network, spacing):
        scan = torch.from_numpy(lung_like_scan((40, 80, 80)))
        inpainter = Inpainter(network, equalization)
        forged = forge_cube(scan, (20, 40, 40), (spacing, 1.0, 1.0), inpainter)
        assert forged.values.shape == (round(32 / spacing), 32, 32)
        assert torch.isfinite(forged.values).all()

    def test_no_lung_at_the_noise_source_adds_no_noise(self, equalization, network):
        scan = torch.zeros(40, 60, 60, dtype=torch.int16)
        patch = tamper(scan, (20, 30, 30), (1, 1, 1), Inpainter(network, equalization), "inject")
        assert torch.isfinite(patch.values).all()

    @settings(deadline=None, max_examples=40)
    @given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 2**31))
    def test_rescale_equals_scipy_zoom(self, size_in, size_out, seed):
        cube = np.random.default_rng(seed).uniform(-1000, 1000, (size_in, 3, 2))
        expected = ndimage.zoom(cube, (size_out / size_in, 1, 1), order=3, mode="nearest")
        ours = rescale(torch.from_numpy(cube), expected.shape).numpy()
        assert expected.shape[0] == size_out
        assert np.abs(ours - expected).max() < 1e-6


class TestEqualization:
    def test_back_and_forth_within_the_table(self, equalization):
        hu = torch.linspace(-990, -300, 500, dtype=torch.float64)
        # Only where the training set has voxels is the table strictly increasing, so invert from the input side.
        x = equalization.to_network(hu)
        assert torch.allclose(equalization.to_network(equalization.to_hu(x)), x, atol=1e-9)

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.floats(-3000, 5000), min_size=1, max_size=50))
    def test_equals_numpy_interp(self, values):
        rng = np.random.default_rng(0)
        counts = np.where(rng.random(200) < 0.3, 0, rng.integers(0, 50, 200))  # with plateaus, at both ends too
        counts[:5] = counts[-5:] = 0
        bins = np.linspace(-1024, 3071, 200)
        cdf = np.cumsum(counts.astype(float))
        table = Equalization(bins, cdf, 0.0, 0.0, 1.0)
        forward = table.to_network(torch.tensor(values, dtype=torch.float64)).numpy()
        assert np.allclose(forward, np.interp(values, bins, cdf), atol=1e-9)
        inside = np.clip(np.asarray(values) / 10_000, -0.5, 0.5)
        narrow = Equalization(bins, cdf / cdf.max() - 0.5, 0.0, 0.0, 1.0)
        backward = narrow.to_hu(torch.from_numpy(inside)).numpy()
        assert np.allclose(backward, np.interp(inside, narrow.cdf, bins), atol=1e-6)

    def test_lung_is_more_sensitive_than_bone(self, equalization):
        hu = torch.tensor([-820.0, -20.0], dtype=torch.float64, requires_grad=True)
        equalization.to_network(hu).sum().backward()
        assert hu.grad[0] > 5 * hu.grad[1] > 0

    def test_a_table_of_whole_hu_leads_every_voxel(self):
        """Two of three of its bins are flat; between whole HU, where rescaling puts them, voxels must not be lost."""
        rng = np.random.default_rng(0)
        table = Equalization.from_cubes(rng.normal(-850, 60, (8, 4000)).round().clip(-1000, 2000).astype(np.int16))
        hu = torch.tensor(rng.uniform(-930, -770, 2000), requires_grad=True)
        forward = table.to_network(hu)
        expected = (np.interp(hu.detach().numpy(), table.bins, table.cdf) - table.mean) / (
            table.maximum - table.minimum
        )
        np.testing.assert_allclose(forward.detach().numpy(), expected, atol=1e-12)
        forward.sum().backward()
        assert (hu.grad > 0).all()
        rise = table.to_network(torch.tensor([-800.0, -900.0]))
        between = (hu > -900) & (hu < -800)
        assert hu.grad[between].mean().item() == pytest.approx((rise[0] - rise[1]).item() / 100, rel=0.05)
        values = torch.tensor(rng.uniform(-0.3, 0.3, 200), requires_grad=True)
        table.to_hu(values).sum().backward()
        assert (values.grad > 0).all()


class TestGradient:
    @pytest.mark.parametrize("action", ["inject", "remove"])
    def test_flows_from_attacked_hu_to_scan_hu(self, equalization, network, action):
        scan = torch.from_numpy(lung_like_scan((44, 60, 60))).double().requires_grad_()
        patch = tamper(scan, (22, 30, 30), (1.0, 1.0, 1.0), Inpainter(network, equalization), action)
        middle = tuple(slice(c - s - 4, c - s + 4) for c, s in zip((22, 30, 30), patch.start, strict=True))
        patch.values[middle].sum().backward()
        gradient = scan.grad.abs()
        shell = gradient[7:11, 20:40, 20:40]
        assert (shell > 0).float().mean() > 0.5, "the shell around the mask must reach the forged middle"
        assert torch.isfinite(gradient).all()

    @pytest.mark.slow
    def test_agrees_with_finite_differences(self, network):
        # A smooth table: a real one changes its slope at every bin, which no finite difference follows.
        bins = np.linspace(-1100, 500, 2000)
        equalization = Equalization(bins, 1 / (1 + np.exp(-(bins + 800) / 120)), 0.5, 0.0, 1.0)
        network = network.double()
        inpainter = Inpainter(lambda x: network(x.double()), equalization)
        scan = torch.from_numpy(lung_like_scan((40, 48, 48))).double()

        def response(hu: torch.Tensor) -> torch.Tensor:
            # Measured in the generator's input range, where no steep end of the table amplifies rounding.
            forged = forge_cube(hu, (20, 24, 24), (1, 1, 1), inpainter)
            return equalization.to_network(forged.values).sum()

        hu = scan.clone().requires_grad_()
        response(hu).backward()
        direction = hu.grad.sign()  # every voxel adds to the slope, so nothing cancels
        width = 0.05
        difference = (response(scan + width * direction) - response(scan - width * direction)) / (2 * width)
        network.float()
        assert hu.grad.abs().sum().item() == pytest.approx(difference.item(), rel=0.05)
