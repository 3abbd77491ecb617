"""An evaluation from end to end: look at the scans, measure what the cache lacks, and write tables and figures."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from MITSGANLib.attack.attacker import Attacker, load_attacker
from MITSGANLib.errors import InputError, OutputError
from MITSGANLib.judges.judge import DEFAULT_JUDGES, available_judges
from MITSGANLib.judges.jury import Jury
from MITSGANLib.measure.lpips_distance import LpipsUnavailable, load_lpips
from MITSGANLib.runtime.devices import resolve_device

from ..workers import run_all
from . import notes
from .cache import Cache
from .figures import Example, attacks_figure, changes_figure
from .layout import ResultSection
from .measure import AttackerChoice, MeasuringJob, MeasuringTask, Settings, measure
from .planting import SYNTHETIC, NoduleFile
from .protections import ProtectionArm, read_protections
from .results import REPORT, to_record, write_results
from .scans import Case, ScanRequest, ScanSource, inspect, scan_names
from .tables import MeasuredAttack, Setup, WholeScan, build_sections
from .targets import read_targets

RESULTS, CACHE = "results", "cache"

Progress = Callable[[str, int, int], None]
Note = Callable[[str], None]
Fail = Callable[[str, str], None]  # what was not measured, and why


@dataclass(frozen=True)
class EvaluationPlan:
    """What to evaluate, as the command line says it.

    :param protectors: words as in :mod:`protections`.
    :param attackers: names or folders.
    :param sweep: protectors of Table 3; all with a known alpha where empty.
    :param targets: places for each action, chosen with ``seed``, unless ``targets_file`` gives them.
    :param judges: names or files, one of each question, the default where none is named; ("none",) leaves success out.
    :param nodules: an .npz of nodules to plant for removals, "default" for synthetic ones, or "none" for none, as with
        a ``targets_file``.
    :param own_names: call scans by their file's or folder's name instead of a number and a digest.
    :param pictures: targets of each action that the figures show.
    """

    scans: tuple[str, ...]
    output: Path
    protectors: tuple[str, ...] = ("default",)
    attackers: tuple[str, ...] = ("default",)
    sweep: tuple[str, ...] = ()
    actions: tuple[str, ...] = ("inject", "remove")
    targets: int = 5
    targets_file: str | None = None
    series: tuple[str, ...] = ()
    seed: int = 0
    data_range_hu: float = 4096.0
    device: str = "auto"
    lpips_weights: str | None = None
    lpips_net: str | None = None
    judges: tuple[str, ...] = ()
    nodules: str = "default"
    own_names: bool = False
    pictures: int = 2
    processes: int = 1
    scheduler: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    :param record: all of it as in the JSON file.
    :param failures: why a scan, or a scan with one protection, was not measured, for the terminal alone.
    :param results: folder of the files.
    :param attacked: targets attacked in this run; the rest came from the cache.
    """

    sections: tuple[ResultSection, ...]
    record: Mapping[str, Any]
    failures: Mapping[str, str]
    results: Path
    attacked: int


def evaluate(plan: EvaluationPlan, progress: Progress | None = None, note: Note | None = None) -> Evaluation:
    """Run the evaluation and write ``results`` into the output folder, whole or not at all.

    :param progress: called with (stage, done, total).
    :param note: called with what went wrong with one scan, as soon as it is known.
    :raises MITSGANError: when options, models, targets or the output cannot be used, or no scan can be measured.
    """
    report, tell = progress or (lambda *_: None), note or (lambda _: None)
    _check_output(plan.output)
    resolve_device(plan.device)
    protections, sweep = _protections(plan)
    attackers = _attackers(plan)
    settings, lpips, jury = _settings(plan, tell)
    failures: dict[str, str] = {}

    def fail(what: str, reason: str) -> None:
        failures[what] = reason
        tell(f"{what}: {reason}")

    cases = _cases(plan, settings.nodules, report, tell, fail)
    tasks, cache = _tasks(cases, attackers, plan), Cache(plan.output.resolve() / CACHE)
    jobs = [MeasuringJob(case, arm, tasks[case.name], settings, cache) for case in cases for arm in protections]
    attacked = _measure(jobs, plan, report, fail)
    jobs.sort(key=lambda job: protections.index(job.protection))
    attacks, whole = _collect(jobs)
    if not attacks:
        raise InputError(f"No scan could be measured. The first reason: {next(iter(failures.values()))}")
    measured = {one.protection for one in attacks}
    setup = Setup(
        protections=protections,
        attackers=attackers,
        actions=plan.actions,
        sweep=tuple((name, words) for name, words in sweep if name in measured),
        settings=settings,
        lpips=lpips,
        judges=jury.describe() if jury else None,
        failures=tuple(failures),
    )
    sections = build_sections(attacks, whole, setup)
    record = to_record(setup, cases, attacks, whole, sections)
    figures = _figures([job for job in jobs if job.protection.name in measured])
    write_results(plan.output / RESULTS, sections, figures, record)
    return Evaluation(sections, record, failures, plan.output / RESULTS, attacked)


