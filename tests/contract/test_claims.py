"""Claims over a real server: one daemon compiles, the others fetch, and no call hangs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from wasmkilnd.cache.fleet.null_fleet import NullClaim
from wasmkilnd.errors import (
    WasmkilnError,
    compile_queue_full,
    module_invalid,
    server_draining,
)
from wasmkilnd.wait_budget import WaitBudget

from tests.contract.fleet import A_FEW_LEASES_S, LEASE_S, NAME, ONE, Daemon, fleet
from tests.servers.redis_server import RedisServer, binary_of, redis_server


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


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


async def test_a_holder_that_stores_is_waited_for_no_longer_than_a_time_out(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (one, two):
        one.writes.clear()  # As if it stood in a long queue to a slow server.
        assert await one.compile(2 * LEASE_S)
        assert await asyncio.wait_for(asyncio.create_task(two.compile()), 60)
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
        await one.fleet.close()
        assert not await raw.exists(one.tier.names.lease(ONE.key))


async def test_a_compile_that_fails_lets_all_the_others_go_at_once(valkey: RedisServer) -> None:
    async with fleet(valkey, 5) as (one, *others):
        waiting: list[asyncio.Task[bool]] = []

        async def fail() -> None:
            async with one.compiling():
                waiting.extend(asyncio.create_task(other.compile(2 * LEASE_S)) for other in others)
                await asyncio.sleep(0.1)
                raise module_invalid("engine-1", "bad", None)

        with pytest.raises(WasmkilnError, match="bad"):
            await fail()
        began = asyncio.get_running_loop().time()
        assert all(await asyncio.gather(*waiting))
        # At the same time, not one after the other.
        assert asyncio.get_running_loop().time() - began < 6 * LEASE_S
        assert [other.outcomes.turns for other in others] == [["failed"]] * 4


@pytest.mark.parametrize(
    "how", [asyncio.CancelledError(), compile_queue_full("engine-1", 1, 1.0), server_draining()]
)
async def test_a_holder_that_gives_up_is_replaced_by_exactly_one(
    valkey: RedisServer, how: BaseException
) -> None:
    async with fleet(valkey, 4) as (one, *others):
        waiting: list[asyncio.Task[bool]] = []

        async def give_up() -> None:
            async with one.compiling():
                waiting.extend(asyncio.create_task(other.compile(0.1)) for other in others)
                await asyncio.sleep(0.1)
                raise how

        with pytest.raises(type(how)):
            await give_up()
        assert sorted(await asyncio.gather(*waiting)) == [False, False, True]
        turns = [turn for other in others for turn in other.outcomes.turns]
        assert sorted(turns) == ["made", "made", "taken"]


async def test_a_job_that_waits_for_a_worker_keeps_no_other_daemon_waiting(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (busy, idle):
        async with busy.worker(NullClaim().stored):
            queued = asyncio.create_task(busy.compile())
            await asyncio.sleep(0.1)
            assert await idle.compile()
            # Nor is it compiled here, nor has its caller to wait for a worker any more.
            assert not await asyncio.wait_for(queued, 60)
        assert (busy.compiles, busy.outcomes.turns) == (0, ["made"])
        assert idle.outcomes.turns == ["taken"]


async def test_a_job_gives_its_worker_back_while_another_daemon_compiles(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 2) as (one, two):
        async with one.compiling():
            waiting = asyncio.create_task(two.compile())
            await asyncio.sleep(0.1)
            assert (two.dispatch.idle, two.dispatch.busy) == (1, 0)
            assert not waiting.done()
        assert not await waiting


async def test_a_stored_artifact_is_not_compiled_when_its_worker_is_free(
    valkey: RedisServer,
) -> None:
    async with fleet(valkey, 1, max_wait_s=0.0) as [one]:
        async with one.fleet.claim(ONE.key, WaitBudget(1.0)) as claim:
            await one.tier.put(ONE)
            assert not await claim.take()
            assert await claim.wait_for_others()
        # And what is there, but of no use, is made all the same.
        async with one.fleet.claim(ONE.key, WaitBudget(1.0)) as claim:
            claim.ignore_others()
            assert await claim.take()


async def test_a_daemon_that_waited_too_long_compiles_only_what_is_not_stored(
    valkey: RedisServer,
) -> None:
    async with (
        fleet(valkey, 2, max_wait_s=0.2) as (one, two),
        one.compiling(),
        two.fleet.claim(ONE.key, WaitBudget(1.0)) as claim,
    ):
        assert not await claim.take()
        assert (
            not await claim.wait_for_others()
        )  # Its patience is over, and now it stands in a queue.
        await one.tier.put(ONE)
        assert not await claim.take()
        assert await claim.wait_for_others()


@pytest.mark.parametrize("cancelled", [True, False], ids=["left", "without an answer"])
async def test_a_lease_taken_by_an_unanswered_call_is_released(
    valkey: RedisServer, cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet(valkey, 2) as (one, two), Redis.from_url(valkey.url) as raw:
        commands = one.fleet._leases._commands
        take, taken = commands.take, asyncio.Event()

        async def unanswered(*asked: Any) -> Any:
            await take(*asked)
            taken.set()
            await asyncio.sleep(60)

        monkeypatch.setattr(commands, "take", unanswered)
        compiling = asyncio.create_task(one.compile())
        await taken.wait()
        assert await raw.persist(NAME)  # So that nothing else ends it.
        if cancelled:
            compiling.cancel()
        await asyncio.gather(compiling, return_exceptions=True)
        assert one.outcomes.turns == ([] if cancelled else ["alone"])
        await one.fleet.close()
        assert not await raw.exists(NAME)
        assert await two.compile()
        assert two.outcomes.turns == ["taken"]


async def test_a_dead_holder_is_replaced_by_exactly_one(valkey: RedisServer) -> None:
    async with fleet(valkey, 4) as (dead, *others):
        holding = asyncio.create_task(dead.compile(60))
        await asyncio.sleep(0.05)
        await dead.die()
        done = await asyncio.wait_for(
            asyncio.gather(*(other.compile(0.1) for other in others)), A_FEW_LEASES_S
        )
        assert sorted(done) == [False, False, True]
        holding.cancel()


async def test_a_holder_that_lost_its_lease_leaves_the_next_one_alone(valkey: RedisServer) -> None:
    async with fleet(valkey, 2) as (slow, quick), Redis.from_url(valkey.url) as raw:
        lease = slow.tier.names.lease(ONE.key)
        async with slow.compiling():
            await raw.delete(lease)  # As if it had been stopped for longer than the lease.
            async with quick.compiling():
                held = await raw.get(lease)
                assert held
                await asyncio.sleep(LEASE_S)
                renewed = await raw.get(lease)
                assert renewed
                assert renewed[:32] == held[:32]
                assert renewed != held
        await slow.fleet.close()
        assert slow.outcomes.turns == quick.outcomes.turns == ["taken"]


async def test_a_stored_artifact_is_not_compiled_again(valkey: RedisServer) -> None:
    async with fleet(valkey, 1) as [one], Redis.from_url(valkey.url) as raw:
        await one.tier.put(ONE)
        assert not await one.compile()
        assert not await raw.exists(one.tier.names.lease(ONE.key))


async def test_a_live_holder_is_waited_for_no_longer_than_max_wait_s(valkey: RedisServer) -> None:
    async with fleet(valkey, 2, max_wait_s=0.2) as (one, two):
        async with one.compiling():
            assert await two.compile()
        assert two.outcomes.turns == ["late"]


async def test_a_longer_max_wait_s_counts_for_calls_that_wait_already(valkey: RedisServer) -> None:
    async with fleet(valkey, 2, max_wait_s=0.5) as (one, two):
        async with one.compiling():
            waiting = asyncio.create_task(two.compile())
            await asyncio.sleep(0.1)
            two.max_wait_s = 60
            await asyncio.sleep(1.5)
        assert not await waiting
        assert two.outcomes.turns == ["made"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_without_a_server_every_daemon_compiles(tmp_path: Path, how: signal.Signals) -> None:
    with redis_server(binary_of("valkey"), tmp_path) as running:
        one, two = Daemon(running.url), Daemon(running.url)

        async def call() -> tuple[bool, bool]:
            budget = WaitBudget(1.0)
            return await two.compile(budget=budget), budget.spent

        async with one.compiling():
            waiting = asyncio.create_task(call())
            await asyncio.sleep(0.1)
            running.process.send_signal(how)
            # Waiting for one was free; what it asks next does not wait for silence once more.
            assert await asyncio.wait_for(waiting, 60) == (True, how is signal.SIGSTOP)
            assert two.outcomes.turns == ["alone"]
            assert await two.compile()
        await one.close()
        await two.close()
