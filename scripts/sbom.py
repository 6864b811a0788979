"""Write a CycloneDX bill of materials into the wheel, as hatchling builds it.

It names the packages of requirements/server.txt that wasmkiln runs on, at the locked versions, and
which package asks for which. It lies in `.dist-info/sboms/` of the wheel (PEP 770). The wheel
holds none of these packages; the engines have environments and pins of their own.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LOCKED = re.compile(r"^([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==(\S+).*\n((?: .*\n?)*)", re.MULTILINE)
_ASKED_BY = re.compile(r"^    # (?:via)? +([a-z0-9-]+)(?: \(|$)", re.MULTILINE)


class SbomHook(BuildHookInterface[BuilderConfig]):
    """Adds the bill of materials to each wheel but an editable one."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the file before the wheel is packed."""
        lock = (Path(self.root) / "requirements" / "server.txt").read_text()
        # Until the build has ended.
        self._folder = tempfile.TemporaryDirectory(prefix="sbom-")
        file = Path(self._folder.name) / "wasmkiln.cdx.json"
        file.write_text(json.dumps(bill(self.metadata.version, lock), indent=1) + "\n")
        if version == "standard":
            build_data["sbom_files"].append(str(file))


def bill(version: str, lock: str) -> dict[str, Any]:
    """Return the bill of a version, from the text of the lock file."""
    versions, needs = {"wasmkiln": version}, dict[str, list[str]]()
    for name, locked, rest in LOCKED.findall(lock):
        versions[name] = locked
        for other in _ASKED_BY.findall(rest):
            needs.setdefault(other, []).append(name)
    # What only builds the package is locked too, and is no part of it.
    reached, ahead = set[str](), ["wasmkiln"]
    while ahead:
        if (name := ahead.pop()) not in reached:
            reached.add(name)
            ahead += needs.get(name, ())
    refs = {name: f"pkg:pypi/{name}@{versions[name]}" for name in sorted(reached)}
    parts = {
        name: {
            "type": "library",
            "bom-ref": ref,
            "name": name,
            "version": versions[name],
            "purl": ref,
        }
        for name, ref in refs.items()
    }
    licence = {"licenses": [{"license": {"id": "Apache-2.0"}}]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "metadata": {"component": parts.pop("wasmkiln") | {"type": "application"} | licence},
        "components": list(parts.values()),
        "dependencies": [
            {"ref": ref, "dependsOn": [refs[each] for each in needs.get(name, ())]}
            for name, ref in refs.items()
        ],
    }
