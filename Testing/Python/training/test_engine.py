"""The training engine on a toy task: exact resume, early stop, what happens when something goes wrong."""

from __future__ import annotations

import logging
import math
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MITSGANLib.errors import CancelledError, InputError, OutputError
from MITSGANTrainingLib.commands.train import stop_on_signals
from MITSGANTrainingLib.training.checkpoints import read_checkpoint, save_checkpoint
from MITSGANTrainingLib.training.engine import BEST, LAST, DivergedError, Learner, Loss, Step, Trainer, Training
from MITSGANTrainingLib.training.monitor import Monitor
from MITSGANTrainingLib.training.team import Team, frozen
from torch import nn
from training_data import same
from training_toy import Toy, ToyConfig, trainer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads cost more than they bring on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestDraws:
    @given(count=st.integers(1, 30), batch=st.integers(1, 12), seed=st.integers(0, 9))
    def test_every_pass_takes_every_sample_once(self, count, batch, seed):
        steps = 3 * math.ceil(count / batch)
        taken = [index for number in range(steps) for index in Step(number, seed, batch).indices(count)]
        for begin in range(0, len(taken) - count + 1, count):
            assert sorted(taken[begin : begin + count]) == list(range(count))

    def test_passes_and_seeds_differ(self):
        first, second, other = (Step(n, seed, 20).indices(20) for n, seed in ((0, 0), (1, 0), (0, 1)))
        assert first != second
        assert first != other

    @pytest.mark.slow
    @given(number=st.integers(0, 10**6), seed=st.integers(0, 10**6))
    def test_a_step_draws_the_same_again(self, number, seed):
        step = Step(number, seed, 1)
        assert step.rng().integers(2**62) == step.rng().integers(2**62)


class TestResume:
    @pytest.mark.slow
    @settings(max_examples=15, deadline=None)
    @given(stops=st.sets(st.integers(1, 7)))
    def test_a_run_stopped_anywhere_equals_an_unbroken_one(self, stops):
        """Weights, statistics, optimizers, the record of validations: equal to the last bit."""
        with tempfile.TemporaryDirectory() as folder:
            whole, parts = Path(folder) / "whole", Path(folder) / "parts"
            result = trainer(whole, validate_every=2).run()
            for stop in stops:
                with pytest.raises(CancelledError, match=f"after step {stop} of 8"):
                    run_until(parts, stop)
            assert trainer(parts, validate_every=2).run() == result
            for name in (LAST, BEST):
                assert same(read_checkpoint(whole / name), read_checkpoint(parts / name))

    def test_a_finished_run_gives_its_figures_again(self, tmp_path):
        result = trainer(tmp_path).run()
        assert trainer(tmp_path).run() == result

    def test_more_steps_and_other_intervals_go_on(self, tmp_path):
        trainer(tmp_path, steps=4).run()
        assert trainer(tmp_path, steps=6, save_every=1, report_every=1, validate_every=1, patience=3).run().steps == 6

    def test_fewer_steps_than_done_are_refused(self, tmp_path):
        trainer(tmp_path, steps=4).run()
        with pytest.raises(InputError, match="has 4 steps already"):
            trainer(tmp_path, steps=3).run()

    @pytest.mark.parametrize(
        ("config", "options", "named"),
        [
            (ToyConfig(dropout=0.25), {}, r"dropout is 0.3 in the checkpoint and 0.25 in the recipe"),
            (None, {"seed": 3}, r"training.seed is 0 in the checkpoint and 3"),
            (None, {"batch_size": 6}, r"training.batch_size is 4"),
        ],
    )
    def test_another_configuration_is_refused_and_named(self, tmp_path, config, options, named):
        trainer(tmp_path).run()
        with pytest.raises(InputError, match=named):
            trainer(tmp_path, config, **options).run()

    def test_a_damaged_checkpoint_is_named(self, tmp_path):
        (tmp_path / LAST).write_bytes(b"damaged")
        with pytest.raises(InputError, match=r"last\.pt is unreadable"):
            trainer(tmp_path).run()

    def test_a_checkpoint_of_an_older_version_is_named(self, tmp_path):
        torch.save({"config": {}, "step": 3, "state": {}}, tmp_path / LAST)
        with pytest.raises(InputError, match="another version"):
            trainer(tmp_path).run()


def run_until(folder: Path, step: int) -> None:
    """Run the toy of the tests above and ask it to stop after a step."""
    ready = trainer(folder, validate_every=2, stop=lambda: ready.task.step >= step)
    ready.run()


