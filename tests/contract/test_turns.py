"""Turns among daemons, over a real server: one makes it, the others take it, and nobody hangs."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from wasmkilnd.cache.connect import connect
from wasmkilnd.cache.keys import KeyNames
from wasmkilnd.cache.lease import Lease
from wasmkilnd.cache.patience import Patience
from wasmkilnd.cache.redis import DEFAULT_PREFIX, RedisTier
from wasmkilnd.cache.turns import FleetTurns
from wasmkilnd.model import EvictScope

from tests.contract.sealing import THEIRS, sealer
from tests.contract.servers import RedisServer, binary_of, redis_server
from tests.contract.values import artifact

ONE = sealer().seal(artifact(1))
LEASE_S = 0.5
# One, and what a busy machine may add; far less than anybody is waited for otherwise.
A_FEW_LEASES_S = 6 * LEASE_S


class Outcomes:
    """A recorder that remembers how waits ended."""

    def __init__(self) -> None:
        self.turns: list[str] = []

    def fleet_turn(self, outcome: str) -> None:
        self.turns.append(outcome)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


class Daemon:
    """What of a daemon takes part in an agreement."""

    def __init__(self, url: str, patience_s: float = 20) -> None:
        self.outcomes = Outcomes()
        self.patience_s = patience_s
        self.tier = RedisTier(connect(url, timeout_s=1), sealer(), self.outcomes, timeout_s=1)
        self.writes = asyncio.Event()
        self.writes.set()
        self.turns = FleetTurns(
            self.tier.link,
            self.tier.names,
            sealer(),
            self.outcomes,
            lambda key: self._stored(),
            lease_s=LEASE_S,
            patience_s=lambda: self.patience_s,
        )
        self.compiles = 0

    async def _stored(self) -> None:
        await self.writes.wait()
        await self.tier.put(ONE)

    async def compile(self, seconds: float = 0.0) -> bool:
        """Compile when it is this daemon's turn; answer whether it did."""
        async with self.turns.take(ONE.key) as ours:
            if ours:
                self.compiles += 1
                await asyncio.sleep(seconds)
            return ours

    async def close(self) -> None:
        await self.turns.close()
        await self.tier.close()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


@contextlib.asynccontextmanager
async def fleet(
    server: RedisServer, size: int, patience_s: float = 20
) -> AsyncIterator[list[Daemon]]:
    daemons = [Daemon(server.url, patience_s) for _ in range(size)]
    await daemons[0].tier.evict(EvictScope())
    async with Redis.from_url(server.url) as raw:
        await raw.delete(daemons[0].tier.names.lease(ONE.key))
    try:
        yield daemons
    finally:
        for daemon in daemons:
            await daemon.close()


async def test_one_of_many_compiles_and_the_others_wait_for_what_it_stored(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 5) as daemons:
        # Far longer than a lease: who lives renews it.
        compiling = [asyncio.create_task(daemon.compile(3 * LEASE_S)) for daemon in daemons]
        assert sorted(await asyncio.gather(*compiling)) == [False] * 4 + [True]
        assert sum(daemon.compiles for daemon in daemons) == 1
        turns = [turn for daemon in daemons for turn in daemon.outcomes.turns]
        assert sorted(turns) == ["made"] * 4 + ["taken"]


