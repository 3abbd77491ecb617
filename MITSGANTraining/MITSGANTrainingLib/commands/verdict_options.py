"""Options of the commands that say whether scans are as they were signed, one scan or a collection."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..archives.trees import Stage, Tell
from ..archives.verdicts import Trust, VerdictConfig, VerdictRecord, VerdictReport, read_trust
from . import tree_options
from .shared import counted


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
    watermark = getattr(options, "watermark", None)
    return read_trust(watermark, tuple(options.public_key or ()), tuple(options.certificate or ()))


def is_for_collection(options: argparse.Namespace, *of_one: str) -> bool:
    """Whether the command is for a collection; stops at options that do not go with that.

    :param of_one: options of a single scan.
    """
    if not options.collection:
        tree_options.refuse_without_collection(options)
        if options.output is not None:
            options.refuse("RESULTS is for collections; add --collection, or leave it out")
        return False
    tree_options.refuse_with_collection(options, *of_one)
    if options.output is None:
        options.refuse("--collection needs RESULTS, a folder for the results")
    return True


def judge_collection(
    options: argparse.Namespace,
    judge: Callable[[VerdictConfig, Stage | None, Tell | None], VerdictReport],
    kind: str,
    noun: str,
) -> int:
    """Judge a tree, write the results, and say how many scans got each verdict, and which are not as they should be.

    :param kind, noun: what was found, as the records have it, and one of it.
    """
    config = VerdictConfig(
        **tree_options.tree_values(options),
        watermark=getattr(options, "watermark", None),
        public_keys=tuple(options.public_key or ()),
        certificates=tuple(options.certificate or ()),
        deidentified=options.deidentified,
    )

    def line(record: VerdictRecord) -> str:
        count = len(record.result.get(kind, ()))
        found = f", {counted(count, noun)}" if count else ""
        return f"{record.verdict.upper()}  {tree_options.printable(record.source)}{found}"

    def words(report: VerdictReport) -> tuple[str, list[str]]:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in report.verdicts.most_common())
        return counts or "none", [line(record) for record in report.worst()]

    return tree_options.run_collection(options, lambda *listeners: judge(config, *listeners), words)
