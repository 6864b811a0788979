"""The daemon's way to a Redis, for tests that need no cache."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.server import Command

from tests.contract.redis_access import redis_access
from tests.servers.deployments import NO_ACCESS, Access


class Link:
    """Runs commands as a RedisLink does."""

    def __init__(self, url: str, access: Access, timeout_s: float) -> None:
        server = connect(url, redis_access(access), timeout_s=timeout_s)
        self._guarded = GuardedRedis(server, timeout_s=timeout_s)

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


def open_link(url: str, access: Access = NO_ACCESS, timeout_s: float = 5.0) -> Any:
    """Return a link to the server at ``url``."""
    return Link(url, access, timeout_s)
