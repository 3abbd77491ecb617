"""The folder of what is shipped beside the code: models, recipes, the report's template."""

from __future__ import annotations

from pathlib import Path


def resources_folder(library: Path) -> Path:
    """Folder ``Resources`` of a library: within it where a wheel was installed, beside it in Slicer and in a checkout.

    :param library: folder of the package, such as ``MITSGANLib``.
    """
    within = library / "Resources"
    return within if within.is_dir() else library.parent / "Resources"
