"""Training with two processes (gloo, CPU) as ``torchrun`` starts them: equal to one process, and stopping together."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from MITSGANLib.errors import CancelledError, InputError
from MITSGANTrainingLib.commandline import main
from team_member import double_precision
from training_data import write_dataset, write_untrained_attackers

pytestmark = pytest.mark.slow
HERE = Path(__file__).parents[1]
ATTACKER = """
task = "attacker"
role = "injector"
name = "tiny"
base_filters = 2
dropout = 0.25
[augmentation]
variants = 2
[training]
steps = 2
batch_size = 4
validate_every = 2
"""
PROTECTOR = """
task = "mitsgan-small"
name = "tiny"
attackers = ["untrained"]
context = 4
validation_targets = 2
[generator]
trunk_filters = 4
residual_blocks = 1
output = "residual"
unshuffle = 2
[training]
steps = 2
batch_size = 2
clip_norm = 1.0
validate_every = 2
"""


def run_team(jobs: list[dict]) -> list[list[int]]:
    """Exit codes of all jobs, for each of two processes with the environment that ``torchrun`` gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "team_member.py"), json.dumps(jobs)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), outputs
    return [json.loads(out.splitlines()[-1]) for out, _errors in outputs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, phantom, untrained_attackers) -> Path:
    """Data, attackers, recipes, and the runs of a team and of a single process beside each other."""
    folder = tmp_path_factory.mktemp("team")
    smaller = dataclasses.replace(phantom.volume, hu=phantom.volume.hu[:40])
    write_dataset(folder / "data", {"patient-0": phantom.volume, "patient-2": smaller})
    for out in ("team", "alone"):
        write_untrained_attackers(folder / out, untrained_attackers)
    for name, text in (("attacker", ATTACKER), ("protector", PROTECTOR)):
        (folder / f"{name}.toml").write_text(text)
    return folder


def arguments(folder: Path, recipe: str, where: str, work: str, *options: str) -> list[str]:
    paths = ["--data", folder / "data", "--work", folder / where / work, "--out", folder / where]
    fixed = ["--device", "cpu", "--threads", "1", "--no-logs"]
    return [str(part) for part in (folder / f"{recipe}.toml", *paths, *fixed, *options)]


@pytest.fixture(scope="module")
def codes(folder) -> list[list[int]]:
    """Exit codes of everything the team does, in one go: importing torch is what takes the time."""
    return run_team(
        [
            {"arguments": arguments(folder, "attacker", "team", "attacker")},
            {"arguments": arguments(folder, "protector", "team", "protector")},
            # SIGTERM to the second process only.
            {"arguments": arguments(folder, "attacker", "team", "stopped"), "terminate_rank": 1, "at_step": 1},
            # An error that only the leading process meets.
            {"arguments": arguments(folder, "attacker", "team", "stopped", "--set", "dropout=0.5")},
            {"arguments": arguments(folder, "attacker", "team", "stopped")},
        ]
    )


def modules(path: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(path, weights_only=True)["modules"]
    return {f"{name}.{key}": value for name, state in saved.items() for key, value in state.items()}


@pytest.mark.parametrize("recipe", ["attacker", "protector"])
def test_two_processes_equal_one(folder, codes, recipe):
    """Weights and batch norm's statistics after several steps, with dropout, both networks of a GAN, and clipping."""
    index = ["attacker", "protector"].index(recipe)
    assert [process[index] for process in codes] == [0, 0]
    with double_precision():
        assert main(["train", *arguments(folder, recipe, "alone", recipe)]) == 0
    team, alone = (modules(folder / where / recipe / "last.pt") for where in ("team", "alone"))
    assert team.keys() == alone.keys()
    for name, value in alone.items():
        # The generator's noise is the same for all samples, so a team counts it twice in the variance's correction.
        tolerance = 1e-4 if "noise_net" in name and name.endswith("running_var") else 1e-8
        torch.testing.assert_close(team[name], value, atol=tolerance, rtol=tolerance, msg=name)


def test_what_comes_to_one_process_stops_all_and_the_run_goes_on(folder, codes):
    assert [process[2] for process in codes] == [CancelledError.exit_code] * 2
    assert [process[4] for process in codes] == [0, 0]
    whole, parts = (modules(folder / "team" / work / "last.pt") for work in ("attacker", "stopped"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_an_error_of_the_leading_process_ends_all(codes):
    assert [process[3] for process in codes] == [InputError.exit_code] * 2
