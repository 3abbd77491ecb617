"""Watch a folder that a DICOM receiver fills: protect, sign and deliver each CT series that has come.

A series is taken when none of its files changed for some seconds. It is protected, sealed with --key and signed with
--sign, and appears in OUT whole or not at all, as a folder named by the UID of its original. What cannot be delivered
is moved to another folder, with the reason in reason.txt. Move it back to try again. What is no CT series stays where
it is.

Ctrl-C or SIGTERM ends the watch; a series that is under way then is done at the next start. What was delivered is
written down in OUT/.mitsgan and not delivered again, even when its folder was taken from OUT.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any

from ..archives.collection import CollectionConfig
from ..archives.watching import WatchConfig, watch
from . import key_options, shared

EXIT_CODES = """\
Exit code: 0 stopped by Ctrl-C or SIGTERM, 3 IN cannot be used, 4 OUT or the folder of failures
cannot, or the disk is full, 5 the model cannot.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="the folder that the receiver fills")
    parser.add_argument("output", metavar="OUT", help="the folder for protected series: new, empty, or of this command")
    parser.add_argument(
        "--failed", metavar="FOLDER", type=Path, help="where series go that cannot be delivered (default: OUT-failed)"
    )
    parser.add_argument(
        "--settle", metavar="SECONDS", type=_seconds, default=30.0, help="how long a series is quiet (default: 30)"
    )
    parser.add_argument(
        "--poll", metavar="SECONDS", type=_seconds, default=2.0, help="time between two looks (default: 2)"
    )
    parser.add_argument("--remove", action="store_true", help="remove the originals from IN once they are delivered")
    shared.add_protector(parser)
    key_options.add_key(parser, "seal what is delivered, so that it can be restored, with")
    key_options.add_signing_key(parser)
    shared.add_options(parser, "--device")
    parser.add_argument(
        "--json-lines",
        metavar="FILE",
        help="write a line of JSON for each series to FILE, or to standard output for -",
    )


def run(options: argparse.Namespace) -> int:
    key = key_options.key(options, is_new=True)
    folders = {"tree": Path(options.input), "out": Path(options.output)}
    keys = {"key": Path(options.key) if options.key else key, **key_options.signing_values(options)}
    protection = CollectionConfig(**shared.given(options, CollectionConfig) | folders | keys)
    failed = options.failed or Path(f"{options.output.rstrip('/')}-failed")
    config = WatchConfig(protection, failed, options.settle, options.poll, options.remove)
    with shared.json_lines(options.json_lines) as tell_line:

        def tell(what: dict[str, Any]) -> None:
            if tell_line:
                tell_line({"event": "scan", **what})
            if options.json_lines != "-":
                shared.say(
                    f"{what['outcome']:<9}  {what['source']}  {what['series_instance_uid']}  {what.get('reason', '')}"
                )

        shared.note(f"Watching {options.input}; Ctrl-C or SIGTERM ends it.")
        try:
            watch(config, tell, threading.Event().wait)
        except KeyboardInterrupt:
            shared.note("Stopped; nothing was left half written.")
    return 0


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds")
    return value
