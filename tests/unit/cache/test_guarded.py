"""What a link makes of a server that answers some things and others not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.server import Command
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import TierUsage

from tests.doubles.shelf import Shelf

TIMEOUT_S = 1.0


class Foreign(Shelf):
    """A server of which nearly all is somebody else's: a scan takes many rounds."""

    hangs = False

    is_one_place = True

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        if self.hangs:
            await asyncio.Event().wait()
        return await super().run(commands)

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        for _ in range(60):
            await asyncio.sleep(TIMEOUT_S / 20)
            yield []
        yield [b"the only one"]


async def test_a_scan_may_take_longer_than_one_answer() -> None:
    link = GuardedRedis(Foreign(), timeout_s=TIMEOUT_S)
    assert [key async for page in link.scan(b"*") for key in page] == [b"the only one"]
    await link.close()


@pytest.mark.parametrize("what", ["scan", "usage"])
async def test_whoever_answers_a_scan_or_tells_its_usage_is_up(what: str) -> None:
    server = Foreign()
    link = GuardedRedis(server, timeout_s=TIMEOUT_S)
    server.hangs = True

    async def ask() -> None:
        while True:
            if what == "usage":
                assert await link.usage() == TierUsage()
                await asyncio.sleep(TIMEOUT_S / 20)
            else:
                async for _ in link.scan(b"*"):
                    pass

    asking = asyncio.create_task(ask())
    with pytest.raises(TierUnavailable):
        await link.exists([b"k"])
    assert not link.breaker.open
    asking.cancel()
    with pytest.raises(TierUnavailable):
        await link.exists([b"k"])
    assert link.breaker.open
    await link.close()
