import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from MITSGANLib.budget.body import body_mask
from MITSGANLib.budget.budget import Budget, allowed_change, allowed_in_slices, apply_change
from MITSGANLib.budget.noise import estimate_noise, hiding_noise, in_windows, local_noise
from MITSGANLib.errors import InputError, ModelError
from MITSGANLib.scan.phantom import PADDING_HU, thorax_phantom
from MITSGANLib.scan.windows import LUNG
from scipy import ndimage

SHAPE = (24, 128, 128)

voxels = hnp.arrays(np.int16, (2, 3, 4), elements=st.integers(-32768, 32767))
ct_voxels = hnp.arrays(np.int16, (2, 3, 4), elements=st.integers(-1100, 3100))
changes = st.sampled_from([np.float16, np.float32, np.float64]).flatmap(
    lambda dtype: hnp.arrays(dtype, (2, 3, 4), elements=st.floats(allow_nan=False, width=8 * np.dtype(dtype).itemsize))
)
masks = hnp.arrays(bool, (2, 3, 4))
strengths = st.one_of(st.integers(0, 60), st.floats(0, 4095))


def soft_tissue(noise_hu, sigma=0.0, shape=(3, 160, 160), seed=0):
    """Uniform soft tissue with noise of a standard deviation in HU and a correlation in voxels."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    noise = ndimage.gaussian_filter(noise, (0, sigma, sigma)) if sigma else noise
    return np.rint(40 + noise_hu * noise / noise.std()).astype(np.int16)


def lowest_ssim(plane, other):
    """Local SSIM of the worst voxel in the lung window, Gaussian weights, its border left out."""
    from skimage.metrics import structural_similarity

    shown = [LUNG.clipped(hu) for hu in (plane, other)]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": LUNG.width}
    return structural_similarity(*shown, full=True, **options)[1][8:-8, 8:-8].min()


# Noise ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_hu", [4, 20, 60])
@pytest.mark.parametrize(("sigma", "share"), [(0, 1.0), (0.5, 1.0), (1.0, 0.92)])
def test_noise_of_uniform_tissue(noise_hu, sigma, share):
    estimate = estimate_noise(soft_tissue(noise_hu, sigma))
    assert estimate.sd_hu == pytest.approx(share * noise_hu, rel=0.05)
    assert len(estimate.per_slice_hu) == 3


def test_noise_is_not_raised_by_anatomy():
    # A third of the picture is a coarse pattern of vessels, fat and bone.
    hu = soft_tissue(12)
    pattern = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(hu.shape), (0, 4, 4))
    hu[:, :, 100:] += np.rint(pattern[:, :, 100:] / pattern.std() * 120).astype(np.int16)
    assert estimate_noise(hu).sd_hu == pytest.approx(12, rel=0.07)


@pytest.mark.slow
@pytest.mark.parametrize("noise_hu", [8, 25])
def test_noise_of_a_phantom(noise_hu):
    volume = thorax_phantom((8, 256, 256), noise_hu=noise_hu).volume
    assert estimate_noise(volume.hu, volume.spacing_kji).sd_hu == pytest.approx(noise_hu, rel=0.12)


def test_noise_is_measured_per_slice():
    hu = np.concatenate([soft_tissue(5, shape=(1, 160, 160)), soft_tissue(15, shape=(1, 160, 160)), soft_tissue(0)])
    hu[2] = -900  # no soft tissue
    estimate = estimate_noise(hu)
    assert estimate.per_slice_hu[0] == pytest.approx(5, rel=0.06)
    assert estimate.per_slice_hu[1] == pytest.approx(15, rel=0.06)
    assert estimate.per_slice_hu[2] is None
    assert estimate.per_slice_hu[3:] == (0, 0)
    assert estimate_noise(hu[:1]).sd_hu == estimate.per_slice_hu[0] == estimate_noise(hu[0]).sd_hu


def test_noise_without_soft_tissue_is_none_and_json():
    estimate = estimate_noise(np.full((2, 64, 64), -1000, np.int16))
    assert estimate.sd_hu is None
    assert json.loads(json.dumps(estimate.to_dict(), allow_nan=False))["per_slice_hu"] == [None, None]


def test_noise_window_follows_the_spacing():
    hu = soft_tissue(10)
    assert estimate_noise(hu, (1, 0.5, 0.5)).window_voxels == 15
    assert estimate_noise(hu, (1, 3, 3)).window_voxels == 5


# Noise from place to place --------------------------------------------------------------------------------------------


def lung_and_soft_tissue(lung_hu, soft_hu, shape=(2, 160, 240)):
    """Lung on the left third, soft tissue on the right, each with noise of its own standard deviation in HU."""
    hu = soft_tissue(soft_hu, 0.5, shape).astype(float)
    third = shape[2] // 3
    hu[..., :third] = -850 + (hu[..., :third] - 40) * (lung_hu / soft_hu)
    return np.rint(hu).astype(np.int16)


@pytest.mark.parametrize("noise_hu", [4, 20, 60])
@pytest.mark.parametrize(("sigma", "share"), [(0, 0.85), (0.5, 0.8), (1.0, 0.6)])
def test_noise_map_of_uniform_tissue(noise_hu, sigma, share):
    noise = local_noise(soft_tissue(noise_hu, sigma)).at()
    assert noise.shape == (3, 160, 160)
    assert noise.dtype == np.float32
    # On the safe side for smooth noise, which a window of 5 mm does not hold in full.
    assert share * noise_hu < np.median(noise) < 1.05 * noise_hu
    assert np.abs(noise / np.median(noise) - 1).max() < 0.35


def test_noise_map_tells_lung_from_soft_tissue():
    noise = local_noise(lung_and_soft_tissue(30, 10)).at()
    assert np.median(noise[..., :50]) == pytest.approx(30, rel=0.12)
    assert np.median(noise[..., 120:]) == pytest.approx(10, rel=0.12)
    # The edge between them, of 890 HU, is no noise.
    assert noise.max() < 36


def test_noise_map_is_not_opened_by_vessels_and_edges():
    hu = lung_and_soft_tissue(20, 20, (1, 240, 240))
    plain = local_noise(hu).at()
    crowded = hu.copy()
    j, i = np.indices(hu.shape[1:])
    for row in range(8, 240, 24):  # vessels across and along, 800 HU brighter, five windows in nine
        crowded[0, (np.abs(j - row) <= 1) | (np.abs(i - row) <= 1)] += 800
    noise = local_noise(crowded).at()
    assert (noise / plain).max() < 1.5
    assert np.median(noise / plain) < 1.2


def test_noise_hides_a_change_also_where_a_sharp_scan_is_quiet():
    plane = soft_tissue(90, shape=(1, 160, 160))[0] - 700
    plane[60:90, 60:90] = np.rint((plane[60:90, 60:90] + 660) * 0.5 - 660)
    signs = np.random.default_rng(3).choice([-1, 1], plane.shape)
    everywhere = np.full(plane.shape, np.float32(90))
    seen = lowest_ssim(plane, plane + np.rint(0.18 * everywhere * signs))
    hidden = hiding_noise(plane, everywhere)
    assert seen < 0.97
    assert lowest_ssim(plane, plane + np.rint(0.18 * hidden * signs)) >= 0.98
    assert (hidden <= 90).all()
    assert np.median(hidden[:40, :40]) > 0.7 * 90, "where the noise is, it still counts"


def test_noise_of_smooth_kernels_hides_all_of_its_share():
    plane = soft_tissue(20, shape=(1, 64, 64))[0] - 700
    noise = np.full(plane.shape, np.float32(20))
    assert hiding_noise(plane, noise) is noise


def test_noise_that_hides_is_the_same_where_only_a_part_is_asked_for():
    plane = soft_tissue(60, shape=(1, 160, 160))[0] - 700
    noise = np.full(plane.shape, np.float32(20))
    noise[50:90, 30:120] = 90
    where = np.zeros(plane.shape, bool)
    where[60:80, 100:140] = True
    hidden, part = hiding_noise(plane, noise), hiding_noise(plane, noise, where)
    assert np.array_equal(part[where], hidden[where])
    assert (hidden[where] < noise[where]).any()
    assert np.array_equal(part[~where & (noise == 20)], noise[~where & (noise == 20)])
    assert hiding_noise(plane, noise, np.zeros_like(where)) is noise


def test_noise_map_is_smooth():
    noise = local_noise(lung_and_soft_tissue(30, 10, (1, 160, 240))).at()[0]
    for axis in (0, 1):
        assert np.abs(np.diff(np.log(noise), axis=axis)).max() < 0.06  # 6 % from voxel to voxel


def test_noise_map_leaves_out_padding_air_and_saturation():
    hu = soft_tissue(10, shape=(2, 160, 160))
    hu[0, :, 80:] = PADDING_HU
    hu[1, :, 80:] = 3071
    noise = local_noise(hu, None, PADDING_HU).at()
    assert np.median(noise[..., 70:80]) == pytest.approx(10, rel=0.15)
    for empty in (PADDING_HU, -1024, -1000, 3071):
        assert not local_noise(np.full((1, 80, 80), empty, np.int16), None, PADDING_HU).at().any()


@pytest.mark.parametrize("window", [3, 5, 7, 11])
@pytest.mark.parametrize("antisymmetric", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_sums_in_windows_are_those_of_scipy(window, antisymmetric, step):
    half = window // 2
    weights = (np.arange(-half, half + 1) / 7 if antisymmetric else np.full(window, 1 / window)).astype(np.float32)
    values = np.random.default_rng(window).normal(0, 300, (40, 33)).astype(np.float32)
    every = ndimage.correlate1d(values, weights, axis=0)
    # Processors that fuse multiplication and addition may round SciPy's sums in another way.
    np.testing.assert_allclose(in_windows(values, weights, step), every[half : 40 - half : step], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 3), (5, 6), (7, 40)])
def test_noise_map_of_small_slices(shape):
    noise = local_noise(soft_tissue(10, shape=(2, *shape))).at()
    assert noise.shape == (2, *shape)
    assert np.isfinite(noise).all()


@pytest.fixture(scope="module")
def noise_of_padded(padded):
    return local_noise(padded.hu[:3], padded.spacing_kji, PADDING_HU)


@settings(deadline=None)
@given(st.data())
def test_noise_of_a_voxel_does_not_depend_on_the_box(noise_of_padded, data):
    box = []
    for size in noise_of_padded.shape:
        start = data.draw(st.integers(0, size - 1))
        box.append(slice(start, data.draw(st.integers(start + 1, size))))
    assert np.array_equal(noise_of_padded.at(tuple(box)), noise_of_padded.at()[tuple(box)])


# Body mask ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def padded():
    return thorax_phantom(SHAPE, padding=True).volume


@pytest.fixture(scope="module")
def mask(padded):
    return body_mask(padded.hu, PADDING_HU, padded.spacing_kji)


def ellipse(volume):
    """The phantom's trunk, from the middle of its wall outwards to 20 mm beyond its skin: (inside, outside)."""
    j, i = np.indices(volume.shape[1:])
    y, x = (j - 63.5) * volume.spacing_kji[1], (i - 63.5) * volume.spacing_kji[2]
    radius = (np.abs(x / 158) ** 2.5 + np.abs((y + 8) / 112) ** 2.5) ** 0.4
    return radius < 0.95, radius > 1.2


