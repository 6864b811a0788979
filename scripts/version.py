"""Hold every copy of the version equal to the one in pyproject.toml.

`python -m scripts.version` fails and names what differs; `make check` runs it. With a version, as
1.2.3, it writes that into pyproject.toml and all copies. Only packages of other languages and
examples need copies: Python code asks importlib.metadata.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# PyPI, npm, Maven, CMake and Helm each write anything longer, like candidates, in another way.
VERSION = r"\d+\.\d+\.\d+"
MAVEN = r"(<artifactId>wasmkiln-client</artifactId>\n *<version>)V(?=<)"
# A glob of files, where a name without a star is of a file that has to hold the version; and what
# stands before V, the version, and after it.
PLACES = (
    ("pyproject.toml", r'^(version = ")V(?="$)'),
    ("client/node/package.json", r'\A({\n  "name": "wasmkiln",\n  "version": ")V(?=")'),
    ("client/node/package-lock.json", r'^( *"name": "wasmkiln",\n *"version": ")V(?=")'),
    ("client/java/pom.xml", MAVEN),
    ("client/java/README.md", MAVEN),
    ("client/cpp/CMakeLists.txt", r"^(project\(wasmkiln VERSION )V(?= )"),
    ("deploy/helm/wasmkiln/Chart.yaml", r'^((?:appV|v)ersion: "?)V(?="?$)'),
    # What a daemon prints and answers in the examples of the documentation.
    ("README.md", r"\b(wasmkilnd )V(?= is ready)"),
    ("docs/**/*.md", r"\b(wasmkilnd )V(?= is ready)"),
    # Of an answer itself, and of no engine inside it.
    ("docs/**/*.md", r'^({\n  "version": ")V(?=",$)'),
    ("docs/**/*.md", r'("version": {"wasmkiln": ")V(?=")'),
)


def version_of(root: Path) -> str:
    """Return the version of the source tree at `root`."""
    [version] = re.findall(
        rf'^version = "({VERSION})"$', (root / PLACES[0][0]).read_text(), re.MULTILINE
    )
    return str(version)


def differing(root: Path, version: str, write: bool = False) -> Iterator[str]:
    """Say which copies are missing, and which are not this version; `write` mends the latter."""
    for glob, pattern in PLACES:
        for file in sorted(root.glob(glob)) or [root / glob]:
            text = file.read_text() if file.exists() else ""
            put, count = re.subn(
                f"(?m){pattern.replace('V(', f'{VERSION}(')}", rf"\g<1>{version}", text
            )
            if not count and "*" not in glob:
                yield f"{glob}: nothing matches {pattern}"
            elif write:
                file.write_text(put)
            elif put != text:
                yield f"{file.relative_to(root)}: another version than {version}"


def main(arguments: list[str]) -> int:
    """Check, or write the version that was given; return the exit code."""
    if arguments and not re.fullmatch(VERSION, arguments[0]):
        print(f"cannot use the version {arguments[0]!r}: write it like 1.2.3", file=sys.stderr)
        return 2
    version = arguments[0] if arguments else version_of(ROOT)
    wrong = list(differing(ROOT, version, write=bool(arguments)))
    for line in wrong:
        print(f"version: {line}; run: python -m scripts.version {version}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