async def test_what_was_made_and_is_not_stored_is_waited_for_no_longer_than_a_time_out(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (one, two):
        one.writes.clear()  # As if it stood in a long queue to a slow server.
        assert await one.compile(2 * LEASE_S)
        assert await asyncio.wait_for(asyncio.create_task(two.compile()), 15)
        assert two.outcomes.turns == ["late"]
        one.writes.set()


async def test_a_lease_lasts_until_the_artifact_is_stored_and_no_longer(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (one, two), Redis.from_url(valkey.url) as raw:
        one.writes.clear()
        assert await one.compile()
        waiting = asyncio.create_task(two.compile())
        await asyncio.sleep(LEASE_S)
        assert not waiting.done()
        one.writes.set()
        assert not await waiting
        await one.turns.close()
        assert not await raw.exists(one.tier.names.lease(ONE.key))


async def test_a_compile_that_fails_lets_all_the_others_go_at_once(valkey: RedisServer) -> None:
    async with fleet(valkey, 5) as (one, *others):
        waiting: list[asyncio.Task[bool]] = []

        async def fail() -> None:
            async with one.turns.take(ONE.key):
                waiting.extend(asyncio.create_task(other.compile(LEASE_S)) for other in others)
                await asyncio.sleep(0.1)
                raise ValueError("bad module")

        with pytest.raises(ValueError, match="bad"):
            await fail()
        began = asyncio.get_running_loop().time()
        assert all(await asyncio.gather(*waiting))
        # At the same time, not one after the other.
        assert asyncio.get_running_loop().time() - began < 3 * LEASE_S
        assert [other.outcomes.turns for other in others] == [["failed"]] * 4


async def test_a_dead_holder_is_replaced_by_exactly_one(valkey: RedisServer) -> None:
    async with fleet(valkey, 4) as (dead, *others):
        holding = asyncio.create_task(dead.compile(60))
        await asyncio.sleep(0.05)
        # As if its process were gone: nobody renews, and nobody says goodbye.
        for task in (*dead.turns._holding, holding):
            task.cancel()
        dead.turns._link = None  # type: ignore[assignment]
        await asyncio.gather(holding, return_exceptions=True)
        done = await asyncio.wait_for(
            asyncio.gather(*(other.compile(0.1) for other in others)), A_FEW_LEASES_S
        )
        assert sorted(done) == [False, False, True]
        dead.turns._holding.clear()


async def test_who_lost_its_lease_leaves_the_next_holders_alone(valkey: RedisServer) -> None:
    async with fleet(valkey, 2) as (slow, quick), Redis.from_url(valkey.url) as raw:
        lease = slow.tier.names.lease(ONE.key)
        async with slow.turns.take(ONE.key):
            await raw.delete(lease)  # As if it had been stopped for longer than the lease.
            async with quick.turns.take(ONE.key) as ours:
                assert ours
                held = await raw.get(lease)
                assert held
                await asyncio.sleep(LEASE_S)
                renewed = await raw.get(lease)
                assert renewed
                assert renewed[:32] == held[:32]
                assert renewed != held
        await slow.turns.close()
        assert slow.outcomes.turns == quick.outcomes.turns == ["taken"]


async def test_an_artifact_that_is_there_is_not_made_again(valkey: RedisServer) -> None:
    async with fleet(valkey, 1) as [one], Redis.from_url(valkey.url) as raw:
        await one.tier.put(ONE)
        assert not await one.compile()
        assert not await raw.exists(one.tier.names.lease(ONE.key))


async def test_patience_ends(valkey: RedisServer) -> None:
    async with fleet(valkey, 2, patience_s=0.2) as (one, two):
        async with one.turns.take(ONE.key):
            assert await two.compile()
        assert two.outcomes.turns == ["late"]


async def test_patience_that_grows_counts_for_who_waits_already(valkey: RedisServer) -> None:
    async with fleet(valkey, 2, patience_s=0.5) as (one, two):
        async with one.turns.take(ONE.key):
            waiting = asyncio.create_task(two.compile())
            await asyncio.sleep(0.1)
            two.patience_s = 60
            await asyncio.sleep(1.5)
        assert not await waiting
        assert two.outcomes.turns == ["made"]


NAME = KeyNames(DEFAULT_PREFIX).lease(ONE.key)
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
async def test_a_forged_lease_holds_nobody_up(valkey: RedisServer, value: bytes) -> None:
    async with fleet(valkey, 3) as daemons, Redis.from_url(valkey.url) as raw:
        await raw.set(NAME, value)  # And it never expires.
        began = asyncio.get_running_loop().time()
        compiled = await asyncio.gather(*(daemon.compile(0.1) for daemon in daemons))
        assert asyncio.get_running_loop().time() - began < 10
        # One took it over, and the others believe that one again.
        assert sorted(compiled) == [False, False, True]
        turns = [turn for daemon in daemons for turn in daemon.outcomes.turns]
        assert sorted(turns) == ["made", "made", "seized"]


async def test_a_lease_of_another_type_holds_nobody_up(valkey: RedisServer) -> None:
    async with fleet(valkey, 1) as [one], Redis.from_url(valkey.url) as raw:
        await raw.lpush(NAME, "x")
        assert await one.compile()
        assert one.outcomes.turns == ["taken"]


async def test_a_copied_lease_that_nobody_renews_is_waited_for_no_longer_than_a_lease(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (one, two), Redis.from_url(valkey.url) as raw:
        async with one.turns.take(ONE.key):
            copied = await raw.get(NAME)
            assert copied
        await one.turns.close()
        await one.tier.evict(EvictScope())
        await raw.set(NAME, copied)
        assert await asyncio.wait_for(two.compile(), A_FEW_LEASES_S)
        assert two.outcomes.turns == ["seized"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_without_a_server_everybody_compiles(tmp_path: Path, how: signal.Signals) -> None:
    with redis_server(binary_of("valkey"), tmp_path) as running:
        one, two = Daemon(running.url), Daemon(running.url)

        async def call() -> tuple[bool, bool]:
            compiled = await two.compile()
            return compiled, Patience.of_this_call(1.0).spent

        async with one.turns.take(ONE.key) as ours:
            assert ours
            waiting = asyncio.create_task(call())
            await asyncio.sleep(0.1)
            running.process.send_signal(how)
            # Waiting for one was free; what it asks next does not wait for silence once more.
            assert await asyncio.wait_for(waiting, 10) == (True, how is signal.SIGSTOP)
            assert two.outcomes.turns == ["alone"]
            assert await two.compile()
        await one.close()
        await two.close()
