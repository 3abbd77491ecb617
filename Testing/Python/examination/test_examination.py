"""The examiner on a phantom with noise: untouched, painted, cloned, without lungs, signed."""

from __future__ import annotations

import dataclasses

import forgeries
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import TargetError
from MITSGANLib.examination.blocks import Blocks
from MITSGANLib.examination.copies import find_copies
from MITSGANLib.examination.examiner import CHANGED, Examination, examine
from MITSGANLib.examination.noise import fine_kernel, residual
from MITSGANLib.examination.signed import with_signatures
from MITSGANLib.examination.verdict import ChangedPlace, Evidence, Outcome, Verdict
from MITSGANLib.files.dicom.drill import drill_step
from MITSGANLib.protection.protector import protect, watermark_alone
from MITSGANLib.report.examination_page import save_examination
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import SIMULATED_ATTACK, CTVolume, ProcessingStep
from MITSGANLib.signature.dicom.digital_signature import ImageSignatures
from MITSGANLib.watermark.checking import check_watermark
from MITSGANLib.watermark.pattern import OPEN_KEY


def thorax(slices: int) -> CTVolume:
    """Fine enough that a ball of 20 mm has some hundred voxels, with noise as of a soft kernel."""
    return thorax_phantom(shape=(slices, 200, 200), spacing_kji=(3.0, 1.5, 1.5), seed=3, noise_hu=20.0).volume


@pytest.fixture(scope="module")
def scan() -> CTVolume:
    return thorax(28)


@pytest.fixture(scope="module")
def slab(scan: CTVolume) -> CTVolume:
    """As much of it as can be told of."""
    return dataclasses.replace(scan, hu=scan.hu[6:22])


@pytest.fixture(scope="module")
def place(scan: CTVolume) -> tuple[int, int, int]:
    return lung_positions(scan, 1, 4, margin_mm=30.0)[0]


@pytest.fixture(scope="module")
def painted(scan: CTVolume, place: tuple[int, int, int]) -> Examination:
    rng = np.random.default_rng(0)
    forged = forgeries.forge(scan, [place], lambda v, k: forgeries.paint(v, k, 0, rng))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("MITSGANLib.watermark.checking.find_regridding", lambda *_: None)
        return examine(forged, with_judge=False)


def away_mm(volume: CTVolume, one: tuple[int, ...], other: tuple[int, ...]) -> float:
    return float(np.linalg.norm(np.subtract(one, other) * volume.spacing_kji))


@pytest.mark.usefixtures("on_its_grid")
class TestVerdicts:
    @pytest.mark.slow
    def test_an_untouched_scan_has_nothing_listed_and_says_what_that_excludes(self, scan):
        seen = []
        examination = examine(scan, with_judge=False, progress=lambda done, of: seen.append((done, of)))
        verdict = examination.verdict
        assert verdict.outcome is Outcome.NOTHING_FOUND, verdict.places
        assert any("paint" in kind for kind in verdict.excluded)
        assert any("network" in kind for kind in verdict.not_excluded)
        assert any("no watermark" in reason for reason in verdict.reasons)
        assert seen[-1] == (100, 100)
        assert seen == sorted(seen)

    @pytest.mark.slow
    def test_flat_paint_is_listed_by_the_noise_it_lacks_without_any_watermark(self, painted, place):
        verdict = painted.verdict
        assert verdict.outcome is Outcome.CHANGED
        nearest = min(verdict.places, key=lambda one: away_mm(painted.volume, one.kji, place))
        assert away_mm(painted.volume, nearest.kji, place) < 10
        assert "noise missing" in {one.kind for one in nearest.evidence}
        assert painted.at(place).strength >= 1

    @pytest.mark.slow
    def test_removals_by_ct_gan_are_excluded_where_its_noise_source_was_sought(self, painted):
        verdict = painted.verdict
        kinds = verdict.excluded if painted.touch_up is not None else verdict.not_excluded
        assert any("CT-GAN" in kind for kind in kinds)

    @pytest.mark.slow
    def test_a_map_shows_the_paint(self, painted, place):
        labels = painted.class_volume()
        assert labels.hu[place] == CHANGED
        assert labels.same_geometry(painted.volume)

    @pytest.mark.slow
    def test_a_page_has_pictures_of_each_place(self, painted, tmp_path):
        save_examination(painted.volume, painted.verdict, tmp_path / "page.html", title="a scan")
        html = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert html.count("data:image/png") == 2 * len(painted.verdict.places)

    @pytest.mark.slow
    def test_a_clone_names_its_source(self):
        scan = thorax(40)
        place = lung_positions(scan, 1, 4, margin_mm=30.0)[0]
        mm = np.array(scan.spacing_kji)
        others = lung_positions(scan, 50, 5, margin_mm=30.0)
        source = next(kji for kji in others if np.abs(np.subtract(kji, place) * mm).max() > 50)
        forged = forgeries.forge(scan, [place], lambda v, k: forgeries.clone(v, k, source, 16.0))
        verdict = examine(forged, with_judge=False).verdict
        copies = [one for one in verdict.places if one.source_kji is not None]
        assert len(copies) == 1
        shift = np.subtract(copies[0].source_kji, copies[0].kji)
        assert tuple(np.abs(shift)) == tuple(np.abs(np.subtract(source, place)))
        assert min(away_mm(scan, copies[0].kji, end) for end in (place, source)) < 10

    @pytest.mark.slow
    def test_without_lungs_it_cannot_tell(self, slab):
        water = slab.with_hu(np.random.default_rng(0).normal(0, 20, slab.shape).astype(np.int16))
        verdict = examine(water, with_judge=False).verdict
        assert verdict.outcome is Outcome.CANNOT_TELL
        assert verdict.reasons

    @pytest.mark.slow
    def test_what_says_that_it_is_a_drills_case_is_judged_by_its_voxels(self, slab):
        verdict = examine(slab.with_hu(slab.hu, drill_step()), with_judge=False).verdict
        assert verdict.outcome is Outcome.NOTHING_FOUND, "as of the untouched scan"
        assert "a drill's case" in verdict.evidence[0].text

    @pytest.mark.slow
    def test_what_says_that_it_is_simulated_is_changed(self, slab):
        marked = slab.with_hu(slab.hu, ProcessingStep(SIMULATED_ATTACK, "SIMULATED"))
        verdict = examine(marked, with_judge=False).verdict
        assert verdict.outcome is Outcome.CHANGED
        assert any(one.kind == "header" for one in verdict.evidence)

    @pytest.mark.slow
    def test_a_key_whose_watermark_is_not_there_cannot_tell(self, slab):
        other = dataclasses.replace(OPEN_KEY, secret=bytes(32))
        assert examine(slab, key=other, with_judge=False).verdict.outcome is Outcome.CANNOT_TELL

    @pytest.mark.slow
    def test_a_voxel_outside_is_refused(self, painted):
        with pytest.raises(TargetError):
            painted.at((0, 0, 10_000))


