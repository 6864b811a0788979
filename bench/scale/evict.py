"""How long AdminService.Evict of one module takes: with few values in Redis, and with many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from wasmkiln import Client

from bench.lab import BenchError, Daemon, come_to_rest, make_state
from bench.modules import Module
from bench.results import Row, compare
from bench.setting import Setting
from bench.timing import collect, timed
from bench.valkey import start_valkey

EVICT_GOAL = 1.2

_ROUNDS = 20
_TTL_S = 24 * 3600
_BATCH = 500  # Of modules.


def evictions(given: Setting) -> Iterator[Row]:
    """Evict a module that was compiled, from memory and Redis, which holds others besides."""
    module, engine_id = given.modules.small, given.wasmtime.engine.id
    least, most = (10, 100) if given.quick else (10**3, 10**5)
    with ExitStack() as stack:
        clients: dict[int, Client] = {}
        for size in (least, most):
            valkey = start_valkey(stack, given.folder)
            state = make_state(given.folder / f"evict-{size}", {"wasmtime": given.wasmtime.engine})
            flags = ("--redis-url", f"unix://{valkey.socket}", "--host-store-bytes", "0")
            daemon = stack.enter_context(Daemon(state, *flags))
            clients[size] = stack.enter_context(daemon.client())
            clients[size].compile(module.path, engine=engine_id)
            come_to_rest(clients[size])
            fill(valkey.client(stack), module.sha256, size)
        series = collect(
            {
                str(size): partial(_evict, client, module, engine_id)
                for size, client in clients.items()
            },
            given.rounds(_ROUNDS),
            warm_up=1,
        )
        yield compare(
            "eviction of one module",
            f"among {most:,} values in Redis",
            series[str(most)],
            f"among {least:,}",
            series[str(least)],
            EVICT_GOAL,
        )


def _evict(client: Client, module: Module, engine_id: str) -> float:
    client.compile(module.path, engine=engine_id)
    come_to_rest(client)
    gone = []
    seconds = timed(lambda: gone.append(client.evict(module_sha256=module.sha256)))
    if gone[0].artifacts != 2:
        raise BenchError("memory and Redis did not both hold what was to be evicted")
    return seconds


def fill(direct: Any, sha256: str, count: int) -> None:
    """Store ``count`` small values of made-up modules, under names as the daemon's for one."""
    model = {name: direct.type(name) for name in direct.scan_iter(match=f"*{sha256}*", count=1000)}
    values = sum(kind == b"string" for kind in model.values())
    if values < 2:
        raise BenchError("Redis does not hold a module and an artifact to take the names from")
    members = {name: direct.smembers(name) for name, kind in model.items() if kind == b"set"}
    for start in range(0, count // values, _BATCH):
        pipeline = direct.pipeline(transaction=False)
        for number in range(start, min(start + _BATCH, count // values)):
            other = hashlib.sha256(b"module %d" % number).hexdigest()
            for name in model:
                named = name.replace(sha256.encode(), other.encode())
                if name in members:
                    pipeline.sadd(named, *members[name])
                    pipeline.expire(named, _TTL_S)
                else:
                    pipeline.set(named, b"small", ex=_TTL_S)
        pipeline.execute()