def test_body_holds_patient_with_lungs_and_no_air_around(padded, mask):
    inside, outside = ellipse(padded)
    assert mask[:, inside].mean() == 1.0
    assert not mask[:, outside].any()
    assert padded.hu[mask].min() >= -1024


def test_table_is_not_body(padded, mask):
    j = np.arange(SHAPE[1])
    table = (j - 63.5) * padded.spacing_kji[1] > 108
    assert padded.hu[:, table, 64].max() > -400  # its shell is there
    assert not mask[:, table].any()


def test_table_that_touches_the_patient_is_not_body(padded):
    hu = padded.hu.copy()
    plate = slice(100, 103)  # 8 mm thick, from the skin of the back, at 104 mm, downwards; as wide as the picture
    hu[:, plate] = np.where(hu[:, plate] == PADDING_HU, PADDING_HU, 120)
    mask = body_mask(hu, PADDING_HU, padded.spacing_kji)
    assert (hu[:, plate, 20:28] == 120).all()
    assert not mask[:, plate, 20:28].any()
    assert mask[:, ellipse(padded)[0]].all()


@pytest.mark.parametrize("padding_hu", [PADDING_HU, None, 40])
def test_padding_is_never_body(padded, padding_hu):
    mask = body_mask(padded.hu, padding_hu, padded.spacing_kji)
    assert mask.any()
    assert not mask[padded.hu == PADDING_HU].any()
    assert not mask[padded.hu == padding_hu].any()


