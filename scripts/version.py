"""Hold every copy of the version equal to the one in pyproject.toml.

``python scripts/version.py`` fails and names the copies that differ; ``make check`` runs it.
``python scripts/version.py 1.2.3`` writes that version into pyproject.toml and all copies.
Only packages of other languages and examples need copies: Python code asks importlib.metadata.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# PyPI, npm, Maven, CMake and Helm each write anything longer, like candidates, in another way.
VERSION = re.compile(r"\d+\.\d+\.\d+")
_NUMBERS = r"(?P<version>\d+\.\d+\.\d+)"


class Place(NamedTuple):
    """Where the version is written: files by a glob, and a pattern around it."""

    files: str
    pattern: str
    required: bool = True
    """Whether each of the files holds it."""


SOURCE = Place("pyproject.toml", rf'^version = "{_NUMBERS}"$')
COPIES = (
    Place("client/node/package.json", rf'\A{{\n  "name": "wasmkiln",\n  "version": "{_NUMBERS}"'),
    Place(
        "client/node/package-lock.json",
        rf'^ *"name": "wasmkiln",\n *"version": "{_NUMBERS}"',
    ),
    Place(
        "client/java/pom.xml",
        rf"<artifactId>wasmkiln-client</artifactId>\n *<version>{_NUMBERS}<",
    ),
    Place(
        "client/java/README.md",
        rf"<artifactId>wasmkiln-client</artifactId>\n *<version>{_NUMBERS}<",
    ),
    Place("client/cpp/CMakeLists.txt", rf"^project\(wasmkiln VERSION {_NUMBERS} "),
    Place("deploy/helm/wasmkiln/Chart.yaml", rf'^(?:appV|v)ersion: "?{_NUMBERS}"?$'),
    # What a daemon prints and answers in the examples of the documentation.
    Place("README.md", rf"\bwasmkilnd {_NUMBERS} is ready"),
    Place("docs/**/*.md", rf"\bwasmkilnd {_NUMBERS} is ready", required=False),
    Place("docs/**/*.md", rf'^  "version": "{_NUMBERS}",$', required=False),
    Place("docs/**/*.md", rf'"version": {{"wasmkiln": "{_NUMBERS}"', required=False),
)


def version_of(root: Path) -> str:
    """Return the version of the source tree at ``root``."""
    [found] = re.findall(SOURCE.pattern, (root / SOURCE.files).read_text(), re.MULTILINE)
    return str(found)


def differing(root: Path) -> Iterator[str]:
    """Say which copies differ from pyproject.toml, and which are missing."""
    version = version_of(root)
    for place in COPIES:
        for file in _files(root, place):
            text = file.read_text()
            found = list(re.finditer(place.pattern, text, re.MULTILINE))
            name = file.relative_to(root)
            if place.required and not found:
                yield f"{name}: nothing matches {place.pattern}"
            for each in found:
                if each["version"] != version:
                    line = 1 + text.count("\n", 0, each.start("version"))
                    yield f"{name}:{line}: {each['version']} instead of {version}"


def write(root: Path, version: str) -> list[Path]:
    """Write ``version`` everywhere; return the files that changed."""
    changed = []
    for place in (SOURCE, *COPIES):
        for file in _files(root, place):
            text = file.read_text()
            after = re.sub(
                place.pattern,
                lambda found: found[0].replace(found["version"], version),
                text,
                flags=re.MULTILINE,
            )
            if after != text:
                file.write_text(after)
                changed.append(file)
    return changed


def _files(root: Path, place: Place) -> list[Path]:
    found = sorted(root.glob(place.files))
    if place.required and not found:
        raise FileNotFoundError(f"no file {place.files}: correct COPIES in scripts/version.py")
    return found


def main(arguments: list[str]) -> int:
    """Check, or write the version that was given; return the exit code."""
    if arguments:
        if not VERSION.fullmatch(arguments[0]):
            print(f"cannot use the version {arguments[0]!r}: write it like 1.2.3", file=sys.stderr)
            return 2
        for file in write(ROOT, arguments[0]):
            print(file.relative_to(ROOT))
    wrong = list(differing(ROOT))
    for line in wrong:
        print(f"version: {line}", file=sys.stderr)
    if wrong:
        version = version_of(ROOT)
        print(f"run: python scripts/version.py {version}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