class TestWhenThingsGoWrong:
    @pytest.mark.parametrize("gradient", [False, True])
    def test_what_is_not_finite_stops_and_keeps_the_last_checkpoint(self, tmp_path, gradient):
        config = ToyConfig(learning_rate=0.01, poisoned_step=5, poisoned_gradient=gradient)
        what = "gradient" if gradient else "loss"
        with pytest.raises(DivergedError, match=rf"The {what} of the generator .* step 5\. .*Lower .*generator 0\.01"):
            trainer(tmp_path, config).run()
        saved = read_checkpoint(tmp_path / LAST)
        assert saved["step"] == 3
        assert all(value.isfinite().all() for value in saved["modules"]["generator"].values())

    def test_a_full_disk_keeps_the_checkpoint_before(self, tmp_path, monkeypatch):
        trainer(tmp_path, steps=3).run()
        before = read_checkpoint(tmp_path / LAST)

        def full(*_arguments: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OutputError, match="No space left"):
            trainer(tmp_path, steps=6).run()
        monkeypatch.undo()
        assert same(read_checkpoint(tmp_path / LAST), before)
        assert [file.name for file in tmp_path.iterdir()] == [LAST]

    def test_a_checkpoint_that_torch_fails_to_write_counts_as_a_full_disk(self, tmp_path, monkeypatch):
        def fail(*_arguments: object) -> None:
            raise RuntimeError("unexpected pos")

        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(OutputError):
            save_checkpoint(tmp_path / LAST, {})
        assert not any(tmp_path.iterdir())

    def test_validation_without_data_is_said(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Toy, "validate", lambda _self: {})
        with pytest.raises(InputError, match="nothing to validate on"):
            trainer(tmp_path, validate_every=2).run()


class TestEnd:
    def test_early_stop_after_patience_and_the_best_weights(self, tmp_path):
        config = ToyConfig(worse_after=2)
        best = trainer(tmp_path / "best", config, steps=20, validate_every=2, patience=3, keep="best")
        result = best.run()
        assert (result.steps, result.early) == (10, True)
        assert read_checkpoint(tmp_path / "best" / BEST)["step"] == 4
        short = trainer(tmp_path / "short", steps=20, stop=lambda: short.task.step == 4)
        with pytest.raises(CancelledError):
            short.run()
        assert same(dict(best.task.generator.state_dict()), dict(short.task.generator.state_dict()))

    def test_a_run_that_stopped_early_stays_so(self, tmp_path):
        options = {"steps": 20, "validate_every": 2, "patience": 3}
        trainer(tmp_path, ToyConfig(worse_after=2), **options).run()
        assert trainer(tmp_path, ToyConfig(worse_after=2), **options).run().steps == 10

    def test_epochs_count_samples(self, tmp_path):
        assert trainer(tmp_path, steps=0, epochs=3, batch_size=5).steps == math.ceil(3 * 12 / 5)

    def test_it_learns(self, tmp_path):
        before, after = (
            trainer(tmp_path / str(steps), ToyConfig(dropout=0), steps=steps, save_every=100).run().figures["error"]
            for steps in (1, 60)
        )
        assert after < 0.8 * before

    @pytest.mark.parametrize(
        "options", [{"steps": 0}, {"steps": 5, "epochs": 5}, {"steps": 5, "patience": 2}, {"steps": 5, "keep": "best"}]
    )
    def test_training_options_that_contradict_each_other_are_refused(self, options):
        with pytest.raises(InputError):
            Training(batch_size=1, **options)


class TestDescent:
    def test_clipping_bounds_a_step(self, tmp_path):
        config = ToyConfig(learning_rate=1.0)
        clipped, free = (trainer(tmp_path / name, config, steps=1, clip_norm=c) for name, c in (("a", 0.01), ("b", 0)))
        before = torch.cat([p.detach().flatten().clone() for p in clipped.task.critic.parameters()])
        moved = []
        for one in (clipped, free):
            one.run()
            moved.append(
                (torch.cat([p.detach().flatten() for p in one.task.critic.parameters()]) - before).norm().item()
            )
        assert moved[0] == pytest.approx(0.01, rel=1e-3)
        assert moved[1] > 0.1

    def test_the_schedule_falls_to_its_last_share(self, tmp_path):
        rate = Learner(None, None, 0.1).rate
        assert rate(0.0) == pytest.approx(1.0)
        assert rate(0.5) == pytest.approx(0.55)
        assert rate(1.0) == pytest.approx(0.1)
        one = trainer(tmp_path, steps=8)
        one.run()
        (group,) = one.task.learners["generator"].optimizer.param_groups
        assert group["lr"] == pytest.approx(0.01 * rate(7 / 8))

    def test_a_frozen_network_passes_gradients_on_and_gets_none(self):
        network, x = nn.Linear(3, 1), torch.ones(1, 3, requires_grad=True)
        with frozen(network) as held:
            loss = held(x).sum()
        loss.backward()
        assert x.grad is not None
        assert network.weight.grad is None
        assert network.weight.requires_grad


class TestRehearsal:
    def test_it_counts_and_writes_nothing(self, tmp_path):
        report = trainer(tmp_path / "run", steps=5).rehearse()
        assert report["parameters"] == {"generator": 4 * 8 + 2 * 8 + 8 + 1, "critic": 2}
        assert (report["steps"], report["first_step"]) == (5, 0)
        # Weights and gradients, and two moments and a counter each of Adam for the generator's five tensors.
        assert report["weights_bytes"] == 4 * (2 * 59 + 2 * 57 + 5)
        assert report["activations_bytes"] > 4 * 4 * 8
        assert not (tmp_path / "run").exists()

    def test_it_says_where_a_run_would_go_on(self, tmp_path):
        trainer(tmp_path, steps=3).run()
        before = (tmp_path / LAST).read_bytes()
        assert trainer(tmp_path, steps=5).rehearse()["first_step"] == 3
        assert (tmp_path / LAST).read_bytes() == before


