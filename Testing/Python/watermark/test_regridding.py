"""Copies on another grid than the scan that was marked: the grid is found, and what was painted still shows."""

from __future__ import annotations

import dataclasses
import itertools

import copy_suite
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.budget.budget import WATERMARK_BUDGET
from MITSGANLib.errors import CancelledError
from MITSGANLib.files.volume_files import read_file, write_file
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import PROTECTION, CTVolume, ProcessingStep, Provenance
from MITSGANLib.watermark.checking import Check, check_watermark
from MITSGANLib.watermark.embedding import versions
from MITSGANLib.watermark.pattern import OPEN_KEY, WatermarkKey
from MITSGANLib.watermark.regridding import GRID_FIELD, Regridding, find_regridding, grid_record, recorded_grid
from scipy import ndimage

PLACE = (4, 128, 75)


@pytest.fixture(scope="module")
def scan() -> CTVolume:
    """As many rows and columns as some CT slices have."""
    volume = thorax_phantom(shape=(8, 256, 256), spacing_kji=(3.0, 1.4, 1.4), seed=5, noise_hu=0).volume
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 60, volume.shape), (0, 0.7, 0.7))
    hu = np.where(volume.hu > -1000, np.clip(volume.hu + noise, -1023, 3000), volume.hu)
    return dataclasses.replace(volume, hu=np.rint(hu).astype(np.int16), origin=(-170.3, -150.1, 40.5))


@pytest.fixture(scope="module")
def marked(scan) -> CTVolume:
    return dataclasses.replace(protect(scan, model=watermark_alone()), provenance=Provenance())


@pytest.fixture(scope="module")
def intact(marked) -> Check:
    return check_watermark(marked)


def cut(volume: CTVolume, low: tuple[int, int, int], high: tuple[int, int, int], *, is_told: bool) -> CTVolume:
    part = volume.hu[tuple(slice(a, size - b) for a, b, size in zip(low, high, volume.shape, strict=True))]
    origin = tuple(volume.voxel_to_lps(low)) if is_told else volume.origin
    return dataclasses.replace(volume, hu=part, origin=origin)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flipped, untold", "flipped left to right"),
        ("axes permuted", "axes permuted"),
        ("turned by 3 degrees, untold", "turned by 3.0 degrees"),
        ("resampled to 1 mm", "resampled from 1.400 to 1.000 mm"),
    ],
)
def test_the_grid_of_the_marked_scan_is_found(marked, name, words):
    copy = copy_suite.COPIES[name](marked)
    found = find_regridding(copy.volume, [OPEN_KEY], WATERMARK_BUDGET)
    assert found is not None
    assert words in found.words
    for kji in ((2, 50, 150), (6, 200, 77)):
        at = found.to_grid @ (copy.to_copy @ (*kji, 1.0))
        # Slices of a resampled copy stay its own.
        assert at[1:3] == pytest.approx(kji[1:], abs=0.6)
    if found.is_exact:
        assert np.array_equal(found.moved(copy.volume).hu, marked.hu)


