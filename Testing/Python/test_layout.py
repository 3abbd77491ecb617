"""The layout: packages in layers, no package imports one above it, no modules in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {"MITSGANLib": ROOT / "MITSGAN", "MITSGANTrainingLib": ROOT / "MITSGANTraining"}

# From the bottom up. What a package may import stands before it.
LAYERS = {
    "MITSGANLib": (
        "errors",
        "runtime",
        "scan",
        "files",
        "budget",
        "keys",
        "weights",
        "attack",
        "judges",
        "watermark",
        "protection",
        "seal",
        "signature",
        "save_protected",
        "measure",
        "report",
        "slicer_bridge",
    ),
    "MITSGANTrainingLib": (
        "workers",
        "data",
        "preparation",
        "training",
        "evaluation",
        "archives",
        "commands",
        "commandline",
    ),
}


def modules(library: str) -> dict[str, Path]:
    """Every module of a library by its dotted name."""
    folder = LIBRARIES[library]
    found = {}
    for path in (folder / library).rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """The modules of its own library that a module imports, at any place in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known - {name}


def room(module: str) -> str | None:
    """The package or flat module at the library's root that a module belongs to; None for the root itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


@pytest.mark.parametrize("library", LIBRARIES)
class TestLayout:
    def test_every_room_has_its_layer(self, library):
        assert {room(name) for name in modules(library)} - {None} == set(LAYERS[library])

    def test_no_arrow_points_upward(self, library):
        known, level = modules(library), {name: number for number, name in enumerate(LAYERS[library])}
        upward = [
            f"{name} imports {other}"
            for name, path in known.items()
            for other in imports(name, path, set(known))
            if room(name) and room(other) and level[room(other)] > level[room(name)]
        ]
        assert upward == []

    def test_there_is_no_circle(self, library):
        known = modules(library)
        graph = {name: imports(name, path, set(known)) for name, path in known.items()}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_a_circle_and_an_upward_arrow_would_be_seen(tmp_path):
    """The reader of imports sees those within functions, relative and absolute."""
    path = tmp_path / "upper.py"
    path.write_text("from .lower import a\ndef f():\n    from lib.room import other\n    from . import third\n")
    known = {"lib.upper", "lib.lower", "lib.room.other", "lib.third", "lib.fourth"}
    assert imports("lib.upper", path, known) == {"lib.lower", "lib.room.other", "lib.third"}
