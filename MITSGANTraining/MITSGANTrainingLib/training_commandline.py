"""The command line of ``train.py``: which recipe, on what data, where to."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from MITSGANLib.errors import MITSGANError
from MITSGANLib.models import MODELS_FOLDER

from .recipes import RECIPES, record_figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one model and give the process's exit code."""
    import torch

    parser = argparse.ArgumentParser(prog="train.py", description="Train one of the shipped models again.")
    parser.add_argument("model", choices=RECIPES, help="what to train; the protector needs both attackers in --out")
    parser.add_argument(
        "--data", type=Path, default=Path(), help="folder of CT, laid out as recipes.py says (default: here)"
    )
    parser.add_argument("--work", type=Path, default=Path("runs"), help="folder for checkpoints (default: runs)")
    parser.add_argument(
        "--out", type=Path, default=MODELS_FOLDER, help="folder of models (default: the installed ones)"
    )
    parser.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    parser.add_argument("--seed", type=int, help="seed (default: the recipe's)")
    parser.add_argument("--threads", type=int, help="CPU threads for torch (default: all)")
    parser.add_argument(
        "--figures",
        type=Path,
        nargs="+",
        metavar="REPORT.json",
        help="do not train; write the figures of these reports of mitsgan demo into the protector's model card",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.threads:
        torch.set_num_threads(options.threads)
    changes = {name: value for name in ("steps", "seed") if (value := getattr(options, name)) is not None}
    try:
        if options.figures:
            path = record_figures(options.out, options.figures)
        else:
            path = RECIPES[options.model].train(options.data, options.work, options.out, changes)
    except MITSGANError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("train.py: Stopped; run again with the same options to continue.", file=sys.stderr)
        return 130
    print(f"Wrote {path}")
    return 0
