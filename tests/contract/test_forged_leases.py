"""Leases that are forged, copied or written back: no call waits for them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from redis.asyncio import Redis
from wasmkilnd.cache.fleet.lease import Lease
from wasmkilnd.cache.redis.tier import DEFAULT_PREFIX
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.model import EvictScope
from wasmkilnd.wait_budget import WaitBudget

from tests.contract.fleet import A_FEW_LEASES_S, LEASE_S, NAME, ONE, Daemon, fleet
from tests.contract.sealing import THEIRS, sealer
from tests.contract.values import artifact
from tests.servers.redis_server import RedisServer, binary_of, redis_server


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


OTHERS = KeyNames(DEFAULT_PREFIX).lease(artifact(2).key)
HOUR_MS = 3_600_000
FORGERIES = {
    "of another shape": b"mine",
    "empty": b"",
    "signed by a stranger": Lease.new(HOUR_MS).written(NAME, sealer(THEIRS).stamp),
    "signed for another key": Lease.new(HOUR_MS).written(OTHERS, sealer().stamp),
    "signed, then changed": Lease.new(1000)
    .written(NAME, sealer().stamp)
    .replace(b".1000.", b".9000."),
}


@pytest.mark.parametrize("value", FORGERIES.values(), ids=FORGERIES)
async def test_a_forged_lease_delays_no_call(valkey: RedisServer, value: bytes) -> None:
    async with fleet(valkey, 3) as daemons, Redis.from_url(valkey.url) as raw:
        await raw.set(NAME, value)  # And it never expires.
        began = asyncio.get_running_loop().time()
        compiled = await asyncio.gather(*(daemon.compile(0.1) for daemon in daemons))
        assert asyncio.get_running_loop().time() - began < 10
        # One took it over, and the others believe that one again.
        assert sorted(compiled) == [False, False, True]
        turns = [turn for daemon in daemons for turn in daemon.outcomes.turns]
        assert sorted(turns) == ["made", "made", "seized"]


async def test_a_lease_key_of_another_type_delays_no_call(valkey: RedisServer) -> None:
    async with fleet(valkey, 1) as [one], Redis.from_url(valkey.url) as raw:
        await raw.lpush(NAME, "x")
        assert await one.compile()
        assert one.outcomes.turns == ["taken"]


async def test_a_copied_lease_that_nobody_renews_is_waited_for_no_longer_than_a_lease(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (one, two), Redis.from_url(valkey.url) as raw:
        async with one.compiling():
            copied = await raw.get(NAME)
            assert copied
        await one.fleet.close()
        await one.tier.evict(EvictScope())
        await raw.set(NAME, copied)
        assert await asyncio.wait_for(two.compile(), A_FEW_LEASES_S)
        assert two.outcomes.turns == ["seized"]


async def captured(raw: Redis, daemon: Daemon, renewals: int = 0) -> list[bytes]:
    """What an attacker may copy of a lease while ``daemon`` compiles, if it is renewed so often."""
    copies: list[bytes] = []
    while len(copies) < 1 + renewals:
        copies.clear()
        async with daemon.compiling():
            # On a busy machine it may be renewed too late, and is gone then: once more.
            while len(copies) < 1 + renewals and (value := await raw.get(NAME)):
                if isinstance(value, bytes) and value not in copies:
                    copies.append(value)
                await asyncio.sleep(0.01)
        await daemon.fleet.close()
        await daemon.tier.evict(EvictScope())
        await raw.delete(NAME)
    return copies


async def takes_it_at_once(daemon: Daemon) -> bool:
    """Whether a daemon takes the lease without a wait, and compiles.

    It asks some times: a copy may come between its look and its taking.
    """
    async with daemon.fleet.claim(ONE.key, WaitBudget(1.0)) as claim:
        for _ in range(10):
            if await claim.take():
                return True
        return False


async def put_back(raw: Redis, copies: list[bytes]) -> None:
    """Put back one lease after the other, for ever."""
    for copy in itertools.cycle(copies):
        await raw.set(NAME, copy)
        await asyncio.sleep(0.4 * LEASE_S)


async def test_copied_leases_that_are_written_back_in_turn_are_waited_for_once(
    valkey: RedisServer,
) -> None:
    """Each of them is new to the daemon, once; and none when it is too old."""
    async with (
        fleet(valkey, 3, max_wait_s=60) as (one, two, three),
        Redis.from_url(valkey.url) as raw,
    ):
        copies = [copy for daemon in (one, one, two, two) for copy in await captured(raw, daemon)]
        attacking = asyncio.create_task(put_back(raw, copies))
        try:
            # Half of what it would wait for leases that are new each time.
            assert await asyncio.wait_for(three.compile(), 30)
            for _ in range(2):
                await three.fleet.close()
                await three.tier.evict(EvictScope())
                assert await takes_it_at_once(three)
        finally:
            attacking.cancel()


async def test_a_copy_of_this_daemon_s_own_lease_delays_no_call(valkey: RedisServer) -> None:
    async with fleet(valkey, 1, max_wait_s=60) as [one], Redis.from_url(valkey.url) as raw:
        copies = await captured(raw, one, renewals=2)
        attacking = asyncio.create_task(put_back(raw, copies))
        try:
            assert await takes_it_at_once(one)
        finally:
            attacking.cancel()


@pytest.mark.parametrize("what", ["lease", "artifact"])
async def test_a_writer_that_makes_leases_come_and_go_cannot_delay_a_call_for_ever(
    valkey: RedisServer, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is there when it is to be taken, and gone when it is looked at."""
    async with fleet(valkey, 2, max_wait_s=60) as (one, two), Redis.from_url(valkey.url) as raw:
        copies = await captured(raw, one, renewals=3)
        names, genuine = two.tier.names, two.fleet._leases.take
        lookups = itertools.count()

        async def take(*arguments: Any) -> Any:
            copy = copies[min(next(lookups), len(copies) - 1)]
            name, value = (NAME, copy) if what == "lease" else (names.artifact(ONE.key), b"x")
            await raw.set(name, value)
            try:
                return await genuine(*arguments)
            finally:
                await raw.delete(name)

        monkeypatch.setattr(two.fleet._leases, "take", take)
        assert await asyncio.wait_for(two.compile(), A_FEW_LEASES_S)
        assert next(lookups) < 10
