"""The black box knows the daemon as users do: it imports nothing of it, however far away.

It starts the programs that tests/e2e/programs.py names, and so runs against any release.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FOLDERS = ("e2e", "operators", "polyglot", "verdicts")
_IN_A_TEXT = re.compile(r"\b(?:import|from) wasmkilnd\b")


@cache
def files() -> dict[str, Path]:
    """Return the files of the tests by module name."""
    found = {}
    for path in TESTS.rglob("*.py"):
        parts = ("tests", *path.relative_to(TESTS).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def imports(name: str) -> frozenset[str]:
    """Return what a module of the tests imports, of the tests and of the daemon."""
    found = set()
    for node in ast.walk(ast.parse(files()[name].read_text())):
        match node:
            case ast.Import(names=names):
                found |= {each.name for each in names}
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found |= {module, *(f"{module}.{each.name}" for each in names)}
            case ast.Constant(value=str(text)) if _IN_A_TEXT.search(text):
                found.add("wasmkilnd")  # What it has another process run.
    return frozenset(each for each in found if is_daemon(each) or each in files())


def is_daemon(name: str) -> bool:
    return name.partition(".")[0] == "wasmkilnd"


def chain(name: str, seen: set[str]) -> list[str]:
    """Return how a module comes to import the daemon; empty if it does not."""
    seen.add(name)
    for other in sorted(imports(name)):
        if is_daemon(other):
            return [name, other]
    for other in sorted(imports(name) - seen):
        if found := chain(other, seen):
            return [name, *found]
    return []


def black_box() -> Iterator[str]:
    """Yield the modules of the black box, and what pytest runs beside all of them."""
    yield "tests.conftest"
    for name in sorted(files()):
        if name.split(".")[1:2] in [[folder] for folder in FOLDERS]:
            yield name


def test_it_imports_nothing_of_the_daemon() -> None:
    violations = [" -> ".join(found) for name in black_box() if (found := chain(name, set()))]
    assert not violations, "\n".join(violations)
