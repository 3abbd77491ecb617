"""The whole of ``mitsgan prepare``: plan, cut every scan that is not ready yet, write ``dataset.json``."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from MITSGANLib import __version__
from MITSGANLib.budget.noise import estimate_noise
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.files.atomic import atomic_file, atomic_folder
from MITSGANLib.runtime.progress import Progress
from MITSGANLib.scan.volume import PROTECTION

from ..data.dataset import CUBES_FOLDER, DATASET_FILE, FORMAT_VERSION, PARTS, ROLES
from ..workers import run_all
from .cutting import cut_samples
from .discovery import DiscoveredScan
from .plan import PreparationPlan, ScanTask, nothing_usable, short_digest


@dataclass(frozen=True)
class Report:
    """What came of it.

    :param record: the content of ``dataset.json``.
    :param skipped: (path, reason) of each scan that was not used, for the person who asked; the record has them without
        paths unless names are kept.
    :param cut: scans cut in this run; ``reused`` were ready before.
    """

    record: Mapping[str, Any]
    skipped: tuple[tuple[str, str], ...]
    cut: int
    reused: int


def prepare(plan: PreparationPlan, progress: Progress | None = None) -> Report:
    """Prepare a dataset; scans that an earlier run finished with the same options and findings are kept as they are.

    Every scan's folder appears complete or not at all, and ``dataset.json`` at the end, so a stopped run is continued
    by planning and calling it again.

    :param progress: called as ``progress(done, total)`` in scans.
    :raises InputError: no scan could be used, or one side of the split lost all of its patients.
    :raises OutputError: the folder cannot be written.
    """
    todo = [task for task in plan.tasks if _finished(task) is None]
    skipped = [(source, source.problem) for source in plan.unusable]
    skipped += _cut_all(todo, plan, progress)
    finished = [(task, record) for task in plan.tasks if (record := _finished(task))]
    if not finished:
        raise nothing_usable([reason for _, reason in skipped])
    record = _record(plan, finished, skipped)
    out = plan.request.out.resolve()
    for entry, cubes in zip(record["cubes"], plan.ready, strict=True):
        cubes.write(out / CUBES_FOLDER / f"{entry['id']}.npz", plan.public_names)
    with atomic_file(out / DATASET_FILE, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    cut = sum(task in todo for task, _ in finished)
    told = tuple((source.path, reason) for source, reason in skipped)
    return Report(record, told, cut, len(finished) - cut)


def prepare_scan(task: ScanTask) -> str:
    """Cut one scan into its folder; what is wrong with the output comes back as text, since it concerns all scans.

    :raises InputError: when the scan, or a reading of it, cannot be used.
    """
    volume = task.source.load()
    if volume.provenance.is_simulated_attack or volume.provenance.last(PROTECTION):
        raise InputError("It is a protected or attacked scan; give the original.")
    located = [mark.locate(volume, task.options.readers) for mark in task.marks]
    findings = [finding for one in located for finding in one.findings]
    cutting = cut_samples(volume, findings, task.options, task.seed)
    noise = estimate_noise(volume.hu, volume.spacing_kji).sd_hu
    record = {
        "digest": task.digest,
        "shape": volume.shape,
        "spacing_kji": volume.spacing_kji,
        "origin": volume.origin,
        "direction": volume.direction.tolist(),
        "padding_hu": volume.provenance.padding_hu,
        "noise_sd_hu": None if noise is None else round(noise, 3),
        "warnings": [warning.name for warning in volume.provenance.warnings],
        **{role: len(cutting.samples[role].hu) for role in ROLES},
        "lung_positions": cutting.lung_positions,
        "nodule_like_positions": cutting.nodule_like_positions,
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "left_out": [*(entry for one in located for entry in one.left_out), *cutting.left_out],
    }
    try:
        with atomic_folder(task.folder, overwrite=True) as folder:
            np.save(folder / "scan.npy", volume.hu)
            for role, samples in cutting.samples.items():
                np.savez(folder / f"{role}.npz", **vars(samples))
            (folder / "scan.json").write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8")
    except OutputError as error:
        return str(error)
    return ""


def _cut_all(
    todo: Sequence[ScanTask], plan: PreparationPlan, progress: Progress | None
) -> list[tuple[DiscoveredScan, str]]:
    """Cut every scan of ``todo``; gives those that could not be, with the reason."""
    failed = []
    outcomes = run_all(prepare_scan, todo, processes=plan.request.processes, scheduler=plan.request.scheduler)
    for done, outcome in enumerate(outcomes, start=1 + len(plan.tasks) - len(todo)):
        if progress:
            progress(done, len(plan.tasks))
        if outcome.error:
            failed.append((outcome.item.source, outcome.error))
        elif outcome.result:
            raise OutputError(outcome.result)
    return sorted(failed, key=lambda entry: entry[0].key)


def _finished(task: ScanTask) -> dict[str, Any] | None:
    """The record of a scan's folder where it is what the task would make."""
    try:
        record = json.loads((task.folder / "scan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if record["digest"] == task.digest else None


def _record(
    plan: PreparationPlan,
    finished: Sequence[tuple[ScanTask, Mapping[str, Any]]],
    skipped: Sequence[tuple[DiscoveredScan, str]],
) -> dict[str, Any]:
    """The content of ``dataset.json``."""
    request, names = plan.request, plan.public_names
    copied = ("shape", "spacing_kji", *ROLES, "padding_hu", "noise_sd_hu", "warnings", "digest")
    scans = [
        {"id": task.id, "patient": names[task.patient], **{key: record[key] for key in copied}}
        for task, record in finished
    ]
    cubes = []
    for number, ready in enumerate(plan.ready, start=1):
        name = f"{number}-{ready.path.stem}" if request.keep_names else str(number)
        counts = Counter(names[patient] for patient in ready.patients.tolist())
        cubes.append({"id": name, "injector": len(ready.hu), "remover": 0, "patients": dict(sorted(counts.items()))})
    present = {scan["patient"] for scan in scans}.union(*(entry["patients"] for entry in cubes))
    left_out = [{"scan": "", "finding": what, "reason": reason} for what, reason in plan.matched.left_out]
    for task, record in finished:
        left_out += [{"scan": task.id, "finding": what, "reason": reason} for what, reason in record["left_out"]]
    return {
        "format": "MITSGAN prepared dataset",
        "version": FORMAT_VERSION,
        "made_by": f"mitsgan {__version__}",
        "names_kept": request.keep_names,
        "options": dataclasses.asdict(request.options),
        "split": {
            "seed": request.split.seed,
            "validation_share": request.split.validation_share,
            **{
                part: _side(part, present.intersection(names[one] for one in getattr(plan.split, part)))
                for part in PARTS
            },
        },
        "scans": scans,
        "cubes": cubes,
        "skipped": [_skipped(source, reason, request.keep_names) for source, reason in skipped],
        "findings_left_out": left_out,
        "findings_elsewhere": plan.matched.elsewhere,
    }


def _side(part: str, members: set[str]) -> list[str]:
    """One side of the split, without patients of whom nothing is left."""
    if not members:
        raise InputError(f"No scan of the {part} side of the split could be used; give more scans, or another --seed.")
    return sorted(members)


def _skipped(source: DiscoveredScan, reason: str, keep_names: bool) -> dict[str, str]:
    """An entry without paths, since folders and files are often named after patients."""
    if keep_names:
        return {"scan": source.key, "reason": reason}
    for path in sorted({source.path, *(file.path for file in source.files)}, key=len, reverse=True):
        reason = reason.replace(path, "the scan")
    return {"scan": short_digest(source.key), "reason": reason}
