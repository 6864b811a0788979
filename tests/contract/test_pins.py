"""Pins in the shared tier, on a real server: lists that daemons share, values that stay."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.guarded import as_number
from wasmkilnd.cache.redis.pins import Lacking, RedisPins
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.model import EvictScope, PinTimes

from tests.contract.sealing import THEIRS, sealer
from tests.contract.values import artifact, module
from tests.doubles.notes import Notes
from tests.servers.redis_server import RedisServer, binary_of, redis_server

DEAR, OTHER = module(0).sha256, module(1).sha256
SEALER = sealer()


class Rig:
    """A tier, its pins, and which modules are pinned."""

    def __init__(self, url: str) -> None:
        self.pins = set[str]()
        self.tier = RedisTier(
            connect(url),
            SEALER,
            Notes(),
            prefix="pins:",
            ttl_s=1000,
            is_pinned=self.pins.__contains__,
        )
        self.redis = RedisPins(self.tier.link, self.tier.names, SEALER, 1000)

    async def ages(self) -> set[int]:
        """Return the times to live of all values and pieces."""
        names = [
            name
            async for page in self.tier.link.scan(self.tier.names.all_pattern())
            for name in page
            if self.tier.names.is_value(name)
        ]
        return set(await self.tier.link.ages(names))


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
async def rig(valkey: RedisServer) -> AsyncIterator[Rig]:
    made = Rig(valkey.url)
    await made.tier.evict(EvictScope())
    await made.tier.link.delete([made.tier.names.pins(digit) for digit in "0123456789abcdef"])
    yield made
    await made.tier.close()


async def test_values_of_a_pinned_module_have_no_time_to_live(rig: Rig) -> None:
    large = SEALER.seal(artifact(0, 3_000_000))
    await rig.tier.put(large)
    await rig.tier.put_module(module(0))
    assert min(await rig.ages()) > 0
    found = await rig.redis.measure([DEAR], keep=False)
    assert (found[DEAR].artifacts, found[DEAR].modules) == (1, 1)
    assert found[DEAR].bytes > 0
    assert min(await rig.ages()) > 0
    rig.pins.add(DEAR)
    assert await rig.redis.measure([DEAR], keep=True) == found
    assert await rig.ages() == {-1}
    await rig.tier.renew(large.key)
    await rig.tier.put(large)
    await rig.tier.put_module(module(0))
    assert await rig.ages() == {-1}
    assert await rig.redis.look([large.key, DEAR, OTHER]) == Lacking([OTHER], set())
    rig.pins.clear()
    await rig.redis.release([DEAR])
    assert min(await rig.ages()) > 900
    assert await rig.redis.look([large.key, DEAR]) == Lacking([], {DEAR})


async def test_an_evict_leaves_what_is_pinned(rig: Rig) -> None:
    dear, other = (SEALER.seal(artifact(tag, 1000)) for tag in (0, 1))
    for each in (dear, other):
        await rig.tier.put(each)
    spares = {DEAR}.__contains__
    gone = await rig.tier.evict(EvictScope(engine_id=dear.spec.engine.id, spares=spares))
    assert (gone.artifacts, gone.pinned) == (1, 1)
    assert await rig.tier.held([dear.key, other.key]) == {dear.key}
    gone = await rig.tier.evict(EvictScope(spares=spares))
    assert (gone.artifacts, gone.pinned) == (0, 1)


async def test_lists_are_merged_and_a_strangers_count_for_nothing(rig: Rig) -> None:
    pinned, unpinned = PinTimes(5, 0), PinTimes(5, 6)
    assert await rig.redis.exchange({DEAR: pinned}) == {}
    assert await rig.redis.exchange({OTHER: pinned}) == {DEAR: pinned}
    assert await rig.redis.exchange({DEAR: unpinned}) == {DEAR: pinned, OTHER: pinned}
    assert await rig.redis.exchange({}) == {DEAR: unpinned, OTHER: pinned}
    stranger = RedisPins(rig.tier.link, rig.tier.names, sealer(THEIRS), 1000)
    assert await stranger.exchange({DEAR: PinTimes(9, 0)}) == {}
    assert DEAR not in await rig.redis.exchange({})
    name = rig.tier.names.pins(DEAR[0])
    await rig.tier.link.run([(as_number, ("UNLINK", name)), (as_number, ("LPUSH", name, b"x"))])
    assert DEAR not in await rig.redis.exchange({DEAR: unpinned})
    assert (await rig.redis.exchange({}))[DEAR] == unpinned
