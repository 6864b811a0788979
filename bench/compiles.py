"""Compiles: one beside the engine alone, fast code first, many callers, and what hits suffer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from grpc import aio
from wasmkiln import Client
from wasmkiln.v1 import types_pb2

from bench import lab
from bench.hits import Held
from bench.lab import Setting
from bench.rows import Row, compare, figure, in_turns, p99

CALLERS = 100

_BUDGET_S = 20.0
"""For each engine and module, however busy the machine is."""


def cold(given: Setting) -> Iterator[Row]:
    """A compile that no tier can answer, from the request with the module to the last byte."""
    for target, module, what in _pairs(given):
        with ExitStack() as stack:
            client = stack.enter_context(given.daemon.client())
            stream = lab.RawStream(stack, given.daemon.address)
            engine = lab.EngineProcess(stack, target)
            series = in_turns(
                {
                    "daemon": partial(_compile, client, stream, target, module),
                    "engine": partial(engine.seconds, module),
                },
                given.rounds(9),
                warm_up=1,
                budget_s=_BUDGET_S,
            )
        ours, alone = series["daemon"], series["engine"]
        # What is left where others use the CPUs.
        note = f"least of each {figure(min(ours))} / {figure(min(alone))}"
        group = "cold compile, validated first"
        yield compare(group, what, ours, "engine in-process", alone, 1.05, note)


def _pairs(given: Setting) -> Iterator[tuple[lab.Target, lab.Module, str]]:
    for target in given.targets.values():
        for module in (given.medium, given.large):
            yield target, module, f"{module.name}, {target.id}"


def _compile(
    client: Client,
    stream: lab.RawStream,
    target: lab.Target,
    module: lab.Module,
    *,
    fast: bool = False,
) -> float:
    """Return the seconds of a call that has to compile."""
    lab.come_to_rest(client)
    client.evict(module.sha256)
    asked = lab.request(target.id, module, upload=True, accept_fast=fast)
    return stream.timed(asked, types_pb2.ORIGIN_COMPILED, fast=fast)


def fast(given: Setting) -> Iterator[Row]:
    """A cold call that takes fast code, beside one that waits for optimised code."""
    for target, module, what in _pairs(given):
        with ExitStack() as stack:
            client = stack.enter_context(given.daemon.client())
            stream = lab.RawStream(stack, given.daemon.address)
            lab.come_to_rest(client)
            client.evict(module.sha256)
            first = client.compile(module.path, engine=target.id, accept_fast=True)
            if not first.header.is_fast:
                continue  # This engine has no fast compiler here.
            series = in_turns(
                {
                    how: partial(_compile, client, stream, target, module, fast=how == "fast")
                    for how in ("fast", "optimised")
                },
                given.rounds(7),
                budget_s=_BUDGET_S,
            )
            lab.come_to_rest(client)
        ours, optimised = series["fast"], series["optimised"]
        title = f"{what}: fast code first"
        yield compare(
            "time to first usable code", title, ours, "optimised compile", optimised, 0.25
        )


def callers(given: Setting) -> Iterator[Row]:
    """One cold call and a hundred at once, all by digest, to the last answer of all."""
    for target in given.targets.values():
        yield from asyncio.run(_callers(given, target, given.large))


async def _callers(given: Setting, target: lab.Target, module: lab.Module) -> list[Row]:
    answered: dict[int, list[float]] = {1: [], CALLERS: []}
    received: dict[int, list[float]] = {1: [], CALLERS: []}
    with given.daemon.client() as client:
        async with aio.insecure_channel(given.daemon.address, lab.OPTIONS) as channel:
            call = channel.unary_stream(lab.COMPILE)

            async def one(headers: list[float]) -> int:
                size = 0
                async for message in call(lab.request(target.id, module)):
                    if not size:
                        headers.append(time.perf_counter())
                    size += len(message)
                return size

            for turn in range(given.rounds(5) + 1):
                for count in (1, CALLERS) if turn % 2 else (CALLERS, 1):
                    client.evict(module.sha256)
                    client.load(module.path, engine=target.id)
                    headers: list[float] = []
                    started = time.perf_counter()
                    sizes = await asyncio.gather(*(one(headers) for _ in range(count)))
                    if turn:  # The first one warms up.
                        answered[count].append(max(headers) - started)
                        received[count].append(time.perf_counter() - started)
    group, what = f"{CALLERS} concurrent cold calls", f"{module.name}, {target.id}"
    size = lab.size_of(sum(sizes) // len(sizes))
    rows = ((answered, "all answered", 1.2), (received, f"{CALLERS} times {size} received", None))
    return [
        compare(group, f"{what}: {how}", series[CALLERS], "one cold call", series[1], goal)
        for series, how, goal in rows
    ]


def stalls(given: Setting) -> Iterator[Row]:
    """Memory hits while every worker compiles: idle, loaded, idle, loaded …"""
    for module, goal in ((given.small, 3.0), (given.medium, 2.0)):
        with ExitStack() as outer:
            held = Held(outer, given, module, given.daemon)
            series: dict[str, list[float]] = {"idle": [], "loaded": []}
            for turn in range(2 * given.rounds(3)):
                # A compile goes on when its caller has gone.
                lab.come_to_rest(held.client)
                with ExitStack() as stack:
                    if turn % 2:
                        lab.program(stack, "flood", given.daemon.address, str(given.large.path))
                        time.sleep(0.1 if given.quick else 1)  # It uploads its modules first.
                    hit = partial(lab.RawStream(stack, given.daemon.address).drain, held.request())
                    found = in_turns({"hit": hit}, given.rounds(400), given.rounds(40))
                series["loaded" if turn % 2 else "idle"] += found["hit"]
        group, pair = "hits while every worker compiles", (series["loaded"], "idle", series["idle"])
        yield compare(group, f"{held.what}: p99", *pair, goal, by=p99)
