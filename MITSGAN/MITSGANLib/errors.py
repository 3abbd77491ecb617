"""Errors a user can act on. Each says in one sentence what is wrong and what to do about it.

The command line prints the sentence and exits with ``exit_code``; the panel shows it. Anything else that is raised is a
defect of the program, not of the input.
"""


class MITSGANError(Exception):
    """Base of all errors that are addressed to the user."""

    exit_code = 1


class InputError(MITSGANError):
    """The input cannot be used: not a CT, several series, missing slices, truncated file, and so on."""

    exit_code = 3


class TargetError(InputError):
    """The attack target cannot be used: outside the scan, in air, too near the border."""


class OutputError(MITSGANError):
    """The output cannot be written: refused format, existing folder, no space, no permission."""

    exit_code = 4


class ModelError(MITSGANError):
    """A model is unknown, incomplete, corrupt or of another architecture."""

    exit_code = 5


class DependencyError(MITSGANError):
    """An optional package or a device that was asked for is not there."""

    exit_code = 6


class CancelledError(MITSGANError):
    """The user asked to stop; nothing was written."""

    exit_code = 130
