"""CT-GAN's own noise in what it paints: removals leave it in whole regions, injections in dense tissue alone."""

from __future__ import annotations

import dataclasses
import math

import copy_suite
import numpy as np
import pytest
from MITSGANLib.attack.attacker import load_attacker, simulate_attack
from MITSGANLib.examination.blocks import Blocks
from MITSGANLib.examination.examiner import TOUCH_UP, examine
from MITSGANLib.examination.noise import fine_kernel, residual
from MITSGANLib.examination.touch_up import TouchUp, find_touch_up
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.regions import NOISE_SOURCE
from MITSGANLib.scan.volume import CTVolume, Provenance
from MITSGANTrainingLib.evaluation.fidelity import jpeg2000
from scipy import ndimage

Voxel = tuple[int, int, int]

pytestmark = pytest.mark.slow


def sought(volume: CTVolume, *, is_lossy: bool = False) -> TouchUp | None:
    blocks = Blocks.of(volume)
    kernel = fine_kernel(volume)
    return find_touch_up(blocks, residual(volume, kernel), kernel, is_lossy=is_lossy)


@pytest.fixture(scope="module")
def scan() -> CTVolume:
    """As the other tests' scan, with voxels so small that a nodule has hundreds of them."""
    bare = thorax_phantom(shape=(40, 320, 320), spacing_kji=(2.5, 0.8, 0.8), seed=3, noise_hu=0.0).volume
    noise = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal(bare.shape), (0.4, 0.7, 0.7))
    return bare.with_hu(np.clip(np.rint(bare.hu + 30 * noise / noise.std()), -1024, 3071).astype(np.int16))


@pytest.fixture(scope="module")
def place(scan: CTVolume) -> Voxel:
    return lung_positions(scan, 1, 4, margin_mm=30.0)[0]


@pytest.fixture(scope="module")
def injected(scan: CTVolume, place: Voxel) -> CTVolume:
    """A nodule in a scan that was never protected, of which nothing says so."""
    forged = simulate_attack(scan, place, "inject", attacker=load_attacker("unet-attention", "inject"))
    return dataclasses.replace(forged, provenance=Provenance())


def alarms(volume: CTVolume, found: TouchUp) -> float:
    """Share of the lungs that would be an alarm where one asks."""
    return float(np.mean(found.dense[Blocks.of(volume).lungs] >= 1))


def test_in_an_untouched_scan_there_is_none(scan):
    found = sought(scan)
    assert not found.copies
    assert alarms(scan, found) < 0.005


@pytest.mark.parametrize("slices", [6, 12, 13])
def test_few_slices_end_within_what_is_copied(scan, slices):
    part = dataclasses.replace(scan, hu=scan.hu[20 - slices // 2 :][:slices])
    assert not sought(part).copies


def test_an_added_nodule_is_listed_where_it_is_with_the_source_of_its_noise(injected, place):
    (copy,) = sought(injected).copies
    assert copy.by_touch_up
    assert copy.kji == place
    source = [int(size * share) for size, share in zip(injected.shape, (0.5, 0.43, 0.27), strict=True)]
    assert copy.source_kji == tuple(source)


@pytest.mark.usefixtures("on_its_grid")
def test_the_examination_says_so_without_any_watermark(injected, place):
    examination = examine(injected, with_judge=False)
    assert TOUCH_UP in {one.kind for listed in examination.verdict.places for one in listed.evidence}
    assert TOUCH_UP in {one.kind for one in examination.at(place).evidence if one.strength >= 1}


@pytest.mark.parametrize("name", ["Gaussian of 0.5 voxel", "10 HU more noise"])
def test_it_outlives_what_copies_go_through(scan, injected, place, name):
    change = copy_suite.COPIES[name]
    found = sought(change(injected).volume)
    block = Blocks.of(injected).block_of(place)
    assert found.dense[block] >= 1
    untouched = sought(change(scan).volume)
    assert not untouched.copies
    assert alarms(scan, untouched) < 0.005


def test_it_outlives_lossy_compression(scan, injected, place):
    def lossy(volume: CTVolume) -> TouchUp:
        return sought(volume.with_hu(np.stack([jpeg2000(plane, 5.0) for plane in volume.hu])), is_lossy=True)

    found = lossy(injected)
    assert found.dense[Blocks.of(injected).block_of(place)] >= 1
    assert not lossy(scan).copies


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_with_lung_only_at_the_border_of_its_source_dense_tissue_tells_nothing():
    scan = thorax_phantom((120, 256, 256), spacing_kji=(1.25, 1.3, 1.3)).volume
    hu, reach_mm = scan.hu.copy(), 16.0
    middle = [int(size * share) for size, share in zip(hu.shape, NOISE_SOURCE, strict=True)]
    reach = [math.ceil(reach_mm / edge) for edge in scan.spacing_kji]
    box = tuple(slice(at - n, at + n + 1) for at, n in zip(middle, reach, strict=True))
    hu[box] = np.maximum(hu[box], -700)
    assert not sought(dataclasses.replace(scan, hu=hu)).dense.any()


def test_without_lung_at_its_source_it_is_not_sought(scan):
    hu = scan.hu.copy()
    hu[:, :, : int(0.5 * hu.shape[2])] = np.maximum(hu[:, :, : int(0.5 * hu.shape[2])], 0)
    assert sought(scan.with_hu(hu)) is None
