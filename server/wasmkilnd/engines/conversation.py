"""What the daemon and a job say to each other: an order, and what came of it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wasmkilnd.engines.child import frames
from wasmkilnd.engines.child.frames import Type


@dataclass(frozen=True, slots=True)
class JobOrder:
    """What a job is to do, and within which limits."""

    order: Mapping[str, Any]
    wasm: bytes | None
    timeout_s: float
    cpu_s: float
    memory_bytes: int
    artifact_limit_bytes: int = 0


@dataclass(slots=True)
class JobReport:
    """How a job ended."""

    result: dict[str, Any] | None = None
    """What it answered last, if it answered."""
    artifact: bytearray | None = None
    configured: bool = False
    """Whether the engine took the settings before whatever happened."""
    compiled: bool = False
    """Whether the engine had made its code before whatever happened."""
    timed_out: bool = False
    signal: int | None = None
    exit_code: int | None = None
    last_words: str = ""
    """The end of what it wrote to standard error, such as a panic's message."""
    protocol_error: str = ""


async def converse(sock: socket.socket, job: JobOrder, report: JobReport) -> None:
    """Send the order and collect answers until the job closes its end."""
    loop = asyncio.get_running_loop()
    try:
        for asked, message in _messages(job):
            await loop.sock_sendall(sock, frames.HEADER.pack(asked, len(message)))
            await loop.sock_sendall(sock, message)
    except OSError:
        pass  # It ended already: what it said and how it ended tells why.
    limit = max(frames.SMALL_FRAME_BYTES, job.artifact_limit_bytes)
    try:
        while True:
            kind, payload = await receive(sock, limit)
            if kind is Type.CONFIGURED:
                report.configured = True
            elif kind is Type.COMPILED:
                report.compiled = True
            elif kind is Type.ARTIFACT:
                report.artifact = payload
            elif kind is Type.RESULT:
                result = json.loads(payload)
                if not isinstance(result, dict):
                    raise frames.FrameError("the result is no object")
                report.result = result
    except EOFError:
        return
    except ConnectionError:
        return
    except (frames.FrameError, ValueError, RecursionError) as broken:
        report.protocol_error = str(broken)


def _messages(job: JobOrder) -> Sequence[tuple[Type, bytes]]:
    order = dict(job.order, artifact_limit_bytes=job.artifact_limit_bytes)
    if job.wasm is None:
        return [(Type.ORDER, json.dumps(order).encode())]
    order["module_bytes"] = len(job.wasm)
    return [(Type.ORDER, json.dumps(order).encode()), (Type.MODULE, job.wasm)]


async def receive(sock: socket.socket, limit_bytes: int) -> tuple[Type, bytearray]:
    head = await _receive_exactly(sock, frames.HEADER.size)
    kind, size = frames.parse_header(head, limit_bytes)
    try:
        return kind, await _receive_exactly(sock, size)
    except EOFError:
        raise frames.FrameError("it went away in the middle of a frame") from None


async def _receive_exactly(sock: socket.socket, size: int) -> bytearray:
    loop = asyncio.get_running_loop()
    buffer = bytearray(size)
    view = memoryview(buffer)
    filled = 0
    while filled < size:
        received = await loop.sock_recv_into(sock, view[filled:])
        if received == 0:
            if filled == 0:
                raise EOFError
            raise frames.FrameError("it went away in the middle of a frame")
        filled += received
    return buffer
