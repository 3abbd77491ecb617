"""Measure what a protection does to diagnosis networks: how often nodule judges are right, with it and without.

The model miad-mark blocks diagnosis: it misleads such networks on purpose. Its scans are measured as they are, after a
network has tried to undo the change, and restored with a key (equal to clean, or the command fails), beside noise of
equal RMSE. The default protection is measured with the same networks: it should change no more decisions than noise.

As many places have a nodule as have none. They come from the validation side of a prepared dataset, and from whole
scans (--scans) into which nodules are planted before protection: those of at most 20 mm from --nodules, or synthetic
ones. The blocker does not know these places. It searches anew in every cube, which takes seconds, and in every scan,
which takes minutes. OUTPUT gets diagnose.json and diagnose.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from MITSGANLib.errors import InputError
from MITSGANLib.files.atomic import atomic_folder, refuse_existing_folder
from MITSGANLib.files.storage import load_volume
from MITSGANLib.judges.judge import available_judges, load_judge
from MITSGANLib.protection.presets import protector_path
from MITSGANLib.protection.protector import load_protector
from MITSGANLib.weights import ModelCard

from . import shared

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from ..data.nodules import Nodules


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder that mitsgan prepare wrote")
    parser.add_argument("output", metavar="OUTPUT", help="folder for the report")
    parser.add_argument("--model", default="miad-mark", help="the blocker: a protector, or a .safetensors file")
    parser.add_argument("--default", default="default", metavar="MODEL", help="the protection beside it")
    shared.add_options(parser, "--strength-hu", help="the blocker's largest change anywhere (default: the model's)")
    parser.add_argument(
        "--judges",
        nargs="+",
        default=[],
        metavar="NAME_OR_FILE",
        help="nodule judges to ask (default: all installed); those that its file holds are white boxes",
    )
    parser.add_argument(
        "--unblocker", "--unmark", type=Path, metavar="FILE", help="network that undoes it, a .safetensors file"
    )
    parser.add_argument(
        "--nodules", default="", metavar="FILE.npz", help="more nodules of the dataset's patients, as in training"
    )
    parser.add_argument(
        "--cubes",
        type=shared.count,
        metavar="N",
        help="cubes with a nodule at most, and as many without (default: all)",
    )
    parser.add_argument("--scans", nargs="+", default=[], metavar="SCAN", help="whole scans to measure on, too")
    parser.add_argument(
        "--places", type=shared.count, default=10, metavar="N", help="nodules to plant into each (default: 10)"
    )
    parser.add_argument("--noise", type=shared.count, default=3, metavar="N", help="draws of noise (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of places and of the blocker's search (default: 0)")
    shared.add_options(parser, "--device", "--overwrite")


def run(options: argparse.Namespace) -> None:
    # Imports torch, which takes seconds that --help and wrong usage need not wait for.
    from ..data.dataset import Dataset
    from ..evaluation import diagnosis_blocking as study
    from ..evaluation.layout import to_markdown
    from ..training.diagnosis_blocking import CubeSampling
    from ..training.nodule_samples import NoduleSampling, NoduleSource
    from ..training.run import commit

    output = Path(options.output)
    refuse_existing_folder(output, options.overwrite)
    blocker = load_protector(options.model, strength_hu=options.strength_hu, seed=options.seed)
    default = load_protector(options.default, seed=options.seed)
    judges = [load_judge(name) for name in options.judges or available_judges("nodule")]
    for judge in judges:
        if judge.question != "nodule":
            raise InputError(f"The judge {judge.name} is not asked about nodules; name others with --judges.")
    if not judges:
        raise InputError("There is no nodule judge; train one with the recipe judge-nodule-residual, or name its file.")
    trained = ModelCard.read(protector_path(options.model).with_suffix(".json")).training
    white = set(trained.get("inputs", {}).values())
    judges.sort(key=lambda judge: judge.digest not in white)
    unblock = None
    if options.unblocker:
        from ..training.unblocking import load_unblocker, unblocked

        unblock = partial(unblocked, network=load_unblocker(options.unblocker)[0])
    held_out = tuple(trained.get("held_out", ()))
    shared.note("Reading the dataset's validation side")
    data = Dataset.open(options.dataset)
    source = NoduleSource.of(data, "validation", CubeSampling().edge, NoduleSampling(options.nodules), held_out)
    cases = [study.cube_case(source.groups(), options.cubes)]
    if options.scans:
        nodules = nodules_to_plant(data, options.nodules, held_out)
        for number, path in enumerate(options.scans, start=1):
            scan = load_volume(path)
            cases.append(study.scan_case(f"scan {number}", scan, nodules, options.places, options.seed))
    found = {}
    for case in cases:
        shared.note(f"Measuring on {case.name}")
        with shared.progress_bar("Blocking", "slice") as progress:
            arms = study.make_arms(
                case, blocker, default, unblock=unblock, draws=options.noise, device=options.device, progress=progress
            )
        rmse = {arm: study.rmse_hu(arms, arm) for arm in arms}
        found[case.name] = (list(study.answers(case, arms, judges)), rmse)
    names = tuple(judge.name for judge in judges)
    black = tuple(judge.name for judge in judges if judge.digest not in white)
    facts = {
        "judges": {judge.name: {"sha256": judge.digest, "threshold": judge.threshold} for judge in judges},
        "removal_network": bool(unblock),
        "noise_draws": options.noise,
        "seed": options.seed,
        "commit": commit(),
    }
    report = study.BlockingResults(blocker, default, names, black, found, facts)
    text = to_markdown("What protection does to diagnosis networks", report.sections())
    with atomic_folder(output, overwrite=options.overwrite) as folder:
        (folder / "diagnose.json").write_text(json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n", "utf-8")
        (folder / "diagnose.md").write_text(text, "utf-8")
    shared.say(text)
    shared.say(f"Wrote {options.output}")


def nodules_to_plant(data: Dataset, file: str, held_out: Sequence[str]) -> Nodules:
    """A file's nodules of the validation side's patients; drawn ones where it has none."""
    from ..evaluation.planting import SYNTHETIC, NoduleFile
    from ..training.nodule_samples import split_nodules, training_nodules

    if file:
        path = data.folder / file
        patients = split_nodules(training_nodules(path), data, held_out)["validation"].patients
        nodules = NoduleFile.of(path).read().of(sorted(set(patients.tolist())))
        if len(nodules.hu):
            return nodules
    return NoduleFile.of(SYNTHETIC).read()
