import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from MITSGANLib.errors import InputError, TargetError
from MITSGANLib.measure.lpips_distance import LpipsUnavailable
from MITSGANLib.measure.metrics import compare, ssim_map
from MITSGANLib.scan.regions import Region, cube_around, regions_at
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.scan.windows import LUNG, MEDIASTINUM
from skimage.metrics import structural_similarity


def pair(shape=(4, 40, 48), seed=0, change_hu=15.0):
    random = np.random.default_rng(seed)
    reference = random.normal(-700, 250, shape).astype(np.int16)
    other = reference + np.rint(random.normal(0, change_hu, shape)).astype(np.int16)
    return reference, other


def skimage_ssim(first, second, data_range):
    return structural_similarity(
        first.astype(np.float64),
        second.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=data_range,
    )


class MeanAbsolute:
    """Stands in for LPIPS: the mean absolute difference of the pictures it was given, which it keeps."""

    description = "stand-in"

    def __init__(self):
        self.pictures = []

    def distance(self, reference, other):
        self.pictures.append((reference, other))
        return float(np.mean(np.abs(reference - other)))


def test_values_of_a_constant_shift():
    reference, _ = pair()
    other = reference + np.int16(8)
    result = compare(reference, other)
    assert result.rmse.value == 8
    assert result.mean_bias.value == 8
    assert compare(other, reference).mean_bias.value == -8
    assert result.max_abs_difference.value == 8
    assert result.psnr.value == pytest.approx(54.19, abs=0.01)  # evaluation.md, table of section 4.2: 8 HU is 54.2 dB
    assert result.data_range_hu == 4096


def test_values_against_plain_formulas():
    reference, other = pair()
    difference = other.astype(float) - reference
    result = compare(reference, other)
    assert result.rmse.value == pytest.approx(np.sqrt(np.mean(difference**2)), rel=1e-12)
    assert result.psnr.value == pytest.approx(20 * np.log10(4096 / result.rmse.value), rel=1e-12)
    assert result.mean_bias.value == pytest.approx(difference.mean(), abs=1e-12)
    assert result.max_abs_difference.value == np.abs(difference).max()
    assert result.rmse.per_slice == pytest.approx(np.sqrt((difference**2).mean(axis=(1, 2))))
    assert result.mean_bias.per_slice == pytest.approx(difference.mean(axis=(1, 2)), abs=1e-12)


@pytest.mark.parametrize("change_hu", [0.6, 15.0, 400.0])
def test_ssim_equals_skimage(change_hu):
    reference, other = pair(change_hu=change_hu)
    expected = [skimage_ssim(a, b, 4096) for a, b in zip(reference, other, strict=True)]
    result = compare(reference, other)
    assert result.ssim.per_slice == pytest.approx(expected, abs=1e-6)
    assert result.ssim.value == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize("offset", [-1000, 0, 3000])
def test_local_ssim_of_a_small_change_is_exact_to_two_millionths(offset):
    """Squares of sums need more digits than 32 bits have; what is lost must not show."""
    rng = np.random.default_rng(3)
    reference = (rng.normal(0, 300, (64, 64)).cumsum(axis=0) / 8 + offset).round()
    other = reference + rng.integers(-2, 3, reference.shape)
    _, local = structural_similarity(
        reference, other, data_range=400, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert ssim_map(reference, other, 400) == pytest.approx(local[5:-5, 5:-5], abs=2e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 39), st.integers(0, 29), st.integers(1, 12), st.integers(1, 12))
def test_ssim_of_a_small_change_is_that_of_the_whole_slice(j, i, height, width):
    """It is computed around the change alone."""
    reference, _ = pair(shape=(1, 40, 30))
    other = reference.copy()
    other[0, j : j + height, i : i + width] += 150
    expected = ssim_map(reference[0], other[0]).mean(dtype=float)
    assert compare(reference, other).ssim.value == pytest.approx(expected, abs=1e-6)


def test_windowed_ssim_equals_skimage_on_the_picture():
    reference, other = pair()
    result = compare(reference, other, windows=(LUNG, MEDIASTINUM))
    expected = np.mean([skimage_ssim(LUNG.scaled(a), LUNG.scaled(b), 1) for a, b in zip(reference, other, strict=True)])
    lung = result.metrics["ssim_lung"]
    assert lung.value == pytest.approx(expected, abs=1e-6)
    assert lung.window == LUNG
    assert "1500 HU" in lung.definition
    assert set(result.metrics) >= {"ssim_lung", "ssim_mediastinum"}


