"""Judges: what they look at, how they load and are asked, and the verdict on an attack."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_data import CUBE, NETWORKS, SQUARES, untrained, write_judge
from MITSGANLib import weights
from MITSGANLib.errors import InputError, ModelError, TargetError
from MITSGANLib.files.storage import load_volume
from MITSGANLib.judges.judge import Judge, Sight, available_judges, load_judge
from MITSGANLib.judges.jury import Jury, Seen
from MITSGANLib.scan import cubes as cubes_module
from MITSGANLib.scan.cubes import cube_shape, cube_start, rescale
from MITSGANLib.scan.lungs import lung_positions
from MITSGANLib.scan.volume import CTVolume, hu_from_float
from MITSGANTrainingLib.data.nodules import plant_nodule
from MITSGANTrainingLib.training.judge import area_under_curve
from scipy import ndimage


class Brightness(torch.nn.Module):
    """A network of one weight whose logit is the middle voxel's HU less a limit, in hundreds."""

    def __init__(self, limit_hu: float) -> None:
        super().__init__()
        self.limit = torch.nn.Parameter(torch.tensor(limit_hu))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        middle = tuple(size // 2 for size in hu.shape[1:])
        return (hu[(slice(None), *middle)] - self.limit) / 100


@pytest.fixture
def jury() -> Jury:
    """Bright is a nodule, very bright is forged; 0.5 is the threshold of both."""
    return Jury(
        Judge("bright", "nodule", CUBE, Brightness(-300.0), 0.5, "a"),
        Judge("very bright", "forgery", SQUARES, Brightness(200.0), 0.5, "b"),
    )


@pytest.fixture(scope="module")
def patient(real_ct) -> tuple[CTVolume, list[tuple[int, int, int]]]:
    """A slab of a scan that no judge was trained on, and places in its lungs."""
    volume = load_volume(real_ct / "nrrd" / "RIDER-Pilot-0117.nrrd")
    slab = CTVolume(volume.hu[26:70], volume.spacing)
    return slab, lung_positions(slab, 15, seed=1)


class TestViews:
    @settings(max_examples=30, deadline=None)
    @given(
        spacing=st.tuples(st.floats(0.5, 6), st.floats(0.4, 3), st.floats(0.4, 3)),
        view=st.sampled_from([CUBE, SQUARES, Sight("cube", 48)]),
        data=st.data(),
    )
    def test_a_part_of_the_scan_shows_the_same_as_the_whole(self, spacing, view, data):
        hu = np.random.default_rng(0).integers(-1000, 400, (24, 40, 36)).astype(np.int16)
        kji = tuple(data.draw(st.integers(0, size - 1)) for size in hu.shape)
        box = view.box(hu.shape, spacing, kji)
        assert all(0 <= part.start <= k < part.stop <= n for part, k, n in zip(box, kji, hu.shape, strict=True))
        inside = tuple(k - part.start for k, part in zip(kji, box, strict=True))
        whole, part = view.cut(hu, spacing, kji), view.cut(hu[box], spacing, inside)
        assert whole.shape == view.shape
        assert np.array_equal(whole, part)

    def test_a_cube_is_the_attackers_own(self, phantom):
        volume = phantom.volume
        shape = cube_shape(volume.spacing_kji)
        scan = torch.from_numpy(volume.hu.copy())
        cut = cubes_module.cut(scan, cube_start(phantom.nodule_kji, shape), shape)
        expected = rescale(cut, (32,) * 3).numpy()
        assert np.allclose(CUBE.cut(volume.hu, volume.spacing_kji, phantom.nodule_kji), expected, atol=1e-3)

    def test_squares_are_the_scans_own_voxels(self):
        hu = np.arange(9 * 40 * 40, dtype=np.int16).reshape(9, 40, 40)
        assert np.array_equal(SQUARES.cut(hu, (5.0, 0.7, 0.7), (4, 20, 21)), hu[2:5, 8:32, 9:33])

    def test_beyond_the_border_the_scan_repeats(self):
        hu = np.full((3, 30, 30), 7, np.int16)
        assert (SQUARES.cut(hu, (1.0, 1.0, 1.0), (0, 0, 29)) == 7).all()

    @pytest.mark.parametrize("wrong", [{"kind": "ball"}, {"edge": 7}, {"slices": 0}])
    def test_a_view_that_makes_no_sense_is_refused(self, wrong):
        with pytest.raises(InputError):
            Sight(**wrong)


class TestNetworks:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_gradient_reaches_the_middle(self, name):
        view = SQUARES if name == "SquaresNetwork" else CUBE
        hu = torch.from_numpy(np.random.default_rng(1).normal(-700, 100, (2, *view.shape)).astype(np.float32))
        hu.requires_grad_()
        logits = untrained(name)(hu)
        assert logits.shape == (2,)
        logits.sum().backward()
        around = tuple(slice(size // 2 - 1, size // 2 + 2) for size in view.shape)
        assert (hu.grad[(slice(None), *around)] != 0).flatten(1).any(dim=1).all()

    @pytest.mark.parametrize("name", ["PlainNetwork", "ResidualNetwork", "PlanesNetwork"])
    def test_cubes_of_another_edge_are_taken(self, name):
        assert untrained(name)(torch.zeros(1, 48, 48, 48)).shape == (1,)

    def test_how_noisy_a_scan_is_does_not_move_the_detail(self):
        network = untrained("SquaresNetwork")
        noise = torch.from_numpy(np.random.default_rng(2).normal(0, 10, (1, *SQUARES.shape)).astype(np.float32))
        seen = []
        network.features.register_forward_pre_hook(lambda _module, given: seen.append(given[0][:, 1]))
        for scale in (1, 3):
            network(scale * noise)
        assert torch.allclose(*seen, atol=1e-4)
        assert seen[0].std() > 0.1


class TestLoading:
    def test_what_is_written_loads_and_scores_alike(self, tmp_path):
        card = write_judge(tmp_path)
        judge = load_judge("mine", tmp_path)
        assert (judge.question, judge.view, judge.threshold, judge.digest) == ("nodule", CUBE, 0.25, card.sha256)
        cubes = np.random.default_rng(3).integers(-1000, 200, (3, 32, 32, 32)).astype(np.int16)
        with torch.no_grad():
            expected = torch.sigmoid(untrained("PlainNetwork")(torch.from_numpy(cubes).float())).numpy()
        assert np.allclose(judge.score_views(cubes), expected, atol=2e-3)
        path = tmp_path / "judges" / "mine.safetensors"
        assert np.array_equal(load_judge(path).score_views(cubes), judge.score_views(cubes))

    def test_judges_are_listed_by_question(self, tmp_path):
        write_judge(tmp_path, "a")
        write_judge(tmp_path, "b", "forgery", "SquaresNetwork", SQUARES)
        assert available_judges(folder=tmp_path) == ["a", "b"]
        assert available_judges("forgery", tmp_path) == ["b"]

    def test_an_unknown_name_lists_the_known_ones(self, tmp_path):
        write_judge(tmp_path, "mine")
        with pytest.raises(ModelError, match="no judge 'yours'; installed are: mine"):
            load_judge("yours", tmp_path)
        with pytest.raises(ModelError, match="no weights"):
            load_judge(tmp_path / "nothing.safetensors")
        with pytest.raises(ModelError, match="no judge"):
            load_judge("../judges/mine", tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kind": "protector"}, "not a judge"),
            ({"figures": {}}, "threshold"),
            ({"architecture": {"class": "Other", "config": {}, "view": {}}}, "unusable architecture"),
        ],
    )
    def test_a_card_that_describes_no_judge_is_refused(self, tmp_path, changes, message):
        write_judge(tmp_path, **changes)
        with pytest.raises(ModelError, match=message):
            load_judge("mine", tmp_path)

    def test_corrupt_weights_are_refused(self, tmp_path):
        write_judge(tmp_path)
        path = tmp_path / "judges" / "mine.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        with pytest.raises(ModelError, match="not those its model card describes"):
            load_judge("mine", tmp_path)

    def test_views_of_another_shape_are_refused(self, jury):
        with pytest.raises(InputError, match=r"looks at \(32, 32, 32\)"):
            jury.nodule.score_views(np.zeros((1, 16, 16, 16)))

    def test_no_place_has_no_score(self, jury, phantom):
        assert jury.nodule.score(phantom.volume, []).shape == (0,)

    @pytest.mark.parametrize("name", available_judges())
    def test_an_installed_judge_loads_and_is_small(self, name):
        judge = load_judge(name)
        assert judge.name == name
        assert 0 < judge.threshold <= 1
        assert (weights.MODELS_FOLDER / "judges" / f"{name}.safetensors").stat().st_size < 500_000


class TestInstalled:
    """The judges that come with the program."""

    @pytest.mark.slow
    @pytest.mark.parametrize("name", available_judges())
    def test_small_changes_turn_few_decisions(self, name, patient):
        judge, (volume, places) = load_judge(name), patient
        hu = volume.hu
        before = judge.says_yes(judge.score(volume, places))
        noise = np.random.default_rng(0).normal(0, 5, hu.shape)
        for changed, moved in ((hu + noise, 0), (hu + 5, 0), (hu, 1)):
            shown = CTVolume(hu_from_float(changed), volume.spacing)
            after = judge.says_yes(judge.score(shown, [(k, j, i + moved) for k, j, i in places]))
            assert (after != before).mean() <= 0.1
        assert before.mean() <= 0.2, "lung as it is is neither a nodule nor a forgery"

    @pytest.mark.parametrize("name", available_judges("nodule"))
    def test_a_nodule_judge_finds_the_phantoms_nodule(self, name, phantom):
        judge = load_judge(name)
        assert judge.says_yes(judge.score(phantom.volume, [phantom.nodule_kji])).all()


class TestVerdicts:
    def test_a_place_in_its_box_looks_as_in_the_scan(self, jury, phantom):
        volume, kji = phantom.volume, phantom.nodule_kji
        box = jury.box(volume.shape, volume.spacing_kji, kji)
        inside = tuple(k - part.start for k, part in zip(kji, box, strict=True))
        (sight,) = jury.look([volume.hu], volume.spacing_kji, kji)
        assert jury.look([volume.hu[box]] * 2, volume.spacing_kji, inside) == [sight] * 2
        assert sight.nodule > 0.5, "the phantom's nodule is bright"

    @pytest.mark.parametrize(
        ("action", "before", "after", "forged", "succeeded"),
        [
            ("inject", 0.1, 0.9, 0.1, True),
            ("inject", 0.1, 0.9, 0.9, False),
            ("inject", 0.1, 0.4, 0.1, False),
            ("inject", 0.9, 0.9, 0.1, None),
            ("remove", 0.9, 0.1, 0.1, True),
            ("remove", 0.9, 0.1, 0.9, False),
            ("remove", 0.9, 0.5, 0.1, False),
            ("remove", 0.1, 0.1, 0.1, None),
        ],
    )
    def test_success_is_the_finding_without_being_noticed(self, jury, action, before, after, forged, succeeded):
        verdict = jury.verdict(action, Seen(before, 0.0), Seen(after, forged))
        assert verdict.succeeded is succeeded
        assert json.loads(json.dumps(verdict.to_dict()))["succeeded"] is succeeded

    @settings(deadline=None)
    @given(
        st.sampled_from(["inject", "remove"]),
        *[st.floats(0, 1, allow_nan=False)] * 3,
    )
    def test_it_succeeds_only_where_it_achieves_and_is_unnoticed(self, action, nodule, forged, before):
        jury = Jury(
            Judge("n", "nodule", CUBE, Brightness(0.0), 0.3), Judge("f", "forgery", SQUARES, Brightness(0.0), 0.6)
        )
        verdict = jury.verdict(action, Seen(before, 0.0), Seen(nodule, forged))
        assert verdict.possible == ((before >= 0.3) == (action == "remove"))
        assert verdict.succeeded == ((verdict.achieved and verdict.unnoticed) if verdict.possible else None)
        more_visible = jury.verdict(action, Seen(before, 0.0), Seen(nodule, 1.0))
        assert not more_visible.succeeded, "what the forgery judge sees never succeeds"

    def test_the_clean_scan_says_what_there_was_to_reach(self, jury):
        hidden, shown, quiet = Seen(0.1, 0.0), Seen(0.9, 0.0), Seen(0.1, 0.2)
        assert jury.verdict("remove", hidden, quiet, clean=shown).succeeded is True
        assert jury.verdict("remove", shown, quiet, clean=hidden).succeeded is None
        assert jury.verdict("inject", shown, shown, clean=hidden).succeeded is True

    def test_a_jury_takes_each_judge_for_its_own_question(self, tmp_path):
        write_judge(tmp_path, "n")
        write_judge(tmp_path, "f", "forgery", "SquaresNetwork", SQUARES)
        jury = Jury.load(["f", "n"], tmp_path)
        assert (jury.nodule.name, jury.forgery.name) == ("n", "f")
        assert jury.identity()["nodule"] == {"sha256": jury.nodule.digest, "threshold": 0.25}
        with pytest.raises(ModelError, match="both decide about nodule"):
            Jury.load(["n", tmp_path / "judges" / "n.safetensors"], tmp_path)
        with pytest.raises(ModelError, match="no judge 'forensic'"):
            Jury.load(["n"], tmp_path)


class TestPlanting:
    @settings(max_examples=15, deadline=None)
    @given(data=st.data(), spacing=st.tuples(st.floats(0.6, 5), st.floats(0.5, 1.5), st.floats(0.5, 1.5)))
    def test_a_nodule_comes_to_lie_where_it_is_wanted_and_nothing_else_changes(self, data, spacing):
        lung = CTVolume(np.full((24, 40, 40), -850, np.int16), spacing=spacing[::-1])
        kji = tuple(data.draw(st.integers(0, size - 1)) for size in lung.shape)
        nodule = np.full((51, 51, 51), -850, np.int16)
        nodule[23:32, 21:30, 20:29] = 30  # 9 mm around (2, 0, -1) mm from the middle
        planted = plant_nodule(lung, kji, nodule, 5.0, (2, 0, -1))
        assert planted.hu[kji] == 30
        offset = (np.indices(lung.shape).T - kji).T
        distance = np.linalg.norm(offset * np.array(spacing)[:, None, None, None], axis=0)
        assert (planted.hu[distance > 9] == -850).all()
        assert planted.provenance.is_simulated_attack

    def test_a_planted_nodule_bears_the_noise_of_the_scan(self):
        lung = np.random.default_rng(0).normal(-850, 30, (24, 40, 40))
        nodule = np.full((51, 51, 51), 30, np.int16)

        def middle() -> np.ndarray:
            return plant_nodule(CTVolume(lung.astype(np.int16)), (12, 20, 20), nodule, 6.0).hu[9:16, 17:24, 17:24]

        taken_off = (lung - ndimage.gaussian_filter(lung, (0, 1, 1))).std()
        assert middle().std() == pytest.approx(taken_off, rel=0.1)
        lung[:, 20, :] = 100  # a vessel, 950 HU above the lung
        assert np.abs(middle() - 30.0).max() < 5 * 30, "it must not show through"

    def test_a_place_outside_is_refused(self, phantom):
        with pytest.raises(TargetError, match="lies outside the scan"):
            plant_nodule(phantom.volume, (-1, 0, 0), np.zeros((51, 51, 51)), 5.0)


class TestCurves:
    @pytest.mark.slow
    @settings(deadline=None)
    @given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
    def test_the_area_counts_pairs(self, yes, no):
        pairs = np.mean([(a > b) + 0.5 * (a == b) for a in yes for b in no])
        assert area_under_curve(np.array(yes), np.array(no)) == pytest.approx(pairs)