@pytest.mark.slow
@pytest.mark.parametrize("watermark", versions()[1:], ids=lambda one: f"version {one.version}")
def test_older_signs_are_sought_on_other_grids_too(scan, watermark):
    protected = protect(scan, model=watermark_alone(watermark.key, watermark.budget))
    copy = copy_suite.COPIES["flipped, untold"](dataclasses.replace(protected, provenance=Provenance()))
    check = check_watermark(copy.volume)
    assert check.is_found
    assert check.regridding == "flipped left to right"
    own = check_watermark(protected)
    assert check.gain == pytest.approx(own.gain, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("is_told", [True, False])
def test_a_cropped_copy_is_found_at_its_place(marked, intact, is_told):
    low, high = (1, 5, 3), (0, 2, 7)
    copy = cut(marked, low if is_told else (0, 5, 3), high, is_told=is_told)
    check = check_watermark(copy)
    assert check.is_found
    assert check.regridding.startswith("cropped by 5 rows in front, 2 rows at the back, 3 columns")
    assert check.gain == pytest.approx(intact.gain, abs=0.05)
    assert check.volume is copy
    assert check.seen.shape[1:] == check.classes.shape
    assert check.class_volume().same_geometry(copy)


@pytest.mark.slow
def test_what_was_painted_before_cropping_and_flipping_is_missed(marked):
    hu = marked.hu.copy()
    box = tuple(slice(at - n, at + n + 1) for at, n in zip(PLACE, (3, 10, 10), strict=True))
    hu[box] = np.roll(marked.hu, (3, 5), (1, 2))[box]
    flipped = copy_suite.flipped(marked.with_hu(hu))
    check = check_watermark(flipped.volume)
    assert check.at(flipped.place(PLACE)).is_missing
    assert not check.at(flipped.place((4, 128, 181))).is_missing


@pytest.mark.slow
def test_at_none_of_the_grids_nothing_is_found_where_nothing_was_put(scan):
    assert find_regridding(cut(scan, (0, 5, 3), (0, 2, 7), is_told=True), [OPEN_KEY], WATERMARK_BUDGET) is None


@pytest.mark.slow
def test_a_recorded_grid_is_tried_first(scan, tmp_path):
    """Also where rows and columns are so many that nobody could guess it."""
    odd = cut(scan, (0, 40, 60), (0, 31, 0), is_told=True)
    protected = protect(odd, model=watermark_alone())
    write_file(protected, tmp_path / "protected.nrrd")
    kept = read_file(tmp_path / "protected.nrrd")
    copy = cut(kept, (0, 9, 4), (0, 3, 0), is_told=True)
    check = check_watermark(copy)
    assert check.is_found
    nameless = dataclasses.replace(copy, provenance=Provenance())
    assert find_regridding(nameless, [OPEN_KEY], WATERMARK_BUDGET) is None


@pytest.mark.parametrize(
    "said",
    [
        None,
        3,
        {},
        {"shape": [1, 2]},
        {"shape": [9, 9, 9], "spacing": ["a"], "origin": [0, 0, 0], "direction": [1]},
        {"shape": [9, 9, 9], "spacing": [-1, 1, 1], "origin": [0, 0, 0], "direction": np.eye(3).tolist()},
        {"shape": [10**9] * 3, "spacing": [1, 1, 1], "origin": [0, 0, 0], "direction": np.eye(3).tolist()},
    ],
)
def test_what_a_file_says_of_its_grid_is_not_believed(said):
    volume = CTVolume(np.zeros((2, 8, 8), np.int16))
    assert recorded_grid(volume.with_hu(volume.hu, ProcessingStep(PROTECTION, "", {GRID_FIELD: said}))) is None


def test_a_grid_is_recorded_as_it_is():
    volume = CTVolume(np.zeros((2, 8, 9), np.int16), (0.5, 0.6, 2), (1, 2, 3), np.diag([-1.0, 1, -1]))
    step = ProcessingStep(PROTECTION, "", {GRID_FIELD: grid_record(volume)})
    assert recorded_grid(volume.with_hu(volume.hu, step)).same_geometry(volume)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    axes=st.sampled_from(list(itertools.permutations(range(3)))),
    flips=st.tuples(*[st.sampled_from((1, -1))] * 3),
    shift=st.tuples(*[st.integers(-3, 9)] * 3),
)
def test_every_voxel_of_a_copy_goes_where_the_matrix_says(shape, axes, flips, shift):
    rng = np.random.default_rng(0)
    copy = CTVolume(rng.integers(-900, 900, shape).astype(np.int16))
    matrix = np.zeros((4, 4))
    matrix[range(3), axes], matrix[:3, 3], matrix[3, 3] = flips, shift, 1
    grid = CTVolume(np.zeros((8, 9, 10), np.int16))
    moved = Regridding(grid, matrix, "").moved(copy)
    left = moved.hu.astype(int).copy()
    for kji in np.ndindex(shape):
        at = tuple(int(i) for i in (matrix @ (*kji, 1))[:3])
        if grid.contains(at):
            assert moved.hu[at] == copy.hu[kji]
            left[at] = -1025
    assert (left == -1025).all()


@pytest.mark.slow
def test_a_search_can_be_canceled_at_any_try(scan):
    tries = iter(range(3))

    def stop_soon() -> None:
        if next(tries, None) is None:
            raise CancelledError("stopped")

    with pytest.raises(CancelledError):
        find_regridding(scan, [WatermarkKey(bytes(32))], WATERMARK_BUDGET, stop_soon)
