"""Length-prefixed frames between the daemon, a worker and a job.

A frame is one byte of type, four bytes of length (big endian), and a payload.
Two sockets carry them: the control socket of a worker, for as long as it lives,
and the job socket of each job, which ends with it. Modules go through job sockets
only, so no worker ever holds one.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum

HEADER = struct.Struct(">BI")

# The most that a frame may hold, but for a module or an artifact, which the order limits. The
# daemon parses JSON while all other tasks wait: 8 MiB of it can take a second. A RESULT holds
# imports and exports, an engine's message, and some numbers: see job.py.
MOST_BYTES = 320 * 1024


class Type(IntEnum):
    """What a frame's payload is."""

    # Control socket, worker to daemon.
    READY = 1  # JSON: how it is confined
    STARTED = 2  # JSON: pid of the job
    ENDED = 3  # JSON: exit code, or signal number; what it used
    # Control socket, daemon to worker.
    RUN = 4  # JSON: limits; with it travel the job's socket and its standard error
    REAP = 5  # empty: the job's pid may be given back to the system
    # Job socket, daemon to job.
    ORDER = 6  # JSON: what to do
    MODULE = 7  # the module's bytes
    # Job socket, job to daemon.
    CONFIGURED = 8  # empty: the engine took the settings; what fails now is due to the module
    RESULT = 9  # JSON
    ARTIFACT = 10  # the artifact's bytes
    COMPILED = 11  # empty: the code is made; all that is left is to copy it
    SET_UP = 12  # empty: the job is confined and has its limits


_EMPTY = (Type.REAP, Type.SET_UP, Type.CONFIGURED, Type.COMPILED)


class FrameError(Exception):
    """The other side broke the protocol."""


def send(sock: socket.socket, kind: Type, payload: bytes | bytearray = b"") -> None:
    """Send one frame, waiting until all of it has left. Raises OSError."""
    sock.sendall(HEADER.pack(kind, len(payload)))
    sock.sendall(payload)


def receive(sock: socket.socket, code_bytes: int = 0) -> tuple[Type, bytearray]:
    """Wait for one frame. Raises EOFError, FrameError, OSError.

    ``code_bytes`` is the limit for a module or an artifact.
    """
    kind, size = parse_header(receive_exactly(sock, HEADER.size), code_bytes)
    return kind, receive_exactly(sock, size)


def parse_header(head: bytes | bytearray, code_bytes: int = 0) -> tuple[Type, int]:
    """Return type and length. Raises FrameError for an unknown type or too long a frame."""
    number, size = HEADER.unpack(head)
    try:
        kind = Type(number)
    except ValueError:
        raise FrameError(f"unknown frame type {number}") from None
    limit = 0 if kind in _EMPTY else MOST_BYTES
    if kind in (Type.MODULE, Type.ARTIFACT):
        limit = code_bytes
    if size > limit:
        raise FrameError(f"a {kind.name} frame of {size} bytes is above its limit of {limit}")
    return kind, size


def receive_exactly(sock: socket.socket, size: int) -> bytearray:
    """Wait for ``size`` bytes. Raises EOFError if fewer come."""
    buffer, at = bytearray(size), 0
    # A process that is stopped and goes on gets less than it waits for.
    while at < size:
        if not (got := sock.recv_into(memoryview(buffer)[at:], 0, socket.MSG_WAITALL)):
            raise EOFError
        at += got
    return buffer
