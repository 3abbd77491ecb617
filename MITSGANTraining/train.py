"""Train a shipped model again: ``train.py injector|remover|protector --data FOLDER``.

Runs in plain Python and as ``Slicer --no-main-window --python-script MITSGANTraining/train.py ...``; a stopped run
continues where it was.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "MITSGAN")]

from MITSGANTrainingLib.training_commandline import main  # noqa: E402  (after the path is set)

if __name__ == "__main__":
    sys.exit(main())
