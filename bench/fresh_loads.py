"""Loads in a process of its own each, beside what wasmtime has for nothing on one machine.

`fresh` measures warm loads: the host store has the artifact. `first` measures first loads: only
Redis has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wasmkiln import Client

from bench.engine_process import EngineProcess
from bench.host_hits import wait_for_file
from bench.lab import BenchError, Daemon, come_to_rest, make_state
from bench.modules import Module
from bench.orders import Program
from bench.results import Row, compare
from bench.setting import Setting
from bench.timing import collect

_CACHE = "its own local cache"
_ROUNDS = 40
_COMPILES = 5
_BUDGET_S = 40.0  # For one module.
FIRST_GOAL = 1.0
"""Of a first load, to the cache of an engine that compiled the module on this host before."""
COMPILE_GOAL = 0.03
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


def first(given: Setting) -> Iterator[Row]:
    """A first load on a fresh host, beside a warm cache of the host and beside compiling.

    Before each, the daemon evicts the artifact from its memory and the host store. Measured is
    `client.module(digest)` in a fork that has a `Client` and an engine, and no connection yet: it
    looks in the host store, connects, asks the daemon, which reads the artifact from Redis and
    writes the file, and maps the file. The cache's fork has an engine and the module's bytes; it
    reads the entry that an earlier process wrote. Imports are done in both.
    """
    state = make_state(given.folder / "first", {"wasmtime": given.wasmtime.engine})
    module = given.modules.pages(quick=given.quick)[0]
    target = given.wasmtime
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(state, *_FLAGS))
        program = _program(stack, given, daemon, state)
        client = stack.enter_context(daemon.client())
        order = _order(daemon, state, module, target.engine.id)

        def load(operation: str) -> float:
            come_to_rest(client)
            for tier in ("memory", "host_store"):
                client.evict(module_sha256=module.sha256, tier=tier)
            before = _redis_hits(client)
            seconds = float(program.ask(op=operation, **order)["seconds"])
            if _redis_hits(client) != before + 1:
                raise BenchError("a first load was not answered from Redis")
            return seconds

        series = collect(
            {
                "first": partial(load, "digest"),
                "checked": partial(load, "checked"),
                "cache": lambda: float(program.ask(op="cache", **order)["seconds"]),
            },
            given.rounds(_ROUNDS),
            warm_up=1,
            budget_s=_BUDGET_S,
        )
        group = "first load on a fresh host"
        what = f"{module.name}, {len(module.wasm) / 1e6:.1f} MB: client.module(digest)"
        cache = series["cache"]
        yield compare(group, what, series["first"], f"{_CACHE}, warm", cache, FIRST_GOAL)
        checked = f"{what}, digest and signature checked"
        yield compare(group, checked, series["checked"], f"{_CACHE}, warm", cache)
        engine = stack.enter_context(EngineProcess(target.engine, target.triple, target.cpu))
        compiled = collect(
            {
                "first": partial(load, "digest"),
                "engine": lambda: engine.measure("first", module.path),
            },
            given.rounds(_COMPILES),
        )
        in_process = compiled["engine"]
        yield compare(
            *(group, what, compiled["first"], "engine in-process", in_process, COMPILE_GOAL)
        )


def _redis_hits(client: Client) -> int:
    return next(tier.hits for tier in client.stats().tiers if tier.tier == "redis")


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
    order = _order(daemon, state, module, given.wasmtime.engine.id)

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


def _order(daemon: Daemon, state: Path, module: Module, engine_id: str) -> dict[str, object]:
    """Have the module stored; return what an order to load it says."""
    artifact = _stored(daemon, module, engine_id)
    return {
        "sha256": module.sha256,
        "wasm": str(module.path),
        "store": str(artifact.parents[3]),
        "artifact": str(artifact),
        "key": str(state / "keys" / "trusted"),
    }


def _stored(daemon: Daemon, module: Module, engine_id: str) -> Path:
    """Have the module compiled and in the host store; return its artifact's file."""
    with daemon.client(timeout_s=600) as client:
        client.compile(module.path, engine=engine_id)
        return Path(wait_for_file(client, module.sha256, engine_id))
