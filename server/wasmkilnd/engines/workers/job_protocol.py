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
from wasmkilnd.engines.workers.job_result import MOST
from wasmkilnd.wire import Packed, pack

# What a job may say: each once at most and in this order, so none can go on without end.
_ANSWERS = (Type.SET_UP, Type.CONFIGURED, Type.COMPILED, Type.ARTIFACT, Type.RESULT)
# Packing less than this takes less time than handing it to a thread and back.
_PACK_INLINE_BYTES = 256 * 1024
_ONE_READ_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class JobOrder:
    """What a job is to do, and within which limits."""

    order: Mapping[str, Any]
    wasm: bytes | None
    """The module, or the artifact to run."""
    timeout_s: float
    cpu_s: float
    memory_bytes: int
    artifact_limit_bytes: int = 0
    module_sha256: str = ""
    """What the module is called in the log; empty where there is none."""

    @property
    def op(self) -> str:
        """What kind of work it is."""
        return str(self.order["op"])

    @property
    def size_bytes(self) -> int:
        """How large its module is; 0 where there is none."""
        return len(self.wasm or b"")


@dataclass(slots=True)
class JobReport:
    """How a job ended."""

    result: dict[str, Any] | None = None
    """What it answered last, if it answered."""
    artifact: bytearray | None = None
    """What it made, until it is packed."""
    packed: Packed | None = None
    """What it made, as it is kept and sent."""
    set_up: bool = False
    """Whether the job was confined and had its limits before whatever happened."""
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
    """What it said that no job of ours says; it was killed for it."""
    pid: int = 0
    module_bytes: int = MOST
    """The size of the module that it was about."""
    elapsed_s: float = MOST
    """How long it ran, by the daemon's clock."""
    cpu_s: float = 0.0
    """CPU time that all its threads used; 0 where the kernel does not tell."""
    waited_s: float | None = None
    """How long its threads were ready and had no CPU, of one that ran past its time; None where
    the kernel does not tell."""
    alone: bool = False
    """Whether no other job of this daemon ran while it did."""
    peak_memory_bytes: int = 0
    """The most memory that it had resident; 0 where the kernel does not tell."""

    async def pack(self) -> None:
        """Pack what the job made, if it made something, and let go of it as it came."""
        if self.artifact is not None:
            if len(self.artifact) <= _PACK_INLINE_BYTES:
                self.packed = pack(self.artifact)
            else:
                self.packed = await asyncio.to_thread(pack, self.artifact)
            self.artifact = None


async def converse(sock: socket.socket, job: JobOrder, report: JobReport) -> None:
    """Send the order and collect answers until the job closes its end, or breaks the protocol."""
    loop = asyncio.get_running_loop()
    try:
        for asked, message in _messages(job):
            await loop.sock_sendall(sock, frames.HEADER.pack(asked, len(message)))
            await loop.sock_sendall(sock, message)
    except OSError:
        pass  # It ended already: what it said and how it ended tells why.
    expected = iter(_ANSWERS)
    try:
        while True:
            kind, size = await _receive_header(sock, job.artifact_limit_bytes)
            if kind not in expected:  # Which forgets those before it, too.
                raise frames.FrameError(f"a {kind.name} frame out of turn")
            payload = await _receive_exactly(sock, size)
            if kind is Type.SET_UP:
                report.set_up = True
            elif kind is Type.CONFIGURED:
                report.configured = True
            elif kind is Type.COMPILED:
                report.compiled = True
            elif kind is Type.ARTIFACT:
                report.artifact = payload
            else:
                result = json.loads(payload)
                if not isinstance(result, dict):
                    raise frames.FrameError("the result is no object")
                report.result = result
    except (EOFError, ConnectionError):
        return
    except (frames.FrameError, ValueError, RecursionError) as broken:
        report.protocol_error = str(broken)


def _messages(job: JobOrder) -> Sequence[tuple[Type, bytes]]:
    order = dict(job.order, artifact_limit_bytes=job.artifact_limit_bytes)
    if job.wasm is None:
        return [(Type.ORDER, json.dumps(order).encode())]
    order["module_bytes"] = len(job.wasm)
    return [(Type.ORDER, json.dumps(order).encode()), (Type.MODULE, job.wasm)]


async def receive(sock: socket.socket) -> tuple[Type, bytearray]:
    """Wait for one frame without code in it. Raises EOFError, FrameError, OSError."""
    kind, size = await _receive_header(sock, 0)
    return kind, await _receive_exactly(sock, size)


async def _receive_header(sock: socket.socket, code_bytes: int) -> tuple[Type, int]:
    return frames.parse_header(await _receive_exactly(sock, frames.HEADER.size), code_bytes)


async def _receive_exactly(sock: socket.socket, size: int) -> bytearray:
    loop = asyncio.get_running_loop()
    # It grows with what arrives: to clear as much as a header announces takes time, too.
    received = bytearray()
    while len(received) < size:
        if received:
            # What is there already is read without waiting. Who sends as fast as this reads
            # would let nobody else run, nor its own time limit.
            await asyncio.sleep(0)
        piece = await loop.sock_recv(sock, min(size - len(received), _ONE_READ_BYTES))
        if not piece:
            raise EOFError
        received += piece
    return received
