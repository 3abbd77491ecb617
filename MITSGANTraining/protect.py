"""Protect a scan or a whole collection: short for ``run_mitsgan.py protect``, which says how to run it in Slicer."""

import sys
from pathlib import Path


class protect:  # noqa: N801 - Slicer looks for a class of the file's name, and lists no hidden one
    def __init__(self, parent):
        parent.title, parent.hidden = "MITSGAN command: protect", True


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from run_mitsgan import run

    run("protect")
