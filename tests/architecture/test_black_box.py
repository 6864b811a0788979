"""The black box knows the daemon as users do: it imports nothing of it, however far away.

It starts the programs that tests/e2e/programs.py names, and so runs against any release.
"""

from __future__ import annotations

import ast
import re
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


def test_it_imports_nothing_of_the_daemon() -> None:
    # What pytest runs beside all of it, and its own files; behind each, how it comes to be there.
    box = {name: name for name in files() if name.split(".")[1:2] in [[each] for each in FOLDERS]}
    waiting = ["tests.conftest", *box]
    violations: list[str] = []
    while waiting:
        name = waiting.pop()
        for other in imports(name) - box.keys():
            box[other] = f"{box.get(name, name)} -> {other}"
            (violations if is_daemon(other) else waiting).append(other)
    assert [box[name] for name in violations] == []
