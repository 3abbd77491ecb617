"""The default protection in one table: python Testing/Benchmarks/protection_table.py SCAN... --out FOLDER

Of each scan: every limit of fidelity in its worst slice; how many attacks at seeded places succeed unprotected, under
protection, and under noise of equal size; and how fast the protection is beside the paper's generator. What is measured
of attacks is kept in FOLDER, so that a stopped run continues. Two scans at 100 places an action against three attackers
take an hour on two cores. Writes FOLDER/table.json and FOLDER/table.md, and prints the latter. With --parts
some parts are measured anew, and the others are taken from FOLDER/table.json, as far as they are there.

Seconds by the clock mean something only on a machine that does nothing else; ratios are measured alternately.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from MITSGANLib.files.storage import load_volume
from MITSGANLib.protection.protector import protect
from MITSGANLib.runtime.threads import usable_cores
from MITSGANTrainingLib.evaluation.evaluate import EvaluationPlan, evaluate
from MITSGANTrainingLib.evaluation.fidelity import Fidelity, measure_fidelity
from MITSGANTrainingLib.evaluation.statistics import PlaceFigure, area_of_places, estimate_by_place, share_of_places
from MITSGANTrainingLib.training.run import commit
from rendering import table, write_reports
from speed import measure_speed
from timing import machine
from whole_scan import measure_command

PARTS = ("effect", "fidelity", "speed")
# Of what succeeds unprotected, at most these shares may succeed under protection.
GOALS = {"trained against": 0.1, "held out": 0.5}
SPEED_GOAL, COMMAND_GOAL_S, COMMAND_SLICES = 30.0, 15.0, 133

_ATTACK = ("attacker", "action", "protection")

Places = Sequence[Mapping[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    before = options.out / "table.json"
    results = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else {}
    if results and set(options.parts) != set(PARTS):
        # Parts of several scans or models in one table would say what nobody measured.
        for what, wanted in (("model", options.model), ("scans", list(_scans(options)))):
            if results[what] != wanted:
                raise SystemExit(f"{before} is of {what} {results[what]}, not {wanted}; choose another folder.")
    results |= measure(options)
    text = to_markdown(results)
    write_reports(options.out, "table", results, text)
    print(text, end="")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The parts that were asked for, in a form fit for JSON; scans go by the names of their files or folders."""
    scans = _scans(options)
    results: dict[str, Any] = {"model": options.model, "scans": list(scans)}
    if "effect" in options.parts:
        attackers = [*options.attackers, *options.held_out]
        found, bound = _effect(options, "effect", options.model, attackers, options.targets), []
        if options.bound_targets:
            bound = _effect(options, "bound", options.bound, options.attackers[:1], options.bound_targets)
        results["effect"] = {"commit": commit(), "rows": found, "bound": bound}
    if "fidelity" in options.parts:
        of_scans = {name: _fidelity(path, options.model).to_dict() for name, path in scans.items()}
        results["fidelity"] = {"commit": commit(), "scans": of_scans}
    if "speed" in options.parts:
        # Last, when the evaluation's processes are gone.
        tool = machine()
        of_scans = {name: _speed(path, options) for name, path in scans.items()}
        results["speed"] = {"commit": commit(), "machine": tool, "scans": of_scans}
    return results


def _scans(options: argparse.Namespace) -> dict[str, Path]:
    named = {Path(scan).name.split(".")[0]: Path(scan) for scan in options.scans}
    if len(named) < len(options.scans):
        raise SystemExit("Two of the scans have the same name; rename one.")
    return named


def _fidelity(scan: Path, model: str) -> Fidelity:
    volume = load_volume(scan)
    return measure_fidelity(volume, protect(volume, model=model))


def _speed(scan: Path, options: argparse.Namespace) -> dict[str, Any]:
    volume = load_volume(scan)
    return {
        "slices": volume.shape[0],
        "one_slice": measure_speed(volume, options.repeats, options.model),
        # Several times, since a virtual machine may be twice as slow for some seconds.
        "commands": [measure_command(scan, options.threads, options.model) for _ in range(options.repeats)],
    }


