"""What the daemon and a job exchange: an order with its limits, and a report of the job's end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wasmkilnd.engines.child import frames
from wasmkilnd.engines.child.frames import Type
from wasmkilnd.engines.workers.receive import receive_exactly, receive_header, receive_packed
from wasmkilnd.model import Priority, is_fast
from wasmkilnd.wire import Packed

# The frames that a job may send: each at most once and in this order, so a job cannot send without
# end.
_FRAMES_OF_JOBS = (Type.SET_UP, Type.CONFIGURED, Type.COMPILED, Type.ARTIFACT, Type.RESULT)
# The largest number that a worker or a job may send.
MAX_NUMBER = 2**63 - 1


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
    priority: Priority = Priority.NORMAL

    @property
    def op(self) -> str:
        """The kind of work, such as ``compile``."""
        return str(self.order["op"])

    @property
    def like(self) -> str:
        """What it has in common with orders that take about as long for a module of the size."""
        return f"{self.op} fast" if is_fast(self.order.get("settings", {})) else self.op

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
    starved: bool = False
    """Whether it got no CPU in the idle class, and left it."""
    peak_memory_bytes: int = 0
    """Its peak resident memory; 0 where the kernel does not tell."""


async def exchange(sock: socket.socket, job: JobOrder, report: JobReport) -> None:
    """Send the order; fill the report until the job closes its end, or breaks the protocol."""
    loop = asyncio.get_running_loop()
    try:
        for kind, message in _messages(job):
            await loop.sock_sendall(sock, frames.HEADER.pack(kind, len(message)))
            await loop.sock_sendall(sock, message)
    except OSError:
        pass  # The job has ended already: what it sent and how it ended tell why.
    expected = iter(_FRAMES_OF_JOBS)
    try:
        while True:
            kind, size = await receive_header(sock, job.artifact_limit_bytes)
            if kind not in expected:  # This also drops the frames before it from ``expected``.
                raise frames.FrameError(f"unexpected {kind.name} frame")
            if kind is Type.ARTIFACT:
                report.packed = await receive_packed(sock, size)
                continue
            payload = await receive_exactly(sock, size)
            if kind is Type.SET_UP:
                report.set_up = True
            elif kind is Type.CONFIGURED:
                report.configured = True
            elif kind is Type.COMPILED:
                report.compiled = True
            else:
                result = json.loads(payload)
                if not isinstance(result, dict):
                    raise frames.FrameError("expected a JSON object as the result")
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
