"""Find which files of the repository a Python file imports, without running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

_PACKAGES = {
    "tests": "tests",
    "bench": "bench",
    "scripts": "scripts",
    "wasmkiln": "client/wasmkiln",
    "wasmkilnd": "server/wasmkilnd",
}

_DOTTED = re.compile(r"\w+(\.\w+)+")


def reachable(root: Path, files: Iterable[Path]) -> set[Path]:
    """Return ``files`` and all that they import, directly or not, imports in functions included.

    Also returned: the ``conftest.py`` of each folder above a test, and modules that are named in a
    text, as ``python -m`` runs them.
    """
    found: set[Path] = set()
    left = [*files]
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        left += _imported(root, file)
        if file.is_relative_to(root / "tests"):
            above = (folder / "conftest.py" for folder in file.relative_to(root).parents)
            left += [root / each for each in above if (root / each).is_file()]
    return found


@cache
def _imported(root: Path, file: Path) -> list[Path]:
    found = []
    for name in _names(ast.parse(file.read_bytes(), file)):
        parts = name.split(".")
        # A module's packages run too.
        every = (_file(root, parts[:length]) for length in range(1, len(parts) + 1))
        found += [each for each in every if each]
    return found


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{each.name}" for each in node.names)
        elif isinstance(node, ast.Constant) and _is_name(node.value):
            yield str(node.value)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _DOTTED.fullmatch(value) is not None


def _file(root: Path, parts: list[str]) -> Path | None:
    if parts[0] not in _PACKAGES:
        return None
    path = root.joinpath(_PACKAGES[parts[0]], *parts[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None
