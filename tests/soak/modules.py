"""Real modules, each with the artifacts that the engines make of it without a daemon."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.corpus.fetch import CorpusUnavailable, fetch
from tests.corpus.modules import BY_NAME
from tests.e2e import wasm
from tests.e2e.in_engine import interpreter
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
_WASMTIME_ONLY = frozenset({"resvg"})
# The one of these that needs no npm.
_AT_LEAST = "itk-downsample-sigma"

_COMPONENT = '(component (core module (func (export "f") (result i32) i32.const 7)))'
_TAG_BYTES = 16
_PLACE_FOR_TAG = b"soak-tag-goes-!!"
_DIRECT = Path(__file__).with_name("direct.py")
_TIMEOUT_S = 600


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
    for engine in ENGINES:
        (folder / engine).mkdir(parents=True)
    for name, module in modules.items():
        (folder / name).write_bytes(module)

    def compiled(engine: str) -> dict[str, bytes]:
        left_out = {"component", *_WASMTIME_ONLY} if engine == WASMER else set()
        names = [name for name in modules if name not in left_out]
        subprocess.run(
            [
                *(str(interpreter(engines, engine)), "-I", "-B"),
                *(str(_DIRECT), engine.split("-")[0], str(folder / engine)),
            ],
            input="\n".join(str(folder / name) for name in names),
            text=True,
            check=True,
            timeout=_TIMEOUT_S,
        )
        return {name: (folder / engine / name).read_bytes() for name in names}

    with ThreadPoolExecutor() as threads:
        artifacts = dict(zip(ENGINES, threads.map(compiled, ENGINES), strict=True))
    return [
        Mould(
            name,
            module,
            {engine: made[name] for engine, made in artifacts.items() if name in made},
        )
        for name, module in modules.items()
    ]


def _fetched(small: bool) -> dict[str, bytes]:
    modules = {}
    for name in (*_SMALL, _AT_LEAST) if small else (*_SMALL, *_LARGE):
        try:
            modules[name] = fetch(BY_NAME[name]).read_bytes()
        except CorpusUnavailable:
            if name == _AT_LEAST:
                raise
    return modules


def _tag_section() -> bytes:
    return wasm.section(0, b"\x08soak tag" + _PLACE_FOR_TAG)
