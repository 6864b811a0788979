"""Write a CycloneDX bill of materials into the wheel, as hatchling builds it.

It names the packages of requirements/server.txt that wasmkiln runs on, at the locked versions, and
which package asks for which. It lies in `.dist-info/sboms/` of the wheel (PEP 770). The wheel
holds none of these packages; the engines have environments and pins of their own.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "wasmkiln.cdx.json"
_LOCKED = re.compile(r"^([a-z0-9-]+)==(\S+).*\n((?: .*\n?)*)", re.MULTILINE)
_ASKED_BY = re.compile(r"^    # (?:via)? +([a-z0-9-]+)(?: \(|$)", re.MULTILINE)


class SbomHook(BuildHookInterface[BuilderConfig]):
    """Adds the bill of materials to each wheel but an editable one."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the file before the wheel is packed."""
        if version != "standard":
            return
        lock = (Path(self.root) / "requirements" / "server.txt").read_text()
        core = [re.split(r"[^A-Za-z0-9-]", each)[0] for each in self.metadata.core.dependencies]
        self._folder = tempfile.TemporaryDirectory(prefix="sbom-")
        file = Path(self._folder.name) / NAME
        file.write_text(json.dumps(bill(self.metadata.version, lock, core), indent=1) + "\n")
        build_data["sbom_files"].append(str(file))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the file that was packed."""
        if version == "standard":
            self._folder.cleanup()


def bill(version: str, lock: str, core: Collection[str]) -> Mapping[str, Any]:
    """Return the bill of a version; `core` are the packages that the thin client needs."""
    versions, needs = {"wasmkiln": version}, dict[str, set[str]]()
    for name, locked, rest in _LOCKED.findall(lock):
        versions[name] = locked
        for other in _ASKED_BY.findall(rest):
            needs.setdefault(other, set()).add(name)
    required = _reached(core, needs)

    def component(name: str, kind: str) -> dict[str, Any]:
        of = {"name": name, "version": versions[name]}
        scope = "required" if name in required else "optional"
        return {"type": kind, "bom-ref": ref(name), **of, "purl": ref(name), "scope": scope}

    def ref(name: str) -> str:
        return f"pkg:pypi/{name}@{versions[name]}"

    # What only builds the package is locked too, and is no part of it.
    parts = sorted(_reached(needs["wasmkiln"], needs))
    ours = component("wasmkiln", "application") | {"scope": "required"}
    ours["licenses"] = [{"license": {"id": "Apache-2.0"}}]
    content = {
        "metadata": {"component": ours},
        "components": [component(name, "library") for name in parts],
        "dependencies": [
            {"ref": ref(name), "dependsOn": [ref(each) for each in sorted(needs.get(name, ()))]}
            for name in ("wasmkiln", *parts)
        ],
    }
    # The same content has the same number, so that a wheel can be built again byte for byte.
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}
    return {**head, "serialNumber": number.urn, **content}


def _reached(start: Collection[str], needs: Mapping[str, Collection[str]]) -> set[str]:
    """Return the packages that `start` leads to, and those of `start`."""
    reached, ahead = set[str](), list(start)
    while ahead:
        if (name := ahead.pop()) not in reached:
            reached.add(name)
            ahead += needs.get(name, ())
    return reached
