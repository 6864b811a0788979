"""Hits in memory, beside servers that do nothing but send."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.bare import METHOD
from bench.lab import BenchError, Daemon, start_server
from bench.modules import Module
from bench.raw import COMPILE, RawStream, by_digest, header_of
from bench.results import Row, compare
from bench.setting import Setting
from bench.timing import Action, in_turns, timed
from bench.valkey import redis_with

KIB = 1024
GOALS = {"medium": 1.08, "small": 1.10}
"""Of memory hits, to the bare server."""
CLIENT_GOAL = 1.2
INLINE_BYTES = 64 * KIB
"""The largest artifact that an answer may hold in its one message."""

# What the bare server may choose from; the contract allows a chunk of up to 1 MiB.
_CHUNK_BYTES = (256 * KIB, 512 * KIB, 1024 * KIB)
_WARM_UP = 50
_SITTINGS = 3


@dataclass(frozen=True)
class Held:
    """An artifact that the daemon's memory holds, and a copy of its bytes."""

    module: Module
    request: bytes
    size_bytes: int
    file: Path

    @property
    def what(self) -> str:
        """The artifact in words."""
        kilobytes = self.size_bytes / 1e3
        return f"{kilobytes:.0f} KB" if kilobytes < 1e3 else f"{kilobytes / 1e3:.1f} MB"


def memory(given: Setting) -> Iterator[Row]:
    """Memory hits, each message as bytes on both sides, in one process, in turns."""
    for name, goal in GOALS.items():
        yield from _memory(given, hold(given, getattr(given.modules, name)), goal)


def hold(given: Setting, module: Module, daemon: Daemon | None = None) -> Held:
    """Have the daemon of the setting, or another, hold the artifact."""
    engine_id = given.wasmtime.engine.id
    with (daemon or given.daemon).client() as client:
        artifact = client.compile(module.path, engine=engine_id)
    file = given.folder / f"{module.name}.artifact"
    file.write_bytes(artifact.bytes)
    return Held(module, by_digest(module.sha256, engine_id), len(artifact.bytes), file)


def timed_from(stream: RawStream, request: bytes, expected: int, encoding: str = "") -> float:
    """Return how long a hit takes that another tier must not answer. Raises BenchError."""
    answer: list[bytes] = []
    seconds = timed(lambda: answer.extend(stream.messages(request)))
    header = header_of(answer)
    if (header.origin, header.content_encoding) != (expected, encoding):
        raise BenchError(
            f"a call was answered by origin {header.origin} in {header.content_encoding or 'raw'}"
        )
    return seconds


def _memory(given: Setting, held: Held, goal: float) -> Iterator[Row]:
    kind, chunk = _best_bare(given, held)
    ours: list[float] = []
    bare: list[float] = []
    streamed: list[float] = []
    request = _best_request(given, held)
    for _ in range(given.rounds(_SITTINGS)):
        # On fresh connections, whose flow control may settle at different speeds.
        with ExitStack() as stack:
            daemon = _stream(stack, given.daemon.address, COMPILE)
            actions: dict[str, Action] = {
                "daemon": partial(daemon.drain, request),
                "bare": _bare(stack, kind, held, chunk).drain,
            }
            if request != held.request:
                actions["streamed"] = partial(daemon.drain, held.request)
            series = in_turns(actions, given.rounds(300), given.rounds(_WARM_UP))
        ours += series["daemon"]
        bare += series["bare"]
        streamed += series.get("streamed", [])
    what = f"{held.what} artifact"
    against = f"bare grpcio ({kind}, {min(chunk, held.size_bytes) // KIB:,} KiB chunks)"
    if streamed:
        yield compare("memory hit", f"{what}, in one message", ours, against, bare, goal)
        yield compare("memory hit", f"{what}, header and chunk", streamed, against, bare)
    else:
        yield compare("memory hit", what, ours, against, bare, goal)
    yield from _memory_beside_others(given, held)


def _memory_beside_others(given: Setting, held: Held) -> Iterator[Row]:
    rounds = given.rounds(200)
    request = _best_request(given, held)
    with ExitStack() as stack:
        daemon = _stream(stack, given.daemon.address, COMPILE)
        client = stack.enter_context(given.daemon.client())
        redis, key = redis_with(stack, held.file)
        tcp = _Tcp(stack, held)
        engine_id = given.wasmtime.engine.id
        series = in_turns(
            {
                "daemon": lambda: daemon.drain(request),
                "client": lambda: client.compile(held.module.sha256, engine=engine_id),
                "redis": lambda: redis.get(key),
                "tcp": tcp.fetch,
            },
            rounds,
            given.rounds(_WARM_UP),
        )
    what = f"{held.what} artifact"
    hit = series["daemon"]
    yield compare("memory hit", what, hit, "redis-py GET (hiredis)", series["redis"])
    yield compare("memory hit", what, hit, "raw TCP", series["tcp"])
    yield compare(
        "memory hit",
        f"{what}, wasmkiln.Client",
        series["client"],
        "the same call, raw",
        hit,
        CLIENT_GOAL if held.size_bytes > INLINE_BYTES else None,
    )


def _best_request(given: Setting, held: Held) -> bytes:
    """Return the request that asks for the artifact in one message, if it is small enough."""
    if held.size_bytes > INLINE_BYTES:
        return held.request
    engine_id = given.wasmtime.engine.id
    request = by_digest(held.module.sha256, engine_id, inline_limit_bytes=INLINE_BYTES)
    with ExitStack() as stack:
        [message] = _stream(stack, given.daemon.address, COMPILE).messages(request)
    if len(header_of([message]).inline_artifact) != held.size_bytes:
        raise BenchError("the daemon did not put a small artifact into the header's message")
    return request


def _best_bare(given: Setting, held: Held) -> tuple[str, int]:
    """Return the kind of bare server and the chunk size that are fastest for these bytes."""
    chunks = [chunk for chunk in _CHUNK_BYTES if chunk <= held.size_bytes] or [KIB * KIB]
    choices = [(kind, chunk) for kind in ("asyncio", "threads") for chunk in chunks]
    with ExitStack() as stack:
        actions = {
            str(choice): _bare(stack, choice[0], held, choice[1]).drain for choice in choices
        }
        series = in_turns(actions, given.rounds(100), warm_up=given.rounds(10))
    return min(choices, key=lambda choice: statistics.median(series[str(choice)]))


def _bare(stack: ExitStack, kind: str, held: Held, chunk: int) -> RawStream:
    port = start_server(stack, kind, str(held.file), str(chunk)).port
    return _stream(stack, f"127.0.0.1:{port}", METHOD)


def _stream(stack: ExitStack, address: str, method: str) -> RawStream:
    stream = RawStream(address, method)
    stack.callback(stream.close)
    return stream


class _Tcp:
    """A connection whose other end sends the artifact for every byte that it gets."""

    def __init__(self, stack: ExitStack, held: Held) -> None:
        port = start_server(stack, "tcp", str(held.file), str(held.size_bytes)).port
        self._socket = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        self._buffer = bytearray(held.size_bytes)

    def fetch(self) -> None:
        """Ask once, and receive all."""
        self._socket.sendall(b"?")
        view = memoryview(self._buffer)
        while view:
            view = view[self._socket.recv_into(view) :]
