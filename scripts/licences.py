"""Refuse the licences of what wasmkiln installs that nobody has agreed to.

The packages are those of requirements/server.txt, of the engines' pins and of the Node client. The
wheel carries none of them: whoever installs it gets them, and the texts of their licences, from
the registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.metadata import distribution
from typing import NamedTuple

from scripts.sbom import LOCKED
from scripts.version import ROOT

# As packages state them: licences that ask for no more than to be kept with the copies.
PERMISSIVE = {
    *("Apache-2.0", "Apache Software License", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause"),
    *("BSD-3-Clause", "ISC", "MIT", "MIT License", "MIT-0", "PSF-2.0"),
    "Python Software Foundation License",
}
# Agreed to for one package each. pathspec only builds ours. certifi is a list of certificates, used
# as it is, whose copyleft is for its own files; only `wasmkiln[trace]` asks for it.
AGREED = dict.fromkeys(("certifi", "pathspec"), "Mozilla Public License 2.0 (MPL 2.0)")
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


class Package(NamedTuple):
    """A package, where it comes from, and its licence as it states it."""

    source: str
    name: str
    version: str
    licence: str


def packages() -> Iterator[Package]:
    """Find all packages."""
    pins = sorted((ROOT / "server" / "wasmkilnd" / "engines" / "pins").glob("*.txt"))
    locks = {"daemon": ROOT / "requirements" / "server.txt"}
    for source, lock in (locks | {f"engine {each.stem}": each for each in pins}).items():
        for name, version, _ in LOCKED.findall(lock.read_text()):
            yield Package(source, name, version, _stated(name))
    node = json.loads((ROOT / "client" / "node" / "package-lock.json").read_text())
    for path, entry in node["packages"].items():
        if path and not entry.get("dev"):
            name = path.removeprefix("node_modules/")
            yield Package("Node client", name, entry["version"], entry.get("license", ""))


def _stated(name: str) -> str:
    """Return the licence that a Python package states."""
    if name in STATED:
        return STATED[name]
    said = distribution(name).metadata.json
    marked = [each for each in said.get("classifier", ()) if "License :: OSI Approved ::" in each]
    names = " AND ".join(each.rpartition(" :: ")[2] for each in marked)
    return str(said.get("license_expression") or names or said.get("license") or "")


def refused(found: Package) -> str:
    """Return "" for a package that may be used, else a sentence that says why not."""
    what = f"{found.name} {found.version}:"
    if not found.licence:
        return f"{what} it states no licence: read it, then add it to STATED"
    parts = set(re.split(" AND | OR ", found.licence))
    if parts <= PERMISSIVE or found.licence == AGREED.get(found.name):
        return ""
    agree = "use another package, or have the licence agreed to and add it"
    return f"{what} {found.licence!r} is not in PERMISSIVE: {agree}"
