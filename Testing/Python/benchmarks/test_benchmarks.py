"""The benchmarks measure what they say: operations, bytes, memory, identity; and their report holds every figure."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from MITSGANLib.budget.budget import allowed_in_slices
from MITSGANLib.files.storage import load_volume
from MITSGANLib.protection.generator import GeneratorConfig
from torch import nn

EDGE = 128


@pytest.fixture(scope="module")
def benchmarks(script):
    """The modules of the benchmarks."""
    names = ("bench", "floor", "measuring", "memory", "rendering", "speed", "subjects", "timing", "whole_scan")
    return type("Benchmarks", (), {name: script(name) for name in names})


class TestCounting:
    def test_operations_and_bytes_of_convolutions_by_hand(self, benchmarks):
        network = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 1, 1)).eval()
        with benchmarks.floor.counted() as cost, torch.inference_mode():
            network(torch.zeros(3, 2, 10, 20))
        voxels = 3 * 10 * 20
        assert cost.flop == 2 * voxels * (5 * 2 * 9 + 1 * 5)
        assert cost.bytes == 4 * (voxels * (2 + 5 + 5 + 1) + 2 * 5 * 9 + 5)
        network(torch.zeros(1, 2, 8, 8))
        assert cost.flop == 2 * voxels * 95, "nothing is counted outside of the block"

    def test_the_papers_generator_takes_117_gflop_a_slice(self, benchmarks):
        from MITSGANLib.protection.generator import Generator

        network = Generator(GeneratorConfig()).eval()
        with benchmarks.floor.counted() as cost, torch.inference_mode():
            network(torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))
        assert 64 * cost.flop == pytest.approx(117e9, rel=5e-3)

    def test_floor_at_given_rates(self, benchmarks):
        assert benchmarks.floor.Cost(flop=200, bytes=30).seconds(100, 10) == (2, 3)


class TestTiming:
    def test_cases_alternate_and_count_by_unit(self, benchmarks):
        calls = []
        cases = {name: benchmarks.timing.Case(lambda name=name: calls.append(name), 2) for name in "abc"}
        times = benchmarks.timing.alternate(cases, repeats=3)
        assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
        assert list(times) == list("abc")
        assert all(timing.repeats == 3 and timing.wall_s >= 0 for timing in times.values())

    def test_the_machine_is_named(self, benchmarks):
        machine = benchmarks.timing.machine()
        assert machine["cpu"]
        assert machine["cores"] >= 1


class TestSubjects:
    def test_without_a_scan_there_is_a_phantom(self, benchmarks, tmp_path):
        volume = benchmarks.subjects.scan_or_phantom(tmp_path / "none", EDGE)
        assert volume.shape[1:] == (EDGE, EDGE)

    @pytest.mark.slow
    def test_naive_change_is_the_networks_answer_for_each_slice(self, benchmarks):
        subjects = benchmarks.subjects
        volume = subjects.scan_or_phantom(None, EDGE)
        protector = subjects.papers_protector(volume, GeneratorConfig(trunk_filters=8))
        hu = volume.hu[4:6]
        allowed = allowed_in_slices(hu, protector.budget, volume.spacing_kji)
        change = subjects.naive_change(protector, hu, allowed)
        low, high = protector.proposer.config.hu_window
        assert change.shape == hu.shape
        assert ((change + hu >= low - 1) & (change + hu <= high + 1)).all()
        assert np.ptp(change + hu) > 10, "a network whose answer is the same everywhere would hide errors"


class TestMemory:
    @pytest.mark.slow
    def test_what_a_process_holds_is_seen_and_what_its_starter_holds_is_not(self, benchmarks):
        mine = np.ones(300_000_000, np.uint8)
        small = benchmarks.whole_scan.run_code("pass", [], 1)
        large = benchmarks.whole_scan.run_code("b = bytearray(200_000_000); b[::4096] = b[::4096]", [], 1)
        assert small.peak_bytes < 100_000_000 < mine.nbytes
        assert 200_000_000 <= large.peak_bytes < 300_000_000

    def test_a_process_that_fails_is_no_measurement(self, benchmarks):
        with pytest.raises(RuntimeError, match="no such"):
            benchmarks.whole_scan.run_code("raise SystemExit('no such')", [], 1)

    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", [".nrrd", ".nii", ""])
    def test_synthetic_scans_are_read_as_they_were_meant(self, benchmarks, tmp_path, suffix):
        path = benchmarks.memory.write_scan(tmp_path / f"scan{suffix}", 30, 32)
        volume = load_volume(path)
        assert volume.shape == (30, 32, 32)
        assert volume.spacing == pytest.approx((360 / 32, 360 / 32, 1.0))
        assert (volume.hu[24:] == volume.hu[:6]).all()
        assert volume.hu.min() < -900


@pytest.mark.slow
def test_the_command_measures_and_writes_both_reports(benchmarks, tmp_path, monkeypatch, capsys):
    small = GeneratorConfig(trunk_filters=8)
    papers = benchmarks.subjects.papers_protector
    monkeypatch.setattr(benchmarks.speed, "papers_protector", lambda volume: papers(volume, small))
    arguments = ["--edge", str(EDGE), "--scan", str(tmp_path / "none"), "--repeats", "1", "--threads", "1"]
    arguments += ["--slices", "9", "--out", str(tmp_path / "out"), "--parts", "speed"]
    assert benchmarks.bench.main(arguments) == 0
    results = json.loads((tmp_path / "out" / "bench.json").read_text())
    text = (tmp_path / "out" / "bench.md").read_text()
    assert capsys.readouterr().out == text
    ways = results["speed"]["ways"]
    assert len(ways) == 8
    for name, way in ways.items():
        assert name in text
        exact = "fused" not in name
        assert (way["difference_before_rounding_hu"] == 0) == exact
        assert way["floor_arithmetic_s"] > 0
    assert f"The watermark takes {results['speed']['watermark_cpu_s']:.3f} CPU s" in text
    ours, naive = ways["paper, as mitsgan runs it"], ways["paper, naive"]
    assert ours["gflop_per_slice"] <= naive["gflop_per_slice"]


@pytest.mark.slow
def test_measuring_and_reporting_are_measured(benchmarks, phantom, untrained_attackers, monkeypatch):
    monkeypatch.setattr(benchmarks.measuring, "load_attacker", lambda _name, action: untrained_attackers[action])
    result = benchmarks.measuring.measure_measuring(phantom.volume, 1)
    assert result["noise_draws"] > 2
    assert set(result["stages"]) == {"LPIPS, first use", "measure", "report, figures", "report, page"}
    assert all(stage["cpu_s"] > 0 for name, stage in result["stages"].items() if name != "LPIPS, first use")
    assert result["ssim_ratio"] == result["ssim_cpu_s"]["scikit-image"] / result["ssim_cpu_s"]["as mitsgan runs it"]


def test_every_part_has_its_section(benchmarks):
    one = {"wall_s": 1.5, "cpu_s": 2.5}
    results = {
        "machine": {**benchmarks.timing.machine(), "busy": True},
        "scan": {
            "command": {**one, "peak_bytes": 5e8, "start_wall_s": 0.5, "torch_wall_s": 0.7},
            "stages": {"slices": 133, "stages": {"read": one, "write": one}},
        },
        "measure": {
            "slices": 133,
            "ssim_cpu_s": {"scikit-image": 0.032, "as mitsgan runs it": 0.008},
            "ssim_ratio": 4.0,
            "has_lpips": True,
            "noise_draws": 5,
            "stages": {"measure": one, "report, page": one},
        },
        "memory": {
            "definition": "largest",
            "slices": 1200,
            "edge": 512,
            "volume_bytes": 6e8,
            "limit_bytes": 3e9,
            "start_bytes": 1e8,
            "formats": {"nrrd": {"peak_bytes": 4e9, "volumes_beyond_start": 6.5, "within_limit": False, **one}},
        },
    }
    text = benchmarks.rendering.to_markdown(results)
    assert "Others used this machine" in text
    assert "| all of these | 3.00 | 5.00 |" in text
    assert "scikit-image 32.0 ms, as mitsgan runs it 8.0 ms of CPU, 4.0 times as fast" in text
    assert "| measure | 1.5 | 2.5 |" in text
    assert "| nrrd | 4000 MB | 6.50 | 3000 MB | **no** | 2 |" in text
