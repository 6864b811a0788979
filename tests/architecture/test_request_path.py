"""The spine of a Compile call: no file imports one above it, and no exception steers the call."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.imports import SERVER, imported_modules

# In the order in which a call reaches them. All other files that a call runs are called by these.
SPINE = (
    "rpc/calls.py",
    "rpc/services/module.py",
    "compile_service.py",
    "cache/tiered.py",
    "singleflight.py",
    "engines/registry.py",
    "engines/compilation.py",
    "engines/workers/pool.py",
    "engines/workers/process.py",
)

# The exceptions that the spine may catch: each says what went wrong. Do not add an exception that
# says what to do next: return a value instead.
FAILURES = {
    "WasmkilnError": "a call fails, and this tells its caller why",
    "TierUnavailable": "a tier does not answer",
    "WorkerDied": "a worker process is lost",
    "JobNotSetUp": "a worker process is lost before its job began",
    "JobStarved": "a worker process is lost with a job that got no CPU",
    "OutOfDescriptors": "the daemon has no file descriptors left",
    "asyncio.CancelledError": "the callers have left, or the daemon ends",
    "aio.InternalError": "gRPC lost the connection",
    "aio.AbortError": "grpcio ends a handler this way",
    "DecodeError": "the bytes are not a message",
    "frames.FrameError": "a worker broke the protocol",
}


def module_of(name: str) -> str:
    """Return the full module name of a file of the spine."""
    return "wasmkilnd." + name.removesuffix(".py").replace("/", ".")


def parsed(name: str) -> ast.Module:
    return ast.parse((SERVER / name).read_text())


def caught_in(tree: ast.Module) -> Iterator[str]:
    """Return every exception class that a file catches or suppresses."""
    for node in ast.walk(tree):
        caught: list[ast.expr] = []
        if isinstance(node, ast.ExceptHandler) and node.type:
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            caught = node.args
        yield from map(ast.unparse, caught)


@pytest.mark.parametrize("name", SPINE)
def test_none_imports_one_above_it(name: str) -> None:
    above = {module_of(other) for other in SPINE[: SPINE.index(name)]}
    assert not above & imported_modules(SERVER / name)


@pytest.mark.parametrize("name", SPINE)
def test_no_exception_steers_between_them(name: str) -> None:
    unknown = {
        caught
        for caught in caught_in(parsed(name))
        if caught not in FAILURES and not hasattr(builtins, caught)
    }
    assert not unknown


@pytest.mark.parametrize(
    "path", sorted(SERVER.rglob("*.py")), ids=lambda path: str(path.relative_to(SERVER))
)
def test_no_parameter_is_passed_unseen(path: Path) -> None:
    assert "contextvars" not in imported_modules(path)


def test_every_way_to_catch_an_exception_is_seen() -> None:
    tree = ast.parse(
        "try:\n    pass\nexcept A:\n    pass\nexcept (B, c.D):\n    pass\n"
        "with contextlib.suppress(E, F):\n    pass\n"
    )
    assert set(caught_in(tree)) == {"A", "B", "c.D", "E", "F"}
