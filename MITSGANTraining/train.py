"""The command ``mitsgan train`` as a script, which ``torchrun`` takes, too.

In Slicer: ``Slicer --no-splash --no-main-window --python-script MITSGANTraining/train.py ...``; in plain Python:
``python MITSGANTraining/train.py ...``. Both end with the command's exit code.
"""

import sys
from pathlib import Path


class train:  # noqa: N801 - Slicer looks for a class of the file's name
    """Keeps this script out of Slicer's module list: Slicer takes every Python file beside a module for a module."""

    def __init__(self, parent):
        parent.title = "MITSGAN command: train"
        parent.hidden = True


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    # In a checkout the library lies in the module folder beside this one; installed, all lie in one folder.
    sys.path[:0] = [str(folder), str(folder.parent / "MITSGAN")]
    from MITSGANTrainingLib.commandline import main

    sys.exit(main(["train", *sys.argv[1:]]))
