"""Strikes on a real server: shared, aged by the server, and believed from the fleet only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from wasmkilnd.cache.fleet.strike_store import RedisStrikes
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.server import Command
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.model import CacheKey, EvictScope, Strike
from wasmkilnd.wait_budget import WaitBudget

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.doubles.notes import Notes
from tests.servers.redis_server import RedisServer, binary_of, redis_server

KEY = CacheKey("a" * 64, "f" * 64)
STRIKE = Strike(KEY, "e-1", "COMPILE_TIMEOUT", "it took too long", 3, 600.0)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
async def tier(valkey: RedisServer) -> AsyncIterator[RedisTier]:
    made = RedisTier(connect(valkey.url), sealer(OURS), Notes())
    yield made
    await made.close()


@pytest.fixture
async def raw(valkey: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
def strikes(tier: RedisTier, raw: Redis) -> RedisStrikes:
    return RedisStrikes(tier.link, tier.names, sealer(OURS))


async def test_a_strike_is_shared_listed_and_removed(
    strikes: RedisStrikes, tier: RedisTier
) -> None:
    assert await strikes.get(KEY, WaitBudget()) is None
    await strikes.put(STRIKE, 1000, WaitBudget())
    assert await RedisStrikes(tier.link, tier.names, sealer(OURS)).get(KEY, WaitBudget()) == STRIKE
    assert await strikes.all() == [STRIKE]
    assert await strikes.remove("b" * 64) == []
    assert await strikes.remove(KEY.module_sha256) == [KEY]
    assert await strikes.all() == []
    await strikes.put(STRIKE, 1000, WaitBudget())
    assert await strikes.remove("") == [KEY]


async def test_a_strike_s_age_is_the_server_s(
    strikes: RedisStrikes, tier: RedisTier, raw: Redis
) -> None:
    await strikes.put(STRIKE, 1000, WaitBudget())
    name = tier.names.strike(KEY)
    for ttl_s, left_s in ((900, 500), (400, 0), (1, 0)):
        await raw.expire(name, ttl_s)
        found = await strikes.get(KEY, WaitBudget())
        assert found
        assert abs(found.left_s - left_s) <= 1
    # Nobody makes it last longer than it was written for.
    await raw.persist(name)
    assert (await strikes.get(KEY, WaitBudget())) is not None
    for change in (raw.persist(name), raw.expire(name, 5000)):
        await change
        found = await strikes.get(KEY, WaitBudget())
        assert found
        assert found.left_s == 0


async def test_a_strike_without_a_trusted_stamp_has_no_effect(
    strikes: RedisStrikes, tier: RedisTier, raw: Redis
) -> None:
    name = tier.names.strike(KEY)
    other = CacheKey("b" * 64, KEY.fingerprint)
    theirs = RedisStrikes(tier.link, tier.names, sealer(THEIRS))
    await theirs.put(STRIKE, 1000, WaitBudget())
    assert await strikes.get(KEY, WaitBudget()) is None
    await strikes.put(STRIKE, 1000, WaitBudget())
    good = await raw.get(name)
    assert isinstance(good, bytes)
    await raw.set(tier.names.strike(other), good, ex=1000)
    assert await strikes.get(other, WaitBudget()) is None
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1
        await raw.set(name, bytes(bad), ex=1000)
        assert await strikes.get(KEY, WaitBudget()) is None
    for bad_value in (b"", b"x", good[:-1], good + b" ", b"x" * 100_000):
        await raw.set(name, bad_value, ex=1000)
        assert await strikes.get(KEY, WaitBudget()) is None
    assert await strikes.all() == []


async def test_many_strikes_are_listed_in_few_round_trips(
    strikes: RedisStrikes, tier: RedisTier, raw: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = [replace(STRIKE, key=CacheKey(f"{tag:064x}", "f" * 64)) for tag in range(250)]
    for strike in all_of_them:
        await strikes.put(strike, 1000, WaitBudget())
    server = tier.link._server
    runs: list[int] = []

    async def run(commands: Sequence[Command]) -> list[Any]:
        runs.append(len(commands))
        return await genuine(commands)

    genuine = server.run
    monkeypatch.setattr(server, "run", run)
    found = await strikes.all()
    assert all(STRIKE.left_s - 60 < one.left_s <= STRIKE.left_s for one in found)
    listed = sorted(found, key=lambda one: one.key.module_sha256)
    assert [replace(one, left_s=STRIKE.left_s) for one in listed] == all_of_them
    assert len(runs) <= 5
    await raw.lpush(tier.names.strike(KEY), "x")
    assert len(await strikes.all()) == len(all_of_them)


async def test_evicting_everything_releases_no_strike(
    strikes: RedisStrikes, tier: RedisTier
) -> None:
    await strikes.put(STRIKE, 1000, WaitBudget())
    await tier.evict(EvictScope())
    assert await strikes.get(KEY, WaitBudget()) == STRIKE
