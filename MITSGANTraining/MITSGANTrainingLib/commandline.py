"""The command ``mitsgan``: one subcommand per file in ``commands``, one place for errors and exit codes.

Exit codes: 0 done, 1 unexpected failure, 2 wrong usage, 3 unusable input (of many scans: of at least one), 4 output not
written, 5 model not usable, 6 package or device missing, 7 a signed or watermarked scan was changed, 8 it is signed by
an unknown key or carries no such watermark, 130 stopped by Ctrl-C or SIGTERM. Results go to standard output, everything
else to standard error. Errors are one line that says what to do; ``--verbose`` adds the trace.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType

from MITSGANLib import __version__, errors
from MITSGANLib.errors import CancelledError, MITSGANError, defect_text
from MITSGANLib.files.dicom.headers import silence_pydicom
from MITSGANLib.runtime.memory import keep_freed_memory

from .commands.shared import check_json, with_points


class _Commands(Mapping[str, ModuleType]):
    """The modules of the subcommands, each imported when it is asked for: all of them take as long as the rest."""

    _NAMES = (
        *("info", "protect", "keygen", "restore", "sign", "verify", "watch", "check", "examine", "attack", "drill"),
        *("compare", "fidelity", "demo", "prepare", "train", "evaluate", "diagnose", "sheet"),
    )

    def __getitem__(self, name: str) -> ModuleType:
        if name not in self._NAMES:
            raise KeyError(name)
        return importlib.import_module(f".commands.{name}", __package__)

    def __iter__(self) -> Iterator[str]:
        return iter(self._NAMES)

    def __len__(self) -> int:
        return len(self._NAMES)


COMMANDS = _Commands()

# The library says what to choose; here is the option that chooses it.
_HINTS = {
    errors.CHOOSE_SERIES: "choose one with --series UID",
    errors.LEAVE_SERIES_OUT: "leave --series out",
    errors.LEAVE_SEAL_OUT: "leave --seal out",
    errors.NAME_SEAL: "name it with --seal",
    errors.MAKE_KEY: "make one with mitsgan keygen",
    errors.MAKE_SIGNING_KEY: "make one with mitsgan keygen --signing",
    errors.CHOOSE_CPU: "use --device cpu",
    errors.MAY_OVERWRITE: "choose another name or add --overwrite",
}
_NEVER_OVERWRITES = {errors.MAY_OVERWRITE: "choose another name"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and give the process's exit code; never raises for what a user can cause."""
    arguments = with_points(sys.argv[1:] if arguments is None else arguments)
    options = _parser([arguments[0]] if arguments and arguments[0] in COMMANDS else COMMANDS).parse_args(arguments)
    command = COMMANDS[options.command]
    settings = {"level": logging.WARNING, "format": "%(levelname)s %(name)s: %(message)s"}
    settings |= getattr(command, "LOGGING", {}) | ({"level": logging.DEBUG} if options.verbose else {})
    logging.basicConfig(**settings)
    silence_pydicom()
    keep_freed_memory()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        check_json(options)
        return command.run(options) or 0
    except KeyboardInterrupt:
        return _fail("Stopped; nothing was left half written.", CancelledError.exit_code, options.verbose)
    except MITSGANError as error:
        hints = _HINTS if hasattr(options, "overwrite") else _HINTS | _NEVER_OVERWRITES
        return _fail(error.sentence(hint=hints.get(error.hint)), error.exit_code, options.verbose)
    except ModuleNotFoundError as error:
        text = (
            f"The Python package '{error.name}' is missing; install the packages in "
            "MITSGAN/Resources/requirements.txt and PyTorch (in Slicer: through the PyTorch extension)."
        )
        return _fail(text, 6, options.verbose)
    except MemoryError:
        return _fail(
            "Not enough memory for this scan; close other programs or use a larger machine.", 1, options.verbose
        )
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 - a defect: one line for the user, the trace with --verbose
        text = f"Unexpected {defect_text(error)}. Run again with --verbose and report the trace."
        return _fail(text, 1, options.verbose)
    finally:
        signal.signal(signal.SIGTERM, previous)
        _let_go_of_output()


def _let_go_of_output() -> None:
    """Drop what standard output does not take; Python would try again, and end with an exit code of its own."""
    if sys.stdout is None:  # closed before Python began
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(names: Iterable[str]) -> argparse.ArgumentParser:
    """The parser of these subcommands."""
    parser = argparse.ArgumentParser(
        prog="mitsgan",
        description="MITSGAN helps you find out whether generative AI added or removed a tumor in a chest CT: it adds "
        "a watermark smaller than the scan's own noise, signs scans, restores originals bit for bit, and simulates the "
        "attack on your own scan, but it does not stop the attack and misses some forgeries.",
    )
    parser.add_argument("--version", action="version", version=f"mitsgan {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        module = COMMANDS[name]
        summary = (module.__doc__ or "").strip().splitlines()[0]
        texts = {"help": summary, "description": module.__doc__, "epilog": getattr(module, "EXIT_CODES", None)}
        # Paragraphs stay paragraphs.
        command = commands.add_parser(name, **texts, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.set_defaults(refuse=command.error)
        module.add_arguments(command)
        command.add_argument("--verbose", action="store_true", help="log what happens, and the trace of an error")
    return parser


def _fail(text: str, code: int, verbose: bool) -> int:
    if verbose:
        print("".join(_trace(sys.exception())), file=sys.stderr)
    print(f"mitsgan: {text}", file=sys.stderr)
    return code


def _trace(error: BaseException | None) -> Iterator[str]:
    """The trace of an error and of what caused it, without texts that may quote headers."""
    if error is None:
        return
    if cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        yield from _trace(cause)
        yield "\nwhich led to:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__name__}: {error}\n" if isinstance(error, MITSGANError) else f"{defect_text(error)}\n"


if __name__ == "__main__":
    sys.exit(main())
