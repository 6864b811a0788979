"""Hits in Redis: beside hits in memory, beside reading the bytes alone, and what checks cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from wasmkiln import Client
from wasmkiln.v1 import types_pb2
from wasmkilnd.cache.value import ValueRejected, open_value
from wasmkilnd.model import CacheKey
from wasmkilnd.settings_loader import load
from wasmkilnd.signing.keys import read_keys
from wasmkilnd.signing.sealer import Sealer

from bench.hits import GOALS, Held, hold, timed_from
from bench.lab import BenchError, Daemon, come_to_rest, make_state
from bench.raw import COMPILE, RawStream, by_digest
from bench.results import Row, compare
from bench.setting import Setting
from bench.timing import collect, timed
from bench.valkey import start_valkey

CHECKS_GOAL = 0.25
HIT_GOALS = {"medium": 2.0, "small": 1.8}
"""Of a hit to a memory hit."""
PACKED_GOAL = 1.5
"""Of a hit whose caller accepts what Redis holds as it is, to a memory hit."""
_GROUP = "Redis hit"


def in_redis(given: Setting) -> Iterator[Row]:
    """Hits in a Redis of their own, the memory tier evicted before each."""
    with ExitStack() as stack:
        valkey = start_valkey(stack, given.folder)
        state = make_state(given.folder / "redis-hits", {"wasmtime": given.wasmtime.engine})
        # Without a host store, which would answer first.
        flags = ("--redis-url", f"unix://{valkey.socket}", "--host-store-bytes", "0")
        daemon = stack.enter_context(Daemon(state, *flags))
        client = stack.enter_context(daemon.client())
        direct = valkey.client(stack)
        sealer = Sealer(read_keys(load({"state_dir": str(state)}, {}).settings))
        for name in GOALS:
            held = hold(given, getattr(given.modules, name), daemon)
            engine_id = given.wasmtime.engine.id
            header = client.compile(held.module.sha256, engine=engine_id).header
            key = CacheKey(held.module.sha256, header.fingerprint, engine_id)
            come_to_rest(client)
            stream = RawStream(daemon.address, COMPILE)
            stack.callback(stream.close)
            stored = _Stored(direct, key, sealer)
            yield from _rows(given, held, client, stream, stored, HIT_GOALS[name])


class _Stored:
    """What Redis holds of an artifact, as somebody reads it who has nothing but redis-py."""

    def __init__(self, direct: Any, key: CacheKey, sealer: Sealer) -> None:
        self._key = key
        self._sealer = sealer
        self._direct = direct
        self._name = f"wasm:3:compiled:{{{key.module_sha256}}}:{key.engine_id}:{key.fingerprint}"
        self._value = self.get()

    @property
    def size_bytes(self) -> int:
        """Of the whole value."""
        return len(self._value)

    def get(self) -> bytes:
        """Read all of it in one round trip."""
        value = self._direct.get(self._name)
        if not isinstance(value, bytes):
            raise BenchError("Redis does not hold the artifact")
        return value

    def check(self) -> None:
        """Do what the daemon does before it believes it: the stamp, and every digest.

        Reading the header is part of it, since what it says is checked. Raises BenchError.
        """
        view = memoryview(self._value)
        try:
            opened = open_value(view, self._key, self._sealer)
            for index, each in enumerate(opened.frames):
                opened.check(index, view[each.offset : each.offset + each.stored_bytes])
        except ValueRejected as rejected:
            raise BenchError(f"a stored value does not verify: {rejected}") from None


def _rows(
    given: Setting,
    held: Held,
    client: Client,
    stream: RawStream,
    stored: _Stored,
    goal: float,
) -> Iterator[Row]:
    packed = by_digest(held.module.sha256, given.wasmtime.engine.id, accept_encodings=["zstd"])

    def from_redis(request: bytes, encoding: str) -> float:
        client.evict(module_sha256=held.module.sha256, tier="memory")
        return timed_from(stream, request, types_pb2.ORIGIN_REDIS, encoding)

    def from_memory() -> float:
        client.evict(module_sha256=held.module.sha256, tier="memory")
        stream.drain(held.request)
        return timed_from(stream, held.request, types_pb2.ORIGIN_MEMORY)

    series = collect(
        {
            "redis": lambda: from_redis(held.request, ""),
            "packed": lambda: from_redis(packed, "zstd"),
            "memory": from_memory,
            "get": lambda: timed(stored.get),
            "check": lambda: timed(stored.check),
        },
        given.rounds(150),
        warm_up=5,
    )
    what = f"{held.what} artifact"
    hit = series["redis"]
    yield compare(_GROUP, what, hit, "memory hit", series["memory"], goal)
    yield compare(
        _GROUP,
        f"{what}, zstd accepted",
        series["packed"],
        "memory hit",
        series["memory"],
        PACKED_GOAL if held.size_bytes > 1_000_000 else None,
    )
    against = f"redis-py GET of the {stored.size_bytes / 1e3:,.0f} KB stored (hiredis)"
    yield compare(_GROUP, what, hit, against, series["get"])
    yield compare(
        _GROUP,
        f"{what}: its checks alone",
        series["check"],
        "the whole call",
        hit,
        # What is fixed of it, a signature, is a great part of a call for next to nothing.
        CHECKS_GOAL if held.size_bytes > 1_000_000 else None,
    )
