"""Options of the commands that work on one scan or a tree of them, and what they say of a tree.

Some of them judge: they say whether scans are as they were signed, or genuine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MITSGANLib.keys.key_files import Key

from ..archives.inventory import SUMMARY
from ..archives.trees import Stage, Tell, TreeReport
from . import shared
from .shared import counted

if TYPE_CHECKING:  # what judges takes a while to import, and not every command on trees judges
    from ..archives.verdicts import Trust, VerdictConfig, VerdictRecord, VerdictReport

_OTHERS, _ONLY = "others", ("processes", "scheduler", "json_lines")
_LISTED, _NAMED = 50, 3


def add_collection(parser: argparse.ArgumentParser, text: str, *, makes_tree: bool = True) -> None:
    """``--collection`` and what goes with it; ``text`` explains it.

    :param makes_tree: whether the output is the same tree; else it is a folder of results.
    """
    group = parser.add_argument_group("collections", text)
    what = "OUTPUT is the same tree" if makes_tree else "OUTPUT is a folder for the results"
    group.add_argument("--collection", action="store_true", help=f"INPUT is a tree of folders; {what}")
    if makes_tree:
        group.add_argument("--others", choices=("skip", "copy"), help="what becomes of all other files (default: skip)")
    group.add_argument(
        "--json-lines",
        metavar="FILE",
        help="write a line of JSON for each scan as soon as it is done, to FILE, or to standard output for -",
    )
    workers = group.add_mutually_exclusive_group()
    workers.add_argument("--processes", type=shared.count, metavar="N", help="scans at a time (default: 1)")
    workers.add_argument(
        "--scheduler", metavar="ADDRESS", help="spread over the workers of this Dask scheduler, tcp://HOST:PORT"
    )


def is_collection(options: argparse.Namespace, *of_one: str, others: bool = False) -> bool:
    """Whether the command is for a tree; stops at options that do not go with that.

    :param of_one: options of a single scan alone.
    :param others: whether a single scan has others beside it, too.
    """
    if options.collection:
        for name in of_one:
            if getattr(options, name) is not None:
                options.refuse(f"--{name} is of one scan and --collection takes all; leave one of them out")
    else:
        for name in _ONLY if others else (_OTHERS, *_ONLY):
            if getattr(options, name, None) is not None:
                options.refuse(f"--{name.replace('_', '-')} is for collections; add --collection, or leave it out")
    return options.collection


def tree_values(options: argparse.Namespace, key: Key | None = None) -> dict[str, Any]:
    """The values of ``trees.TreeConfig`` that the options give.

    :param key: that of the options which seals or restores, as ``key_options.key`` gives it.
    """
    return {
        "key": Path(options.key) if key and options.key else key,
        "tree": Path(options.input),
        "out": Path(options.output),
        "others": getattr(options, _OTHERS, None) or "skip",
        "redo": options.overwrite,
        "processes": options.processes or 1,
        "scheduler": options.scheduler,
    }


def run_collection(
    options: argparse.Namespace,
    work: Callable[[Stage, Tell | None], TreeReport],
    words: Callable[[Any], tuple[str, Sequence[str]]] | None = None,
) -> int:
    """Work on a tree, write its result and say what became of it.

    :param words: gives ``whole`` and ``details`` of :func:`_say_report` from the report; the amount alone without it.
    """
    if options.json == "-" == options.json_lines:
        options.refuse("--json and --json-lines cannot both be standard output; name a file for one of them")
    try:
        with shared.json_lines(options.json_lines) as tell:
            report = work(shared.progress_bar, tell)
    except KeyboardInterrupt:
        shared.note("Finished scans are kept; the same command continues with the rest.")
        raise
    shared.write_json(options.json, {"input": options.input, "output": options.output, **report.to_dict()})
    if "-" not in (options.json, options.json_lines):
        whole, details = words(report) if words else (counted(report.amount, report.unit.removesuffix("s")), ())
        _say_report(report, whole, details, options.output)
    return report.exit_code


def _say_report(report: TreeReport, whole: str, details: Sequence[str], output: str) -> None:
    """Say what became of a tree.

    :param whole: such as "3 slices", of all finished scans; ``details`` are lines about these.
    """
    earlier = sum(was_earlier for _, was_earlier in report.finished)
    by_earlier_run = f", {earlier} of them by an earlier run" if earlier else ""
    shared.say(f"{report.verb.capitalize()} {counted(len(report.finished), 'scan')} ({whole}){by_earlier_run}")
    for line in details:
        shared.say(f"   {line}")
    for reason, files in report.skipped_by_reason.most_common():
        sources = sorted(other.source for other, _ in report.skipped if other.reason == reason)
        named = f" ({printable(', '.join(sources))})" if len(sources) <= _NAMED else ""
        shared.say(f"   skipped  {counted(files, 'file')}: {printable(reason)}{named}")
    copied = sum(len(other.files) for other, was_copied in report.skipped if was_copied)
    if copied:
        shared.say(f"   copied   {copied} of the skipped files, unchanged")
    for source in report.left_over[:_LISTED]:
        shared.say(f"   left     {printable(source)}: {report.verb} earlier, now not in the tree or not usable")
    for failure in sorted(report.failed, key=lambda one: one.source)[:_LISTED]:
        shared.say(f"   FAILED   {printable(failure.source)}: {printable(failure.reason)}")
    if len(report.failed) > _LISTED:
        shared.say(f"   FAILED   {len(report.failed) - _LISTED} more; see the summary")
    shared.say(f"   time     {report.seconds:.1f} s")
    shared.say(f"Wrote {output}; the summary is {Path(output) / SUMMARY}")


def printable(text: str) -> str:
    """A foreign name for a terminal: what is no text, or would steer it, becomes question marks."""
    return "".join(character if character.isprintable() else "?" for character in text)


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the output of a collection, a positional argument."""
    parser.add_argument("output", metavar="RESULTS", nargs="?", help="with --collection: a folder for the results")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """``--public-key`` and ``--certificate``: whom to trust; and ``--deidentified``."""
    parser.add_argument(
        "--public-key", metavar="FILE", type=Path, action="append", help="public key of a signer you trust; repeatable"
    )
    parser.add_argument(
        "--certificate",
        metavar="FILE",
        type=Path,
        action="append",
        help="X.509 certificates (PEM) of signers or authorities you trust, for DICOM's own signatures; repeatable",
    )
    parser.add_argument(
        "--deidentified", action="store_true", help="do not compare identifying headers: they were changed on purpose"
    )


