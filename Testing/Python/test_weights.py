"""Model cards that are damaged, and what they ask for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from MITSGANLib.errors import ModelError
from MITSGANLib.weights import ModelCard, configuration, fill, read_weights, write_weights


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 3
    sizes: tuple[int, ...] = ()


def card(**config: object) -> ModelCard:
    return ModelCard("tiny", "any", "", {"class": "Linear", "config": config}, {}, {}, {}, "", 0, "", "")


def make(config: Config) -> torch.nn.Module:
    return torch.nn.Linear(config.width, 2)


@pytest.fixture
def written(tmp_path) -> Path:
    path = tmp_path / "tiny.safetensors"
    write_weights(path, torch.nn.Linear(3, 2).state_dict(), card(width=3))
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [("architecture", None), ("architecture", []), ("data", "x"), ("seed", True), ("seed", 1.5), ("name", 3)],
)
def test_fields_of_another_type_are_refused(written, field, value):
    path = written.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ModelError, match=f"{field} is no"):
        read_weights(written)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"null", b"{}"])
def test_what_is_no_card_is_refused(written, content):
    written.with_suffix(".json").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(written)


@pytest.mark.parametrize("config", [{"width": 2**40}, {"sizes": [1, 1e300]}, {"width": {}}, {"depth": 1}])
def test_numbers_that_no_architecture_has_are_refused(config):
    with pytest.raises(ModelError):
        configuration(Config, card(**config))


def test_a_network_is_made_only_where_the_weights_fit(written):
    tensors, read = read_weights(written)
    devices = []

    def make_and_note() -> torch.nn.Module:
        devices.append(torch.empty(0).device.type)
        return make(Config(10_000))

    with pytest.raises(ModelError, match="another architecture"):
        fill(make_and_note, tensors, read)
    assert devices == ["meta"]
    network = fill(lambda: make(configuration(Config, read)), tensors, read)
    assert torch.equal(network.weight, tensors["weight"])


def test_a_network_that_cannot_be_made_is_refused():
    with pytest.raises(ModelError, match="cannot be built"):
        fill(lambda: make(Config(width=-1)), {}, card())
