"""Test doubles accept only the calls that the real object accepts."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.architecture.imports import ROOT, shown, written_files


def takes_any_call(source: str) -> Iterator[int]:
    """Find the lines of a Mock, or of a ``__getattr__`` that answers a lambda."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module="unittest.mock", names=names):
                if any("Mock" in name.name for name in names):
                    yield node.lineno
            case ast.Attribute(attr="Mock" | "MagicMock" | "AsyncMock"):
                yield node.lineno
            case ast.FunctionDef(name="__getattr__"):
                returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
                if any(isinstance(value, ast.Lambda) for value in returned):
                    yield node.lineno


def test_nothing_takes_any_call() -> None:
    found = [
        f"{shown(path)}:{line}"
        for path in written_files(ROOT / "tests")
        for line in takes_any_call(path.read_text())
    ]
    assert found == []


def test_what_takes_any_call_is_found() -> None:
    source = """
from unittest.mock import AsyncMock, patch
mock.MagicMock()
class Any:
    def __getattr__(self, name):
        return lambda *_: None
"""
    assert sorted(takes_any_call(source)) == [2, 3, 5]
