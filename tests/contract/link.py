"""The daemon's way to a Redis, for tests that need no cache."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.server import Command


class Link:
    """Runs commands as a RedisLink does."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._guarded = GuardedRedis(connect(url, timeout_s=timeout_s), timeout_s=timeout_s)

    async def run(self, *commands: Command, timeout_s: float | None = None) -> list[Any]:
        return await self._guarded.run(
            [(lambda reply: reply, command) for command in commands], timeout_s
        )

    def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        return self._guarded.scan(pattern)

    async def ready(self) -> None:
        await self._guarded.breaker.wait_closed()

    async def close(self) -> None:
        await self._guarded.close()


def open_link(url: str, timeout_s: float = 2.0) -> Any:
    """Return a link to the server at ``url``."""
    return Link(url, timeout_s)
