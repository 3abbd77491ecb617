"""The mark that is searched on the scan itself: what it may change, what judges see, what it reaches, and its file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_data import SQUARES, untrained
from mark_data import LUNG_HU, balls, tiny_mark, write_mark
from MITSGANLib.budget.budget import Budget, allowed_change, allowed_in_slices
from MITSGANLib.errors import CancelledError, InputError, ModelError, TargetError
from MITSGANLib.judges.judge import Judge, Sight, load_judge
from MITSGANLib.protection import diagnosis_blocking, presets
from MITSGANLib.protection.diagnosis_blocking import (
    BlockingConfig,
    DiagnosisBlocker,
    judged_places,
    places_inside,
)
from MITSGANLib.protection.protector import Protector, load_protector, protect, seconds_to_protect
from MITSGANLib.scan.cubes import cube_shape
from MITSGANLib.scan.volume import CTVolume

BUDGET = Budget(strength_hu=300.0, soft_tissue=0.5)
MM = (1.0, 1.0, 1.0)


def cube(seed: int = 0, nodule: bool = True, edge: int = 44) -> np.ndarray:
    start = (51 - edge) // 2
    hu = balls(1, seed, 5.0 if nodule else -1.0)[0]
    return hu[(slice(start, start + edge),) * 3].copy()


def allowed_in(hu: np.ndarray, budget: Budget = BUDGET) -> np.ndarray:
    return allowed_change(hu, budget, np.ones(hu.shape, bool))


def change_of(hu: np.ndarray, mark: DiagnosisBlocker, spacing=MM, **options) -> np.ndarray:
    return mark.change(hu, allowed_in(hu), places_inside(hu.shape, spacing), spacing, device="cpu", **options)


def beyond(mark: DiagnosisBlocker, hu: np.ndarray) -> float:
    """How far the judge's logit lies beyond its threshold in the middle of a cube."""
    (judge,) = mark.judges
    seen = judge.view.cut(hu, MM, [size // 2 for size in hu.shape])
    with torch.no_grad():
        return judge.network(torch.from_numpy(seen[None])).item() - diagnosis_blocking.threshold_logit(judge)


@pytest.fixture(scope="module")
def volume(phantom) -> CTVolume:
    """A thin part of the phantom's lungs."""
    return dataclasses.replace(phantom.volume, hu=phantom.volume.hu[22:28])


class TestChange:
    @pytest.mark.slow
    @settings(max_examples=6, deadline=None)
    @given(
        slice_mm=st.sampled_from([1.0, 2.5, 5.0]),
        pixel_mm=st.floats(0.9, 2.0),
        block=st.floats(0.5, 6.0),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_each_block_changes_by_all_that_is_allowed_or_not_at_all(self, slice_mm, pixel_mm, block, seed):
        spacing = (slice_mm, pixel_mm, pixel_mm)
        hu = np.random.default_rng(seed).integers(-1000, 200, [int(-(-40 // mm)) for mm in spacing]).astype(np.int16)
        mark = tiny_mark(passes=1, block_mm=(block, block))
        change, allowed = change_of(hu, mark, spacing, seed=seed), allowed_in(hu)
        assert ((change == 0) | (np.abs(change) == allowed)).all()
        edges = mark.config.block(spacing)
        for start in np.ndindex(*(-(-size // edge) for size, edge in zip(hu.shape, edges, strict=True))):
            box = tuple(slice(k * n, (k + 1) * n) for k, n in zip(start, edges, strict=True))
            free = allowed[box] > 0
            assert len(np.unique(np.sign(change[box][free]))) <= 1

    @pytest.mark.slow
    def test_the_seed_alone_decides(self):
        hu, mark = cube(), tiny_mark()
        first, again, other = (change_of(hu, mark, seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_where_nothing_is_allowed_nothing_changes(self):
        hu = cube()
        allowed = allowed_in(hu)
        allowed[:, :20] = 0
        change = tiny_mark().change(hu, allowed, places_inside(hu.shape, MM), MM, device="cpu")
        assert change[:, 20:].any()
        assert not change[:, :20].any()

    def test_only_what_judges_see_from_the_places_changes(self):
        hu = np.random.default_rng(0).normal(LUNG_HU, 20, (96, 44, 44)).astype(np.int16)
        places = np.zeros(hu.shape, bool)
        places[20:24, 20:24, 20:24] = True
        change = tiny_mark(jitter_mm=2.0).change(hu, allowed_in(hu), places, MM, device="cpu")
        assert change[:44].any()
        assert not change[44:].any()

    def test_it_can_be_cancelled(self):
        def stop(done: int, total: int) -> None:
            assert total == 3
            if done == 1:
                raise CancelledError("enough")

        with pytest.raises(CancelledError):
            change_of(cube(), tiny_mark(), progress=stop)


class TestEffect:
    @pytest.mark.slow
    def test_a_nodule_is_hidden_without_being_told(self):
        mark = tiny_mark(passes=8)
        hu = cube()
        marked = hu + change_of(hu, mark)
        assert beyond(mark, hu) > 0
        assert beyond(mark, marked) < beyond(mark, hu) - 1

    def test_lung_is_made_to_look_like_a_nodule(self):
        mark = tiny_mark(passes=8)
        hu = cube(nodule=False)
        assert beyond(mark, hu) < 0
        assert beyond(mark, hu + change_of(hu, mark)) > beyond(mark, hu) + 1

    @pytest.mark.slow
    def test_noise_of_the_same_size_does_not_do_it(self):
        mark = tiny_mark(passes=8)
        hu = cube()
        change = change_of(hu, mark)
        noise = np.random.default_rng(0).permutation(change.ravel()).reshape(change.shape)
        assert beyond(mark, hu + change) < beyond(mark, hu + noise) - 1

    def test_without_false_nodules_lung_stays_as_it_is(self):
        hu = cube(nodule=False)
        assert not change_of(hu, tiny_mark(false_mm=0.0)).any()
        assert change_of(cube(), tiny_mark(false_mm=0.0)).any()


class TestPlaces:
    @settings(max_examples=15, deadline=None)
    @given(
        slice_mm=st.sampled_from([1.0, 1.25, 2.5, 5.0]), pixel_mm=st.floats(0.6, 2.0), seed=st.integers(0, 2**32 - 1)
    )
    def test_judges_look_as_they_look_at_a_scan(self, slice_mm, pixel_mm, seed):
        """Near the border, too: what the search shows them is what a judge's view cuts."""
        spacing = (slice_mm, pixel_mm, pixel_mm)
        rng = np.random.default_rng(seed)
        hu = rng.normal(-700, 200, [round(40 / mm) for mm in spacing]).astype(np.int16)
        search = diagnosis_blocking.BlockSearch(hu, np.zeros_like(hu), spacing, tiny_mark(), torch.device("cpu"))
        kji = tuple(int(rng.integers(size)) for size in hu.shape)
        seen = search.clean([kji])[0].numpy()
        np.testing.assert_allclose(seen, Sight("cube", 32).cut(hu, spacing, kji), atol=0.01)

    @settings(max_examples=30, deadline=None)
    @given(mm=st.tuples(*[st.floats(0.5, 6.0)] * 3), edges=st.tuples(*[st.floats(33.0, 60.0)] * 3))
    def test_cubes_at_places_inside_lie_inside(self, mm, edges):
        shape = [int(np.ceil(edge / one)) for edge, one in zip(edges, mm, strict=True)]
        places = np.argwhere(places_inside(shape, mm))
        for kji in (places[0], places[-1]):
            box = Sight("cube", 32).box(shape, mm, tuple(map(int, kji)))
            assert tuple(part.stop - part.start for part in box) == cube_shape(mm)

    def test_less_than_a_cube_is_refused(self):
        with pytest.raises(InputError, match="32 mm"):
            places_inside((31, 40, 40), MM)

    def test_lungs_with_nodules_are_judged_and_the_outside_is_not(self, phantom):
        places = judged_places(phantom.volume)
        assert places.shape == phantom.volume.shape
        lung = phantom.volume.hu[places]
        assert (lung < -500).mean() > 0.5
        assert not places[:, 0].any()
        assert 0.05 < places.mean() < 0.6

    def test_grids_of_two_passes_differ_and_keep_clear_of_nodules(self):
        places = np.ones((64, 64, 64), bool)
        plan = diagnosis_blocking.SearchPlan(places, MM, BlockingConfig(false_mm=16.0, clear_mm=20.0, jitter_mm=2.0))
        rng = np.random.default_rng(0)
        nodule = (30, 30, 30)
        seen = [plan.draw([nodule], rng) for _ in range(2)]
        assert seen[0] != seen[1]
        for targets in seen:
            (hidden,) = [one.kji for one in targets if one.hides]
            assert np.abs(np.subtract(hidden, nodule)).max() <= 2
            false = np.array([one.kji for one in targets if not one.hides])
            assert len(false) > 20
            assert (np.abs(false - nodule).max(axis=1) >= 20).all()

    def test_surer_nodules_go_before_those_beside_them(self):
        plan = diagnosis_blocking.SearchPlan(np.ones((64, 64, 64), bool), MM, BlockingConfig(reach=1.0))
        asked = [(10, 10, 10), (12, 10, 10), (40, 40, 40), (20, 50, 10)]
        assert plan.nodules(asked, np.array([1.0, 2.0, -0.9, -1.1])) == [(12, 10, 10), (40, 40, 40)]

    def test_a_nodule_is_asked_about(self):
        hu = cube(edge=51)
        asked = diagnosis_blocking.SearchPlan(places_inside(hu.shape, MM), MM, BlockingConfig()).asked(hu)
        assert min(np.abs(np.subtract(kji, 25)).max() for kji in asked) <= 1
        assert len(set(asked)) == len(asked)


class TestProtect:
    @pytest.mark.slow
    def test_a_scan_is_marked_within_its_body_and_budget(self, volume):
        protector = Protector("mark", tiny_mark(passes=1), Budget(strength_hu=40.0, soft_tissue=0.5), 0, "digest")
        seen = []
        marked = protect(volume, model=protector, device="cpu", progress=lambda *now: seen.append(now))
        change = marked.hu.astype(int) - volume.hu
        allowed = allowed_in_slices(volume.hu, protector.budget, volume.spacing_kji)
        assert change.any()
        assert (np.abs(change) <= allowed).all()
        assert seen == sorted(seen)
        assert seen[-1] == (6, 6)
        assert marked.provenance.steps[-1].parameters["model"] == "mark"

    def test_without_lungs_there_is_no_mark(self):
        water = CTVolume(np.zeros((8, 64, 64), np.int16), spacing=(2.0, 2.0, 2.0))
        with pytest.raises(TargetError, match="chest CT"):
            protect(water, model=Protector("mark", tiny_mark(), BUDGET), device="cpu")

    def test_its_time_is_estimated_from_cubes(self, volume):
        short, long = (
            seconds_to_protect(volume, Protector("mark", tiny_mark(passes=n), BUDGET), torch.device("cpu"))
            for n in (1, 10**6)
        )
        assert 0 < short < long


class TestFile:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "mine.safetensors"
        write_mark(path, tiny_mark(passes=2))
        return path

    def test_what_is_read_decides_like_what_was_written(self, path):
        ready, mark = load_protector(path, seed=5), tiny_mark(passes=2)
        assert (ready.name, ready.seed, ready.budget.strength_hu) == ("mine", 5, 40)
        assert ready.proposer.config == mark.config
        (read,), (written,) = ready.proposer.judges, mark.judges
        assert (read.name, read.view, read.threshold) == (written.name, written.view, written.threshold)
        cubes = np.stack([cube(edge=32), cube(nodule=False, edge=32)])
        np.testing.assert_allclose(read.score_views(cubes), written.score_views(cubes), atol=0.01)
        assert presets.is_blocker(path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda a: a | {"judges": []},
            lambda a: a | {"judges": [a["judges"][0] | {"name": "other"}]},
            lambda a: a | {"judges": [a["judges"][0] | {"class": "Unknown"}]},
            lambda a: a | {"judges": [{"name": "mine"}]},
            lambda a: a | {"config": a["config"] | {"passes": 0}},
            lambda a: a | {"config": {"unknown": 1}},
            lambda a: {"class": a["class"]},
        ],
    )
    def test_a_card_that_does_not_fit_is_refused(self, path, change):
        write_mark(path, tiny_mark(), architecture=change(tiny_mark().architecture()))
        with pytest.raises(ModelError, match=r"mine|other"):
            load_protector(path)

    def test_installed_judges_are_not_stored_twice(self, tmp_path):
        judge = load_judge("nodule-plain")
        mark = DiagnosisBlocker((judge, *tiny_mark().judges), BlockingConfig())
        assert not any(name.startswith("nodule-plain/") for name in mark.tensors())
        assert any(name.startswith("mine/") for name in mark.tensors())
        card = write_mark(tmp_path / "both.safetensors", mark)
        read = load_protector(tmp_path / "both.safetensors").proposer.judges[0]
        assert (read.digest, read.threshold, read.view) == (judge.digest, judge.threshold, judge.view)
        views = np.random.default_rng(0).normal(-800, 100, (2, 32, 32, 32))
        np.testing.assert_array_equal(read.score_views(views), judge.score_views(views))

        judges = [{**card.architecture["judges"][0], "sha256": "0" * 64}]
        write_mark(tmp_path / "other.safetensors", mark, architecture={**card.architecture, "judges": judges})
        with pytest.raises(ModelError, match="another judge 'nodule-plain'"):
            load_protector(tmp_path / "other.safetensors")

    def test_a_judge_of_something_else_is_refused(self):
        forensic = Judge("forensic", "forgery", SQUARES, untrained("SquaresNetwork"), 0.5)
        with pytest.raises(InputError, match="not asked about nodules"):
            DiagnosisBlocker((forensic,), BlockingConfig())
        with pytest.raises(InputError, match="at least one"):
            DiagnosisBlocker((), BlockingConfig())

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"passes": 0}, "at least 1"),
            ({"block_mm": (0.0, 1.0)}, "block_mm"),
            ({"first_step": 1.5}, "first_step"),
            ({"momentum": -0.1}, "momentum"),
            ({"noise_hu": float("nan")}, "noise_hu"),
            ({"false_mm": -1.0}, "false_mm"),
        ],
    )
    def test_what_cannot_be_searched_is_refused(self, values, message):
        with pytest.raises(InputError, match=message):
            BlockingConfig(**values)

    def test_the_shipped_mark_leaves_the_black_box_out(self):
        mark = load_protector("block-ai").proposer
        assert [judge.name for judge in mark.judges] == ["nodule-plain", "nodule-residual"]
        assert dataclasses.asdict(mark.config) == dataclasses.asdict(BlockingConfig())
