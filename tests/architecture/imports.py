"""Which module imports which, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "server" / "wasmkilnd"
CLIENT = ROOT / "client" / "wasmkiln"


def imported_modules(path: Path) -> set[str]:
    """Return the full names of all that a file imports, relative ones resolved."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(
                    SERVER.parent if SERVER in path.parents else CLIENT.parent
                )
                parents = package.parts[: len(package.parts) - node.level]
                base = ".".join((*parents, *filter(None, [node.module])))
            names.add(base)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@cache
def modules(package: Path) -> Mapping[str, Path]:
    """Return the files of a package by module name, generated ones aside."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if "v1" not in parts:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def graph(package: Path) -> Mapping[str, frozenset[str]]:
    """Return which modules of a package each of them imports.

    ``from a import b`` counts as an import of the module ``a.b`` where there is one, and of
    the package ``a`` where there is none.
    """
    files = modules(package)
    edges = {}
    for name, path in files.items():
        imported = {other for other in imported_modules(path) if other in files} - {name}
        edges[name] = frozenset(
            other
            for other in imported
            if not (is_package(files[other]) and any(_lies_in(one, other) for one in imported))
        )
    return edges


def is_package(path: Path) -> bool:
    return path.name == "__init__.py"


def _lies_in(name: str, package: str) -> bool:
    return name.startswith(f"{package}.")


def room_of(name: str, package: Path) -> str:
    """Return the package that a module lies in, its own name if it is one."""
    return name if is_package(modules(package)[name]) else name.rpartition(".")[0]


def circles(edges: Mapping[str, frozenset[str]]) -> Iterator[set[str]]:
    """Yield each set of names that can all reach each other."""
    reached = {name: _reachable(name, edges) for name in edges}
    seen: set[str] = set()
    for name in edges:
        circle = {other for other in reached[name] if name in reached.get(other, ())}
        if circle and name not in seen:
            seen |= circle
            yield circle


def _reachable(start: str, edges: Mapping[str, frozenset[str]]) -> set[str]:
    found: set[str] = set()
    new = set(edges.get(start, ()))
    while new:
        found |= new
        new = {other for name in new for other in edges.get(name, ())} - found
    return found
