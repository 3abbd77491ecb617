"""Train a model by a recipe (a TOML file) on data that 'mitsgan prepare' made.

The same command continues a stopped run. Ctrl-C or SIGTERM finish the step, save, and exit with code 130. Several GPUs
or machines: torchrun --nproc-per-node N MITSGANTraining/train.py RECIPE ...
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from MITSGANLib.errors import CancelledError, InputError, MITSGANError
from MITSGANLib.runtime.devices import DEVICES
from MITSGANLib.weights import MODELS_FOLDER

LOGGING = {"level": logging.INFO, "format": "%(asctime)s %(message)s"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe, the data, the folders, and what changes the recipe."""
    parser.add_argument("recipe", help="a TOML file, or the name of a shipped one (Resources/Recipes)")
    parser.add_argument("--data", type=Path, metavar="DATASET", help="folder that mitsgan prepare wrote")
    parser.add_argument("--work", type=Path, help="folder for checkpoints and logs (default: runs/RECIPE)")
    parser.add_argument(
        "--out", type=Path, default=MODELS_FOLDER, help="folder of models to write to (default: the installed ones)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an installed model of the same name")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="change a value of the recipe, such as training.batch_size=4; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="short for --set training.seed=...")
    parser.add_argument("--steps", type=int, help="short for --set training.steps=...; replaces epochs")
    parser.add_argument(
        "--attackers", nargs="+", default=[], metavar="ATTACKER",
        help="for a protector: folders or names of attackers to train against (default: the recipe's)",
    )  # fmt: skip
    parser.add_argument(
        "--start-from", type=Path, metavar="WEIGHTS",
        help="begin with the weights of this .safetensors file, of the same architecture, its card beside it",
    )  # fmt: skip
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to train (default: a GPU if any)")
    parser.add_argument("--threads", type=int, help="CPU threads of each process (default: all)")
    parser.add_argument("--no-logs", action="store_true", help="write no TensorBoard log to WORK/logs")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="build all, do one step, say what a run takes, and write nothing",
    )  # fmt: skip
    parser.add_argument(
        "--figures", type=Path, nargs="+", metavar="REPORT.json",
        help="do not train; write the figures of these reports of mitsgan demo into the protector's model card",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Train one model; of a team of processes only the first one speaks.

    :raises MITSGANError: for what a user can act on; too little memory and a loss that is not finite are among it.
    """
    leads = os.environ.get("RANK", "0") == "0"
    if not leads and not options.verbose:
        logging.getLogger().setLevel(logging.ERROR)
    try:
        text = _train(options)
    except KeyboardInterrupt:
        error: MITSGANError = CancelledError(
            "Stopped at once; the last checkpoint holds. Run the same command again to go on."
        )
    except MITSGANError as caught:
        error = caught
    except (MemoryError, RuntimeError) as caught:
        # By its name and words: torch's own error for a full GPU, and what its CPU allocator says.
        full = isinstance(caught, MemoryError) or type(caught).__name__ == "OutOfMemoryError"
        if not full and "allocate memory" not in str(caught):
            raise
        error = MITSGANError("Not enough memory; lower training.batch_size (--dry-run says what a step takes).")
    else:
        if leads:
            print(text)
        return 0
    if leads:
        raise error
    return error.exit_code


def _train(options: argparse.Namespace) -> str:
    """Do what the options say; gives what there is to say at the end."""
    import torch

    from ..data.dataset import Dataset
    from ..training.inputs import Inputs
    from ..training.monitor import Monitor
    from ..training.recipes import load_recipe
    from ..training.run import Run, record_figures
    from ..training.team import join_team

    recipe = load_recipe(options.recipe, _changes(options))
    if options.figures:
        name = getattr(recipe.config, "name", None)
        if recipe.task == "attacker" or not name:
            raise InputError("--figures writes into the card of a protector; name a protector's recipe.")
        return f"Wrote {record_figures(options.out, name, options.figures)}"
    if options.data is None:
        raise InputError("--data is missing; give a folder that mitsgan prepare wrote.")
    if options.threads is not None:
        if options.threads < 1:
            raise InputError(f"--threads must be at least 1, not {options.threads}.")
        torch.set_num_threads(options.threads)
    work = options.work or Path("runs") / recipe.name
    with stop_on_signals() as stop, join_team(options.device) as team:
        inputs = Inputs(Dataset.open(options.data), team.device, tuple(options.attackers), options.out)
        run = Run(recipe, inputs, work, _command(options, recipe.name), options.start_from, options.overwrite)
        if options.dry_run:
            return _described(run.rehearse(team))
        logs = None if options.no_logs else work / "logs"
        return f"Wrote {run.train(team, Monitor(logs) if team.leads else None, stop)}"


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    from ..training.recipes import parse_change

    changes = dict(parse_change(text) for text in options.set)
    if options.seed is not None:
        changes["training.seed"] = options.seed
    if options.steps is not None:
        changes |= {"training.steps": options.steps, "training.epochs": 0}
    return changes


def _command(options: argparse.Namespace, recipe: str) -> str:
    """How to train the model again, with placeholders for places of this machine."""
    changes = [f"--set {shlex.quote(text)}" for text in options.set]
    shorts = [f"--{name} {value}" for name in ("seed", "steps") if (value := getattr(options, name)) is not None]
    attackers = [f"--attackers {' '.join(Path(name).name for name in options.attackers)}"] if options.attackers else []
    start = ["--start-from WEIGHTS"] if options.start_from else []
    return " ".join(["mitsgan train", recipe, "--data DATASET", *changes, *shorts, *attackers, *start])


def _described(rehearsal: dict[str, Any]) -> str:
    megabytes = {name: f"{rehearsal[f'{name}_bytes'] / 1e6:,.0f} MB" for name in ("weights", "activations")}
    parameters = ", ".join(f"{name} {count:,}" for name, count in rehearsal["parameters"].items())
    left = rehearsal["steps"] - rehearsal["first_step"]
    seconds = rehearsal["seconds_per_step"]
    first = f" from step {rehearsal['first_step']} (a checkpoint is there)" if rehearsal["first_step"] else ""
    return (
        f"Device: {rehearsal['device']}\n"
        f"Parameters: {parameters}\n"
        f"Memory: weights, gradients and optimizer {megabytes['weights']}; activations of a step, at most "
        f"{megabytes['activations']}; besides data and working memory\n"
        f"Steps: {rehearsal['steps']:,}{first}\n"
        f"Time: {seconds:.2f} s for a first step, as a rule the slowest; at that pace {left * seconds / 3600:.1f} h\n"
        "Nothing was written."
    )


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """A question whether SIGINT or SIGTERM came; the first one only asks to stop, a second Ctrl-C stops at once."""
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(number)
        # Not print: a signal may come while the stream is being written.
        os.write(2, b"mitsgan: Finishing this step, then saving.\n")

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
