"""Hits in the host store: the bytes of a file, and its path."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from wasmkiln import Client
from wasmkiln.errors import HostFileUnavailable
from wasmkiln.v1 import types_pb2

from bench.hits import GOALS, Held, hold, timed_from
from bench.lab import BenchError, come_to_rest
from bench.raw import COMPILE, RawStream, by_digest
from bench.results import Row, compare
from bench.setting import Setting
from bench.timing import collect

_GROUP = "host store hit"
_STORED_S = 30.0


def in_host_store(given: Setting) -> Iterator[Row]:
    """Hits in the host store of the daemon, the memory tier evicted before each."""
    for name in GOALS:
        held = hold(given, getattr(given.modules, name))
        with ExitStack() as stack:
            client = stack.enter_context(given.daemon.client())
            stream = RawStream(given.daemon.address, COMPILE)
            stack.callback(stream.close)
            wait_for_file(client, held.module.sha256, given.wasmtime.engine.id)
            come_to_rest(client)
            yield from _rows(given, held, client, stream)


def _rows(given: Setting, held: Held, client: Client, stream: RawStream) -> Iterator[Row]:
    path = by_digest(held.module.sha256, given.wasmtime.engine.id, accept_host_file=True)

    def from_file() -> float:
        client.evict(module_sha256=held.module.sha256, tier="memory")
        return timed_from(stream, held.request, types_pb2.ORIGIN_HOST_STORE)

    def from_memory() -> float:
        stream.drain(held.request)
        return timed_from(stream, held.request, types_pb2.ORIGIN_MEMORY)

    series = collect(
        {
            "file": from_file,
            "memory": from_memory,
            "path": lambda: timed_from(stream, path, types_pb2.ORIGIN_HOST_STORE),
        },
        given.rounds(150),
        warm_up=5,
    )
    what = f"{held.what} artifact"
    memory = series["memory"]
    yield compare(_GROUP, f"{what}, its bytes", series["file"], "memory hit", memory)
    yield compare(_GROUP, f"{what}, its path", series["path"], "memory hit", memory)


def wait_for_file(client: Client, sha256: str, engine_id: str) -> str:
    """Return the artifact's path, once the daemon has written it behind its reply."""
    until = time.monotonic() + _STORED_S
    while True:
        try:
            return str(client.host_file(sha256, engine=engine_id))
        except HostFileUnavailable as failure:
            if time.monotonic() > until:
                raise BenchError(str(failure)) from None
            time.sleep(0.1)
