"""Collect the licences of all that wasmkiln installs, and refuse those that nobody has agreed to.

``python -m scripts.licences`` prints the report and fails for a package whose licence is unknown or
not in PERMISSIVE, BUILDING or AGREED. The packages are those of requirements/server.txt, of the
engines' pins and of the Node client. The wheel carries none of them: whoever installs it gets them
from the registry.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# SPDX identifiers of licences that ask for no more than to be kept with the copies.
PERMISSIVE = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BlueOak-1.0.0", "CC0-1.0", "ISC"),
        *("MIT", "MIT-0", "PSF-2.0", "Python-2.0", "Unicode-3.0", "Unlicense", "Zlib"),
    }
)
EXCEPTIONS = frozenset({"LLVM-exception"})
# What only builds the package may be copyleft for its own files: nothing of it is passed on.
BUILDING = {"pathspec": "MPL-2.0"}
# Agreed to for one package each. certifi: a list of certificates, used as it is, whose copyleft is
# for its own files; only `wasmkiln[trace]` asks for it, and our wheel carries none of it.
AGREED = {"certifi": "MPL-2.0"}
# Packages that say it in no field, or are not installed where the tests run; and where it stands.
STATED = {
    "async-timeout": "Apache-2.0",  # for CPython before 3.11.3; its README
    "importlib-resources": "Apache-2.0",  # of wasmtime, on older Pythons; its LICENSE
    "protobuf": "BSD-3-Clause",  # "3-Clause BSD License" in its metadata
    "valkey": "MIT",  # the whole text in its metadata
    "wasmer": "MIT",  # its metadata; in an interpreter of its own, as the next two
    "wasmer-compiler-cranelift": "MIT",
    "wasmer-compiler-singlepass": "MIT",
}
# What older metadata writes instead of an identifier.
_WORDS = {
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
_LOCKED = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>[^ \\]+)", re.MULTILINE)
_PINS = "server/wasmkilnd/engines/pins"


class Package(NamedTuple):
    """A package, where it comes from, its licence as an SPDX expression, and the texts of it."""

    source: str
    name: str
    version: str
    licence: str
    texts: tuple[str, ...] = ()


def packages() -> Iterator[Package]:
    """Find all packages."""
    for name, version in _locked(ROOT / "requirements" / "server.txt"):
        yield _of_python("daemon", name, version)
    for pins in sorted((ROOT / _PINS).glob("*.txt")):
        for name, version in _locked(pins):
            yield _of_python(f"engine {pins.stem}", name, version)
    lock = json.loads((ROOT / "client" / "node" / "package-lock.json").read_text())
    for path, entry in lock["packages"].items():
        if path and not entry.get("dev"):
            name = path.removeprefix("node_modules/")
            yield Package("Node client", name, entry["version"], entry.get("license", ""))


def refused(found: Package) -> str:
    """Return "" for a package that may be used, else a sentence that says why not."""
    if not found.licence:
        return f"{found.name} {found.version}: it states no licence: read it, then add it to STATED"
    if (BUILDING | AGREED).get(found.name) == found.licence or permitted(found.licence):
        return ""
    return (
        f"{found.name} {found.version}: {found.licence!r} is not in PERMISSIVE:"
        " use another package, or have the licence agreed to and add it"
    )


def permitted(expression: str) -> bool:
    """Return whether an SPDX expression leaves a choice that is permissive in all its parts."""
    return any(
        all(_is_permissive(part) for part in choice.split(" AND "))
        for choice in expression.split(" OR ")
    )


def _is_permissive(part: str) -> bool:
    name, _, exception = part.strip().partition(" WITH ")
    return name in PERMISSIVE and (not exception or exception in EXCEPTIONS)


def report(found: list[Package]) -> str:
    """Return the report: a table, then the texts that the packages bring."""
    lines = ["# Licences of what wasmkiln installs", ""]
    lines += ["| package | version | licence | for |", "|---|---|---|---|"]
    lines += [f"| {p.name} | {p.version} | {p.licence} | {p.source} |" for p in found]
    for package in {p.name: p for p in found if p.texts}.values():
        lines += ["", f"## {package.name} {package.version}"]
        for text in package.texts:
            lines += ["", "```text", text.replace("```", "'''").rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _locked(file: Path) -> list[tuple[str, str]]:
    return _LOCKED.findall(file.read_text())


def _of_python(source: str, name: str, version: str) -> Package:
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        return Package(source, name, version, STATED.get(name, ""))
    licence = STATED.get(name) or _stated(installed)
    return Package(source, name, version, licence, tuple(_texts(installed)))


def _stated(installed: Distribution) -> str:
    metadata = installed.metadata.json
    if expression := metadata.get("license_expression"):
        return str(expression)
    classifiers = [
        str(each).rpartition(" :: ")[2]
        for each in metadata.get("classifier", ())
        if str(each).startswith("License :: OSI Approved :: ")
    ]
    written = str(metadata.get("license", "")).strip()
    words = written if written and "\n" not in written else " AND ".join(classifiers)
    return _WORDS.get(words, words)


def _texts(installed: Distribution) -> Iterator[str]:
    for file in installed.files or ():
        if re.search(r"\.dist-info/(.*/)?(LICEN[CS]E|COPYING|NOTICE)[^/]*$", str(file)):
            yield Path(str(installed.locate_file(file))).read_text(errors="replace")


def main() -> int:
    """Print the report, and what is refused; return the exit code."""
    found = list(packages())
    print(report(found), end="")
    wrong = [why for each in found if (why := refused(each))]
    for line in wrong:
        print(f"licences: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
