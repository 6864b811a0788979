"""All files that a group's result depends on, and their digest."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.groups.imports import reachable

ROOT = Path(__file__).resolve().parents[2]
GROUPS = "tests/groups/groups.toml"
# Whatever a group is about, it depends on these.
_ALWAYS = ("pyproject.toml", "requirements/dev.txt", "requirements/server.txt")
_NO_INPUTS = ("__pycache__", "node_modules", ".pyc")


@dataclass(frozen=True)
class Group:
    """Tests that stand and fall together."""

    name: str
    tests: tuple[str, ...]
    """Files and folders."""
    inputs: frozenset[Path]
    """Every file that its result depends on, its tests included."""
    test_files: frozenset[str]
    """The files that pytest collects, by their paths in the repository."""


def read_groups(root: Path = ROOT) -> list[Group]:
    """Read ``groups.toml``. Raises ValueError for a path or a name that means no file."""
    told = tomllib.loads((root / GROUPS).read_text())
    parts = told.pop("runs")
    known = {name: _part(root, part) for name, part in parts.items()}
    groups = []
    for name, group in told.items():
        inputs = {file for part in group.get("runs", []) for file in known[part]}
        inputs |= _matching(root, group.get("inputs", []))
        # What lies in its folders but is no Python is read, or run, by its tests.
        tests = _matching(root, group["tests"])
        inputs |= tests | reachable(root, _python(tests)) | _matching(root, _ALWAYS)
        collected = {str(each.relative_to(root)) for each in tests if _is_test(each)}
        groups.append(Group(name, tuple(group["tests"]), frozenset(inputs), frozenset(collected)))
    return groups


def digest(group: Group, root: Path = ROOT) -> str:
    """Return a SHA-256 over the names and the content of a group's inputs."""
    total = hashlib.sha256()
    for file in sorted(group.inputs):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(root)} {content}\n".encode())
    return total.hexdigest()


def _part(root: Path, part: dict[str, list[str]]) -> set[Path]:
    imported = reachable(root, _matching(root, part.get("imports", [])))
    return imported | _matching(root, part.get("inputs", []))


def _is_test(file: Path) -> bool:
    return file.name.startswith("test_") and file.suffix == ".py"


def _python(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if file.suffix == ".py"]


def _matching(root: Path, patterns: Iterable[str]) -> set[Path]:
    found = set()
    for pattern in patterns:
        paths = [root / pattern] if (root / pattern).exists() else list(root.glob(pattern))
        files = [file for path in paths for file in _files(path)]
        if not files:
            raise ValueError(f"{GROUPS}: {pattern} names no file")
        found.update(files)
    return found


def _files(path: Path) -> list[Path]:
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        file
        for file in inside
        if file.is_file() and not any(each in str(file) for each in _NO_INPUTS)
    ]
