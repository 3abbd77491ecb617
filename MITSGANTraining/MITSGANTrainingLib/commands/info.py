"""List what a folder or file holds: series, geometry, HU range, noise, and whatever a careful reader should know."""

from __future__ import annotations

import argparse

from MITSGANLib.budget import estimate_noise
from MITSGANLib.storage import describe, load_volume

from .. import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_input(parser)
    shared.add_series(parser)
    shared.add_json(parser)


def run(options: argparse.Namespace) -> None:
    raise SystemExit(f"not written yet: {describe, load_volume, estimate_noise}")
