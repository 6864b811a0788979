"""The Go tools, and the host in Go that runs what other languages compiled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.programs import ROOT, installed_engines
from tests.polyglot.kiln import FULL_ENGINE

CLIENT = ROOT / "client" / "go"
_IMPORT_PATH = Path("src/github.com/wasmkiln/wasmkiln/client/go")
# Debian's Go packages, which are sources only.
_DEBIAN = "/usr/share/gocode"


@dataclass(frozen=True)
class Go:
    """The Go tools, which find the client in a workspace without modules."""

    folder: Path

    def __post_init__(self) -> None:
        """Make the workspace, unless it is there."""
        link = self._source
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(CLIENT)

    @property
    def _source(self) -> Path:
        return self.folder / "workspace" / _IMPORT_PATH

    @property
    def environ(self) -> Mapping[str, str]:
        """What makes them build with Debian's packages and without the network."""
        return {
            "GO111MODULE": "off",
            "GOPATH": f"{self.folder / 'workspace'}:{_DEBIAN}",
            "GOCACHE": str(self.folder / "cache"),
            "GOFLAGS": "",
            "GOTOOLCHAIN": "local",
            "CGO_ENABLED": "1",
        }

    def __call__(self, *words: str | Path, environ: Mapping[str, str] | None = None) -> str:
        """Run a command in the client's folder. Return what it printed."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=self._source,
            env={**os.environ, **self.environ, **(environ or {}), "PWD": str(self._source)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def build(self, name: str, *words: str, environ: Mapping[str, str] | None = None) -> Path:
        """Build a program. Return its path."""
        program = self.folder / name
        self("go", "build", "-o", program, *words, environ=environ)
        return program

    def host(self) -> Path:
        """Build a host on the C library inside PyPI's wasmtime package of the newest engine."""
        [engine] = [each for each in installed_engines() if each.id == FULL_ENGINE]
        [library] = engine.path.resolve().glob(
            "lib/python*/site-packages/wasmtime/*/_libwasmtime.so"
        )
        flags = f"-L{library.parent} -l:_libwasmtime.so -Wl,-rpath,{library.parent}"
        words = ["-tags", "wasmtime", "./hosts/wasmtime"]
        return self.build("host", *words, environ={"CGO_LDFLAGS": flags})
