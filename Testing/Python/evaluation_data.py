"""Scans, untrained networks as files, and an evaluation of them, small enough to be done within seconds.

``python Testing/Python/evaluation_data.py`` writes the figures that ``test_measurement.py`` compares with.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from judge_data import SQUARES, write_judge
from MITSGANLib.files.storage import save_volume
from MITSGANLib.protection.generator import Generator, GeneratorConfig
from MITSGANLib.scan.phantom import thorax_phantom
from MITSGANLib.scan.volume import CTVolume
from MITSGANLib.weights import ModelCard, write_weights
from MITSGANTrainingLib.evaluation.cache import MEASUREMENT
from MITSGANTrainingLib.evaluation.evaluate import EvaluationPlan, evaluate
from training_data import write_untrained_attackers

RECORDED = Path(__file__).resolve().parent / "vectors" / f"measurement-{MEASUREMENT}.json"


@functools.cache
def small_scan(seed: int = 3) -> CTVolume:
    """A thorax of 70 mm, just enough for a few places to attack."""
    return thorax_phantom(shape=(28, 128, 128), spacing_kji=(2.5, 2.8, 2.8), seed=seed).volume


def write_tiny_protector(
    path: Path, *, alpha: float | None = None, seed: int = 11, training: Mapping[str, Any] | None = None
) -> Path:
    """An untrained protector whose card names this alpha."""
    torch.manual_seed(seed)
    config = GeneratorConfig(trunk_filters=4, residual_blocks=1, output="residual", unshuffle=2)
    architecture = {"class": "Generator", "config": dataclasses.asdict(config)}
    texts = dict.fromkeys(("description", "limits", "command", "commit"), "")
    tables = {"data": {}, "figures": {}, "training": training or ({"alpha": alpha} if alpha is not None else {})}
    card = ModelCard(
        name="tiny",
        kind="protector",
        seed=seed,
        architecture=architecture,
        budget={"strength_hu": 12.0},
        **texts,
        **tables,
    )
    write_weights(path, Generator(config).state_dict(), card)
    return path


def small_plan(folder: Path, output: Path, **changes: object) -> EvaluationPlan:
    """One place for each action, without pictures and LPIPS, of what is in a folder.

    :param folder: with ``scan.nrrd``, ``tiny.safetensors``, the attacker ``untrained`` and the judges ``n`` and ``f``.
    """
    options = {
        "scans": (str(folder / "scan.nrrd"),),
        "protectors": (str(folder / "tiny.safetensors"),),
        "attackers": (str(folder / "attackers" / "untrained"),),
        "judges": tuple(str(folder / "judges" / f"{name}.safetensors") for name in "nf"),
        "targets": 1,
        "pictures": 0,
        "device": "cpu",
        "lpips_weights": str(folder / "no such file"),
    }
    return EvaluationPlan(output=output, **{**options, **changes})


def small_evaluation(folder: Path, attackers: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure of one scan with a network and with the watermark alone, attacked by both actions, judged by two.

    Left out are LPIPS, whose weights not every machine has, and what differs from machine to machine.

    :param attackers: by action, as the fixture ``untrained_attackers``.
    """
    save_volume(small_scan(), folder / "scan.nrrd")
    tiny = write_tiny_protector(folder / "tiny.safetensors")
    write_untrained_attackers(folder, attackers)
    write_judge(folder, "n")
    write_judge(folder, "f", "forgery", "SquaresNetwork", SQUARES)
    record = evaluate(small_plan(folder, folder / "evaluation", protectors=(str(tiny), "none"))).record
    return {
        part: _without(record[part], {"scan", "seconds", "device", "lpips"}) for part in ("measurements", "whole_scans")
    }


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(one, keys) for key, one in value.items() if key not in keys}
    return [_without(one, keys) for one in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    import conftest

    with tempfile.TemporaryDirectory() as folder:
        figures = small_evaluation(Path(folder), conftest.make_untrained_attackers())
    RECORDED.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {RECORDED}")
