"""Asks an engine itself, with nothing of wasmkiln between: what does it say of each module?

    python direct.py ENGINE < PATHS > ANSWERS

A program for an *engine's* interpreter, which needs the standard library and that engine only.
Standard input has the path of one module a line; standard output gets one line of JSON for each,
in the same order:

    {"valid": bool or null, "says": its words, "compiles": bool or null, "compile_says": its words}

``null`` means that the engine ended without an answer, and the words then say how. Each module
is asked about in a process of its own, since engines abort.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tell = Callable[..., object]

_SECONDS = 120


def wasmer_answers(wasm: bytes, tell: Tell) -> None:
    """Tell what wasmer says."""
    import wasmer
    from wasmer import engine
    from wasmer_compiler_cranelift import Compiler

    store = wasmer.Store(engine.Universal(Compiler))
    valid = wasmer.Module.validate(store, wasm)
    tell(valid=valid)
    try:
        wasmer.Module(store, wasm)
    except BaseException as refusal:  # A panic derives from BaseException.
        tell(compiles=False, compile_says=str(refusal), says="" if valid else str(refusal))
    else:
        tell(compiles=True)


def wasmtime_answers(wasm: bytes, tell: Tell) -> None:
    """Tell what wasmtime says; it validates a component by compiling it."""
    import wasmtime
    from wasmtime import component

    engine = wasmtime.Engine()
    if wasm[6:8] == b"\1\0":
        compile_, validate = component.Component, component.Component
    else:
        compile_, validate = wasmtime.Module, wasmtime.Module.validate
    try:
        validate(engine, wasm)
    except wasmtime.WasmtimeError as refusal:
        tell(valid=False, says=str(refusal))
    else:
        tell(valid=True)
    try:
        compile_(engine, wasm)
    except wasmtime.WasmtimeError as refusal:
        tell(compiles=False, compile_says=str(refusal))
    else:
        tell(compiles=True)


def ask(answers: Callable[[bytes, Tell], None], path: str) -> dict[str, Any]:
    """Return what the engine says of one file, from a fork of this process."""
    wasm = Path(path).read_bytes()
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(_SECONDS)
        answers(wasm, lambda **said: os.write(writable, json.dumps(said).encode() + b"\n"))
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as lines:
        said: dict[str, Any] = {"valid": None, "says": "", "compiles": None, "compile_says": ""}
        for line in lines:
            said.update(json.loads(line))
    _, status = os.waitpid(pid, 0)
    if status:
        said["compile_says" if said["valid"] else "says"] = f"ended with status {status}"
    return said


def main() -> None:
    """Return about each path on standard input."""
    answers = {"wasmer": wasmer_answers, "wasmtime": wasmtime_answers}[sys.argv[1]]
    __import__(sys.argv[1])
    if sys.argv[1] == "wasmtime":
        from wasmtime import component  # noqa: F401
    for line in sys.stdin:
        print(json.dumps(ask(answers, line.rstrip("\n"))), flush=True)


if __name__ == "__main__":
    main()
