"""Tests use what the libraries offer, not their private names, so that the inside may change."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent

# Not of these libraries: a method of named tuples, and the way out of a process.
OF_PYTHON = {"_replace", "_exit"}

# The panel's parameter node, which Slicer's convention keeps private.
OF_THE_PANEL = {"_parameterNode"}

# What still reaches inside, by file. A number here only falls.
ALLOWED = {
    "files/dicom/test_read.py": 2,
    "slicer_standin/application.py": 2,
    "slicer_standin/widgets.py": 2,
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name.strip("_") != ""


def private_names(tree: ast.Module) -> list[str]:
    """Private names that a test imports, takes from an object that is not its own, or patches by their text."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _of_self(node)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and not _of_self(node):
            found.append(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            texts = [one.value for one in node.args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            found += [text.rpartition(".")[2] for text in texts]
    return [name for name in found if is_private(name) and name not in own | OF_PYTHON | OF_THE_PANEL]


def _of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def test_no_private_name_is_used():
    found: Counter[str] = Counter()
    names = {}
    for path in sorted(TESTS.rglob("*.py")):
        place = path.relative_to(TESTS).as_posix()
        names[place] = private_names(ast.parse(path.read_text(encoding="utf-8")))
        found[place] = len(names[place])
    assert found <= Counter(ALLOWED), {place: names[place] for place in names if found[place] > ALLOWED.get(place, 0)}


def test_a_private_name_would_be_seen():
    source = """
from __future__ import annotations
from MITSGANLib.scan import _inner, outer
import os
class Mine:
    def __init__(self): self._kept = 1
    def _helper(self): return self._kept
outer._private = Mine()._helper()
monkeypatch.setattr(outer, "_patched", 1)
monkeypatch.setattr("MITSGANLib.scan._named", 1)
widget._parameterNode.__class__
os._exit(1)
for _ in (): pass
"""
    assert sorted(private_names(ast.parse(source))) == ["_inner", "_named", "_patched", "_private"]
