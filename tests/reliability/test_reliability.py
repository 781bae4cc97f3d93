"""docs/reliability.md: every line names the tests that show it, and each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text()
_ROW = re.compile(r"^\| (?!---)(.+) \|$", re.MULTILINE)
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
_COLUMNS = ["What fails", "What users see", "How it comes back", "Shown by"]
NAMED = sorted(set(_NAMED.findall(TEXT)))


def rows() -> list[list[str]]:
    """The cells of every row of every table."""
    cells = [match.split(" | ") for match in _ROW.findall(TEXT)]
    return [row for row in cells if row != _COLUMNS and not row[0].startswith("---")]


def test_every_line_names_a_test():
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == len(_COLUMNS), row
        assert all(cell.strip() for cell in row), row
        assert _NAMED.findall(row[-1]), f"no test shows: {row[0]}"


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_named_test_exists(path: str, name: str):
    file = ROOT / path
    assert file.is_file(), path
    tree = ast.parse(file.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in tree.body if isinstance(node, functions)}


def test_every_dependency_has_its_part():
    headings = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    for part in ("Redis", "Language model", "Engine", "Disk", "Catalogue's writer", "Registry"):
        assert part in headings