def test_lung_that_the_field_of_view_opens_is_body(padded):
    j, i = np.indices(padded.shape[1:])
    hu = padded.hu.copy()
    # A circle of 115 mm: the lungs reach out to 130 mm, so the chest wall at both sides is cut off.
    outside = ((j - 63.5) ** 2 + (i - 63.5) ** 2) * padded.spacing_kji[1] ** 2 > 115**2
    hu[:, outside] = PADDING_HU
    lung = (hu > -950) & (hu < -700) & (np.abs(j - 60) < 25)
    next_to_padding = ndimage.binary_dilation(outside, iterations=2) & ~outside
    opened = (lung & next_to_padding).sum(axis=(1, 2)) > 10
    assert opened.sum() >= 5
    mask = body_mask(hu, PADDING_HU, padded.spacing_kji)
    assert mask[opened][lung[opened]].mean() > 0.98
    assert not mask[:, outside].any()


@pytest.mark.slow
def test_mask_without_spacing_and_in_other_sizes(padded, mask):
    assert np.array_equal(body_mask(padded.hu, PADDING_HU), mask)
    cut = padded.hu[:, 1:-2, 3:]  # sizes that no block divides
    spacing = padded.spacing_kji
    partial = body_mask(cut, PADDING_HU, spacing)
    assert partial.shape == cut.shape
    assert np.mean(partial != mask[:, 1:-2, 3:]) < 0.01
    fine = thorax_phantom((8, 300, 300)).volume  # blocks of two voxels
    inner = body_mask(fine.hu, None, fine.spacing_kji)
    assert inner[:, 140, 60:240].all()
    assert not inner[:, :30].any()


