"""Errors a user can act on: what is wrong, with what, and what to do about it.

The command line and the panel each say the sentence in their own words and the command line exits with ``exit_code``.
Anything else that is raised is a defect of the program, not of the input; :func:`defect_text` says what may be shown of
it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

# Hints about what a caller chooses. Each interface says in its own words how: by an option, or by a widget.
CHOOSE_SERIES = "choose one of these series"
LEAVE_SERIES_OUT = "leave the series out"
LEAVE_SEAL_OUT = "leave the seal out"
NAME_SEAL = "name the file of the seal"
MAKE_KEY = "make a new key file"
MAKE_SIGNING_KEY = "make a new signing key"
CHOOSE_CPU = "choose the CPU"
MAY_OVERWRITE = "choose another name or allow overwriting"


class MITSGANError(Exception):
    """Base of all errors that are addressed to the user. ``str(error)`` is the whole sentence.

    The fields are set once. They are no frozen dataclass, because Python itself sets the trace of what is raised.

    :param what: what is wrong: a clause about ``path`` such as "does not exist"; a whole clause where there is no path.
    :param path: the file or folder that it is about. It may name a patient, so an interface can put words in its place.
    :param hint: what to do about it, such as "check the path".
    """

    exit_code = 1

    def __init__(self, what: str = "", *, path: str | os.PathLike[str] | None = None, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.path, self.hint = what, path, hint

    def __str__(self) -> str:
        return self.sentence()

    def sentence(self, *, subject: str | None = None, hint: str | None = None) -> str:
        """One sentence of the fields.

        :param subject: words in place of ``path``, where there is one.
        :param hint: words in place of ``hint``; empty leaves it out.
        """
        subject = os.fspath(self.path) if subject is None and self.path is not None else subject
        hint = self.hint if hint is None else hint
        text = self.what if self.path is None else f"{subject} {self.what}"
        return f"{text}; {hint}." if hint else f"{text.rstrip('.')}." if self.path is not None else text


class InputError(MITSGANError):
    """The input cannot be used: not a CT, several series, missing slices, truncated file, and so on."""

    exit_code = 3


class OtherKindError(InputError):
    """The input is sound but no CT volume: a picture, a label map, a time series."""


class TargetError(InputError):
    """The attack target cannot be used: outside the scan, in air, too near the border."""


class OutputError(MITSGANError):
    """The output cannot be written: refused format, existing folder, no space, no permission."""

    exit_code = 4


class NoSpaceError(OutputError):
    """The disk is full or too small, whatever is written."""


class ModelError(MITSGANError):
    """A model is unknown, incomplete, corrupt or of another architecture."""

    exit_code = 5


class DependencyError(MITSGANError):
    """An optional package or a device that was asked for is not there."""

    exit_code = 6


class CancelledError(MITSGANError):
    """The user asked to stop; nothing was written."""

    exit_code = 130


@contextmanager
def reading(path: str | os.PathLike[str], hint: str = "check its permissions") -> Iterator[None]:
    """What the system refuses of a file within becomes a sentence about it.

    :raises InputError: the file cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path, hint=hint) from error


def defect_text(error: BaseException) -> str:
    """The type of an error that is not addressed to the user, with its text unless headers may have gone into that.

    pydicom quotes the values that it cannot read, and they may name the patient.
    """
    modules = [str(frame.f_globals.get("__name__")).split(".") for frame, _ in traceback.walk_tb(error.__traceback__)]
    passed_headers = any({"pydicom", "dicom"} & set(parts) for parts in modules)
    name = type(error).__name__
    return name if isinstance(error, MITSGANError) or passed_headers else f"{name}: {error}"
