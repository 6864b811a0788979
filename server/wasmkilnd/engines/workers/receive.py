"""Receive what a job sends: frames, and an artifact that is packed as it arrives."""

from __future__ import annotations

import asyncio
import hashlib
import socket

from wasmkilnd.engines.child import frames
from wasmkilnd.engines.child.frames import Type
from wasmkilnd.wire import CHUNK_BYTES, Packed, frame

_ONE_READ_BYTES = 256 * 1024
# Hashing less than this takes less time than handing it to a thread and back.
_HASH_INLINE_BYTES = 256 * 1024


async def receive(sock: socket.socket) -> tuple[Type, bytearray]:
    """Wait for one frame without code in it. Raises EOFError, FrameError, OSError."""
    kind, size = await receive_header(sock, 0)
    return kind, await receive_exactly(sock, size)


async def receive_header(sock: socket.socket, code_bytes: int) -> tuple[Type, int]:
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
    digest = hashlib.sha256()
    hashing: asyncio.Future[None] | None = None
    made: list[bytes] = []
    buffer = memoryview(bytearray(min(size, CHUNK_BYTES)))
    for start in range(0, size, CHUNK_BYTES):
        chunk = buffer[: min(size - start, CHUNK_BYTES)]
        await _fill(sock, chunk)
        made.append(frame(chunk))
        if hashing:
            await hashing
        hashing = _hash(digest, memoryview(made[-1])[-len(chunk) :])
    if hashing:
        await hashing
    return Packed(digest.hexdigest(), size, tuple(made))


async def _fill(sock: socket.socket, buffer: memoryview) -> None:
    loop = asyncio.get_running_loop()
    while buffer:
        await asyncio.sleep(0)  # As above.
        received = await loop.sock_recv_into(sock, buffer[:_ONE_READ_BYTES])
        if not received:
            raise EOFError
        buffer = buffer[received:]


def _hash(digest: hashlib._Hash, chunk: memoryview) -> asyncio.Future[None] | None:
    """Hash a chunk at once, or in a thread; then return what to wait for."""
    if len(chunk) <= _HASH_INLINE_BYTES:
        digest.update(chunk)
        return None
    return asyncio.get_running_loop().run_in_executor(None, digest.update, chunk)