def test_each_slice_has_its_mask_alone(padded, mask):
    for k in (0, 7, 23):
        assert np.array_equal(body_mask(padded.hu[k : k + 1], PADDING_HU, padded.spacing_kji)[0], mask[k])
    shuffled = np.random.default_rng(0).permutation(len(padded.hu))
    assert np.array_equal(body_mask(padded.hu[shuffled], PADDING_HU, padded.spacing_kji), mask[shuffled])


def test_slice_with_a_table_alone_has_no_body(padded):
    hu = np.full((1, 128, 128), -1000, np.int16)
    hu[:, 100:104, 58:70] = 120  # a bar of 11 x 34 mm
    assert not body_mask(hu, None, padded.spacing_kji).any()


def test_no_body_in_air():
    assert not body_mask(np.full((3, 64, 64), -1000, np.int16)).any()
    assert not body_mask(np.full((3, 64, 64), PADDING_HU, np.int16), PADDING_HU).any()


def test_patient_that_fills_the_picture_is_all_body():
    assert body_mask(soft_tissue(10)).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="3-D"):
        body_mask(np.zeros((2, 2, 2, 2), np.int16))


# Budget ---------------------------------------------------------------------------------------------------------------


def line(low=-1100, high=3100):
    hu = np.arange(low, high, dtype=np.int16)
    return hu, np.ones(hu.shape, bool)


def test_allowed_change_by_tissue():
    hu = np.array([-1025, -1024, -900, -600, 40, 1000, 3071, 3072], np.int16)
    allowed = allowed_change(hu, Budget(20), np.ones(hu.shape, bool))
    assert allowed.tolist() == [0, 0, 20, 20, 6, 6, 0, 0]
    assert allowed.dtype == np.int16


def test_allowed_change_never_exceeds_a_strength_between_integers():
    hu, mask = line()
    allowed = allowed_change(hu, Budget(7.9), mask)
    assert allowed.max() == 7
    assert allowed[hu == 40] == 2  # 0.3 of 7.9


def test_allowed_change_has_no_steps_between_tissues():
    hu, mask = line()
    allowed = allowed_change(hu, Budget(20, soft_tissue=0.1, bone=0.5), mask)
    assert np.abs(np.diff(allowed)).max() == 1
    assert allowed.max() == 20