def test_ssim_of_exchanged_arguments_is_equal():
    reference, other = pair()
    assert ssim_map(reference[0], other[0]) == pytest.approx(ssim_map(other[0], reference[0]), abs=1e-6)


def test_identical_volumes():
    reference, _ = pair()
    result = compare(reference, reference.copy())
    assert result.psnr.value is None
    assert result.psnr.reason == "identical"
    assert result.psnr.worst_slice is None
    assert result.ssim.value == 1
    assert result.rmse.value == 0
    json.dumps(result.to_dict(), allow_nan=False)


def test_worst_slice_is_named_with_its_index_in_the_volume():
    reference, _ = pair(shape=(6, 30, 30))
    other = reference.copy()
    other[2] += 3
    other[4] -= 40
    result = compare(reference, other, region=Region(1, 6, 2, 28, 2, 28, "part"), lpips=MeanAbsolute())
    for metric in result.metrics.values():
        assert metric.worst_slice.slice == 4, metric.name
    assert result.mean_bias.worst_slice.value == -40
    assert result.psnr.worst_slice.value == pytest.approx(20 * math.log10(4096 / 40))
    assert result.psnr.per_slice[0] is None
    assert result.rmse.slices == (1, 2, 3, 4, 5)


def test_worst_tile_lies_where_the_change_is():
    reference, _ = pair(shape=(3, 120, 120))
    other = reference.copy()
    other[1, 70:80, 20:30] += 900
    tile = compare(reference, other).ssim.worst_tile
    assert tile.region.k0 == 1
    assert tile.region.j0 <= 75 < tile.region.j1
    assert tile.region.i0 <= 25 < tile.region.i1
    local = ssim_map(reference[1], other[1])
    j, i = slice(tile.region.j0 - 5, tile.region.j1 - 5), slice(tile.region.i0 - 5, tile.region.i1 - 5)
    assert tile.value == pytest.approx(local[j, i].mean())


def test_region_equals_the_cut_out_volume():
    reference, other = pair()
    region = Region(1, 3, 5, 30, 10, 40, "target square")
    inside = compare(reference, other, region=region, lpips=MeanAbsolute())
    cut = compare(reference[region.index], other[region.index], lpips=MeanAbsolute())
    for name, metric in inside.metrics.items():
        assert metric.value == cut.metrics[name].value
        assert "target square" in metric.definition
    assert inside.to_dict()["region"]["name"] == "target square"


def test_region_too_small_for_ssim_and_lpips_gives_reasons_instead_of_values():
    reference, other = pair()
    result = compare(reference, other, region=Region(0, 2, 0, 10, 0, 40), windows=(LUNG,), lpips=MeanAbsolute())
    for name in ("ssim", "ssim_lung", "lpips"):
        metric = result.metrics[name]
        assert metric.value is None
        assert "10x40" in metric.reason
        assert metric.per_slice == ()
    assert result.rmse.value > 0
    json.dumps(result.to_dict(), allow_nan=False)


