"""Real modules, each with the artifacts that the engines make of it without a daemon."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import wasmtime
from wasmtime.component import Component

from tests.corpus.fetch import CorpusUnavailable, fetch
from tests.corpus.modules import BY_NAME
from tests.e2e import wasm
from tests.e2e.in_engine import run_script
from tests.e2e.programs import Installed

WASMER, WASMTIME = "wasmer-1.1.0", "wasmtime-50.0.1"
ENGINES = (WASMER, WASMTIME)
CPU = "native"
"""The CPU level that an engine compiles for by default."""

# From eight toolchains; no compile of any takes more than half of the CPU time that a
# compile may take here. resvg is left to wasmtime for that.
_LARGE = (
    *("quickjs", "itk-downsample-sigma", "itk-gaussian-kernel-radius", "shfmt"),
    *("itk-parse-string-decompress-2", "itk-compress-stringify-2", "quickjs-wasi", "resvg"),
)
_SMALL = ("as-sha256", "rabin", "as-sha256-simd", "source-map", "zig-fmt", "gofmt")
_WASMTIME_ONLY = frozenset({"resvg", "component"})
# The one of these that needs no npm.
AT_LEAST = "itk-downsample-sigma"

_COMPONENT = '(component (core module (func (export "f") (result i32) i32.const 7)))'
_TAG_BYTES = 16
_PLACE_FOR_TAG = b"soak-tag-goes-!!"
_BY_WASMER = """
import pathlib, sys, wasmer, wasmer_compiler_cranelift
store = wasmer.Store(wasmer.engine.Universal(wasmer_compiler_cranelift.Compiler))
for path in map(pathlib.Path, sys.argv[1:]):
    module = wasmer.Module(store, path.read_bytes())
    path.with_suffix(".wasmer").write_bytes(module.serialize())
"""


@dataclass(frozen=True, slots=True)
class Known:
    """A module, and the artifact that every caller has to get, by engine."""

    name: str
    wasm: bytes
    sha256: str
    artifacts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Mould:
    """A module with room for a tag: each tag makes another module of the same code."""

    name: str
    _wasm: bytes
    _artifacts: Mapping[str, bytes]

    @property
    def size_bytes(self) -> int:
        """How large its modules are."""
        return len(self._wasm)

    def cast(self, tag: int) -> Known:
        """Return the module with this tag.

        An artifact differs by its tag alone: wasmer keeps custom sections as they are, and
        wasmtime keeps none.
        """
        text = b"%0*d" % (_TAG_BYTES, tag)
        module = self._wasm.replace(_PLACE_FOR_TAG, text)
        artifacts = {
            engine: artifact.replace(_PLACE_FOR_TAG, text)
            for engine, artifact in self._artifacts.items()
        }
        return Known(self.name, module, hashlib.sha256(module).hexdigest(), artifacts)


def make_moulds(engines: Installed, folder: Path, *, small: bool) -> list[Mould]:
    """Get the modules, ``small`` ones for a short run, and compile each with each engine."""
    modules = {name: module + _tag_section() for name, module in _fetched(small).items()}
    modules["component"] = wasm.from_text(_COMPONENT) + _tag_section()
    artifacts = {name: {WASMTIME: _by_wasmtime(module)} for name, module in modules.items()}
    folder.mkdir()
    for name in modules.keys() - _WASMTIME_ONLY:
        (folder / name).write_bytes(modules[name])
    run_script(engines, WASMER, _BY_WASMER, *folder.iterdir())
    for path in folder.glob("*.wasmer"):
        artifacts[path.stem][WASMER] = path.read_bytes()
    return [Mould(name, module, artifacts[name]) for name, module in modules.items()]


def _by_wasmtime(module: bytes) -> bytes:
    kind = Component if module[6:8] == b"\1\0" else wasmtime.Module
    return bytes(kind(wasmtime.Engine(), module).serialize())


def _fetched(small: bool) -> dict[str, bytes]:
    modules = {}
    for name in (*_SMALL, AT_LEAST) if small else (*_SMALL, *_LARGE):
        try:
            modules[name] = fetch(BY_NAME[name]).read_bytes()
        except CorpusUnavailable:
            if name == AT_LEAST:
                raise
    return modules


def _tag_section() -> bytes:
    return wasm.section(0, b"\x08soak tag" + _PLACE_FOR_TAG)
