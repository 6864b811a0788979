"""An artifact that is packed as it arrives is the one that was sent."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from wasmkilnd.engines.process import receive_packed
from wasmkilnd.model import CHUNK_BYTES, pack


async def received(payload: bytes, size: int) -> object:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        receiving = asyncio.create_task(receive_packed(ours, size))
        await asyncio.get_running_loop().sock_sendall(theirs, payload)
        theirs.shutdown(socket.SHUT_WR)
        return await receiving


@pytest.mark.parametrize(
    "size",
    [0, 1, 100_000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 70_000],
)
async def test_what_arrives_is_packed_alike(size: int) -> None:
    payload = os.urandom(size)
    assert await received(payload, size) == pack(payload)


@pytest.mark.parametrize("sent", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES])
async def test_a_job_that_ends_midway_has_sent_nothing(sent: int) -> None:
    with pytest.raises(EOFError):
        await received(os.urandom(sent), 2 * CHUNK_BYTES + 1)
