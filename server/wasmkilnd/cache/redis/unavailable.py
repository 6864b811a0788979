"""What stands for a server that could not be started yet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from wasmkilnd.cache.redis.server import Command
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import TierUsage


class UnavailableServer:
    """A RedisServer that answers nothing but ``why``, until another takes its place."""

    is_one_place = True

    def __init__(self, why: str) -> None:
        self._why = why

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """As RedisServer."""
        raise TierUnavailable(self._why)

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """As RedisServer."""
        raise TierUnavailable(self._why)
        yield []

    async def usage(self) -> TierUsage:
        """As RedisServer."""
        raise TierUnavailable(self._why)

    async def probe(self) -> None:
        """As RedisServer."""
        raise TierUnavailable(self._why)

    async def close(self) -> None:
        """Do nothing."""
