"""Loads in a process of its own each, beside what wasmtime has for nothing on one machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from wasmkiln import Client
from wasmkiln.v1.types_pb2 import ORIGIN_COMPILED

from bench import lab
from bench.hits import wait_for_file
from bench.lab import Setting
from bench.rows import Row, compare, in_turns

Pair = tuple[list[float], str, list[float]]

_CACHE = "its own local cache"
_ROUNDS = 40
_BUDGET_S = 40.0  # For one module.
# The larger module is beyond the default limits.
_FLAGS = (
    *("--max-module-bytes", "32MiB", "--max-artifact-bytes", "256MiB"),
    *("--compile-timeout-s", "120", "--compile-cpu-s", "480"),
)


def fresh(given: Setting) -> Iterator[Row]:
    """The host store has the artifact; the process has imported what it needs."""
    goals = ({"digest": 0.1, "call": 0.3, "path": 0.5}, {"digest": 0.03, "call": 0.05, "path": 0.5})
    with ExitStack() as stack:
        daemon, _, program = _start(stack, given, "fresh")
        process = program(stack)
        for module, of in zip(given.mapped, goals, strict=False):
            order = _order(daemon, given, module)
            names = ("digest", "call", "connect", "path", "checked", "cache")
            series = in_turns(
                {name: partial(process.ask, op=name, **order) for name in names},
                given.rounds(_ROUNDS),
                warm_up=1,
                budget_s=_BUDGET_S,
            )
            group, size = "warm load in a second process", lab.size_of(len(module.wasm))
            for name, what in (
                ("digest", "client.module(digest)"),
                ("call", "the same through a call"),
                ("connect", "the same, connecting first"),
                ("path", "client.module(path), hashed"),
                ("checked", "digest and signature checked"),
            ):
                title = f"{module.name}, {size}: {what}"
                yield compare(group, title, series[name], _CACHE, series["cache"], of.get(name))

            def alone(operation: str, order: dict[str, object] = order) -> float:
                with ExitStack() as process:
                    return program(process).ask(op=operation, here=True, **order)

            pair = ("digest", "mapped")
            series = in_turns(
                {name: partial(alone, name) for name in pair}, given.rounds(_ROUNDS // 2)
            )
            title = f"{module.name}, {size}: client.module(digest), a process each"
            against = "deserialize_file alone"
            yield compare(group, title, series["digest"], against, series["mapped"], 1.3)


def first(given: Setting) -> Iterator[Row]:
    """A first load on a fresh host, beside a warm cache of the host and beside compiling.

    Before each, the daemon evicts the artifact from its memory and the host store. Measured is
    `client.module(digest)` in a fork that has a `Client` and an engine, and no connection yet: it
    looks in the host store, connects, asks the daemon, which reads the artifact from Redis and
    writes the file, and maps the file. The cache's fork reads the entry that an earlier process
    wrote. Imports are done in both.
    """
    module = given.mapped[0]
    with ExitStack() as stack:
        daemon, client, program = _start(stack, given, "first")
        process = program(stack)
        order = _order(daemon, given, module)

        def load(operation: str) -> float:
            lab.come_to_rest(client)
            for tier in ("memory", "host_store"):
                client.evict(module.sha256, tier=tier)
            before = _redis_hits(client)
            seconds = process.ask(op=operation, **order)
            if _redis_hits(client) != before + 1:
                raise lab.BenchError("a first load was not answered from Redis")
            return seconds

        series = in_turns(
            {
                "digest": partial(load, "digest"),
                "checked": partial(load, "checked"),
                "cache": partial(process.ask, op="cache", **order),
            },
            given.rounds(_ROUNDS),
            warm_up=1,
            budget_s=_BUDGET_S,
        )
        group = "first load on a fresh host"
        what = f"{module.name}, {lab.size_of(len(module.wasm))}: client.module(digest)"
        cache = (f"{_CACHE}, warm", series["cache"])
        yield compare(group, what, series["digest"], *cache, 0.9)
        yield compare(group, f"{what}, digest and signature checked", series["checked"], *cache)
        engine = lab.EngineProcess(stack, given.wasmtime)
        compiled = in_turns(
            {"first": partial(load, "digest"), "engine": partial(engine.seconds, module)},
            given.rounds(5),
        )
        ours, theirs = compiled["first"], compiled["engine"]
        yield compare(group, what, ours, "engine in-process", theirs, 0.03)


def portable(given: Setting) -> Iterator[Row]:
    """Code for wasmtime's interpreter beside native code: compile, size, load, run."""
    with ExitStack() as stack:
        daemon, client, program = _start(stack, given, "portable")
        process, stream = program(stack), lab.RawStream(stack, daemon.address)
        targets = {"portable": lab.PORTABLE, "native": ""}
        real, made = given.mapped[0], given.running()
        group, native = "portable code (pulley64)", "native code"

        def compiled(target: str) -> float:
            lab.come_to_rest(client)
            client.evict(real.sha256)
            asked = lab.request(given.wasmtime.id, real, upload=True, target=target)
            return stream.timed(asked, ORIGIN_COMPILED)

        def saved(module: lab.Module, target: str) -> dict[str, object]:
            path = given.folder / f"{module.name}-{target}.cwasm"
            code = client.compile(module.path, engine=given.wasmtime.id, target=target)
            return {"artifact": str(code.save(path, header=False)), "target": target}

        def measure(rounds: int, order: dict[str, dict[str, object]], **more: object) -> Pair:
            found = in_turns(
                {how: partial(process.ask, **order[how], **more) for how in targets},
                given.rounds(rounds),
                warm_up=1,
                budget_s=_BUDGET_S,
            )
            return found["portable"], native, found["native"]

        found = in_turns(
            {how: partial(compiled, it) for how, it in targets.items()}, given.rounds(5)
        )
        what = f"{real.name}, {lab.size_of(len(real.wasm))}"
        yield compare(group, f"{what}: compile", found["portable"], native, found["native"])
        order = {how: saved(real, it) for how, it in targets.items()}
        sizes = [Path(str(order[how]["artifact"])).stat().st_size for how in targets]
        ratio = sizes[0] / sizes[1]
        about = f"{what}: its artifact"
        yield Row(group, about, sizes[0], native, sizes[1], ratio, (ratio, ratio), unit="B")
        yield compare(group, f"{what}: deserialize_file", *measure(_ROUNDS, order, op="mapped"))
        order = {how: saved(made, it) for how, it in targets.items()}
        yield compare(group, "run recursive calls", *measure(7, order, op="run", argument=27))


