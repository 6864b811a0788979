"""A server that lies costs its daemon little memory, whatever it says, and is soon left alone."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from wasmkilnd.cache.fleet.strike_store import RedisStrikes
from wasmkilnd.cache.redis.connect import RedisAccess, connect
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import EvictScope
from wasmkilnd.wait_budget import WaitBudget

from tests.contract.sealing import sealer
from tests.contract.values import artifact, module
from tests.doubles.notes import Notes
from tests.servers.lying_server import LIES, little_memory, lying_server

GROWTH_BYTES = 64 * 1024**2
TIMEOUT_S = 1.0
# Of each: as many as a daemon has connections.
CALLERS = 32


@pytest.mark.parametrize("from_the_start", [False, True], ids=["when asked", "from the start"])
@pytest.mark.parametrize("lie", LIES)
async def test_it_costs_little_memory(tmp_path: Path, lie: str, from_the_start: bool) -> None:
    async with lying_server(tmp_path, lie, from_the_start=from_the_start) as url:
        server = connect(url, connect_timeout_s=TIMEOUT_S, timeout_s=TIMEOUT_S)
        # It asks again all the time whether such a server is back.
        tier = RedisTier(
            server, sealer(), Notes(), timeout_s=TIMEOUT_S, first_wait_s=0.01, longest_wait_s=0.02
        )
        strikes = RedisStrikes(tier.link, tier.names, sealer())
        keys = [artifact(tag).key for tag in range(CALLERS)]
        try:
            with little_memory(GROWTH_BYTES):
                for _ in range(3):
                    await asyncio.gather(*(attempt(tier.get(key)) for key in keys))
                    await asyncio.gather(*(attempt(tier.held(keys * 30)) for _ in keys))
                await asyncio.gather(*(attempt(strikes.get(key, WaitBudget())) for key in keys))
                await asyncio.gather(
                    attempt(tier.get_module(module(1).sha256)),
                    attempt(tier.link.usage()),
                    attempt(tier.evict(EvictScope())),
                    attempt(strikes.all()),
                    attempt(tier.kinds_of(keys)),
                    attempt(tier.put(artifact(1))),
                )
        finally:
            await tier.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PACKED = "a packed body"
REST_LIES = {
    "a body without end": (HEAD + b"\r\n" + b'{"result": "', b"A" * 65536),
    "a body of 10 GB": (HEAD + b"Content-Length: 10000000000\r\n\r\n", b"A" * 65536),
    "lists of nothing": (HEAD + b"Content-Length: 6000003\r\n\r\n[[]" + b",[]" * 2_000_000, b""),
    "lists in lists": (HEAD + b"Content-Length: 5000000\r\n\r\n" + b"[" * 5_000_000, b""),
    "headers without end": (HEAD, b"X: y\r\n" * 10_000),
    "a header without end": (HEAD + b"X: ", b"y" * 65536),
}


def packed_body() -> bytes:
    """An answer that becomes 300 MB."""
    bomb = gzip.compress(b'{"result": "' + b"A" * 300_000_000, compresslevel=1)
    return HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(bomb), bomb)


@pytest.mark.parametrize("lie", [*REST_LIES, PACKED])
async def test_over_rest(lie: str) -> None:
    begin, go_on = (packed_body(), b"") if lie == PACKED else REST_LIES[lie]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(begin)
            while go_on:
                writer.write(go_on)
                await writer.drain()
            await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server = connect(f"http://127.0.0.1:{port}", RedisAccess(password="t"), timeout_s=TIMEOUT_S)
    tier = RedisTier(
        server, sealer(), Notes(), timeout_s=TIMEOUT_S, first_wait_s=0.01, longest_wait_s=0.02
    )
    keys = [artifact(tag).key for tag in range(8)]
    try:
        # Eight look-ups at a time, of 5 MB each, in base64, and what the server here sends.
        with little_memory(2 * GROWTH_BYTES):
            await asyncio.gather(*(attempt(tier.get(key)) for key in keys))
            await attempt(tier.link.usage())
    finally:
        await tier.close()
        listening.close()


async def attempt(work: Awaitable[Any]) -> None:
    """Ask; what comes of it is nothing, or TierUnavailable."""
    with contextlib.suppress(TierUnavailable):
        assert not await work