def _collect(jobs: Sequence[MeasuringJob]) -> tuple[list[MeasuredAttack], list[WholeScan]]:
    """All that is measured, in the order of the jobs and their attacks."""
    attacks: list[MeasuredAttack] = []
    whole: dict[tuple[str, str], WholeScan] = {}
    for job, task in [(each, task) for each in jobs for task in each.tasks]:
        found = job.result(task)
        if found is None:
            continue
        (result, changed), scan, words = found, (job.case.name, job.case.patient), job.protection.name
        attacks.append(MeasuredAttack(*scan, words, task.attacker.name, task.action, result, task.scene))
        if job.protection.knows_the_attack:
            words += f" ({task.action} by {task.attacker.name})"
        whole[job.case.name, words] = WholeScan(*scan, words, changed)
    return attacks, list(whole.values())


def _figures(jobs: Sequence[MeasuringJob]) -> dict[str, tuple[Figure, str]]:
    """Figures and captions by file name, as far as their slices are there with the protections of all jobs."""
    by_attacker: dict[str, list[Example]] = {}
    tasks = [(job, task) for job in jobs if job.protection == jobs[0].protection for task in job.tasks]
    for first, task in sorted(tasks, key=lambda pair: pair[1].action):
        of_case = [job for job in jobs if job.case == first.case]
        for index in task.pictured:
            slices = {job.protection.name: job.cache.load_arrays(job.picture_key(task, index)) for job in of_case}
            if all(slices.values()):
                what = "planted nodule, " if task.plants else ""
                title = f"{task.action}, {what}{first.case.name}, slice {task.targets[index].kji[0]}"
                by_attacker.setdefault(task.attacker.name, []).append(Example(title, slices))
    found: dict[str, tuple[Figure, str]] = {}
    for attacker, examples in by_attacker.items():
        caption = f"Figure 6: simulated attacks by {attacker}; targets drawn by seed, not chosen."
        found[f"figure-6-{attacker}"] = (attacks_figure(examples, attacker), caption)
    for attacker, examples in list(by_attacker.items())[:1]:
        caption = "Figure 7: what protection changes in the slices of the same targets."
        if any(job.protection.knows_the_attack for job in jobs):
            caption += f" Signed gradients and searches against {attacker}."
        found["figure-7"] = (changes_figure(examples), caption)
    return found


def _check_output(output: Path) -> None:
    """:raises OutputError: before the long work, when results could not be put there afterwards."""
    results = output / RESULTS
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; give the name of a folder.")
    if results.is_dir() and any(results.iterdir()) and not (results / REPORT).is_file():
        raise OutputError(f"{results} holds something else than an evaluation; choose another folder.")


def _protections(plan: EvaluationPlan) -> tuple[tuple[ProtectionArm, ...], tuple[tuple[str, str], ...]]:
    """All protections, and name and column of those in Table 3."""
    protections = read_protections((*plan.protectors, *plan.sweep), plan.seed)
    asked = {repr(found.identity()) for found in read_protections(plan.sweep, plan.seed)}
    swept = [p for p in protections if (repr(p.identity()) in asked if asked else p.alpha is not None)]
    swept.sort(key=lambda p: (p.alpha is None, p.alpha or 0.0))
    return protections, tuple((p.name, p.name if p.alpha is None else f"alpha {p.alpha:g} ({p.name})") for p in swept)


def _attackers(plan: EvaluationPlan) -> tuple[AttackerChoice, ...]:
    """Every attacker once, loaded to see that each action is there."""
    choices: list[AttackerChoice] = []
    for source in dict.fromkeys(plan.attackers):
        loaded = {action: load_attacker(source, action) for action in plan.actions}
        digests = {action: attacker.digest or _digest(attacker) for action, attacker in loaded.items()}
        if any(choice.digests == digests for choice in choices):
            continue
        name = next(iter(loaded.values())).name
        if any(choice.name == name for choice in choices):
            name += f" ({next(iter(digests.values()))[:6]})"
        # Workers on other machines do not share this one's working folder.
        folder = Path(source)
        choices.append(AttackerChoice(name, str(folder.resolve()) if folder.is_dir() else source, digests))
    return tuple(choices)


