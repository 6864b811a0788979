"""Longer lives in the shared tier for what is used."""

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
    """Has entries that are used live another full time to live, behind the caller's back.

    Each at most ten times in a life, wherever the use was served from: what every
    daemon has in memory must not be gone from the shared tier when one starts anew. For
    one event loop.
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
        """Take note of a use of an artifact, or of a module by its digest. Returns at once and
        never raises.
        """
        now = self._clock()
        if now - self._renewed.get(key, -self._interval_s) < self._interval_s:
            return
        if len(self._under_way) >= _MAX_AT_ONCE:
            return  # The next use will do.
        self._renewed[key] = now
        self._renewed.move_to_end(key)
        if len(self._renewed) > _MAX_REMEMBERED:
            self._renewed.popitem(last=False)
        renewing = asyncio.create_task(self._try(key))
        self._under_way.add(renewing)
        renewing.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _try(self, key: CacheKey | str) -> None:
        try:
            await self._renew(key)
        except TierUnavailable:
            # It was not renewed: the next use tries again.
            with contextlib.suppress(KeyError):
                del self._renewed[key]
