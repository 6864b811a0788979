"""No class of ours is refused by Python 3.11, the oldest that the daemon promises to run on.

Types and syntax are checked for that version anyway; what `dataclass` refuses is not. Until 3.12
it took no `MappingProxyType` as a default, and no daemon started.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.architecture.imports import CLIENT, SERVER, shown, written_files

# Types whose values have a hash since 3.12 only: before, dataclasses take them for mutable.
HASHED_SINCE_3_12 = {"MappingProxyType", "slice"}


def defaults_that_3_11_refuses(source: str) -> Iterator[str]:
    """Find fields of dataclasses whose default 3.11 takes for mutable."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and "dataclass" in map(_name, node.decorator_list):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and _name(field.value) in HASHED_SINCE_3_12:
                    yield f"{node.name}.{ast.unparse(field.target)}"


def _name(node: ast.expr | None) -> str:
    """Return the last part of what is called, or named."""
    called = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(called).split(".")[-1] if called else ""


def test_no_dataclass_has_a_default_that_python_3_11_refuses() -> None:
    found = [
        f"{shown(path)}: {field}"
        for path in written_files(SERVER, CLIENT)
        for field in defaults_that_3_11_refuses(path.read_text())
    ]
    assert found == []
