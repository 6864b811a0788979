"""The spine of one Compile call: one call down, one answer back, and nothing that steers unseen."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.imports import SERVER, imported_modules

# From the top to the bottom; whatever else a call goes through is called by one of these.
SPINE = (
    "rpc/calls.py",
    "rpc/services/module.py",
    "compile_service.py",
    "cache/tiered.py",
    "singleflight.py",
    "engines/registry.py",
    "engines/workers/pool.py",
    "engines/workers/process.py",
)
MOST_LINES = 299

# What has gone wrong, and is another file's to handle. Whoever wants to add one that only says
# what is to be done next: return a value instead.
FAILURES = {
    "WasmkilnError": "what the caller is told",
    "TierUnavailable": "a tier does not answer",
    "WorkerDied": "a worker process is lost",
    "JobNotSetUp": "a worker process is lost before its job began",
    "OutOfDescriptors": "the daemon has no file descriptors left",
    "asyncio.CancelledError": "whoever waited has left, or the daemon ends",
    "aio.InternalError": "gRPC has lost the connection",
    "aio.AbortError": "grpcio ends a handler so",
    "DecodeError": "bytes are no message",
    "frames.FrameError": "a worker does not speak as agreed",
}


def module_of(name: str) -> str:
    """Return the full name of the module in a file of the spine."""
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
def test_a_file_of_the_spine_can_be_read_in_one_sitting(name: str) -> None:
    assert len((SERVER / name).read_text().splitlines()) <= MOST_LINES


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


def test_whatever_catches_is_seen() -> None:
    tree = ast.parse(
        "try:\n    pass\nexcept A:\n    pass\nexcept (B, c.D):\n    pass\n"
        "with contextlib.suppress(E, F):\n    pass\n"
    )
    assert set(caught_in(tree)) == {"A", "B", "c.D", "E", "F"}