@pytest.mark.slow
def test_the_watermark_is_missed_where_paint_has_no_noise(scan, place):
    """What is expected comes from the tissue around, not from the forged copy."""
    marked = protect(scan, model=watermark_alone(OPEN_KEY))
    assert not check_watermark(marked).at(place).is_missing
    rng = np.random.default_rng(0)
    forged = forgeries.forge(marked, [place], lambda v, k: forgeries.paint(v, k, 0, rng))
    assert check_watermark(forged).at(place).is_missing


def test_noise_alone_is_no_copy(scan):
    blocks = Blocks.of(scan)
    assert find_copies(blocks, residual(scan, fine_kernel(scan))) == []


@pytest.mark.slow
def test_other_grids_raise_no_alarm_in_an_untouched_scan(scan):
    # Of slices that are not square, none is sought that was resampled: that takes most of the time.
    part = dataclasses.replace(scan, hu=scan.hu[6:22, :192])
    assert examine(part, with_judge=False).verdict.outcome is Outcome.NOTHING_FOUND


@pytest.mark.slow
def test_the_edge_of_an_upright_vessel_is_no_copy():
    """The sample of Slicer's panel has one."""
    volume = thorax_phantom().volume
    blocks = Blocks.of(volume)
    assert find_copies(blocks, residual(volume, fine_kernel(volume))) == []


@settings(deadline=None, max_examples=50)
@given(
    flips=st.tuples(st.sampled_from((1, -1)), st.sampled_from((1, -1))),
    rows=st.integers(8, 60),
    columns=st.integers(8, 60),
    data=st.data(),
)
def test_the_middle_of_a_block_lies_in_it(flips, rows, columns, data):
    direction = np.diag([flips[1], flips[0], flips[0] * flips[1]]).astype(float)
    blocks = Blocks.of(CTVolume(np.zeros((2, rows, columns), np.int16), direction=direction))
    block = tuple(data.draw(st.integers(0, size - 1)) for size in blocks.shape)
    assert blocks.block_of(blocks.middle(block)) == block


NOTHING = Verdict(Outcome.NOTHING_FOUND)
NO_SIGNATURES = ImageSignatures({})


def test_without_signatures_a_verdict_stays():
    assert with_signatures(NOTHING, None, None, NO_SIGNATURES, ()) == NOTHING


def test_two_witnesses_make_it_sure():
    one, other = Evidence("watermark", "missing", 1.1), Evidence("noise missing", "missing", 1.0)
    by_one, by_both = (ChangedPlace((0, 0, 0), (0, 0, 0), (1, 1, 1), kinds) for kinds in ((one,), (one, other)))
    assert not by_one.is_sure
    assert by_both.is_sure
    assert by_one.words.startswith("probably")


@pytest.mark.slow
def test_a_deep_prior_fills_the_hole_alone(scan, place):
    box, hu = forgeries.deep_prior(scan, place, steps=3)
    changed = np.argwhere(hu != scan.hu[box])
    away = (changed + [part.start for part in box] - np.array(place)) * scan.spacing_kji
    assert len(changed)
    assert np.linalg.norm(away, axis=1).max() < forgeries.RADIUS_MM
    assert np.array_equal(forgeries.deep_prior(scan, place, steps=3)[1], hu), "seeded"
