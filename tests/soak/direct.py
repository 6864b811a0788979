"""Asks an engine itself for artifacts, with nothing of wasmkiln between.

    python direct.py ENGINE FOLDER < PATHS

A program for an *engine's* interpreter, which needs the standard library and that engine only.
Standard input has the path of one module a line. Its artifact goes to FOLDER, under the name
of the module's file; the code is for this machine, with the engine's own defaults.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

Compile = Callable[[bytes], bytes]


def with_wasmer() -> Compile:
    """Return what compiles with wasmer."""
    import wasmer
    from wasmer import engine
    from wasmer_compiler_cranelift import Compiler

    store = wasmer.Store(engine.Universal(Compiler))
    return lambda wasm: bytes(wasmer.Module(store, wasm).serialize())


def with_wasmtime() -> Compile:
    """Return what compiles with wasmtime, core modules and components."""
    import wasmtime
    from wasmtime import component

    engine = wasmtime.Engine()

    def compiled(wasm: bytes) -> bytes:
        kind = component.Component if wasm[6:8] == b"\1\0" else wasmtime.Module
        return bytes(kind(engine, wasm).serialize())

    return compiled


def main() -> None:
    """Compile each module on standard input."""
    compiled = {"wasmer": with_wasmer, "wasmtime": with_wasmtime}[sys.argv[1]]()
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        Path(sys.argv[2], path.name).write_bytes(compiled(path.read_bytes()))


if __name__ == "__main__":
    main()
