"""Copies whose axes were permuted or flipped are examined as the scan was, and told of in their own voxels."""

from __future__ import annotations

import dataclasses
import itertools

import copy_suite
import forgeries
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.examination.examiner import CHANGED, Examination, examine
from MITSGANLib.examination.placement import Placement
from MITSGANLib.examination.verdict import Outcome
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import CTVolume, Provenance
from MITSGANLib.watermark.pattern import OPEN_KEY
from MITSGANLib.watermark.regridding import Regridding

Voxel = tuple[int, int, int]


@pytest.fixture(scope="module")
def scan() -> CTVolume:
    return thorax_phantom(shape=(28, 200, 200), spacing_kji=(3.0, 1.5, 1.5), seed=3, noise_hu=20.0).volume


@pytest.fixture(scope="module")
def place(scan: CTVolume) -> Voxel:
    return lung_positions(scan, 1, 4, margin_mm=30.0)[0]


def painted(volume: CTVolume, kji: Voxel) -> CTVolume:
    rng = np.random.default_rng(0)
    forged = forgeries.forge(volume, [kji], lambda v, k: forgeries.paint(v, k, 0, rng))
    return dataclasses.replace(forged, provenance=Provenance())


def tells_of(examination: Examination, copy: CTVolume, kji: Voxel) -> None:
    """Places, the place asked about, and the map are of the copy as it is stored."""
    verdict = examination.verdict
    assert verdict.outcome is Outcome.CHANGED
    away = [np.linalg.norm(np.subtract(one.kji, kji) * copy.spacing_kji) for one in verdict.places]
    assert min(away) < 10
    nearest = verdict.places[int(np.argmin(away))]
    assert nearest.lps_mm == pytest.approx(copy.voxel_to_lps(nearest.kji), abs=0.1)
    assert all(copy.contains(one.kji) for one in verdict.places)
    assert examination.at(kji).strength >= 1
    assert examination.at(kji).kji == kji
    labels = examination.class_volume()
    assert labels.same_geometry(copy)
    assert labels.hu[kji] == CHANGED


@pytest.mark.slow
def test_lungs_are_sought_in_slices_across_the_body_wherever_these_are_stored(scan, place, monkeypatch):
    monkeypatch.setattr("MITSGANLib.watermark.checking.find_regridding", lambda *_: None)
    copy = copy_suite.permuted(painted(scan, place))
    examination = examine(copy.volume, with_judge=False)
    tells_of(examination, copy.volume, copy.place(place))


@pytest.fixture(scope="module")
def marked(scan: CTVolume) -> CTVolume:
    return protect(scan, model=watermark_alone(OPEN_KEY))


@pytest.fixture(scope="module")
def own(marked: CTVolume) -> Examination:
    """What is found on its own grid."""
    return examine(dataclasses.replace(marked, provenance=Provenance()), with_judge=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["axes permuted", "flipped, untold"])
def test_signs_on_another_grid_are_read_as_well_as_on_their_own(marked, own, place, name):
    copy = copy_suite.COPIES[name](painted(marked, place))
    examination = examine(copy.volume, with_judge=False)
    tells_of(examination, copy.volume, copy.place(place))
    assert examination.mark.regridding
    assert examination.mark.gain == pytest.approx(own.mark.gain, abs=0.05)
    assert "watermark" in {one.kind for one in examination.at(copy.place(place)).evidence}


@settings(deadline=None, max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)),
    axes=st.permutations(range(3)),
    flips=st.tuples(*[st.sampled_from((-1.0, 1.0))] * 3),
)
def test_every_voxel_of_a_copy_is_told_of_where_it_is(shape, axes, flips):
    direction = np.eye(3)[:, axes] * flips
    hu = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    copy = CTVolume(hu, (0.5, 0.7, 2.0), (3.0, -4.0, 5.0), direction)
    placement = Placement.upright(copy)
    assert np.abs(placement.examined.direction[:, 2]).argmax() == 2, "slices lie across the body"
    for kji in itertools.product(*map(range, shape)):
        inside = placement.inside(kji)
        assert placement.outside(inside) == kji
        assert placement.examined.hu[inside] == hu[kji]
        assert placement.examined.voxel_to_lps(inside) == pytest.approx(copy.voxel_to_lps(kji))
    assert np.array_equal(placement.values_outside(placement.examined.hu), hu)
    size = placement.size_outside(placement.examined.spacing_kji)
    assert size == pytest.approx(copy.spacing_kji)


def test_a_cropped_copy_is_examined_in_its_own_slices():
    grid = CTVolume(np.zeros((9, 8, 8), np.int16), (1.0, 1.0, 2.5))
    copy = dataclasses.replace(grid, hu=np.full((4, 5, 6), 7, np.int16))
    to_grid = np.eye(4)
    to_grid[:3, 3] = 2, 1, 1
    placement = Placement.as_stored(copy).on(Regridding(grid, to_grid, "cropped"))
    assert placement.examined.shape == (4, 8, 8)
    assert placement.examined.origin == (0.0, 0.0, 5.0)
    assert placement.inside((0, 0, 0)) == (0, 1, 1)
    assert placement.outside((0, 7, 7)) == (0, 4, 5), "the nearest voxel that the copy has"
    assert np.array_equal(placement.values_outside(placement.examined.hu), copy.hu)
    assert placement.words == "cropped"
