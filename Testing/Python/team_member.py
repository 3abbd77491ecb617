"""One process of a team that the tests of training start: runs train.py's main for each list of arguments it is given.

``team_member.py JOBS`` where JOBS is JSON: a list of ``{"arguments": [...], "terminate_rank": R, "at_step": N}``; the
latter two send SIGTERM to the process of that rank at that step. Prints the exit codes as JSON.

All runs in float64: Adam turns the rounding of gradients near 0 into whole steps, so in float32 two orders of summing
drift apart by 1e-4 within four steps, and a real difference could hide there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from MITSGANTrainingLib.commandline import main
from MITSGANTrainingLib.training import engine


def _run(job: dict) -> int:
    original = engine.Trainer.take_step

    def step(self: engine.Trainer, number: int) -> dict:
        scalars = original(self, number)
        if job.get("terminate_rank") == self.team.rank and number + 1 == job["at_step"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return scalars

    engine.Trainer.take_step = step
    try:
        return main(["train", *job["arguments"]])
    finally:
        engine.Trainer.take_step = original


def _run_all(jobs: list[dict]) -> list[int]:
    codes = []
    for job in jobs:
        codes.append(_run(job))
        # A team of its own for each job: the store of the one before may still be open at the other process.
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    return codes


@contextmanager
def double_precision() -> Iterator[None]:
    """All networks in float64 within the block."""
    before, single = torch.get_default_dtype(), torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.Tensor.float = single


if __name__ == "__main__":
    with double_precision():
        print(json.dumps(_run_all(json.loads(sys.argv[1]))))
