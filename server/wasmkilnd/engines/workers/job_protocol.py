"""What the daemon and a job exchange: an order with its limits, and a report of the job's end.

Nothing that a job sends is trusted: frames are bounded, and each type may come once and in order.
An artifact is packed as it arrives.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wasmkilnd.engines.child import frames
from wasmkilnd.engines.child.frames import Type
from wasmkilnd.wire import CHUNK_BYTES, Packed, frame

# The frames that a job may send: each at most once and in this order, so a job cannot send without
# end.
_FRAMES_OF_JOBS = (Type.SET_UP, Type.CONFIGURED, Type.COMPILED, Type.ARTIFACT, Type.RESULT)
# The largest number that a worker or a job may send.
MAX_NUMBER = 2**63 - 1
_ONE_READ_BYTES = 256 * 1024
# Hashing less than this takes less time than handing it to a thread and back.
_HASH_INLINE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class JobOrder:
    """What a job has to do, and within which limits."""

    order: Mapping[str, Any]
    wasm: bytes | None
    """The module, or the artifact to run."""
    timeout_s: float
    cpu_s: float
    memory_bytes: int
    artifact_limit_bytes: int = 0
    module_sha256: str = ""
    """The module's name in the log; empty where there is no module."""

    @property
    def size_bytes(self) -> int:
        """The size of its module; 0 where there is none."""
        return len(self.wasm or b"")


@dataclass(slots=True)
class JobReport:
    """How a job ended."""

    result: dict[str, Any] | None = None
    """Its RESULT frame, if it sent one."""
    packed: Packed | None = None
    """The artifact as it is stored and sent to callers."""
    set_up: bool = False
    """Whether the job was confined and had its limits before it ended."""
    configured: bool = False
    """Whether the engine took the settings before the job ended."""
    compiled: bool = False
    """Whether the engine had made the code before the job ended."""
    timed_out: bool = False
    signal: int | None = None
    exit_code: int | None = None
    last_words: str = ""
    """The end of what it wrote to standard error, such as a panic's message."""
    protocol_error: str = ""
    """How it broke the protocol, for which it was killed; empty if it did not."""
    pid: int = 0
    module_bytes: int = MAX_NUMBER
    """The size of its module."""
    elapsed_s: float = MAX_NUMBER
    """How long it ran, by the daemon's clock."""
    cpu_s: float = 0.0
    """CPU time that all its threads used; 0 where the kernel does not tell."""
    waited_s: float | None = None
    """How long its threads were ready and had no CPU, if it ran past its time; None where the
    kernel does not tell."""
    alone: bool = False
    """Whether it ran beside no other job, and beside no busy daemon."""
    peak_memory_bytes: int = 0
    """Its peak resident memory; 0 where the kernel does not tell."""


async def exchange(sock: socket.socket, job: JobOrder, report: JobReport) -> None:
    """Send the order; fill the report until the job closes its end, or breaks the protocol."""
    order = dict(job.order, artifact_limit_bytes=job.artifact_limit_bytes)
    if job.wasm is not None:
        order["module_bytes"] = len(job.wasm)
    loop = asyncio.get_running_loop()
    try:
        for kind, message in ((Type.ORDER, json.dumps(order).encode()), (Type.MODULE, job.wasm)):
            if message is not None:
                await loop.sock_sendall(sock, frames.HEADER.pack(kind, len(message)))
                await loop.sock_sendall(sock, message)
    except OSError:
        pass  # The job has ended already: what it sent and how it ended tell why.
    expected = iter(_FRAMES_OF_JOBS)
    try:
        while True:
            kind, size = await _receive_header(sock, job.artifact_limit_bytes)
            if kind not in expected:  # This also drops the frames before it from ``expected``.
                raise frames.FrameError(f"unexpected {kind.name} frame")
            if kind is Type.ARTIFACT:
                report.packed = await receive_packed(sock, size)
                continue
            payload = await receive_exactly(sock, size)
            report.set_up |= kind is Type.SET_UP
            report.configured |= kind is Type.CONFIGURED
            report.compiled |= kind is Type.COMPILED
            if kind is Type.RESULT:
                result = json.loads(payload)
                if not isinstance(result, dict):
                    raise frames.FrameError("expected a JSON object as the result")
                report.result = result
    except (EOFError, ConnectionError):
        return
    except (frames.FrameError, ValueError, RecursionError) as broken:
        report.protocol_error = str(broken)


async def receive(sock: socket.socket) -> tuple[Type, bytearray]:
    """Wait for one frame without code in it. Raises EOFError, FrameError, OSError."""
    kind, size = await _receive_header(sock, 0)
    return kind, await receive_exactly(sock, size)


async def _receive_header(sock: socket.socket, code_bytes: int) -> tuple[Type, int]:
    """Wait for the header of a frame, which may hold so much code; return its type and size."""
    return frames.parse_header(await receive_exactly(sock, frames.HEADER.size), code_bytes)


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


async def receive_packed(sock: socket.socket, size: int) -> Packed:
    """Wait for an artifact of ``size`` bytes; return it as it is stored and sent to callers.

    A thread hashes one chunk while the next one arrives. Raises EOFError if fewer bytes come.
    """
    loop = asyncio.get_running_loop()
    digest = hashlib.sha256()
    hashing: asyncio.Future[None] | None = None
    made: list[bytes] = []
    buffer = memoryview(bytearray(min(size, CHUNK_BYTES)))
    for start in range(0, size, CHUNK_BYTES):
        chunk = left = buffer[: min(size - start, CHUNK_BYTES)]
        while left:
            await asyncio.sleep(0)  # As above.
            received = await loop.sock_recv_into(sock, left[:_ONE_READ_BYTES])
            if not received:
                raise EOFError
            left = left[received:]
        made.append(frame(chunk))
        if hashing:
            await hashing
        payload = memoryview(made[-1])[-len(chunk) :]
        if len(chunk) > _HASH_INLINE_BYTES:
            hashing = loop.run_in_executor(None, digest.update, payload)
        else:
            digest.update(payload)  # It is the last one.
    if hashing:
        await hashing
    return Packed(digest.hexdigest(), size, tuple(made))
