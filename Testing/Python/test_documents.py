"""Every document of the repository: links lead somewhere, lines fit, and the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 120
README_WORDS = 1300

# What git ignores, and what is made by running.
LEFT_OUT = {".venv", ".git", ".cache", ".pytest_cache", "mitsgan-demo", "runs", "bench", "build"}
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not LEFT_OUT & set(path.relative_to(ROOT).parts))


def prose(text: str) -> str:
    """The text without blocks of code and code within a line, with as many lines."""
    text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings: lower case, hyphens for spaces, a number for each repetition."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE):
        title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.append(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return {f"{name}-{before}" if (before := found[:number].count(name)) else name for number, name in enumerate(found)}


def broken_links(path: Path) -> list[str]:
    """Relative links and images whose file is missing, or whose heading is."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(path.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            broken.append(f"{link}: no such heading")
    return broken


def long_lines(text: str) -> list[int]:
    """Numbers of the lines over 120 columns. The rows of a table may be longer."""
    return [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > COLUMNS and not line.lstrip().startswith("|")
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
class TestDocuments:
    def test_links_lead_somewhere(self, path):
        assert broken_links(path) == []

    def test_lines_fit(self, path):
        assert long_lines(path.read_text(encoding="utf-8")) == []


def documents_named(text: str) -> list[str]:
    """The documents under docs/ that code or a recipe names."""
    return re.findall(r"\bdocs/[\w/-]+\.md\b", text)


def test_documents_that_code_names_exist():
    files = [path for folder in ("MITSGAN", "MITSGANTraining", "Testing") for path in (ROOT / folder).rglob("*.*")]
    files = [path for path in files if path.suffix in {".py", ".toml", ".ui", ".j2"}]
    named = [(path, name) for path in files for name in documents_named(path.read_text(encoding="utf-8"))]
    assert len(named) > 3
    assert [f"{path.relative_to(ROOT)}: {name}" for path, name in named if not (ROOT / name).is_file()] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= README_WORDS


def test_a_broken_link_and_a_long_line_would_be_seen(tmp_path):
    (tmp_path / "other.md").write_text("# A heading: twice\n## A heading: twice\n```sh\n# no heading\n```\n")
    good = "[a](other.md#a-heading-twice) [b](other.md#a-heading-twice-1) [c](https://example.org) `[d](none.md)`\n"
    bad = "[e](none.md) ![f](none.png)\n[g](other.md#no-heading) [h](#here)\n"
    (tmp_path / "page.md").write_text(f"{good}```\n[i](none.md)\n```\n{bad}")
    assert [link.partition(":")[0] for link in broken_links(tmp_path / "page.md")] == [
        "none.md",
        "none.png",
        "other.md#no-heading",
        "#here",
    ]
    assert long_lines(f"{'a' * 120}\n{'b' * 121}\n| {'c' * 200} |\n") == [2]