def _start(
    stack: ExitStack, given: Setting, name: str
) -> tuple[lab.Daemon, Client, Callable[[ExitStack], lab.Program]]:
    """Start a daemon; return what starts a program that loads what it compiled, too."""
    state = given.state(name)
    daemon = stack.enter_context(lab.Daemon(state, *_FLAGS))
    client = stack.enter_context(daemon.client(timeout_s=600))
    cache, empty = state / "cache.toml", state / "empty"
    cache.write_text(f"[cache]\ndirectory = {json.dumps(str(state / 'wasmtime-cache'))}\n")
    empty.mkdir()
    engine = given.wasmtime
    arguments = (daemon.address, engine.id, str(cache), str(empty))

    def program(stack: ExitStack) -> lab.Program:
        return lab.program(stack, "fresh", *arguments, packages=engine.packages)

    return daemon, client, program


def _order(daemon: lab.Daemon, given: Setting, module: lab.Module) -> dict[str, object]:
    """Have the module compiled and in the host store; return what an order to load it says."""
    with daemon.client(timeout_s=600) as client:
        client.compile(module.path, engine=given.wasmtime.id)
        artifact = wait_for_file(client, module.sha256, given.wasmtime.id)
    return {
        "sha256": module.sha256,
        "wasm": str(module.path),
        "store": str(artifact.parents[3]),
        "artifact": str(artifact),
        "key": str(daemon.log.parent / "keys" / "trusted"),
    }


def _redis_hits(client: Client) -> int:
    return next(tier.hits for tier in client.stats().tiers if tier.tier == "redis")
