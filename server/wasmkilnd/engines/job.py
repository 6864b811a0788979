"""A job, seen from the daemon: what it is told, what it tells, and the frames that carry both.

Two sockets carry the frames of ``child.frames``. The worker reports the begin and the end of a job
over its own, and the job sends its result over another. The daemon trusts nothing that a job
sends: frames are bounded, and each type may come once and in order. ``engines.verdict`` says what
a report means.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from wasmkilnd import wire
from wasmkilnd.engines.child.frames import HEADER, FrameError, Type, parse_header
from wasmkilnd.model import Limits, Module, Wasm
from wasmkilnd.wire import CHUNK_BYTES, Packed, frame, read_pieces

# The frames that a job may send: each at most once and in this order, so a job cannot send without
# end.
_FRAMES_OF_JOBS = (Type.SET_UP, Type.CONFIGURED, Type.COMPILED, Type.ARTIFACT, Type.RESULT)
# The largest number that a worker or a job may send.
MAX_NUMBER = 2**63 - 1
_ONE_READ_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class JobOrder:
    """What a job has to do, and within which limits: see :mod:`wasmkilnd.engines.child.job`."""

    order: Mapping[str, Any]
    limits: Limits
    # The module; None where there is none.
    wasm: Wasm | None = None
    # The module's name in the log; empty where there is no module.
    module_sha256: str = ""

    @property
    def size_bytes(self) -> int:
        """The size of its module; 0 where there is none."""
        return len(self.wasm or b"")

    @property
    def held_bytes(self) -> int:
        """How much memory its module takes while it waits."""
        return wire.held_bytes(self.wasm or b"")


def order_on(module: Module, limits: Limits, **order: Any) -> JobOrder:
    """Return an ``order`` about a module: ``op``, ``target``, ``cpu`` and ``settings``."""
    return JobOrder({"kind": module.kind.value, **order}, limits, module.wasm, module.sha256)


@dataclass(slots=True)
class JobReport:
    """How a job ended."""

    # Whether it did not run, since it was to be done no more.
    needless: bool = False
    # Its RESULT frame, if it sent one.
    result: dict[str, Any] | None = None
    # The artifact as it is stored and sent to callers.
    packed: Packed | None = None
    # How far it came: SET_UP once it was confined and had its limits, CONFIGURED once the engine
    # had taken the settings, COMPILED once the engine had made the code.
    sent: set[Type] = field(default_factory=set)
    timed_out: bool = False
    signal: int | None = None
    exit_code: int | None = None
    # The end of what it wrote to standard error, such as a panic's message.
    last_words: str = ""
    # How it broke the protocol, for which it was killed; empty if it did not.
    protocol_error: str = ""
    pid: int = 0
    # The size of its module.
    module_bytes: int = MAX_NUMBER
    # How long it ran, by the daemon's clock.
    elapsed_s: float = MAX_NUMBER
    # CPU time that all its threads used; 0 where the kernel does not tell.
    cpu_s: float = 0.0
    # How much memory it might use.
    memory_bytes: int = 0
    # Its peak resident memory; 0 where the kernel does not tell.
    peak_memory_bytes: int = 0


async def exchange(sock: socket.socket, job: JobOrder, report: JobReport) -> None:
    """Send the order; fill the report until the job closes its end, or breaks the protocol."""
    sizes = {"module_bytes": job.size_bytes, "artifact_limit_bytes": job.limits.artifact_bytes}
    order = json.dumps({**job.order, **sizes}).encode()
    loop = asyncio.get_running_loop()
    # Of a job that has ended already, what it sent and how it ended tell why.
    with contextlib.suppress(ConnectionError):
        await loop.sock_sendall(sock, HEADER.pack(Type.ORDER, len(order)) + order)
        if job.wasm is not None:
            await loop.sock_sendall(sock, HEADER.pack(Type.MODULE, job.size_bytes))
            async for piece in read_pieces(job.wasm):
                await loop.sock_sendall(sock, piece)
    expected = iter(_FRAMES_OF_JOBS)
    try:
        while True:
            kind, size = await receive_header(sock, job.limits.artifact_bytes)
            if kind not in expected:  # This also drops the frames before it from ``expected``.
                raise FrameError(f"unexpected {kind.name} frame")
            if kind is Type.ARTIFACT:
                report.packed = await receive_packed(sock, size)
                continue
            payload = await receive_exactly(sock, size)
            report.sent.add(kind)
            if kind is Type.RESULT:
                # What it means depends on the order: ``engines.verdict`` reads it.
                report.result = from_json(payload)
    except (EOFError, ConnectionError):
        return
    except (FrameError, ValueError) as broken:
        report.protocol_error = str(broken)


async def receive_packed(sock: socket.socket, size: int) -> Packed:
    """Wait for an artifact of ``size`` bytes; return it as it is stored and sent to callers.

    It is hashed as it arrives: one chunk takes about a quarter of a millisecond. Raises EOFError
    if fewer bytes come.
    """
    digest, made = hashlib.sha256(), []
    for start in range(0, size, CHUNK_BYTES):
        chunk = await receive_exactly(sock, min(size - start, CHUNK_BYTES))
        digest.update(chunk)
        made.append(frame(memoryview(chunk)))
    return Packed(digest.hexdigest(), size, tuple(made))


async def receive_header(sock: socket.socket, code_bytes: int = 0) -> tuple[Type, int]:
    """Wait for the header of a frame, which may hold so much code; return its type and size."""
    return parse_header(await receive_exactly(sock, HEADER.size), code_bytes)


async def receive_exactly(sock: socket.socket, size: int) -> bytearray:
    """Wait for ``size`` bytes. Raises EOFError if fewer come."""
    loop = asyncio.get_running_loop()
    # Grow with what arrives: to allocate and clear all that a header announces takes time.
    received = bytearray()
    while len(received) < size:
        if received:
            # sock_recv does not wait for what is there already. A job that sends as fast as the
            # daemon reads would keep all other tasks, and its own time limit, from running.
            await asyncio.sleep(0)
        piece = await loop.sock_recv(sock, min(size - len(received), _ONE_READ_BYTES))
        if not piece:
            raise EOFError
        received += piece
    return received
