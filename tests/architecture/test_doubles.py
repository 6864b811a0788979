"""Test doubles accept only the calls that the real object accepts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(TESTS.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_nothing_takes_any_call(path: Path) -> None:
    """No Mock, and no ``__getattr__`` that answers a lambda."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module="unittest.mock", names=names):
                assert not [name.name for name in names if "Mock" in name.name]
            case ast.Attribute(attr=name):
                assert name not in ("Mock", "MagicMock", "AsyncMock")
            case ast.FunctionDef(name="__getattr__"):
                returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
                assert not any(isinstance(value, ast.Lambda) for value in returned)
