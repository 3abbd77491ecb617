"""The choice of device and precision: said in words, refused where it is not there."""

from __future__ import annotations

import pytest
import torch
from MITSGANLib.errors import DependencyError
from MITSGANLib.runtime.devices import PRECISIONS, describe_device, may_use_half, resolve_device


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DependencyError, match="choose the CPU"):
        resolve_device("cuda")


def test_with_a_gpu_auto_takes_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")


def test_apples_gpu_is_taken_by_name_alone_and_never_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == torch.device("mps")
    assert resolve_device("auto") == torch.device("cpu")
    assert describe_device(torch.device("mps")).startswith("Apple GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DependencyError, match=r"Apple GPU.*choose the CPU"):
        resolve_device("mps")


def test_an_unknown_device_is_refused_by_name():
    with pytest.raises(DependencyError, match="'tpu'"):
        resolve_device("tpu")


@pytest.mark.parametrize(("count", "words"), [(1, ", 1 thread)"), (2, ", 2 threads)")])
def test_a_cpu_is_described_with_its_threads(monkeypatch, count, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    assert describe_device(torch.device("cpu")).endswith(words)


class TestPrecision:
    @pytest.mark.parametrize(("precision", "expected"), [("auto", True), ("float32", False), ("half", True)])
    def test_on_a_gpu_half_is_open_unless_float32_is_asked_for(self, precision, expected):
        assert may_use_half(precision, torch.device("cuda")) is expected

    def test_on_a_cpu_it_is_never_chosen_and_refused_when_asked_for(self):
        assert not may_use_half("auto", torch.device("cpu"))
        with pytest.raises(DependencyError, match="needs an NVIDIA GPU"):
            may_use_half("half", torch.device("cpu"))

    def test_an_unknown_one_is_refused_with_the_choices(self):
        with pytest.raises(DependencyError, match=", ".join(PRECISIONS)):
            may_use_half("double", torch.device("cpu"))
