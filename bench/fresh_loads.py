"""Warm loads in a second process, beside what wasmtime has for nothing on one machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.host_hits import wait_for_file
from bench.lab import Daemon, make_state
from bench.modules import Module
from bench.orders import Program
from bench.results import Row, compare
from bench.setting import Setting
from bench.timing import collect

_CACHE = "its own local cache"
_ROUNDS = 40
_BUDGET_S = 40.0  # For one module.
# The larger module is beyond the default limits.
_FLAGS = (
    *("--max-module-bytes", "32MiB", "--max-artifact-bytes", "256MiB"),
    *("--compile-timeout-s", "120", "--compile-cpu-s", "480"),
)


@dataclass(frozen=True)
class _Goals:
    digest: float
    call: float
    path: float


# Of the smaller module, and of the larger one.
_GOALS = (_Goals(0.10, 0.3, 0.5), _Goals(0.03, 0.05, 0.5))


def fresh(given: Setting) -> Iterator[Row]:
    """Each load in a process of its own, which has imported what it needs and loaded nothing."""
    state = make_state(given.folder / "fresh", {"wasmtime": given.wasmtime.engine})
    modules = given.modules.pages(quick=given.quick)
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(state, *_FLAGS))
        program = _program(stack, given, daemon, state)
        for module, goals in zip(modules, _GOALS, strict=False):
            yield from _rows(given, daemon, state, program, module, goals)


def _program(stack: ExitStack, given: Setting, daemon: Daemon, state: Path) -> Program:
    cache = state / "cache.toml"
    cache.write_text(f"[cache]\ndirectory = {json.dumps(str(state / 'wasmtime-cache'))}\n")
    empty = state / "empty"
    empty.mkdir()
    program = Program(
        stack,
        "bench.fresh",
        *(daemon.address, given.wasmtime.engine.id, str(cache), str(empty)),
        packages=given.wasmtime.packages,
    )
    program.begun()
    return program


def _rows(
    given: Setting, daemon: Daemon, state: Path, program: Program, module: Module, goals: _Goals
) -> Iterator[Row]:
    artifact = _stored(daemon, module, given.wasmtime.engine.id)
    order: dict[str, object] = {
        "sha256": module.sha256,
        "wasm": str(module.path),
        "store": str(artifact.parents[3]),
        "artifact": str(artifact),
        "key": str(state / "keys" / "trusted"),
    }

    def measure(operation: str) -> float:
        return float(program.ask(op=operation, **order)["seconds"])

    operations = ("digest", "call", "connect", "path", "checked", "cache", "mapped")
    series = collect(
        {name: partial(measure, name) for name in operations},
        given.rounds(_ROUNDS),
        warm_up=1,
        budget_s=_BUDGET_S,
    )
    what = f"{module.name}, {len(module.wasm) / 1e6:.1f} MB"
    group = "warm load in a second process"
    cache = series["cache"]
    yield compare(
        group, f"{what}: client.module(digest)", series["digest"], _CACHE, cache, goals.digest
    )
    yield compare(
        group, f"{what}: the same through a call", series["call"], _CACHE, cache, goals.call
    )
    yield compare(group, f"{what}: the same, connecting first", series["connect"], _CACHE, cache)
    yield compare(
        group, f"{what}: client.module(path), hashed", series["path"], _CACHE, cache, goals.path
    )
    yield compare(group, f"{what}: digest and signature checked", series["checked"], _CACHE, cache)
    yield compare(
        group,
        f"{what}: client.module(digest)",
        series["digest"],
        "deserialize_file alone",
        series["mapped"],
    )


def _stored(daemon: Daemon, module: Module, engine_id: str) -> Path:
    """Have the module compiled and in the host store; return its artifact's file."""
    with daemon.client(timeout_s=600) as client:
        client.compile(module.path, engine=engine_id)
        return Path(wait_for_file(client, module.sha256, engine_id))
