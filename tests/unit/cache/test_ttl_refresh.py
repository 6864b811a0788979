"""What is used lives longer, and not too much is done for it."""

from __future__ import annotations

import asyncio

from wasmkilnd.cache.redis import ttl_refresh
from wasmkilnd.cache.redis.ttl_refresh import TtlRefresher
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import CacheKey

KEY = CacheKey("m", "f")


class Rig:
    def __init__(self) -> None:
        self.now = 0.0
        self.renewed: list[CacheKey | str] = []
        self.down = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.renewals = TtlRefresher(self._renew, 100.0, lambda: self.now)

    async def _renew(self, key: CacheKey | str) -> None:
        await self.gate.wait()
        if self.down:
            raise TierUnavailable("down")
        self.renewed.append(key)

    async def use(self, key: CacheKey = KEY) -> None:
        self.renewals.used(key)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_life_is_renewed_at_most_ten_times() -> None:
    rig = Rig()
    for second in range(100):
        rig.now = second
        await rig.use()
    assert rig.renewed == [KEY] * 10


async def test_a_renewal_that_failed_is_tried_at_the_next_use() -> None:
    rig = Rig()
    rig.down = True
    await rig.use()
    rig.down = False
    await rig.use()
    assert rig.renewed == [KEY]


async def test_not_too_many_at_once_and_none_after_the_end() -> None:
    rig = Rig()
    rig.gate.clear()
    for number in range(100):
        await rig.use(CacheKey(str(number), "f"))
    assert len(rig.renewals._under_way) == ttl_refresh._MAX_AT_ONCE
    await rig.renewals.close()
    assert rig.renewed == []