def _digest(attacker: Attacker) -> str:
    """SHA-256 of the weights and the look-up table, where no card gives one."""
    weights, table = attacker.inpainter.generator.state_dict(), attacker.inpainter.equalization
    parts = [name.encode() + tensor.cpu().numpy().tobytes() for name, tensor in sorted(weights.items())]
    parts += [table.bins.tobytes(), table.cdf.tobytes(), repr((table.mean, table.minimum, table.maximum)).encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _settings(plan: EvaluationPlan, tell: Note) -> tuple[Settings, str, Jury | None]:
    """Settings, what measures LPIPS, and the judges. Why nothing does names folders, so the results leave it out."""
    lpips = load_lpips(plan.lpips_weights, net=plan.lpips_net)
    words, digest = notes.NO_LPIPS, ""
    if isinstance(lpips, LpipsUnavailable):
        tell(f"LPIPS is left out. {lpips.reason}.")
    else:
        words, digest = f"{lpips.description}; of the picture in the lung window.", lpips.weights_sha256
    jury, plants = None, not plan.targets_file and plan.nodules != "none"
    if not plan.judges and set(DEFAULT_JUDGES.values()) - set(available_judges()):
        tell(notes.NO_JUDGES)
    elif plan.judges != ("none",):
        jury = Jury.load(plan.judges)
    settings = Settings(
        seed=plan.seed,
        data_range_hu=plan.data_range_hu,
        device=plan.device,
        lpips_weights=str(Path(plan.lpips_weights).resolve()) if plan.lpips_weights else None,
        lpips_net=plan.lpips_net,
        lpips=digest,
        judges=tuple(str(Path(n).resolve()) if n.endswith(".safetensors") else n for n in plan.judges),
        jury=jury.identity() if jury else None,
        nodules=NoduleFile.of(SYNTHETIC if plan.nodules == "default" else Path(plan.nodules)) if plants else None,
    )
    return settings, words, jury


def _cases(plan: EvaluationPlan, nodules: NoduleFile | None, report: Progress, tell: Note, fail: Fail) -> list[Case]:
    """Every scan that can be read, with its targets, in the order given."""
    given = read_targets(plan.targets_file, plan.scans) if plan.targets_file else {}
    wanted = []
    for scan in dict.fromkeys(plan.scans):
        source = ScanSource(str(Path(scan).resolve()), plan.series)
        wanted.append(ScanRequest(source, plan.actions, given.get(scan), plan.targets, plan.seed, nodules))
    outcomes = {}
    report("Reading", 0, len(wanted))
    for outcome in run_all(inspect, wanted, processes=plan.processes, scheduler=plan.scheduler):
        outcomes[outcome.item.source.path] = outcome
        report("Reading", len(outcomes), len(wanted))
    paths = [request.source.path for request in wanted]
    digests = [outcomes[path].result.digest if outcomes[path].result else "unread" for path in paths]
    patients: dict[str, int] = {}
    cases: list[Case] = []
    for path, name in zip(paths, scan_names(paths, digests, own_names=plan.own_names), strict=True):
        subject, problem = outcomes[path].result, outcomes[path].error
        if subject and any(subject.digest == case.subject.digest for case in cases):
            problem = f"{path} holds the same voxels as another scan given; leave one out."
        if problem:
            fail(name, problem)
            continue
        cases.append(Case(name, patients.setdefault(subject.patient, len(patients) + 1), subject))
        for target, reason in subject.skipped:
            tell(f"{name}: {target.action} at {target.kji} is left out. {reason}")
    return cases


def _tasks(
    cases: Sequence[Case], attackers: Sequence[AttackerChoice], plan: EvaluationPlan
) -> dict[str, tuple[MeasuringTask, ...]]:
    """What is done to each case, by its name."""
    pictured = _pictured(cases, plan)
    tasks: dict[str, tuple[MeasuringTask, ...]] = {case.name: () for case in cases}
    for case in cases:
        scenes = list(enumerate(case.subject.scenes))
        for attacker, action, (number, scene) in itertools.product(attackers, plan.actions, scenes):
            targets = tuple(target for target in scene.targets if target.action == action)
            place = (case.subject.digest, action, number)
            shown = tuple(n for n in range(len(targets)) if (*place, n) in pictured)
            if targets:
                tasks[case.name] += (MeasuringTask(attacker, action, targets, number, scene.plants, shown),)
    return tasks


def _pictured(cases: Sequence[Case], plan: EvaluationPlan) -> set[tuple[str | int, ...]]:
    """Scan, action, scene and number of the targets in figures: drawn by lot, so that nobody favored them.

    A lot depends on seed, scan and target alone: another scan may take a place, but moves no other lot.
    """

    def lot(place: tuple[str | int, ...]) -> str:
        return hashlib.sha256(" ".join(map(str, (plan.seed, *place))).encode()).hexdigest()

    chosen: set[tuple[str | int, ...]] = set()
    for action in plan.actions:
        places = [
            (case.subject.digest, action, scene, n)
            for case in cases
            for scene, found in enumerate(case.subject.scenes)
            for n in range(sum(target.action == action for target in found.targets))
        ]
        chosen.update(sorted(places, key=lot)[: plan.pictures])
    return chosen


def _measure(jobs: Sequence[MeasuringJob], plan: EvaluationPlan, report: Progress, fail: Fail) -> int:
    """Do what the cache lacks; how many targets were attacked."""
    todo = [job for job in (job.lacking() for job in jobs) if job.tasks]
    attacked = 0
    report("Measuring", 0, len(todo))
    outcomes = run_all(measure, todo, processes=plan.processes, scheduler=plan.scheduler)
    for done, outcome in enumerate(outcomes, start=1):
        attacked += outcome.result or 0
        if outcome.error:
            fail(f"{outcome.item.case.name} with {outcome.item.protection.name}", outcome.error)
        report("Measuring", done, len(todo))
    return attacked
