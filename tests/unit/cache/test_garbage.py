"""Whatever a server answers, to whatever it is asked: it is unavailable, and nothing worse."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from wasmkilnd.cache.fleet.claim import LeaseFleet
from wasmkilnd.cache.fleet.lease_commands import LeaseCommands
from wasmkilnd.cache.fleet.lease_store import LeaseStore
from wasmkilnd.cache.fleet.strike_store import RedisStrikes
from wasmkilnd.cache.redis.guarded import GuardedRedis, as_flag
from wasmkilnd.cache.redis.server import Command
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import CacheKey, EvictScope, Strike, TierUsage
from wasmkilnd.wait_budget import WaitBudget

from tests.contract.sealing import sealer
from tests.contract.values import artifact, module
from tests.doubles.notes import Notes

ANSWERS: list[Any] = [None, True, False, 0, 7, -1, b"", b"OK", "OK", b"\xff" * 50, 1.5, [], [b"a"]]
ANSWERS += [{b"a": 1}, ValueError("no"), ...]
ONE = artifact(1)
KEY = ONE.key


class Babbler:
    """A server that answers one thing to everything, and perhaps too often or too seldom."""

    def __init__(self, answer: Any, more: int) -> None:
        self._answer = answer
        self._more = more

    is_one_place = True

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        return [self._answer] * max(0, len(commands) + self._more)

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        yield self._answer

    async def usage(self) -> TierUsage:
        return TierUsage()

    async def probe(self) -> None:
        return None

    async def close(self) -> None:
        return None


def asked_of_a_link(link: GuardedRedis) -> list[Callable[[], Awaitable[object]]]:
    async def scan() -> None:
        async for _ in link.scan(b"*"):
            pass

    return [
        lambda: link.set(b"k", b"v", 1),
        lambda: link.add(b"k", b"v", 1),
        lambda: link.delete([b"k", b"l"]),
        lambda: link.delete_if(b"k", b"v", [b"l"]),
        lambda: link.exists([b"k"]),
        lambda: link.lengths([b"k"]),
        lambda: link.beginnings([b"k", b"l"], [10, 20]),
        lambda: link.beginnings_with_ttls([b"k", b"l"], 10),
        lambda: link.ages([b"k"]),
        lambda: link.prolong([b"k"], 1),
        lambda: link.run([(as_flag, ("EXISTS", b"k"))]),
        lambda: LeaseCommands(link).take(b"k", b"v", 1, b"w"),
        lambda: LeaseCommands(link).look(b"k", b"w"),
        lambda: LeaseCommands(link).replace(b"k", b"v", b"w", 1),
        lambda: LeaseCommands(link).release(b"k", b"v"),
        scan,
        link.usage,
    ]


def asked_of_what_is_built_on_it(link: GuardedRedis) -> list[Callable[[], Awaitable[object]]]:
    tier = RedisTier(link._server, sealer(), Notes())
    strikes = RedisStrikes(link, KeyNames("p:"), sealer())
    leases = LeaseStore(link, KeyNames("p:"), sealer(), never, lease_s=0.1)
    claims = LeaseFleet(leases, Notes(), max_wait_s=lambda: 0.0)

    async def take() -> None:
        async with claims.claim(KEY, WaitBudget()) as claim:
            if not await claim.take():
                await claim.wait_for_others()
        await claims.close()

    return [
        lambda: tier.get(KEY),
        lambda: tier.put(ONE),
        lambda: tier.get_module(module(1).sha256),
        lambda: tier.put_module(module(1)),
        lambda: tier.held([KEY]),
        lambda: tier.kinds_of([KEY]),
        lambda: tier.renew(KEY),
        lambda: tier.evict(EvictScope()),
        lambda: tier.evict(EvictScope(module_sha256=KEY.module_sha256)),
        lambda: tier.evict(EvictScope(engine_id="wasmtime-1.0")),
        lambda: strikes.get(KEY, WaitBudget()),
        lambda: strikes.put(Strike(KEY, "e", "r", "m", 1, 1.0), 1.0, WaitBudget()),
        lambda: strikes.all(),
        lambda: strikes.remove(""),
        take,
    ]


async def never(key: CacheKey) -> None:
    return None


def test_every_method_of_a_link_is_asked_below() -> None:
    public = {
        name for name, _ in inspect.getmembers(GuardedRedis, inspect.isfunction) if name[0] != "_"
    }
    source = inspect.getsource(asked_of_a_link)
    assert {name for name in public if f"link.{name}" not in source} == {"close", "replace"}


@pytest.mark.parametrize("asked", [asked_of_a_link, asked_of_what_is_built_on_it])
@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
@pytest.mark.parametrize("more", [0, 1, -1])
async def test_garbage_is_an_outage_and_no_error(
    asked: Callable[[GuardedRedis], list[Callable[[], Awaitable[object]]]], answer: Any, more: int
) -> None:
    for number in range(len(asked(GuardedRedis(Babbler(answer, more))))):
        link = GuardedRedis(Babbler(answer, more))  # Whose breaker is closed.
        try:
            await asyncio.wait_for(asked(link)[number](), 10)
        except TierUnavailable:
            pass
        finally:
            await link.close()