def test_change_stays_within_12_bits():
    hu, mask = line(-1023, 3071)
    allowed = allowed_change(hu, Budget(4000, 1, 1, 1), mask)
    assert (hu - allowed).min() >= -1023
    assert (hu + allowed).max() <= 3070


@pytest.mark.parametrize("padding_hu", [-2000, -1024, -1000, 0])
def test_padding_is_untouched_and_never_reached(padding_hu):
    hu, mask = line()
    allowed = allowed_change(hu, Budget(20, 1, 1, 1), mask, padding_hu)
    assert not allowed[hu == padding_hu].any()
    others = hu != padding_hu
    for direction in (-1.0, 1.0):
        result = apply_change(hu, np.full(hu.shape, direction * np.inf), allowed)
        assert not np.any(result[others] == padding_hu)


@pytest.mark.slow
@settings(deadline=None)
@given(ct_voxels, changes, masks, strengths, st.one_of(st.none(), st.integers(-1100, 200)))
def test_bound_holds_for_any_change(hu, change, mask, strength, padding_hu):
    allowed = allowed_change(hu, Budget(strength), mask, padding_hu)
    result = apply_change(hu, change, allowed)
    moved = result.astype(int) - hu
    assert result.dtype == np.int16
    assert np.all(np.abs(moved) <= allowed)
    assert allowed.max() <= strength
    assert not moved[~mask].any()
    assert not moved[(hu <= -1024) | (hu >= 3071)].any()
    if padding_hu is not None:
        assert np.array_equal(result == padding_hu, hu == padding_hu)
    assert np.array_equal(result, apply_change(hu, change, allowed))


@pytest.mark.slow
@settings(deadline=None)
@given(
    ct_voxels,
    changes,
    masks,
    strengths,
    st.floats(0, 5),
    hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(width=32)),
)
def test_bound_holds_for_any_noise(hu, change, mask, strength, share, noise):
    budget = Budget(strength, noise_share=share)
    allowed = allowed_change(hu, budget, mask, None, noise)
    moved = apply_change(hu, change, allowed).astype(int) - hu
    # What is not a number of HU, or negative, allows nothing.
    with np.errstate(invalid="ignore"):
        most = np.nan_to_num(share * noise.astype(float), nan=0.0, posinf=np.inf).clip(0)
    assert np.all(np.abs(moved) <= most + 1e-9)
    assert np.all(np.abs(moved) <= strength)
    assert not moved[~mask].any()
    # No less than what both bounds allow.
    both = np.minimum(allowed_change(hu, Budget(strength), mask), np.floor(np.minimum(most + 1e-9, 4095)))
    assert np.array_equal(allowed, both)


@pytest.mark.slow
@settings(deadline=None)
@given(voxels, changes, hnp.arrays(np.int16, (2, 3, 4), elements=st.integers(0, 32767)))
def test_bound_holds_for_any_allowance_and_voxel(hu, change, allowed):
    result = apply_change(hu, change, allowed).astype(int)
    assert np.all(np.abs(result - hu) <= allowed)
    inside = (hu > -1024) & (hu < 3071)
    assert np.array_equal(result[~inside], hu[~inside])
    assert np.all((result[inside] > -1024) & (result[inside] < 3071))


@settings(deadline=None)
@given(ct_voxels, masks, strengths, strengths)
def test_more_strength_never_allows_less(hu, mask, first, second):
    weak, strong = sorted((first, second))
    assert np.all(allowed_change(hu, Budget(weak), mask) <= allowed_change(hu, Budget(strong), mask))


def test_small_changes_are_rounded_to_the_nearest_integer():
    hu = np.zeros(6, np.int16)
    change = np.array([0.4, 0.6, -0.6, 2.5, 9.0, -9.0])
    assert apply_change(hu, change, np.full(6, 5, np.int16)).tolist() == [0, 1, -1, 2, 5, -5]


def test_slabs_give_what_the_whole_gives(padded, mask):
    random = np.random.default_rng(0)
    change = random.normal(0, 15, padded.shape).astype(np.float32)
    budget = Budget()
    whole = apply_change(padded.hu, change, allowed_change(padded.hu, budget, mask, PADDING_HU))
    parts = [
        apply_change(padded.hu[k], change[k], allowed_change(padded.hu[k], budget, mask[k], PADDING_HU))
        for k in (slice(0, 5), slice(5, 6), slice(6, 24))
    ]
    assert np.array_equal(np.concatenate(parts), whole)
    assert 3 < np.std((whole.astype(int) - padded.hu)[mask]) < 15
    assert np.array_equal(whole[~mask], padded.hu[~mask])