def _effect(
    options: argparse.Namespace, folder: str, protector: str, attackers: Sequence[str], targets: int
) -> list[dict[str, Any]]:
    """The rows of one protector, whose evaluation is kept in a folder of its own."""
    plan = EvaluationPlan(
        scans=tuple(options.scans),
        output=options.out / folder,
        protectors=(protector,),
        attackers=tuple(attackers),
        targets=targets,
        nodules=options.nodules,
        own_names=True,
        pictures=0,
        processes=options.processes,
    )
    study = evaluate(plan, lambda stage, done, total: print(f"{stage} {done} of {total}", file=sys.stderr))
    if study.failures:
        raise SystemExit(f"Not measured: {'; '.join(map(': '.join, study.failures.items()))}")
    if not study.record["settings"]["judges"]:
        raise SystemExit("No judges are installed, so nothing tells whether an attack succeeds.")
    return effect_rows(study.record["measurements"], options.held_out)


def effect_rows(measurements: Sequence[Mapping[str, Any]], held_out: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What an evaluation measured, by attacker and action: a row for each scan, and of several one for all of them.

    Shares and areas of all scans are means over the scans. Intervals are over places, of all scans over scans as well.
    """
    by_attack: dict[tuple[str, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for one in measurements:
        of_scans = by_attack.setdefault(tuple(one[name] for name in _ATTACK), {})
        of_scans.setdefault(one["scan"], []).extend(target for target in one["targets"] if target["judged"])
    rows = []
    for attack, of_scans in by_attack.items():
        groups = {scan: {scan: places} for scan, places in of_scans.items()}
        if len(of_scans) > 1:
            groups[f"all {len(of_scans)}"] = of_scans
        rows += [
            {
                **dict(zip(_ATTACK, attack, strict=True)),
                "scan": name,
                "kind": "held out" if attack[0] in held_out else "trained against",
                "places": sum(map(len, group.values())),
                **_shares(list(group.values())),
            }
            for name, group in groups.items()
        ]
    return rows


def _shares(scans: Sequence[Places]) -> dict[str, Any]:
    def over_scans(figure: Callable[[Places], PlaceFigure]) -> dict[str, Any]:
        return estimate_by_place({number: figure(places) for number, places in enumerate(scans)}).to_dict()

    def share(value: Callable[[Mapping[str, Any]], float | None]) -> dict[str, Any]:
        return over_scans(lambda places: share_of_places([value(place) for place in places]))

    def succeeded(arm: str, *, checked: bool = False) -> dict[str, Any]:
        def value(place: Mapping[str, Any]) -> float | None:
            verdict = place["judged"][arm]
            if not verdict["possible"]:
                return None
            return float(verdict["succeeded"] and not (checked and verdict["check_found"]))

        return share(value)

    def area(arm: str) -> float:
        def of_places(places: Places) -> PlaceFigure:
            after, before = (
                [place["judged"][arm][f"forgery_{when}"] for place in places] for when in ("after", "before")
            )
            return area_of_places(after, before)

        return over_scans(of_places)["value"]

    def by_check(key: str) -> dict[str, Any] | None:
        return share(lambda place: float(place["judged"]["protected"][f"check_{key}"])) if is_checked else None

    first = scans[0][0]["judged"]
    is_checked = "check_found" in first["protected"]
    moved = [statistics.median(place["forgery"]["protected"]["share"] for place in places) for places in scans]
    return {
        "unprotected": succeeded("clean"),
        "past_judges": succeeded("protected"),
        "past_check": succeeded("protected", checked=True) if is_checked else None,
        "noise": {arm: succeeded(arm) for arm in ("gaussian", "ct-like") if arm in first},
        "moved_median": statistics.mean(moved),
        "area_unprotected": area("clean"),
        "area_protected": area("protected"),
        "check_found": by_check("found"),
        "check_alarm": by_check("alarm"),
    }


def to_markdown(results: Mapping[str, Any]) -> str:
    """A table for each part that was measured: fidelity, effect and speed."""
    scans = results["scans"]
    measured = [part for part in PARTS if part in results]
    commits = ", ".join(f"{part} at {_short(results[part]['commit'])}" for part in measured)
    parts = [f"Model `{results['model']}`; {commits}."]
    if "fidelity" in measured:
        parts.append(table(["fidelity, worst slice", "limit", *scans], list(_fidelity_rows(results)), numbers=False))
    if "effect" in measured:
        columns = [
            "attack",
            "scan",
            "success unprotected",
            "protected, past the judges",
            "**protected, past the check too**",
            "noise instead: Gaussian / CT-like",
            "forgery moved",
            "forensic AUC: without, with",
            "check finds / alarms",
            "goal",
        ]
        lines = [*effect_lines(results["effect"]["rows"]), *_bound_lines(results["effect"]["bound"])]
        parts.append(table(columns, lines, numbers=False))
    if "speed" in measured:
        tool = results["speed"]["machine"]
        parts[0] += (
            f" {tool['cpu']}, {tool['threads']} threads, PyTorch {tool['torch']}, load average {tool['load_average']}."
        )
        parts.append(table(["speed", "goal", *scans], list(_speed_rows(results)), numbers=False))
    return "\n\n".join(parts) + "\n"


def _short(commit: str) -> str:
    """Without most of its digits; whether files differed from it stays."""
    head, space, rest = commit.partition(" ")
    return head[:7] + space + rest


def _fidelity_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    by_scan = [results["fidelity"]["scans"][scan]["figures"] for scan in results["scans"]]
    for name, figure in by_scan[0].items():
        unit = "" if figure["unit"] == "1" else f" {figure['unit']}"
        limit = "-" if figure["limit"] is None else f"{figure['sense']} {figure['limit']:g}{unit}"
        yield [name, limit, *(_fidelity_cell(figures[name]) for figures in by_scan)]


def _fidelity_cell(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "none"
    text = f"{figure['value']:.3g}"
    return f"**{text}, missed**" if figure["passed"] is False else text


def effect_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """The rows of :func:`effect_rows` as the cells of a table, each against its goal."""
    for row in rows:
        yield [
            f"{row['action']}, `{row['attacker']}`{' (held out)' if row['kind'] == 'held out' else ''}",
            f"{row['scan']}, {row['places']} places",
            _percent(row["unprotected"]),
            _percent(row["past_judges"]),
            f"**{_percent(row['past_check'])}**" if row["past_check"] else "-",
            " / ".join(_percent(one, interval=False) for one in row["noise"].values()) or "-",
            f"{100 * row['moved_median']:.1f} %",
            f"{row['area_unprotected']:.2f}, {row['area_protected']:.2f}",
            f"{_percent(row['check_found'], interval=False)} / {_percent(row['check_alarm'], interval=False)}"
            if row["check_found"]
            else "-",
            _against_goal(row),
        ]


def _against_goal(row: Mapping[str, Any]) -> str:
    unprotected, reached = row["unprotected"]["value"], (row["past_check"] or row["past_judges"])["value"]
    if unprotected is None or reached is None:
        return "no place counts"
    if not unprotected:
        return "nothing succeeded"
    goal = GOALS[row["kind"]] * unprotected
    return f"at most {100 * goal:.1f} %: {'kept' if reached <= goal + 1e-12 else '**missed**'}"


def _bound_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Signed gradients know attacker and place: no protection, but what one of this size could do to the judges."""
    for row in rows:
        yield [
            f"{row['action']}, `{row['attacker']}`: upper bound `{row['protection']}`",
            f"{row['scan']}, {row['places']} places",
            _percent(row["unprotected"]),
            _percent(row["past_judges"]),
            "-",
            "-",
            f"{100 * row['moved_median']:.0f} %",
            f"{row['area_unprotected']:.2f}, {row['area_protected']:.2f}",
            "-",
            "-",
        ]


def _speed_rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    measured = [results["speed"]["scans"][scan] for scan in results["scans"]]

    def ratio(key: str) -> list[str]:
        return [f"{one['one_slice']['default_against_paper'][key]:.0f}" for one in measured]

    def one_slice(way: str) -> list[str]:
        ways = [next(row for name, row in one["one_slice"]["ways"].items() if name.endswith(way)) for one in measured]
        return [
            f"{row['cpu_s']:.3f} s, {row['floor_arithmetic_s']:.3f} s, {row['floor_bytes_s']:.3f} s" for row in ways
        ]

    def as_run(one: Mapping[str, Any]) -> float:
        """The default with its watermark against the paper's generator."""
        ways, mark_s = one["one_slice"]["ways"], one["one_slice"]["watermark_cpu_s"]
        ours = ways[f"{_network(one)}, as mitsgan runs it"]
        return ways["paper, as mitsgan runs it"]["cpu_s"] / (ours["cpu_s"] + mark_s)

    paper = [
        one["one_slice"]["ways"]["paper, naive"]["cpu_s"]
        / one["one_slice"]["ways"]["paper, as mitsgan runs it"]["cpu_s"]
        for one in measured
    ]
    yield [
        "network against the paper's generator, both as MITSGAN runs them (times as fast)",
        f"{SPEED_GOAL:g}",
        *ratio("both_as_mitsgan_runs_them"),
    ]
    yield ["both naive", "-", *ratio("both_naive")]
    yield ["network against the naive paper's generator", "-", *ratio("ours_against_naive_paper")]
    yield [
        "network and watermark against the paper's generator, as MITSGAN runs it",
        "-",
        *(f"{as_run(one):.0f}" for one in measured),
    ]
    yield [
        "network and watermark against the naive paper's generator",
        "-",
        *ratio("ours_with_watermark_against_naive_paper"),
    ]
    yield ["paper's generator as MITSGAN runs it against itself, naive", "2", *(f"{one:.1f}" for one in paper)]
    yield [
        "network, one slice as MITSGAN runs it: CPU s, floor by arithmetic, floor by bytes",
        "-",
        *one_slice(f"{_network(measured[0])}, as mitsgan runs it"),
    ]
    yield ["watermark, one slice: CPU s", "-", *(f"{one['one_slice']['watermark_cpu_s']:.3f}" for one in measured)]
    yield [
        "`mitsgan protect`, reading and writing included: seconds by the clock, median (each); CPU s, median",
        f"at most {COMMAND_GOAL_S:g} of {COMMAND_SLICES} slices",
        *(f"{_command(one['commands'])}, {one['slices']} slices" for one in measured),
    ]


def _command(runs: Sequence[Mapping[str, float]]) -> str:
    wall = [run["wall_s"] for run in runs]
    each = ", ".join(f"{seconds:.1f}" for seconds in wall)
    return f"{statistics.median(wall):.1f} ({each}); {statistics.median(run['cpu_s'] for run in runs):.1f}"


def _network(speed: Mapping[str, Any]) -> str:
    return next(name for name in speed["one_slice"]["ways"] if not name.startswith("paper")).partition(",")[0]


def _percent(share: Mapping[str, Any], *, interval: bool = True) -> str:
    if share["value"] is None:
        return "-"
    text = f"{100 * share['value']:.1f} %"
    if interval and share["low"] is not None and share["low"] < share["high"]:
        text += f" [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", metavar="SCAN", help="DICOM folders or files")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the tables and what is kept")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--model", default="default", help="protector (default: default)")
    parser.add_argument(
        "--attackers", nargs="+", default=["ctgan-small", "inpainter-l1"], metavar="NAME", help="met in training"
    )
    parser.add_argument("--held-out", nargs="*", default=["unet-attention"], metavar="NAME", help="not met in training")
    parser.add_argument("--targets", type=int, default=100, metavar="N", help="places per action and scan")
    parser.add_argument("--nodules", default="default", metavar="FILE.npz", help="to plant (default: synthetic ones)")
    parser.add_argument(
        "--bound", default="gradient:10@8", help="upper bound: signed gradients, STEPS@HU, against the first attacker"
    )
    parser.add_argument(
        "--bound-targets", type=int, default=20, metavar="N", help="places per action and scan; 0 leaves the bound out"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each case of speed, and of the command")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="for the attacks")
    parser.add_argument("--threads", type=int, default=usable_cores(), metavar="N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
