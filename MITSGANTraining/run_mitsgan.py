"""The command ``mitsgan`` as a script, for Slicer's Python: ``run_mitsgan.py COMMAND ...``.

``PythonSlicer run_mitsgan.py COMMAND ...`` takes every option, as ``python run_mitsgan.py`` does. The application
itself runs it by ``Slicer --no-splash --no-main-window --python-script run_mitsgan.py COMMAND ...``, but keeps
``--help``, ``--version`` and some others for itself: there, write ``-- --help``. Either ends with the command's exit
code.

``train.py``, ``evaluate.py`` and ``protect.py`` are short for ``run_mitsgan.py train`` and so on. The name is not
``mitsgan.py``: installed, all modules lie in one folder, where Windows and macOS could not tell it from ``MITSGAN.py``.
"""

import sys
from pathlib import Path


class run_mitsgan:  # noqa: N801 - Slicer looks for a class of the file's name
    """Keeps this script out of Slicer's module list: Slicer takes every Python file beside a module for a module."""

    def __init__(self, parent):
        parent.title, parent.hidden = "MITSGAN command: run_mitsgan", True


def run(*command: str) -> None:
    """Run the command line, these words before those of the user, and end with its exit code."""
    folder = Path(__file__).resolve().parent
    # In a checkout the library lies in the module folder beside this one; installed, all lie in one folder.
    sys.path[:0] = [str(folder), str(folder.parent / "MITSGAN")]
    from MITSGANTrainingLib.commandline import main

    sys.exit(main([*command, *sys.argv[1:]]))


if __name__ == "__main__":
    run()
