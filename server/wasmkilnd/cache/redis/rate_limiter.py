"""A bound on bytes a second, for work that must not disturb others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


class RateLimiter:
    """Holds those who share it to ``bytes_per_s`` together; to nothing if that is 0."""

    def __init__(
        self,
        bytes_per_s: int = 0,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._sleep = sleep
        self._clock = clock
        self._due = clock()

    async def spent(self, size_bytes: int) -> None:
        """Wait for as long as ``size_bytes``, which were just moved, may take."""
        if not self._bytes_per_s:
            return
        now = self._clock()
        self._due = max(self._due, now) + size_bytes / self._bytes_per_s
        await self._sleep(self._due - now)