@pytest.mark.parametrize("noise_share", [None, 0.4])
def test_part_of_a_series_gives_what_the_whole_gives(padded, noise_share):
    budget = Budget(20, noise_share=noise_share)
    whole = allowed_in_slices(padded.hu, budget, padded.spacing_kji, PADDING_HU)
    assert whole.max() > 4
    for part in (slice(0, 1), slice(5, 9), slice(23, 24)):
        alone = allowed_in_slices(padded.hu[part], budget, padded.spacing_kji, PADDING_HU)
        assert np.array_equal(alone, whole[part])


@pytest.mark.slow
def test_budget_follows_the_noise_of_the_scan():
    quiet, loud = (thorax_phantom((8, 128, 128), noise_hu=noise).volume for noise in (8, 24))
    budget = Budget(60, 1, 1, 1, noise_share=0.5)
    medians = [
        np.median(allowed[allowed > 0])
        for allowed in (allowed_in_slices(one.hu, budget, one.spacing_kji) for one in (quiet, loud))
    ]
    assert medians[0] == pytest.approx(4, abs=1)
    assert medians[1] == pytest.approx(12, abs=2)


def test_noise_must_be_there_and_fit():
    hu, mask = np.zeros((2, 2), np.int16), np.ones((2, 2), bool)
    for wrong in (None, np.ones((2, 3))):
        with pytest.raises(InputError, match="local_noise"):
            allowed_change(hu, Budget(noise_share=0.3), mask, None, wrong)


def test_nan_is_refused():
    hu, allowed = np.zeros((2, 2), np.int16), np.ones((2, 2), np.int16)
    with pytest.raises(ModelError, match="NaN"):
        apply_change(hu, np.array([[0, np.nan], [0, 0]]), allowed)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((np.zeros(3), np.zeros(3), np.zeros(3, np.int16)), "int16"),
        ((np.zeros(3, np.int16), np.zeros(2), np.zeros(3, np.int16)), "same shape"),
        ((np.zeros(3, np.int16), np.zeros(3), np.zeros(3)), "whole HU"),
        ((np.zeros(3, np.int16), np.zeros(3), np.full(3, -1, np.int16)), "not negative"),
    ],
)
def test_wrong_arguments_are_refused(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        apply_change(*arguments)


def test_mask_must_fit():
    hu = np.zeros((2, 2), np.int16)
    for wrong in (np.ones((2, 3), bool), np.ones((2, 2), np.uint8)):
        with pytest.raises(InputError, match="mask"):
            allowed_change(hu, Budget(), wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"strength_hu": -1},
        {"strength_hu": float("nan")},
        {"strength_hu": 5000},
        {"lung": 1.1},
        {"bone": -0.1},
        {"noise_share": -0.1},
        {"noise_share": float("inf")},
    ],
)
def test_impossible_budgets_are_refused(options):
    with pytest.raises(InputError):
        Budget(**options)


def test_budget_is_json():
    assert json.loads(json.dumps(Budget(12).to_dict())) == {
        "strength_hu": 12,
        "lung": 1,
        "soft_tissue": 0.3,
        "bone": 0.3,
    }
    assert json.loads(json.dumps(Budget(12, noise_share=0.3).to_dict()))["noise_share"] == 0.3


@given(strength=st.floats(1, 100), share=st.none() | st.floats(0, 2), wanted=st.floats(0, 400))
def test_a_budget_is_scaled_as_a_whole(strength, share, wanted):
    scaled = Budget(strength, noise_share=share).at_strength(wanted)
    assert scaled.strength_hu == wanted
    if share is None:
        assert scaled.noise_share is None
    else:
        assert scaled.noise_share * strength == pytest.approx(share * wanted)


def test_a_budget_of_nothing_cannot_be_scaled():
    with pytest.raises(InputError, match="cannot be scaled"):
        Budget(0.0, noise_share=0.25).at_strength(10)
