"""Take what was counted, and save it where the fleet finds it."""

from __future__ import annotations

import asyncio
import contextlib
import time

from wasmkilnd.cache.redis.use_store import UseStore
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.usage.file import UseFile
from wasmkilnd.uses import Tally, Uses, summed

SAVE_EVERY_S = 30.0
"""How much of what it counted a daemon that is killed may lose."""


class UsageKeeper:
    """The uses in one namespace. For one event loop."""

    def __init__(self, tally: Tally, store: UseStore | None, file: UseFile) -> None:
        """Save to ``store``, or without one to ``file``."""
        self._tally = tally
        self._store = store
        self._file = file
        self._counted = Uses()
        """With a store: all that this daemon counted. Without: what is not in the file yet."""
        self._changed = False
        self._one_at_a_time = asyncio.Lock()
        self._saving: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Save from now on."""
        self._saving = asyncio.create_task(self._run())

    async def save(self, *, last: bool = False) -> None:
        """Save what was counted; never raise. ``last`` says that the daemon ends."""
        async with self._one_at_a_time:
            self._take()
            leaves = last and self._store and self._counted.counts
            if not self._changed and not leaves:
                return
            if self._store is None:
                if await asyncio.to_thread(self._file.add, self._counted):
                    self._counted, self._changed = Uses(), False
                return
            with contextlib.suppress(TierUnavailable):  # The breaker has logged it.
                self._counted = await self._store.save(self._counted, last=last)
                self._changed = False

    async def of_fleet(self) -> Uses:
        """Return the sums of all daemons, this one's last calls included.

        Raises TierUnavailable.
        """
        async with self._one_at_a_time:
            self._take()
            if self._store:
                others = await self._store.of_others()
            else:
                others = await asyncio.to_thread(self._file.read)
            return summed([self._counted, others])

    def own(self) -> Uses:
        """Return what this daemon counted, as far as it is in memory."""
        self._take()
        return self._counted

    async def close(self) -> None:
        """Stop, without saving; see ``save``."""
        if self._saving:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await self.save()

    def _take(self) -> None:
        counted = Uses(self._tally.take(), time.time())
        self._changed |= bool(counted.counts)
        self._counted.add(counted)
