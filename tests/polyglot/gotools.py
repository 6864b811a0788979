"""The Go tools, and the host in Go that runs what other languages compiled."""

from __future__ import annotations

import os
import shutil
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


@dataclass(frozen=True)
class OfflineModules:
    """What makes Go take Debian's packages as modules, without the network."""

    environ: Mapping[str, str]
    lines: list[str]
    """To be run behind `go mod init`."""


def offline_modules(cache: Path, folder: Path) -> OfflineModules:
    """Return it for a module in a folder."""
    sources = Path(_DEBIAN) / "src"
    # The one that Debian has as a part of another.
    rpc = "google.golang.org/genproto/googleapis/rpc"
    shutil.copytree(sources / rpc, folder / "rpc")
    (folder / "rpc" / "go.mod").write_text(f"module {rpc}\n")
    names = ["google.golang.org/grpc", "google.golang.org/protobuf", "github.com/golang/protobuf"]
    names += [f"golang.org/x/{each}" for each in ("net", "sys", "text")]
    places = {rpc: folder / "rpc"} | {name: sources / name for name in names}
    # Debian generated parts of it anew, for a newer Go than its go.mod names.
    flags = "-mod=mod -gcflags=google.golang.org/grpc/...=-lang=go1.22"
    environ = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": flags}
    environ["GOCACHE"] = str(cache / "cache")
    lines = [f"go mod edit -replace {name}={place}" for name, place in places.items()]
    return OfflineModules(environ, lines)
