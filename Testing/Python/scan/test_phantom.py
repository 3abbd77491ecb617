import numpy as np
import pytest
from MITSGANLib.errors import InputError
from MITSGANLib.scan.phantom import PADDING_HU, SOURCE, thorax_phantom

SMALL = (24, 96, 96)


@pytest.fixture(scope="module")
def phantom():
    return thorax_phantom(SMALL, seed=3)


@pytest.mark.slow
def test_same_seed_same_voxels(phantom):
    again = thorax_phantom(SMALL, seed=3)
    assert np.array_equal(phantom.volume.hu, again.volume.hu)
    assert phantom.nodule_kji == again.nodule_kji
    other = thorax_phantom(SMALL, seed=4)
    assert not np.array_equal(phantom.volume.hu, other.volume.hu)


def test_says_that_it_is_synthetic(phantom):
    assert phantom.volume.provenance.source == SOURCE
    assert "synthetic" in SOURCE


@pytest.mark.slow
def test_geometry_spans_a_thorax_around_the_origin(phantom):
    volume = phantom.volume
    assert np.array(volume.spacing_kji) * SMALL == pytest.approx([240, 360, 360])
    middle = volume.voxel_to_lps([(size - 1) / 2 for size in SMALL])
    assert middle == pytest.approx([0, 0, 0], abs=1e-3)
    coarse = thorax_phantom((10, 40, 40), spacing_kji=(20, 8, 8.5))
    assert coarse.volume.spacing == (8.5, 8.0, 20.0)


@pytest.mark.slow
def test_nodule_is_where_it_says_and_nowhere_else():
    with_nodule, without = thorax_phantom(SMALL, noise_hu=0), thorax_phantom(SMALL, noise_hu=0, nodule=False)
    k, j, i = with_nodule.nodule_kji
    assert without.nodule_kji is None
    assert without.nodule_diameter_mm is None
    assert with_nodule.volume.hu[k, j, i] > -100
    assert without.volume.hu[k, j, i] < -700
    changed = np.argwhere(with_nodule.volume.hu != without.volume.hu)
    distance_mm = np.linalg.norm((changed - (k, j, i)) * with_nodule.volume.spacing_kji, axis=1)
    # Radius, 8 % of lobulation, and the blur of a voxel or two.
    assert distance_mm.max() < with_nodule.nodule_diameter_mm / 2 * 1.08 + 2.5 * max(with_nodule.volume.spacing_kji)


@pytest.mark.slow
@pytest.mark.parametrize("diameter_mm", [10, 24])
def test_nodule_has_the_volume_of_its_diameter(diameter_mm):
    options = {"noise_hu": 0, "nodule_diameter_mm": diameter_mm}
    with_nodule = thorax_phantom((48, 128, 128), **options).volume
    without = thorax_phantom((48, 128, 128), nodule=False, **options).volume
    added = (with_nodule.hu.astype(float) - without.hu).sum() / (30 - -860) * np.prod(with_nodule.spacing)
    assert added == pytest.approx(np.pi / 6 * diameter_mm**3, rel=0.15)


@pytest.mark.slow
def test_noise_is_added_alone_and_correlated():
    quiet, noisy = thorax_phantom(SMALL, noise_hu=0).volume.hu, thorax_phantom(SMALL, noise_hu=15).volume.hu
    tissue = (quiet > -500) & (quiet < 500)
    noise = (noisy.astype(float) - quiet)[tissue]
    assert noise.std() == pytest.approx(15, rel=0.05)
    assert abs(noise.mean()) < 0.5
    plane = noisy[12].astype(float) - quiet[12]
    neighbors = np.corrcoef(plane[:, 1:].ravel(), plane[:, :-1].ravel())[0, 1]
    far = np.corrcoef(plane[:, 8:].ravel(), plane[:, :-8].ravel())[0, 1]
    assert neighbors > 0.2
    assert abs(far) < 0.1


def test_tissues_have_plausible_shares_and_places():
    hu = thorax_phantom(SMALL, noise_hu=0).volume.hu
    voxel_liters = 10 * 3.75**2 * 1e-6
    lung = (hu > -950) & (hu < -700)
    middle = lung[8:20, 20:75]
    assert 2.0 < np.count_nonzero(middle) * voxel_liters < 6.0
    right, left = np.count_nonzero(lung[8:20, 20:75, :48]), np.count_nonzero(lung[8:20, 20:75, 48:])
    assert left < right < 1.6 * left  # the heart takes room on the patient's left
    assert 0.3 < np.count_nonzero(hu > 150) * voxel_liters < 1.5
    assert hu[:, 0].max() < -950
    spine = hu[:, 60:72, 44:52]
    assert np.count_nonzero(spine > 150) > 0.3 * spine.size
    assert hu[20, 50, 48] < -900  # trachea
    assert hu[2, 50, 30] > 0  # liver


def test_range_is_that_of_ct(phantom):
    assert phantom.volume.hu.min() >= -1024
    assert phantom.volume.hu.max() <= 3071


def test_padding_fills_the_outside_of_the_circle_only(phantom):
    padded = thorax_phantom(SMALL, seed=3, padding=True).volume
    outside = padded.hu == PADDING_HU
    assert padded.provenance.padding_hu == PADDING_HU
    assert phantom.volume.provenance.padding_hu is None
    assert outside.mean() == pytest.approx(1 - np.pi / 4, abs=0.02)
    assert np.array_equal(padded.hu[~outside], phantom.volume.hu[~outside])


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (4, 96, 96)},
        {"shape": (96, 96)},
        {"spacing_kji": (2.0, -1.0, 1.0)},
        {"noise_hu": -1.0},
        {"spacing_kji": (0.1, 0.1, 0.1)},
    ],
)
def test_what_cannot_hold_a_thorax_is_refused(options):
    with pytest.raises(InputError):
        thorax_phantom(**{"shape": (16, 32, 32), **options})
