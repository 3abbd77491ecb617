"""A searched change: within its bounds, against the finding, continued after a stop, and never of another scan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from judge_data import CUBE, SQUARES, untrained
from MITSGANLib.budget.budget import SEARCH_BUDGET, Budget, allowed_in_slices, apply_change
from MITSGANLib.errors import CancelledError, InputError, TargetError
from MITSGANLib.files.storage import save_volume
from MITSGANLib.judges.judge import Judge
from MITSGANLib.protection.protector import Protector, load_protector, protect
from MITSGANLib.protection.search import ChangeSearch, Search, SearchConfig, without_slow
from MITSGANLib.scan.lungs import interior, lung_mask
from MITSGANLib.scan.volume import PROTECTION, CTVolume
from MITSGANTrainingLib.commandline import main
from training_data import write_untrained_attackers

QUICK = SearchConfig(steps=2, places=2)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge("untrained", "nodule", CUBE, untrained("PlainNetwork"), 0.5, "1" * 64)


@pytest.fixture(scope="module")
def scan(phantom) -> CTVolume:
    return phantom.volume


@pytest.fixture(scope="module")
def region(scan) -> np.ndarray:
    """The middle of one lung."""
    lung = np.argwhere(lung_mask(scan))
    middle = lung[len(lung) // 2]
    inside = np.zeros(scan.shape, bool)
    inside[tuple(slice(max(0, c - 5), c + 6) for c in middle)] = True
    return inside


@pytest.fixture(scope="module")
def allowed(scan) -> np.ndarray:
    return allowed_in_slices(scan.hu, Budget(strength_hu=40.0), scan.spacing_kji, scan.provenance.padding_hu)


@pytest.fixture
def make(scan, allowed, region, untrained_attackers, judge):
    """A search of one region with the untrained injector and judge; options replace its parts."""

    def search(config: SearchConfig = QUICK, **options: object) -> ChangeSearch:
        parts = {"volume": scan, "allowed": allowed, "attackers": [untrained_attackers["inject"]], "judges": [judge]}
        rest = {"device": "cpu", "within": region, "seed": 1}
        given = {**parts, **rest, **options}
        return ChangeSearch(*(given.pop(name) for name in parts), config, **given)

    return search


@pytest.mark.slow
def test_the_change_keeps_its_bounds_in_whole_hu(make, scan, allowed):
    search = make()
    search.run()
    change = search.change()
    assert np.abs(change).max() > 1
    assert (np.abs(change) <= allowed).all()
    protected = apply_change(scan.hu, change, allowed)
    moved = np.subtract(protected, scan.hu, dtype=np.float64)
    lung = lung_mask(scan)
    assert abs(moved[lung].mean()) < 1
    assert not moved[~(allowed > 0)].any()


@pytest.mark.parametrize(("period_mm", "kept"), [(80.0, 0.1), (8.0, 0.9)])
def test_what_is_slower_than_20_mm_is_taken_out(period_mm, kept):
    """A wave along the rows keeps so much of its size, at most or at least; an offset keeps nothing."""
    spacing, limit = (2.5, 1.0, 1.0), torch.full((24, 160, 48), 30.0)
    row = torch.arange(160.0).view(1, -1, 1)
    wave = (10 * torch.sin(2 * np.pi * row / period_mm)).expand(limit.shape)
    left = without_slow(wave + 5, limit, spacing, 6.0)[8:16, 40:120, 18:30]
    share = float(left.std() / wave[8:16, 40:120, 18:30].std())
    assert share < kept if period_mm > 20 else share > kept
    assert abs(float(left.mean())) < 0.5


@pytest.mark.slow
def test_the_finding_becomes_less_likely_at_places_drawn_anew(make):
    """Judged at places that none of its steps drew."""
    search = make(SearchConfig(steps=8, places=2, noise_hu=0.0))

    def sureness() -> float:
        return float(
            np.mean([search.sureness(search.blocks[0], np.random.default_rng(seed)).item() for seed in range(90, 94)])
        )

    before = sureness()
    search.run()
    assert sureness() < before


@pytest.mark.slow
def test_what_judges_see_beside_the_forgery_is_the_original_or_the_changed_scan(make):
    """The same where nothing is changed yet; then each finds a change of its own."""
    both = [make(dataclasses.replace(QUICK, noise_hu=0.0, into_original=one)) for one in (True, False)]
    first, second = (search.sureness(search.blocks[0], np.random.default_rng(9)).item() for search in both)
    assert first == pytest.approx(second, abs=1e-4)
    for search in both:
        search.run()
    first, second = (search.change() for search in both)
    assert np.abs(first - second).max() > 1


@pytest.mark.slow
def test_a_stopped_search_continues_as_if_it_had_not_stopped(make, tmp_path):
    whole = make()
    whole.run()
    stopped, state = make(), tmp_path / "search.npz"

    def stop(done: int, _all: int) -> None:
        if done == stopped.steps // 2:
            raise CancelledError("stopped")

    with pytest.raises(CancelledError):
        stopped.run(state=state, progress=stop)
    assert 0 < stopped.steps_done < stopped.steps
    continued = make()
    continued.run(state=state)
    assert continued.steps_done == whole.steps_done == whole.steps
    np.testing.assert_allclose(continued.change(), whole.change(), atol=1e-3)


def test_a_time_limit_ends_it(make):
    ticks = iter(range(1000))
    search = make(SearchConfig(steps=50, places=1))
    search.run(minutes=0.05, clock=lambda: float(next(ticks)))
    assert 0 < search.steps_done < search.steps


@pytest.mark.slow
def test_a_kept_search_of_another_budget_is_refused(make, tmp_path, allowed):
    state = tmp_path / "search.npz"
    make().run(state=state)
    before = state.read_bytes()
    with pytest.raises(InputError, match="of another scan"):
        make(allowed=allowed // 2).run(state=state)
    assert state.read_bytes() == before


def test_a_damaged_state_is_refused_and_kept(make, tmp_path):
    state = tmp_path / "search.npz"
    state.write_bytes(b"PK\x03\x04 not a state")
    with pytest.raises(InputError, match="cannot be read"):
        make().run(state=state)
    assert state.read_bytes().startswith(b"PK\x03\x04 not")


@pytest.mark.slow
def test_the_state_holds_no_voxel_of_the_scan(make, tmp_path):
    state = Path(tmp_path) / "search.npz"
    make().run(state=state)
    with np.load(state) as kept:
        assert set(kept.files) == {"share", "first", "second", "count", "steps_done", "identity"}


@pytest.fixture(scope="module")
def protector(tmp_path_factory, untrained_attackers) -> Protector:
    folder = tmp_path_factory.mktemp("attackers")
    write_untrained_attackers(folder, untrained_attackers)
    config = SearchConfig(steps=1, places=1, block_mm=96.0)
    search = Search((str(folder / "attackers" / "untrained"),), ("nodule-plain",), config)
    return dataclasses.replace(load_protector("search"), proposer=search)


class TestModel:
    """``--model search``: the same door as every protector."""

    @pytest.mark.slow
    def test_a_scan_is_protected_within_its_own_noise(self, scan, protector):
        seen = []
        protected = protect(scan, model=protector, device="cpu", progress=lambda done, _all: seen.append(done))
        moved = np.abs(np.subtract(protected.hu, scan.hu, dtype=np.int32))
        assert 0 < moved.max() <= protector.strength_hu
        assert seen == sorted(seen)
        assert seen[-1] == scan.shape[0]
        step = protected.provenance.last(PROTECTION)
        assert step.parameters["model"] == "search"
        assert step.parameters["noise_share"] == SEARCH_BUDGET.noise_share

    @pytest.mark.slow
    def test_near_places_alone(self, scan, protector):
        """What an attack there reads lies at most twice 17 mm away, and two voxels of rounding."""
        lungs = np.argwhere(lung_mask(scan) & interior(scan, 16.0))
        near = tuple(int(at) for at in lungs[0])
        proposer = dataclasses.replace(protector.proposer, near=(near,))
        alone = dataclasses.replace(protector, proposer=proposer, watermark=None)
        protected = protect(scan, model=alone, device="cpu")
        away = np.abs(np.argwhere(protected.hu != scan.hu) - near)
        reach = 34 / np.array(scan.spacing_kji) + 2
        assert len(away)
        assert (away <= reach).all()
        assert (np.abs(lungs - near) > reach).any()

    def test_a_time_limit_says_how_long_it_takes(self, scan, protector):
        limited = dataclasses.replace(protector.proposer, minutes=2.0)
        assert limited.seconds(scan, "cpu") == 120

    @pytest.mark.slow
    def test_a_demonstration_searches_against_the_attacker_that_it_shows(
        self, scan, protector, tmp_path, monkeypatch, capsys
    ):
        """Stopped, it keeps the search, and the next one goes on."""
        others = dataclasses.replace(protector.proposer, attackers=("others",))
        ready = dataclasses.replace(protector, proposer=others)
        monkeypatch.setattr("MITSGANTrainingLib.commands.demo.load_protector", lambda *_, **__: ready)
        save_volume(scan, tmp_path / "scan.nrrd")
        (shown,), kept = protector.proposer.attackers, tmp_path / "kept.npz"
        words = ["--model", "search", "--keep-search", kept, "--attacker", shown, "--targets", "1", "--device", "cpu"]
        command = [str(word) for word in ("demo", tmp_path / "scan.nrrd", tmp_path / "report", *words)]
        step = ChangeSearch.step

        def stop(search: ChangeSearch, share: float) -> None:
            step(search, share)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ChangeSearch, "step", stop)
            assert main(command) == 130
        with np.load(kept) as state:
            assert state["steps_done"] == 1
        assert main(command) == 0
        assert "the attack changed its middle" in capsys.readouterr().out
        record = json.loads((tmp_path / "report" / "report.json").read_text())
        assert record["protector"]["name"] == "search"
        assert record["attackers"][0]["name"] == "untrained"

    @pytest.mark.parametrize("command", ["protect", "demo"])
    @pytest.mark.parametrize(
        "words",
        [("--minutes", "5"), ("--keep-search", "kept.npz"), ("--model", "search", "--minutes", "0")],
    )
    def test_options_that_do_not_fit(self, command, words, tmp_path, capsys):
        with pytest.raises(SystemExit) as caught:
            main([command, str(tmp_path / "scan.nrrd"), str(tmp_path / "out.nrrd"), *words])
        assert caught.value.code == 2
        assert "--minutes" in capsys.readouterr().err


class TestBadInput:
    def test_without_attackers_or_judges(self, make):
        for missing in ({"attackers": []}, {"judges": []}):
            with pytest.raises(InputError, match="at least one attacker and one nodule judge"):
                make(**missing)

    def test_a_judge_of_another_question(self, make, judge):
        other = dataclasses.replace(judge, question="forgery", view=SQUARES)
        with pytest.raises(InputError, match="judges of nodules"):
            make(judges=[other])

    def test_no_lung(self, make, region):
        with pytest.raises(TargetError, match="No lung"):
            make(within=np.zeros_like(region))

    @pytest.mark.parametrize("change", [{"steps": 0}, {"places": 0}, {"rate": 0.0}, {"noise_hu": -1.0}])
    def test_configurations_that_mean_nothing(self, change):
        with pytest.raises(InputError):
            SearchConfig(**change)