def test_ssim_of_one_position_is_its_formula():
    reference, other = pair(shape=(1, 11, 11), change_hu=100)
    offset = np.arange(-5, 6)
    weights = np.exp(-(offset**2) / (2 * 1.5**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    x, y = reference[0].astype(float), other[0].astype(float)
    ux, uy = (weights * x).sum(), (weights * y).sum()
    vx, vy = (weights * (x - ux) ** 2).sum(), (weights * (y - uy) ** 2).sum()
    covariance = (weights * (x - ux) * (y - uy)).sum()
    c1, c2 = (0.01 * 4096) ** 2, (0.03 * 4096) ** 2
    expected = (2 * ux * uy + c1) * (2 * covariance + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    assert compare(reference, other).ssim.value == pytest.approx(expected, abs=1e-6)


def test_single_slice_is_accepted():
    reference, other = pair()
    assert compare(reference[0], other[0]).rmse.value == compare(reference[:1], other[:1]).rmse.value


def test_lpips_sees_the_lung_window_of_the_chosen_slices():
    reference, other = pair(shape=(5, 30, 30))
    network = MeanAbsolute()
    result = compare(reference, other, lpips=network, lpips_slices=[3, 1])
    assert result.lpips.slices == (1, 3)
    assert len(network.pictures) == 2
    picture = network.pictures[0][0]
    assert picture == pytest.approx((np.clip(reference[1], -1350, 150) + 600) / 750)
    assert result.lpips.value == pytest.approx(np.mean(result.lpips.per_slice))
    assert "lung window -600/1500 HU" in result.lpips.definition
    assert "stand-in" in result.lpips.definition


def test_lpips_missing_is_null_with_the_reason():
    reference, other = pair()
    assert compare(reference, other).lpips.reason == "not asked for"
    result = compare(reference, other, lpips=LpipsUnavailable("no weights here"))
    assert result.lpips.value is None
    assert result.lpips.reason == "no weights here"
    assert compare(reference, other, lpips=MeanAbsolute(), lpips_slices=()).lpips.reason == "no slice was asked for"


def test_per_slice_values_can_be_left_out():
    reference, other = pair()
    result = compare(reference, other, per_slice=False)
    assert result.rmse.per_slice == ()
    assert result.rmse.worst_slice is not None


def test_result_is_json_with_its_definitions():
    reference, other = pair()
    other[1] = reference[1]
    document = json.loads(json.dumps(compare(reference, other, windows=(LUNG,)).to_dict(), allow_nan=False))
    assert document["data_range_hu"] == 4096
    assert document["axis_order"] == "slice, row, column"
    assert document["metrics"]["psnr"]["per_slice"][1] is None
    assert document["metrics"]["ssim_lung"]["window"] == {"center": -600, "width": 1500, "name": "lung"}
    for metric in document["metrics"].values():
        assert "whole volume, 4 slices" in metric["definition"]


def test_progress_counts_slices_and_may_stop_the_work():
    reference, other = pair()
    calls = []
    compare(reference, other, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(reference, other, progress=stop)


def test_geometry_must_agree():
    reference, other = pair()
    first = CTVolume(reference, spacing=(0.7, 0.7, 2.5))
    assert compare(first, CTVolume(other, spacing=(0.7, 0.7, 2.5))).rmse.value > 0
    with pytest.raises(InputError, match="spacing"):
        compare(first, CTVolume(other, spacing=(0.7, 0.7, 2.0)))
    with pytest.raises(InputError, match="shape"):
        compare(reference, other[:2])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"region": Region(0, 9, 0, 5, 0, 5)}, "leaves the volume"),
        ({"data_range": 0}, "data range"),
        ({"lpips": MeanAbsolute(), "lpips_slices": [7]}, "LPIPS was asked for slices outside 0..3"),
    ],
)
def test_wrong_options_are_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        compare(*pair(), **options)


def test_values_that_are_not_finite_are_refused():
    reference = np.zeros((1, 12, 12))
    broken = reference.copy()
    broken[0, 3, 3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        compare(reference, broken)


@pytest.mark.parametrize("bounds", [(0, 0, 0, 1, 0, 1), (-1, 2, 0, 1, 0, 1), (0, 1, 5, 3, 0, 1)])
def test_empty_or_negative_regions_are_refused(bounds):
    with pytest.raises(InputError, match="bounds"):
        Region(*bounds)


def test_cube_and_square_around_a_target():
    scan = CTVolume(np.zeros((133, 512, 512), np.int16), (0.703, 0.703, 2.5))
    cube = cube_around(scan, (60, 200, 300))
    assert cube.shape == (13, 46, 46)  # round(32 / spacing), as CT-GAN cuts
    assert (cube.k0, cube.j0, cube.i0) == (54, 177, 277)
    square = regions_at(scan, (60, 200, 300)).square
    assert square.shape == (1, 46, 46)
    assert square.k0 == 60
    small = CTVolume(np.zeros((20, 64, 64), np.int16))
    clipped = cube_around(small, (2, 60, 10))
    assert (clipped.k0, clipped.k1) == (0, 18)
    assert (clipped.j0, clipped.j1) == (44, 64)
    with pytest.raises(TargetError, match="outside"):
        cube_around(small, (20, 5, 5))


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.int16, (2, 2, 12, 12), elements=st.integers(-32768, 32767)))
def test_relations_hold_for_any_int16_voxels(volumes):
    reference, other = volumes
    result = compare(reference, other)
    assert abs(result.mean_bias.value) <= result.rmse.value * (1 + 1e-9)
    assert result.rmse.value <= result.max_abs_difference.value * (1 + 1e-9)
    assert -1 - 1e-9 <= result.ssim.value <= 1
    assert (result.psnr.value is None) == np.array_equal(reference, other)
    json.dumps(result.to_dict(), allow_nan=False)
