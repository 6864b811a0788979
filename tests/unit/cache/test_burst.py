"""More look-ups at once than a daemon makes at a time: they queue, unless Redis is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from wasmkilnd.cache.memory import MemoryTier
from wasmkilnd.cache.null_tier import NullTier
from wasmkilnd.cache.redis.server import Command
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.cache.tiered import TieredCache
from wasmkilnd.cache.write_behind import WriteBehind

from tests.contract.values import artifact
from tests.doubles.no_sealer import NoSealer
from tests.doubles.notes import Notes
from tests.doubles.null_host import null_host
from tests.doubles.shelf import Shelf

TIMEOUT_S = 1.0
MANY = [artifact(tag) for tag in range(60)]


class SlowShelf(Shelf):
    """A server that answers slowly."""

    seconds = 0.0

    is_one_place = True

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        await asyncio.sleep(self.seconds)
        return await super().run(commands)


async def found(seconds: float) -> tuple[int, bool]:
    """Return how many look-ups found their value, and whether the breaker says that Redis is up."""
    shelf = SlowShelf()
    tier = RedisTier(shelf, NoSealer(), Notes(), timeout_s=TIMEOUT_S, reads_at_once=1)
    for one in MANY:
        await tier.put(one)
    near = MemoryTier(1_000_000)
    writes = WriteBehind(tier, lambda: 1000, NullTier("").always_ready)
    cache = TieredCache(near, near, *null_host(), tier, writes, call_wait_s=TIMEOUT_S)
    shelf.seconds = seconds
    calls = [asyncio.create_task(cache.get(one.key, cache.wait_budget())) for one in MANY]
    answers = await asyncio.wait_for(asyncio.gather(*calls), 20)
    return sum(answer is not None for answer in answers), tier.breaker.up


async def test_a_burst_is_served_from_redis_though_it_takes_longer_than_a_time_out() -> None:
    # 60 times 25 ms, one after the other: half as long again as a call waits for Redis.
    assert await found(0.025) == (len(MANY), True)


async def test_no_call_queues_for_a_server_that_is_slow() -> None:
    some, _ = await found(0.4)
    assert some < 10
