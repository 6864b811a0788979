"""The files of the daemon and the client that are written by hand, and what they import."""

from __future__ import annotations

import ast
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


def written_files(*packages: Path) -> list[Path]:
    """Return the files of packages, generated ones aside."""
    found = [
        path for package in packages for path in package.rglob("*.py") if "v1" not in path.parts
    ]
    assert found
    return sorted(found)


def shown(path: Path) -> str:
    """Return the path of a file in the repository."""
    return str(path.relative_to(ROOT))
