"""Restart the time to live of entries in the shared tier when they are used."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import CacheKey

_PER_LIFE = 10
_MAX_REMEMBERED = 100_000
_MAX_AT_ONCE = 16


class TtlRefresher:
    """Renews entries that are used, in the background.

    Each at most ten times in a time to live. A use from memory counts too: what every daemon
    has in memory must still be in the shared tier when a daemon restarts. For one event loop.
    """

    def __init__(
        self,
        renew: Callable[[CacheKey | str], Awaitable[None]],
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renew = renew
        self._interval_s = ttl_s / _PER_LIFE
        self._clock = clock
        self._renewed: OrderedDict[CacheKey | str, float] = OrderedDict()
        self._under_way: set[asyncio.Task[None]] = set()

    def used(self, key: CacheKey | str) -> None:
        """Note a use of an artifact, or of a module by its digest; return at once, never raise."""
        now = self._clock()
        if now - self._renewed.get(key, -self._interval_s) < self._interval_s:
            return
        if len(self._under_way) >= _MAX_AT_ONCE:
            return  # The next use will renew it.
        self._renewed[key] = now
        self._renewed.move_to_end(key)
        if len(self._renewed) > _MAX_REMEMBERED:
            self._renewed.popitem(last=False)
        renewing = asyncio.create_task(self._try(key))
        self._under_way.add(renewing)
        renewing.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """Cancel the renewals that are running."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _try(self, key: CacheKey | str) -> None:
        try:
            await self._renew(key)
        except TierUnavailable:
            # The next use tries again.
            with contextlib.suppress(KeyError):
                del self._renewed[key]
