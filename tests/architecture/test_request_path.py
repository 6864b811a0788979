"""The spine of a Compile call: no exception steers it, and no parameter passes unseen.

That no file imports one above it is a contract in pyproject.toml.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

from tests.architecture.imports import SERVER, imported_modules, shown, written_files

# In the order in which a call reaches them. All other files that a call runs are called by these.
SPINE = (
    "rpc/calls.py",
    "rpc/module_service.py",
    "compile.py",
    "cache/cache.py",
    "engines/registry.py",
    "engines/pool.py",
    "engines/process.py",
    "waits/flights.py",  # which all share
)

# The exceptions that the spine may catch: each says what went wrong. Do not add an exception that
# says what to do next: return a value instead.
FAILURES = {
    "WasmkilnError": "a call fails, and this tells its caller why",
    "TierUnavailable": "a tier does not answer",
    "ValueRejected": "a stored value is damaged",
    "WorkerDied": "a worker process is lost",
    "process.WorkerDied": "as above",
    "process.JobNotSetUp": "a worker process is lost before its job began",
    "asyncio.CancelledError": "the callers have left, or the daemon ends",
    "aio.BaseError": "gRPC lost the connection, or ends",
    "aio.AbortError": "grpcio ends a handler this way",
    "DecodeError": "the bytes are not a message",
    "FrameError": "a worker broke the protocol",
}


def caught_in(tree: ast.Module) -> Iterator[str]:
    """Return every exception class that a file catches or suppresses."""
    for node in ast.walk(tree):
        caught: list[ast.expr] = []
        if isinstance(node, ast.ExceptHandler) and node.type:
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            caught = node.args
        yield from map(ast.unparse, caught)


def test_no_exception_steers_between_them() -> None:
    unknown = [
        f"{name} catches {caught}"
        for name in SPINE
        for caught in caught_in(ast.parse((SERVER / name).read_text()))
        if caught not in FAILURES and not hasattr(builtins, caught)
    ]
    assert unknown == []


def test_no_parameter_is_passed_unseen() -> None:
    """But for the call that a task works for, which nothing but traces and the log reads."""
    found = [
        shown(path) for path in written_files(SERVER) if "contextvars" in imported_modules(path)
    ]
    assert found == ["server/wasmkilnd/telemetry/tracing.py"]
