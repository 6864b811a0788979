"""Compile a module in this process, when no daemon does it."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from wasmkiln._header_fields import kind_of
from wasmkiln._untrusted import quoted
from wasmkiln.errors import DeadlineExceeded, IncompatibleEngine, NotWasm
from wasmkiln.loading import compile_here, machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from wasmkiln._requests import IdentifiedModule
    from wasmkiln.rpc import Deadline
    from wasmkiln.v1.module_service_pb2 import CompileRequest


def compile_within(
    deadline: Deadline, identified: IdentifiedModule, request: CompileRequest, into: Any
) -> Any:
    """Return the module of an engine in this process.

    No engine can be stopped while it compiles: at the deadline this stops waiting, and the
    thread goes on until it has finished. wasmer compiles without letting another thread run, so
    that the deadline passes unnoticed. Raise DeadlineExceeded, NotWasm, ModuleInvalid,
    EngineNotInstalled or IncompatibleEngine: this one too where the request names an engine by
    its id, and another version is installed here.
    """
    wasm = identified.module or b""
    kind = kind_of(wasm)
    if kind is None:
        raise NotWasm("the bytes are neither a WebAssembly module nor a component")
    if request.cpu and request.cpu not in machine.known_cpus():
        raise IncompatibleEngine(
            f"cannot compile here for the cpu {quoted(request.cpu)}: this client does not know it",
            metadata={"cpu": request.cpu},
        )
    if request.target or request.cpu:
        machine.check(request.target or machine.TRIPLE, request.cpu)
    compiling = partial(compile_here, wasm, kind, request.engine, dict(request.settings), into)
    return _within(deadline.remaining_s(), compiling)


def _within(seconds: float, run: Callable[[], Any]) -> Any:
    results: list[Any] = []
    failures: list[BaseException] = []

    def in_thread() -> None:
        try:
            results.append(run())
        except BaseException as error:
            failures.append(error)

    # A daemon thread: the process may end while it still compiles.
    thread = threading.Thread(target=in_thread, name="wasmkiln-compile", daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    if failures:
        raise failures[0]
    if not results:
        raise DeadlineExceeded("compiling in this process took longer than the call's timeout_s")
    return results[0]
