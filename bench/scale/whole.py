"""Whole daemons with many artifacts in memory: a call's time, and the daemon's memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from grpc import aio
from wasmkiln.v1 import types_pb2
from wasmkiln.v1.module_service_pb2 import TierStats
from wasmkilnd.model import CompileSpec, EngineIdentity

from bench.lab import BenchError, Daemon, make_state
from bench.machine import resident_bytes
from bench.raw import COMPILE, RawStream, by_digest, origin
from bench.results import Row, compare
from bench.scale.entries import Entries
from bench.scale.operations import COST_GOAL, resident_row
from bench.scale.stores import fill_redis
from bench.setting import Setting
from bench.timing import collect, timed
from bench.valkey import Valkey, start_valkey

_CALLS = 100
_ROUNDS = 12
_CALLERS = 16
"""As many fill a daemon at once."""
_ROOM_BYTES = 1 << 40


def whole_daemons(given: Setting) -> Iterator[Row]:
    """Hits among few and among many artifacts, by turns.

    The artifacts are in Redis, signed by a key that the daemons trust. Each daemon is asked for
    all of its own once, and holds them in memory from then on.
    """
    least, most = given.sizes_by_call
    entries = Entries(_spec(given))
    engine_id = given.wasmtime.engine.id
    with ExitStack() as stack:
        valkey = start_valkey(stack, given.folder)
        asyncio.run(fill_redis(entries, f"unix://{valkey.socket}", range(most)))
        daemons = {
            count: stack.enter_context(_daemon(given, count, entries, valkey))
            for count in (least, most)
        }
        streams = {}
        for count, daemon in daemons.items():
            requests = (_request(entries, number, engine_id) for number in range(count))
            asyncio.run(_call_all(daemon.address, requests))
            streams[count] = RawStream(daemon.address, COMPILE)
            stack.callback(streams[count].close)

        def hits(count: int) -> float:
            numbers = random.choices(range(count), k=_CALLS)
            requests = [_request(entries, number, engine_id) for number in numbers]
            answers: list[list[bytes]] = []
            stream = streams[count]
            seconds = timed(
                lambda: answers.extend(stream.messages(request) for request in requests)
            )
            if any(origin(answer) != types_pb2.ORIGIN_MEMORY for answer in answers):
                raise BenchError("a made-up artifact was not in the daemon's memory")
            return seconds / _CALLS

        series = collect(
            {str(count): lambda count=count: hits(count) for count in daemons},  # type: ignore[misc]
            given.rounds(_ROUNDS),
            warm_up=1,
        )
        held = _in_memory(daemons[most])
        resident = resident_bytes(daemons[most].pid)
    yield compare(
        "call of a daemon",
        f"memory hit among {most:,} artifacts",
        series[str(most)],
        f"among {least:,}",
        series[str(least)],
        COST_GOAL,
    )
    yield resident_row(f"a daemon with {held.entries:,} artifacts in memory", resident, held.bytes)


def _spec(given: Setting) -> CompileSpec:
    """Return what a daemon compiles for when a request does not say."""
    with given.daemon.client() as client:
        header = client.compile(given.modules.small.path, engine=given.wasmtime.engine.id).header
    return CompileSpec(
        EngineIdentity(
            header.engine.name,
            header.engine.version,
            header.engine.core_version,
            header.engine.compiler,
        ),
        header.target,
        header.cpu,
        dict(header.settings),
        {},
        header.fingerprint,
    )


def _daemon(given: Setting, count: int, entries: Entries, valkey: Valkey) -> Daemon:
    state = make_state(given.folder / f"filled-{count}", {"wasmtime": given.wasmtime.engine})
    return Daemon(
        state,
        *("--redis-url", f"unix://{valkey.socket}", "--host-store-bytes", "0"),
        *("--trusted-keys", entries.public_key, "--memory-bytes", str(_ROOM_BYTES)),
        # Among so many calls there is one that a busy machine holds up.
        *("--redis-timeout-s", "30"),
    )


def _request(entries: Entries, number: int, engine_id: str) -> bytes:
    return by_digest(entries.key(number).module_sha256, engine_id)


async def _call_all(address: str, requests: Iterable[bytes]) -> None:
    """Call once with each of the requests. Raises BenchError if Redis does not answer."""
    waiting = iter(requests)
    async with aio.insecure_channel(address) as channel:
        call = channel.unary_stream(COMPILE)

        async def one_after_the_other() -> None:
            for request in waiting:
                answer = [message async for message in call(request)]
                if origin(answer) != types_pb2.ORIGIN_REDIS:
                    raise BenchError("a made-up artifact did not come from Redis")

        await asyncio.gather(*(one_after_the_other() for _ in range(_CALLERS)))


def _in_memory(daemon: Daemon) -> TierStats:
    with daemon.client() as client:
        return next(tier for tier in client.stats().tiers if tier.tier == "memory")