class TestMonitor:
    def test_tensorboard_gets_losses_figures_and_images(self, tmp_path):
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        monitor = Monitor(tmp_path / "logs")
        trainer(tmp_path / "run", validate_every=4, images_every=4, monitor=monitor).run()
        events = accumulator.EventAccumulator(str(tmp_path / "logs"))
        events.Reload()
        assert [event.step for event in events.Scalars("training/generator")] == [2, 4, 6, 8]
        assert [event.step for event in events.Scalars("validation/error")] == [4, 8]
        assert [event.step for event in events.Images("weights")] == [4, 8]

    def test_without_the_package_the_run_goes_on_and_says_so(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with caplog.at_level(logging.WARNING):
            assert trainer(tmp_path / "run", monitor=Monitor(tmp_path / "logs")).run().steps == 8
        assert "tensorboard is not installed" in caplog.text
        assert not (tmp_path / "logs").exists()


class TestTeam:
    @given(batch=st.integers(1, 64), size=st.integers(1, 12))
    def test_a_batch_is_divided_or_the_sizes_that_can_be_are_named(self, batch, size):
        team = Team(CPU, 0, size)
        if batch % size == 0:
            team.check_batch(batch)
            shares = [Team(CPU, rank, size).share(range(batch)) for rank in range(size)]
            assert [index for share in shares for index in share] == list(range(batch))
            assert len({len(share) for share in shares}) == 1
            return
        with pytest.raises(InputError) as caught:
            team.check_batch(batch)
        text = str(caught.value)
        sizes = text.partition("training.batch_size to ")[2].partition(", or")[0].split(" or ")
        counts = text.partition("start ")[2].removesuffix(" processes.").split(", ")
        assert all(int(fitting) % size == 0 for fitting in sizes)
        assert all(batch % int(count) == 0 for count in counts)


class TestMixedPrecision:
    """On the CPU the trainer leaves it off; torch can do it there all the same, so the scaler's part is tested."""

    def mixed(self, folder: Path, config: ToyConfig | None = None, scale: float = 2.0**16, **options) -> Trainer:
        one = trainer(folder, config, steps=6, **options)
        one.mixed, one.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)
        return one

    def test_a_resumed_run_has_the_scale_of_an_unbroken_one(self, tmp_path):
        self.mixed(tmp_path / "whole", scale=2.0**30).run()
        stopped = self.mixed(tmp_path / "parts", scale=2.0**30, stop=lambda: stopped.task.step == 3)
        with pytest.raises(CancelledError):
            stopped.run()
        self.mixed(tmp_path / "parts", scale=7.0).run()
        whole, parts = (read_checkpoint(tmp_path / name / LAST) for name in ("whole", "parts"))
        assert whole["scaler"]["scale"] < 2.0**30, "float16 must have overflowed"
        assert same(whole, parts)

    def test_a_gradient_that_no_scale_helps_ends_the_run(self, tmp_path):
        config = ToyConfig(poisoned_step=2, poisoned_gradient=True)
        one = self.mixed(tmp_path, config, scale=2.0**-9)
        with pytest.raises(DivergedError, match="mixed_precision to false"):
            one.run()

    def test_a_run_goes_on_without_it_on_another_device(self, tmp_path):
        with pytest.raises(CancelledError):
            self.mixed(tmp_path, stop=lambda: True).run()
        assert trainer(tmp_path, steps=6).run().steps == 6

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
    def test_on_a_gpu_it_is_on_and_resumes(self, tmp_path):
        team = Team(torch.device("cuda"))
        half = trainer(tmp_path, steps=6, team=team, stop=lambda: half.task.step == 3)
        with pytest.raises(CancelledError):
            half.run()
        assert read_checkpoint(tmp_path / LAST)["scaler"]["scale"] > 0
        assert trainer(tmp_path, steps=6, team=team).run().steps == 6


class TestSignals:
    @pytest.fixture(autouse=True)
    def of_the_foreground(self):
        """Shells let what they start in the background ignore Ctrl-C."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_first_signal_asks_to_stop_and_ctrl_c_after_it_stops_at_once(self, number, capfd):
        with stop_on_signals() as stop:
            assert not stop()
            signal.raise_signal(number)
            assert stop()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert "Finishing this step" in capfd.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_losses_are_reported_by_their_learner(tmp_path):
    class Seen(Monitor):
        def __init__(self) -> None:
            super().__init__(None)
            self.reports: dict[int, dict[str, float]] = {}

        def report(self, step, kind, values):
            assert kind == "training"
            self.reports[step] = dict(values)

    monitor = Seen()
    trainer(tmp_path, monitor=monitor).run()
    assert sorted(monitor.reports) == [2, 4, 6, 8]
    assert all(report.keys() == {"critic", "generator", "judged"} for report in monitor.reports.values())
    assert np.isfinite([value for report in monitor.reports.values() for value in report.values()]).all()
    assert Loss("generator", torch.zeros(())).scalars == {}
