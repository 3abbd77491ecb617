"""The layout: packages in layers, no package imports one above it, no modules in a circle."""

from __future__ import annotations

import ast
import functools
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
        "examination",
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


def imports(name: str, path: Path, known: set[str], tree: ast.Module) -> set[str]:
    """The modules of its own library that a module imports, at any place in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known - {name}


@functools.cache
def read(library: str) -> tuple[dict[str, set[str]], dict[str, list[str]]]:
    """What each module of a library imports of it, and the modules that define each public class, by its name."""
    known = modules(library)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in known.items()}
    return {name: imports(name, known[name], set(known), tree) for name, tree in trees.items()}, classes(trees)


def room(module: str) -> str | None:
    """The package or flat module at the library's root that a module belongs to; None for the root itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


@pytest.mark.parametrize("library", LIBRARIES)
class TestLayout:
    def test_every_room_has_its_layer(self, library):
        assert {room(name) for name in modules(library)} - {None} == set(LAYERS[library])

    def test_no_arrow_points_upward(self, library):
        level = {name: number for number, name in enumerate(LAYERS[library])}
        upward = [
            f"{name} imports {other}"
            for name, others in read(library)[0].items()
            for other in others
            if room(name) and room(other) and level[room(other)] > level[room(name)]
        ]
        assert upward == []

    def test_there_is_no_circle(self, library):
        try:
            TopologicalSorter(read(library)[0]).prepare()
        except CycleError as error:
            pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_tests_mirror_the_packages():
    tests = {path.name for path in Path(__file__).parent.iterdir() if any(path.glob("**/test_*.py"))}
    packages = {
        room for library, layers in LAYERS.items() for room in layers if (LIBRARIES[library] / library / room).is_dir()
    }
    assert packages - tests == set()


def classes(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """The modules that define each public class, by its name."""
    found: dict[str, list[str]] = {}
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    return found


def test_no_two_classes_have_the_same_name():
    places = [(name, place) for library in LIBRARIES for name, found in read(library)[1].items() for place in found]
    names = [name for name, _ in places]
    assert [(name, place) for name, place in places if names.count(name) > 1] == []


def test_a_name_of_two_classes_would_be_seen():
    sources = {"a": "class B: pass", "c": "class B: pass\nclass _D: pass"}
    assert classes({name: ast.parse(source) for name, source in sources.items()}) == {"B": ["a", "c"]}


def test_a_circle_and_an_upward_arrow_would_be_seen(tmp_path):
    """The reader of imports sees those within functions, relative and absolute."""
    path = tmp_path / "upper.py"
    path.write_text("from .lower import a\ndef f():\n    from lib.room import other\n    from . import third\n")
    known = {"lib.upper", "lib.lower", "lib.room.other", "lib.third", "lib.fourth"}
    assert imports("lib.upper", path, known, ast.parse(path.read_text())) == {
        "lib.lower",
        "lib.room.other",
        "lib.third",
    }


# What make test-fast runs


def is_slow(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> bool:
    """Whether a file, a class or a test is marked slow; a test of which only some parameters are is not."""
    if isinstance(node, ast.Module):
        return any(isinstance(child, ast.Assign) and "mark.slow" in ast.unparse(child) for child in node.body)
    return any(ast.unparse(mark) == "pytest.mark.slow" for mark in node.decorator_list)


def fast_tests(node: ast.Module | ast.ClassDef) -> list[str]:
    """The tests within a file or a class that are not marked slow."""
    if is_slow(node):
        return []
    found = []
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            found += fast_tests(child)
        elif isinstance(child, ast.FunctionDef) and child.name.startswith("test_") and not is_slow(child):
            found.append(child.name)
    return found


def imported(tree: ast.Module) -> set[tuple[str, str]]:
    """The (library, room) that a test imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {tuple(name.split(".")[:2]) for name in names if name.split(".")[0] in LIBRARIES and "." in name}


def test_the_fast_tests_cover_every_package():
    tests = Path(__file__).parent
    folders, rooms = set(), set()
    files = sorted(tests.rglob("test_*.py"))
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if fast_tests(tree):
            folders.add(path.parent)
            rooms |= imported(tree)
    assert folders == {path.parent for path in files}
    packages = {(library, room) for library, layers in LAYERS.items() for room in layers}
    assert {(library, room) for library, room in packages if (LIBRARIES[library] / library / room).is_dir()} <= rooms


def test_a_slow_test_would_be_seen():
    source = """
import MITSGANLib.keys
from MITSGANLib.scan.volume import CTVolume
class TestA:
    @pytest.mark.slow
    def test_slow(self): pass
    @pytest.mark.parametrize("a", [pytest.param(1, marks=pytest.mark.slow), 2])
    def test_fast(self): pass
@pytest.mark.slow
class TestB:
    def test_slow_as_well(self): pass
"""
    assert fast_tests(ast.parse(source)) == ["test_fast"]
    assert fast_tests(ast.parse(f"pytestmark = pytest.mark.slow\n{source}")) == []
    assert imported(ast.parse(source)) == {("MITSGANLib", "keys"), ("MITSGANLib", "scan")}
