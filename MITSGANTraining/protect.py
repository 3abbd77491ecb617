"""``mitsgan protect`` for Slicer: ``Slicer --no-main-window --python-script MITSGANTraining/protect.py ...``."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "MITSGAN")]

from MITSGANTrainingLib.commandline import main  # noqa: E402  (after the path is set)

if __name__ == "__main__":
    sys.exit(main(["protect", *sys.argv[1:]]))
