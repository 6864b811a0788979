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
VERSION = r"\d+\.\d+\.\d+"
MAVEN = r"(<artifactId>wasmkiln-client</artifactId>\n *<version>)V(?=<)"


class Place(NamedTuple):
    """Where the version is written."""

    files: str
    """A glob: a name without a star is of a file that has to hold it."""
    pattern: str
    """A regular expression: a group, then V for the version, then what follows it."""


SOURCE = Place("pyproject.toml", r'^(version = ")V(?="$)')
COPIES = (
    Place("client/node/package.json", r'\A({\n  "name": "wasmkiln",\n  "version": ")V(?=")'),
    Place("client/node/package-lock.json", r'^( *"name": "wasmkiln",\n *"version": ")V(?=")'),
    Place("client/java/pom.xml", MAVEN),
    Place("client/java/README.md", MAVEN),
    Place("client/cpp/CMakeLists.txt", r"^(project\(wasmkiln VERSION )V(?= )"),
    Place("deploy/helm/wasmkiln/Chart.yaml", r'^((?:appV|v)ersion: "?)V(?="?$)'),
    # What a daemon prints and answers in the examples of the documentation.
    Place("README.md", r"\b(wasmkilnd )V(?= is ready)"),
    Place("docs/**/*.md", r"\b(wasmkilnd )V(?= is ready)"),
    # Of an answer itself, and of no engine inside it.
    Place("docs/**/*.md", r'^({\n  "version": ")V(?=",$)'),
    Place("docs/**/*.md", r'("version": {"wasmkiln": ")V(?=")'),
)


def version_of(root: Path) -> str:
    """Return the version of the source tree at ``root``."""
    return next(copies(root, SOURCE))[1][2]


def copies(root: Path, place: Place) -> Iterator[tuple[Path, re.Match[str]]]:
    """Find each copy of the version, in the second group. Raise LookupError for a missing one."""
    pattern = place.pattern.replace("V(", f"({VERSION})(")
    for file in sorted(root.glob(place.files)) or [root / place.files]:
        text = file.read_text() if file.exists() else ""
        found = [(file, match) for match in re.finditer(pattern, text, re.MULTILINE)]
        if not found and "*" not in place.files:
            raise LookupError(f"{place.files}: nothing matches {place.pattern}")
        yield from found


def differing(root: Path) -> Iterator[str]:
    """Say which copies differ from pyproject.toml, and which are missing."""
    version = version_of(root)
    for place in COPIES:
        try:
            for file, found in copies(root, place):
                if found[2] != version:
                    line = 1 + found.string.count("\n", 0, found.start(2))
                    yield f"{file.relative_to(root)}:{line}: {found[2]} instead of {version}"
        except LookupError as missing:
            yield str(missing)


def write(root: Path, version: str) -> None:
    """Write ``version`` everywhere."""
    for place in (SOURCE, *COPIES):
        # The last first: what is found before it stays where it is.
        for file, found in reversed(list(copies(root, place))):
            text = file.read_text()
            file.write_text(text[: found.start(2)] + version + text[found.end(2) :])


def main(arguments: list[str]) -> int:
    """Check, or write the version that was given; return the exit code."""
    if arguments:
        if not re.fullmatch(VERSION, arguments[0]):
            print(f"cannot use the version {arguments[0]!r}: write it like 1.2.3", file=sys.stderr)
            return 2
        write(ROOT, arguments[0])
    wrong = list(differing(ROOT))
    for line in wrong:
        print(f"version: {line}; run: python scripts/version.py {version_of(ROOT)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
