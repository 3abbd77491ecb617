"""Every public class, function and method of both libraries says what it is, in a sentence of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = {"MITSGANLib": ROOT / "MITSGAN", "MITSGANTrainingLib": ROOT / "MITSGANTraining"}

# `python -m` and --help print the docstring of the file; CONTRIBUTING.md says what these two do, the same in each.
OF_COMMANDS = {"add_arguments", "run"}


class Docstrings:
    """The public definitions of some modules, those without a docstring, and those whose summary begins with "Of".

    A method needs none where a class that it derives from, or a protocol, has the method with one. ``forward`` is
    torch's.
    """

    def __init__(self, files: dict[str, str]) -> None:
        """
        :param files: source by a name for each file.
        """
        self.missing: list[str] = []
        self.begins_with_of: list[str] = []
        trees = {name: ast.parse(source) for name, source in files.items()}
        classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        self._bases = {node.name: _bases(node) for node in classes}
        self._documented = {
            node.name: {f.name for f in _functions(node) if ast.get_docstring(f, clean=False)} for node in classes
        }
        self._protocols = {name for name, bases in self._bases.items() if "Protocol" in bases}
        for self._file, tree in trees.items():
            self._examine(tree, [])
            self._within(tree, [])

    def _within(self, node: ast.Module | ast.ClassDef, names: list[str]) -> None:
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                self._examine(child, [*names, child.name])
                if isinstance(child, ast.ClassDef):
                    self._within(child, [*names, child.name])

    def _examine(self, node: ast.Module | ast.ClassDef | ast.FunctionDef, names: list[str]) -> None:
        place, text = f"{self._file} {'.'.join(names)}".rstrip(), ast.get_docstring(node, clean=False)
        if text is None and not self._inherits(names):
            self.missing.append(place)
        elif text is not None and text.lstrip().startswith("Of "):
            self.begins_with_of.append(place)

    def _inherits(self, names: list[str]) -> bool:
        if len(names) == 1:
            return "/commands/" in self._file and names[0] in OF_COMMANDS
        if len(names) < 2:
            return False
        pending, seen = [names[-2], *self._protocols], set()
        while pending:
            name = pending.pop()
            if name not in seen:
                seen.add(name)
                pending += self._bases.get(name, ())
        return any(names[-1] in self._documented.get(name, ()) for name in seen) or (
            names[-1] == "forward" and "Module" in seen
        )


def _bases(node: ast.ClassDef) -> set[str]:
    """Their last names: ``Module`` of ``nn.Module``, ``Task`` of ``Task[Config]``."""
    values = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return {ast.unparse(value).rpartition(".")[2] for value in values}


def _functions(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [child for child in node.body if isinstance(child, ast.FunctionDef)]


@pytest.fixture(scope="module")
def docstrings() -> Docstrings:
    files = {}
    for library, folder in LIBRARIES.items():
        for path in sorted((folder / library).rglob("*.py")):
            files[path.relative_to(folder).as_posix()] = path.read_text(encoding="utf-8")
    return Docstrings(files)


def test_nothing_public_lacks_one(docstrings):
    assert docstrings.missing == []


def test_no_summary_begins_with_of(docstrings):
    assert docstrings.begins_with_of == []


def test_what_lacks_one_would_be_seen():
    source = '''"""A module."""
class Base(Protocol):
    """Has a documented method and another."""
    def documented(self): "Says so."
    def bare(self): pass
class Derived(Base[int]):
    """Of something."""
    def documented(self): pass
    def bare(self): pass
    def forward(self): pass
    def _private(self): pass
class Network(torch.nn.Module):
    """A network."""
    def forward(self): pass
def run(): pass
def f():
    """Of another."""
    def inner(): pass
'''
    found = Docstrings({"lib/room/a.py": source, "lib/commands/b.py": "def run(): pass\ndef other(): pass"})
    assert found.missing == [
        "lib/room/a.py Base.bare",
        "lib/room/a.py Derived.bare",
        "lib/room/a.py Derived.forward",
        "lib/room/a.py run",
        "lib/commands/b.py",
        "lib/commands/b.py other",
    ]
    assert found.begins_with_of == ["lib/room/a.py Derived", "lib/room/a.py f"]
