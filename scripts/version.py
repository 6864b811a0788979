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
    # What a daemon prints and answers in the examples of the documentation; of an answer itself,
    # and of no engine inside it.
    ("README.md", r"\b(wasmkilnd )V(?= is ready)"),
    (
        "docs/**/*.md",
        r'(\bwasmkilnd |^{\n  "version": "|"version": {"wasmkiln": ")V(?= is ready|")',
    ),
)


def version_of(root: Path) -> str:
    """Return the version of the source tree at `root`."""
    text = (root / "pyproject.toml").read_text()
    return re.findall(rf'^version = "({VERSION})"$', text, re.MULTILINE)[0]  # type: ignore[no-any-return]


def differing(root: Path, version: str, write: bool = False) -> Iterator[str]:
    """Say which copies are missing, and which are not this version; `write` mends the latter."""
    for glob, pattern in PLACES:
        for file in sorted(root.glob(glob)) or [root / glob]:
            text, place = (
                file.read_text() if file.exists() else "",
                pattern.replace("V(", f"{VERSION}("),
            )
            put, count = re.subn(f"(?m){place}", rf"\g<1>{version}", text)
            if not count and "*" not in glob:
                yield f"{glob}: nothing matches {pattern}"
            elif write:
                file.write_text(put)
            elif put != text:
                yield f"{file.relative_to(root)}: another version than {version}"


def main(wanted: str = "") -> str:
    """Check, or write the version that is wanted; return what is wrong."""
    version = wanted or version_of(ROOT)
    if not re.fullmatch(VERSION, version):
        return f"cannot use the version {version!r}: write it like 1.2.3"
    wrong = differing(ROOT, version, write=bool(wanted))
    return "\n".join(f"version: {each}; run: python -m scripts.version {version}" for each in wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) or None)
