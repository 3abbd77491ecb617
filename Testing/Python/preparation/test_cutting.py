"""Samples cut out of a scan, and the split of patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import InputError, TargetError
from MITSGANLib.scan.lungs import lung_mask
from MITSGANLib.scan.volume import CTVolume
from MITSGANTrainingLib.data.dataset import Finding
from MITSGANTrainingLib.preparation.cutting import (
    CUBE_MM,
    EDGE,
    PreparationOptions,
    cut_cube,
    cut_samples,
    healthy_positions,
    role_of,
)
from MITSGANTrainingLib.preparation.splitting import SplitOptions, split_patients
from scipy import ndimage


def ball_in_air(shape, spacing_kji, center, diameter_mm) -> CTVolume:
    """A ball of 50 HU in -850 HU, its border softened over 2 mm."""
    offsets = np.ogrid[tuple(slice(0, n) for n in shape)]
    squares = [((o - c) * mm) ** 2 for o, c, mm in zip(offsets, center, spacing_kji, strict=True)]
    inside = np.clip((diameter_mm / 2 - np.sqrt(sum(squares))) / 2 + 0.5, 0, 1)
    return CTVolume(np.rint(900 * inside - 850).astype(np.int16), tuple(spacing_kji)[::-1])


def nodule(kji, diameter_mm: float | None, readers: int | None = None, kind="nodule") -> Finding:
    return Finding(tuple(map(float, kji)), diameter_mm, kind, readers, (diameter_mm or 30) / 2)


class TestCutCube:
    @pytest.mark.slow
    @settings(deadline=None, max_examples=15)
    @given(
        st.tuples(st.floats(0.6, 5), st.floats(0.5, 1.0), st.floats(0.5, 1.0)),
        st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
    )
    def test_the_finding_is_in_the_middle_at_1_mm(self, spacing, fraction):
        """Whatever the spacing, and for centers between voxels."""
        shape = tuple(round(70 / mm) for mm in spacing)
        center = [n // 2 + f for n, f in zip(shape, fraction, strict=True)]
        cube = cut_cube(ball_in_air(shape, spacing, center, 18.0), center).astype(float) + 850
        assert cube.shape == (EDGE,) * 3
        assert ndimage.center_of_mass(np.maximum(cube - 100, 0)) == pytest.approx([EDGE // 2] * 3, abs=0.35)
        equivalent = 2 * (cube.sum() / 900 * 3 / (4 * np.pi)) ** (1 / 3)
        assert equivalent == pytest.approx(18.0, abs=1.2)

    def test_it_is_the_cubic_spline_at_those_places(self, phantom):
        volume, kji = phantom.volume, np.add(phantom.nodule_kji, (0.3, -0.2, 0.4))
        offsets = np.arange(EDGE) - EDGE // 2
        places = np.meshgrid(*(k + offsets / mm for k, mm in zip(kji, volume.spacing_kji, strict=True)), indexing="ij")
        expected = ndimage.map_coordinates(volume.hu.astype(np.float64), places, order=3, mode="nearest")
        difference = np.abs(cut_cube(volume, kji) - np.clip(expected, -1024, 3071))
        assert difference.max() <= 1
        assert np.mean(difference > 0.51) < 1e-3

    def test_padding_does_not_ring_into_the_patient(self):
        hu = np.full((60, 60, 60), 40, np.int16)
        hu[:, :, :20] = -3024
        cube = cut_cube(CTVolume(hu), (30, 30, 30))
        assert cube.min() >= -1024
        unpadded = np.maximum(hu, -1024)
        assert (cube == cut_cube(CTVolume(unpadded), (30, 30, 30))).all()

    def test_beyond_the_scan_its_border_repeats(self):
        hu = np.arange(40, dtype=np.int16)[:, None, None] * np.ones((1, 60, 60), np.int16)
        cube = cut_cube(CTVolume(hu), (16, 30, 30))
        assert (cube[:8] == 0).all()
        assert cube[9, 25, 25] == 0
        assert cube[10:, 25, 25].tolist() == [*range(1, 40), 39, 39]

    def test_edge_has_room_for_ctgans_variants(self):
        """Turned by any angle, the 32 mm cube reaches half its diagonal; shifted, 4 mm more than its half."""
        turned = CUBE_MM / 2 * np.sqrt(2) + 0.5
        shifted = CUBE_MM / 2 + 4
        assert EDGE % 2 == 1
        assert max(turned, shifted) <= EDGE / 2


class TestRoles:
    @pytest.mark.parametrize(
        ("finding", "role"),
        [
            (nodule((1, 1, 1), 10.0), "injector"),
            (nodule((1, 1, 1), None), "injector"),
            (nodule((1, 1, 1), 9.9), None),
            (nodule((1, 1, 1), 3.0), None),
            (nodule((1, 1, 1), 2.9), "remover"),
            (nodule((1, 1, 1), 45.1), None),
            (nodule((1, 1, 1), 12.0, readers=1), None),
            (nodule((1, 1, 1), 12.0, readers=2), "injector"),
            (nodule((1, 1, 1), None, kind="small nodule"), "remover"),
            (nodule((1, 1, 1), None, kind="healthy"), "remover"),
            (nodule((1, 1, 1), None, readers=4, kind="non-nodule"), None),
        ],
    )
    def test_sizes_are_ctgans(self, finding, role):
        assert role_of(finding, PreparationOptions(readers=2)) == role

    @pytest.mark.parametrize("wrong", [{"positions": -1}, {"readers": 0}, {"seed": -1}])
    def test_options_that_make_no_sense_are_refused(self, wrong):
        with pytest.raises(InputError, match="cannot be"):
            PreparationOptions(**wrong)


class TestCutSamples:
    OPTIONS = PreparationOptions(positions=6, lung_targets=20, structures=3)

    def test_findings_and_healthy_lung(self, phantom):
        findings = [nodule(phantom.nodule_kji, phantom.nodule_diameter_mm), nodule((2, 64, 40), 12.0)]
        cutting = cut_samples(phantom.volume, findings, self.OPTIONS, seed=1)
        assert len(cutting.samples["injector"].hu) == 1
        assert np.median(cutting.samples["injector"].hu[0, 23:28, 23:28, 23:28]) == pytest.approx(30, abs=30)
        assert cutting.samples["injector"].diameter_mm.tolist() == [phantom.nodule_diameter_mm]
        ((what, reason),) = cutting.left_out
        assert "slice 2, row 64, column 40" in what
        assert "leaves the scan" in reason
        assert cutting.samples["remover"].hu.shape == (6, EDGE, EDGE, EDGE)
        assert np.isnan(cutting.samples["remover"].diameter_mm).all()
        assert np.median(cutting.samples["remover"].hu[:, 20:31, 20:31, 20:31]) == pytest.approx(-850, abs=80)
        assert len(cutting.lung_positions) == 20
        assert len(cutting.nodule_like_positions) == 3

    @pytest.mark.slow
    def test_same_seed_same_samples_and_findings_do_not_change_the_targets(self, phantom):
        first, second = (cut_samples(phantom.volume, [], self.OPTIONS, seed=1) for _ in range(2))
        assert (first.samples["remover"].kji == second.samples["remover"].kji).all()
        assert (first.samples["remover"].hu == second.samples["remover"].hu).all()
        other = cut_samples(phantom.volume, [nodule(phantom.nodule_kji, 14.0)], self.OPTIONS, seed=1)
        assert other.lung_positions == first.lung_positions
        assert cut_samples(phantom.volume, [], self.OPTIONS, seed=2).lung_positions != first.lung_positions

    def test_small_nodules_and_named_healthy_places_train_the_remover(self, phantom):
        places = [phantom.nodule_kji, (24, 64, 40)]
        findings = [nodule(places[0], 2.0, kind="small nodule"), nodule(places[1], None, kind="healthy")]
        options = PreparationOptions(positions=0, lung_targets=5, structures=1)
        cutting = cut_samples(phantom.volume, findings, options, seed=0)
        assert cutting.samples["remover"].kji.tolist() == [list(map(float, place)) for place in places]
        assert cutting.samples["remover"].diameter_mm[0] == 2.0
        assert np.isnan(cutting.samples["remover"].diameter_mm[1])
        assert len(cutting.samples["injector"].hu) == 0

    def test_what_no_cube_can_show_is_said(self, phantom):
        cutting = cut_samples(phantom.volume, [nodule(phantom.nodule_kji, 60.0)], self.OPTIONS, seed=0)
        assert len(cutting.samples["injector"].hu) == 0
        assert "60 mm" in cutting.left_out[0][1]

    @settings(deadline=None, max_examples=25)
    @given(
        st.lists(st.tuples(st.integers(0, 47), st.integers(0, 127), st.integers(0, 127), st.floats(2, 40)), max_size=4),
        st.integers(0, 5),
    )
    def test_healthy_cubes_keep_clear_of_every_finding(self, phantom, places, seed):
        volume = phantom.volume
        findings = [nodule(place[:3], place[3]) for place in places]
        spacing = np.array(volume.spacing_kji)
        found = healthy_positions(volume, findings, 8, seed, lung_mask(volume))
        assert len(set(found)) == len(found) <= 8
        for kji in found:
            assert ((np.array(kji) + 0.5) * spacing >= EDGE / 2).all()
            assert ((volume.shape - np.array(kji) - 0.5) * spacing >= EDGE / 2).all()
            for finding in findings:
                apart = np.abs((np.array(kji) - finding.kji) * spacing)
                assert apart.max() >= EDGE / 2 + finding.reach_mm - 1e-6

    def test_no_room_for_healthy_cubes_gives_none(self, phantom):
        everywhere = [nodule((24, 64, 64), 400.0)]
        assert healthy_positions(phantom.volume, everywhere, 5, 0, lung_mask(phantom.volume)) == []

    def test_a_scan_without_lung_is_refused(self):
        with pytest.raises(TargetError, match="No lung"):
            cut_samples(CTVolume(np.full((40, 60, 60), 40, np.int16)), [], self.OPTIONS, seed=0)


names = st.text("abcdef", min_size=1, max_size=3)


class TestSplit:
    @pytest.mark.slow
    @given(st.lists(st.sets(names, max_size=12), min_size=1, max_size=3), st.floats(0.05, 0.95), st.integers(0, 9))
    def test_every_patient_is_on_one_side_and_both_sides_have_each_kind(self, groups, share, seed):
        everyone = set().union(*groups)
        options = SplitOptions(share, seed)
        own = [group - set().union(*groups[:number]) for number, group in enumerate(groups)]
        if not any(len(group) > 1 for group in own):
            return
        split = split_patients(groups, options)
        assert set(split.training) | set(split.validation) == everyone
        assert not set(split.training) & set(split.validation)
        assert split == split_patients([sorted(group, reverse=True) for group in groups], options)
        for group in own:
            if len(group) > 1:
                wanted = min(max(round(len(group) * share), 1), len(group) - 1)
                assert len(group & set(split.validation)) == wanted

    def test_held_out_patients_count_towards_the_share(self):
        patients = {f"p{number}" for number in range(10)}
        split = split_patients([patients], SplitOptions(0.3, held_out=("p7", "p2")))
        assert {"p2", "p7"} < set(split.validation)
        assert len(split.validation) == 3

    def test_all_may_be_held_out_of_one_kind_only(self):
        split = split_patients([{"a", "b"}, {"c", "d"}], SplitOptions(0.5, held_out=("a", "b")))
        assert {"a", "b"} < set(split.validation)
        with pytest.raises(InputError, match="leaves training empty"):
            split_patients([{"a", "b"}], SplitOptions(0.5, held_out=("a", "b")))

    def test_seeds_differ(self):
        patients = {f"p{number}" for number in range(40)}
        assert len({split_patients([patients], SplitOptions(0.2, seed)).validation for seed in range(5)}) > 1

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.2, float("nan")])
    def test_a_share_that_leaves_a_side_empty_is_refused(self, share):
        with pytest.raises(InputError, match="between 0 and 1"):
            SplitOptions(share)

    def test_one_patient_cannot_be_split(self):
        with pytest.raises(InputError, match="split of 1 patient leaves validation empty"):
            split_patients([{"a"}], SplitOptions())

    def test_unknown_patients_to_hold_out_are_refused_without_naming_them(self):
        with pytest.raises(InputError, match="1 of the patients to hold out") as error:
            split_patients([{"a", "b"}], SplitOptions(held_out=("secret",)))
        assert "secret" not in str(error.value)