def trust(options: argparse.Namespace) -> Trust:
    """Whom the options name to trust, and the key of the watermark.

    :raises InputError: a file cannot be read, or holds something else.
    """
    from ..archives.verdicts import read_trust

    watermark = getattr(options, "watermark", None)
    return read_trust(watermark, tuple(options.public_key or ()), tuple(options.certificate or ()))


def judges_collection(options: argparse.Namespace, *of_one: str) -> bool:
    """As :func:`is_collection` for a command whose output is RESULTS."""
    if not is_collection(options, *of_one):
        if options.output is not None:
            options.refuse("RESULTS is for collections; add --collection, or leave it out")
    elif options.output is None:
        options.refuse("--collection needs RESULTS, a folder for the results")
    return options.collection


def judge_collection(
    options: argparse.Namespace,
    judge: Callable[[VerdictConfig, Stage | None, Tell | None], VerdictReport],
    kind: str,
    noun: str,
) -> int:
    """Judge a tree, write the results, and say how many scans got each verdict, and which are not as they should be.

    :param kind, noun: what was found, as the records have it, and one of it.
    """
    from ..archives.verdicts import VerdictConfig

    config = VerdictConfig(
        **tree_values(options),
        watermark=getattr(options, "watermark", None),
        public_keys=tuple(options.public_key or ()),
        certificates=tuple(options.certificate or ()),
        deidentified=options.deidentified,
    )

    def line(record: VerdictRecord) -> str:
        count = len(record.result.get(kind, ()))
        found = f", {counted(count, noun)}" if count else ""
        return f"{record.verdict.upper()}  {printable(record.source)}{found}"

    def words(report: VerdictReport) -> tuple[str, list[str]]:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in report.verdicts.most_common())
        return counts or "none", [line(record) for record in report.worst()]

    return run_collection(options, partial(judge, config), words)
