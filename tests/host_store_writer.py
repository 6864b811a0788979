"""Writes a host store as a daemon does, with artifacts of the wasmtime in this process."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wasmtime
from wasmkiln import Artifact, ArtifactHeader
from wasmkiln.host_store import Engines
from wasmkiln.loading import shown_by
from wasmkiln.shared import ARTIFACT, ENGINES, entry_path
from wasmkiln.v1 import types_pb2 as types

from tests.attesting import Attester

# What the daemon's fingerprint depends on, for an engine that this process has.
ROW: dict[str, Any] = {
    "id": "wasmtime-50.0.1",
    "name": "wasmtime",
    "version": "50.0.1",
    "core_version": "50",
    "compiler": "cranelift",
    "default": True,
    "kinds": ["core", "component"],
    "targets": [
        {
            "triple": "x86_64-unknown-linux-gnu",
            "host": True,
            "cpus": ["baseline", "x86-64-v3", "native"],
            "settings": {},
        }
    ],
    "native_cpu_features": ["avx2"],
    "settings": {"consume_fuel": "false", "cranelift_opt_level": "speed"},
    "unhashed_defaults": [],
    "fingerprint": "",
}


@dataclass
class StoreWriter:
    """A host store in `directory`, whose entries `attester` signs, if there is one."""

    directory: Path
    attester: Attester | None = None
    rows: list[dict[str, Any]] = field(default_factory=lambda: [dict(ROW)])

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, mode=0o755)
        self.write_engines()

    def write_engines(self) -> None:
        """Write engines.json for `rows`."""
        for row in self.rows:
            row["fingerprint"] = ""
        engines = Engines(2, tuple(self.rows))
        for row in self.rows:
            row["fingerprint"] = engines.fingerprint(row, "", "", {})
        key = hashlib.sha256(shown_by(wasmtime.Engine())).hexdigest()
        first = {name: self.rows[0][name] for name in ("id", "fingerprint")}
        document = {"version": 1, "cache_format": 2, "engines": self.rows, "fits": {key: first}}
        (self.directory / ENGINES).write_text(json.dumps(document))

    def engines(self) -> Engines:
        """Return what clients make of engines.json."""
        return Engines.parse((self.directory / ENGINES).read_bytes())

    def add(self, wasm: bytes, settings: dict[str, str] | None = None, **fields: Any) -> Path:
        """Compile a module and write its entry. Return the artifact's path."""
        config = wasmtime.Config()
        for name, value in (settings or {}).items():
            setattr(config, name, value == "true")
        code = bytes(wasmtime.Module(wasmtime.Engine(config), wasm).serialize())
        return self.write(wasm, code, settings or {}, **fields)

    def write(self, wasm: bytes, code: bytes, settings: dict[str, str], **fields: Any) -> Path:
        """Write an entry with these bytes. `fields` replace those of its header."""
        engines = self.engines()
        row = engines.rows[0]
        header = ArtifactHeader(
            module_sha256=hashlib.sha256(wasm).hexdigest(),
            artifact_sha256=hashlib.sha256(code).hexdigest(),
            size_bytes=len(code),
            engine=types.Engine(
                **{name: row[name] for name in ("id", "name", "version", "core_version")},
                compiler=row["compiler"],
            ),
            target="x86_64-unknown-linux-gnu",
            cpu="baseline",
            settings={**row["settings"], **settings},
            changed_settings=settings,
            fingerprint=engines.fingerprint(row, "", "", settings),
            kind=types.KIND_CORE_MODULE,
            exports=[types.ExportType(name="add")],
        )
        module = header.module_sha256
        for name, value in fields.items():
            setattr(header, name, value)
        if self.attester:
            self.attester.attest(header)
        folder = entry_path(self.directory, header.fingerprint, module)
        folder.mkdir(parents=True)
        path = Artifact(code, header).save(folder / ARTIFACT)
        for file in folder.iterdir():
            file.chmod(0o640)
        return path


def age(path: Path) -> None:
    """Wait until the file is older than what counts as just written: its ctime cannot be set."""
    while time.time() - path.stat().st_ctime < 1.05:
        time.sleep(0.05)
