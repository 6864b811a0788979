"""Cold compiles: one, beside the engine alone; and a hundred callers, beside one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

from grpc import aio
from wasmkiln.v1 import types_pb2

from bench.engine_process import EngineProcess
from bench.lab import BenchError
from bench.modules import Module
from bench.raw import COMPILE, RawStream, by_bytes, by_digest, origin
from bench.results import Row, at_best, compare
from bench.setting import Setting, Target
from bench.timing import collect

COLD_GOAL = 1.05
CALLERS_GOAL = 1.2
CALLERS = 100

_GROUP = "cold compile, validated first"
_ROUNDS = 9
_CALLERS_ROUNDS = 5
_LEAST_ROUNDS = 2
# For each engine and module, however busy the machine is.
_BUDGET_S = 20.0


def cold(given: Setting) -> Iterator[Row]:
    """A compile that no tier can answer, from the request with the module to the last byte."""
    for target in given.targets.values():
        for module in (given.modules.medium, given.modules.large):
            yield from _cold(given, target, module)


def _cold(given: Setting, target: Target, module: Module) -> Iterator[Row]:
    with ExitStack() as stack:
        client = stack.enter_context(given.daemon.client())
        stream = RawStream(given.daemon.address, COMPILE)
        stack.callback(stream.close)
        fresh = stack.enter_context(EngineProcess(target.engine, target.triple, target.cpu))
        used = stack.enter_context(EngineProcess(target.engine, target.triple, target.cpu))
        request = by_bytes(module.wasm, target.engine.id)

        def through_the_daemon() -> float:
            client.evict(module_sha256=module.sha256)
            started = time.perf_counter()
            answer = stream.messages(request)
            seconds = time.perf_counter() - started
            if origin(answer) != types_pb2.ORIGIN_COMPILED:
                raise BenchError("a call that was to be cold was answered from a tier")
            return seconds

        series = collect(
            {
                "daemon": through_the_daemon,
                "first": lambda: fresh.measure("first", module.path),
                "again": lambda: used.measure("again", module.path),
            },
            given.rounds(_ROUNDS),
            warm_up=1,
            budget_s=_BUDGET_S,
        )
    what = f"{module.name}, {target.engine.id}"
    yield compare(
        _GROUP,
        what,
        series["daemon"],
        "engine in-process, validated first, first compile",
        series["first"],
        COLD_GOAL,
        at_best(series["daemon"], series["first"]),
    )
    yield compare(
        _GROUP,
        what,
        series["daemon"],
        "engine in-process, validated first, compiled before",
        series["again"],
    )


def callers(given: Setting) -> Iterator[Row]:
    """One cold call and a hundred at once, all by digest, to the last answer of all."""
    for target in given.targets.values():
        yield from asyncio.run(_callers(given, target, given.modules.large))


async def _callers(given: Setting, target: Target, module: Module) -> list[Row]:
    options = (("grpc.max_send_message_length", -1),)
    request = by_digest(module.sha256, target.engine.id)
    answered: dict[int, list[float]] = {1: [], CALLERS: []}
    received: dict[int, list[float]] = {1: [], CALLERS: []}
    with given.daemon.client() as client:
        async with aio.insecure_channel(given.daemon.address, options) as channel:
            call = channel.unary_stream(COMPILE)

            async def one(headers: list[float]) -> int:
                size = 0
                async for message in call(request):
                    if not size:
                        headers.append(time.perf_counter())
                    size += len(message)
                return size

            began = time.monotonic()
            for turn in range(given.rounds(_CALLERS_ROUNDS) + 1):
                if turn > _LEAST_ROUNDS and time.monotonic() - began > _BUDGET_S:
                    break
                for count in (1, CALLERS) if turn % 2 else (CALLERS, 1):
                    client.evict(module_sha256=module.sha256)
                    client.load(module.path, engine=target.engine.id)
                    headers: list[float] = []
                    started = time.perf_counter()
                    sizes = await asyncio.gather(*(one(headers) for _ in range(count)))
                    if turn:
                        answered[count].append(max(headers) - started)
                        received[count].append(time.perf_counter() - started)
    size = sum(sizes) / len(sizes) / 1e6
    return [
        compare(
            f"{CALLERS} concurrent cold calls",
            f"{module.name}, {target.engine.id}: all answered",
            answered[CALLERS],
            "one cold call",
            answered[1],
            CALLERS_GOAL,
            at_best(answered[CALLERS], answered[1]),
        ),
        compare(
            f"{CALLERS} concurrent cold calls",
            f"the same: {CALLERS} times {size:.1f} MB received",
            received[CALLERS],
            "one cold call",
            received[1],
        ),
    ]
